//! The agent's configuration file: what this host is called, and which of its folders, devices and bridges may be used.
//!
//! The API knows these by name only, so nobody who writes objects can reach another path of the host.

use crate::{
    boot_files::{BootFiles, BootLoaders, FirmwareFiles},
    hypervisor::simulated::Profile,
    network::UplinkConfig,
    storage::LocationConfig,
};
use kubexen_ownership::{EtcdConfig, HostName, InvalidName, TlsFiles};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
};

/// The agent's configuration, as YAML.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    /// Name of the Host object.
    pub host: String,
    /// Credentials for the API server. Default: the environment's (`KUBECONFIG`, the pod's service account).
    #[serde(default)]
    pub kubeconfig: Option<PathBuf>,
    /// Folder for the agent's own files.
    pub state_directory: PathBuf,
    /// The pool's etcd.
    pub pool_store: PoolStore,
    /// Which hypervisor.
    #[serde(default)]
    pub hypervisor: HypervisorConfig,
    /// Storage locations by name: folders and volume groups for disks.
    #[serde(default)]
    pub locations: BTreeMap<String, LocationConfig>,
    /// Uplinks by name: bridges for guests.
    #[serde(default)]
    pub uplinks: BTreeMap<String, UplinkConfig>,
    /// Kernels by name.
    #[serde(default)]
    pub kernels: Catalogue,
    /// Boot loaders for PVH and PV guests that boot from their disks. Default: those of Debian's package.
    #[serde(default)]
    pub boot_loaders: BootLoaders,
    /// Firmware of HVM guests. Default: that of Debian's packages.
    #[serde(default)]
    pub firmware: FirmwareFiles,
    /// Live migration. Default: this host takes no part in it.
    #[serde(default)]
    pub migration: Option<MigrationConfig>,
}

/// Kernels that guests may boot, by name.
pub type Catalogue = BTreeMap<String, CatalogueKernel>;

/// A kernel that guests may boot.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CatalogueKernel {
    /// The kernel's file. An uncompressed ELF (`vmlinux`) starts fastest.
    pub kernel: PathBuf,
    /// The initial RAM disk's file.
    #[serde(default)]
    pub ramdisk: Option<PathBuf>,
}

/// How the pool's etcd is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolStore {
    /// Addresses, as in `https://10.0.0.5:2379`.
    pub endpoints: Vec<String>,
    /// Files for TLS; needed where the addresses are `https`.
    #[serde(default)]
    pub tls: Option<PoolStoreTls>,
}

/// Files for TLS with the pool's etcd, PEM.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PoolStoreTls {
    /// Authority that signed the server's certificate.
    pub ca: PathBuf,
    /// The agent's certificate.
    pub certificate: PathBuf,
    /// The agent's key.
    pub key: PathBuf,
}

/// How this host takes part in live migrations. The files are PEM, and read anew for each connection.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigrationConfig {
    /// Where to listen, as in `0.0.0.0:9444`.
    pub listen: SocketAddr,
    /// Where the other hosts reach this one, as in `10.77.0.1:9444`.
    pub address: String,
    /// This host's certificate, for the DNS name `<host>.hosts.kubexen.internal` and for both ends of a connection.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authority that signed the certificates of all hosts.
    pub ca: PathBuf,
    /// Networks for migrations by name, at most 16. Guests move over the one that the Pool names, if it names one.
    #[serde(default)]
    pub networks: BTreeMap<String, MigrationNetworkConfig>,
}

/// This host on a network for migrations.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MigrationNetworkConfig {
    /// Where the other hosts reach this one on it, as in `10.99.0.1:9444`.
    pub address: String,
    /// Where to listen for it. Default: `listen` of the section serves it too, as `0.0.0.0:9444` does.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
}

/// Which hypervisor the agent speaks to.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum HypervisorConfig {
    /// The Xen of this machine.
    #[default]
    Xen,
    /// A model of a host, kept in the state directory; its guests outlive the agent.
    Simulated {
        /// What the host is like.
        #[serde(default)]
        profile: Profile,
    },
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("Cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("The configuration {path} is not valid: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_yaml_ng::Error,
    },
    /// `host` is no host name.
    #[error("`host` in {path} is not valid: {source}")]
    Host {
        /// The file.
        path: PathBuf,
        /// Why.
        source: InvalidName,
    },
}

impl PoolStore {
    /// How the pool's etcd is reached, for its client.
    #[must_use]
    pub fn etcd(&self) -> EtcdConfig {
        let tls = self.tls.as_ref().map(|tls| TlsFiles {
            ca: tls.ca.clone(),
            cert: tls.certificate.clone(),
            key: tls.key.clone(),
        });
        EtcdConfig { tls, ..EtcdConfig::new(self.endpoints.clone()) }
    }
}

impl AgentConfig {
    /// What guests boot from their own disks with.
    #[must_use]
    pub fn boot_files(&self) -> BootFiles {
        BootFiles { boot_loaders: self.boot_loaders.clone(), firmware: self.firmware.clone() }
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let config: Self = serde_yaml_ng::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        HostName::new(config.host.clone())
            .map_err(|source| ConfigError::Host { path: path.to_owned(), source })?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_boot_loader_or_firmware_may_lie_elsewhere() {
        let other = "bootLoaders: {pvh: /opt/pvgrub.bin}, firmware: {uefi: /opt/OVMF.fd}";
        let text = format!("{{host: xen-1, stateDirectory: /state, poolStore: {{endpoints: []}}, {other}}}");
        let files = serde_yaml_ng::from_str::<AgentConfig>(&text).unwrap().boot_files();
        let default = BootFiles::default();
        assert_eq!(files.boot_loaders, BootLoaders { pvh: "/opt/pvgrub.bin".into(), ..default.boot_loaders });
        assert_eq!(files.firmware, FirmwareFiles { uefi: "/opt/OVMF.fd".into(), ..default.firmware });
    }

    #[test]
    fn the_section_for_migration_may_be_there_or_not() {
        let without = "{host: xen-1, stateDirectory: /var/lib/kubexen, poolStore: {endpoints: []}";
        let config: AgentConfig = serde_yaml_ng::from_str(&format!("{without}}}")).unwrap();
        assert!(config.migration.is_none());

        let files = "certificate: /pki/host.pem, key: /pki/host.key, ca: /pki/ca.pem";
        let networks = "networks: {fast: {address: '10.99.0.1:9444'}}";
        let section =
            format!("migration: {{listen: '0.0.0.0:9444', address: '10.77.0.1:9444', {networks}, {files}}}");
        let config: AgentConfig = serde_yaml_ng::from_str(&format!("{without}, {section}}}")).unwrap();
        let migration = config.migration.unwrap();
        assert_eq!(migration.listen, "0.0.0.0:9444".parse().unwrap());
        let fast = &migration.networks["fast"];
        assert_eq!((fast.address.as_str(), fast.listen), ("10.99.0.1:9444", None));
        assert_eq!(
            (migration.address.as_str(), migration.ca),
            ("10.77.0.1:9444", PathBuf::from("/pki/ca.pem"))
        );
    }
}
