//! The agent's timer against a model of Xen's two, with agents that end at any step.

use super::*;
use std::{cell::Cell, cell::RefCell, rc::Rc};

/// Xen's two timers, as `domain_watchdog` of its scheduler keeps them; the seconds that each was given last.
#[derive(Clone, Debug, Default)]
struct Xen {
    timers: Rc<RefCell<[Option<u32>; 2]>>,
    /// After how many calls the agent ends: the call is done, and the agent does not hear of it.
    ends_after: Rc<Cell<Option<u32>>>,
}

impl Xen {
    fn running(&self) -> [Option<u32>; 2] {
        *self.timers.borrow()
    }

    fn call(&self, timer: u32, seconds: u32) -> Result<u32, Errno> {
        let mut timers = self.timers.borrow_mut();
        if timer == ANY {
            let free = timers.iter().position(Option::is_none).ok_or(Errno::NOSPC)?;
            timers[free] = Some(seconds);
            return Ok(NUMBERS[free]);
        }
        let index = NUMBERS.iter().position(|number| *number == timer).ok_or(Errno::INVAL)?;
        timers[index].ok_or(Errno::INVAL)?;
        timers[index] = (seconds != STOP).then_some(seconds);
        Ok(0)
    }
}

/// The agent has ended.
struct Ended;

impl Timers for Xen {
    fn set(&mut self, timer: u32, seconds: u32) -> io::Result<u32> {
        let result = self.call(timer, seconds);
        if let Some(left) = self.ends_after.get() {
            self.ends_after.set(left.checked_sub(1));
            if left == 0 {
                std::panic::resume_unwind(Box::new(Ended));
            }
        }
        Ok(result?)
    }
}

struct Bed {
    xen: Xen,
    folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Self { xen: Xen::default(), folder: tempfile::tempdir().unwrap() }
    }

    /// An agent that starts on this boot.
    fn agent(&self, boot: &str, alone: bool) -> Slot<Xen> {
        let file = self.folder.path().join("run/watchdog.json");
        let mut slot = Slot::load(self.xen.clone(), file, boot.to_owned(), alone);
        slot.settle().unwrap();
        slot
    }

    /// Lets an agent do this and end right after so many calls to Xen.
    fn ends(&self, after: u32, what: impl FnOnce(&mut Slot<Xen>)) {
        let mut agent = self.agent("boot", true);
        self.xen.ends_after.set(after.checked_sub(1));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| what(&mut agent))).unwrap_err();
        self.xen.ends_after.set(None);
    }
}

fn set(slot: &mut Slot<Xen>, seconds: f64) -> Result<(), WatchdogError> {
    let now = Instant::now();
    slot.set(now + Duration::from_secs_f64(seconds), || now)
}

#[test]
fn a_timer_is_taken_once_moved_and_given_back() {
    let bed = Bed::new();
    let mut agent = bed.agent("boot", true);
    set(&mut agent, 20.9).unwrap();
    set(&mut agent, 19.0).unwrap();
    assert_eq!(bed.xen.running(), [Some(19), None]);
    agent.release().unwrap();
    agent.release().unwrap();
    assert_eq!(bed.xen.running(), [None, None]);
    assert!(!agent.file.exists());
}

#[test]
fn a_deadline_that_is_near_or_past_does_not_stop_the_timer() {
    let bed = Bed::new();
    let mut agent = bed.agent("boot", true);
    for seconds in [0.0, 0.4, 1.9] {
        set(&mut agent, seconds).unwrap();
        assert_eq!(bed.xen.running(), [Some(1), None], "{seconds}");
    }
}

#[test]
fn a_thread_that_is_held_up_during_the_call_sets_the_time_that_is_left_then() {
    let bed = Bed::new();
    let mut agent = bed.agent("boot", true);
    let (began, looks) = (Instant::now(), Cell::new(0));
    // The second look is six seconds after the first.
    let now = || began + Duration::from_secs(if looks.replace(looks.get() + 1) == 0 { 0 } else { 6 });
    agent.set(began + Duration::from_secs(20), now).unwrap();
    assert_eq!(bed.xen.running(), [Some(14), None]);
}

#[test]
fn the_next_agent_goes_on_with_the_timer_and_does_not_touch_it_to_prove_that_there_is_one() {
    let bed = Bed::new();
    set(&mut bed.agent("boot", true), 20.0).unwrap();
    let mut next = bed.agent("boot", true);
    next.prove().unwrap();
    assert_eq!(bed.xen.running(), [Some(20), None]);
    set(&mut next, 18.0).unwrap();
    assert_eq!(bed.xen.running(), [Some(18), None]);
    next.release().unwrap();
    assert_eq!(bed.xen.running(), [None, None]);
}

#[test]
fn the_number_of_another_boot_means_nothing() {
    let bed = Bed::new();
    set(&mut bed.agent("boot", true), 20.0).unwrap();
    *bed.xen.timers.borrow_mut() = [Some(60), None];
    let mut agent = bed.agent("next boot", false);
    agent.release().unwrap();
    assert_eq!(bed.xen.running(), [Some(60), None], "somebody else's timer was stopped");
}

#[test]
fn an_agent_that_ends_before_it_knows_its_timer_leaves_none_that_runs_once_another_starts() {
    let bed = Bed::new();
    bed.ends(1, |agent| set(agent, 20.0).unwrap());
    assert_eq!(bed.xen.running(), [Some(20), None]);
    bed.agent("boot", true);
    assert_eq!(bed.xen.running(), [None, None]);
    // The same while it is shown that there is one, which resets no host even if no other agent starts.
    bed.ends(1, |agent| agent.prove().unwrap());
    assert_eq!(bed.xen.running(), [Some(TRIAL), None]);
    assert!(Duration::from_secs(TRIAL.into()) > Duration::from_hours(50 * 365 * 24), "no boot lasts as long");
    set(&mut bed.agent("boot", true), 20.0).unwrap();
    assert_eq!(bed.xen.running(), [Some(20), None]);
}

#[test]
fn a_timer_in_doubt_is_stopped_and_that_of_somebody_who_came_later_is_not() {
    let bed = Bed::new();
    bed.ends(1, |agent| set(agent, 20.0).unwrap());
    bed.xen.call(ANY, 60).unwrap();
    bed.agent("boot", false);
    assert_eq!(bed.xen.running(), [None, Some(60)]);
}

#[test]
fn an_agent_that_ends_while_it_gives_its_timer_back_leaves_none() {
    let bed = Bed::new();
    set(&mut bed.agent("boot", true), 20.0).unwrap();
    bed.ends(1, |agent| agent.release().unwrap());
    let mut next = bed.agent("boot", true);
    next.release().unwrap();
    assert_eq!(bed.xen.running(), [None, None]);
    set(&mut next, 20.0).unwrap();
    assert_eq!(bed.xen.running(), [Some(20), None]);
}

#[test]
fn a_timer_that_somebody_else_stopped_is_taken_again() {
    let bed = Bed::new();
    let mut agent = bed.agent("boot", true);
    set(&mut agent, 20.0).unwrap();
    bed.xen.call(1, STOP).unwrap();
    set(&mut agent, 20.0).unwrap();
    assert_eq!(bed.xen.running(), [Some(20), None]);
}

#[test]
fn timers_that_are_all_taken_are_said_and_left_alone() {
    let bed = Bed::new();
    *bed.xen.timers.borrow_mut() = [Some(60), Some(70)];
    let mut agent = bed.agent("boot", true);
    let complaint = agent.prove().unwrap_err().0;
    assert!(complaint.contains("both timers"), "{complaint}");
    assert_eq!(bed.xen.running(), [Some(60), Some(70)]);
    bed.xen.call(2, STOP).unwrap();
    agent.prove().unwrap();
    assert_eq!(bed.xen.running(), [Some(60), None]);
    bed.xen.call(ANY, 70).unwrap();
    agent.prove().expect_err("they are taken again");
}

#[test]
fn a_timer_whose_number_cannot_be_written_down_is_not_taken() {
    let bed = Bed::new();
    let mut agent = bed.agent("boot", true);
    fs::write(bed.folder.path().join("run"), "not a folder").unwrap();
    set(&mut agent, 20.0).unwrap_err();
    assert_eq!(bed.xen.running(), [None, None]);
}
