//! The control plane's private keys: a certificate authority, the API server's certificate, the service accounts' key.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

/// Where QEMU's user-mode network shows this machine's loopback to its guests: hosts of the lab reach the API server there.
const LAB_GATEWAY: &str = "10.0.2.2";

/// The files that the servers are started with.
#[derive(Debug)]
pub(super) struct Certificates {
    /// The authority's certificate as PEM text, for kubeconfigs.
    pub authority: String,
    /// The authority's certificate.
    pub authority_file: PathBuf,
    /// The API server's certificate.
    pub server_certificate: PathBuf,
    /// The private key of that certificate.
    pub server_key: PathBuf,
    /// Signs service accounts' tokens.
    pub service_account_key: PathBuf,
    /// Verifies service accounts' tokens.
    pub service_account_public_key: PathBuf,
}

impl Certificates {
    /// Makes new keys and writes them into `folder`.
    pub(super) fn generate(folder: &Path) -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "KubeXen test authority");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

        let names = ["127.0.0.1", "localhost", LAB_GATEWAY, "kubernetes.default.svc"];
        let mut server = CertificateParams::new(names.map(str::to_owned).to_vec())?;
        server.distinguished_name.push(DnType::CommonName, "kube-apiserver");
        let server_key = KeyPair::generate()?;
        let server_certificate = server.signed_by(&server_key, &authority)?;

        let service_accounts = KeyPair::generate()?;
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        Ok(Self {
            authority: authority.pem(),
            authority_file: write("ca.crt", &authority.pem())?,
            server_certificate: write("apiserver.crt", &server_certificate.pem())?,
            server_key: write("apiserver.key", &server_key.serialize_pem())?,
            service_account_key: write("service-accounts.key", &service_accounts.serialize_pem())?,
            service_account_public_key: write("service-accounts.pub", &service_accounts.public_key_pem())?,
        })
    }
}
