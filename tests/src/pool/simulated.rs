//! The configuration files of agents with simulated hypervisors.

use anyhow::Result;
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
}

impl Default for SimulatedHostOptions {
    fn default() -> Self {
        Self { cpus: 32, memory: "128Gi".to_owned(), disk: "10Ti".to_owned() }
    }
}

impl SimulatedHostOptions {
    /// Writes `agent.yaml` for `host` into `folder`, where its kubeconfig lies. The host offers the storage location
    /// `default`, the uplink `lan` and the kernel `linux`, as the hosts of the Xen lab do.
    pub(super) fn write(&self, host: &str, folder: &Path, pool_etcd: &str) -> Result<()> {
        let disks = folder.join("disks");
        std::fs::create_dir_all(&disks)?;
        let config = json!({
            "host": host,
            "kubeconfig": folder.join("kubeconfig"),
            "stateDirectory": folder.join("state"),
            "poolStore": {"endpoints": [pool_etcd]},
            "hypervisor": {"type": "Simulated", "profile": {"cpus": self.cpus, "memory": self.memory}},
            "locations": {"default": {"path": disks, "capacity": self.disk}},
            "uplinks": {"lan": {"bridge": "xenbr0"}},
            "kernels": {"linux": {"kernel": "/guest/vmlinux", "ramdisk": "/guest/initrd"}},
        });
        std::fs::write(folder.join("agent.yaml"), serde_yaml_ng::to_string(&config)?)?;
        Ok(())
    }
}
