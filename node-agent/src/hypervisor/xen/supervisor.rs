//! The agent's side of libxl: a small pool of worker processes and a time limit on every call.
//!
//! A call that does not end in time is ended by killing its worker with its whole process group; so is a worker that
//! breaks the protocol. What such a call did to Xen is unknown, and the caller observes again. The next call finds an
//! idle worker or starts one.

use super::{
    protocol::{LINE_LIMIT, Message, Outcome, Reply, Request, end_of_log},
    rounds::Rounds,
    xenstore::sanitize,
};
use rustix::{
    net::sockopt::set_socket_send_buffer_size_force,
    process::{Pid, Signal, kill_process_group},
};
use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, ChildStderr, Command},
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};

/// Most libxl calls at one time. They contend for dom0's CPUs, xenstore and the hotplug scripts' lock.
const WORKERS: usize = 4;
/// Most domains that are taken apart at one time, by workers of their own: a host that is to be rid of its guests has seconds for
/// that, and builds and changes take minutes.
const ENDS: usize = 16;
/// Longest wait for a free worker.
const QUEUE: Duration = Duration::from_secs(300);
/// Lines of libxl's log that are kept for an error message, and the bytes kept of each.
const LOG_LINES: usize = 40;
const LOG_LINE_BYTES: usize = 512;
/// Bytes of log that an error message repeats.
const DETAIL_BYTES: usize = 1024;

/// Bytes of a guest between libxl and the agent in the kernel: what libxl writes at once, 1024 pages, so that the two of
/// them do not wake each other for every few pages.
const STREAM_BUFFER: usize = 4 << 20;

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
    /// How often a suspend went through the guest's memory.
    pub rounds: Rounds,
}

/// The pool.
#[derive(Debug)]
pub struct Supervisor {
    command: WorkerCommand,
    slots: Semaphore,
    ends: Semaphore,
    idle: Mutex<Vec<Worker>>,
}

impl Supervisor {
    /// A pool without workers; the first calls start them.
    #[must_use]
    pub fn new(command: WorkerCommand) -> Self {
        let (slots, ends) = (Semaphore::new(WORKERS), Semaphore::new(ENDS));
        Self { command, slots, ends, idle: Mutex::default() }
    }

    /// Has one request performed. The limit is that of the call; the wait for a free worker has its own.
    ///
    /// If the returned future is dropped, the worker is killed.
    ///
    /// # Errors
    /// [`CallError`]; only [`CallError::NotStarted`] promises that nothing was done.
    pub async fn call(&self, request: Request, limit: Duration) -> Result<Answer, CallError> {
        let slots = if matches!(request, Request::Destroy(_)) { &self.ends } else { &self.slots };
        let slot = timeout(QUEUE, slots.acquire()).await.map_err(|_| CallError::TimedOut)?;
        // Nobody closes the semaphore; if it were closed, going on without a slot would do no harm.
        let _slot = slot.ok();
        let mut worker = match self.idle_worker() {
            Some(worker) => worker,
            None => Worker::start(&self.command, Stdio::null()).map_err(CallError::NotStarted)?,
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

    /// Starts a worker for one call with a stream, and returns it with this end of the stream. It is none of the pool:
    /// such calls take as long as the stream does.
    ///
    /// # Errors
    /// [`CallError::NotStarted`].
    pub fn start_streaming(&self) -> Result<(StreamingWorker, UnixStream), CallError> {
        let start = || {
            let (ours, theirs) = UnixStream::pair()?;
            for end in [&ours, &theirs] {
                // It only goes slower without.
                let _ = set_socket_send_buffer_size_force(end, STREAM_BUFFER);
            }
            let worker = Worker::start(&self.command, inherited(theirs)?.into())?;
            Ok((StreamingWorker(worker), ours))
        };
        start().map_err(CallError::NotStarted)
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

/// A worker that has a stream, for one call.
#[derive(Debug)]
pub struct StreamingWorker(Worker);

impl StreamingWorker {
    /// Has the request performed. The worker is killed when `enough` comes first.
    ///
    /// # Errors
    /// [`CallError`]; what the call did is then unknown.
    pub async fn call(
        mut self,
        request: Request,
        enough: impl Future<Output = ()>,
    ) -> Result<Answer, CallError> {
        let result = tokio::select! {
            result = self.0.call(request) => result,
            () = enough => Err(CallError::TimedOut),
        };
        match &result {
            Ok(_) => self.0.close().await,
            Err(_) => self.0.kill().await,
        }
        result
    }
}

/// A socket as a child's descriptor, which waits when it is read.
fn inherited(socket: UnixStream) -> io::Result<OwnedFd> {
    let socket = socket.into_std()?;
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// One worker process, which is idle or in one call. Dropping it kills its group.
#[derive(Debug)]
struct Worker {
    child: Child,
    group: Option<Pid>,
    requests: Option<OwnedWriteHalf>,
    replies: Lines<OwnedReadHalf>,
    log: Lines<ChildStderr>,
    next_id: u64,
}

impl Worker {
    /// Starts a process whose standard output is the stream of a guest, or nothing.
    fn start(command: &WorkerCommand, stream: Stdio) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut child = Command::new(&command.program)
            .args(&command.arguments)
            .stdin(inherited(theirs)?)
            .stdout(stream)
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let (replies, requests) = ours.into_split();
        let missing = || io::Error::other("a pipe to the worker is missing");
        Ok(Self {
            group: child.id().and_then(|id| Pid::from_raw(id.cast_signed())),
            requests: Some(requests),
            replies: Lines::new(replies, LINE_LIMIT),
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
        for line in &log.lines {
            tracing::debug!(call = name, "{line}");
        }
        match outcome {
            Ok(outcome) => Ok(Answer { outcome, log: log.detail(), rounds: log.rounds }),
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

/// The log of one call.
#[derive(Debug, Default)]
struct Log {
    /// Its last lines.
    lines: VecDeque<String>,
    rounds: Rounds,
}

impl Log {
    fn push(&mut self, line: &[u8]) {
        if self.rounds.take(line, Instant::now()) {
            return;
        }
        if self.lines.len() == LOG_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(sanitize(line, LOG_LINE_BYTES));
    }

    /// The errors, or all lines if there are none, cut at the end: libxl tells the cause first, and then each layer
    /// above it says that it failed.
    fn detail(&self) -> String {
        let is_error = |line: &&String| line.contains("rror");
        let mut lines: Vec<&str> = self.lines.iter().filter(is_error).map(String::as_str).collect();
        if lines.is_empty() {
            lines = self.lines.iter().map(String::as_str).collect();
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
mod tests;
