//! Xen's watchdog: one of the two timers that Xen keeps for this dom0, which resets the host when it has run out.
//!
//! A thread that does nothing else sets it: it opens its connection once, and to move the deadline it allocates nothing, reads
//! no file and asks nobody but Xen. It has a real-time priority, and the agent's memory is not swapped out. Where the system
//! refuses either, a warning says so and the agent goes on. The deadline is a moment, from which the time that is left is
//! counted right before and right after the call to Xen, and the call is made again where less was left afterwards: so a thread
//! that comes late can have the host reset for nothing, and too late only if it is held up once more before it can put that right.
//!
//! Pages are locked as they are touched, not all that is mapped, so that a small dom0 does not pay for stacks that nobody uses.
//! Processes that the agent starts have their memory as they like.
//!
//! What the next agent has to know is in a file beside the record of the timer. That one is written by whoever asks, and not by
//! this thread.

pub(super) mod slot;
mod users;

use super::{
    ffi::watchdog::{XenTimers, set_real_time},
    host::BOOT_ID,
};
use crate::fence::{Checkpoint, Watchdog, WatchdogError};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    time::{ClockId, clock_gettime},
};
use slot::Slot;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use tracing::{info, warn};

/// Where the agent keeps which timer is its own. The folder ends with the boot, as the timer does.
const RECORD: &str = "/run/kubexen-node-agent/watchdog.json";

/// Where it keeps what the next agent has to know, in the same folder.
const CHECKPOINT: &str = "fence.json";

/// Xen's watchdog. Dropping it leaves a timer that runs running, for the next agent.
#[derive(Debug)]
pub struct XenWatchdog {
    desk: Arc<Desk>,
    /// One asks at a time.
    turn: Mutex<()>,
    thread: Option<JoinHandle<()>>,
    checkpoint: PathBuf,
}

/// Where a request and its answer are handed over. Nothing on it allocates while all goes well.
#[derive(Debug, Default)]
struct Desk {
    papers: Mutex<Papers>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Papers {
    request: Option<Request>,
    answer: Option<Result<(), WatchdogError>>,
    /// Nobody asks any more, or nobody answers.
    closed: bool,
}

#[derive(Clone, Copy, Debug)]
enum Request {
    Prove,
    Set(Instant),
    Release,
}

impl XenWatchdog {
    /// Starts its thread. Xen itself is reached by that, so this also succeeds where there is none.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start() -> io::Result<Self> {
        Self::start_with(PathBuf::from(RECORD))
    }

    /// [`XenWatchdog::start`] with the record of its timer in this file.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(record: PathBuf) -> io::Result<Self> {
        if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        {
            warn!(%error, "the agent's memory may be swapped out: allow it to lock memory (CAP_IPC_LOCK)");
        }
        let checkpoint = record.with_file_name(CHECKPOINT);
        let desk = Arc::new(Desk::default());
        let theirs = Arc::clone(&desk);
        let thread =
            thread::Builder::new().name("watchdog".to_owned()).spawn(move || serve(&theirs, &record))?;
        Ok(Self { desk, turn: Mutex::default(), thread: Some(thread), checkpoint })
    }

    fn ask(&self, request: Request) -> Result<(), WatchdogError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.desk.lock().request = Some(request);
        self.desk.moved.notify_all();
        let mut papers = self.desk.wait(|papers| papers.answer.is_none() && !papers.closed);
        papers.answer.take().unwrap_or_else(|| {
            Err(WatchdogError("the thread that sets Xen's has ended: restart the agent".to_owned()))
        })
    }
}

impl Watchdog for XenWatchdog {
    fn check(&self) -> Result<(), WatchdogError> {
        users::check(Path::new("/"))?;
        self.ask(Request::Prove)
    }

    fn set(&self, deadline: tokio::time::Instant) -> Result<(), WatchdogError> {
        self.ask(Request::Set(deadline.into_std()))
    }

    fn disarm(&self) -> Result<(), WatchdogError> {
        self.ask(Request::Release)
    }

    fn uptime(&self) -> Duration {
        let uptime = clock_gettime(ClockId::Boottime);
        let (seconds, rest) = (u64::try_from(uptime.tv_sec), u32::try_from(uptime.tv_nsec));
        Duration::new(seconds.unwrap_or_default(), rest.unwrap_or_default())
    }

    fn keep(&self, checkpoint: &Checkpoint) -> Result<(), WatchdogError> {
        let text = serde_json::to_vec(checkpoint).map_err(io::Error::from);
        text.and_then(|text| slot::replace(&self.checkpoint, &text)).map_err(|error| {
            let file = self.checkpoint.display();
            WatchdogError(format!("what the next agent has to know cannot be written to {file}: {error}"))
        })
    }

    fn kept(&self) -> Option<Checkpoint> {
        let read = fs::read(&self.checkpoint).and_then(|text| Ok(serde_json::from_slice(&text)?));
        match read {
            Ok(checkpoint) => Some(checkpoint),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                warn!(%error, file = %self.checkpoint.display(), "what the agent before has left cannot be read");
                None
            }
        }
    }
}

impl Drop for XenWatchdog {
    fn drop(&mut self) {
        self.desk.close();
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Papers> {
        // No section under this lock can panic half-way through a change, so what is poisoned is whole.
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for as long as this is so.
    fn wait(&self, condition: impl Fn(&Papers) -> bool) -> MutexGuard<'_, Papers> {
        let waited = self.moved.wait_while(self.lock(), |papers| condition(papers));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.lock().closed = true;
        self.moved.notify_all();
    }

    /// The next request; none when nobody asks any more.
    fn next(&self) -> Option<Request> {
        self.wait(|papers| papers.request.is_none() && !papers.closed).request.take()
    }

    fn answer(&self, answer: Result<(), WatchdogError>) {
        self.lock().answer = Some(answer);
        self.moved.notify_all();
    }
}

/// Closes the desk when its thread ends, however it does.
struct Closing<'desk>(&'desk Desk);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the thread does.
fn serve(desk: &Desk, record: &Path) {
    let _closing = Closing(desk);
    match set_real_time() {
        Ok(()) => info!("a thread with real-time priority sets Xen's watchdog"),
        Err(error) => warn!(
            %error,
            "the thread that sets Xen's watchdog has no real-time priority: allow it (CAP_SYS_NICE), or a busy host may be \
             reset for nothing"
        ),
    }
    let mut slot = open(record);
    while let Some(request) = desk.next() {
        if slot.is_err() {
            slot = open(record);
        }
        desk.answer(match &mut slot {
            Ok(slot) => match request {
                Request::Prove => slot.prove(),
                Request::Set(deadline) => slot.set(deadline, Instant::now),
                Request::Release => slot.release(),
            },
            Err(error) => Err(error.clone()),
        });
    }
}

fn open(record: &Path) -> Result<Slot<XenTimers>, WatchdogError> {
    let timers = XenTimers::open().map_err(|error| WatchdogError(error.to_string()))?;
    let boot_id = fs::read_to_string(BOOT_ID);
    let boot_id = boot_id.map_err(|error| WatchdogError(format!("{BOOT_ID} cannot be read: {error}")))?;
    let alone = users::others(Path::new("/")).is_empty();
    let mut slot = Slot::load(timers, record.to_owned(), boot_id.trim().to_owned(), alone);
    // What an agent may have left must be stopped even if the pool's store, which says when to ask for it, is away.
    slot.settle()?;
    Ok(slot)
}
