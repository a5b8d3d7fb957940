//! The command line.

use crate::{
    agent::{self, Dependencies},
    config::{AgentConfig, HypervisorConfig},
    fence::Watchdog,
    hypervisor::{
        Hypervisor,
        simulated::{SimulatedHost, SimulatedHypervisor},
    },
    metrics::Metrics,
    migration::link::{MigrationNetwork, NoMigrations, TlsNetwork},
    network::{BridgeNetwork, HostNetwork, SimulatedNetwork},
    storage::{HostSeeds, Locations, Seeds, Storage},
};
use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use kubexen_ownership::{
    EtcdConfig, EtcdStore, HostName,
    lock::{EtcdLocks, Locks},
};
use kubexen_runtime::{
    clock::SystemClock,
    connect,
    telemetry::{self, LogFormat, Readiness},
};
use prometheus_client::registry::Registry;
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};
use tracing::{error, info};

/// How long a member of the pool's store may take to answer a renewal.
const RENEWAL_LIMIT: Duration = Duration::from_secs(1);

/// The agent of a Xen host: runs the domains and volumes that the KubeXen API asks of this host.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent until SIGTERM or SIGINT. Stopping it stops no guest; the next one adopts them.
    Run(RunArguments),
    /// Check configuration files and say what is wrong with them.
    Check {
        /// Configuration file.
        #[arg(long, required = true)]
        config: Vec<PathBuf>,
    },
    /// Serve calls to libxl on standard input; the agent starts this itself.
    #[cfg(feature = "xen")]
    #[command(hide = true)]
    LibxlWorker,
    /// Run the suite that every hypervisor implementation must pass against the Xen of this machine.
    #[cfg(all(feature = "xen", feature = "conformance"))]
    #[command(hide = true)]
    Conformance(Box<crate::hypervisor::xen::conformance::Arguments>),
    /// Call this machine's storage once, or run the suite that every storage must pass against it.
    #[cfg(feature = "conformance")]
    #[command(hide = true)]
    Storage(crate::storage::command::Arguments),
    /// Carry a stream to or from another host once, as a migration does.
    #[cfg(feature = "conformance")]
    #[command(hide = true)]
    Link(crate::migration::link::command::Arguments),
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Configuration file. Several make one process the agent of several (simulated) hosts, each with its own
    /// credentials.
    #[arg(long, required = true)]
    config: Vec<PathBuf>,
    /// Address for /healthz, /readyz and /metrics.
    #[arg(long, default_value = "127.0.0.1:9440")]
    listen: SocketAddr,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

impl Arguments {
    /// Does what the command line says.
    ///
    /// # Errors
    /// What a person has to mend: configuration, credentials, an address in use.
    pub fn run(self) -> Result<ExitCode> {
        match self.command {
            Command::Run(arguments) => {
                tokio::runtime::Builder::new_multi_thread()
                    .enable_all()
                    .build()?
                    .block_on(arguments.run())?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Check { config } => {
                for path in config {
                    let config = AgentConfig::read(&path)?;
                    println!("{}: valid, host {}", path.display(), config.host);
                }
                Ok(ExitCode::SUCCESS)
            }
            #[cfg(feature = "xen")]
            Command::LibxlWorker => Ok(crate::hypervisor::xen::worker::main()),
            #[cfg(all(feature = "xen", feature = "conformance"))]
            Command::Conformance(arguments) => Ok(crate::hypervisor::xen::conformance::main(&arguments)),
            #[cfg(feature = "conformance")]
            Command::Storage(arguments) => crate::storage::command::main(&arguments),
            #[cfg(feature = "conformance")]
            Command::Link(arguments) => crate::migration::link::command::main(&arguments),
        }
    }
}

impl RunArguments {
    async fn run(self) -> Result<()> {
        telemetry::start_logging(self.log_format);
        let configs =
            self.config.iter().map(|path| AgentConfig::read(path)).collect::<Result<Vec<_>, _>>()?;
        let mut registry = Registry::default();
        let metrics = Arc::new(Metrics::new(&mut registry));
        let readiness = Readiness::default();
        let mut agents = JoinSet::new();
        let mut hypervisors = Vec::new();
        for config in configs {
            let host = HostName::new(config.host.clone())?;
            let world = dependencies(&config, &host)
                .await
                .with_context(|| format!("The agent of {host} cannot start"))?;
            hypervisors.push(Arc::clone(&world.hypervisor));
            let (kernels, metrics) = (config.kernels.clone(), Arc::clone(&metrics));
            agents.spawn(agent::run(host, kernels, world, metrics));
        }
        readiness.set(true);
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            biased;
            _ = terminate.recv() => info!("stopping; guests go on"),
            _ = interrupt.recv() => info!("stopping; guests go on"),
            served = telemetry::serve(self.listen, Arc::new(registry), readiness) => {
                served.with_context(|| format!("Cannot serve on {}; choose another --listen", self.listen))?;
            }
            Some(ended) = agents.join_next() => {
                ended??;
                error!("an agent ended by itself");
                bail!("An agent ended by itself");
            }
        }
        agents.shutdown().await;
        for hypervisor in hypervisors {
            hypervisor.finish().await;
        }
        Ok(())
    }
}

async fn dependencies(config: &AgentConfig, host: &HostName) -> Result<Dependencies> {
    let user_agent = concat!("kubexen-node-agent/", env!("CARGO_PKG_VERSION"));
    let client = connect::client(config.kubeconfig.as_deref(), user_agent).await?;
    let clock = Arc::new(SystemClock);
    std::fs::create_dir_all(&config.state_directory)
        .with_context(|| format!("Cannot make the state directory {}", config.state_directory.display()))?;
    let locks: Arc<dyn Locks> = Arc::new(EtcdLocks::new(config.pool_store.etcd(), host.clone()));
    let seeds = config.state_directory.join("seeds");
    let seeds: Arc<dyn Seeds> = Arc::new(match &config.hypervisor {
        HypervisorConfig::Simulated { .. } => HostSeeds::files_only(&seeds),
        HypervisorConfig::Xen => HostSeeds::new(&seeds),
    });
    let watchdog: Arc<dyn Watchdog>;
    let hypervisor: Arc<dyn Hypervisor>;
    let storage: Arc<dyn Storage>;
    let network: Arc<dyn HostNetwork>;
    match &config.hypervisor {
        HypervisorConfig::Simulated { profile } => {
            let folder = config.state_directory.join("simulated");
            let host = SimulatedHost::ledgered(&folder, profile.clone(), clock.clone())?;
            watchdog = Arc::new(host.clone());
            hypervisor = Arc::new(SimulatedHypervisor::new(host));
            let attached = config.state_directory.join("attached");
            storage = Arc::new(Locations::simulated(config.locations.clone(), &attached)?);
            network = Arc::new(SimulatedNetwork::new(config.uplinks.keys().cloned()));
        }
        HypervisorConfig::Xen => {
            (hypervisor, watchdog) = xen(config)?;
            storage = Arc::new(Locations::new(config.locations.clone(), &locks)?);
            network = Arc::new(BridgeNetwork::new(config.uplinks.clone())?);
        }
    }
    let ownership = Arc::new(EtcdStore::new(config.pool_store.etcd()));
    // A member that does not answer must leave time to ask the others before anything is due.
    let renewals = EtcdConfig {
        connect_timeout: RENEWAL_LIMIT,
        request_timeout: RENEWAL_LIMIT,
        ..config.pool_store.etcd()
    };
    let liveness = Arc::new(ownership.beside(renewals));
    let migrations: Arc<dyn MigrationNetwork> = match &config.migration {
        Some(migration) => Arc::new(TlsNetwork::listen(migration.clone()).await?),
        None => Arc::new(NoMigrations),
    };
    Ok(Dependencies {
        client,
        hypervisor,
        storage,
        seeds,
        network,
        ownership,
        liveness,
        watchdog,
        migrations,
        clock,
    })
}

#[cfg(feature = "xen")]
fn xen(config: &AgentConfig) -> Result<(Arc<dyn Hypervisor>, Arc<dyn Watchdog>)> {
    use crate::hypervisor::xen::{XenHypervisor, watchdog::XenWatchdog};
    let hypervisor = XenHypervisor::connect(&config.state_directory, config.boot_files())?;
    let watchdog = XenWatchdog::start()?;
    Ok((Arc::new(hypervisor), Arc::new(watchdog)))
}

#[cfg(not(feature = "xen"))]
fn xen(_: &AgentConfig) -> Result<(Arc<dyn Hypervisor>, Arc<dyn Watchdog>)> {
    bail!(
        "This agent was built without the feature `xen`; build it with it, or set `hypervisor.type: Simulated`"
    )
}
