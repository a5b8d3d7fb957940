//! A real etcd for one test, alone or as one of three members.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with, sockopt};
use rustix::process::{Pid, Signal, getpid, getppid, kill_process, set_parent_process_death_signal};
use tempfile::TempDir;

/// How long etcd may take to be ready, on a machine that is busy with other tests.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// The certificates with which etcd is to be spoken to.
pub struct ServerTls {
    pub ca: PathBuf,
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// The election timeout of an etcd that is to change its leader soon.
const ELECTION: Duration = Duration::from_millis(500);

/// etcd, killed and its data removed when this is dropped, and killed too when the test's process is.
pub struct Etcd {
    name: &'static str,
    child: Option<Child>,
    client_port: ReservedPort,
    peer_port: ReservedPort,
    /// The peer URLs of all members, with their names.
    members: String,
    tls: Option<ServerTls>,
    election: Duration,
    directory: TempDir,
}

impl Etcd {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    pub async fn start_with(tls: Option<ServerTls>) -> Self {
        let mut etcd = Self::named("pool");
        etcd.tls = tls;
        etcd.alone().await
    }

    pub async fn start_with_election_timeout(election: Duration) -> Self {
        let mut etcd = Self::named("pool");
        etcd.election = election;
        etcd.alone().await
    }

    async fn alone(mut self) -> Self {
        self.members = self.as_member();
        self.restart().await;
        self
    }

    /// Three members, each with a process of its own.
    pub async fn start_three() -> [Self; 3] {
        let mut members = ["one", "two", "three"].map(Self::named);
        let all = members.each_ref().map(Self::as_member).join(",");
        for member in &mut members {
            all.clone_into(&mut member.members);
            member.run();
        }
        for member in &mut members {
            member.ready().await;
        }
        members
    }

    fn named(name: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (client_port, peer_port) = (ReservedPort::new(), ReservedPort::new());
        Self {
            name,
            child: None,
            client_port,
            peer_port,
            members: String::new(),
            tls: None,
            election: ELECTION,
            directory,
        }
    }

    fn as_member(&self) -> String {
        format!("{}={}", self.name, self.peer_url())
    }

    fn peer_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.peer_port.number)
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port.number)
    }

    /// The URL for clients.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it again after [`Etcd::kill`], with the same data at the same address.
    pub async fn restart(&mut self) {
        self.run();
        self.ready().await;
    }

    /// Stops it where it stands: the connections stay, and nothing answers.
    ///
    /// The signal is sent at once, but each thread stops only when it next leaves user mode, so this waits for all.
    pub async fn pause(&self) {
        kill_process(self.pid(), Signal::STOP).unwrap();
        let deadline = Instant::now() + READY_WITHIN;
        while !self.has_stopped() {
            assert!(Instant::now() < deadline, "etcd was not stopped within {READY_WITHIN:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether every thread is in state `T` (proc_pid_stat(5): the field after the name in parentheses).
    fn has_stopped(&self) -> bool {
        let tasks = format!("/proc/{}/task", self.pid().as_raw_nonzero());
        std::fs::read_dir(tasks).unwrap().all(|task| {
            let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, fields)| fields.starts_with('T'))
        })
    }

    pub fn resume(&self) {
        kill_process(self.pid(), Signal::CONT).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn run(&mut self) {
        self.child = Some(tied(self.command()).spawn().unwrap());
    }

    /// Waits until it answers.
    async fn ready(&mut self) {
        let child = self.child.as_mut().unwrap();
        let deadline = Instant::now() + READY_WITHIN;
        // It listens for clients only once it has a leader.
        while tokio::net::TcpStream::connect(("127.0.0.1", self.client_port.number)).await.is_err() {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                panic!("etcd ended with {status}:\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "etcd was not ready within {READY_WITHIN:?}:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn command(&self) -> Command {
        let log = File::options().create(true).append(true).open(self.directory.path().join("log")).unwrap();
        let client = self.endpoint();
        let peer = self.peer_url();
        let mut command = Command::new(binary());
        command
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(["--name", self.name, "--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &self.members, "--log-level", "warn"])
            // A kill of the process loses nothing that was written; only a power cut would.
            .args(["--unsafe-no-fsync", "--socket-reuse-port"])
            .args(["--heartbeat-interval", "50"])
            .args(["--election-timeout", &self.election.as_millis().to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some(tls) = &self.tls {
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(&tls.ca);
            command.arg("--cert-file").arg(&tls.cert).arg("--key-file").arg(&tls.key);
        }
        command
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has the kernel kill what is started when this process dies, `SIGKILL` included.
///
/// The request is tied to the thread that forks. Here that is the test's own, which outlives its [`Etcd`].
fn tied(mut command: Command) -> Command {
    let parent = getpid();
    let tie = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the request was made; then nobody would ever send the signal.
        if getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe work is allowed. It makes two system
    // calls through rustix, allocates nothing (an errno converts to an io::Error without allocation) and takes no lock.
    #[expect(unsafe_code, reason = "std offers no safe way to set the parent-death signal")]
    unsafe {
        command.pre_exec(tie);
    }
    command
}

fn binary() -> PathBuf {
    let folder = std::env::var_os("KUBEXEN_TOOLS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/tools"), PathBuf::from);
    let binary = folder.join("etcd");
    assert!(binary.is_file(), "there is no {}: run `cargo xtask tools`", binary.display());
    binary
}

/// A free port that nobody else is given while this lives: it is bound, and shared with whoever asks for just this
/// one. Since nothing listens on the socket here, all connections are etcd's.
pub struct ReservedPort {
    pub number: u16,
    _socket: OwnedFd,
}

impl ReservedPort {
    pub fn new() -> Self {
        let socket =
            socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        sockopt::set_socket_reuseport(&socket, true).unwrap();
        bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = SocketAddrV4::try_from(getsockname(&socket).unwrap()).unwrap();
        Self { number: address.port(), _socket: socket }
    }
}
