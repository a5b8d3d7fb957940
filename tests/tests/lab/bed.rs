//! What the tests of this suite share: one control plane, one lab of two hosts, one pool; and how they speak to it.

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::{
    Domain, Network, Pool as PoolObject, StorageRepository, VirtualDisk, VirtualMachine,
    VirtualMachineStatus, condition,
    names::{RESTART_REQUESTED_AT, host_namespace},
};
use kubexen_testbed::{
    control_plane::{ControlPlane, Options},
    lab::{Lab, LabHost, LabOptions},
    pool::{self, Pool, Profile},
    process::wait_until,
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long anything may take in the lab, where one emulated CPU does the work of a host. Tests run side by side.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// The suite's world.
pub struct Bed {
    pub control_plane: ControlPlane,
    pub lab: Lab,
    pub pool: Pool,
}

/// A test's turn in the suite's world.
pub struct Turn<G> {
    pub bed: &'static Bed,
    _guard: G,
}

/// The conformance suite reads the consoles of all domains that were built with a token, and so would take from the
/// agent what its guests say. So it runs when nothing else does.
static TURNS: RwLock<()> = RwLock::const_new(());

/// A turn that other tests may share.
pub async fn beside_others() -> Turn<RwLockReadGuard<'static, ()>> {
    Turn { _guard: TURNS.read().await, bed: bed().await }
}

/// A turn that no other test shares.
pub async fn alone() -> Turn<RwLockWriteGuard<'static, ()>> {
    Turn { _guard: TURNS.write().await, bed: bed().await }
}

/// The suite's world, started by the first test that asks. That nothing of it is left when the suite's process ends is
/// the control plane's and the lab's own doing.
async fn bed() -> &'static Bed {
    static SHARED: OnceCell<Bed> = OnceCell::const_new();
    SHARED.get_or_try_init(|| start("suite")).await.expect("the lab's pool starts")
}

/// A turn that no other test shares, and a world of its own for a test that does damage to it.
pub async fn own_world() -> Result<(RwLockWriteGuard<'static, ()>, Bed)> {
    let guard = TURNS.write().await;
    Ok((guard, start("damaged").await?))
}

async fn start(name: &str) -> Result<Bed> {
    let control_plane = ControlPlane::start(&Options::default()).await?;
    let mut options = LabOptions::new(format!("{name}-{}", std::process::id()));
    options.extras = pool::lab_extras()?;
    let lab = Lab::up(&options).await?;
    let pool = Pool::start_on_lab(&control_plane, &lab, Profile::Debug).await?;
    let client = control_plane.client().await?;
    let network = json!({"apiVersion": "kubexen.io/v1alpha1", "kind": "Network", "metadata": {"name": "prod"},
        "spec": {"type": "Bridge", "bridge": {"uplink": "lan"}}});
    let repository = json!({"apiVersion": "kubexen.io/v1alpha1", "kind": "StorageRepository",
        "metadata": {"name": "local"}, "spec": {"type": "Directory", "directory": {"location": "default"}}});
    create::<Network>(&Api::all(client.clone()), network).await?;
    create::<StorageRepository>(&Api::all(client.clone()), repository).await?;
    let shared = json!({"apiVersion": "kubexen.io/v1alpha1", "kind": "StorageRepository",
        "metadata": {"name": "san"}, "spec": {"type": "LVM", "lvm": {"location": "san"}}});
    create::<StorageRepository>(&Api::all(client.clone()), shared).await?;
    let policy = json!({"apiVersion": "kubexen.io/v1alpha1", "kind": "Pool", "metadata": {"name": "default"},
        "spec": {"migration": {"network": "fast"}}});
    create::<PoolObject>(&Api::all(client), policy).await?;
    Ok(Bed { control_plane, lab, pool })
}

async fn create<K>(api: &Api<K>, object: Value) -> Result<K>
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
{
    let object: K = serde_json::from_value(object)?;
    api.create(&PostParams::default(), &object).await.context("the API server refused an object of the test")
}

/// A virtual machine of a test.
pub struct Guest {
    pub name: &'static str,
    pub machines: Api<VirtualMachine>,
    client: Client,
}

impl Guest {
    /// Makes a machine with 128 MiB; `spec` is merged into it.
    pub async fn create(bed: &Bed, name: &'static str, spec: Value) -> Result<Self> {
        let client = bed.control_plane.client().await?;
        let machines = Api::namespaced(client.clone(), "default");
        let mut whole = json!({"memory": {"size": "128Mi"}, "boot": {"type": "PVH", "kernel": {"name": "linux",
            "commandLine": "console=hvc0 quiet"}}});
        merge(&mut whole, spec);
        let machine = json!({"apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": name}, "spec": whole});
        create(&machines, machine).await?;
        Ok(Self { name, machines, client })
    }

    /// Makes a blank disk of 16 MiB.
    pub async fn create_disk(bed: &Bed, name: &str) -> Result<VirtualDisk> {
        Self::create_disk_in(bed, "local", name).await
    }

    /// Makes a blank disk of 16 MiB in this repository.
    pub async fn create_disk_in(bed: &Bed, repository: &str, name: &str) -> Result<VirtualDisk> {
        let disk = json!({"apiVersion": "kubexen.io/v1alpha1", "kind": "VirtualDisk", "metadata": {"name": name},
            "spec": {"repository": repository, "size": "16Mi"}});
        create(&Api::namespaced(bed.control_plane.client().await?, "default"), disk).await
    }

    /// Merges `spec` into the machine's.
    pub async fn change(&self, spec: Value) -> Result<()> {
        self.merge(json!({"spec": spec})).await
    }

    /// Asks for a restart.
    pub async fn restart(&self) -> Result<()> {
        let now = Timestamp::now().to_string();
        self.merge(json!({"metadata": {"annotations": {RESTART_REQUESTED_AT: now}}})).await
    }

    async fn merge(&self, change: Value) -> Result<()> {
        self.machines.patch(self.name, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    /// Waits until the machine's status is as `wanted`, and of the present generation.
    pub async fn wait(
        &self,
        what: &str,
        wanted: impl Fn(&VirtualMachineStatus) -> bool,
    ) -> Result<VirtualMachineStatus> {
        wait_until(&format!("{} {what}", self.name), PATIENCE, async || {
            let machine = self.machines.get(self.name).await?;
            let status = machine.status.unwrap_or_default();
            ensure!(
                status.observed_generation == machine.metadata.generation && wanted(&status),
                "its status is {}",
                serde_json::to_string(&status)?
            );
            Ok(status)
        })
        .await
    }

    /// Waits until the machine is Ready for this reason.
    pub async fn wait_ready(&self, reason: &str) -> Result<VirtualMachineStatus> {
        self.wait(&format!("is Ready because {reason}"), |status| {
            let ready = condition::find(&status.conditions, "Ready");
            ready.is_some_and(|ready| ready.status == "True" && ready.reason == reason)
        })
        .await
    }

    /// The Domain of the machine on this host.
    pub async fn domain(&self, host: &str) -> Result<Domain> {
        let domains: Api<Domain> = Api::namespaced(self.client.clone(), &host_namespace(host));
        Ok(domains.get(&format!("default.{}", self.name)).await?)
    }

    /// The machine's uid, which is its domain's UUID.
    pub async fn uuid(&self) -> Result<String> {
        self.machines.get(self.name).await?.uid().context("an object without a uid")
    }

    /// Deletes the machine and waits until its object is gone.
    pub async fn delete(&self) -> Result<()> {
        self.machines.delete(self.name, &DeleteParams::default()).await?;
        wait_until(&format!("{} is gone", self.name), PATIENCE, async || {
            ensure!(self.machines.get_opt(self.name).await?.is_none(), "its object is still there");
            Ok(())
        })
        .await
    }
}

/// Deletes a disk and waits until its object is gone.
pub async fn delete_disk(bed: &Bed, name: &str) -> Result<()> {
    let disks: Api<VirtualDisk> = Api::namespaced(bed.control_plane.client().await?, "default");
    disks.delete(name, &DeleteParams::default()).await?;
    wait_until(&format!("disk {name} is gone"), PATIENCE, async || {
        ensure!(disks.get_opt(name).await?.is_none(), "its object is still there");
        Ok(())
    })
    .await
}

/// The two hosts, the one that `status` names first.
pub fn hosts(bed: &Bed, status: &VirtualMachineStatus) -> Result<(LabHost, LabHost)> {
    let home = status.host.clone().context("the machine has no host")?;
    let other =
        bed.lab.hosts().into_iter().find(|host| host.name() != home).context("there is one host only")?;
    Ok((bed.lab.host(&home)?, other))
}

/// Waits until `host` gets an answer from `address`.
pub async fn answers(host: &LabHost, address: &str) -> Result<()> {
    wait_until(&format!("{address} answers {}", host.name()), PATIENCE, async || {
        host.check(&format!("ping -c 1 -W 2 {address}")).await.map(drop)
    })
    .await
}

/// Waits until the guest with this UUID said `words` on its console.
pub async fn says(host: &LabHost, uuid: &str, words: &str) -> Result<()> {
    wait_until(&format!("the guest says {words:?}"), PATIENCE, async || {
        let console = host.check(&format!("cat /srv/kubexen/state/console/{uuid}.log*")).await?;
        if console.contains(words) { Ok(()) } else { bail!("its console ends with {:?}", tail(&console)) }
    })
    .await
}

fn tail(text: &str) -> &str {
    let begin = (0..=text.len().saturating_sub(300)).rev().find(|&index| text.is_char_boundary(index));
    &text[begin.unwrap_or(0)..]
}

/// Fails if anything of this machine is left on the host: domain, xenstore node, device, loop device, file.
pub async fn nothing_is_left(host: &LabHost, uuid: &str, disk: Option<&str>) -> Result<()> {
    let xenstore = host.check("xenstore-ls -f").await?;
    let left: Vec<&str> = xenstore.lines().filter(|line| line.contains(uuid)).collect();
    ensure!(left.is_empty(), "xenstore nodes are left on {}: {left:?}", host.name());
    if let Some(disk) = disk {
        let loops = host.check("cat /sys/block/loop*/loop/backing_file 2>/dev/null || true").await?;
        ensure!(!loops.contains(disk), "a loop device is left on {}: {loops}", host.name());
        let files = host.check("ls -A /srv/kubexen/disks").await?;
        ensure!(!files.contains(disk), "a file is left on {}: {files}", host.name());
    }
    Ok(())
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}
