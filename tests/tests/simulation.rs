//! The suite of whole pools under virtual time: what the pool promises holds whatever fails, seed by seed.

use kubexen_testbed::simulation::{
    Schedule,
    faults::Faults,
    first_difference,
    floor::{Counts, too_seldom},
    replay,
    scenario::{read_all, story},
    simulate, simulate_all,
};
use std::{collections::BTreeMap, path::Path};

#[test]
fn every_promise_is_kept_under_twenty_thousand_schedules_of_faults() {
    let (mut complaints, mut counts) = (Vec::new(), Counts::new());
    simulate_all(0..20_000, &Faults::default(), |outcome| {
        complaints.extend(outcome.complaint());
        for (name, times) in outcome.counts {
            *counts.entry(name).or_default() += times;
        }
    });
    assert!(
        complaints.is_empty(),
        "{} schedules broke promises:\n{}",
        complaints.len(),
        complaints.join("\n\n")
    );
    assert_eq!(too_seldom(&counts, 20_000), [""; 0], "the schedules put too little at stake");
}

/// Each story is kept beside its scenario, to be read: `INSTA_UPDATE=always cargo test --workspace --test simulation` writes
/// them anew.
#[test]
fn every_scenario_keeps_its_promises_and_goes_as_its_story_tells() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let scenarios = read_all(&folder).unwrap();
    assert!(scenarios.len() >= 40, "{} scenarios", scenarios.len());
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(folder.join("stories"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let mut broken = Vec::new();
    for (name, schedule) in scenarios {
        assert!(schedule.expectations() > 0, "{name} expects nothing");
        let outcome = replay(&schedule);
        broken.extend(outcome.violations.iter().map(|how| format!("{name}: {how}")));
        settings.bind(|| insta::assert_snapshot!(name, story(&outcome)));
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let mut first = BTreeMap::new();
    simulate_all(20_000..20_150, &Faults::default(), |outcome| drop(first.insert(outcome.seed, outcome)));
    simulate_all(20_000..20_150, &Faults::default(), |again| {
        let first = first.remove(&again.seed).unwrap();
        assert_eq!(first_difference(&first.trace, &again.trace), None, "seed {}", again.seed);
        assert_eq!(first, again);
    });
    assert!(first.is_empty());
    assert_ne!(simulate(20_000).trace, simulate(20_001).trace);
}

#[test]
fn a_schedule_that_is_written_down_and_replayed_goes_as_it_went() {
    simulate_all(20_000..20_040, &Faults::default(), |outcome| {
        let written: Schedule = outcome.schedule.to_string().parse().unwrap();
        let again = replay(&written);
        assert_eq!(first_difference(&outcome.trace, &again.trace), None, "seed {}", outcome.seed);
        assert_eq!(outcome, again);
    });
}
