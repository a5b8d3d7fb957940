//! `bench migrate`: a guest's moves through the agents against `xl migrate` over the same link, and the agents' stream against
//! plain TCP, between two Xen hosts of the lab.
//!
//! An idle guest is moved to and fro, and one that writes to its memory over and over; each by `xl migrate` first, then through
//! KubeXen. `xl` sends over a plain TCP connection of socat, without encryption. How long a guest stood still is seen from
//! outside, see [`Heartbeat`].

use super::{
    heartbeat::Heartbeat,
    measure::this_profile,
    migrate_report::{GuestMoves, MigrateReport, Sample, Sent},
};
use crate::{
    control_plane::{ControlPlane, Options},
    lab::{Lab, LabHost, LabOptions},
    pool::{self, Pool},
    process::wait_until,
    progress::Step,
};
use anyhow::{Context, Result, bail, ensure};
use futures::TryStreamExt;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    runtime::watcher::{self, Event},
};
use kubexen_crds::{
    MigrationPhase, Network, VirtualMachine, VirtualMachineMigration, VirtualMachineMigrationStatus,
    condition,
};
use serde_json::json;
use std::{
    pin::pin,
    time::{Duration, Instant},
};
use tokio::time::{sleep, timeout};

/// Moves of each guest in each way; the median is the result.
const MOVES: usize = 3;
/// Memory of the guests.
const MEMORY_MIB: u32 = 256;
/// Longest time that anything may take where hosts are emulated.
const LIMIT: Duration = Duration::from_secs(240);
/// How long a guest is looked at after its move: it may still have to reach the network.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Bytes that plain TCP carries in one measurement.
const TCP_BYTES: u32 = 64 << 20;
/// Where socat listens.
const PORT: u16 = 9100;

/// What a guest does.
#[derive(Clone, Copy, Debug)]
enum Guest {
    Idle,
    Busy,
}

impl Guest {
    fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
        }
    }

    fn command_line(self) -> String {
        let does = match self {
            Self::Idle => "",
            Self::Busy => " kubexen.dirty=32",
        };
        format!("console=hvc0 quiet kubexen.address=10.88.0.50/24 kubexen.beat=10.88.0.255{does}")
    }
}

struct Bench {
    client: Client,
    hosts: [LabHost; 2],
    heartbeat: Heartbeat,
}

/// Measures moves.
///
/// # Errors
/// When the lab does not start, or a guest does not start or move in time.
pub async fn run() -> Result<MigrateReport> {
    let step = Step::begin("Starting the control plane, and two Xen hosts in QEMU");
    let heartbeat = Heartbeat::default();
    let control_plane = ControlPlane::start(&Options::default()).await?;
    let mut options = LabOptions::new(format!("bench-{}", std::process::id()));
    options.extras = pool::lab_extras()?;
    options.tap = Some(heartbeat.tap());
    let lab = Lab::up(&options).await?;
    let _pool = Pool::start_on_lab(&control_plane, &lab, this_profile()).await?;
    let client = control_plane.client().await?;
    let network =
        json!({"metadata": {"name": "prod"}, "spec": {"type": "Bridge", "bridge": {"uplink": "lan"}}});
    let networks = Api::<Network>::all(client.clone());
    networks.create(&PostParams::default(), &serde_json::from_value(network)?).await?;
    step.done();
    let bench = Bench { client, hosts: [lab.host("xen-1")?, lab.host("xen-2")?], heartbeat };
    Ok(MigrateReport::of(bench.measure(Guest::Idle).await?, bench.measure(Guest::Busy).await?))
}

impl Bench {
    async fn measure(&self, guest: Guest) -> Result<GuestMoves> {
        let (xl, tcp) = self.by_xl(guest).await?;
        let ours = self.by_agents(guest).await?;
        Ok(GuestMoves::of(&ours, &xl, &tcp))
    }

    /// Moves a guest by `xl migrate`, and measures plain TCP before each move, from the host that the guest is on.
    async fn by_xl(&self, guest: Guest) -> Result<(Vec<Sample>, Vec<f64>)> {
        let [first, second] = &self.hosts;
        let name = guest.name();
        let config = format!(
            "name=\"{name}\"\ntype=\"pvh\"\nkernel=\"/guest/vmlinux\"\nramdisk=\"/guest/initrd\"\nextra=\"{}\"\n\
             memory={MEMORY_MIB}\nvcpus=1\nvif=[\"mac=00:16:3e:00:00:50,bridge=xenbr0\"]\n",
            guest.command_line(),
        );
        first.push(config.as_bytes(), "/run/bench.cfg", 0o600).await?;
        done(first, "xl create -e /run/bench.cfg").await?;
        let (mut samples, mut tcp) = (Vec::new(), Vec::new());
        let mut ends = [first, second];
        for number in 0..MOVES {
            let [from, to] = ends;
            self.heartbeat.wait(LIMIT).await?;
            tcp.push(plain_tcp(from, to).await?);
            self.heartbeat.wait(LIMIT).await?;
            let begin = Instant::now();
            listen(to, "", "EXEC:'xl migrate-receive -e'").await?;
            let migrate = format!("xl migrate -e -s '' {name} 'socat -b 262144 - TCP:{}'", reached(to));
            let total_seconds = timed(from, &migrate).await?;
            sleep(AFTERWARDS).await;
            let downtime_ms = self.heartbeat.downtime(begin).as_secs_f64() * 1000.0;
            eprintln!(
                "{name}, xl migrate {number}: {total_seconds:.2} s, downtime {downtime_ms:.0} ms, plain TCP {:.1} MB/s",
                tcp[number]
            );
            samples.push(Sample { downtime_ms, total_seconds });
            ends.reverse();
        }
        done(ends[0], &format!("xl destroy {name}")).await?;
        Ok((samples, tcp))
    }

    /// Moves a machine of the pool.
    async fn by_agents(&self, guest: Guest) -> Result<Vec<(Sample, Sent)>> {
        let name = guest.name();
        let machines = Api::<VirtualMachine>::namespaced(self.client.clone(), "default");
        let migrations = Api::<VirtualMachineMigration>::namespaced(self.client.clone(), "default");
        let machine = json!({"metadata": {"name": name}, "spec": {
            "memory": {"size": format!("{MEMORY_MIB}Mi")},
            "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": guest.command_line()}},
            "interfaces": [{"name": "eth0", "network": "prod"}],
            "lifecycle": {"shutdownTimeout": "0s"},
        }});
        machines.create(&PostParams::default(), &serde_json::from_value(machine)?).await?;
        let mut samples = Vec::new();
        for number in 0..MOVES {
            wait_until("the machine is Ready", LIMIT, async || {
                let status = machines.get(name).await?.status.unwrap_or_default();
                ensure!(condition::is_true(&status.conditions, "Ready"), "{:?}", status.conditions);
                Ok(())
            })
            .await?;
            self.heartbeat.wait(LIMIT).await?;
            let begin = Instant::now();
            let status = succeeded(&migrations, name, number).await?;
            let total_seconds = begin.elapsed().as_secs_f64();
            sleep(AFTERWARDS).await;
            let downtime_ms = self.heartbeat.downtime(begin).as_secs_f64() * 1000.0;
            let transfer = status.transfer.context("the record tells of no transfer")?;
            eprintln!(
                "{name}, move {number}: {total_seconds:.2} s, of these {:.2} s transfer, downtime {downtime_ms:.0} ms, by the \
                 source's clock {} ms",
                transfer.milliseconds as f64 / 1000.0,
                status.downtime_milliseconds.unwrap_or_default(),
            );
            let sent = Sent {
                megabytes: transfer.bytes.bytes()? as f64 / 1e6,
                seconds: transfer.milliseconds as f64 / 1000.0,
            };
            samples.push((Sample { downtime_ms, total_seconds }, sent));
        }
        machines.delete(name, &DeleteParams::default()).await?;
        wait_until("the machine is gone", LIMIT, async || {
            ensure!(machines.get_opt(name).await?.is_none(), "it is still there");
            Ok(())
        })
        .await?;
        Ok(samples)
    }
}

/// Makes a migration and waits until it has succeeded.
async fn succeeded(
    migrations: &Api<VirtualMachineMigration>,
    machine: &str,
    number: usize,
) -> Result<VirtualMachineMigrationStatus> {
    let name = format!("{machine}-{number}");
    let object = json!({"metadata": {"name": name}, "spec": {"virtualMachine": machine}});
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = pin!(watcher::watcher(migrations.clone(), only));
    migrations.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    let over = async {
        while let Some(event) = events.try_next().await? {
            if let Event::Apply(seen) | Event::InitApply(seen) = event
                && let Some(status) = seen.status
                && let Some(phase) = status.phase.filter(|phase| phase.is_final())
            {
                ensure!(
                    phase == MigrationPhase::Succeeded,
                    "a move ended as {phase:?}: {:?}",
                    status.conditions
                );
                return Ok(status);
            }
        }
        bail!("the watch ended")
    };
    timeout(LIMIT, over).await.context("a move does not end")?
}

/// What plain TCP carries from one host to the other, in megabytes a second.
async fn plain_tcp(from: &LabHost, to: &LabHost) -> Result<f64> {
    listen(to, "-u", "OPEN:/dev/null").await?;
    let send = format!("socat -u -b 262144 OPEN:/dev/zero,readbytes={TCP_BYTES} TCP:{}", reached(to));
    Ok(f64::from(TCP_BYTES) / 1e6 / timed(from, &send).await?)
}

/// Takes one connection and gives it to `target`, in the background.
async fn listen(host: &LabHost, options: &str, target: &str) -> Result<()> {
    let socat = format!(
        "setsid socat {options} -b 262144 TCP-LISTEN:{PORT},reuseaddr {target} </dev/null >/run/bench.log 2>&1 &"
    );
    host.check(&socat).await.map(drop)
}

/// Where [`listen`] does so; one who connects tries again until it does.
fn reached(host: &LabHost) -> String {
    format!("{}:{PORT},retry=100,interval=0.05", host.segment_address())
}

/// Seconds that a command takes, by dom0's clock.
async fn timed(host: &LabHost, command: &str) -> Result<f64> {
    let text = done(host, &format!("read -r begin _ </proc/uptime; {command} || exit 1; read -r end _ </proc/uptime; echo $begin $end")).await?;
    let last = text.lines().last().unwrap_or_default();
    let times: Vec<f64> = last.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match times.as_slice() {
        [begin, end] => Ok(end - begin),
        _ => bail!("dom0 says {text:?}"),
    }
}

/// Runs a command that must succeed and may take long.
async fn done(host: &LabHost, command: &str) -> Result<String> {
    let output = host.exec_within(command, LIMIT).await?;
    let (text, errors) = (output.text(), String::from_utf8_lossy(&output.stderr));
    ensure!(output.code == 0, "{}: {command}: {text}{errors}", host.name());
    Ok(text)
}
