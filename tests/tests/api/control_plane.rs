//! The control plane itself: every later test stands on what is shown here.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::Api;
use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use kubexen_testbed::control_plane::{ADMIN, ControlPlane, Options, Part, WriteKind};
use kubexen_testbed::process::wait_until;
use tokio::process::Command;

use crate::fixture;

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

async fn new_namespace(control_plane: &ControlPlane, name: &str) -> Result<()> {
    let namespaces = Api::<Namespace>::all(control_plane.client().await?);
    let namespace = Namespace { metadata: named(name), ..Namespace::default() };
    namespaces.create(&PostParams::default(), &namespace).await?;
    Ok(())
}

async fn output(mut command: Command) -> Result<String> {
    let output = command.output().await?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn a_config_map_can_be_created_and_the_write_is_counted() -> Result<()> {
    let control_plane = fixture::control_plane().await;
    new_namespace(control_plane, "counted").await?;
    let config_maps = Api::<ConfigMap>::namespaced(control_plane.client().await?, "counted");
    let mark = control_plane.audit_mark()?;
    let config_map = ConfigMap { metadata: named("one"), ..ConfigMap::default() };
    config_maps.create(&PostParams::default(), &config_map).await?;
    let refused = config_maps.create(&PostParams::default(), &config_map).await;
    assert!(refused.is_err(), "the second of its name is refused");
    let expected = WriteKind {
        user: ADMIN.to_owned(),
        verb: "create".to_owned(),
        resource: "configmaps".to_owned(),
        subresource: String::new(),
    };
    wait_until("one granted write is in the audit log", Duration::from_secs(5), async || {
        let writes = control_plane.writes_since(mark)?;
        // Other tests of this suite write at the same time.
        ensure!(writes.by_kind.get(&expected) == Some(&1), "the log says:\n{writes}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_deleted_namespace_goes_away_with_what_is_in_it() -> Result<()> {
    let control_plane = fixture::control_plane().await;
    new_namespace(control_plane, "short-lived").await?;
    let client = control_plane.client().await?;
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "short-lived");
    accounts
        .create(
            &PostParams::default(),
            &ServiceAccount { metadata: named("guest"), ..ServiceAccount::default() },
        )
        .await?;
    let namespaces = Api::<Namespace>::all(client);
    namespaces.delete("short-lived", &DeleteParams::default()).await?;
    wait_until("the namespace is gone", Duration::from_secs(60), async || {
        match namespaces.get_opt("short-lived").await? {
            None => Ok(()),
            Some(_) => bail!("it is still there"),
        }
    })
    .await
}

#[tokio::test]
async fn a_service_account_is_itself_and_may_do_nothing() -> Result<()> {
    let control_plane = fixture::control_plane().await;
    new_namespace(control_plane, "powerless").await?;
    let accounts = Api::<ServiceAccount>::namespaced(control_plane.client().await?, "powerless");
    accounts
        .create(
            &PostParams::default(),
            &ServiceAccount { metadata: named("guest"), ..ServiceAccount::default() },
        )
        .await?;
    let guest = control_plane.service_account("powerless", "guest").await?;
    let config_maps = Api::<ConfigMap>::namespaced(guest.client().await?, "powerless");
    let error = config_maps.list(&ListParams::default()).await.expect_err("no role allows it");
    let message = error.to_string();
    assert!(message.contains("system:serviceaccount:powerless:guest"), "{message}");
    Ok(())
}

#[tokio::test]
async fn kubectl_and_helm_talk_to_this_control_plane() -> Result<()> {
    let control_plane = fixture::control_plane().await;
    let mut kubectl = control_plane.kubectl()?;
    kubectl.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
    assert_eq!(output(kubectl).await?, ADMIN);
    let mut helm = control_plane.helm()?;
    helm.args(["list", "--namespace", "default", "-o", "json"]);
    assert_eq!(output(helm).await?.trim(), "[]");
    Ok(())
}

#[tokio::test]
async fn what_was_stored_outlives_crashes_of_the_servers() -> Result<()> {
    let mut control_plane =
        ControlPlane::start(&Options { controller_manager: false, ..Options::default() }).await?;
    new_namespace(&control_plane, "survivor").await?;
    for part in [Part::ApiServer, Part::Etcd, Part::PoolEtcd] {
        control_plane.restart(part).await?;
    }
    let namespaces = Api::<Namespace>::all(control_plane.client().await?);
    wait_until("the API server reads from its etcd again", Duration::from_secs(30), async || {
        Ok(namespaces.get("survivor").await?)
    })
    .await?;
    assert_eq!(control_plane.pool_keys("/").await?, Vec::<String>::new());
    let folder = control_plane.folder().to_owned();
    drop(control_plane);
    assert!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}
