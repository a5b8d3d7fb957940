//! What an agent knows of its own lease, and what is due because of it.

use tokio::time::Instant;

use super::Timing;
use crate::names::LeaseId;

/// What is due on a host whose renewals go unanswered. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Nothing.
    Healthy,
    /// Warn, and take no more guests.
    Refuse,
    /// Guarded guests stand still. They may go on when a renewal is answered.
    Pause,
    /// Guarded guests are destroyed.
    Stop,
    /// The host should have been reset by now.
    Reset,
}

/// The lease of an agent, as the agent may believe in it.
///
/// Pure: it is told what was sent and answered, and when.
#[derive(Clone, Debug)]
pub struct Vitals {
    timing: Timing,
    held: Option<Held>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    lease: LeaseId,
    /// When the last request was sent that the store has answered with the lease.
    sent: Instant,
    /// Whether the store has said since that there is no such lease.
    ended: bool,
}

impl Vitals {
    /// Nothing is held yet.
    #[must_use]
    pub fn new(timing: Timing) -> Self {
        Self { timing, held: None }
    }

    /// Other times hold from now on.
    pub fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// The times.
    #[must_use]
    pub fn timing(&self) -> Timing {
        self.timing
    }

    /// The store has answered a join, or a renewal of `lease`, that was sent then.
    ///
    /// An answer to a request that was sent before another answered one changes nothing.
    pub fn answered(&mut self, lease: LeaseId, sent: Instant) {
        if self.held.is_none_or(|held| held.lease != lease || held.sent < sent) {
            let sent = self.held.map_or(sent, |held| held.sent.max(sent));
            self.held = Some(Held { lease, sent, ended: false });
        }
    }

    /// The store has no such lease any more.
    pub fn ended(&mut self, lease: LeaseId) {
        if let Some(held) = self.held.as_mut().filter(|held| held.lease == lease) {
            held.ended = true;
        }
    }

    /// The lease to renew; none if another has to be asked for.
    #[must_use]
    pub fn lease(&self) -> Option<LeaseId> {
        self.held.filter(|held| !held.ended).map(|held| held.lease)
    }

    /// When the host is to be reset if nothing else is heard; none if it never had a lease, and so may guard nothing.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.held.map(|held| held.sent + self.timing.deadline)
    }

    /// What is due at `now`. Without a lease no guest may be taken, and there is none that was guarded.
    #[must_use]
    pub fn rung(&self, now: Instant) -> Rung {
        let Some(held) = self.held else { return Rung::Refuse };
        let silent = now.saturating_duration_since(held.sent);
        let timing = self.timing;
        if silent >= timing.deadline {
            Rung::Reset
        } else if silent >= timing.stop() {
            Rung::Stop
        } else if silent >= timing.pause() {
            Rung::Pause
        } else if silent >= timing.refuse() || held.ended {
            Rung::Refuse
        } else {
            Rung::Healthy
        }
    }

    /// When the next rung is due, if nothing is heard; none on the last one and without a lease.
    #[must_use]
    pub fn next_rung(&self, now: Instant) -> Option<Instant> {
        let sent = self.held?.sent;
        let timing = self.timing;
        let rungs = [timing.refuse(), timing.pause(), timing.stop(), timing.deadline];
        rungs.into_iter().map(|after| sent + after).find(|due| *due > now)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const LEASE: LeaseId = LeaseId(7);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn the_ladder_counts_from_when_the_last_answered_renewal_was_sent() {
        let start = Instant::now();
        let mut vitals = Vitals::new(Timing::DEFAULT);
        assert_eq!((vitals.rung(start), vitals.deadline()), (Rung::Refuse, None));
        vitals.answered(LEASE, start);
        for (second, rung) in [
            (0, Rung::Healthy),
            (9, Rung::Healthy),
            (10, Rung::Refuse),
            (11, Rung::Refuse),
            (12, Rung::Pause),
            (15, Rung::Pause),
            (16, Rung::Stop),
            (19, Rung::Stop),
            (20, Rung::Reset),
        ] {
            assert_eq!(vitals.rung(start + seconds(second)), rung, "after {second} s");
        }
        assert_eq!(vitals.next_rung(start), Some(start + seconds(10)));
        assert_eq!(vitals.next_rung(start + seconds(17)), Some(start + seconds(20)));
        assert_eq!(vitals.next_rung(start + seconds(20)), None);
        vitals.answered(LEASE, start + seconds(15));
        assert_eq!(vitals.rung(start + seconds(16)), Rung::Healthy);
        assert_eq!(vitals.deadline(), Some(start + seconds(35)));
    }

    #[test]
    fn an_answer_that_comes_late_gives_no_more_time_than_its_request() {
        let start = Instant::now();
        let mut vitals = Vitals::new(Timing::DEFAULT);
        vitals.answered(LEASE, start + seconds(5));
        vitals.answered(LEASE, start + seconds(1));
        assert_eq!(vitals.deadline(), Some(start + seconds(25)));
    }

    #[test]
    fn a_lease_that_has_ended_is_not_renewed_and_gives_no_time_but_that_which_it_gave() {
        let start = Instant::now();
        let mut vitals = Vitals::new(Timing::DEFAULT);
        vitals.answered(LEASE, start);
        vitals.ended(LeaseId(8));
        assert_eq!(vitals.lease(), Some(LEASE));
        vitals.ended(LEASE);
        assert_eq!(vitals.lease(), None);
        assert_eq!(vitals.rung(start + seconds(1)), Rung::Refuse);
        assert_eq!(vitals.deadline(), Some(start + seconds(20)));
        let next = LeaseId(9);
        vitals.answered(next, start + seconds(2));
        assert_eq!((vitals.lease(), vitals.rung(start + seconds(3))), (Some(next), Rung::Healthy));
    }
}
