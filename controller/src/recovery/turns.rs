//! In which order the machines of a dead boot come back, pure.

use std::{collections::BTreeMap, time::Duration};

use kubexen_ownership::HostBoot;

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
    /// No host fits, or its new host cannot start it: others need not wait for it.
    Stuck,
    /// It has been Ready for this long.
    Ready(Duration),
}

/// Whose turn it is, for each dead boot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Turns(BTreeMap<HostBoot, i32>);

impl Turns {
    /// Whose turn it is: of each boot the lowest order of which a machine has not started, or has not for its delay.
    pub(crate) fn of(members: &[Member]) -> Self {
        let mut turns: BTreeMap<HostBoot, i32> = BTreeMap::new();
        for member in members.iter().filter(|member| member.holds_others()) {
            let turn = turns.entry(member.boot.clone()).or_insert(member.order);
            *turn = member.order.min(*turn);
        }
        Self(turns)
    }

    /// Whether it is the turn of a machine of this order.
    pub(crate) fn allows(&self, boot: &HostBoot, order: i32) -> bool {
        self.0.get(boot).is_none_or(|turn| order <= *turn)
    }
}

impl Member {
    fn holds_others(&self) -> bool {
        match self.state {
            State::Waiting => true,
            State::Stuck => false,
            State::Ready(since) => since < self.delay,
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
            let turns = Turns::of(&[member(10, 30, first), member(20, 0, State::Waiting)]);
            assert!(turns.allows(&boot("a", 1), 10), "{first:?}");
            assert_eq!(turns.allows(&boot("a", 1), 20), allows, "{first:?}");
            assert!(turns.allows(&boot("b", 1), 20), "another host's machines have their own order");
        }
    }

    #[test]
    fn all_of_one_order_start_together() {
        let turns = Turns::of(&[member(10, 0, State::Waiting), member(10, 0, State::Waiting)]);
        assert!(turns.allows(&boot("a", 1), 10));
    }
}
