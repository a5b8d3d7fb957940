//! QEMU's machine protocol: one JSON object per line on a Unix socket.
//!
//! Reference: docs/interop/qmp-spec.txt of QEMU. A monitor serves one client at a time, so each command has a connection
//! of its own and others wait for their turn.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Runs one command on the monitor socket `name` in `folder` and returns what it answers.
///
/// # Errors
/// When QEMU does not answer in time, or refuses the command.
pub async fn command(folder: &Path, name: &str, command: &str, arguments: Value) -> Result<Value> {
    let talk = async {
        // Paths of sockets are limited to about 100 bytes; through the folder's descriptor they are always short.
        let opened = File::open(folder).with_context(|| format!("{} is gone", folder.display()))?;
        let path = format!("/proc/self/fd/{}/{name}", opened.as_raw_fd());
        let stream = UnixStream::connect(path).await.context("QEMU's monitor does not answer")?;
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        lines.next_line().await?.context("QEMU's monitor sent no greeting")?;
        let negotiate = json!({"execute": "qmp_capabilities"});
        writer.write_all(format!("{negotiate}\n").as_bytes()).await?;
        answer(&mut lines).await?;
        let request = json!({"execute": command, "arguments": arguments});
        writer.write_all(format!("{request}\n").as_bytes()).await?;
        answer(&mut lines).await
    };
    let outcome = tokio::time::timeout(LIMIT, talk).await;
    outcome
        .with_context(|| format!("QEMU did not answer {command} within {LIMIT:?}"))?
        .with_context(|| format!("QEMU command {command} failed"))
}

/// Runs a command of the human monitor, for what the machine protocol lacks, and returns its text.
///
/// # Errors
/// As [`command`]; a failure of the human command itself is in its text.
pub async fn human(folder: &Path, name: &str, line: &str) -> Result<String> {
    let value = command(folder, name, "human-monitor-command", json!({"command-line": line})).await?;
    value.as_str().map(str::to_owned).with_context(|| format!("{line} answered {value}"))
}

/// The next answer; events in between are skipped.
async fn answer(lines: &mut Lines<BufReader<OwnedReadHalf>>) -> Result<Value> {
    loop {
        let line = lines.next_line().await?.context("QEMU closed its monitor")?;
        let mut message: Value = serde_json::from_str(&line)?;
        if let Some(error) = message.get("error") {
            bail!("{error}");
        }
        if let Some(value) = message.get_mut("return") {
            return Ok(value.take());
        }
    }
}
