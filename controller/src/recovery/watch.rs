//! Watches the pool's store for a term of leadership, and carries out what was decided about boots.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kubexen_crds::{Host, RestartPriority, VirtualMachine, names::host_namespace, virtual_machine::Phase};
use kubexen_mutants::{Mutant, wall_clock};
use kubexen_ownership::{
    BootId, HostBoot, HostName, Owner, StoreError, VmUid,
    liveness::{Brake, Fence, FenceRecord, Judge, Roll, Verdict, Voter},
};
use kubexen_runtime::{Key, events::Severity};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{
    PoolStore,
    board::{Board, Times},
    decide::{self, Observed, Obstacle, Plan, Policy, Words, boot_of},
    epoch, say,
    turns::{Member, State, Turns},
    votes::{self, Votes},
};
use crate::{context::Context, scheduler::Answer, view::uid};

/// How often the roll is read.
const EVERY: Duration = Duration::from_secs(1);
/// How often the owners are read at least.
const OWNERS_EVERY: Duration = Duration::from_secs(10);
/// For how long the store may be unreadable before what was seen is thrown away. A boot that came back and fell silent again
/// meanwhile would go unnoticed otherwise; the shortest lease lasts longer than this.
const BLIND: Duration = Duration::from_secs(5);
/// How long a boot that was unfenced has to come back.
const SPARED: Duration = Duration::from_secs(60);
/// How often at most the counts in a Host's status are written.
const RECOUNT: Duration = Duration::from_secs(5);

/// Watches the pool's store, for ever; returns at once where there is none.
pub(super) async fn run(context: &Context) {
    let Some(store) = context.recovery.store() else { return };
    let mut watch = Watch::new(&Policy::of(None, None));
    loop {
        if let Err(error) = watch.look(context, store).await {
            warn!(%error, category = error.category(), "the pool's store cannot be read");
            context.metrics.recovery().store_failed(error.category());
            context.queues.add_all(&context.queues.pools, context.view.pools.keys());
        }
        sleep(EVERY).await;
    }
}

/// What is kept between looks.
#[derive(Debug)]
struct Watch {
    judge: Judge,
    /// When the store was read last.
    read: Option<Instant>,
    owners: Option<(Instant, BTreeMap<VmUid, Owner>)>,
    /// The members of the store that have a vote, and when they were read.
    voters: Option<(Instant, Vec<Voter>)>,
    /// The boots that were live or fenced at the last look.
    boots: BTreeSet<HostBoot>,
    /// Boots that were seen live.
    joined: BTreeSet<HostBoot>,
    /// Whether somebody was silent and not fenced at the last look.
    alarmed: bool,
    spared: BTreeMap<HostBoot, Instant>,
    followed: BTreeSet<HostBoot>,
    /// When each Host was told last how its guests come back.
    told: BTreeMap<String, Instant>,
}

impl Watch {
    fn new(policy: &Policy) -> Self {
        Self {
            judge: Judge::new(policy.grace),
            read: None,
            owners: None,
            voters: None,
            boots: BTreeSet::new(),
            joined: BTreeSet::new(),
            alarmed: false,
            spared: BTreeMap::new(),
            followed: BTreeSet::new(),
            told: BTreeMap::new(),
        }
    }

    /// One look at the store, and what follows from it.
    async fn look(&mut self, context: &Context, store: &PoolStore) -> Result<(), StoreError> {
        let pool = context.view.pools.list().into_iter().next();
        let seen = store.liveness.standing().await?;
        let mut roll = store.liveness.roll().await?;
        let stands = epoch::look(context, store, &seen, &roll).await?;
        let policy = Policy::of(pool.as_deref(), stands.as_ref().err().cloned());
        let now = match Mutant::WallClock.is_active() {
            false => Instant::now(),
            true => Instant::from_std(wall_clock(context.clock.now().as_millisecond())),
        };
        match stands {
            Ok(epoch) => note_epoch(context, epoch),
            // What was seen of the store that was says nothing of this one.
            Err(_) => {
                self.judge = Judge::new(policy.grace);
                self.owners = None;
            }
        }
        if self.read.is_some_and(|read| now.duration_since(read) > BLIND) {
            self.judge = Judge::new(policy.grace);
        }
        self.read = Some(now);
        self.judge.set_grace(policy.grace);
        self.joined.extend(roll.live.keys().cloned());
        let owners = self.owners(context, store, &roll, now).await?;
        self.count_votes(context, store, now).await;

        let hosts = context.view.hosts.list();
        let words = Words::of(hosts.iter().map(|host| &**host));
        self.joined
            .retain(|boot| roll.live.contains_key(boot) || owners.values().any(|owner| owner.is(boot)));
        self.spared.retain(|_, since| now.duration_since(*since) < SPARED);
        self.followed.retain(|boot| words.unfenced.contains(boot));
        let judged = decide::judged(&owners, &roll, &self.joined);
        let verdict = self.judge.look(now, &roll, &judged, &words.confirmed, policy.share);
        let spared = self.spared.keys().cloned().collect();
        let plan = decide::decide(&Observed {
            roll: &roll,
            owners: &owners,
            verdict: &verdict,
            halt: policy.halt.as_ref(),
            words: &words,
            spared: &spared,
            followed: &self.followed,
        });
        note_times(context, &verdict, now);
        self.carry_out(context, store, plan, &mut roll).await?;
        let silent = verdict.silent.iter().filter(|silence| !roll.fenced.contains_key(&silence.boot));
        let silent: BTreeSet<String> = silent
            .filter(|silence| roll.live_boot(silence.boot.host.as_str()).is_none())
            .map(|silence| silence.boot.host.to_string())
            .collect();
        self.alarmed = !silent.is_empty();
        context.metrics.recovery().silent_hosts(silent.len());
        self.publish(context, roll, policy, verdict.brake, silent.into_iter().collect(), now);
        Ok(())
    }

    /// How many hosts the store outlives, as far as it says who its members are.
    async fn count_votes(&mut self, context: &Context, store: &PoolStore, now: Instant) {
        let mut unread = None;
        if self.voters.as_ref().is_none_or(|(read, _)| now.duration_since(*read) >= OWNERS_EVERY) {
            match store.liveness.voters().await {
                Ok(voters) => self.voters = Some((now, voters)),
                Err(error) => {
                    warn!(%error, "the members of the pool's store cannot be read");
                    unread = Some(error.to_string());
                }
            }
        }
        let hosts = context.view.hosts.list();
        let votes = match (&self.voters, unread) {
            (Some((_, voters)), _) => Votes::Counted(votes::count(voters, hosts.iter().map(|host| &**host))),
            // One word of it is enough: the next may differ in nothing but its numbers.
            (None, Some(why)) => votes::votes(context).unwrap_or(Votes::Unread(why)),
            (None, None) => return,
        };
        if votes::votes(context).as_ref() == Some(&votes) {
            return;
        }
        let before = votes::refusal(context);
        context.recovery.board().votes = Some(votes);
        context.queues.add_all(&context.queues.pools, context.view.pools.keys());
        if votes::refusal(context) != before {
            context.queues.add_all(&context.queues.hosts, context.view.hosts.keys());
            context.queues.add_all(&context.queues.machines, context.view.machines.keys());
        }
    }

    /// The owners, read anew where that may matter.
    async fn owners(
        &mut self,
        context: &Context,
        store: &PoolStore,
        roll: &Roll,
        now: Instant,
    ) -> Result<BTreeMap<VmUid, Owner>, StoreError> {
        let boots: BTreeSet<HostBoot> = roll.live.keys().chain(roll.fenced.keys()).cloned().collect();
        let changed = boots != self.boots;
        if let Some((read, _)) = &self.owners
            && !changed
            && !self.alarmed
            && now.duration_since(*read) < OWNERS_EVERY
        {
            // What this process has given to others since is there too.
            return Ok(context.recovery.board().owners.clone());
        }
        let owners = store.ownership.owners().await?;
        self.owners = Some((now, owners.clone()));
        self.boots = boots;
        Ok(owners)
    }

    /// Fences and unfences. `roll` has the new records afterwards.
    async fn carry_out(
        &mut self,
        context: &Context,
        store: &PoolStore,
        plan: Plan,
        roll: &mut Roll,
    ) -> Result<(), StoreError> {
        let Plan { fence, unfence, refused } = plan;
        for (boot, proof) in fence {
            if !context.leadership.holds() {
                return Ok(());
            }
            let record = FenceRecord { by: context.recovery.by.clone(), proof, revision: roll.revision };
            let fenced = match Mutant::StealWithoutFence.is_active() {
                false => store.liveness.fence(&boot, &record).await?,
                true => Fence::Fenced(record),
            };
            match fenced {
                Fence::Fenced(record) => {
                    info!(%boot, ?proof, "fenced");
                    context.metrics.recovery().fenced(say::proof_label(proof));
                    let at = context.clock.now();
                    if let Some(times) = context.recovery.board().times.get_mut(&boot) {
                        times.fenced.get_or_insert(at);
                        context.metrics.recovery().phase("grace", times.gone, at);
                    }
                    tell(context, &boot, Severity::Warning, "Fenced", say::fenced(&boot, proof));
                    roll.fenced.insert(boot, record);
                }
                Fence::Alive => context.metrics.recovery().refused("alive"),
            }
        }
        for boot in unfence {
            if !context.leadership.holds() {
                return Ok(());
            }
            store.liveness.unfence(&boot).await?;
            info!(%boot, "unfenced");
            roll.fenced.remove(&boot);
            self.spared.insert(boot.clone(), Instant::now());
            let note = format!("boot {} may come back to life, as `spec.fencing` says", boot.boot_id);
            tell(context, &boot, Severity::Normal, "Unfenced", note);
            self.followed.insert(boot);
        }
        for (boot, obstacle) in refused {
            let note = match obstacle {
                Obstacle::ConfirmedDead => format!(
                    "boot {} is not unfenced: `spec.fencing.confirmedDead` names it too; take that away first",
                    boot.boot_id
                ),
                Obstacle::Guests(left) => format!(
                    "boot {} is not unfenced: {left} guests of it are still to be started elsewhere; halt them or wait",
                    boot.boot_id
                ),
            };
            tell(context, &boot, Severity::Warning, "UnfenceRefused", note);
        }
        Ok(())
    }

    /// Puts on the board what was found, and wakes whom it concerns.
    fn publish(
        &mut self,
        context: &Context,
        roll: Roll,
        policy: Policy,
        brake: Option<Brake>,
        silent: Vec<String>,
        now: Instant,
    ) {
        let owners = self.owners.as_ref().map(|(_, owners)| owners.clone()).unwrap_or_default();
        let fresh = self.owners.as_ref().is_some_and(|(read, _)| *read == now);
        let mut board = context.recovery.board();
        if fresh {
            board.renew_owners(owners);
        }
        let wall = context.clock.now();
        for boot in roll.fenced.keys() {
            if board.owners.values().any(|owner| owner.is(boot)) {
                remembered(context, &mut board, boot, wall);
            }
        }
        let followers = followers(context, &board, &roll, wall);
        let turns = Turns::of(&followers.iter().map(|follower| follower.member.clone()).collect::<Vec<_>>());
        let hosts = say::recoveries(&board, &followers);
        let on_their_way = |vm: &VmUid| followers.iter().any(|one| one.vm == *vm && one.ready.is_none());
        board.given.retain(|vm, _| on_their_way(vm));
        let machines_changed = board.roll.fenced.keys().ne(roll.fenced.keys())
            || board.roll.live.keys().ne(roll.live.keys())
            || board.turns != turns
            || board.halt != policy.halt
            || board.brake.is_some() != brake.is_some()
            || fresh && !followers.is_empty();
        let pool_changed =
            board.read.is_none() || machines_changed || board.silent != silent || board.hosts != hosts;
        let hosts_changed = host_changes(&board, &roll, &hosts);
        board.read = Some(now);
        board.roll = roll;
        board.halt = policy.halt;
        board.brake = brake;
        board.silent = silent;
        board.turns = turns;
        board.hosts = hosts;
        let dead: BTreeSet<String> = board.roll.fenced.keys().map(|boot| boot.host.to_string()).collect();
        let uncounted = |host: &String| {
            let complete = board.hosts.get(host).is_none_or(|recovery| recovery.completed.is_some());
            complete || self.told.get(host).is_none_or(|told| now.duration_since(*told) >= RECOUNT)
        };
        let hosts_to_tell: Vec<String> = hosts_changed.into_iter().filter(uncounted).collect();
        drop(board);
        for host in hosts_to_tell {
            self.told.insert(host.clone(), now);
            context.queues.add(&context.queues.hosts, Key::cluster(host));
        }
        if machines_changed {
            let followers = followers.into_iter().map(|follower| follower.key);
            context.queues.add_all(&context.queues.machines, followers);
            for host in dead {
                let namespace = Key::cluster(host_namespace(&host));
                let domains = context.view.domains_of_host.to(&namespace);
                let machines = domains.iter().filter_map(|domain| crate::view::user_key(&domain.name));
                context.queues.add_all(&context.queues.machines, machines);
            }
        }
        if pool_changed {
            context.queues.add_all(&context.queues.pools, context.view.pools.keys());
        }
    }
}

/// The store's records count in this epoch.
fn note_epoch(context: &Context, epoch: String) {
    let mut board = context.recovery.board();
    if board.epoch.as_ref() != Some(&epoch) {
        board.epoch = Some(epoch);
        drop(board);
        context.queues.add_all(&context.queues.pools, context.view.pools.keys());
    }
}

/// Hosts of which something else is to be said than before.
fn host_changes(
    board: &Board,
    roll: &Roll,
    hosts: &BTreeMap<String, kubexen_crds::HostRecovery>,
) -> BTreeSet<String> {
    let (before, after): (BTreeSet<_>, BTreeSet<_>) =
        (board.roll.fenced.keys().collect(), roll.fenced.keys().collect());
    let fences = before.symmetric_difference(&after).map(|boot| boot.host.to_string());
    let counts = hosts.iter().filter(|(host, recovery)| board.hosts.get(*host) != Some(*recovery));
    fences.chain(counts.map(|(host, _)| host.clone())).collect()
}

/// Notes when silent boots were seen last, and seen gone.
fn note_times(context: &Context, verdict: &Verdict, now: Instant) {
    let wall = context.clock.now();
    let at = |then: Instant| {
        let ago = SignedDuration::try_from(now.saturating_duration_since(then)).unwrap_or_default();
        wall.saturating_sub(ago).unwrap_or(wall)
    };
    let mut board = context.recovery.board();
    let Board { times, roll, .. } = &mut *board;
    let silent: BTreeSet<&HostBoot> = verdict.silent.iter().map(|silence| &silence.boot).collect();
    times.retain(|boot, _| silent.contains(boot) || roll.fenced.contains_key(boot));
    for silence in &verdict.silent {
        times.entry(silence.boot.clone()).or_insert_with(|| Times {
            last_sign: silence.last_seen.map(at),
            gone: at(silence.gone),
            fenced: None,
        });
    }
}

/// Sees to it that the board knows when a fenced boot was fenced: by this process, or as an earlier leader wrote it down, or
/// by now.
fn remembered(context: &Context, board: &mut Board, boot: &HostBoot, now: Timestamp) {
    let written = context.view.hosts.get(&Key::cluster(boot.host.as_str()));
    let written = written.and_then(|host| host.status.as_ref()?.recovery.clone());
    let written = written.filter(|recovery| recovery.boot_id == boot.boot_id.as_str());
    let times = board.times.entry(boot.clone()).or_insert_with(|| Times {
        last_sign: written.as_ref().and_then(|written| Some(written.last_sign.as_ref()?.0)),
        gone: written.as_ref().map_or(now, |written| written.lease_gone.0),
        fenced: None,
    });
    let known = written.and_then(|written| Some(written.fenced?.0));
    times.fenced.get_or_insert(known.unwrap_or(now));
}

/// A machine that a dead boot had and that is to come back, or has.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Follower {
    pub(super) key: Key,
    pub(super) vm: VmUid,
    pub(super) member: Member,
    /// When it was Ready again.
    pub(super) ready: Option<Timestamp>,
}

/// All machines that dead boots had and that are to come back, as long as not all of a boot's have.
fn followers(context: &Context, board: &Board, roll: &Roll, now: Timestamp) -> Vec<Follower> {
    let open_hosts = context.view.hosts.list().into_iter().filter_map(|host| {
        let recovery = host.status.as_ref()?.recovery.clone()?;
        recovery.completed.is_none().then(|| boot_named(&Key::of(&*host).name, &recovery.boot_id))?
    });
    let mut open: BTreeSet<HostBoot> = board.given.values().map(|given| given.from.clone()).collect();
    open.extend(open_hosts);
    open.extend(board.owners.values().map(boot_of).filter(|boot| roll.fenced.contains_key(boot)));
    if open.is_empty() {
        return Vec::new();
    }
    let machines = context.view.machines.list();
    machines.iter().filter_map(|machine| follower(context, board, roll, &open, machine, now)).collect()
}

fn follower(
    context: &Context,
    board: &Board,
    roll: &Roll,
    open: &BTreeSet<HostBoot>,
    machine: &VirtualMachine,
    now: Timestamp,
) -> Option<Follower> {
    let availability = &machine.spec.availability;
    if availability.restart_priority == RestartPriority::None
        || !crate::virtual_machine::is_wanted_on(machine)
    {
        return None;
    }
    let vm: VmUid = uid(machine).parse().ok()?;
    let key = Key::of(machine);
    let owner = board.owners.get(&vm);
    let record = owner.and_then(|owner| Some((owner, roll.fenced.get(&boot_of(owner))?)));
    let status = machine.status.as_ref();
    let written = status.and_then(|status| status.recovery.as_ref());
    let given = board.given.get(&vm);
    let (boot, state, ready) = match (record, written) {
        (Some((owner, record)), _) if owner.guarded || record.proof.covers_unguarded() => {
            let rejected = match context.scheduler.answer(&key, machine) {
                Some(Answer::Rejected(_)) => true,
                Some(Answer::Waiting | Answer::Assigned(_)) | None => false,
            };
            (boot_of(owner), if rejected { State::Stuck } else { State::Waiting }, None)
        }
        (Some(_), _) => return None,
        (None, Some(written)) if given.is_none_or(|given| given.to == written.to) => {
            let boot = boot_named(&written.from, &written.boot_id)?;
            let ready = written.ready.as_ref().map(|ready| ready.0);
            let state = match ready {
                Some(ready) => {
                    State::Ready(Duration::try_from(now.duration_since(ready)).unwrap_or_default())
                }
                None if status.and_then(|status| status.phase) == Some(Phase::Failed) => State::Stuck,
                None => State::Waiting,
            };
            (boot, state, ready)
        }
        (None, Some(_) | None) => (given?.from.clone(), State::Waiting, None),
    };
    let delay = availability.start_delay.duration().unwrap_or_default();
    let member = Member { boot, order: availability.order, delay, state };
    open.contains(&member.boot).then_some(Follower { key, vm, member, ready })
}

fn boot_named(host: &str, boot_id: &str) -> Option<HostBoot> {
    Some(HostBoot { host: HostName::new(host).ok()?, boot_id: BootId::new(boot_id).ok()? })
}

/// Tells people of something that happened to a boot.
fn tell(context: &Context, boot: &HostBoot, severity: Severity, reason: &'static str, note: String) {
    if let Some(host) = context.view.hosts.get(&Key::cluster(boot.host.as_str())) {
        context.events.record::<Host>(&host, severity, reason, "Recover", note);
    }
}
