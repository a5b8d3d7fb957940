//! In which order the machines of a dead boot come back, pure.

use std::{collections::BTreeMap, time::Duration};

use kubexen_ownership::HostBoot;
use tokio::time::Instant;

/// How long an order holds those after it since it is on turn, whatever keeps its machines from starting; their `startDelay` counts
/// in addition.
const PATIENCE: Duration = Duration::from_mins(2);

/// A machine that a dead boot had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The boot.
    pub(crate) boot: HostBoot,
    /// `spec.availability.order`.
    pub(crate) order: i32,
    /// `spec.availability.startDelay`.
    pub(crate) delay: Duration,
    /// How far it is.
    pub(crate) state: State,
}

/// How far a machine is on its way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// It waits, or is on its way.
    Waiting,
    /// It cannot be started now: something that it refers to is missing, no host fits, or its new host cannot start it. Others need
    /// not wait for it.
    Stuck,
    /// It has been Ready for this long.
    Ready(Duration),
}

/// Whose turn it is, for each dead boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turns(BTreeMap<HostBoot, i32>);

impl Turns {
    /// Whether it is the turn of a machine of this order.
    pub(crate) fn allows(&self, boot: &HostBoot, order: i32) -> bool {
        self.0.get(boot).is_none_or(|turn| order <= *turn)
    }
}

/// Since when each order has been on turn.
#[derive(Debug, Default)]
pub(crate) struct Queue(BTreeMap<(HostBoot, i32), Instant>);

impl Queue {
    /// Whose turn it is: of each boot the lowest order of which a machine has not started, or has not for its delay, and that has
    /// not been on turn for longer than there is patience.
    pub(crate) fn turns(&mut self, members: &[Member], now: Instant) -> Turns {
        self.0.retain(|(boot, _), _| members.iter().any(|member| member.boot == *boot));
        let mut turns: BTreeMap<HostBoot, i32> = BTreeMap::new();
        for member in members.iter().filter(|member| self.holds_others(member, now)) {
            let turn = turns.entry(member.boot.clone()).or_insert(member.order);
            *turn = member.order.min(*turn);
        }
        for (boot, order) in &turns {
            self.0.entry((boot.clone(), *order)).or_insert(now);
        }
        Turns(turns)
    }

    /// Nothing of these boots is started elsewhere now: that time does not count.
    pub(crate) fn stand_still(&mut self, held: impl Fn(&HostBoot) -> bool) {
        self.0.retain(|(boot, _), _| !held(boot));
    }

    fn holds_others(&self, member: &Member, now: Instant) -> bool {
        match member.state {
            State::Waiting => {
                let since = self.0.get(&(member.boot.clone(), member.order));
                since.is_none_or(|since| now.saturating_duration_since(*since) < PATIENCE)
            }
            State::Stuck => false,
            State::Ready(since) => since < member.delay,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recovery::tests::boot;

    fn member(order: i32, delay: u64, state: State) -> Member {
        Member { boot: boot("a", 1), order, delay: Duration::from_secs(delay), state }
    }

    #[test]
    fn the_next_order_waits_until_the_lower_ones_have_started_and_their_delay_is_over() {
        let ready = |seconds| State::Ready(Duration::from_secs(seconds));
        for (first, allows) in [
            (State::Waiting, false),
            (State::Stuck, true),
            (ready(0), false),
            (ready(29), false),
            (ready(30), true),
        ] {
            let members = [member(10, 30, first), member(20, 0, State::Waiting)];
            let turns = Queue::default().turns(&members, Instant::now());
            assert!(turns.allows(&boot("a", 1), 10), "{first:?}");
            assert_eq!(turns.allows(&boot("a", 1), 20), allows, "{first:?}");
            assert!(turns.allows(&boot("b", 1), 20), "another host's machines have their own order");
        }
    }

    #[test]
    fn all_of_one_order_start_together() {
        let members = [member(10, 0, State::Waiting), member(10, 0, State::Waiting)];
        assert!(Queue::default().turns(&members, Instant::now()).allows(&boot("a", 1), 10));
    }

    #[test]
    fn an_order_that_does_not_get_on_holds_the_next_no_longer_than_there_is_patience() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let members = [10, 20, 30].map(|order| member(order, 0, State::Waiting));
        let mut last = |after: Duration| {
            let turns = queue.turns(&members, start + after);
            [10, 20, 30].into_iter().filter(|order| turns.allows(&boot("a", 1), *order)).max()
        };
        let second = Duration::from_secs(1);
        assert_eq!(last(Duration::ZERO), Some(10));
        assert_eq!(last(PATIENCE - second), Some(10));
        assert_eq!(last(PATIENCE), Some(20), "the first goes on with it");
        assert_eq!(last(PATIENCE * 2 - second), Some(20), "each order has its own time");
        assert_eq!(last(PATIENCE * 2), Some(30));
    }

    #[test]
    fn time_in_which_nothing_is_started_elsewhere_does_not_count_and_a_delay_counts_in_addition() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let waiting = [member(10, 0, State::Waiting), member(20, 0, State::Waiting)];
        queue.turns(&waiting, start);
        queue.stand_still(|_| true);
        assert!(!queue.turns(&waiting, start + PATIENCE).allows(&boot("a", 1), 20));
        let delayed = [member(10, 300, State::Ready(PATIENCE)), member(20, 0, State::Waiting)];
        assert!(!queue.turns(&delayed, start + PATIENCE * 3).allows(&boot("a", 1), 20));
    }
}
