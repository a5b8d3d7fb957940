//! Processes known by number across commands of the lab: one `lab up` starts them, a later `lab down` ends them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A process that cannot be mistaken for a later one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    pid: i32,
    /// In clock ticks since this machine started; field 22 of `/proc/PID/stat`.
    start_time: u64,
}

impl ProcessRecord {
    /// The record of a running process.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: u32) -> Result<Self> {
        let pid = i32::try_from(pid)?;
        let start_time = start_time(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start_time })
    }

    /// Whether it still runs. A process that has ended and was not waited for does not run; one of which some threads are
    /// still giving back its memory and files does.
    pub fn is_alive(&self) -> bool {
        self.open().is_some()
    }

    /// Sends a signal to it, and to no other; that it is gone already is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let Some(descriptor) = self.open() else { return Ok(()) };
        match rustix::process::pidfd_send_signal(descriptor, signal) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot signal process {}", self.pid)),
        }
    }

    /// A descriptor of the process, which keeps its number from meaning another one; `None` when it has ended.
    fn open(&self) -> Option<OwnedFd> {
        let descriptor = rustix::process::pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        if start_time(self.pid) != Some(self.start_time) {
            return None;
        }
        // It becomes readable when the last thread has ended.
        let mut look = [PollFd::new(&descriptor, PollFlags::IN)];
        let ended = rustix::event::poll(&mut look, Some(&Timespec::default())).is_ok_and(|ready| ready > 0);
        if ended { None } else { Some(descriptor) }
    }

    /// Waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after `limit`.
    pub async fn wait_gone(&self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.is_alive() {
            if Instant::now() >= deadline {
                bail!("process {} did not end within {limit:?}", self.pid);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.reap();
        Ok(())
    }

    /// Kills it and waits until it is gone; for destructors, which cannot await.
    pub fn kill_now(&self) {
        if self.signal(Signal::KILL).is_err() {
            return;
        }
        while self.is_alive() {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.reap();
    }

    /// Takes the exit status if the process is a child of ours, so that it does not stay as a zombie.
    fn reap(&self) {
        if let Some(pid) = Pid::from_raw(self.pid)
            && start_time(self.pid) == Some(self.start_time)
        {
            // Not a child of ours, or reaped before: there is nothing to do then.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Start time of a process, see proc(5).
fn start_time(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields behind it are numbered from 3.
    let (_, fields) = text.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_killed_and_is_gone() {
        #[expect(clippy::zombie_processes, reason = "the record reaps it")]
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let record = ProcessRecord::of(child.id()).unwrap();
        assert!(record.is_alive());
        record.signal(Signal::KILL).unwrap();
        record.wait_gone(Duration::from_secs(5)).await.unwrap();
        assert!(!record.is_alive());
        record.signal(Signal::KILL).unwrap();
    }

    #[test]
    fn another_process_with_the_same_number_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let actual = ProcessRecord::of(child.id()).unwrap();
        let earlier = ProcessRecord { start_time: actual.start_time - 1, ..actual };
        assert!(!earlier.is_alive());
        earlier.signal(Signal::KILL).unwrap();
        assert!(actual.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
