//! The configuration files of agents with simulated hypervisors.

use super::host_certificates::HostCertificate;
use crate::process::free_port;
use anyhow::Result;
use kubexen_crds::BootType;
use serde_json::json;
use std::path::Path;

/// What each simulated host is like.
#[derive(Clone, Debug)]
pub struct SimulatedHostOptions {
    /// Logical CPUs.
    pub cpus: u32,
    /// Memory, as a quantity.
    pub memory: String,
    /// Capacity of the storage location `default`, as a quantity.
    pub disk: String,
    /// How fast guests come and go, in bytes a second.
    pub migration_bytes_per_second: u64,
    /// Modes of guests for which there is a boot loader.
    pub boot_loaders: Vec<BootType>,
}

impl Default for SimulatedHostOptions {
    fn default() -> Self {
        Self {
            cpus: 32,
            memory: "128Gi".to_owned(),
            disk: "10Ti".to_owned(),
            migration_bytes_per_second: 1 << 30,
            boot_loaders: vec![BootType::Pv, BootType::Pvh],
        }
    }
}

/// Name of the folder that stands for the storage that all hosts share, beside theirs; and of each host's link to it.
pub(super) const SHARED: &str = "san";

/// Gives the host of this folder its link to the shared storage, or takes it away.
pub(super) fn reach_shared_storage(folder: &Path, reaches: bool) -> Result<()> {
    let link = folder.join(SHARED);
    match (reaches, link.is_symlink()) {
        (true, false) => std::os::unix::fs::symlink(Path::new("..").join(SHARED), link)?,
        (false, true) => std::fs::remove_file(link)?,
        (true, true) | (false, false) => {}
    }
    Ok(())
}

impl SimulatedHostOptions {
    /// Writes `agent.yaml` for `host` into `folder`, where its kubeconfig lies. The host offers the storage location
    /// `default`, the location `san` that it shares with all other simulated hosts, the uplink `lan`, the
    /// kernel `linux`, and the network `fast` for migrations, as the hosts of the Xen lab do.
    pub(super) fn write(
        &self,
        host: &str,
        folder: &Path,
        pool_etcd: &[String],
        certificate: &HostCertificate,
    ) -> Result<()> {
        let disks = folder.join("disks");
        std::fs::create_dir_all(&disks)?;
        std::fs::create_dir_all(folder.with_file_name(SHARED))?;
        let san = folder.join(SHARED);
        reach_shared_storage(folder, true)?;
        let file = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).map(|()| path)
        };
        let port = free_port()?;
        let (address, fast) = (format!("127.0.0.1:{port}"), format!("127.0.0.2:{port}"));
        let config = json!({
            "host": host,
            "kubeconfig": folder.join("kubeconfig"),
            "stateDirectory": folder.join("state"),
            "poolStore": {"endpoints": pool_etcd},
            "hypervisor": {"type": "Simulated", "profile": {
                "cpus": self.cpus,
                "memory": self.memory,
                "migrationBytesPerSecond": self.migration_bytes_per_second,
                "bootLoaders": self.boot_loaders,
            }},
            "locations": {
                "default": {"path": disks, "capacity": self.disk},
                "san": {"path": san, "capacity": self.disk, "sharedAs": "san-1"},
            },
            "uplinks": {"lan": {"bridge": "xenbr0"}},
            "migration": {
                "listen": address,
                "address": address,
                "networks": {"fast": {"address": fast, "listen": fast}},
                "certificate": file("migration.crt", &certificate.certificate)?,
                "key": file("migration.key", &certificate.key)?,
                "ca": file("migration-ca.crt", &certificate.ca)?,
            },
            "kernels": {"linux": {"kernel": "/guest/vmlinux", "ramdisk": "/guest/initrd"}},
        });
        std::fs::write(folder.join("agent.yaml"), serde_yaml_ng::to_string(&config)?)?;
        Ok(())
    }
}
