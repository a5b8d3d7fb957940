//! The suite of whole pools under virtual time: what the pool promises holds whatever fails, seed by seed.

use kubexen_testbed::simulation::{first_difference, simulate, simulate_all};

#[test]
fn every_promise_is_kept_under_fifty_schedules_of_faults() {
    let mut complaints = Vec::new();
    simulate_all(0..50, |outcome| complaints.extend(outcome.complaint()));
    assert!(
        complaints.is_empty(),
        "{} schedules broke promises:\n{}",
        complaints.len(),
        complaints.join("\n\n")
    );
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    for seed in 1_000..1_003 {
        let (one, other) = (simulate(seed), simulate(seed));
        assert_eq!(first_difference(&one.trace, &other.trace), None, "seed {seed}");
        assert_eq!(one, other);
    }
    assert_ne!(simulate(1_000).trace, simulate(1_001).trace);
}
