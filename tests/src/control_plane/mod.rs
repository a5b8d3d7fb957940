//! A real Kubernetes control plane on this machine's loopback: kube-apiserver with its etcd, kube-controller-manager, and
//! the separate etcd of the pool.
//!
//! ```text
//!  kubectl, helm, controller, agents        controller, agents
//!          │ https, tokens                          │ http
//!          ▼                                        ▼
//!   kube-apiserver ──► etcd                     pool etcd
//!          ▲     └──► audit log
//!   kube-controller-manager
//! ```
//!
//! The programs are those of `cargo xtask tools`. All ports are picked free, all files are in one scratch folder, and
//! nothing outlives the [`ControlPlane`], however its process ends. Hosts of the lab reach the servers at 10.0.2.2, which
//! the API server's certificate names too.

mod access;
mod audit;
mod certificates;
pub mod command;
mod servers;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use uuid::Uuid;

pub use self::access::Identity;
pub use self::audit::{Mark, WriteKind, Writes};
use self::certificates::Certificates;
use self::servers::{ApiServerSettings, Etcd, Server};
use crate::process::free_port;
use crate::scratch::Scratch;

/// The user that [`ControlPlane::client`] acts as; it may do everything.
pub const ADMIN: &str = "admin";

/// The user that kube-controller-manager acts as.
pub const CONTROLLER_MANAGER: &str = "system:kube-controller-manager";

/// The user that the API server itself acts as.
pub const API_SERVER: &str = "system:apiserver";

/// Names of the members of the pool's etcd, as many as there can be.
const POOL_ETCD: [&str; 3] = ["pool-etcd", "pool-etcd-2", "pool-etcd-3"];

/// How a control plane is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Both etcds write through to the disk before they answer. Off for tests: their data need not survive the machine.
    pub durable: bool,
    /// Starts kube-controller-manager: needed for garbage collection, namespaces' deletion and default service accounts.
    pub controller_manager: bool,
    /// Number of members of the pool's etcd, 1 to 3.
    pub pool_etcd_members: usize,
    /// How many bytes each member of the pool's etcd keeps before it refuses to write more.
    pub pool_etcd_quota: u64,
    /// Lets the API server queue requests by priority and fairness, as clusters do.
    pub priority_and_fairness: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durable: false,
            controller_manager: true,
            pool_etcd_members: 1,
            pool_etcd_quota: servers::QUOTA,
            priority_and_fairness: true,
        }
    }
}

/// One server of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// kube-apiserver.
    ApiServer,
    /// The etcd behind the API server.
    Etcd,
    /// The etcd that holds ownership, all of its members.
    PoolEtcd,
    /// One of its members, counted from 0.
    PoolEtcdMember(usize),
    /// kube-controller-manager.
    ControllerManager,
}

/// A running control plane; dropping it stops all its servers and removes its files.
#[derive(Debug)]
pub struct ControlPlane {
    // In the order in which they are dropped: clients before what they talk to, the folder last.
    controller_manager: Option<Server>,
    api_server: Server,
    etcd: Etcd,
    pool_etcd: Vec<Etcd>,
    admin: Identity,
    api_server_port: u16,
    audit_log: PathBuf,
    scratch: Scratch,
}

impl ControlPlane {
    /// Starts all servers and waits until each of them does its work, about four seconds on an idle machine.
    ///
    /// # Errors
    /// When a program is missing, or a server ends or is not ready in time; the message shows the end of its log.
    pub async fn start(options: &Options) -> Result<Self> {
        let scratch = Scratch::new("control-plane")?;
        let folder = scratch.path();
        let mut etcd = Etcd::start("etcd", folder, options.durable)?;
        let members = POOL_ETCD
            .get(..options.pool_etcd_members)
            .filter(|names| !names.is_empty())
            .context("the pool's etcd has 1 to 3 members")?;
        let mut pool_etcd = Etcd::start_cluster(members, folder, options.durable, options.pool_etcd_quota)?;

        let certificates = Certificates::generate(folder)?;
        let port = free_port()?;
        let identity = |user: &str| Identity {
            user: user.to_owned(),
            token: Uuid::new_v4().simple().to_string(),
            server: format!("https://127.0.0.1:{port}"),
            authority: certificates.authority.clone(),
        };
        let (admin, manager) = (identity(ADMIN), identity(CONTROLLER_MANAGER));
        let tokens = folder.join("tokens.csv");
        let masters =
            |who: &Identity| format!("{},{user},{user},system:masters\n", who.token, user = who.user);
        write_private(&tokens, &(masters(&admin) + &masters(&manager)))?;
        let audit_policy = folder.join("audit-policy.yaml");
        write_private(&audit_policy, audit::POLICY)?;
        let audit_log = folder.join("audit.log");
        admin.write_kubeconfig(&folder.join("admin.kubeconfig"))?;

        etcd.ready().await?;
        let settings = ApiServerSettings {
            certificates: &certificates,
            tokens: &tokens,
            audit_policy: &audit_policy,
            audit_log: &audit_log,
            etcd: &etcd.endpoint(),
            port,
            priority_and_fairness: options.priority_and_fairness,
        };
        let mut api_server = servers::api_server(folder, &settings)?;
        let client = admin.client().await?;
        servers::api_server_ready(&mut api_server, &client).await?;
        let controller_manager = if options.controller_manager {
            let kubeconfig = folder.join("controller-manager.kubeconfig");
            manager.write_kubeconfig(&kubeconfig)?;
            let mut server = servers::controller_manager(folder, &kubeconfig, &certificates)?;
            servers::controller_manager_ready(&mut server, &client).await?;
            Some(server)
        } else {
            None
        };
        for member in &mut pool_etcd {
            member.ready().await?;
        }
        Ok(Self {
            controller_manager,
            api_server,
            etcd,
            pool_etcd,
            admin,
            api_server_port: port,
            audit_log,
            scratch,
        })
    }

    /// The folder of all files, logs included.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Where clients of the pool's etcd connect, from this machine: each member's URL.
    pub fn pool_etcd_endpoints(&self) -> Vec<String> {
        self.pool_etcd.iter().map(Etcd::endpoint).collect()
    }

    /// The ports of the pool's etcd, in the order of its members.
    pub fn pool_etcd_ports(&self) -> Vec<u16> {
        self.pool_etcd.iter().map(|member| member.port).collect()
    }

    /// The port of the API server.
    pub fn api_server_port(&self) -> u16 {
        self.api_server_port
    }

    /// Kills a server as a crash would, and leaves it down until [`ControlPlane::restart`].
    ///
    /// # Errors
    /// When it may not be signalled, or this control plane has no such part.
    pub fn crash(&mut self, part: Part) -> Result<()> {
        self.servers(part)?.into_iter().try_for_each(|server| server.process.kill())
    }

    /// Kills a server, unless it is down already, starts it again with its data on its port, and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready in time, or this control plane has no such part.
    pub async fn restart(&mut self, part: Part) -> Result<()> {
        let client = self.client().await?;
        self.servers(part)?.into_iter().try_for_each(Server::crash_and_restart)?;
        match part {
            Part::ApiServer => servers::api_server_ready(&mut self.api_server, &client).await?,
            Part::Etcd => self.etcd.ready().await?,
            Part::PoolEtcd => {
                for member in &mut self.pool_etcd {
                    member.ready().await?;
                }
            }
            Part::PoolEtcdMember(number) => self.pool_etcd[number].ready().await?,
            Part::ControllerManager => {
                for server in self.servers(part)? {
                    servers::controller_manager_ready(server, &client).await?;
                }
            }
        }
        Ok(())
    }

    /// Replaces what the pool's etcd holds by a snapshot of it, as operators do with `etcdutl`, and waits until it is ready: it is
    /// another cluster then.
    ///
    /// # Errors
    /// When the snapshot cannot be restored, or a member is not ready in time.
    pub async fn restore_pool_etcd(&mut self, snapshot: &Path) -> Result<()> {
        let token = Uuid::new_v4().simple().to_string();
        for member in &mut self.pool_etcd {
            member.server.process.kill()?;
        }
        for member in &mut self.pool_etcd {
            member.restore(snapshot, &token).await?;
        }
        for member in &mut self.pool_etcd {
            member.ready().await?;
        }
        Ok(())
    }

    /// Stops a server in its tracks: its connections stay open and nothing answers.
    ///
    /// # Errors
    /// When it may not be signalled, or this control plane has no such part.
    pub fn pause(&mut self, part: Part) -> Result<()> {
        self.servers(part)?.into_iter().try_for_each(|server| server.process.pause())
    }

    /// Lets a paused server go on.
    ///
    /// # Errors
    /// When it may not be signalled, or this control plane has no such part.
    pub fn resume(&mut self, part: Part) -> Result<()> {
        self.servers(part)?.into_iter().try_for_each(|server| server.process.resume())
    }

    /// The present moment in the API server's audit log, for [`ControlPlane::writes_since`].
    ///
    /// # Errors
    /// When the log cannot be looked at.
    pub fn audit_mark(&self) -> Result<Mark> {
        audit::mark(&self.audit_log)
    }

    /// The writes that the API server has granted since `mark`.
    ///
    /// A write is logged when its handling ends, which may be a moment after its client has the answer.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn writes_since(&self, mark: Mark) -> Result<Writes> {
        audit::writes_since(&self.audit_log, mark)
    }

    /// The servers of a part, of which there are several for the pool's etcd alone.
    fn servers(&mut self, part: Part) -> Result<Vec<&mut Server>> {
        Ok(match part {
            Part::ApiServer => vec![&mut self.api_server],
            Part::Etcd => vec![&mut self.etcd.server],
            Part::PoolEtcd => self.pool_etcd.iter_mut().map(|member| &mut member.server).collect(),
            Part::PoolEtcdMember(number) => {
                let member = self.pool_etcd.get_mut(number);
                vec![&mut member.with_context(|| format!("the pool's etcd has no member {number}"))?.server]
            }
            Part::ControllerManager => {
                vec![self.controller_manager.as_mut().ok_or_else(|| {
                    anyhow!("this control plane was started without kube-controller-manager")
                })?]
            }
        })
    }
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)
        .and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write {}", path.display()))
}
