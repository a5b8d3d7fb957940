//! Faults by chance.

use super::{
    step::{Action, Call, Failure, Lost, Seconds},
    users,
    world::{HOSTS, World},
};
use anyhow::{Result, ensure};
use kubexen_crds::domain::StopReason;
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};

/// What there is by chance, as scenarios call it.
pub(super) const NAMES: [&str; 34] = [
    "crash",
    "crash-at-write",
    "crash-at-call",
    "pause",
    "pause-host",
    "pause-api",
    "slow-api",
    "cut-from-api",
    "cut-from-store",
    "storage-outage",
    "fail-storage",
    "storage-full",
    "dom0-full",
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
    "set-clock",
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

    /// Those of the actions that are among them, with what people do for a fault to be met.
    pub(super) fn of(&self, mut actions: Vec<Action>) -> Vec<Action> {
        if let Some(names) = &self.0 {
            actions.retain(|action| {
                let name = action.name();
                names.contains(&name) || !NAMES.contains(&name.as_str())
            });
            if actions.iter().all(|action| !names.contains(&action.name())) {
                actions.clear();
            }
        }
        actions
    }
}

/// How long the pool's store is away when nobody comes soon to mend it.
pub(super) const LONG_OUTAGE: Seconds = Seconds(600.0);

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
    vec![match dice.below(52) {
        0 | 1 => Action::Crash { process, r#for: of(20_000) },
        2..5 => Action::CrashAtWrite { process, write: 1 + dice.below(6), r#for: of(20_000) },
        // So long that others do what it would have done.
        5 => Action::Crash { process: agent, r#for: of(200_000) },
        6..9 => {
            Action::Pause { process, r#for: Seconds::from(Duration::from_secs(1) + dice.millis(0..119_000)) }
        }
        9 => {
            let lost = *dice.pick(&[Lost::Requests, Lost::Answers, Lost::Both]);
            Action::CutFromApi { process, lost, r#for: of(60_000) }
        }
        10..12 => Action::CutFromStore { process, lost, r#for: of(90_000) },
        12 => {
            let r#for = of(120_000);
            let lost = *dice.pick(&[Lost::Requests, Lost::Both]);
            let cut = Action::CutFromApi { process: process.clone(), lost, r#for };
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
            let r#for = match dice.below(10) {
                0..4 => of(10_000),
                4..8 => of(60_000),
                8 => of(600_000),
                _ => LONG_OUTAGE,
            };
            Action::StoreOutage { r#for }
        }
        25 => Action::StoreOutageAfterWrite { r#for: of(40_000) },
        26 => Action::StoreLoses { lost },
        27 if dice.chance(30) => Action::StoreDelays { r#for: of(60_000), silence: Seconds::default() },
        27 => {
            // The attempts to learn the result take 1.5 s.
            let silence = dice.millis(1_600..6_000);
            let r#for = Seconds::from(silence + dice.millis(0..10_000));
            Action::StoreDelays { r#for, silence: silence.into() }
        }
        28 => Action::StoreElection { deposed: Seconds::from(dice.millis(0..2_000)) },
        29 => Action::StoreFull { r#for: of(60_000) },
        30 | 31 => return cut_a_link(world, host),
        32 => {
            let process = Some(process).filter(|_| dice.chance(60));
            Action::StoreClock { process, percent_fast: *dice.pick(&[-1, 1]) }
        }
        33 => Action::SlowStore { process, late: of(3_000), r#for: of(30_000) },
        34 => {
            let controller = format!("controller-{}", dice.below(world.controllers.len()));
            let (kind, late) = ((*dice.pick(&["domains", "volumes"])).to_owned(), of(60_000));
            Action::LateCreates { process: controller, kind, late, r#for: of(5_000) }
        }
        35 => Action::CompactApi {},
        36..39 if world.backup.is_none() => Action::StoreBackup {},
        36..39 => match dice.below(5) {
            0 => Action::StoreBackup {},
            1 | 2 => Action::ConfirmRestore {},
            _ => match (world.is_restored, dice.below(3) == 0) {
                (false, same_cluster) => Action::StoreRestore { same_cluster },
                // Who was away through two restores waits for people to boot the host, and none do here.
                (true, _) => Action::ConfirmRestore {},
            },
        },
        39..42 => {
            let most = *dice.pick(&[10, 60]);
            Action::CrashAtCall { process, call: 1 + dice.below(most), r#for: of(20_000) }
        }
        42 | 43 => {
            let calls = [Call::Unpause, Call::Pause, Call::Claim, Call::Resume, Call::Destroy];
            Action::FailCall { host, call: *dice.pick(&calls), failure }
        }
        44 | 45 => Action::PauseHost { host, r#for: of(60_000) },
        46 => Action::PauseApi { r#for: of(60_000) },
        47 => Action::SlowApi { process, late: of(20_000), r#for: of(30_000) },
        48 => {
            // A controller stands still until another one leads, and then goes on with what it was about to do, late.
            let process = format!("controller-{}", dice.below(world.controllers.len()));
            let (still, late) = (Duration::from_secs(10) + dice.millis(0..40_000), of(20_000));
            let slow = Action::SlowApi { process: process.clone(), late, r#for: (still * 2).into() };
            return vec![slow, Action::Pause { process, r#for: still.into() }];
        }
        49 => Action::StorageFull { host, r#for: of(60_000) },
        50 => Action::Dom0Full { host, r#for: of(60_000) },
        _ => Action::SetClock { process, ahead: *dice.pick(&[-86_400, -30, 30, 86_400]) },
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

/// Breaks the network between two hosts in one direction or in both, while one of them sends the other a guest: if none does, somebody
/// asks for it. What is sent in a move has some thousand bytes, in which memory is only told by its length, and what comes back has
/// some dozen: each byte may be the last.
fn cut_a_link(world: &World, host: String) -> Vec<Action> {
    let dice = &world.dice;
    let r#for = Seconds::from(dice.millis(1_000..60_000));
    let sent: Vec<_> =
        world.api.objects("virtualmachinemigrations").iter().filter_map(|one| sent(one)).collect();
    let others: Vec<_> = HOSTS.into_iter().filter(|other| *other != host).collect();
    let running = world.api.objects("virtualmachines");
    let running = running.iter().find(|machine| {
        machine["status"]["host"] == host.as_str() && machine["status"]["phase"] == "Running"
    });
    let mut actions = Vec::new();
    let (from, to) = match (sent.as_slice(), running) {
        (some @ [_, ..], _) => dice.pick(some).clone(),
        ([], machine) => {
            let to = (*dice.pick(&others)).to_owned();
            actions.extend(machine.map(|machine| users::move_to(machine, &to, dice.below(6))));
            (host, to)
        }
    };
    let cut = |from: &str, to: &str, most: usize| {
        let after_bytes = u64::try_from(dice.below(most)).unwrap_or_default();
        Action::CutLink { from: from.to_owned(), to: to.to_owned(), after_bytes, r#for }
    };
    match dice.below(5) {
        0 | 1 => actions.push(cut(&from, &to, 3_000)),
        2 | 3 => actions.push(cut(&to, &from, 50)),
        _ => actions.extend([cut(&from, &to, 1), cut(&to, &from, 1)]),
    }
    actions
}

/// From where to where a migration that goes on sends its guest.
fn sent(migration: &Value) -> Option<(String, String)> {
    let status = &migration["status"];
    let hosts = (status["source"].as_str()?.to_owned(), status["destination"].as_str()?.to_owned());
    status["finishedAt"].is_null().then_some(hosts)
}
