//! Has another host look after a disk on shared storage, step by step. What makes it safe is said in [`super::keeper`].

use crate::{
    context::{Context, MANAGER},
    error::Error,
    view::{has_finalizer, is_deleting, uid},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kubexen_crds::{
    VirtualDisk, Volume, VolumeSpec,
    names::{AGENT_FINALIZER, host_namespace, host_object_name},
};
use kubexen_runtime::{Key, write};

/// Has a host look after the data of a Volume too; says whether all was as it was seen.
pub(super) async fn bequeath(
    context: &Context,
    disk: &VirtualDisk,
    volume: &Key,
    host: &str,
) -> Result<bool, Error> {
    // A Volume of a disk that is gone would stand for nothing, and nobody would delete it.
    let present = context.get::<VirtualDisk>(&Key::of(disk)).await?;
    if !present.is_some_and(|present| uid(&present) == uid(disk) && has_finalizer(&present)) {
        return Ok(false);
    }
    let Some(seen) = context.get::<Volume>(volume).await? else { return Ok(false) };
    if seen.spec.virtual_disk.uid != uid(disk) {
        return Ok(false);
    }
    let heir = Volume {
        metadata: ObjectMeta {
            name: Some(seen.name_any()),
            namespace: Some(host_namespace(host)),
            finalizers: Some(vec![AGENT_FINALIZER.to_owned()]),
            labels: seen.metadata.labels.clone(),
            ..ObjectMeta::default()
        },
        spec: VolumeSpec { existing: true, ..seen.spec },
        status: None,
    };
    context.create(&heir).await?;
    Ok(true)
}

/// Lets a Volume go whose data another one stands for; says whether that is still so.
pub(super) async fn release(
    context: &Context,
    disk: &VirtualDisk,
    volume: &Key,
    keeper: &Key,
) -> Result<bool, Error> {
    let Key { namespace, name } = Key::of(disk);
    let mut present: Vec<Volume> = context.list_named(&host_object_name(&namespace, &name)).await?;
    present.retain(|present| present.spec.virtual_disk.uid == uid(disk));
    let kept = present.iter().any(|present| {
        Key::of(present) == *keeper
            && has_agents_finalizer(present)
            && (is_deleting(disk) || !is_deleting(present))
    });
    let Some(volume) = present.into_iter().find(|present| Key::of(present) == *volume) else {
        return Ok(true);
    };
    if !kept {
        return Ok(false);
    }
    // Without its finalizer the agent never sees it as one that is being deleted, which would mean: with its data.
    let unheld = match write::without_finalizer(&volume, AGENT_FINALIZER) {
        Some(change) => {
            context.may_write::<Volume>("patch")?;
            let api = kube::Api::<Volume>::namespaced(
                context.client.clone(),
                &volume.namespace().unwrap_or_default(),
            );
            write::merge(&api, &volume.name_any(), MANAGER, &change).await?
        }
        None => volume,
    };
    if is_deleting(&unheld) {
        return Ok(true);
    }
    context.delete_unchanged(&unheld).await
}

fn has_agents_finalizer(volume: &Volume) -> bool {
    volume.finalizers().iter().any(|name| name == AGENT_FINALIZER)
}
