//! Runs LVM's commands: an argument vector, no shell, a fixed environment, and a time limit that ends the process.
//!
//! The limit is kept twice: here, and by `timeout` (coreutils), which also ends a command whose agent was killed. So a
//! command never outlives the time that its lock gave it, unless the kernel keeps it: one that waits for a disk that neither
//! answers nor fails goes when the disk does. Of those there are never more than a few.

use crate::storage::StorageError;
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use std::{
    io,
    path::Path,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};

/// What is read of a command's output at most, in bytes: a report on some ten thousand logical volumes.
const MOST_OUTPUT: u64 = 16 << 20;
/// What is shown of a command's complaint, in characters.
const MOST_COMPLAINT: usize = 400;
/// How long a killed process may take to go.
const GOING: Duration = Duration::from_secs(2);

/// Where `PATH` points for every command.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// Where udev listens while it runs.
const UDEV: &str = "/run/udev/control";

/// For a host without udev: LVM makes device nodes itself, and asks nobody for the list of devices.
const WITHOUT_UDEV: &str = "activation{udev_sync=0 udev_rules=0} devices{obtain_device_list_from_udev=0} ";
/// Hints about which devices belong to LVM are this host's own, and another host may have changed that. An archive of the
/// metadata before each change would only grow, and a full disk of this host would keep the group from being changed.
const SHARED: &str = "devices{hints=\"none\"} backup{archive=0} ";

/// Runs `lvm` with these arguments, whose first is the command's name. `config` is added to LVM's configuration.
pub(super) async fn lvm(
    call: &'static str,
    arguments: &[&str],
    config: &str,
    limit: Duration,
) -> Result<Vec<u8>, StorageError> {
    let Some((name, rest)) = arguments.split_first() else {
        return Err(failed(call, io::Error::other("no command")));
    };
    let udev = if Path::new(UDEV).exists() { "" } else { WITHOUT_UDEV };
    let config = format!("{udev}{SHARED}{config}");
    let words = [&["lvm", name, "--config", &config], rest].concat();
    run(call, &words, limit).await
}

/// Runs `dmsetup` with these arguments.
pub(super) async fn dmsetup(
    call: &'static str,
    arguments: &[&str],
    limit: Duration,
) -> Result<(), StorageError> {
    run(call, &[&["dmsetup"], arguments].concat(), limit).await.map(drop)
}

async fn run(call: &'static str, words: &[&str], limit: Duration) -> Result<Vec<u8>, StorageError> {
    LINGERING.allow(call)?;
    let seconds = limit.as_secs().max(1).to_string();
    let mut command = Command::new("timeout");
    command
        .args(["-s", "KILL", &seconds])
        .args(words)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if !Path::new(UDEV).exists() {
        command.env("DM_DISABLE_UDEV", "1");
    }
    let mut child = command.spawn().map_err(|error| failed(call, error))?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let end = KillGroup(group);
    let finished = timeout(limit, finish(&mut child)).await;
    let (code, output, complaint) = match finished {
        Ok(finished) => finished.map_err(|error| failed(call, error))?,
        Err(_elapsed) => {
            drop(end);
            // A process inside the kernel goes when the kernel lets it; there is no more to do than to wait.
            let _ = timeout(GOING, child.wait()).await;
            LINGERING.note(group);
            return Err(StorageError::TimedOut { call, limit });
        }
    };
    end.defuse();
    match code {
        Some(0) => Ok(output),
        // `timeout` ended it, or somebody else did.
        None | Some(124 | 137) => Err(StorageError::TimedOut { call, limit }),
        Some(code) => {
            let lines = complaint.lines().map(str::trim).collect::<Vec<_>>().join("; ");
            let reason: String = lines.chars().take(MOST_COMPLAINT).collect();
            Err(failed(call, io::Error::other(format!("exit code {code}: {reason}"))))
        }
    }
}

/// Commands that were killed and may not be gone.
#[derive(Debug)]
struct Lingering(Mutex<Vec<Pid>>);

/// How many commands the kernel may keep before no further one is begun.
const MOST_LINGERING: usize = 8;

/// Every command looks at all disks, so whatever keeps one keeps all.
static LINGERING: Lingering = Lingering(Mutex::new(Vec::new()));

impl Lingering {
    /// Remembers the process group of a command that was killed.
    fn note(&self, group: Option<Pid>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(group);
    }

    /// Refuses another command while too many are not gone.
    fn allow(&self, call: &'static str) -> Result<(), StorageError> {
        let mut groups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| test_kill_process_group(*group).is_ok());
        if groups.len() < MOST_LINGERING {
            return Ok(());
        }
        let reason =
            format!("{MOST_LINGERING} commands before wait for a disk that neither answers nor fails");
        Err(failed(call, io::Error::other(reason)))
    }
}

/// Kills a process group when it is dropped, so that a caller who loses interest leaves no command behind.
struct KillGroup(Option<Pid>);

impl KillGroup {
    fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for KillGroup {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // That it is gone already is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

async fn finish(child: &mut Child) -> io::Result<(Option<i32>, Vec<u8>, String)> {
    let (output, complaint) = (child.stdout.take(), child.stderr.take());
    let (output, complaint, status) = tokio::join!(read(output), read(complaint), child.wait());
    Ok((status?.code(), output?, String::from_utf8_lossy(&complaint?).into_owned()))
}

async fn read(stream: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(MOST_OUTPUT).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

fn failed(call: &'static str, source: io::Error) -> StorageError {
    StorageError::Io { call, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn arguments_arrive_as_they_are_and_the_environment_is_ours() {
        let output = run("test", &["printf", "%s|", "a b", "$HOME", ";"], LIMIT).await.unwrap();
        assert_eq!(output, b"a b|$HOME|;|");
        let output = String::from_utf8(run("test", &["env"], LIMIT).await.unwrap()).unwrap();
        assert!(output.contains("LC_ALL=C\n") && !output.contains("HOME="), "{output}");
    }

    #[tokio::test]
    async fn a_failure_tells_exit_code_and_complaint() {
        let failed =
            run("test", &["sh", "-c", "echo no such group >&2; echo ' nor another' >&2; exit 5"], LIMIT)
                .await;
        let message = failed.unwrap_err().to_string();
        assert!(message.ends_with("exit code 5: no such group; nor another"), "{message}");
    }

    #[tokio::test]
    async fn no_more_commands_are_begun_while_too_many_do_not_go() {
        let lingering = Lingering(Mutex::new(Vec::new()));
        let mut hanging =
            Command::new("sleep").arg("600").process_group(0).kill_on_drop(true).spawn().unwrap();
        let group = Pid::from_raw(hanging.id().unwrap().try_into().unwrap());
        (1..MOST_LINGERING).for_each(|_| lingering.note(group));
        lingering.allow("test").unwrap();
        lingering.note(group);
        let refused = lingering.allow("test").unwrap_err().to_string();
        assert!(refused.contains("8 commands before wait for a disk"), "{refused}");
        hanging.kill().await.unwrap();
        lingering.allow("test").unwrap();
    }

    #[tokio::test]
    async fn a_command_beyond_its_limit_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pid");
        let script = format!("sleep 600 & echo $! >{}; wait", file.display());
        let began = Instant::now();
        let result = run("test", &["sh", "-c", &script], Duration::from_secs(1)).await;
        assert!(matches!(result, Err(StorageError::TimedOut { call: "test", .. })), "{result:?}");
        assert!(began.elapsed() < LIMIT);
        let pid: u32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
        let state = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").map(|(_, fields)| fields.chars().next())
        };
        while !matches!(state(), None | Some(Some('Z'))) {
            assert!(began.elapsed() < LIMIT, "the child lives on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
