//! Watches the pool's store for a term of leadership, and carries out what was decided about boots.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem::{Discriminant, discriminant},
    time::Duration,
};

use kubexen_crds::{Host, Pool, condition};
use kubexen_mutants::{Mutant, wall_clock};
use kubexen_ownership::{
    HostBoot, HostName, Owner, StoreError, VmUid,
    liveness::{AT_ONCE, Evidence, Fence, FenceRecord, Judge, Proof, Roll, Unfence, Verdict, Voter},
};
use kubexen_runtime::{Key, events::Severity};
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::{
    PoolStore,
    decide::{self, Observed, Plan, Policy, boot_of, is_on_a_host},
    epoch, followers,
    publish::{Found, Publisher},
    say, times,
    votes::{self, Votes},
    words::{self, Heard, Refusal, Refused, Word, Words, last_boot},
};
use crate::context::Context;

/// How often the roll is read, unless a boot is due before that.
const EVERY: Duration = Duration::from_secs(1);
/// How often the owners are read at least.
const OWNERS_EVERY: Duration = Duration::from_secs(10);
/// For how long the store may be unreadable before what was seen is thrown away. A boot that came back and fell silent again
/// meanwhile would go unnoticed otherwise; the shortest lease lasts longer than this.
const BLIND: Duration = Duration::from_secs(5);
/// How long a boot that was unfenced has to come back.
const SPARED: Duration = Duration::from_secs(60);
/// After which time without an answer the store counts as unreachable.
const UNREACHABLE: Duration = Duration::from_secs(10);
/// Most time for a read of a Host before its word is followed. A longer one would blind the watch.
const WORD_LIMIT: Duration = Duration::from_secs(2);

/// Watches the pool's store, for ever; returns at once where there is none.
pub(super) async fn run(context: &Context) {
    let Some(store) = context.recovery.store() else { return };
    let mut watch = Watch::new(context);
    loop {
        let pause = match watch.look(context, store).await {
            Ok(pause) => pause,
            Err(error) => {
                warn!(%error, category = error.category(), "the pool's store cannot be read");
                context.metrics.recovery().store_failed(error.category());
                watch.note_silence(context);
                EVERY
            }
        };
        sleep(pause).await;
    }
}

/// What is kept between looks.
#[derive(Debug)]
struct Watch {
    judge: Judge,
    /// When the store was read last.
    read: Option<Instant>,
    /// Since when the store has not answered.
    unanswered: Option<Instant>,
    /// When the owners were read last.
    owners_read: Option<Instant>,
    /// The members of the store that have a vote, and when they were read.
    voters: Option<(Instant, Vec<Voter>)>,
    /// The boots that were live or fenced at the last look.
    boots: BTreeSet<HostBoot>,
    /// Boots that were seen live.
    joined: BTreeSet<HostBoot>,
    /// Fenced boots whose hosts are live at another boot, and since when that is so.
    back: BTreeMap<HostBoot, Instant>,
    /// Whether a boot that guards guests was silent and not fenced at the last look.
    alarmed: bool,
    spared: BTreeMap<HostBoot, Instant>,
    followed: BTreeSet<HostBoot>,
    /// Words that were answered with why they are not followed.
    answered: BTreeMap<(HostName, Word), (String, Discriminant<Refusal>)>,
    publisher: Publisher,
}

impl Watch {
    fn new(context: &Context) -> Self {
        let pool = context.view.pools.list().into_iter().next();
        let mut judge = Judge::new(Policy::of(pool.as_deref(), None).grace);
        judge.inherit(pool.map(|pool| latched(context, &pool)).unwrap_or_default());
        Self {
            judge,
            read: None,
            unanswered: None,
            owners_read: None,
            voters: None,
            boots: BTreeSet::new(),
            joined: BTreeSet::new(),
            back: BTreeMap::new(),
            alarmed: false,
            spared: BTreeMap::new(),
            followed: BTreeSet::new(),
            answered: BTreeMap::new(),
            publisher: Publisher::default(),
        }
    }

    /// One look at the store, and what follows from it; how long to wait for the next.
    async fn look(&mut self, context: &Context, store: &PoolStore) -> Result<Duration, StoreError> {
        let pool = context.view.pools.list().into_iter().next();
        if let Some(epoch) = epoch::written(pool.as_deref()) {
            // Before anything is read: one who has just begun has seen no store, and would believe any.
            store.liveness.recall(epoch);
        }
        let seen = store.liveness.standing().await?;
        let mut roll = store.liveness.roll().await?;
        let off = words::off(heard(context, &context.view.hosts.list()), &roll);
        let stands = epoch::look(context, store, &seen, &roll, &off).await?;
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
                self.owners_read = None;
                self.back.clear();
            }
        }
        if self.read.is_some_and(|read| now.duration_since(read) > BLIND) {
            self.judge.wait_anew();
            self.back.clear();
        }
        self.read = Some(now);
        self.judge.set_grace(policy.grace);
        self.joined.extend(roll.live.keys().cloned());
        let fresh = self.owners(store, &roll, now).await?;
        let owners = fresh.clone().unwrap_or_else(|| context.recovery.board().owners.clone());
        self.count_votes(context, store, now).await;

        let hosts = context.view.hosts.list();
        let words = Words::of(heard(context, &hosts), &roll, &owners);
        self.joined
            .retain(|boot| roll.live.contains_key(boot) || owners.values().any(|owner| owner.is(boot)));
        self.spared.retain(|_, since| now.duration_since(*since) < SPARED);
        self.followed.retain(|boot| words.unfenced.contains(boot));
        self.followed.extend(words.followed.iter().cloned());
        let judged = decide::judged(&owners, &roll, &self.joined);
        let guarding = owners.values().filter(|owner| owner.guarded && is_on_a_host(owner)).map(boot_of);
        let guarding: BTreeSet<HostBoot> = guarding.collect();
        let verdict = self.judge.look(
            now,
            &roll,
            &Evidence {
                hosts: &hosts.iter().filter_map(|host| HostName::new(Key::of(&**host).name).ok()).collect(),
                owning: &judged,
                guarding: &guarding,
                confirmed: &words.confirmed,
                tolerance: policy.tolerance,
            },
        );
        let over = self.over(context, &roll, now);
        let plan = decide::decide(&Observed {
            roll: &roll,
            owners: &owners,
            verdict: &verdict,
            halt: policy.halt.as_ref(),
            words: &words,
            spared: &self.spared.keys().cloned().collect(),
            followed: &self.followed,
            ended: &followers::ended(context, &words.unfenced),
            over: &over,
        });
        times::note(context, &verdict, now);
        self.answer(context, words.refused.iter().chain(&plan.refused));
        self.carry_out(context, store, plan, &mut roll).await?;
        let is_open = |boot: &HostBoot| !roll.fenced.contains_key(boot);
        self.alarmed = verdict.brake.is_some()
            || verdict
                .silent
                .iter()
                .any(|silence| is_open(&silence.boot) && guarding.contains(&silence.boot));
        let silent = silent(&verdict, &roll);
        context.metrics.recovery().silent_hosts(silent.len());
        self.unanswered = None;
        let Verdict { brake, next, .. } = verdict;
        let found = Found { now, roll, owners: fresh, halt: policy.halt, brake, silent };
        self.publisher.publish(context, found);
        Ok(next.map_or(EVERY, |next| next.saturating_duration_since(now).min(EVERY)))
    }

    /// The store has not answered: people are told once it has not for a while.
    fn note_silence(&mut self, context: &Context) {
        let since = *self.unanswered.get_or_insert_with(Instant::now);
        let mut board = context.recovery.board();
        if since.elapsed() > UNREACHABLE && !board.unreachable {
            board.unreachable = true;
            drop(board);
            context.queues.add_all(&context.queues.pools, context.view.pools.keys());
        }
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

    /// The owners, read anew where that may matter: when boots came or went, when hosts are silent that guard guests, and from time
    /// to time. Else what is on the board holds, where what this process has given to others since is too.
    async fn owners(
        &mut self,
        store: &PoolStore,
        roll: &Roll,
        now: Instant,
    ) -> Result<Option<BTreeMap<VmUid, Owner>>, StoreError> {
        let boots: BTreeSet<HostBoot> = roll.live.keys().chain(roll.fenced.keys()).cloned().collect();
        let every = if self.alarmed { EVERY } else { OWNERS_EVERY };
        if self.owners_read.is_some_and(|read| now.duration_since(read) < every) && boots == self.boots {
            return Ok(None);
        }
        let owners = store.ownership.owners().await?;
        self.owners_read = Some(now);
        self.boots = boots;
        Ok(Some(owners))
    }

    /// Fenced boots whose hosts have been live at another boot for longer than any lease lasts, and of which nothing is left to be
    /// done.
    fn over(&mut self, context: &Context, roll: &Roll, now: Instant) -> BTreeSet<HostBoot> {
        let is_back = |boot: &HostBoot| roll.live_boot(boot.host.as_str()).is_some();
        self.back.retain(|boot, _| roll.fenced.contains_key(boot) && is_back(boot));
        for boot in roll.fenced.keys().filter(|boot| is_back(boot)) {
            self.back.entry(boot.clone()).or_insert(now);
        }
        let for_long = self.back.iter().filter(|(_, since)| now.duration_since(**since) >= AT_ONCE);
        let for_long: Vec<&HostBoot> = for_long.map(|(boot, _)| boot).collect();
        if for_long.is_empty() {
            return BTreeSet::new();
        }
        let board = context.recovery.board();
        let open = followers::open(context, &board).boots;
        let is_over =
            |boot: &&HostBoot| !open.contains(*boot) && followers::is_cleared(context, &board, boot);
        for_long.into_iter().filter(is_over).cloned().collect()
    }

    /// Says once of each word that it is not followed, and why.
    fn answer<'a>(&mut self, context: &Context, refused: impl Iterator<Item = &'a Refused>) {
        let mut answered = BTreeMap::new();
        for refused in refused {
            let key = (refused.host.clone(), refused.word);
            let answer = (refused.text.clone(), discriminant(&refused.why));
            if self.answered.get(&key) != Some(&answer) {
                tell(context, &refused.host, Severity::Warning, refused.reason(), refused.note());
            }
            answered.insert(key, answer);
        }
        self.answered = answered;
    }

    /// Fences and unfences. `roll` has the new records afterwards.
    async fn carry_out(
        &mut self,
        context: &Context,
        store: &PoolStore,
        plan: Plan,
        roll: &mut Roll,
    ) -> Result<(), StoreError> {
        for (boot, proof) in plan.fence {
            if !context.leadership.holds() {
                return Ok(());
            }
            match proof {
                Proof::Confirmed if !stands(context, &boot, Word::ConfirmedDead).await => continue,
                Proof::Confirmed | Proof::LeaseEnded => fence(context, store, boot, proof, roll).await?,
            }
        }
        for boot in plan.unfence {
            if !context.leadership.holds() {
                return Ok(());
            }
            let Some(record) = roll.fenced.get(&boot) else { continue };
            if !stands(context, &boot, Word::Unfenced).await {
                continue;
            }
            match store.liveness.unfence(&boot, record).await? {
                Unfence::Unfenced => {}
                // The next look tells.
                Unfence::Refused(_) => continue,
            }
            info!(%boot, "unfenced");
            roll.fenced.remove(&boot);
            self.spared.insert(boot.clone(), Instant::now());
            let note = format!("boot {} may come back to life, as `spec.fencing` says", boot.boot_id);
            tell(context, &boot.host, Severity::Normal, "Unfenced", note);
            self.follow(context, boot);
        }
        for boot in plan.free {
            self.follow(context, boot);
        }
        for boot in plan.forget {
            if !context.leadership.holds() {
                return Ok(());
            }
            let Some(record) = roll.fenced.get(&boot) else { continue };
            if store.liveness.unfence(&boot, record).await? == Unfence::Unfenced {
                info!(%boot, "its host has long been at another boot: the fence record is removed");
                roll.fenced.remove(&boot);
            }
        }
        Ok(())
    }

    /// A word to unfence this boot was followed: its Host is to say so.
    fn follow(&mut self, context: &Context, boot: HostBoot) {
        let host = boot.host.to_string();
        context.recovery.board().unfenced.insert(host.clone(), boot.clone());
        context.queues.add(&context.queues.hosts, Key::cluster(host));
        self.followed.insert(boot);
    }
}

/// Fences a boot. `roll` has its record afterwards.
async fn fence(
    context: &Context,
    store: &PoolStore,
    boot: HostBoot,
    proof: Proof,
    roll: &mut Roll,
) -> Result<(), StoreError> {
    let record = FenceRecord { by: context.recovery.by.clone(), proof, revision: roll.revision };
    let fenced = match Mutant::StealWithoutFence.is_active() {
        false => store.liveness.fence(&boot, &record).await?,
        true => Fence::Fenced(record),
    };
    match fenced {
        Fence::Fenced(record) => {
            info!(%boot, ?proof, "fenced");
            let metrics = context.metrics.recovery();
            metrics.fenced(say::proof_label(proof));
            let at = context.clock.now();
            if let Some(times) = context.recovery.board().times.get_mut(&boot) {
                times.fenced.get_or_insert(at);
                metrics.phase("grace", times.gone, at);
                if let Some(last_sign) = times.last_sign {
                    metrics.phase("silence", last_sign, times.gone);
                }
            }
            tell(context, &boot.host, Severity::Warning, "Fenced", say::fenced(&boot, proof));
            roll.fenced.insert(boot, record);
        }
        Fence::Alive => context.metrics.recovery().refused("alive"),
    }
    Ok(())
}

/// Whether an operator's word about this boot stands, and was not followed before, by a linearizable read: what the mirror shows
/// may be old, and what follows from it cannot be taken back.
async fn stands(context: &Context, boot: &HostBoot, word: Word) -> bool {
    let key = Key::cluster(boot.host.as_str());
    let host = match timeout(WORD_LIMIT, context.get::<Host>(&key)).await {
        Ok(Ok(Some(host))) => host,
        Ok(Ok(None)) => return false,
        Ok(Err(error)) => {
            warn!(%boot, %error, "what is said of the boot cannot be read");
            return false;
        }
        Err(_elapsed) => return false,
    };
    let named = |text: &Option<String>| text.as_deref() == Some(boot.boot_id.as_str());
    match word {
        Word::ConfirmedDead => named(&host.spec.fencing.confirmed_dead),
        Word::Unfenced => {
            let followed = host.status.as_ref().and_then(|status| status.fencing.as_ref());
            named(&host.spec.fencing.unfenced) && !followed.is_some_and(|followed| named(&followed.unfenced))
        }
    }
}

/// Hosts with what is known of their heartbeats.
fn heard<'a>(context: &'a Context, hosts: &'a [std::sync::Arc<Host>]) -> impl Iterator<Item = Heard<'a>> {
    hosts.iter().map(|host| (&**host, context.heartbeats.of(&Key::of(&**host).name)))
}

/// Boots that count for the storm brake that an earlier leader has put on.
fn latched(context: &Context, pool: &Pool) -> BTreeSet<HostBoot> {
    let Some(status) = &pool.status else { return BTreeSet::new() };
    let said = condition::find(&status.conditions, "Recovering");
    if said.is_none_or(|said| said.reason != "StormBrake") {
        return BTreeSet::new();
    }
    let silent = status.availability.iter().flat_map(|availability| &availability.silent_hosts);
    let hosts = silent.filter_map(|host| context.view.hosts.get(&Key::cluster(host.as_str())));
    hosts.filter_map(|host| last_boot(&host)).collect()
}

/// Hosts that are silent and not fenced, sorted; under the brake those that count for it.
fn silent(verdict: &Verdict, roll: &Roll) -> Vec<String> {
    if let Some(brake) = &verdict.brake {
        return brake.silent.iter().map(ToString::to_string).collect();
    }
    let silent = verdict.silent.iter().map(|silence| &silence.boot);
    let silent = silent.filter(|boot| !roll.fenced.contains_key(*boot));
    let silent: BTreeSet<String> = silent
        .filter(|boot| roll.live_boot(boot.host.as_str()).is_none())
        .map(|boot| boot.host.to_string())
        .collect();
    silent.into_iter().collect()
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

/// Tells people of something that happened to a host.
fn tell(context: &Context, host: &HostName, severity: Severity, reason: &'static str, note: String) {
    if let Some(host) = context.view.hosts.get(&Key::cluster(host.as_str())) {
        context.events.record::<Host>(&host, severity, reason, "Recover", note);
    }
}
