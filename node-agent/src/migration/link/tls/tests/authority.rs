//! Certificates for one test.

use crate::config::MigrationConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};
use tempfile::TempDir;
use tokio_rustls::rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};

/// An authority, and the files of what it signed.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer, directory: tempfile::tempdir().unwrap() }
    }

    pub(super) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.issuer.pem().as_bytes()).unwrap()).unwrap();
        roots
    }

    /// The configuration of the agent of this host, with files of its own.
    pub(super) fn host(&self, host: &str) -> MigrationConfig {
        self.sign(host, &[&format!("{host}.hosts.kubexen.internal")])
    }

    /// As [`Authority::host`], for a certificate with other names.
    pub(super) fn sign(&self, folder: &str, names: &[&str]) -> MigrationConfig {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let folder = self.directory.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, pem: String| {
            std::fs::write(folder.join(name), pem).unwrap();
            folder.join(name)
        };
        MigrationConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            address: "nowhere:0".into(),
            certificate: write("certificate.pem", certificate.pem()),
            key: write("key.pem", key.serialize_pem()),
            ca: write("ca.pem", self.issuer.pem()),
            networks: BTreeMap::new(),
        }
    }
}
