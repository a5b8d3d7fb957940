//! `bench migrate`: a guest's moves through the agents against `xl migrate` over the same link, and the agents' stream against
//! plain TCP, between two Xen hosts of the lab.
//!
//! Guests that are idle are moved, and guests that write to their memory over and over. `xl` sends over a plain TCP
//! connection of socat, without encryption. How long a guest stood still is seen from outside, see [`Heartbeat`].

use super::{
    heartbeat::Heartbeat,
    measure::this_profile,
    migrate_report::{GuestMoves, MigrateReport, Rates, Sample, Sent},
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

/// Memory of the guests.
const MEMORY_MIB: u32 = 256;
/// Longest time that anything may take where hosts are emulated.
const LIMIT: Duration = Duration::from_secs(600);
/// How long a guest is looked at after its move: it may still have to reach the network.
const AFTERWARDS: Duration = Duration::from_secs(3);
/// Bytes that a link carries in one measurement.
const LINK_BYTES: u32 = 64 << 20;
/// How often a move is tried. The emulator resets a guest now and then while it is to suspend, whoever moves it.
const ATTEMPTS: u32 = 3;
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

/// Measures `moves` moves of each kind of guest in each way; the medians are the result.
///
/// # Errors
/// When the lab does not start, or a guest does not start or move in time.
pub async fn run(moves: u16) -> Result<MigrateReport> {
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
    Ok(MigrateReport::of(bench.measure(Guest::Idle, moves).await?, bench.measure(Guest::Busy, moves).await?))
}

impl Bench {
    /// The two ways take turns, so that a machine that is busy with other things slows both.
    async fn measure(&self, guest: Guest, moves: u16) -> Result<GuestMoves> {
        let (mut ours, mut xl, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..moves {
            let (sample, rates) = again("xl migrate", async || self.by_xl(guest).await).await?;
            eprintln!("{}, by xl migrate: {sample}; {rates}", guest.name());
            xl.push(sample);
            links.push(rates);
            let (sample, sent) =
                again("a move by the agents", async || self.by_agents(guest, number).await).await?;
            eprintln!(
                "{}, by the agents: {sample}, of these {:.2} s for {:.1} MB",
                guest.name(),
                sent.seconds,
                sent.megabytes
            );
            ours.push((sample, sent));
        }
        Ok(GuestMoves::of(&ours, &xl, &links))
    }

    /// Moves a guest by `xl migrate`, and measures before, while the guest runs, what the link carries.
    async fn by_xl(&self, guest: Guest) -> Result<(Sample, Rates)> {
        let [from, to] = &self.hosts;
        let name = guest.name();
        let config = format!(
            "name=\"{name}\"\ntype=\"pvh\"\nkernel=\"/guest/vmlinux\"\nramdisk=\"/guest/initrd\"\nextra=\"{}\"\n\
             memory={MEMORY_MIB}\nvcpus=1\nvif=[\"mac=00:16:3e:00:00:50,bridge=xenbr0\"]\n",
            guest.command_line(),
        );
        for host in &self.hosts {
            // What a move that failed has left.
            done(host, &format!("xl destroy {name} 2>/dev/null; true")).await?;
        }
        from.push(config.as_bytes(), "/run/bench.cfg", 0o600).await?;
        done(from, "xl create -e /run/bench.cfg").await?;
        self.heartbeat.wait(LIMIT).await?;
        let rates = Rates {
            tcp_mb_per_second: plain_tcp(from, to).await?,
            stream_mb_per_second: stream(from, to).await?,
        };
        let begin = Instant::now();
        listen(to, "", "EXEC:'xl migrate-receive -e'").await?;
        let migrate = format!("xl migrate -e -s '' {name} 'socat -b 262144 - TCP:{}'", reached(to));
        let total_seconds = timed(from, &migrate).await?;
        let sample = self.sample(begin, total_seconds).await;
        done(to, &format!("xl destroy {name}")).await?;
        Ok((sample, rates))
    }

    /// Moves a machine of the pool.
    async fn by_agents(&self, guest: Guest, number: u16) -> Result<(Sample, Sent)> {
        let name = format!("{}-{number}", guest.name());
        let machines = Api::<VirtualMachine>::namespaced(self.client.clone(), "default");
        let migrations = Api::<VirtualMachineMigration>::namespaced(self.client.clone(), "default");
        let machine = json!({"metadata": {"name": name}, "spec": {
            "memory": {"size": format!("{MEMORY_MIB}Mi")},
            "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": guest.command_line()}},
            "interfaces": [{"name": "eth0", "network": "prod"}],
            "lifecycle": {"shutdownTimeout": "0s"},
        }});
        machines.create(&PostParams::default(), &serde_json::from_value(machine)?).await?;
        wait_until("the machine is Ready", LIMIT, async || {
            let status = machines.get(&name).await?.status.unwrap_or_default();
            ensure!(condition::is_true(&status.conditions, "Ready"), "{:?}", status.conditions);
            Ok(())
        })
        .await?;
        self.heartbeat.wait(LIMIT).await?;
        let begin = Instant::now();
        let moved = succeeded(&migrations, &name).await;
        let sample = self.sample(begin, begin.elapsed().as_secs_f64()).await;
        machines.delete(&name, &DeleteParams::default()).await?;
        migrations.delete(&name, &DeleteParams::default()).await?;
        wait_until("the machine and its move are gone", LIMIT, async || {
            ensure!(machines.get_opt(&name).await?.is_none(), "the machine is still there");
            ensure!(migrations.get_opt(&name).await?.is_none(), "the move is still there");
            Ok(())
        })
        .await?;
        let transfer = moved?.transfer.context("the record tells of no transfer")?;
        let sent = Sent {
            megabytes: transfer.bytes.bytes()? as f64 / 1e6,
            seconds: transfer.milliseconds as f64 / 1000.0,
        };
        Ok((sample, sent))
    }

    /// What a move that began at `begin` and has ended has shown.
    async fn sample(&self, begin: Instant, total_seconds: f64) -> Sample {
        sleep(AFTERWARDS).await;
        Sample { downtime_ms: self.heartbeat.downtime(begin).as_secs_f64() * 1000.0, total_seconds }
    }
}

/// Measures something until it does not fail, [`ATTEMPTS`] times at the most.
async fn again<T>(what: &str, measure: impl AsyncFn() -> Result<T>) -> Result<T> {
    let mut attempt = 1;
    loop {
        match measure().await {
            Err(error) if attempt < ATTEMPTS => eprintln!("{what} failed, once more: {error:#}"),
            result => return result,
        }
        attempt += 1;
    }
}

/// Makes a migration and waits until it has succeeded.
async fn succeeded(
    migrations: &Api<VirtualMachineMigration>,
    machine: &str,
) -> Result<VirtualMachineMigrationStatus> {
    let object = json!({"metadata": {"name": machine}, "spec": {"virtualMachine": machine}});
    let only = watcher::Config::default().fields(&format!("metadata.name={machine}"));
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
    let send = format!("socat -u -b 262144 OPEN:/dev/zero,readbytes={LINK_BYTES} TCP:{}", reached(to));
    Ok(f64::from(LINK_BYTES) / 1e6 / timed(from, &send).await?)
}

/// What a stream of the agents carries from one host to the other, in megabytes a second: as in a move, but without Xen at
/// its ends.
async fn stream(from: &LabHost, to: &LabHost) -> Result<f64> {
    let link = format!("{} link --config {}", pool::LAB_AGENT, pool::LAB_CONFIGURATION);
    to.check(&format!("setsid {link} receive {PORT} </dev/null >/run/bench.log 2>&1 &")).await?;
    let (host, address) = (to.name(), to.segment_address());
    let seconds = done(from, &format!("{link} send {host} {address}:{PORT} {LINK_BYTES}")).await?;
    Ok(f64::from(LINK_BYTES) / 1e6 / seconds.trim().parse::<f64>().context("the stream took no time")?)
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
