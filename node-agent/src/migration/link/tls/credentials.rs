//! Who a host is: certificates and the names in them.

use super::super::LinkError;
use crate::config::MigrationConfig;
use kubexen_ownership::HostName;
use std::{path::Path, sync::Arc};
use tokio_rustls::rustls::{
    CipherSuite, ClientConfig, Error, RootCertStore, ServerConfig,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use webpki::EndEntityCert;

/// What follows the host's name in its DNS name. The name is looked up nowhere.
const HOST_SUFFIX: &str = ".hosts.kubexen.internal";

/// This host's certificate and key, and whom it trusts.
pub(super) struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    config: MigrationConfig,
}

impl Credentials {
    /// Reads the files that `config` names.
    pub(super) async fn read(config: &MigrationConfig) -> Result<Self, LinkError> {
        let chain = certificates(&config.certificate).await?;
        let key = PrivateKeyDer::from_pem_slice(&read(&config.key).await?)
            .map_err(|error| unusable(&config.key, &error))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&config.ca).await? {
            roots.add(certificate).map_err(|error| unusable(&config.ca, &error))?;
        }
        Ok(Self { chain, key, roots: Arc::new(roots), config: config.clone() })
    }

    /// For connections that this host makes.
    pub(super) fn client(self) -> Result<Arc<ClientConfig>, LinkError> {
        let unusable = |error: Error| unusable(&self.config.certificate, &error);
        let mut config = ClientConfig::builder_with_provider(provider(has_aes()))
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_root_certificates(self.roots)
            .with_client_auth_cert(self.chain, self.key)
            .map_err(unusable)?;
        // Each connection proves everything anew, by the certificates of that moment.
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    /// For connections that are made to this host.
    pub(super) fn server(self) -> Result<Arc<ServerConfig>, LinkError> {
        let provider = provider(has_aes());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots, Arc::clone(&provider))
            .build()
            .map_err(|error| unusable(&self.config.ca, &error))?;
        let unusable = |error: Error| unusable(&self.config.certificate, &error);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(self.chain, self.key)
            .map_err(unusable)?;
        config.send_tls13_tickets = 0;
        // The client's order stands, unless this CPU would suffer by it.
        config.ignore_client_order = !has_aes();
        Ok(Arc::new(config))
    }
}

/// The name by which `host` proves itself.
pub(super) fn server_name(host: &HostName) -> ServerName<'static> {
    ServerName::try_from(format!("{host}{HOST_SUFFIX}"))
        .expect("a label and a suffix of labels are a DNS name")
}

/// The one host for which the first of `certificates`, those of a peer that were verified, was made out.
pub(super) fn host_of(certificates: Option<&[CertificateDer<'_>]>) -> Result<HostName, String> {
    let first = certificates.and_then(<[_]>::first).ok_or("there is no certificate")?;
    let certificate = EndEntityCert::try_from(first).map_err(|error| error.to_string())?;
    let mut hosts = certificate.valid_dns_names().filter_map(|name| name.strip_suffix(HOST_SUFFIX));
    let host = hosts.next().ok_or("its certificate names no host")?;
    if hosts.next().is_some() {
        return Err("its certificate names several hosts".into());
    }
    HostName::new(host).map_err(|error| error.to_string())
}

/// Cryptography, with the cipher first that is fast on this CPU: AES in software, as on emulated CPUs, is several times
/// slower than ChaCha20.
pub(super) fn provider(has_aes: bool) -> Arc<CryptoProvider> {
    let mut provider = ring::default_provider();
    let is_chacha = |suite: CipherSuite| suite == CipherSuite::TLS13_CHACHA20_POLY1305_SHA256;
    provider.cipher_suites.sort_by_key(|suite| is_chacha(suite.suite()) == has_aes);
    Arc::new(provider)
}

/// Whether this CPU has instructions for AES-GCM.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

async fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, LinkError> {
    let pem = read(path).await?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| unusable(path, &error))?;
    if certificates.is_empty() {
        return Err(unusable(path, &"it holds no certificate"));
    }
    Ok(certificates)
}

async fn read(path: &Path) -> Result<Vec<u8>, LinkError> {
    tokio::fs::read(path).await.map_err(|error| unusable(path, &error))
}

fn unusable(path: &Path, reason: &impl ToString) -> LinkError {
    LinkError::Credentials { path: path.to_owned(), reason: reason.to_string() }
}
