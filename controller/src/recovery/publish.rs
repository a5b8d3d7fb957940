//! Puts on the board what was found at a look, and wakes whom it concerns.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    time::Duration,
};

use kubexen_crds::HostRecovery;
use kubexen_ownership::{
    HostBoot, Owner, VmUid,
    liveness::{Brake, Roll},
};
use kubexen_runtime::Key;
use tokio::time::Instant;

use super::{
    decide::Halt,
    followers::{self, Follower, Open},
    say, times,
    turns::Queue,
};
use crate::context::Context;

/// How often at most the counts in a Host's status are written, and how long nothing must have been left to come back before that
/// is said.
const RECOUNT: Duration = Duration::from_secs(5);

/// What was found at a look.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) now: Instant,
    pub(super) roll: Roll,
    /// All owners, if they were read anew.
    pub(super) owners: Option<BTreeMap<VmUid, Owner>>,
    pub(super) halt: Option<Halt>,
    pub(super) brake: Option<Brake>,
    /// Hosts that are silent.
    pub(super) silent: Vec<String>,
}

/// What is kept of what was told.
#[derive(Debug, Default)]
pub(super) struct Publisher {
    queue: Queue,
    /// When each Host was told last how its guests come back.
    told: BTreeMap<String, Instant>,
    /// Hosts that are still to be told.
    untold: BTreeSet<String>,
    /// Since when nothing is left to come back of a boot of which its Host says otherwise.
    empty: BTreeMap<HostBoot, Instant>,
}

impl Publisher {
    /// Puts on the board what was found, and wakes whom it concerns.
    pub(super) fn publish(&mut self, context: &Context, found: Found) {
        let Found { now, roll, owners, halt, brake, silent } = found;
        let fresh = owners.is_some();
        let wall = context.clock.now();
        let mut board = context.recovery.board();
        if let Some(owners) = owners {
            board.renew_owners(owners);
        }
        let before = mem::replace(&mut board.roll, roll);
        let open = followers::open(context, &board);
        for boot in &open.boots {
            times::remember(context, &mut board, boot, wall);
        }
        let followers = followers::followers(context, &board, &open, wall);
        let roll = &board.roll;
        let is_held = |boot: &HostBoot| {
            let is_off = roll.fenced.get(boot).is_some_and(|record| record.proof.covers_unguarded());
            halt.is_some() || brake.is_some() && !is_off
        };
        self.queue.stand_still(is_held);
        let members: Vec<_> = followers.iter().map(|follower| follower.member.clone()).collect();
        let turns = self.queue.turns(&members, now);
        let done = self.done(&open, &followers, halt.as_ref(), now);
        let hosts = say::recoveries(&board, &followers, &done, wall);
        let on_their_way = |vm: &VmUid| followers.iter().any(|one| one.vm == *vm && one.ready.is_none());
        board.given.retain(|vm, _| on_their_way(vm));
        let machines_changed = before.fenced.keys().ne(board.roll.fenced.keys())
            || before.live.keys().ne(board.roll.live.keys())
            || board.turns != turns
            || board.halt != halt
            || board.brake.is_some() != brake.is_some()
            || fresh && !followers.is_empty();
        let pool_changed = mem::take(&mut board.unreachable)
            || board.read.is_none()
            || machines_changed
            || board.brake != brake
            || board.silent != silent
            || board.hosts != hosts;
        self.untold.extend(host_changes(&before, &board.roll, &board.hosts, &hosts));
        board.read = Some(now);
        board.halt = halt;
        board.brake = brake;
        board.silent = silent;
        board.turns = turns;
        board.hosts = hosts;
        let dead: BTreeSet<String> = board.roll.fenced.keys().map(|boot| boot.host.to_string()).collect();
        let may_be_told = |host: &String| {
            let complete = board.hosts.get(host).is_none_or(|recovery| recovery.completed.is_some());
            complete || self.told.get(host).is_none_or(|told| now.duration_since(*told) >= RECOUNT)
        };
        let (tell, later) = mem::take(&mut self.untold).into_iter().partition(may_be_told);
        self.untold = later;
        drop(board);
        let tell: BTreeSet<String> = tell;
        for host in tell {
            self.told.insert(host.clone(), now);
            context.queues.add(&context.queues.hosts, Key::cluster(host));
        }
        if machines_changed {
            let followers = followers.into_iter().map(|follower| follower.key);
            context.queues.add_all(&context.queues.machines, followers);
            for host in dead {
                context.queues.add_all(&context.queues.machines, followers::machines_on(context, &host));
            }
        }
        if pool_changed {
            context.queues.add_all(&context.queues.pools, context.view.pools.keys());
        }
    }

    /// Boots of which nothing is left to come back although their Hosts say so: the last that was on its way was deleted or halted,
    /// say. What another controller has just given to a host may not be written down yet, so it must have been so for a while.
    fn done(
        &mut self,
        open: &Open,
        followers: &[Follower],
        halt: Option<&Halt>,
        now: Instant,
    ) -> BTreeSet<HostBoot> {
        let knows_all = match halt {
            None | Some(Halt::Disarmed) => true,
            // It does not say who owns what.
            Some(Halt::Frozen(_)) => false,
        };
        let is_empty = |boot: &HostBoot| {
            knows_all
                && open.unfinished.contains(boot)
                && !followers.iter().any(|follower| follower.member.boot == *boot)
        };
        self.empty.retain(|boot, _| is_empty(boot));
        for boot in open.unfinished.iter().filter(|boot| is_empty(boot)) {
            self.empty.entry(boot.clone()).or_insert(now);
        }
        let for_long = self.empty.iter().filter(|(_, since)| now.duration_since(**since) >= RECOUNT);
        for_long.map(|(boot, _)| boot.clone()).collect()
    }
}

/// Hosts of which something else is to be said than before.
fn host_changes(
    before: &Roll,
    roll: &Roll,
    said: &BTreeMap<String, HostRecovery>,
    hosts: &BTreeMap<String, HostRecovery>,
) -> BTreeSet<String> {
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (before.fenced.keys().collect(), roll.fenced.keys().collect());
    let fences = before.symmetric_difference(&after).map(|boot| boot.host.to_string());
    let counts = hosts.iter().filter(|(host, recovery)| said.get(*host) != Some(*recovery));
    fences.chain(counts.map(|(host, _)| host.clone())).collect()
}
