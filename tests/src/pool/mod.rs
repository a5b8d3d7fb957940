//! A whole KubeXen pool on a [`ControlPlane`]: the chart installed by Helm, a controller, and agents, either of
//! simulated hosts on this machine or in the dom0s of a [`Lab`].
//!
//! Every program runs with the credentials that it has in a cluster: the controller with its service account's, each
//! agent with those of its own host, which the controller made. Agents keep their state in folders that outlive them,
//! so that one can be killed and started again.

mod host_certificates;
mod programs;
pub mod runs;
mod simulated;
mod xen;

use crate::{
    control_plane::{ControlPlane, Identity},
    lab::{Lab, LabHost},
    process::{Process, wait_until},
    programs::repository,
    proxy::{Cut, Proxy},
};
use anyhow::{Context, Result, bail};
use host_certificates::HostAuthority;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use kubexen_crds::{Host, HostSpec, condition, names};
use kubexen_node_agent::hypervisor::simulated::{Profile as HostProfile, SimulatedHost};
use kubexen_runtime::clock::SystemClock;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use programs::{Profile, program};
pub use simulated::SimulatedHostOptions;
pub use xen::{AGENT as LAB_AGENT, CONFIGURATION as LAB_CONFIGURATION, SHARED_GROUP, extras as lab_extras};

/// Namespace that the chart is installed in.
pub const SYSTEM_NAMESPACE: &str = "kubexen-system";

/// The release's name.
const RELEASE: &str = "kubexen";

/// ServiceAccount of the controller, as the chart names it.
const CONTROLLER_ACCOUNT: &str = "kubexen-controller";

/// What a pool is to be.
#[derive(Clone, Debug)]
pub struct PoolOptions {
    /// Number of simulated hosts, named `host-1` and so on.
    pub hosts: usize,
    /// How many hosts one agent process serves.
    pub hosts_per_process: usize,
    /// Number of controller processes; one leads.
    pub controllers: usize,
    /// What each host is like.
    pub simulated: SimulatedHostOptions,
    /// Which build of the programs runs.
    pub profile: Profile,
    /// Whether each simulated host has wires that can be cut, for [`Pool::cut`].
    pub wires: bool,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            hosts: 4,
            hosts_per_process: 4,
            controllers: 1,
            simulated: SimulatedHostOptions::default(),
            profile: Profile::Debug,
            wires: false,
        }
    }
}

/// What the agent of a host talks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Far {
    /// The API server.
    ApiServer,
    /// The pool's etcd, all of its members.
    PoolEtcd,
}

/// The wires of one host.
#[derive(Debug)]
struct Wires {
    api_server: Proxy,
    pool_etcd: Proxy,
}

/// A running pool. Dropping it stops its programs; its objects stay in the control plane.
#[derive(Debug)]
pub struct Pool {
    options: PoolOptions,
    hosts: Vec<String>,
    folder: PathBuf,
    authority: HostAuthority,
    pool_etcd: Vec<String>,
    controllers: Vec<Option<Process>>,
    agents: Vec<Option<Process>>,
    wires: BTreeMap<String, Wires>,
}

impl Pool {
    /// Installs the chart, starts the controllers, makes the hosts, and starts their agents; returns when every host is
    /// Ready.
    ///
    /// # Errors
    /// When a program is missing or a step does not succeed in time.
    pub async fn start(control_plane: &ControlPlane, options: PoolOptions) -> Result<Self> {
        let hosts = (1..=options.hosts).map(|number| format!("host-{number}")).collect();
        let mut pool = Self::without_agents(control_plane, options, hosts).await?;
        pool.write_agent_files(control_plane).await?;
        for number in 0..pool.options.hosts.div_ceil(pool.options.hosts_per_process) {
            pool.agents.push(None);
            pool.start_agent(number)?;
        }
        pool.wait_for_hosts(&control_plane.client().await?).await?;
        Ok(pool)
    }

    /// As [`Pool::start`], with the hosts of a lab, whose agents run in their dom0s.
    ///
    /// # Errors
    /// When a program is missing or a step does not succeed in time.
    pub async fn start_on_lab(control_plane: &ControlPlane, lab: &Lab, profile: Profile) -> Result<Self> {
        let hosts: Vec<String> = lab.hosts().iter().map(|host| host.name()).collect();
        let options = PoolOptions { hosts: hosts.len(), profile, ..PoolOptions::default() };
        let pool = Self::without_agents(control_plane, options, hosts).await?;
        for host in lab.hosts() {
            pool.start_lab_agent(control_plane, &host).await?;
        }
        pool.wait_for_hosts(&control_plane.client().await?).await?;
        Ok(pool)
    }

    /// Puts configuration and credentials on a host of the lab, which keeps neither when it is switched off, and starts its
    /// agent.
    ///
    /// # Errors
    /// When the controller has made no access for that host, or it does not answer.
    pub async fn start_lab_agent(&self, control_plane: &ControlPlane, host: &LabHost) -> Result<()> {
        let identity = self.agent_identity(control_plane, &host.name()).await?;
        let certificate = self.authority.issue(&host.name())?;
        xen::start_agent(host, identity, &certificate, &control_plane.pool_etcd_endpoints()).await
    }

    async fn without_agents(
        control_plane: &ControlPlane,
        options: PoolOptions,
        hosts: Vec<String>,
    ) -> Result<Self> {
        let folder = control_plane.folder().join("pool");
        std::fs::create_dir_all(&folder)?;
        install_chart(control_plane).await?;
        let authority = HostAuthority::generate()?;
        let pool_etcd = control_plane.pool_etcd_endpoints();
        let mut pool = Self {
            options,
            hosts,
            folder,
            authority,
            pool_etcd,
            controllers: Vec::new(),
            agents: Vec::new(),
            wires: BTreeMap::new(),
        };
        let identity = control_plane.service_account(SYSTEM_NAMESPACE, CONTROLLER_ACCOUNT).await?;
        identity.write_kubeconfig(&pool.folder.join("controller.kubeconfig"))?;
        for number in 0..pool.options.controllers {
            pool.controllers.push(None);
            pool.start_controller(number)?;
        }
        let client = control_plane.client().await?;
        for name in pool.host_names() {
            add_host(&client, name).await?;
        }
        Ok(pool)
    }

    /// The names of all hosts.
    pub fn host_names(&self) -> &[String] {
        &self.hosts
    }

    /// Where the agent of `host` keeps its state: simulated domains, disks.
    pub fn host_folder(&self, host: &str) -> PathBuf {
        self.folder.join(host)
    }

    /// The folder of what is in the storage that all simulated hosts share.
    pub fn shared_folder(&self) -> PathBuf {
        self.folder.join(simulated::SHARED)
    }

    /// Takes the shared storage away from a simulated host, or gives it back, as a LUN goes and comes.
    ///
    /// # Errors
    /// When its link cannot be changed.
    pub fn reach_shared_storage(&self, host: &str, reaches: bool) -> Result<()> {
        simulated::reach_shared_storage(&self.host_folder(host), reaches)
    }

    /// Folder of the pool's files and logs.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Number of agent processes.
    pub fn agent_count(&self) -> usize {
        self.agents.len()
    }

    /// The process of a controller, while it runs.
    pub fn controller(&self, number: usize) -> Option<&Process> {
        self.controllers.get(number).and_then(Option::as_ref)
    }

    /// The process of an agent, while it runs.
    pub fn agent(&self, number: usize) -> Option<&Process> {
        self.agents.get(number).and_then(Option::as_ref)
    }

    /// Kills a controller as a crash would.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn kill_controller(&mut self, number: usize) -> Result<()> {
        kill(self.controllers.get_mut(number))
    }

    /// Kills an agent as a crash would. Its simulated guests go on.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn kill_agent(&mut self, number: usize) -> Result<()> {
        kill(self.agents.get_mut(number))
    }

    /// Cuts the power of the simulated hosts of an agent process: their guests are gone from this moment on, and nobody
    /// answers until [`Pool::start_agent`], which is their next boot.
    ///
    /// # Errors
    /// When the process may not be signalled, or what the hosts were cannot be written down.
    pub fn cut_power(&mut self, number: usize) -> Result<()> {
        self.kill_agent(number)?;
        for name in self.hosts_of_agent(number) {
            let folder = self.host_folder(name).join("state/simulated");
            SimulatedHost::ledgered(&folder, HostProfile::default(), Arc::new(SystemClock))?.reboot()?;
        }
        Ok(())
    }

    /// Starts a controller that does not run.
    ///
    /// # Errors
    /// When its program cannot be executed.
    pub fn start_controller(&mut self, number: usize) -> Result<()> {
        let name = format!("controller-{number}");
        let mut command = std::process::Command::new(program("kubexen-controller", self.options.profile)?);
        command
            .args(["run", "--namespace", SYSTEM_NAMESPACE, "--listen", "127.0.0.1:0", "--identity"])
            .arg(&name)
            .arg("--kubeconfig")
            .arg(self.folder.join("controller.kubeconfig"))
            .arg(format!("--pool-store={}", self.pool_etcd.join(",")));
        self.controllers[number] =
            Some(Process::start(&name, command, &self.folder.join(format!("{name}.log")))?);
        Ok(())
    }

    /// The hosts of an agent process.
    pub fn hosts_of_agent(&self, number: usize) -> impl Iterator<Item = &String> {
        let per_process = self.options.hosts_per_process;
        self.host_names().iter().skip(number * per_process).take(per_process)
    }

    /// Starts an agent process that does not run.
    ///
    /// # Errors
    /// When its program cannot be executed.
    pub fn start_agent(&mut self, number: usize) -> Result<()> {
        let name = format!("agent-{number}");
        let mut command = std::process::Command::new(program("kubexen-node-agent", self.options.profile)?);
        command.args(["run", "--listen", "127.0.0.1:0"]);
        for host in self.hosts_of_agent(number) {
            command.arg("--config").arg(self.host_folder(host).join("agent.yaml"));
        }
        self.agents[number] = Some(Process::start(&name, command, &self.folder.join(format!("{name}.log")))?);
        Ok(())
    }

    /// Cuts a wire of a host like this from now on, or mends it.
    ///
    /// # Errors
    /// When the pool was started without wires, or there is no such host.
    pub fn cut(&self, host: &str, from: Far, cut: Cut) -> Result<()> {
        let wires = self.wires.get(host).with_context(|| format!("{host} has no wires that can be cut"))?;
        match from {
            Far::ApiServer => wires.api_server.set(cut),
            Far::PoolEtcd => wires.pool_etcd.set(cut),
        }
        Ok(())
    }

    async fn write_agent_files(&mut self, control_plane: &ControlPlane) -> Result<()> {
        for host in self.hosts.clone() {
            let mut identity = self.agent_identity(control_plane, &host).await?;
            let mut endpoints = control_plane.pool_etcd_endpoints();
            if self.options.wires {
                let wires = Wires {
                    api_server: Proxy::start([control_plane.api_server_port()]).await?,
                    pool_etcd: Proxy::start(control_plane.pool_etcd_ports()).await?,
                };
                identity = identity.through(wires.api_server.ports()[0]);
                let ports = wires.pool_etcd.ports().iter();
                endpoints = ports.map(|port| format!("http://127.0.0.1:{port}")).collect();
                self.wires.insert(host.clone(), wires);
            }
            let folder = self.host_folder(&host);
            std::fs::create_dir_all(&folder)?;
            identity.write_kubeconfig(&folder.join("kubeconfig"))?;
            self.options.simulated.write(&host, &folder, &endpoints, &self.authority.issue(&host)?)?;
        }
        Ok(())
    }

    /// The credentials of a host's agent, once the controller made them.
    async fn agent_identity(&self, control_plane: &ControlPlane, host: &str) -> Result<Identity> {
        let namespace = names::host_namespace(host);
        wait_until("the host's service account", Duration::from_secs(30), async || {
            control_plane.service_account(&namespace, names::AGENT_SERVICE_ACCOUNT).await
        })
        .await
        .with_context(|| format!("the controller did not make access for {host}; {}", self.controller_log()))
    }

    async fn wait_for_hosts(&self, client: &Client) -> Result<()> {
        let hosts: Api<Host> = Api::all(client.clone());
        wait_until("every host is Ready", Duration::from_secs(60), async || {
            for name in self.host_names() {
                let host = hosts.get(name).await?;
                let status = host.status.unwrap_or_default();
                if !condition::is_true(&status.conditions, "Ready") || status.memory.is_none() {
                    bail!("{name} is not Ready");
                }
            }
            Ok(())
        })
        .await
        .with_context(|| self.controller_log())
    }

    fn controller_log(&self) -> String {
        let tail = self.controller(0).map(Process::log_tail).unwrap_or_default();
        format!("the end of the controller's log:\n{tail}")
    }
}

fn kill(slot: Option<&mut Option<Process>>) -> Result<()> {
    match slot.and_then(Option::take) {
        Some(mut process) => process.kill(),
        None => Ok(()),
    }
}

/// Installs or upgrades the chart with the real Helm. The controller's Deployment gets no replicas: no kubelet is here
/// to run them, and the pool starts controllers itself.
///
/// # Errors
/// With Helm's own words.
pub async fn install_chart(control_plane: &ControlPlane) -> Result<()> {
    let output = control_plane
        .helm()?
        .args(["upgrade", "--install", RELEASE])
        .arg(repository().join("charts/kubexen"))
        .args(["--namespace", SYSTEM_NAMESPACE, "--create-namespace", "--set", "controller.replicas=0"])
        .output()
        .await?;
    if !output.status.success() {
        bail!("helm cannot install the chart: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// Makes the Host object; that it is there is no error.
///
/// # Errors
/// When the API server refuses.
pub async fn add_host(client: &Client, name: &str) -> Result<()> {
    let hosts: Api<Host> = Api::all(client.clone());
    let host = Host::new(name, HostSpec { schedulable: true, ..HostSpec::default() });
    match hosts.create(&PostParams::default(), &host).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot make the host {name}")),
    }
}

/// Deletes the Host object; that it is gone is no error.
///
/// # Errors
/// When the API server refuses.
pub async fn remove_host(client: &Client, name: &str) -> Result<()> {
    let hosts: Api<Host> = Api::all(client.clone());
    match hosts.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot delete the host {name}")),
    }
}
