//! What hosts last heard of the pool's store, as the judge knows it: one that hears nothing stops what it guards (I8), not before its
//! time (I4), and is not reset before its time (I5).

use super::judge::Judge;
use kubexen_node_agent::hypervisor::{
    DomainState,
    simulated::{StartEvent, StartRecord},
};
use kubexen_ownership::liveness::Timing;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use uuid::Uuid;

/// What a host has more than its deadline: its watchdog counts in whole seconds.
const ROUNDING: Duration = Duration::from_secs(1);

/// How long what a silent host has begun may take when it has heard of the store again.
const ENDS_WITHIN: Duration = Duration::from_secs(1);

/// How long it may take a host whose promise was taken back by a request that came late to try again, and so to learn of it.
const TOLD_WITHIN: Duration = Duration::from_mins(2);

/// When a host sent its last two requests to the pool's store that were answered with a lease, and what was answered lately.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) before: Option<Instant>,
    pub(super) last: Instant,
    /// Answers, the oldest first: when the request was sent and when the answer came. All since [`ENDS_WITHIN`], and the last one
    /// before.
    pub(super) answers: Vec<(Instant, Instant)>,
    /// When the host is to have stopped what it guards; none once that was judged.
    pub(super) due: Option<Instant>,
    /// What it guarded then or within [`TOLD_WITHIN`] before, as far as the store said, and when the store said so last.
    pub(super) promised: BTreeMap<Uuid, Instant>,
    /// The times that it goes by.
    pub(super) timing: Timing,
    /// The shorter of these and of those before.
    pub(super) shortest: Timing,
}

/// The shorter of two.
pub(super) fn shorter(one: Timing, other: Timing) -> Timing {
    if other.deadline < one.deadline { other } else { one }
}

impl Heard {
    /// Whether the host was silent for so long that it stops what it guards. What it has begun then it may end within
    /// [`ENDS_WITHIN`] after it has heard of the store again.
    pub(super) fn is_silent(&self) -> bool {
        let known = self.answers.iter().rfind(|(_, told)| told.elapsed() > ENDS_WITHIN);
        known.is_none_or(|(sent, _)| sent.elapsed() >= self.shortest.stop())
    }

    /// Whether the host's watchdog may have reset it by now: its deadline has passed, counted from the last request but one, for
    /// nobody knows whether an agent that has just ended has moved the watchdog after the last one.
    pub(super) fn may_be_reset(&self) -> bool {
        self.before.is_none_or(|before| before.elapsed() + ROUNDING >= self.shortest.deadline)
    }
}

impl Judge {
    /// A host sent a request at this moment that made it live for longer, and is to have stopped what it guards a deadline later.
    pub(super) fn heard(&self, host: &str, sent: Instant, timing: Timing, is_guarded: impl Fn(Uuid) -> bool) {
        let mut state = self.lock();
        let guarded = state.machines.iter().copied().filter(|guest| is_guarded(*guest));
        let guarded: Vec<Uuid> = guarded.collect();
        let heard = state.heard.get(host);
        let mut promised = heard.map(|heard| heard.promised.clone()).unwrap_or_default();
        promised.retain(|_, said| said.elapsed() < TOLD_WITHIN);
        promised.extend(guarded.into_iter().map(|guest| (guest, Instant::now())));
        let before = heard.map(|heard| heard.last);
        let shortest = heard.map_or(timing, |heard| shorter(heard.timing, timing));
        let due = Some(sent + timing.deadline + ROUNDING);
        let mut answers = heard.map(|heard| heard.answers.clone()).unwrap_or_default();
        let old = answers.iter().filter(|(_, told)| told.elapsed() > ENDS_WITHIN).count();
        answers.drain(..old.saturating_sub(1));
        answers.push((sent, Instant::now()));
        let heard = Heard { before, last: sent, answers, due, promised, timing, shortest };
        state.heard.insert(host.to_owned(), heard);
    }

    /// A host asks for a lease with these times, and goes by them at once if they are shorter.
    pub(super) fn asks_for(&self, host: &str, timing: Timing) {
        if let Some(heard) = self.lock().heard.get_mut(host) {
            heard.timing = shorter(heard.timing, timing);
            heard.shortest = shorter(heard.shortest, timing);
        }
    }

    /// The watchdog has reset a host: not before its deadline.
    pub(super) fn was_reset(&self, host: &str) {
        let early = self.lock().heard.get(host).is_some_and(|heard| !heard.may_be_reset());
        if early {
            self.violated("I5", format_args!("{host} was reset, and had heard of the store in time"));
        }
    }

    /// The times that a host goes by, as far as it was heard of.
    pub(super) fn timing_of(&self, host: &str) -> Timing {
        self.lock().heard.get(host).map_or(Timing::DEFAULT, |heard| heard.timing)
    }

    /// The next moment at which a host is to have stopped what it guards, if it hears nothing until then.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.lock().heard.values().filter_map(|heard| heard.due).min()
    }

    /// Judges hosts that have heard nothing for their deadline: what they guard has stopped by then, or they were reset.
    pub(super) fn judge_silence(&self, is_guarded: impl Fn(&str, Uuid) -> bool) {
        let now = Instant::now();
        let mut silent = Vec::new();
        for (host, heard) in &mut self.lock().heard {
            if let Some(due) = heard.due.take_if(|due| *due <= now) {
                silent.push((host.clone(), due));
            }
        }
        for (host, due) in silent {
            for guest in self.running_since(&host, due) {
                if is_guarded(&host, guest) {
                    self.violated("I8", format_args!("{guest} runs on {host}, which should have stopped it"));
                }
            }
        }
    }

    /// The guests that run on a host, and have since this moment or longer.
    fn running_since(&self, host: &str, since: Instant) -> Vec<Uuid> {
        let Some(host) = self.lock().hosts.get(host).cloned() else { return Vec::new() };
        let (domains, log) = (host.domains().unwrap_or_default(), host.start_log().unwrap_or_default());
        let (now, age) = (self.clock.now(), since.elapsed());
        let runs_for = |guest: Uuid| {
            let begins = |record: &&StartRecord| record.uuid == guest && record.event != StartEvent::Claim;
            Duration::try_from(now.duration_since(log.iter().rev().find(begins)?.at)).ok()
        };
        let running = domains.into_iter().filter(|domain| domain.state == DomainState::Running);
        let running = running.map(|domain| domain.uuid);
        running.filter(|guest| runs_for(*guest).is_some_and(|time| time >= age)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn heard(before: Option<Instant>, timing: Timing) -> Heard {
        let (now, promised) = (Instant::now(), BTreeMap::new());
        let answers = before.map(|before| (before, before)).into_iter().chain([(now, now)]).collect();
        Heard { before, last: now, answers, due: None, promised, timing, shortest: timing }
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_silent_by_its_own_times_and_reset_not_before_its_deadline() {
        for (timing, seconds, is_silent, may_be_reset) in [
            (Timing::FAST, 5, false, false),
            (Timing::FAST, 6, true, false),
            (Timing::FAST, 7, true, true),
            (Timing::DEFAULT, 15, false, false),
            (Timing::DEFAULT, 16, true, false),
            (Timing::DEFAULT, 19, true, true),
        ] {
            let heard = heard(Some(Instant::now()), timing);
            advance(Duration::from_secs(seconds)).await;
            assert_eq!((heard.is_silent(), heard.may_be_reset()), (is_silent, may_be_reset), "{seconds} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_in_silence_may_end_a_moment_later() {
        let silent_since = Instant::now();
        advance(Duration::from_secs(17)).await;
        let mut heard = heard(Some(silent_since), Timing::DEFAULT);
        assert!(heard.is_silent());
        let now = Instant::now();
        heard.answers.push((now, now));
        assert!(heard.is_silent(), "several requests may be answered at once");
        advance(Duration::from_secs(2)).await;
        assert!(!heard.is_silent());
    }
}
