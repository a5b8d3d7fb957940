//! The agent's side of libxl: a small pool of worker processes and a time limit on every call.
//!
//! A call that does not end in time is ended by killing its worker with its whole process group; so is a worker that
//! breaks the protocol. What such a call did to Xen is unknown, and the caller observes again. The next call finds an
//! idle worker or starts one.

use super::{
    protocol::{LINE_LIMIT, Message, Outcome, Reply, Request, end_of_log},
    xenstore::sanitize,
};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    path::PathBuf,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

/// Most libxl calls at one time. They contend for dom0's CPUs, xenstore and the hotplug scripts' lock.
const WORKERS: usize = 4;
/// Longest wait for a free worker.
const QUEUE: Duration = Duration::from_secs(300);
/// Lines of libxl's log that are kept for an error message, and the bytes kept of each.
const LOG_LINES: usize = 40;
const LOG_LINE_BYTES: usize = 512;
/// Bytes of log that an error message repeats.
const DETAIL_BYTES: usize = 1024;

/// How a worker is started.
#[derive(Clone, Debug)]
pub struct WorkerCommand {
    /// Program, usually the agent's own.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The time limit passed. What the call did is unknown.
    #[error("the time limit passed")]
    TimedOut,
    /// The worker ended or broke the protocol. What the call did is unknown.
    #[error("the libxl worker ended during the call: {0}")]
    Broken(String),
    /// No worker could be started; nothing was done.
    #[error("no libxl worker could be started: {0}")]
    NotStarted(#[source] io::Error),
}

/// An outcome with the part of libxl's log that explains it.
#[derive(Debug)]
pub struct Answer {
    /// What became of the request.
    pub outcome: Outcome,
    /// libxl's errors during the call, or its last lines if it wrote none; bounded and free of control characters.
    pub log: String,
}

/// The pool.
#[derive(Debug)]
pub struct Supervisor {
    command: WorkerCommand,
    slots: Semaphore,
    idle: Mutex<Vec<Worker>>,
}

impl Supervisor {
    /// A pool without workers; the first calls start them.
    #[must_use]
    pub fn new(command: WorkerCommand) -> Self {
        Self { command, slots: Semaphore::new(WORKERS), idle: Mutex::default() }
    }

    /// Has one request performed. The limit is that of the call; the wait for a free worker has its own.
    ///
    /// If the returned future is dropped, the worker is killed.
    ///
    /// # Errors
    /// [`CallError`]; only [`CallError::NotStarted`] promises that nothing was done.
    pub async fn call(&self, request: Request, limit: Duration) -> Result<Answer, CallError> {
        let slot = timeout(QUEUE, self.slots.acquire()).await.map_err(|_| CallError::TimedOut)?;
        // Nobody closes the semaphore; if it were closed, going on without a slot would do no harm.
        let _slot = slot.ok();
        let mut worker = match self.idle_worker() {
            Some(worker) => worker,
            None => Worker::start(&self.command).map_err(CallError::NotStarted)?,
        };
        let result = timeout(limit, worker.call(request)).await.unwrap_or(Err(CallError::TimedOut));
        match &result {
            // libxl's context may be what is wrong, for instance its connection to xenstore: the next call gets a new one.
            Ok(Answer { outcome: Outcome::Refused(_), .. }) => worker.close().await,
            Ok(_) => self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(worker),
            Err(_) => worker.kill().await,
        }
        result
    }

    /// An idle worker that still lives.
    fn idle_worker(&self) -> Option<Worker> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(mut worker) = idle.pop() {
            if matches!(worker.child.try_wait(), Ok(None)) {
                return Some(worker);
            }
        }
        None
    }
}

/// One worker process, which is idle or in one call. Dropping it kills its group.
#[derive(Debug)]
struct Worker {
    child: Child,
    group: Option<Pid>,
    requests: Option<ChildStdin>,
    replies: Lines<ChildStdout>,
    log: Lines<ChildStderr>,
    next_id: u64,
}

impl Worker {
    fn start(command: &WorkerCommand) -> io::Result<Self> {
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let missing = || io::Error::other("a pipe to the worker is missing");
        Ok(Self {
            group: child.id().and_then(|id| Pid::from_raw(id.cast_signed())),
            requests: Some(child.stdin.take().ok_or_else(missing)?),
            replies: Lines::new(child.stdout.take().ok_or_else(missing)?, LINE_LIMIT),
            log: Lines::new(child.stderr.take().ok_or_else(missing)?, LOG_LINE_BYTES),
            child,
            next_id: 1,
        })
    }

    async fn call(&mut self, request: Request) -> Result<Answer, CallError> {
        let name = request.call();
        let id = self.next_id;
        self.next_id += 1;
        let mut log = Log::default();
        let outcome = self.exchange(Message { id, request }, &mut log).await;
        for line in &log.0 {
            tracing::debug!(call = name, "{line}");
        }
        match outcome {
            Ok(outcome) => Ok(Answer { outcome, log: log.detail() }),
            Err(reason) => Err(CallError::Broken(format!("{reason}; {}", log.detail()))),
        }
    }

    /// Sends a message and reads both streams until the reply and the end of its log are there.
    async fn exchange(&mut self, message: Message, log: &mut Log) -> Result<Outcome, String> {
        let mut line = serde_json::to_vec(&message).map_err(|error| error.to_string())?;
        line.push(b'\n');
        if line.len() > LINE_LIMIT {
            return Err(format!("a request of {} bytes is too long", line.len()));
        }
        let requests = self.requests.as_mut().ok_or("it was closed")?;
        // A worker that does not read ends this by the caller's time limit. One that is gone may still have left
        // its reason in the log, which is read below.
        let sent = requests.write_all(&line).await;
        let end = end_of_log(message.id);
        let (mut outcome, mut log_ended) = (None, false);
        while outcome.is_none() || !log_ended {
            tokio::select! {
                biased;
                line = self.log.next(), if !log_ended => match line.map_err(|error| error.to_string())? {
                    Some(line) if line == end.as_bytes() => log_ended = true,
                    Some(line) => log.push(&line),
                    None => log_ended = true,
                },
                line = self.replies.next(), if outcome.is_none() => {
                    let Some(line) = line.map_err(|error| error.to_string())? else {
                        self.drain_log(log).await;
                        return Err(sent.err().map_or("no reply".into(), |error| error.to_string()));
                    };
                    let reply: Reply = serde_json::from_slice(&line).map_err(|error| error.to_string())?;
                    if reply.id != message.id {
                        return Err(format!("reply {} to message {}", reply.id, message.id));
                    }
                    outcome = Some(reply.outcome);
                }
            }
        }
        outcome.ok_or_else(|| "no reply".into())
    }

    /// Reads what a worker that ended wrote last. A hotplug script that outlives it may hold the pipe open.
    async fn drain_log(&mut self, log: &mut Log) {
        let deadline = Instant::now() + Duration::from_millis(200);
        while let Ok(Ok(Some(line))) = timeout_at(deadline, self.log.next()).await {
            log.push(&line);
        }
    }

    /// Ends an idle worker in its own time: it ends with its input.
    async fn close(mut self) {
        self.requests = None;
        let waited = timeout(Duration::from_secs(1), self.child.wait()).await;
        if waited.is_err() {
            self.kill().await;
        }
    }

    async fn kill(mut self) {
        self.signal_group();
        // It is dead but for the kernel's part of it; tokio reaps it if that takes longer than this.
        let _ = timeout(Duration::from_secs(1), self.child.wait()).await;
    }

    /// Kills the group, unless its leader was reaped: then its number may belong to others.
    fn signal_group(&mut self) {
        if let (Ok(None), Some(group)) = (self.child.try_wait(), self.group) {
            // It fails only when the group is gone already.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.signal_group();
    }
}

/// The end of the log of one call.
#[derive(Debug, Default)]
struct Log(VecDeque<String>);

impl Log {
    fn push(&mut self, line: &[u8]) {
        if self.0.len() == LOG_LINES {
            self.0.pop_front();
        }
        self.0.push_back(sanitize(line, LOG_LINE_BYTES));
    }

    /// The errors, or all lines if there are none, cut at the end: libxl tells the cause first, and then each layer
    /// above it says that it failed.
    fn detail(&self) -> String {
        let is_error = |line: &&String| line.contains("rror");
        let mut lines: Vec<&str> = self.0.iter().filter(is_error).map(String::as_str).collect();
        if lines.is_empty() {
            lines = self.0.iter().map(String::as_str).collect();
        }
        sanitize(lines.join("; ").as_bytes(), DETAIL_BYTES)
    }
}

/// Lines of a stream, each cut at a number of bytes. A future of [`Lines::next`] may be dropped: what it read stays.
#[derive(Debug)]
struct Lines<R> {
    stream: BufReader<R>,
    line: Vec<u8>,
    limit: usize,
}

impl<R: tokio::io::AsyncRead + Unpin> Lines<R> {
    fn new(stream: R, limit: usize) -> Self {
        Self { stream: BufReader::new(stream), line: Vec::new(), limit }
    }

    /// The next line without its end, or nothing at the end of the stream.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let available = self.stream.fill_buf().await?;
            if available.is_empty() {
                return Ok(if self.line.is_empty() { None } else { Some(std::mem::take(&mut self.line)) });
            }
            let end = available.iter().position(|byte| *byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            let room = self.limit.saturating_sub(self.line.len());
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            let used = part.len() + usize::from(end.is_some());
            self.stream.consume(used);
            if end.is_some() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// A worker in shell. `$id` is the message's number.
    fn shell(answer: &str) -> Supervisor {
        let script = format!(r#"while read -r line; do id=${{line#*:}}; id=${{id%%,*}}; {answer}; done"#);
        Supervisor::new(WorkerCommand {
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
        })
    }

    const END: &str = r#"echo "libxl-worker: end of call $id" >&2"#;
    const DONE: &str = r#"echo "{\"id\":$id,\"outcome\":\"Done\"}""#;

    #[tokio::test]
    async fn calls_reuse_one_worker() {
        let pool = shell(&format!(r#"echo "pid $$" >&2; {END}; {DONE}"#));
        let first = pool.call(Request::Version, LONG).await.unwrap();
        let second = pool.call(Request::Version, LONG).await.unwrap();
        assert_eq!(first.outcome, Outcome::Done);
        assert_eq!(first.log, second.log);
    }

    #[tokio::test]
    async fn a_refusal_carries_the_errors_of_its_own_call_and_retires_the_worker() {
        let pool = shell(&format!(
            r#"echo "libxl: notice: $$" >&2; echo "libxl: error: no such kernel $$" >&2; {END}; echo "{{\"id\":$id,\"outcome\":{{\"Refused\":-3}}}}""#
        ));
        let first = pool.call(Request::Version, LONG).await.unwrap();
        assert_eq!(first.outcome, Outcome::Refused(-3));
        assert!(first.log.starts_with("libxl: error: no such kernel"), "{}", first.log);
        let second = pool.call(Request::Version, LONG).await.unwrap();
        assert_ne!(first.log, second.log, "the same process answered");
    }

    #[tokio::test]
    async fn a_call_over_its_limit_is_killed_with_its_whole_group_and_the_next_one_works() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("mark");
        let path = mark.display();
        let pool = shell(&format!(
            r#"if [ -e {path} ]; then {END}; {DONE}; else sleep 1000 & echo $! >{path}.part; mv {path}.part {path}; wait; fi"#
        ));
        let result = pool.call(Request::Version, Duration::from_millis(500)).await;
        assert!(matches!(result, Err(CallError::TimedOut)), "{result:?}");
        let grandchild: i32 = std::fs::read_to_string(&mark).unwrap().trim().parse().unwrap();
        let pid = Pid::from_raw(grandchild).unwrap();
        let deadline = Instant::now() + LONG;
        while alive(pid) {
            assert!(Instant::now() < deadline, "the worker's child lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(pool.call(Request::Version, LONG).await.unwrap().outcome, Outcome::Done);
    }

    /// Whether a process runs; one that is dead and waits to be reaped does not.
    fn alive(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
        stat.is_ok_and(|text| !text.contains(") Z "))
    }

    #[tokio::test]
    async fn a_worker_that_dies_is_told_with_its_last_words() {
        let pool = shell("echo 'libxl: error: assertion failed' >&2; kill -9 $$");
        let result = pool.call(Request::Version, LONG).await;
        assert!(
            matches!(&result, Err(CallError::Broken(text)) if text.contains("assertion failed")),
            "{result:?}"
        );
    }

    #[tokio::test]
    async fn a_worker_that_died_idle_is_not_used() {
        let pool = shell(&format!(r#"{END}; {DONE}; exit"#));
        for _ in 0..3 {
            assert_eq!(pool.call(Request::Version, LONG).await.unwrap().outcome, Outcome::Done);
            let deadline = Instant::now() + LONG;
            while pool
                .idle
                .lock()
                .unwrap()
                .iter_mut()
                .any(|worker| matches!(worker.child.try_wait(), Ok(None)))
            {
                assert!(Instant::now() < deadline, "the worker did not end");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    #[tokio::test]
    async fn an_endless_line_is_cut_and_an_endless_log_keeps_its_end() {
        let pool = shell(&format!(
            r#"head -c 1000000 /dev/zero | tr '\0' x >&2; echo >&2; seq 1000 >&2; {END}; {DONE}"#
        ));
        let answer = pool.call(Request::Version, LONG).await.unwrap();
        assert!(answer.log.ends_with("; 1000") && answer.log.len() <= DETAIL_BYTES, "{}", answer.log);
    }

    #[tokio::test]
    async fn more_calls_than_workers_wait_their_turn() {
        let pool = shell(&format!(r#"{END}; {DONE}"#));
        let calls = (0..WORKERS * 3).map(|_| pool.call(Request::Version, LONG));
        let answers = futures::future::join_all(calls).await;
        assert!(answers.iter().all(Result::is_ok), "{answers:?}");
        assert!(pool.idle.lock().unwrap().len() <= WORKERS);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_told() {
        let pool = Supervisor::new(WorkerCommand { program: "/nonexistent".into(), arguments: Vec::new() });
        let result = pool.call(Request::Version, LONG).await;
        assert!(matches!(result, Err(CallError::NotStarted(_))), "{result:?}");
    }
}
