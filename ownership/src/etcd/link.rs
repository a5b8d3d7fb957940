//! The connection to one member at a time.
//!
//! The client library would balance over all members without heeding which of them answer, and it sets no limit to a
//! request. So it is given one endpoint, and whatever fails here makes the next request begin anew at the next one.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Certificate, Client, ConnectOptions, GetOptions, Identity, ResponseHeader, TlsOptions};
use tokio::sync::Mutex;

use super::config::{EtcdConfig, TlsFiles};
use crate::drive::RequestError;
use crate::names::LeaseId;
use crate::record::EPOCH;
use crate::store::StoreError;

/// How long a connection may be silent before it is probed, and how long the probe may go unanswered.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Codes with which etcd turns a request away before it executes it (<https://grpc.io/docs/guides/status-codes/>):
/// INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED and UNAUTHENTICATED.
///
/// RESOURCE_EXHAUSTED is not among them: a transaction that overdraws the storage quota is executed, and answered with
/// “no space” all the same (etcd 3.7, `server/etcdserver/apply/quota.go`).
const REJECTIONS: [i32; 4] = [3, NOT_FOUND, 7, 16];

/// gRPC's NOT_FOUND, with which etcd answers to a lease that it does not know.
const NOT_FOUND: i32 = 5;

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("no answer from {endpoint} within {limit:?}")]
    TimedOut { endpoint: String, limit: Duration },
    #[error("{endpoint}: {error}")]
    Failed { endpoint: String, error: etcd_client::Error },
    #[error("cannot read {path}: {error}")]
    File { path: String, error: std::io::Error },
    #[error("an answer without a revision")]
    NoRevision,
    #[error(
        "another etcd cluster answers than before, at {agree} of {all} endpoints: the one that was may be alive"
    )]
    Divided { agree: usize, all: usize },
    #[error("no endpoint is configured")]
    NoEndpoint,
}

/// The revision that the header of an answer carries.
pub(crate) fn revision(header: Option<&ResponseHeader>) -> Result<u64, RequestError> {
    let revision = header.and_then(|header| u64::try_from(header.revision()).ok());
    revision.ok_or_else(|| RequestError::NoAnswer(Problem::NoRevision.into()))
}

/// Renews a lease; false when there is no such lease any more, to which etcd answers with a TTL of 0 and no error.
pub(crate) async fn keep_alive(etcd: Client, lease: LeaseId) -> Result<bool, etcd_client::Error> {
    match etcd.lease_client().keep_alive(lease.0).await {
        // The client has waited for the first answer itself, and has seen a TTL in it.
        Ok((_keeper, _answers)) => Ok(true),
        // The client's name for an answer whose TTL is 0.
        Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Ends a lease. Succeeds when there is no such lease.
pub(crate) async fn revoke(etcd: Client, lease: LeaseId) -> Result<(), etcd_client::Error> {
    match etcd.lease_client().revoke(lease.0).await {
        Ok(_) => Ok(()),
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether etcd answered that it does not know the lease.
pub(crate) fn is_not_found(error: &etcd_client::Error) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if i32::from(status.code()) == NOT_FOUND)
}

/// The connection, made when it is first needed and again after each failure.
pub(crate) struct Link {
    config: EtcdConfig,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How many connections were given up; the endpoint follows from it.
    failures: usize,
    client: Option<Client>,
}

impl Link {
    pub(crate) fn new(config: EtcdConfig) -> Self {
        Self { config, state: Mutex::default() }
    }

    pub(crate) fn config(&self) -> &EtcdConfig {
        &self.config
    }

    /// Makes one request, within the time limit. After a failure the connection is given up.
    pub(crate) async fn request<T, F, R>(&self, call: F) -> Result<T, RequestError>
    where
        F: FnOnce(Client) -> R,
        R: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut failures = None;
        let limit = self.config.request_timeout;
        let result = tokio::time::timeout(limit, async {
            let (client, serial) = self.connect().await?;
            failures = Some(serial);
            call(client).await.map_err(|error| self.classify(error, serial))
        })
        .await;
        let problem = match result {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => error,
            Err(_elapsed) => RequestError::NoAnswer(
                Problem::TimedOut { endpoint: self.endpoint(failures.unwrap_or_default()), limit }.into(),
            ),
        };
        if let Some(serial) = failures {
            self.give_up(serial).await;
        }
        Err(problem)
    }

    /// Fails unless most of the endpoints belong to this cluster; then the next request goes to the next endpoint.
    pub(crate) async fn expect_majority_of(&self, cluster: u64) -> Result<(), RequestError> {
        let endpoints = &self.config.endpoints;
        let asked = endpoints.iter().map(|endpoint| async {
            let mut client = self.make_client(endpoint.clone()).await.ok()?;
            // Which cluster it is a member knows without its peers.
            let question = client.get(EPOCH, Some(GetOptions::new().with_serializable()));
            let answer = tokio::time::timeout(self.config.connect_timeout, question).await.ok()?.ok()?;
            answer.header().map(ResponseHeader::cluster_id)
        });
        let found = futures::future::join_all(asked).await;
        let agree = found.into_iter().filter(|found| *found == Some(cluster)).count();
        if agree * 2 > endpoints.len() {
            return Ok(());
        }
        let failures = self.state.lock().await.failures;
        self.give_up(failures).await;
        let problem = Problem::Divided { agree, all: endpoints.len() };
        Err(RequestError::NoAnswer(problem.into()))
    }

    /// The version of the member with these URLs, by the first of them that answers.
    pub(crate) async fn version_of(&self, urls: &[String]) -> Option<String> {
        for url in urls {
            let Ok(mut client) = self.make_client(url.clone()).await else { continue };
            let answer = tokio::time::timeout(self.config.connect_timeout, client.status()).await;
            if let Ok(Ok(status)) = answer {
                return Some(status.version().to_owned());
            }
        }
        None
    }

    fn endpoint(&self, failures: usize) -> String {
        let endpoints = &self.config.endpoints;
        endpoints.get(failures % endpoints.len().max(1)).cloned().unwrap_or_default()
    }

    /// The client in use, and how many connections were given up before it.
    async fn connect(&self) -> Result<(Client, usize), RequestError> {
        let mut state = self.state.lock().await;
        let failures = state.failures;
        if let Some(client) = &state.client {
            return Ok((client.clone(), failures));
        }
        let client = self.make_client(self.endpoint(failures)).await.map_err(RequestError::Final)?;
        state.client = Some(client.clone());
        Ok((client, failures))
    }

    /// Prepares a client; it connects at its first request, so the lock is not held while a member is silent.
    async fn make_client(&self, endpoint: String) -> Result<Client, StoreError> {
        if self.config.endpoints.is_empty() {
            return Err(StoreError::Configuration { source: Problem::NoEndpoint.into() });
        }
        let mut options = ConnectOptions::new()
            .with_connect_timeout(self.config.connect_timeout)
            .with_keep_alive(KEEP_ALIVE, KEEP_ALIVE)
            .with_keep_alive_while_idle(true)
            .with_require_leader(true);
        if let Some(files) = &self.config.tls {
            options = options.with_tls(tls_options(files).await?);
        }
        match Client::connect([&endpoint], Some(options)).await {
            Ok(client) => Ok(client),
            Err(error) => {
                Err(StoreError::Configuration { source: Problem::Failed { endpoint, error }.into() })
            }
        }
    }

    /// Drops the connection made after `failures` others, unless that has happened already.
    async fn give_up(&self, failures: usize) {
        let mut state = self.state.lock().await;
        if state.failures == failures {
            state.failures = failures.wrapping_add(1);
            state.client = None;
        }
    }

    fn classify(&self, error: etcd_client::Error, failures: usize) -> RequestError {
        let rejected = match &error {
            etcd_client::Error::GRpcStatus(status) => REJECTIONS.contains(&i32::from(status.code())),
            _ => false,
        };
        let source = Problem::Failed { endpoint: self.endpoint(failures), error }.into();
        if rejected {
            RequestError::Final(StoreError::Rejected { source })
        } else {
            RequestError::NoAnswer(source)
        }
    }
}

async fn tls_options(files: &TlsFiles) -> Result<TlsOptions, StoreError> {
    let ca = Certificate::from_pem(read(&files.ca).await?);
    let identity = Identity::from_pem(read(&files.cert).await?, read(&files.key).await?);
    Ok(TlsOptions::new().ca_certificate(ca).identity(identity))
}

async fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    tokio::fs::read(path).await.map_err(|error| StoreError::Configuration {
        source: Problem::File { path: path.display().to_string(), error }.into(),
    })
}
