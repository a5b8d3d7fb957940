//! How to reach the pool etcd.

use std::path::PathBuf;
use std::time::Duration;

/// Files in PEM form for mutual TLS. They are read at each new connection, so that renewed ones are taken up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates of the authorities that may have signed the server's certificate.
    pub ca: PathBuf,
    /// The client's certificate, with any intermediate ones after it.
    pub cert: PathBuf,
    /// The private key of the client's certificate.
    pub key: PathBuf,
}

/// How to reach the pool etcd, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// URLs of its members, as `https://10.0.0.1:2379`. One is used at a time; after a failure, the next one.
    pub endpoints: Vec<String>,
    /// The certificates, if TLS is to be used; the endpoints are then `https` URLs.
    pub tls: Option<TlsFiles>,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long one request may take, from before the connection is made to its whole answer.
    pub request_timeout: Duration,
}

impl EtcdConfig {
    /// The endpoints without TLS, 2 s for a connection and 3 s for a request.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            tls: None,
            connect_timeout: Duration::from_secs(2),
            request_timeout: Duration::from_secs(3),
        }
    }
}
