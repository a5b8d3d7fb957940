//! Faults by chance.

use super::{
    step::{Action, Call, Failure, Lost, Seconds},
    world::{HOSTS, World},
};
use anyhow::{Result, ensure};
use kubexen_crds::domain::StopReason;
use std::{collections::BTreeSet, time::Duration};

/// What there is by chance, as scenarios call it.
pub(super) const NAMES: [&str; 27] = [
    "crash",
    "crash-at-write",
    "pause",
    "cut-from-api",
    "cut-from-store",
    "storage-outage",
    "fail-storage",
    "hypervisor-outage",
    "fail-call",
    "deaf-guests",
    "stop-guest",
    "cut-power",
    "store-outage",
    "store-outage-after-write",
    "store-loses",
    "store-delays",
    "store-election",
    "store-full",
    "store-backup",
    "store-restore",
    "confirm-restore",
    "cut-link",
    "store-clock",
    "slow-store",
    "late-creates",
    "compact-api",
    "none",
];

/// Which faults there are by chance: all of them, or some.
#[derive(Clone, Debug, Default)]
pub struct Faults(Option<BTreeSet<String>>);

impl Faults {
    /// Only those with these names, as scenarios call them; `none` stands for no fault.
    ///
    /// # Errors
    /// When a name is that of no fault.
    pub fn named(names: &[String]) -> Result<Self> {
        for name in names {
            ensure!(NAMES.contains(&name.as_str()), "{name} is no fault: there are {}", NAMES.join(", "));
        }
        Ok(Self(Some(names.iter().cloned().collect())))
    }

    /// Those of the actions that are among them.
    pub(super) fn of(&self, mut actions: Vec<Action>) -> Vec<Action> {
        if let Some(names) = &self.0 {
            actions.retain(|action| names.contains(&action.name()));
        }
        actions
    }
}

/// The next fault.
pub(super) fn choose(world: &World) -> Vec<Action> {
    let dice = &world.dice;
    let host = (*dice.pick(&HOSTS)).to_owned();
    let agent = format!("agent-{host}");
    let controller = format!("controller-{}", dice.below(world.controllers.len()));
    let process = if dice.chance(60) { agent.clone() } else { controller };
    let lost = *dice.pick(&[Lost::Requests, Lost::Answers]);
    let failure = *dice.pick(&[Failure::Refused, Failure::Hangs, Failure::Untold]);
    let of = |milliseconds: u64| Seconds::from(dice.millis(100..milliseconds));
    vec![match dice.below(39) {
        0 | 1 => Action::Crash { process, r#for: of(20_000) },
        2..5 => Action::CrashAtWrite { process, write: 1 + dice.below(6), r#for: of(20_000) },
        // So long that others do what it would have done.
        5 => Action::Crash { process: agent, r#for: of(200_000) },
        6..9 => {
            Action::Pause { process, r#for: Seconds::from(Duration::from_secs(1) + dice.millis(0..119_000)) }
        }
        9 => Action::CutFromApi { process, lost, r#for: of(60_000) },
        10..12 => Action::CutFromStore { process, lost, r#for: of(90_000) },
        12 => {
            let r#for = of(120_000);
            let cut = Action::CutFromApi { process: process.clone(), lost: Lost::Requests, r#for };
            return vec![cut, Action::CutFromStore { process, lost: Lost::Requests, r#for }];
        }
        13 => Action::StorageOutage { host, r#for: of(30_000) },
        14 => Action::FailStorage { host, failure },
        15 => Action::HypervisorOutage { host, r#for: of(30_000) },
        16 => Action::FailCall { host, call: Call::Create, failure },
        17 | 18 => {
            let call = *dice.pick(&[Call::Suspend, Call::Restore]);
            Action::FailCall { host, call, failure }
        }
        19 => Action::DeafGuests { host, r#for: of(60_000) },
        20 | 21 => return stop_a_guest(world, host),
        22 => {
            Action::CutPower { host, r#for: Seconds::from(Duration::from_secs(10) + dice.millis(0..50_000)) }
        }
        23 => {
            Action::CutPower { host, r#for: Seconds::from(Duration::from_secs(60) + dice.millis(0..240_000)) }
        }
        24 => {
            let longest = *dice.pick(&[10_000, 10_000, 60_000, 60_000, 600_000]);
            Action::StoreOutage { r#for: of(longest) }
        }
        25 => Action::StoreOutageAfterWrite { r#for: of(40_000) },
        26 => Action::StoreLoses { lost },
        27 => Action::StoreDelays { r#for: of(60_000) },
        28 => Action::StoreElection {},
        29 => Action::StoreFull { r#for: of(60_000) },
        30 | 31 => {
            let other = HOSTS.into_iter().filter(|other| *other != host).collect::<Vec<_>>();
            let to = (*dice.pick(&other)).to_owned();
            let after_bytes = u64::try_from(dice.below(200)).unwrap_or_default() << 20;
            Action::CutLink { from: host, to, after_bytes, r#for: of(30_000) }
        }
        32 => Action::StoreClock { percent_fast: 1 },
        33 => Action::SlowStore { process, late: of(3_000), r#for: of(30_000) },
        34 => {
            let controller = format!("controller-{}", dice.below(world.controllers.len()));
            let (kind, late) = ((*dice.pick(&["domains", "volumes"])).to_owned(), of(60_000));
            Action::LateCreates { process: controller, kind, late, r#for: of(5_000) }
        }
        35 => Action::CompactApi {},
        _ if world.backup.is_none() => Action::StoreBackup {},
        _ => match dice.below(5) {
            0 => Action::StoreBackup {},
            1 | 2 => Action::ConfirmRestore {},
            _ => Action::StoreRestore { same_cluster: dice.below(3) == 0 },
        },
    }]
}

fn stop_a_guest(world: &World, host: String) -> Vec<Action> {
    let machines = world.api.objects("virtualmachines");
    let here: Vec<_> = machines.iter().filter(|machine| machine["status"]["host"] == host.as_str()).collect();
    if here.is_empty() {
        return Vec::new();
    }
    let machine = world.dice.pick(&here)["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let reason = *world.dice.pick(&[StopReason::Poweroff, StopReason::Reboot, StopReason::Crash]);
    vec![Action::StopGuest { host, machine, reason }]
}
