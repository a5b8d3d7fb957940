//! Real hosts that die, are cut off or hang: their protected guest runs on the other one with what it wrote, and never on both.
//!
//! Who ran when is told by three witnesses: the disk, on which the guest writes what it counts; the clocks of both hosts; and
//! the log of the host that was cut off, which does not go over the network.

use crate::{
    bed::{Bed, Guest, PATIENCE, alone, hosts, nothing_is_left, own_world, says},
    lun::{found_at_start, logging_guest},
    lvm::{DEVICES, make_group},
    migrations::{counted_to, counting_guest, kill_agent},
};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use kube::{Api, ResourceExt};
use kubexen_crds::{Host, HostStatus, ProtectionState, VirtualDisk, condition::is_true};
use kubexen_testbed::{
    lab::{LabHost, Link},
    process::wait_until,
};
use rustix::process::Signal;
use serde_json::json;
use std::time::{Duration, Instant, SystemTime};

/// The deadline of the profile `Default`, after which Xen resets a host, and what an emulated one takes to go off.
const RESET_WITHIN: Duration = Duration::from_secs(21 + 5);

/// How far a host's clock may be from what was measured, in seconds: half of what a command to it may take, and half a second
/// because it shows whole ones.
const CLOCK_ERROR: f64 = 1.0;

/// What a guest said on a host, in memory of that host.
const FIRST_RUN: &str = "/run/first-run";

/// A guest that is guarded where it runs.
struct Protected {
    guest: Guest,
    uuid: String,
    domain: Option<i32>,
    boot_id: String,
    home: LabHost,
    other: LabHost,
    /// How often it was started until it was guarded, as a disk of it tells: an emulator resets a guest now and then.
    boots: u32,
}

impl Protected {
    /// Has this guest protected, and waits until its host has promised to stop it in time.
    async fn of(bed: &Bed, guest: Guest) -> Result<Self> {
        for host in bed.lab.hosts() {
            until_host(bed, &host, "protects guests", protects).await?;
        }
        guest.change(json!({"availability": {"restartPriority": "Protected"}})).await?;
        let uuid = guest.uuid().await?;
        until_guarded(bed, &uuid).await?;
        let status = guest
            .wait("runs and can start elsewhere", |status| {
                is_true(&status.conditions, "Ready") && is_true(&status.conditions, "Protected")
            })
            .await?;
        let (home, other) = hosts(bed, &status)?;
        let domain = status.domain.and_then(|domain| domain.domid);
        let boot_id = boot_id(&home).await?;
        Ok(Self { guest, uuid, domain, boot_id, home, other, boots: 0 })
    }

    /// A guest that writes what it counts to a disk on the LUN, and has begun to.
    async fn that_writes(bed: &Bed, name: &'static str) -> Result<Self> {
        make_group(bed, 64).await?;
        let (guest, _) = logging_guest(bed, name).await?;
        guest.wait_ready("Running").await?;
        let mut protected = Self::of(bed, guest).await?;
        says(&protected.home, &protected.uuid, "TICK 5").await?;
        let console = format!("cat /srv/kubexen/state/console/{}.log*", protected.uuid);
        let console = protected.home.check(&console).await?;
        let boots = console.lines().rev().find_map(|line| line.trim().strip_prefix("DISK xvda boots="));
        let boots = boots.and_then(|words| words.split_whitespace().next()?.parse().ok());
        protected.boots = boots.context("it has not counted its starts")?;
        Ok(protected)
    }

    /// Waits until the guest runs on the other host; returns what it found there of its ticks. `since` is when its host died.
    async fn until_back(&self, since: Instant) -> Result<u64> {
        let found = found_at_start(&self.other, &self.uuid, self.boots + 1).await?;
        eprintln!("its guest runs on the other host after {:.1} s", since.elapsed().as_secs_f32());
        Ok(found)
    }

    /// Waits until the machine is Ready on the other host, and its record says how that came.
    async fn until_ready(&self, since: Instant) -> Result<()> {
        let other = self.other.name();
        let status = self
            .guest
            .wait("is Ready on the other host", |status| {
                let timed = status.recovery.as_ref().is_some_and(|recovery| recovery.ready.is_some());
                status.host.as_deref() == Some(&*other) && is_true(&status.conditions, "Ready") && timed
            })
            .await?;
        eprintln!("it is Ready after {:.1} s: {:?}", since.elapsed().as_secs_f32(), status.recovery);
        Ok(())
    }

    /// The ticks that the other host reads on the disk, past every cache.
    async fn on_disk(&self, bed: &Bed) -> Result<u64> {
        let disks: Api<VirtualDisk> = Api::namespaced(bed.control_plane.client().await?, "default");
        let disk = disks.get(&format!("{}-data", self.guest.name)).await?.uid().context("no uid")?;
        let device = format!("{DEVICES}kubexen--{}", disk.replace('-', "--"));
        let read =
            format!("dd if={device} bs=512 skip=1000 count=1000 iflag=direct 2>/dev/null | tr -d '\\0'");
        let lines = self.other.check(&read).await?;
        let gapless = lines.lines().zip(0..).take_while(|(line, tick)| *line == format!("tick={tick}"));
        Ok(gapless.count() as u64)
    }

    /// Checks that the guest's first run wrote nothing more since its second one found so many ticks.
    async fn nothing_more_was_written(&self, bed: &Bed, found: u64) -> Result<()> {
        let on_disk = self.on_disk(bed).await?;
        let second = counted_to(&self.other, &self.uuid).await?;
        ensure!(second < found, "the second run has counted as far as the first one, so nothing can be told");
        ensure!(
            on_disk == found,
            "there are {on_disk} ticks on the disk, where {found} were when it started"
        );
        Ok(())
    }

    /// Switches the host on that died, and waits until it protects guests again and has nothing of this one.
    async fn host_comes_back(&self, bed: &Bed) -> Result<()> {
        self.home.power_off().await?;
        self.home.power_on().await?;
        bed.pool.start_lab_agent(&bed.control_plane, &self.home).await?;
        until_host(bed, &self.home, "is back", |status| {
            let rebooted = status.boot_id.as_ref().is_some_and(|boot| *boot != self.boot_id);
            rebooted && protects(status) && is_true(&status.conditions, "Ready")
        })
        .await?;
        ensure!(!self.home.check("xl vm-list").await?.contains(&self.uuid), "the guest is there too");
        Ok(())
    }
}

fn protects(status: &HostStatus) -> bool {
    status.protection.as_ref().is_some_and(|said| said.state == ProtectionState::Ready)
}

async fn boot_id(host: &LabHost) -> Result<String> {
    Ok(host.check("cat /proc/sys/kernel/random/boot_id").await?.trim().to_owned())
}

async fn until_host(
    bed: &Bed,
    host: &LabHost,
    what: &str,
    accept: impl Fn(&HostStatus) -> bool,
) -> Result<()> {
    let nodes: Api<Host> = Api::all(bed.control_plane.client().await?);
    wait_until(&format!("{} {what}", host.name()), PATIENCE, async || {
        let status = nodes.get(&host.name()).await?.status.unwrap_or_default();
        ensure!(accept(&status), "its status is {}", serde_json::to_string(&status)?);
        Ok(())
    })
    .await
}

/// Waits until the guest's host has promised to stop it in time.
async fn until_guarded(bed: &Bed, uuid: &str) -> Result<()> {
    wait_until("it is guarded", PATIENCE, async || {
        let record = bed.control_plane.pool_value(&format!("/kubexen/owners/{uuid}")).await?;
        ensure!(record.contains(r#""guarded":true"#), "the record is {record}");
        Ok(())
    })
    .await
}

/// Seconds by which the clock of a host is ahead of this machine's. A host that is busy is asked until it answers quickly.
async fn ahead(host: &LabHost) -> Result<f64> {
    let seconds =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map(|time| time.as_secs_f64());
    wait_until(&format!("{} tells its time", host.name()), PATIENCE, async || {
        let before = seconds(SystemTime::now())?;
        // The clock is somewhere within the second that it shows.
        let there = host.check("date +%s").await?.trim().parse::<f64>()? + 0.5;
        let after = seconds(SystemTime::now())?;
        ensure!(after - before < CLOCK_ERROR, "it took {} s to", after - before);
        Ok(there - (before + after) / 2.0)
    })
    .await
}

/// When the host's agent said last what holds all of these words, in seconds by its clock.
fn said_at(host: &LabHost, words: &[&str]) -> Result<f64> {
    let log = std::fs::read_to_string(host.agent_log())?;
    let line = log.lines().rfind(|line| words.iter().all(|word| line.contains(word)));
    let line = line.with_context(|| format!("the agent of {} never said {words:?}", host.name()))?;
    // Each piece begins with the end of the escape sequence that gives it its colour.
    let time = line.split('\x1b').find_map(|piece| piece.split_once('m')?.1.parse::<Timestamp>().ok());
    let time = time.with_context(|| format!("no time in {line:?}"))?;
    Ok(time.as_duration().as_secs_f64())
}

/// When Xen reset the host, in seconds by this machine's clock: its last words are about that.
fn reset_at(host: &LabHost) -> Result<f64> {
    let console = std::fs::read(host.console_log())?;
    ensure!(
        String::from_utf8_lossy(&console).contains("Watchdog timer"),
        "the console of {} does not say why it went off",
        host.name()
    );
    let written = std::fs::metadata(host.console_log())?.modified()?;
    Ok(written.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64())
}

#[tokio::test]
#[ignore = "a host that is emulated on a busy machine may miss its deadline: cargo xtask test lab -- --ignored recovery"]
async fn a_protected_guest_does_not_notice_another_agent_and_outlives_its_host() -> Result<()> {
    let turn = alone().await;
    let bed = turn.bed;
    let (guest, _) = counting_guest(bed, "phoenix", "10.88.0.35", &[]).await?;
    let protected = Protected::of(bed, guest).await?;
    let (home, uuid) = (&protected.home, &protected.uuid);

    let pid = home.check("cat /run/kubexen-agent/pid").await?;
    let timer = home.check("cat /run/kubexen-node-agent/watchdog.json").await?;
    let counted = counted_to(home, uuid).await?;
    kill_agent(home).await?;
    wait_until("it counts on for longer than the deadline", PATIENCE, async || {
        let now = counted_to(home, uuid).await?;
        ensure!(now > counted + RESET_WITHIN.as_secs(), "it is at {now}");
        Ok(())
    })
    .await?;
    ensure!(home.check("cat /run/kubexen-agent/pid").await? != pid, "it is still the old agent");
    ensure!(home.check("cat /run/kubexen-node-agent/watchdog.json").await? == timer, "it took another timer");
    let status = protected.guest.wait_ready("Running").await?;
    ensure!(status.host == Some(home.name()), "it was moved to {:?}", status.host);
    ensure!(status.domain.and_then(|domain| domain.domid) == protected.domain, "it was built anew");
    ensure!(boot_id(home).await? == protected.boot_id, "the host was reset");
    let records = bed.control_plane.pool_keys("/kubexen/hosts/").await?;
    let fenced = format!("/fenced/{}", protected.boot_id);
    ensure!(!records.iter().any(|key| key.ends_with(&fenced)), "its host was fenced: {records:?}");
    until_guarded(bed, uuid).await?;

    home.power_off().await?;
    let off = Instant::now();
    says(&protected.other, uuid, "TICK 1").await?;
    eprintln!("its guest runs on the other host after {:.1} s", off.elapsed().as_secs_f32());
    protected.until_ready(off).await?;
    until_guarded(bed, uuid).await?;
    protected.host_comes_back(bed).await?;
    protected.guest.delete().await?;
    nothing_is_left(&protected.other, uuid, None).await
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored recovery"]
async fn a_protected_guest_of_a_host_without_power_runs_elsewhere_with_what_it_wrote() -> Result<()> {
    let (_turn, bed) = own_world().await?;
    let protected = Protected::that_writes(&bed, "survivor").await?;
    let counted = counted_to(&protected.home, &protected.uuid).await?;
    protected.home.power_off().await?;
    let off = Instant::now();
    let found = protected.until_back(off).await?;
    ensure!(found > counted, "{found} ticks are left of {counted} and more");
    protected.until_ready(off).await
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored recovery"]
async fn a_protected_guest_of_a_host_that_is_cut_off_is_stopped_before_it_starts_elsewhere() -> Result<()> {
    let (_turn, bed) = own_world().await?;
    let protected = Protected::that_writes(&bed, "castaway").await?;
    let (home, other, uuid) = (&protected.home, &protected.other, &protected.uuid);
    // So that the first run is told from the second by how far it counted.
    says(home, uuid, "TICK 20").await?;

    // An agent that hears that its guest is another host's removes what it said.
    home.check(&format!(
        "setsid tail -n +1 -F /srv/kubexen/state/console/{uuid}.log >{FIRST_RUN} 2>/dev/null </dev/null &"
    ))
    .await?;

    home.set_link(Link::Uplink, false).await?;
    let cut = Instant::now();
    let found = protected.until_back(cut).await?;
    protected.nothing_more_was_written(&bed, found).await?;
    protected.until_ready(cut).await?;

    // An emulated host may not come to the end of its ladder; then Xen resets it.
    let stopped = if home.is_on() {
        home.set_link(Link::Uplink, true).await?;
        spared(&bed, &protected, found).await?
    } else {
        reset_at(home)?
    };
    // It is let run after that.
    let started = said_at(other, &["built", "castaway"])? - ahead(other).await?;
    eprintln!("{:.1} s passed between its end there and its beginning here", started - stopped);
    ensure!(stopped + 2.0 * CLOCK_ERROR < started, "it was stopped at {stopped} and started at {started}");
    Ok(())
}

/// Checks of a host that is reached again that it has stopped its guest, after which so many ticks were found, and runs on;
/// returns when it did, in seconds by this machine's clock.
async fn spared(bed: &Bed, protected: &Protected, found: u64) -> Result<f64> {
    let (home, uuid) = (&protected.home, &protected.uuid);
    let said =
        wait_until("the host is back", PATIENCE, async || home.check(&format!("cat {FIRST_RUN}")).await);
    let said = said.await?;
    let last = said.lines().rev().find_map(|line| line.trim().strip_prefix("TICK ")?.parse::<u64>().ok());
    let counted = last.context("its first run said nothing")?;
    // The tick on the disk may not have come to the console.
    ensure!(
        (counted + 1..=counted + 2).contains(&found),
        "its first run said tick {counted} last, and {found} were on the disk"
    );
    ensure!(boot_id(home).await? == protected.boot_id, "the host was reset, though it could stop its guest");
    ensure!(!home.check("xl vm-list").await?.contains(&**uuid), "the guest is still there");
    until_host(bed, home, "says that it was fenced", |status| {
        status.protection.as_ref().is_some_and(|said| said.message.contains("this boot was fenced"))
    })
    .await?;
    Ok(said_at(home, &["all guarded guests are stopped"])? - ahead(home).await?)
}

#[tokio::test]
#[ignore = "minutes of LVM on an emulated machine: cargo xtask test lab -- --ignored recovery"]
async fn a_host_whose_agent_hangs_is_reset_by_xen_and_its_protected_guest_runs_elsewhere() -> Result<()> {
    let (_turn, bed) = own_world().await?;
    let protected = Protected::that_writes(&bed, "lazarus").await?;
    let (home, uuid) = (&protected.home, &protected.uuid);
    let counted = counted_to(home, uuid).await?;

    home.signal_agent(Signal::STOP).await?;
    let hung = Instant::now();
    wait_until("Xen resets the host", RESET_WITHIN, async || {
        ensure!(!home.is_on(), "it is on");
        Ok(())
    })
    .await?;
    eprintln!("the host was reset after {:.1} s", hung.elapsed().as_secs_f32());
    reset_at(home)?;
    let found = protected.until_back(hung).await?;
    ensure!(found > counted, "{found} ticks are left of {counted} and more");
    protected.nothing_more_was_written(&bed, found).await?;
    protected.until_ready(hung).await?;

    protected.host_comes_back(&bed).await
}
