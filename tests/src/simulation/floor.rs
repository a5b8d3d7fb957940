//! What is to have happened in many schedules: that every promise was kept says little where nothing was at stake.

use super::{faults, world::World};
use kubexen_node_agent::hypervisor::simulated::StartEvent;
use std::collections::BTreeMap;

/// How often what happened, by its name.
pub type Counts = BTreeMap<String, u64>;

/// The least of a thousand schedules, about a third of what was counted when this was written.
const LEAST: [(&str, u64); 10] = [
    (BUILDS, 1_000),
    (ARRIVALS, 200),
    (RESUMED, 15),
    (STOLEN, 20),
    (RESETS, 30),
    (CRASHES, 900),
    (LATE, 150),
    (REFUSED, 70),
    (PAUSED, 40),
    (SHUTDOWNS, 800),
];
/// How often faults are to have their effect at the least in a thousand schedules: a fault that nobody meets shows nothing.
const LEAST_EFFECTS: [(&str, u64); 25] = [
    ("crash", 250),
    ("crash-at-call", 200),
    ("crash-at-write", 150),
    ("cut-from-api", 2_000),
    ("cut-from-store", 10_000),
    ("cut-link", 4),
    ("cut-power", 200),
    ("dom0-full", 20),
    ("fail-call", 50),
    ("hypervisor-outage", 400),
    ("late-creates", 6),
    ("late-transaction", 10),
    ("pause", 300),
    ("pause-api", 2_500),
    ("pause-host", 150),
    ("pause-in-a-call", 1),
    ("slow-api", 3_000),
    ("slow-store", 500),
    ("stop-guest", 40),
    ("store-delays", 80),
    ("store-election", 60),
    ("store-full", 1_500),
    ("store-loses", 80),
    ("store-outage", 60_000),
    ("store-restore", 40),
];
/// The least of a thousand schedules of every fault that happens by chance.
const LEAST_OF_A_FAULT: u64 = 60;
/// Fewer schedules than these say nothing.
const MANY: u64 = 1_000;

const BUILDS: &str = "guests built";
const ARRIVALS: &str = "guests that arrived from elsewhere or from a disk";
const RESUMED: &str = "guests that ran on after their move was aborted";
const STOLEN: &str = "guests given to another host as theirs was dead";
const RESETS: &str = "hosts reset by their watchdogs";
const CRASHES: &str = "crashes of processes";
const LATE: &str = "requests that came late";
const REFUSED: &str = "transactions refused as what they compare had changed";
const PAUSED: &str = "guests paused";
const SHUTDOWNS: &str = "guests asked to power off";

/// What happened in a schedule.
pub(super) fn count(world: &World, trace: &[String]) -> Counts {
    let mut counts = Counts::from([(REFUSED.to_owned(), world.pool_store.refusals())]);
    counts.extend(world.effects().into_iter().map(|(fault, times)| (effect(fault), times)));
    let mut add = |name: &str| *counts.entry(name.to_owned()).or_default() += 1;
    for step in &world.taken {
        add(&step.action.name());
    }
    for record in world.hosts.iter().flat_map(|side| side.host.start_log().unwrap_or_default()) {
        match record.event {
            StartEvent::Start => add(BUILDS),
            StartEvent::Arrive => add(ARRIVALS),
            StartEvent::Resume => add(RESUMED),
            StartEvent::Suspend | StartEvent::Claim | StartEvent::Stop => {}
        }
    }
    for line in trace {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        match words.as_slice() {
            [_, "was", "reset", ..] => add(RESETS),
            [_, "crashes"] => add(CRASHES),
            ["the", "late", "request", "arrives"] => add(LATE),
            [_, "pause", _] => add(PAUSED),
            [_, "shutdown", _] => add(SHUTDOWNS),
            [_, "creates", "Event", .., "Recovering"] => add(STOLEN),
            _ => {}
        }
    }
    counts
}

/// What it is called that a fault had its effect.
fn effect(fault: &str) -> String {
    format!("{fault} had its effect")
}

/// What happened too seldom in so many schedules in which every fault may happen; nothing if they are few.
#[must_use]
pub fn too_seldom(counts: &Counts, schedules: u64) -> Vec<String> {
    if schedules < MANY {
        return Vec::new();
    }
    let of_faults = faults::NAMES.into_iter().filter(|name| *name != "none");
    let named = |(name, least): (&str, u64)| (name.to_owned(), least);
    let effects = LEAST_EFFECTS.into_iter().map(|(fault, least)| (effect(fault), least));
    let least =
        LEAST.into_iter().chain(of_faults.map(|name| (name, LEAST_OF_A_FAULT))).map(named).chain(effects);
    least
        .filter_map(|(name, least)| {
            let (found, least) = (counts.get(&name).copied().unwrap_or_default(), least * schedules / MANY);
            (found < least).then(|| format!("{name}: {found}, at least {least} are to be"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hardly_happens_in_many_schedules_is_told() {
        let mut counts: Counts = LEAST.into_iter().map(|(name, least)| (name.to_owned(), least)).collect();
        counts.extend(faults::NAMES.map(|name| (name.to_owned(), LEAST_OF_A_FAULT)));
        counts.extend(LEAST_EFFECTS.map(|(fault, least)| (effect(fault), least)));
        assert_eq!(too_seldom(&counts, MANY), [""; 0]);
        counts.remove("cut-power");
        assert_eq!(too_seldom(&counts, MANY - 1), [""; 0], "so few say nothing");
        assert_eq!(
            too_seldom(&counts, 2 * MANY).len(),
            LEAST.len() + faults::NAMES.len() - 1 + LEAST_EFFECTS.len()
        );
        assert_eq!(too_seldom(&counts, MANY), ["cut-power: 0, at least 60 are to be"]);
    }
}
