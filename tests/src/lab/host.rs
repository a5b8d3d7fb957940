//! One host of the lab: power, links, commands in its dom0, and the node agent under supervision.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::json;

use super::control::{Control, Output, quoted};
use super::machine;
use super::pool::Shared;
use super::process::ProcessRecord;
use super::qmp;
use super::state::Machine;

/// How long a host may take to boot. It takes 20 seconds on an idle machine of two cores, and more beside a build.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
/// What dom0 prints on its console when it is ready, see `files/dom0-boot.sh`.
const READY: &str = "KUBEXEN-LAB READY";
/// Time limit of the small commands that these methods run themselves.
const SHORT: Duration = Duration::from_secs(60);
/// Time limit of file transfers.
const TRANSFER: Duration = Duration::from_secs(300);
/// How much of a console is shown when something fails.
const TAIL: u64 = 3000;

/// A network cable of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// To this machine: API server, pool etcd, and the lab's own commands.
    Uplink,
    /// To the other hosts.
    Segment,
}

/// A host of a lab; copies are handles of the same host. It keeps an owned lab from being removed while it lives.
#[derive(Debug, Clone)]
pub struct LabHost {
    number: usize,
    shared: Arc<Shared>,
}

impl LabHost {
    pub(super) fn new(number: usize, shared: Arc<Shared>) -> Self {
        Self { number, shared }
    }

    /// `xen-1` and so on, which is also the host name in dom0.
    pub fn name(&self) -> String {
        machine::name(self.number)
    }

    /// The host's address on the segment between the hosts.
    pub fn segment_address(&self) -> String {
        format!("10.77.0.{}", self.number)
    }

    /// The host's address on the VLAN between the hosts.
    pub fn migration_address(&self) -> String {
        format!("10.99.0.{}", self.number)
    }

    /// The host's number N in its addresses 10.77.0.N, 10.88.0.N and 10.99.0.N.
    pub fn number(&self) -> usize {
        self.number
    }

    /// The file that receives Xen's and dom0's console.
    pub fn console_log(&self) -> PathBuf {
        self.folder().join("console.log")
    }

    /// The file that receives the supervised agent's output.
    pub fn agent_log(&self) -> PathBuf {
        self.folder().join("agent.log")
    }

    /// Whether the host is switched on. A host that Xen's watchdog has reset is off.
    pub fn is_on(&self) -> bool {
        self.machine().is_some_and(|machine| machine.process.is_alive())
    }

    /// Switches the host on and returns when its dom0 is ready.
    ///
    /// # Errors
    /// When it is on already, or does not get ready in time; with the end of its console.
    pub async fn power_on(&self) -> Result<()> {
        if self.is_on() {
            bail!("{} is on already", self.name());
        }
        let began = Instant::now();
        eprintln!("{}: booting ...", self.name());
        let console_start = std::fs::metadata(self.console_log()).map_or(0, |metadata| metadata.len());
        let state = self.shared.state().clone();
        let process = machine::start(&self.shared.folder, &state, self.number)?;
        self.set_machine(Some(Machine { process, control_port: 0 }))?;
        self.until(process, "its monitor", || async {
            self.monitor("query-status", json!({})).await.ok().map(drop)
        })
        .await?;
        let control_port = self.forward(machine::CONTROL_PORT).await?;
        self.set_machine(Some(Machine { process, control_port }))?;
        self.until(process, "dom0", || async { self.console_says(READY, console_start).then_some(()) })
            .await?;
        self.until(process, "its control server", || async {
            self.exec_within("true", Duration::from_secs(5)).await.ok().map(drop)
        })
        .await?;
        eprintln!("{}: booted in {} s", self.name(), began.elapsed().as_secs());
        Ok(())
    }

    /// Cuts the host's power.
    ///
    /// # Errors
    /// When its process does not end.
    pub async fn power_off(&self) -> Result<()> {
        if let Some(machine) = self.machine() {
            machine.process.signal(Signal::KILL)?;
            machine.process.wait_gone(Duration::from_secs(30)).await?;
        }
        self.set_machine(None)
    }

    /// Plugs a cable in or pulls it. Without the uplink the other methods that reach into dom0 do not work.
    ///
    /// # Errors
    /// When the host is off.
    pub async fn set_link(&self, link: Link, up: bool) -> Result<()> {
        let name = match link {
            Link::Uplink => machine::UPLINK,
            Link::Segment => machine::SEGMENT,
        };
        self.monitor("set_link", json!({"name": name, "up": up})).await.map(drop)
    }

    /// Freezes the whole host, hypervisor included, or lets it go on: a host that hangs and comes back.
    ///
    /// # Errors
    /// When the host is off.
    pub async fn set_frozen(&self, frozen: bool) -> Result<()> {
        self.monitor(if frozen { "stop" } else { "cont" }, json!({})).await.map(drop)
    }

    /// Opens a free port on this machine's loopback that leads to a TCP port of dom0, until the host is switched off.
    ///
    /// # Errors
    /// When the host is off.
    pub async fn forward(&self, dom0_port: u16) -> Result<u16> {
        let uplink = machine::UPLINK;
        let monitor = self.monitor_socket();
        // Port 0 lets the kernel pick one that is free, which no other program can take in between.
        let refusal = qmp::human(
            &self.shared.folder,
            &monitor,
            &format!("hostfwd_add {uplink} tcp:127.0.0.1:0-:{dom0_port}"),
        )
        .await?;
        let table = qmp::human(&self.shared.folder, &monitor, "info usernet").await?;
        forwarded_port(&table, dom0_port).with_context(|| {
            format!("QEMU does not forward to port {dom0_port} of {}: {refusal}{table}", self.name())
        })
    }

    /// Runs shell text with bash in dom0, for at most a minute, whatever its exit code.
    ///
    /// # Errors
    /// When the host does not answer, or the command takes longer.
    pub async fn exec(&self, command: &str) -> Result<Output> {
        self.exec_within(command, SHORT).await
    }

    /// [`LabHost::exec`] with a time limit of the caller's.
    ///
    /// # Errors
    /// When the host does not answer, or the command takes longer than `limit`; it is killed then.
    pub async fn exec_within(&self, command: &str, limit: Duration) -> Result<Output> {
        self.exec_with_input(command, b"", limit).await
    }

    /// [`LabHost::exec_within`] with something on the command's standard input.
    ///
    /// # Errors
    /// As there.
    pub async fn exec_with_input(&self, command: &str, input: &[u8], limit: Duration) -> Result<Output> {
        let outcome = self.control()?.run(command, input, limit).await;
        outcome.with_context(|| {
            if self.is_on() {
                format!("on {}", self.name())
            } else {
                format!("{} went off: see its console in {}", self.name(), self.console_log().display())
            }
        })
    }

    /// Runs a command that must succeed, and returns its standard output as text.
    ///
    /// # Errors
    /// As [`LabHost::exec`], and with the command's output when it fails.
    pub async fn check(&self, command: &str) -> Result<String> {
        let output = self.exec(command).await?;
        if output.code != 0 {
            let errors = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {command}: exit code {}\n{}{errors}", self.name(), output.code, output.text());
        }
        Ok(output.text())
    }

    /// Writes a file in dom0, whole or not at all, with the folders that it stands in. `mode` is as in chmod.
    ///
    /// # Errors
    /// When the host does not answer or the file cannot be written.
    pub async fn push(&self, content: &[u8], path: &str, mode: u32) -> Result<()> {
        let path = quoted(path);
        let command = format!(
            "mkdir -p \"$(dirname {path})\" && cat >{path}.partial && chmod {mode:o} {path}.partial && mv {path}.partial {path}"
        );
        let output = self.exec_with_input(&command, content, TRANSFER).await?;
        if output.code != 0 {
            bail!(
                "{}: cannot write {path}: {}",
                self.name(),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(())
    }

    /// Reads a file of dom0. It passes through dom0's memory: not meant for disk images.
    ///
    /// # Errors
    /// When the host does not answer or the file cannot be read.
    pub async fn pull(&self, path: &str) -> Result<Vec<u8>> {
        let output = self.exec_within(&format!("cat {}", quoted(path)), TRANSFER).await?;
        if output.code != 0 {
            bail!(
                "{}: cannot read {path}: {}",
                self.name(),
                String::from_utf8_lossy(&output.stderr).trim_end()
            );
        }
        Ok(output.stdout)
    }

    /// Starts this command line as the node agent and keeps it running: one that ends is started again after a second. Its
    /// output goes to [`LabHost::agent_log`].
    ///
    /// # Errors
    /// When the host does not answer.
    pub async fn start_agent(&self, command: &[&str]) -> Result<()> {
        let words: Vec<u8> = command.iter().flat_map(|word| word.bytes().chain([0])).collect();
        self.push(&words, "/run/kubexen-agent/command", 0o600).await?;
        self.check("cd /run/kubexen-agent && touch wanted && echo >wake").await.map(drop)
    }

    /// Sends a signal to the agent, which is started again if it ends of it.
    ///
    /// # Errors
    /// When the host does not answer, or no agent runs.
    pub async fn signal_agent(&self, signal: Signal) -> Result<()> {
        self.check(&format!("kill -{} $(cat /run/kubexen-agent/pid)", signal.as_raw())).await.map(drop)
    }

    /// Ends the agent with this signal and does not start it again; returns when it is gone. That none runs is no error.
    ///
    /// # Errors
    /// When the host does not answer, or the agent does not end within half a minute.
    pub async fn stop_agent(&self, signal: Signal) -> Result<()> {
        let stop = format!(
            "cd /run/kubexen-agent; rm -f wanted; [ -e pid ] || exit 0; kill -{} $(cat pid) 2>/dev/null; \
             for _ in $(seq 300); do [ -e pid ] || exit 0; sleep 0.1; done; echo 'the agent does not end'; exit 1",
            signal.as_raw()
        );
        self.check(&stop).await.map(drop)
    }

    fn folder(&self) -> PathBuf {
        self.shared.folder.join(self.name())
    }

    fn machine(&self) -> Option<Machine> {
        self.shared.state().machines[self.number - 1]
    }

    fn set_machine(&self, machine: Option<Machine>) -> Result<()> {
        self.shared.change(|state| state.machines[self.number - 1] = machine)
    }

    fn control(&self) -> Result<Control> {
        let machine = self.machine().with_context(|| format!("{} is off", self.name()))?;
        Ok(Control { port: machine.control_port, token: self.shared.state().token.clone() })
    }

    fn monitor_socket(&self) -> String {
        format!("{}/monitor", self.name())
    }

    async fn monitor(&self, command: &str, arguments: serde_json::Value) -> Result<serde_json::Value> {
        let answer = qmp::command(&self.shared.folder, &self.monitor_socket(), command, arguments).await;
        answer.with_context(|| format!("on {}", self.name()))
    }

    /// Waits for a sign of life while the host's process lives.
    async fn until<F: Future<Output = Option<()>>>(
        &self,
        process: ProcessRecord,
        what: &str,
        sign: impl Fn() -> F,
    ) -> Result<()> {
        let deadline = Instant::now() + BOOT_LIMIT;
        while sign().await.is_none() {
            let died = !process.is_alive();
            if died || Instant::now() > deadline {
                let how = if died { "QEMU ended".to_owned() } else { format!("{BOOT_LIMIT:?} have passed") };
                let console = tail(&self.console_log());
                let qemu = tail(&self.folder().join("qemu.log"));
                bail!(
                    "{}: {how} before {what} was ready\nQEMU said:\n{qemu}\nits console ended:\n{console}",
                    self.name()
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Whether the console has said this since it was `start` bytes long.
    fn console_says(&self, text: &str, start: u64) -> bool {
        read_from(&self.console_log(), start)
            .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(text))
    }
}

/// What a file holds from a position on.
pub(super) fn read_from(path: &Path, start: u64) -> std::io::Result<Vec<u8>> {
    let mut file = std::fs::File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The end of a log, for messages.
fn tail(path: &Path) -> String {
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let bytes = read_from(path, length.saturating_sub(TAIL)).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Finds the port of this machine in QEMU's table of forwarded connections, whose lines are
/// `TCP[HOST_FORWARD] fd 127.0.0.1 PORT 10.0.2.15 DOM0-PORT receive-queue send-queue`.
fn forwarded_port(table: &str, dom0_port: u16) -> Option<u16> {
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let [protocol, _, "127.0.0.1", port, _, target, ..] = fields[..] else { return None };
        let wanted = protocol == "TCP[HOST_FORWARD]" && target == dom0_port.to_string();
        if wanted { port.parse().ok() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forwarded_port_is_read_from_the_table() {
        let table = "Hub -1 (uplink):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n\
                     TCP[ESTABLISHED]   17       127.0.0.1 50000       10.0.2.15  7000     0     0\r\n\
                     TCP[HOST_FORWARD]  16       127.0.0.1 40123       10.0.2.15  7000     0     0\r\n";
        assert_eq!(forwarded_port(table, 7000), Some(40123));
        assert_eq!(forwarded_port(table, 7001), None);
    }
}
