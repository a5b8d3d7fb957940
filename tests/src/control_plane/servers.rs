//! How each server of the control plane is started, and how it is known to be ready.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certificates::Certificates;
use crate::process::{Process, free_port};
use crate::programs::tool;

/// How long a server may take until it is ready; a cold, busy machine needs a multiple of the usual two seconds.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The controllers of kube-controller-manager that KubeXen relies on. All others are for workloads that run on kubelets,
/// of which there are none here.
const CONTROLLERS: &str = "namespace-controller,garbage-collector-controller,serviceaccount-controller,\
    serviceaccount-token-controller,clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller";

/// How many bytes an etcd keeps. Its own 2 GiB are reached by a storm of thousands of objects with all their revisions.
pub(super) const QUOTA: u64 = 8 << 30;

/// A server that can be started again with the same data on the same port.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    /// The running server.
    pub process: Process,
}

impl Server {
    fn start(name: &'static str, program: &str, arguments: Vec<String>, folder: &Path) -> Result<Self> {
        let program = tool(program)?;
        let log = folder.join(format!("{name}.log"));
        let process = launch(name, &program, &arguments, &log)?;
        Ok(Self { name, program, arguments, log, process })
    }

    /// The value of the argument that begins like this.
    fn argument(&self, flag: &str) -> Result<&str> {
        let value = self.arguments.iter().find_map(|argument| argument.strip_prefix(flag));
        value.with_context(|| format!("{} has no argument {flag}", self.name))
    }

    /// Kills the server as a crash would, and starts it again; it is not ready yet when this returns.
    pub(super) fn crash_and_restart(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process = launch(self.name, &self.program, &self.arguments, &self.log)?;
        Ok(())
    }
}

fn launch(name: &str, program: &Path, arguments: &[String], log: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.args(arguments);
    // The data goes away with the server, so nothing is gained by an orderly end.
    Ok(Process::start(name, command, log)?.stop_within(Duration::ZERO))
}

/// One member of an etcd cluster.
#[derive(Debug)]
pub(super) struct Etcd {
    /// The server.
    pub server: Server,
    /// Where it listens for clients.
    pub port: u16,
}

impl Etcd {
    /// Starts an etcd that is alone in its cluster, with its data below `folder`; with `durable` it writes through to the disk.
    pub(super) fn start(name: &'static str, folder: &Path, durable: bool) -> Result<Self> {
        let peer_port = free_port()?;
        Self::start_member(name, &[(name, peer_port)], peer_port, folder, durable, QUOTA)
    }

    /// Starts a cluster of as many members as there are names.
    pub(super) fn start_cluster(
        names: &[&'static str],
        folder: &Path,
        durable: bool,
        quota: u64,
    ) -> Result<Vec<Self>> {
        let members: Vec<(&str, u16)> =
            names.iter().map(|name| Ok((*name, free_port()?))).collect::<Result<_>>()?;
        let start = |(name, (_, peer_port)): (&&'static str, &(&str, u16))| {
            Self::start_member(name, &members, *peer_port, folder, durable, quota)
        };
        names.iter().zip(&members).map(start).collect()
    }

    fn start_member(
        name: &'static str,
        members: &[(&str, u16)],
        peer_port: u16,
        folder: &Path,
        durable: bool,
        quota: u64,
    ) -> Result<Self> {
        let port = free_port()?;
        let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
        let cluster: Vec<String> =
            members.iter().map(|(name, port)| format!("{name}=http://127.0.0.1:{port}")).collect();
        let mut arguments = vec![
            format!("--name={name}"),
            format!("--data-dir={}", folder.join(name).display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster={}", cluster.join(",")),
            "--log-level=warn".to_owned(),
            format!("--quota-backend-bytes={quota}"),
        ];
        if !durable {
            arguments.push("--unsafe-no-fsync".to_owned());
        }
        Ok(Self { server: Server::start(name, "etcd", arguments, folder)?, port })
    }

    /// Kills the member, replaces its data by what a snapshot holds, as operators do, and starts it; it is not ready yet when this
    /// returns. All members of a cluster are to be restored from the same snapshot with the same `token`.
    pub(super) async fn restore(&mut self, snapshot: &Path, token: &str) -> Result<()> {
        self.server.process.kill()?;
        let data = self.server.argument("--data-dir=")?;
        tokio::fs::remove_dir_all(data).await.with_context(|| format!("cannot remove {data}"))?;
        let output = tokio::process::Command::new(tool("etcdutl")?)
            .args(["snapshot", "restore"])
            .arg(snapshot)
            .args(["--bump-revision", "1000000000", "--mark-compacted", "--initial-cluster-token", token])
            .args(["--data-dir", data, "--name", self.server.name])
            .args(["--initial-cluster", self.server.argument("--initial-cluster=")?])
            .args(["--initial-advertise-peer-urls", self.server.argument("--initial-advertise-peer-urls=")?])
            .kill_on_drop(true)
            .output()
            .await
            .context("cannot run etcdutl")?;
        ensure!(output.status.success(), "etcdutl: {}", String::from_utf8_lossy(&output.stderr));
        self.server.crash_and_restart()
    }

    /// Where clients connect.
    pub(super) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Waits until etcd has a leader and answers.
    pub(super) async fn ready(&mut self) -> Result<()> {
        let port = self.port;
        self.server
            .process
            .wait_until("etcd is healthy", READY_WITHIN, async || {
                let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
                stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await?;
                ensure!(answer.contains(r#""health":"true""#), "it answers {answer:?}");
                Ok(())
            })
            .await
    }
}

/// Files and switches that the API server is started with.
#[derive(Debug)]
pub(super) struct ApiServerSettings<'a> {
    pub certificates: &'a Certificates,
    pub tokens: &'a Path,
    pub audit_policy: &'a Path,
    pub audit_log: &'a Path,
    pub etcd: &'a str,
    pub port: u16,
    pub priority_and_fairness: bool,
}

/// Starts kube-apiserver.
pub(super) fn api_server(folder: &Path, settings: &ApiServerSettings<'_>) -> Result<Server> {
    let ApiServerSettings {
        certificates,
        tokens,
        audit_policy,
        audit_log,
        etcd,
        port,
        priority_and_fairness,
    } = settings;
    let arguments = vec![
        format!("--etcd-servers={etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        // The default reconciler publishes the address for pods and refuses loopback addresses.
        "--endpoint-reconciler-type=none".to_owned(),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        format!("--tls-cert-file={}", certificates.server_certificate.display()),
        format!("--tls-private-key-file={}", certificates.server_key.display()),
        "--authorization-mode=Node,RBAC".to_owned(),
        format!("--token-auth-file={}", tokens.display()),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-signing-key-file={}", certificates.service_account_key.display()),
        format!("--service-account-key-file={}", certificates.service_account_public_key.display()),
        format!("--audit-policy-file={}", audit_policy.display()),
        format!("--audit-log-path={}", audit_log.display()),
        // Marks are offsets into one file, so it must not be rotated.
        "--audit-log-maxsize=0".to_owned(),
        format!("--enable-priority-and-fairness={priority_and_fairness}"),
        "--max-requests-inflight=2000".to_owned(),
        "--max-mutating-requests-inflight=1000".to_owned(),
        "--profiling=false".to_owned(),
    ];
    Server::start("kube-apiserver", "kube-apiserver", arguments, folder)
}

/// Waits until the API server says that it is ready.
pub(super) async fn api_server_ready(server: &mut Server, client: &kube::Client) -> Result<()> {
    server
        .process
        .wait_until("it is ready", READY_WITHIN, async || {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            client.request_text(request).await?;
            Ok(())
        })
        .await
}

/// Starts kube-controller-manager with the credentials in `kubeconfig`.
pub(super) fn controller_manager(
    folder: &Path,
    kubeconfig: &Path,
    certificates: &Certificates,
) -> Result<Server> {
    let arguments = vec![
        format!("--kubeconfig={}", kubeconfig.display()),
        format!("--controllers={CONTROLLERS}"),
        "--leader-elect=false".to_owned(),
        format!("--secure-port={}", free_port()?),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--service-account-private-key-file={}", certificates.service_account_key.display()),
        format!("--root-ca-file={}", certificates.authority_file.display()),
        // The defaults throttle the garbage collector to 20 requests a second.
        "--kube-api-qps=500".to_owned(),
        "--kube-api-burst=1000".to_owned(),
        "--profiling=false".to_owned(),
    ];
    Server::start("kube-controller-manager", "kube-controller-manager", arguments, folder)
}

/// Waits until kube-controller-manager does its work: the first sign of it is the default service account.
pub(super) async fn controller_manager_ready(server: &mut Server, client: &kube::Client) -> Result<()> {
    let accounts =
        kube::Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(client.clone(), "default");
    server
        .process
        .wait_until("the default service account exists", READY_WITHIN, async || {
            accounts.get("default").await.context("no account yet")?;
            Ok(())
        })
        .await
}
