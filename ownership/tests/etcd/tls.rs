//! Certificates for one test.

use std::path::{Path, PathBuf};

use kubexen_ownership::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use tempfile::TempDir;

use crate::server::ServerTls;

/// An authority, and the files of what it signed.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: TempDir,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, directory }
    }

    /// For etcd at 127.0.0.1.
    pub fn server(&self) -> ServerTls {
        // etcd asks itself through its gateway with its own certificate, so it must be good for both ends.
        let (cert, key) = self.sign(
            "etcd",
            &["127.0.0.1"],
            &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        );
        ServerTls { ca: self.ca(), cert, key }
    }

    /// For a client of this name.
    pub fn client(&self, name: &str) -> TlsFiles {
        let (cert, key) = self.sign(name, &[], &[ExtendedKeyUsagePurpose::ClientAuth]);
        TlsFiles { ca: self.ca(), cert, key }
    }

    fn ca(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn sign(&self, name: &str, addresses: &[&str], uses: &[ExtendedKeyUsagePurpose]) -> (PathBuf, PathBuf) {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(addresses).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = uses.to_vec();
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let path = |ending: &str| Path::join(self.directory.path(), format!("{name}.{ending}"));
        let (cert_path, key_path) = (path("pem"), path("key"));
        std::fs::write(&cert_path, cert.pem()).unwrap();
        std::fs::write(&key_path, key.serialize_pem()).unwrap();
        (cert_path, key_path)
    }
}
