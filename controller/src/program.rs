//! The controller as a program: arguments, connection, health and metrics, signals.

use crate::{Dependencies, Metrics, Options, PoolStore};
use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use kube::{Api, Client, Resource, api::ListParams, core::DeserializeGuard};
use kubexen_crds::{Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, Volume};
use kubexen_ownership::{EtcdConfig, EtcdStore, TlsFiles};
use kubexen_runtime::{
    clock::SystemClock,
    connect,
    telemetry::{self, LogFormat, Readiness},
    write::limited,
};
use prometheus_client::registry::Registry;
use serde::de::DeserializeOwned;
use std::{fmt::Debug, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

/// The KubeXen controller: places virtual machines on Xen hosts and keeps their objects true.
#[derive(Debug, Parser)]
#[command(name = "kubexen-controller", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run until SIGTERM or SIGINT. Several may run: one leads, the others stand by.
    Run(Run),
}

#[derive(Debug, Args)]
struct Run {
    /// Namespace of the Lease by which one of several controllers leads.
    #[arg(long, env = "KUBEXEN_NAMESPACE", default_value = "kubexen-system")]
    namespace: String,
    /// Name of this controller in the Lease and in events, such as its pod's; a mark that is unique to this process is
    /// added to it.
    #[arg(long, env = "KUBEXEN_IDENTITY", default_value = "kubexen-controller")]
    identity: String,
    /// How to reach the API server. Default: the pod's service account, or KUBECONFIG.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Where to serve /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    #[command(flatten)]
    pool_store: PoolStoreArguments,
    /// How log lines look. RUST_LOG chooses levels.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// How the pool's etcd is reached.
#[derive(Debug, Args)]
struct PoolStoreArguments {
    /// Addresses of the pool's etcd, as in https://10.0.0.5:2379. Without one, guests of a dead host are not started
    /// elsewhere.
    #[arg(long = "pool-store", env = "KUBEXEN_POOL_STORE", value_name = "URL", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Authority that signed its certificate, PEM; needed where the addresses are https.
    #[arg(long = "pool-store-ca", value_name = "FILE", requires_all = ["certificate", "key"])]
    ca: Option<PathBuf>,
    /// The controller's certificate for it, PEM.
    #[arg(long = "pool-store-certificate", value_name = "FILE", requires = "ca")]
    certificate: Option<PathBuf>,
    /// The key of that certificate, PEM.
    #[arg(long = "pool-store-key", value_name = "FILE", requires = "ca")]
    key: Option<PathBuf>,
}

impl PoolStoreArguments {
    fn connect(self) -> Option<PoolStore> {
        let Self { endpoints, ca, certificate, key } = self;
        let endpoints: Vec<String> = endpoints.into_iter().filter(|endpoint| !endpoint.is_empty()).collect();
        if endpoints.is_empty() {
            return None;
        }
        let tls = match (ca, certificate, key) {
            (Some(ca), Some(cert), Some(key)) => Some(TlsFiles { ca, cert, key }),
            (_, _, _) => None,
        };
        let store = Arc::new(EtcdStore::new(EtcdConfig { tls, ..EtcdConfig::new(endpoints) }));
        Some(PoolStore { ownership: store.clone(), liveness: store })
    }
}

impl Arguments {
    /// Does what the arguments ask for.
    ///
    /// # Errors
    /// When the API server cannot be reached for want of credentials, or the address cannot be listened on.
    pub async fn run(self) -> Result<()> {
        let Command::Run(run) = self.command;
        run.run().await
    }
}

impl Run {
    async fn run(self) -> Result<()> {
        let Self { namespace, identity, kubeconfig, listen, pool_store, log_format } = self;
        telemetry::start_logging(log_format);
        let version = env!("CARGO_PKG_VERSION");
        info!(version, "kubexen-controller");
        let shutdown = CancellationToken::new();
        let client = connect::client(kubeconfig.as_deref(), &format!("kubexen-controller/{version}"))
            .await
            .context("cannot connect to the API server")?;
        let mut registry = Registry::default();
        let dependencies = Dependencies {
            client: client.clone(),
            clock: Arc::new(SystemClock),
            readiness: Readiness::default(),
            metrics: Metrics::new(&mut registry),
            pool_store: pool_store.connect(),
        };
        let serving = telemetry::serve(listen, Arc::new(registry), dependencies.readiness.clone());
        // Two processes never share an identity, not even a process and its restarted self.
        let options = Options { namespace, identity: format!("{identity}_{}", Uuid::new_v4()) };
        let controlling = async {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => {}
                () = api_installed(&client) => crate::run(dependencies, options, shutdown.clone()).await,
            }
        };
        let watching_signals = async {
            let (mut terminate, mut interrupt) =
                (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("stopping");
            shutdown.cancel();
            std::future::pending::<std::io::Result<()>>().await
        };
        tokio::select! {
            biased;
            () = controlling => Ok(()),
            error = watching_signals => error.context("cannot watch for signals"),
            served = serving => served.with_context(|| format!("cannot serve on {listen}")),
        }
    }
}

/// Waits until the API server knows every kind.
async fn api_installed(client: &Client) {
    installed::<VirtualMachine>(client).await;
    installed::<VirtualDisk>(client).await;
    installed::<Network>(client).await;
    installed::<StorageRepository>(client).await;
    installed::<Host>(client).await;
    installed::<Pool>(client).await;
    installed::<Domain>(client).await;
    installed::<Volume>(client).await;
}

async fn installed<K>(client: &Client)
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    let kind = K::kind(&());
    loop {
        match limited(api.list(&ListParams::default().limit(1))).await {
            Ok(_) => return,
            Err(error) if error.is_not_found() => {
                warn!(%kind, "the API server does not know this kind: install the chart, or crds/manifests; waiting");
            }
            Err(error) => warn!(%kind, %error, "the API server cannot be read; waiting"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}
