//! One test's objects: its namespace, and what its user does there.

use crate::world::World;
use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{NamespaceResourceScope, api::core::v1::Namespace};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::{
    Network, StorageRepository, VirtualDisk, VirtualMachine, condition, names::RESTART_REQUESTED_AT,
};
use kubexen_testbed::process::wait_until;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{fmt::Debug, time::Duration};

/// How long anything may take that is not a storm: far more than it takes, because a busy machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A namespace, with a Network and a StorageRepository of the same name for its machines.
pub struct Scene {
    pub client: Client,
    pub name: String,
}

impl Scene {
    pub async fn new(world: &World, name: &str) -> Result<Self> {
        let scene = Self { client: world.control_plane.client().await?, name: name.to_owned() };
        scene.create_cluster_wide::<Namespace>(json!({"metadata": {"name": name}})).await?;
        scene.create_network(name).await?;
        let spec = json!({"type": "Directory", "directory": {"location": "default"}});
        let repository = json!({"metadata": {"name": name}, "spec": spec});
        scene.create_cluster_wide::<StorageRepository>(repository).await?;
        Ok(scene)
    }

    /// A scene with a repository of its name and `-san` too, whose storage all hosts reach.
    pub async fn with_shared_repository(world: &World, name: &str) -> Result<Self> {
        let scene = Self::new(world, name).await?;
        let spec = json!({"type": "LVM", "lvm": {"location": "san"}});
        let repository = json!({"metadata": {"name": format!("{name}-san")}, "spec": spec});
        scene.create_cluster_wide::<StorageRepository>(repository).await?;
        Ok(scene)
    }

    pub async fn create_network(&self, name: &str) -> Result<()> {
        let spec = json!({"type": "Bridge", "bridge": {"uplink": "lan"}});
        self.create_cluster_wide::<Network>(json!({"metadata": {"name": name}, "spec": spec})).await
    }

    pub async fn create_cluster_wide<K>(&self, object: Value) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + serde::Serialize,
    {
        let object = serde_json::from_value::<K>(object)?;
        Api::<K>::all(self.client.clone()).create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// The namespace's objects of one kind.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub async fn create_disk(&self, name: &str, size: &str) -> Result<VirtualDisk> {
        self.create_disk_in(&self.name, name, size).await
    }

    pub async fn create_disk_in(&self, repository: &str, name: &str, size: &str) -> Result<VirtualDisk> {
        let spec = json!({"repository": repository, "size": size});
        let disk = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
        Ok(self.api().create(&PostParams::default(), &disk).await?)
    }

    /// Makes a small machine; `spec` is merged over its spec.
    pub async fn create_machine(&self, name: &str, spec: Value) -> Result<VirtualMachine> {
        Ok(self.api().create(&PostParams::default(), &machine(name, spec)?).await?)
    }

    /// Merges `change` into a machine.
    pub async fn change(&self, name: &str, change: Value) -> Result<()> {
        let machines = self.api::<VirtualMachine>();
        machines.patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    pub async fn set_power_state(&self, name: &str, state: &str) -> Result<()> {
        self.change(name, json!({"spec": {"powerState": state}})).await
    }

    /// Asks for a restart, as `kubectl annotate` does.
    pub async fn restart(&self, name: &str) -> Result<()> {
        let annotations = json!({RESTART_REQUESTED_AT: jiff::Timestamp::now().to_string()});
        self.change(name, json!({"metadata": {"annotations": annotations}})).await
    }

    /// Waits until `accept` accepts the machine, which is returned.
    pub async fn until(
        &self,
        name: &str,
        what: &str,
        accept: impl Fn(&VirtualMachine) -> bool,
    ) -> Result<VirtualMachine> {
        let machines = self.api::<VirtualMachine>();
        wait_until(&format!("{name}: {what}"), PATIENCE, async || {
            let machine = machines.get(name).await?;
            ensure!(accept(&machine), "it is {}", described(&machine));
            Ok(machine)
        })
        .await
    }

    /// Waits until the machine's condition `Ready` has this status and this reason, and speaks of the spec as it is.
    pub async fn until_ready_is(&self, name: &str, status: &str, reason: &str) -> Result<VirtualMachine> {
        self.until(name, &format!("Ready={status}/{reason}"), |machine| ready_is(machine, status, reason))
            .await
    }

    /// Deletes an object and waits until it is gone.
    pub async fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        api.delete(name, &DeleteParams::default()).await?;
        wait_until(&format!("{name} is gone"), PATIENCE, async || match api.get_opt(name).await? {
            None => Ok(()),
            Some(left) => bail!("its finalizers are {:?}", left.finalizers()),
        })
        .await
    }
}

/// A small machine; `spec` is merged over its spec.
pub fn machine(name: &str, spec: Value) -> Result<VirtualMachine> {
    let mut all = json!({
        "memory": {"size": "64Mi"},
        "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": "console=hvc0"}},
    });
    if let (Some(all), Value::Object(spec)) = (all.as_object_mut(), spec) {
        all.extend(spec);
    }
    let object = json!({"metadata": {"name": name}, "spec": all});
    serde_json::from_value(object).with_context(|| format!("the spec of {name}"))
}

/// A spec with one disk.
pub fn with_disk(disk: &str) -> Value {
    json!({"disks": [{"name": "root", "disk": disk}]})
}

/// A boot section whose guest does something by itself, some seconds after each start.
pub fn boot_that_ends(how: &str, after_seconds: u32) -> Value {
    let command_line = format!("console=hvc0 kubexen.exit={how} kubexen.exit-after={after_seconds}");
    json!({"type": "PVH", "kernel": {"name": "linux", "commandLine": command_line}})
}

/// Whether the condition `Ready` has this status and this reason, and speaks of the spec as it is.
pub fn ready_is(machine: &VirtualMachine, status: &str, reason: &str) -> bool {
    condition_is(machine, "Ready", status, reason)
}

pub fn condition_is(machine: &VirtualMachine, type_: &str, status: &str, reason: &str) -> bool {
    let conditions = machine.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::find(conditions, type_).is_some_and(|condition| {
        condition.status == status
            && condition.reason == reason
            && condition.observed_generation == machine.metadata.generation
    })
}

/// The message of the condition `Ready`.
pub fn message(machine: &VirtualMachine) -> &str {
    machine
        .status
        .as_ref()
        .and_then(|status| condition::find(&status.conditions, "Ready"))
        .map_or("", |ready| ready.message.as_str())
}

/// The host that a machine is on.
pub fn host(machine: &VirtualMachine) -> Result<&str> {
    let host = machine.status.as_ref().and_then(|status| status.host.as_deref());
    host.with_context(|| format!("{} has no host: {}", machine.name_any(), described(machine)))
}

/// A machine's state, for the message of a failure.
pub fn described(machine: &VirtualMachine) -> String {
    let Some(status) = &machine.status else { return "without a status".to_owned() };
    let conditions: Vec<String> = status
        .conditions
        .iter()
        .map(|one| format!("{}={}/{} ({})", one.type_, one.status, one.reason, one.message))
        .collect();
    format!("{:?}: {}", status.phase, conditions.join(", "))
}
