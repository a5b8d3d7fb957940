//! Makes a failing schedule short: what is left breaks the same promise, and breaks it no more without any one of its steps.

use super::{Outcome, Schedule, step::Step};
use std::ops::Range;

/// Leaves out whatever steps are not needed for the first promise that the schedule breaks, beginning with many at once
/// (delta debugging: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002). There is
/// nothing to find in a schedule that breaks no promise.
pub(super) fn shrink(schedule: &Schedule, run: impl Fn(&Schedule) -> Outcome) -> Option<Schedule> {
    let promise = |outcome: &Outcome| {
        let broken = outcome.violations.first()?;
        broken.split_once(':').map(|(promise, _)| promise.to_owned())
    };
    let broken = promise(&run(schedule))?;
    let mut shortest = schedule.clone();
    let mut pieces = 2;
    while shortest.steps.len() > 1 {
        let shorter = ranges(shortest.steps.len(), pieces).into_iter().find_map(|left_out| {
            let candidate = Schedule { steps: without(&shortest.steps, &left_out), ..shortest.clone() };
            (promise(&run(&candidate)).as_ref() == Some(&broken)).then_some(candidate)
        });
        match shorter {
            Some(shorter) => {
                shortest = shorter;
                pieces = (pieces - 1).max(2);
            }
            None if pieces >= shortest.steps.len() => break,
            None => pieces = (pieces * 2).min(shortest.steps.len()),
        }
    }
    Some(shortest)
}

fn without(steps: &[Step], left_out: &Range<usize>) -> Vec<Step> {
    let kept = steps.iter().enumerate().filter(|(index, _)| !left_out.contains(index));
    kept.map(|(_, step)| step.clone()).collect()
}

/// `length` steps in so many pieces that are about equally long.
fn ranges(length: usize, pieces: usize) -> Vec<Range<usize>> {
    (0..pieces).map(|piece| length * piece / pieces..length * (piece + 1) / pieces).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulation::step::{Action, Seconds};
    use std::time::Duration;

    #[test]
    fn only_what_breaks_the_promise_is_left() {
        let step = |second: u64| {
            let action = Action::StoreOutage { r#for: Seconds(f64::from(u32::try_from(second).unwrap())) };
            Step { at: Duration::from_secs(second), action }
        };
        let schedule = Schedule { steps: (0..40).map(step).collect(), ..Schedule::default() };
        let run = |schedule: &Schedule| {
            let has = |second: u64| schedule.steps.contains(&step(second));
            let violations =
                if has(7) && has(31) { vec!["I1: twice".to_owned()] } else { vec!["L1: no".to_owned()] };
            Outcome { violations, ..Outcome::default() }
        };
        assert_eq!(shrink(&schedule, run).unwrap().steps, [step(7), step(31)]);
        assert_eq!(shrink(&schedule, |_| Outcome::default()), None, "nothing is broken");
    }
}
