//! Child processes that never outlive their owner.
//!
//! Three things keep a machine clean whatever happens to a test or to the demo:
//! - every child leads a process group of its own and is stopped as a group when its [`Process`] is dropped;
//! - every child asks the kernel to be killed when the process that started it dies (`PR_SET_PDEATHSIG`), which also
//!   covers `SIGKILL`, an abort, and libtest, which never drops statics;
//! - the kernel ties that request to the *thread* that forked, and libtest ends its threads with their tests, so all
//!   children are forked by one thread that lives as long as this process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::time::Instant;

/// How long a process may take to end after `SIGTERM` before it is killed, unless its owner says otherwise.
pub const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How often conditions are looked at while something is awaited.
const POLL: Duration = Duration::from_millis(50);

/// How much of a log is shown when something failed.
const TAIL_BYTES: u64 = 4096;

/// A running child process; dropping it stops its whole process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    pid: Pid,
    status: Option<ExitStatus>,
    log: PathBuf,
    stop_within: Duration,
}

impl Process {
    /// Starts `command` as leader of a new process group, with standard output and error appended to `log` and nothing to
    /// read on standard input.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be executed.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open the log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let program = command.get_program().to_string_lossy().into_owned();
        let child = spawn_tied(command).with_context(|| format!("cannot start {name} ({program})"))?;
        let pid = Pid::from_child(&child);
        Ok(Self {
            name: name.to_owned(),
            child,
            pid,
            status: None,
            log: log.to_owned(),
            stop_within: STOP_WITHIN,
        })
    }

    /// Sets how long the process may take to end after `SIGTERM` before it is killed.
    #[must_use]
    pub fn stop_within(mut self, limit: Duration) -> Self {
        self.stop_within = limit;
        self
    }

    /// The process id, which is also the id of its process group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that receives standard output and error.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How the process ended, or nothing while it runs. What is left of its group when it has ended is killed.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_some() || !self.has_ended()? {
            return Ok(self.status);
        }
        self.reap().map(Some)
    }

    /// Sends a signal to the whole process group; that it has ended already is not an error.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        rustix::process::kill_process_group(self.pid, signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// Stops the process in its tracks until [`Process::resume`]: to its peers it looks hung, not dead.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Kills the whole group at once, as a crash would, and waits for the leader's end.
    ///
    /// # Errors
    /// When the signal may not be sent.
    pub fn kill(&mut self) -> Result<()> {
        if self.status.is_none() {
            self.reap()?;
        }
        Ok(())
    }

    /// Ends the group in order: `SIGTERM`, and `SIGKILL` when the time limit has passed or the leader has ended.
    ///
    /// # Errors
    /// When signals may not be sent.
    pub fn stop(&mut self) -> Result<()> {
        if self.status.is_some() {
            return Ok(());
        }
        self.signal(Signal::TERM)?;
        // A paused process acts on the signal only when it goes on.
        self.resume()?;
        let deadline = std::time::Instant::now() + self.stop_within;
        while !self.has_ended()? && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.reap().map(drop)
    }

    /// Whether the leader has ended, without reaping it: until it is reaped, its process group's id cannot be reused, so
    /// that signals to the group meet nobody else.
    fn has_ended(&self) -> Result<bool> {
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let state = rustix::process::waitid(WaitId::Pid(self.pid), peek)
            .with_context(|| format!("cannot ask for the state of {}", self.name))?;
        Ok(state.is_some())
    }

    /// Kills what is left of the group and takes the leader's exit status.
    fn reap(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::KILL)?;
        let status = self.child.wait().with_context(|| format!("cannot wait for {}", self.name))?;
        self.status = Some(status);
        Ok(status)
    }

    /// The end of the log, for error messages.
    pub fn log_tail(&self) -> String {
        log_tail(&self.log)
    }

    /// Waits until `condition` yields a value, as [`wait_until`] does; gives up at once when the process ends, and shows the
    /// end of its log when it gives up.
    ///
    /// # Errors
    /// When the process ended or the limit has passed.
    pub async fn wait_until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut condition: impl AsyncFnMut() -> Result<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited()? {
                bail!(
                    "{} ended ({status}) before {what}; the end of its log:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            match attempt(deadline, &mut condition).await {
                Ok(value) => return Ok(value),
                Err(error) if Instant::now() >= deadline => {
                    let tail = self.log_tail();
                    return Err(error.context(format!(
                        "{}: {what}: not within {limit:?}; the end of its log:\n{tail}",
                        self.name
                    )));
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("cannot stop {}: {error:#}", self.name);
        }
    }
}

/// Waits until `condition` yields a value; its errors mean "not yet", and the last one becomes the reason of the failure.
///
/// # Errors
/// When the limit has passed.
pub async fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if Instant::now() < deadline => last = Some(error),
            Ok(Err(error)) => return Err(late(error, what, limit)),
            // The look that the deadline cut off knows nothing, the one before it does.
            Err(_) => {
                let error = last.unwrap_or_else(|| anyhow!("the only look did not answer"));
                return Err(late(error, what, limit));
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn late(error: anyhow::Error, what: &str, limit: Duration) -> anyhow::Error {
    error.context(format!("{what}: not within {limit:?}"))
}

/// One look at a condition, which may itself hang and is then cut off at the deadline.
async fn attempt<T>(deadline: Instant, condition: &mut impl AsyncFnMut() -> Result<T>) -> Result<T> {
    match tokio::time::timeout_at(deadline, condition()).await {
        Ok(outcome) => outcome,
        Err(_elapsed) => Err(anyhow!("the last look did not answer")),
    }
}

/// The last few kilobytes of a log file, or why they cannot be read.
pub fn log_tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_BYTES);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_else(|error| format!("({} cannot be read: {error})", path.display()))
}

/// First port of the range that [`free_port`] picks from.
const PORTS_FROM: u16 = 20_000;
/// Length of that range. It ends below 32768, where the kernel's range for outgoing connections begins: otherwise one of
/// them could take a server's port while that server is being restarted.
const PORTS: u16 = 12_000;

/// A TCP port on 127.0.0.1 that nobody listens on.
///
/// Two callers in one process never get the same port; callers in different processes start at different points.
///
/// # Errors
/// When every port of the range is taken.
pub fn free_port() -> Result<u16> {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let spread = std::process::id().wrapping_mul(97) % u32::from(PORTS);
        AtomicU16::new(u16::try_from(spread).unwrap_or_default())
    });
    for _ in 0..PORTS {
        let port = PORTS_FROM + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no TCP port is free on 127.0.0.1 between {PORTS_FROM} and {}", PORTS_FROM + PORTS - 1)
}

/// What the forking thread is asked to do, and where the answer goes.
type Order = (Command, mpsc::SyncSender<std::io::Result<Child>>);

/// Forks from the one thread that lives as long as this process; see the module's documentation.
pub(crate) fn spawn_tied(command: Command) -> std::io::Result<Child> {
    static ORDERS: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (command, answer) in inbox {
                // The asker waits for this answer; were it gone, the child would have no owner and is dropped with it.
                let _ = answer.send(fork(command));
            }
        });
        orders
    });
    let (answer, outcome) = mpsc::sync_channel(1);
    let gone = || std::io::Error::other("the thread that starts processes is gone");
    ORDERS.send((command, answer)).map_err(|_| gone())?;
    outcome.recv().map_err(|_| gone())?
}

/// Spawns the command in its own process group, to be killed when this process dies.
fn fork(mut command: Command) -> std::io::Result<Child> {
    let parent = rustix::process::getpid();
    command.process_group(0);
    let tie = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have died before the request was made; then nobody would ever send the signal.
        if rustix::process::getppid() != Some(parent) {
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
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn group_is_gone(pid: u32) -> bool {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        rustix::process::test_kill_process_group(pid) == Err(rustix::io::Errno::SRCH)
    }

    #[tokio::test]
    async fn dropping_a_process_ends_its_whole_group() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut process = Process::start("shell", shell("sleep 600 & echo started; wait"), &log).unwrap();
        let pid = process.id();
        process
            .wait_until("it has started", Duration::from_secs(5), async || {
                if log_tail(&log).contains("started") { Ok(()) } else { bail!("no output yet") }
            })
            .await
            .unwrap();
        drop(process);
        // The grandchild is reaped by init, not by us.
        wait_until("the group is gone", Duration::from_secs(5), async || {
            if group_is_gone(pid) { Ok(()) } else { bail!("still there") }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn a_process_that_ignores_sigterm_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut process =
            Process::start("shell", shell("trap '' TERM; echo ready; while :; do sleep 1; done"), &log)
                .unwrap()
                .stop_within(Duration::from_millis(200));
        process
            .wait_until("the trap is set", Duration::from_secs(5), async || {
                if log_tail(&log).contains("ready") { Ok(()) } else { bail!("no output yet") }
            })
            .await
            .unwrap();
        process.stop().unwrap();
        let status = process.exited().unwrap().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(Signal::KILL.as_raw()));
    }

    #[tokio::test]
    async fn waiting_for_a_process_that_ended_shows_the_end_of_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let mut process =
            Process::start("shell", shell("echo out of cheese; exit 3"), &folder.path().join("log")).unwrap();
        let error = process
            .wait_until::<()>("it answers", Duration::from_secs(5), async || bail!("no answer"))
            .await
            .unwrap_err();
        let message = format!("{error:#}");
        assert!(message.contains("exit status: 3") && message.contains("out of cheese"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_that_runs_out_says_what_was_missing() {
        let error =
            wait_until::<()>("the moon is full", Duration::from_secs(60), async || bail!("it is half"))
                .await
                .unwrap_err();
        assert_eq!(format!("{error:#}"), "the moon is full: not within 60s: it is half");
    }

    #[test]
    fn ports_differ_from_call_to_call() {
        assert_ne!(free_port().unwrap(), free_port().unwrap());
    }
}
