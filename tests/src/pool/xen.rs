//! Agents in the dom0s of a lab.

use super::host_certificates::HostCertificate;
use crate::{
    control_plane::Identity,
    lab::{Extra, LabHost},
    programs::xen_agent,
};
use anyhow::Result;
use serde_json::json;

/// Where the agent's program is in dom0.
pub const AGENT: &str = "/usr/bin/kubexen-node-agent";

/// Where the agent's configuration is in dom0.
pub const CONFIGURATION: &str = "/etc/kubexen/agent.yaml";

/// Address of this machine's loopback as dom0 sees it.
const MACHINE: &str = "10.0.2.2";

/// The volume group on the LUN that all hosts of a lab see, once somebody makes it.
pub const SHARED_GROUP: &str = "vg-san-1";

/// What the dom0s need besides the lab's own files: the agent, built with the feature `xen`.
///
/// # Errors
/// When the agent was not built.
pub fn extras() -> Result<Vec<Extra>> {
    Ok(vec![Extra { source: xen_agent()?, destination: AGENT.to_owned() }])
}

/// Puts configuration and credentials on the host and starts the agent there. The host offers the storage location
/// `default`, the location `san` as soon as there is [`SHARED_GROUP`], the uplink `lan`, the kernel `linux`, and the network
/// `fast` for migrations.
pub(super) async fn start_agent(
    host: &LabHost,
    identity: Identity,
    certificate: &HostCertificate,
    pool_etcd: &[String],
) -> Result<()> {
    let seen = pool_etcd.iter().map(|endpoint| endpoint.replace("127.0.0.1", MACHINE));
    let config = json!({
        "host": host.name(),
        "kubeconfig": "/etc/kubexen/kubeconfig",
        "stateDirectory": "/srv/kubexen/state",
        "poolStore": {"endpoints": seen.collect::<Vec<_>>()},
        "hypervisor": {"type": "Xen"},
        "locations": {
            "default": {"path": "/srv/kubexen/disks"},
            "san": {"type": "LVM", "volumeGroup": SHARED_GROUP},
        },
        "migration": {
            "listen": "0.0.0.0:9444",
            "address": format!("{}:9444", host.segment_address()),
            "networks": {"fast": {"address": format!("{}:9444", host.migration_address())}},
            "certificate": "/etc/kubexen/migration.crt",
            "key": "/etc/kubexen/migration.key",
            "ca": "/etc/kubexen/migration-ca.crt",
        },
        "uplinks": {"lan": {"bridge": "xenbr0"}},
        "kernels": {
            "linux": {"kernel": "/guest/vmlinux", "ramdisk": "/guest/initrd"},
        },
    });
    host.check("mkdir -p /etc/kubexen /srv/kubexen/disks").await?;
    host.push(serde_yaml_ng::to_string(&config)?.as_bytes(), CONFIGURATION, 0o600).await?;
    let kubeconfig = identity.seen_from(MACHINE).kubeconfig()?;
    host.push(kubeconfig.as_bytes(), "/etc/kubexen/kubeconfig", 0o600).await?;
    host.push(certificate.certificate.as_bytes(), "/etc/kubexen/migration.crt", 0o600).await?;
    host.push(certificate.key.as_bytes(), "/etc/kubexen/migration.key", 0o600).await?;
    host.push(certificate.ca.as_bytes(), "/etc/kubexen/migration-ca.crt", 0o600).await?;
    host.start_agent(&[AGENT, "run", "--config", CONFIGURATION]).await
}
