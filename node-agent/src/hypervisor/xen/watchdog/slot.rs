//! Which of Xen's two watchdog timers is the agent's, whatever ended in between.
//!
//! Xen tells a timer's number once, to who takes it, and whoever is to move or stop it has to know that. So the number is in a
//! file that outlives the agent:
//!
//! ```text
//!   no file ─▶ file: no number ─▶ Xen gives a timer ─▶ file: its number ─▶ moved, and moved ...
//!      ▲                                                                      │
//!      └────────────────────────────── Xen stops it ◀─────────────────────────┘
//! ```
//!
//! An agent that finds a file without a number may have left a timer that nobody knows, which would have the host reset for
//! nothing. It stops that. Xen gives the timer with the lowest number that is free and nobody else's was running, so it is the
//! first if somebody else has one by now; if nobody has, whatever runs is the agent's. A timer that does not run is told from one
//! that does by Xen's refusal. Only an agent that takes another timer since somebody has stopped its own has promised something by
//! then: what the next one goes on with says so, and it sets a timer again as soon as the pool's store answers.
//!
//! That there is a timer is shown by taking one and giving it back, on hosts too that guard nobody. That one is to run for longer
//! than any boot lasts, so that an agent that ends in between has no host reset.

use crate::fence::WatchdogError;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};
use tracing::warn;

/// The numbers that Xen has.
const NUMBERS: [u32; 2] = [1, 2];
/// The number by which a timer is asked for that is free.
const ANY: u32 = 0;
/// The time that stops a timer, and makes it free.
const STOP: u32 = 0;
/// For how many seconds the timer is to run by which it is shown that there is one: 68 years, which no signed number of seconds
/// anywhere is too short for. It is stopped at once, or by the next agent.
const TRIAL: u32 = i32::MAX.unsigned_abs();

/// Xen's timers.
pub trait Timers {
    /// `SCHEDOP_watchdog` of `xen/sched.h`: has a timer reset the host in so many seconds; with [`ANY`] one that is free, whose
    /// number is the answer; for no seconds, stops it and makes it free.
    ///
    /// # Errors
    /// `EINVAL` for a number that nobody has taken, `ENOSPC` when none is free; then nothing has changed.
    fn set(&mut self, timer: u32, seconds: u32) -> io::Result<u32>;
}

/// What the agent has of Xen's timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holding {
    Nothing,
    /// Perhaps one, of which the number is not known.
    InDoubt,
    Timer(u32),
}

/// The file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    /// The boot that it is about: timers end with it.
    boot_id: String,
    /// The timer's number, once it is known.
    timer: Option<u32>,
}

/// The agent's timer, or its absence.
#[derive(Debug)]
pub struct Slot<T> {
    timers: T,
    file: PathBuf,
    boot_id: String,
    holding: Holding,
    /// Whether nobody else was seen that uses timers.
    alone: bool,
}

impl<T: Timers> Slot<T> {
    /// What an agent of this boot has left. `alone` says that nobody else is known to use timers.
    pub fn load(timers: T, file: PathBuf, boot_id: String, alone: bool) -> Self {
        let holding = match fs::read(&file) {
            Ok(text) => match serde_json::from_slice::<Record>(&text) {
                Ok(record) if record.boot_id != boot_id => Holding::Nothing,
                Ok(Record { timer: Some(timer), .. }) => Holding::Timer(timer),
                Ok(Record { timer: None, .. }) | Err(_) => Holding::InDoubt,
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Holding::Nothing,
            Err(_) => Holding::InDoubt,
        };
        Self { timers, file, boot_id, holding, alone }
    }

    /// Stops what an agent may have left that did not come to write its number down.
    ///
    /// # Errors
    /// When Xen refuses for another reason than that there is nothing to stop.
    pub fn settle(&mut self) -> Result<(), WatchdogError> {
        if self.holding != Holding::InDoubt {
            return Ok(());
        }
        for number in NUMBERS.into_iter().take(if self.alone { NUMBERS.len() } else { 1 }) {
            match self.timers.set(number, STOP) {
                Ok(_) => warn!(number, "a timer is stopped that an agent has left"),
                Err(error) if is_unknown(&error) => {}
                Err(error) => return Err(refused(&error)),
            }
        }
        self.forget();
        Ok(())
    }

    /// Shows that a timer can be had at this moment, unless one runs, which is left as it is.
    ///
    /// # Errors
    /// [`WatchdogError`], with what to do if it can be known.
    pub fn prove(&mut self) -> Result<(), WatchdogError> {
        self.settle()?;
        if self.holding == Holding::Nothing {
            self.arm(TRIAL)?;
            self.release()?;
        }
        Ok(())
    }

    /// Has the host reset at the last whole second before `deadline`, as counted from now, and in one second at the earliest.
    ///
    /// # Errors
    /// [`WatchdogError`]; then the timer is as it was, or set to a moment before the deadline.
    pub fn set(&mut self, deadline: Instant, now: impl Fn() -> Instant) -> Result<(), WatchdogError> {
        let remaining = || whole_seconds(deadline.saturating_duration_since(now()));
        loop {
            let seconds = remaining();
            self.arm(seconds)?;
            // Xen counts from some moment between the two looks at the clock.
            if remaining() >= seconds {
                return Ok(());
            }
        }
    }

    /// Stops the timer, if there is one.
    ///
    /// # Errors
    /// [`WatchdogError`]; then it is as it was.
    pub fn release(&mut self) -> Result<(), WatchdogError> {
        self.settle()?;
        if let Holding::Timer(timer) = self.holding {
            match self.timers.set(timer, STOP) {
                Ok(_) => {}
                Err(error) if is_unknown(&error) => {
                    warn!(timer, "somebody else had stopped the agent's timer")
                }
                Err(error) => return Err(refused(&error)),
            }
            self.forget();
        }
        Ok(())
    }

    fn arm(&mut self, seconds: u32) -> Result<(), WatchdogError> {
        self.settle()?;
        if let Holding::Timer(timer) = self.holding {
            match self.timers.set(timer, seconds) {
                Ok(_) => return Ok(()),
                Err(error) if is_unknown(&error) => {
                    warn!(timer, "somebody else has stopped the agent's timer")
                }
                Err(error) => return Err(refused(&error)),
            }
        }
        self.take(seconds)
    }

    fn take(&mut self, seconds: u32) -> Result<(), WatchdogError> {
        self.write(None)?;
        match self.timers.set(ANY, seconds) {
            Ok(timer) => {
                self.holding = Holding::Timer(timer);
                self.write(Some(timer)).or_else(|error| self.release().and(Err(error)))
            }
            Err(error) => {
                self.forget();
                Err(refused(&error))
            }
        }
    }

    /// Writes the file whole or not at all.
    fn write(&self, timer: Option<u32>) -> Result<(), WatchdogError> {
        let record = Record { boot_id: self.boot_id.clone(), timer };
        let text = serde_json::to_vec(&record).map_err(io::Error::from);
        let written = text.and_then(|text| replace(&self.file, &text));
        written.map_err(|error| {
            let file = self.file.display();
            WatchdogError(format!("which timer of Xen is its own cannot be written to {file}: {error}"))
        })
    }

    /// The agent has no timer.
    fn forget(&mut self) {
        self.holding = Holding::Nothing;
        match fs::remove_file(&self.file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // It does no harm: the number that it may hold is one that Xen does not know.
            Err(error) => warn!(%error, file = %self.file.display(), "cannot be removed"),
        }
    }
}

/// Writes a file whole or not at all, and its folder if there is none. Neither is to outlive the boot.
pub fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let partial = file.with_extension("partial");
    fs::create_dir_all(file.parent().unwrap_or(file))?;
    fs::write(&partial, text)?;
    fs::rename(&partial, file)
}

/// As Xen counts; never none, which would stop the timer.
fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).max(1)
}

/// Whether Xen knows no timer of this number.
fn is_unknown(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::INVAL)
}

fn refused(error: &io::Error) -> WatchdogError {
    WatchdogError(if Errno::from_io_error(error) == Some(Errno::NOSPC) {
        "both timers of Xen are taken, by nobody who is known: see what in dom0 uses Xen's watchdog, and stop it".to_owned()
    } else {
        format!("Xen refuses: {error}")
    })
}

#[cfg(test)]
mod tests;
