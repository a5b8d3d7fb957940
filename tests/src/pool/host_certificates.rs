//! The certificates by which the agents of a pool know each other.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// What one agent proves its host with, as PEM text.
#[derive(Debug)]
pub(super) struct HostCertificate {
    pub(super) certificate: String,
    pub(super) key: String,
    /// The authority that signed it, and every other agent's.
    pub(super) ca: String,
}

/// Signs the certificates of a pool's agents.
pub(super) struct HostAuthority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for HostAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostAuthority").finish_non_exhaustive()
    }
}

impl HostAuthority {
    /// A new authority.
    pub(super) fn generate() -> Result<Self> {
        let mut authority = CertificateParams::default();
        authority.distinguished_name.push(DnType::CommonName, "KubeXen test hosts");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self(CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?))
    }

    /// A new certificate of `host`'s agent.
    pub(super) fn issue(&self, host: &str) -> Result<HostCertificate> {
        let mut parameters = CertificateParams::new(vec![format!("{host}.hosts.kubexen.internal")])?;
        parameters.distinguished_name.push(DnType::CommonName, host);
        parameters.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let certificate = parameters.signed_by(&key, &self.0)?.pem();
        Ok(HostCertificate { certificate, key: key.serialize_pem(), ca: self.0.pem() })
    }
}
