//! Keeps the host's promise: what it guards has stopped before its lease can end.
//!
//! ```text
//!   keeper ── join, renew ──▶ pool's store       every few seconds, counted from when the request was sent
//!     │ answered: the watchdog's deadline moves
//!     ▼
//!   climber ── rung ──▶ ladder: pause ─ destroy ─ disarm      Xen's watchdog: reset, whatever became of this process
//!
//!   domain reconcile ── guard, unguard, may_work ──▶ Fence
//! ```
//!
//! A guest is guarded in this order: it is in the list of the climber, and in the [`Checkpoint`] for the next agent; the watchdog
//! runs; and only then the store is told. It is let go in the opposite order. So whatever fails in between, more is kept than was
//! promised.
//!
//! The ladder spares the host when it finds none of the guarded guests, also while one is being built. No guest is let run that
//! stands still before its record was read: where that says that the guest is guarded, it is in the list again first, or the
//! record is changed.
//!
//! An agent that ends takes nothing back: the watchdog runs on, and what the next one has to know is kept beside it. An agent
//! that starts before the deadline renews the lease that there is, asks for one of its own if the store grants any, and goes on
//! with list and watchdog, and no guest notices. While the store does not answer, it climbs the ladder from where the last one
//! stood.

mod checkpoint;
mod climber;
mod keeper;
mod ladder;
mod starting;
#[cfg(test)]
mod tests;
mod versions;
mod watchdog;

pub use starting::Starting;
pub use watchdog::{Checkpoint, Watchdog, WatchdogError};

use crate::{domain::ReconcileError, hypervisor::Hypervisor};
use kubexen_crds::{HostProtection, Profile, ProtectionState};
use kubexen_mutants::Mutant;
use kubexen_ownership::{
    Guard, HostBoot, OwnershipStore, StoreError, Token, VmUid,
    liveness::{Epoch, Liveness, Rung, Standing, Timing, Vitals},
};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, SetOnce},
    time::{Instant, timeout},
};
use tracing::{info, warn};
use uuid::Uuid;

/// How long an agent that nothing was left to waits for a first word, of the pool and then of its store: either may be away.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// What the pool tells its hosts.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The pool's profile.
    pub profile: Profile,
    /// Why no guest is to be guarded, if none is: what was promised holds all the same until it is taken back from the store.
    pub refusal: Option<String>,
    /// Whether the pool was heard at all.
    pub is_heard: bool,
    /// The epoch of the store that the pool works with, if it says so.
    pub epoch: Option<Epoch>,
}

/// The promise of one host at one boot.
#[derive(Debug)]
pub struct Fence {
    me: HostBoot,
    liveness: Arc<dyn Liveness>,
    ownership: Arc<dyn OwnershipStore>,
    hypervisor: Arc<dyn Hypervisor>,
    watchdog: Arc<dyn Watchdog>,
    state: Mutex<State>,
    /// Told whenever a renewal was answered, or what is guarded changed.
    changed: Notify,
    /// Told whenever something else is to be said of the host.
    news: Notify,
    /// Told whenever the store stands otherwise than before.
    turned: Notify,
    /// Told when it was tried for the first time to renew a lease, or to get one.
    tried: Notify,
    /// Set when this process has found out whether guests can be guarded.
    judged: SetOnce<()>,
}

#[derive(Debug)]
struct State {
    vitals: Vitals,
    /// Whether an agent before this one has left anything at this boot.
    inherited: bool,
    /// Why no guest can be guarded; none if it can.
    obstacle: Option<String>,
    /// The guests that are guarded, or may be; none before that is known.
    guarded: Option<BTreeMap<Uuid, Guarded>>,
    /// Whether it was read from the store which guests are guarded.
    is_read: bool,
    /// Whether the watchdog runs, or may.
    may_be_armed: bool,
    /// Why the watchdog, or what is kept beside it, is not as it should be.
    trouble: Option<String>,
    /// Why the version of a member of the store is too old, as it was seen last.
    too_old: Option<String>,
    /// Whether the store is another one than that in which the host became live by its lease.
    lease_in_doubt: bool,
    /// How the store stood when it last answered.
    standing: Option<Standing>,
    /// What the store that the agents of this boot have worked with last was seen as, when its records counted: their promises are
    /// in it.
    promised_in: Option<Epoch>,
    /// The epoch in which all guests of this host are on record.
    on_record: Option<Epoch>,
    /// Why they cannot be put on record.
    contested: Option<String>,
}

/// A guest that is guarded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Guarded {
    /// Whether the climber has paused it.
    paused: bool,
}

impl Fence {
    /// Nothing is promised yet but what an agent before it has left.
    #[must_use]
    pub fn new(
        me: HostBoot,
        liveness: Arc<dyn Liveness>,
        ownership: Arc<dyn OwnershipStore>,
        hypervisor: Arc<dyn Hypervisor>,
        watchdog: Arc<dyn Watchdog>,
    ) -> Self {
        let state = State {
            vitals: Vitals::new(timing(Profile::Default)),
            inherited: false,
            obstacle: Some("the pool's store has not answered yet".to_owned()),
            guarded: None,
            is_read: false,
            may_be_armed: true,
            trouble: None,
            too_old: None,
            lease_in_doubt: false,
            standing: None,
            promised_in: None,
            on_record: None,
            contested: None,
        };
        let (state, changed, news) = (Mutex::new(state), Notify::new(), Notify::new());
        let (turned, tried, judged) = (Notify::new(), Notify::new(), SetOnce::new());
        let fence = Self {
            me,
            liveness,
            ownership,
            hypervisor,
            watchdog,
            state,
            changed,
            news,
            turned,
            tried,
            judged,
        };
        fence.adopt();
        fence
    }

    /// Keeps the promise, for ever. Where no agent before this one has left anything, `heard` is awaited first, for two seconds at
    /// most: it is over once `policy` tells what the pool says.
    pub async fn run(&self, policy: impl Fn() -> Policy, heard: impl Future<Output = ()>) {
        tokio::join!(self.keep(policy, heard), self.climb(), self.look_at_versions());
    }

    /// Waits, where no agent before this one has left anything, until it was found out whether guests can be guarded, for two
    /// seconds at most: nothing can be started before.
    pub async fn judged(&self) {
        if !self.lock().inherited {
            let _ = timeout(FIRST_WORD, self.judged.wait()).await;
        }
    }

    /// Whether guests may be started here, or come here.
    ///
    /// # Errors
    /// [`ReconcileError::Unheard`] when the pool's store has not answered for too long, or refuses this boot, or when another one
    /// answers in its place.
    /// [`StoreError::Frozen`] when it was restored from a backup and not confirmed.
    pub fn may_work(&self) -> Result<(), ReconcileError> {
        if self.frozen().is_some_and(|standing| standing.instead_of.is_none()) {
            return Err(StoreError::Frozen.into());
        }
        let state = self.lock();
        match state.vitals.rung(Instant::now()) {
            // What an agent before this one has heard says nothing of the store that answers now.
            Rung::Healthy if state.standing.is_some_and(|standing| standing.is_current()) => {
                match state.promised_in {
                    Some(_) => Ok(()),
                    None => Err(ReconcileError::Unheard(
                        "the pool was not heard on which store is its own".to_owned(),
                    )),
                }
            }
            Rung::Healthy | Rung::Refuse | Rung::Pause | Rung::Stop | Rung::Reset => {
                let why = state.obstacle.clone();
                Err(ReconcileError::Unheard(
                    why.unwrap_or_else(|| "the pool's store does not answer".to_owned()),
                ))
            }
        }
    }

    /// Whether guarded guests stand still, or are to be gone, so that nobody else may let them run.
    #[must_use]
    pub fn holds(&self, guest: Uuid) -> bool {
        let state = self.lock();
        let guarded = state.guarded.as_ref().and_then(|guarded| guarded.get(&guest));
        let due = state.vitals.rung(Instant::now()) >= Rung::Pause;
        guarded.is_some_and(|guarded| due || guarded.paused)
    }

    /// How the store stands, if it was restored from a backup and no operator has confirmed it: then nothing is started, stopped
    /// or moved.
    #[must_use]
    pub fn frozen(&self) -> Option<Standing> {
        self.lock().standing.filter(|standing| !standing.is_current())
    }

    /// Whether an ownership was recorded before the store's epoch began, so that a guest must not be started under its token.
    #[must_use]
    pub fn is_outdated(&self, token: Token) -> bool {
        self.lock().standing.is_some_and(|standing| standing.predates(token))
    }

    /// Waits until the store stands otherwise than before.
    pub async fn turned(&self) {
        self.turned.notified().await;
    }

    /// The store stands like this. Whether it is the pool's is known once the pool `is_heard`, or by what an agent before has left.
    fn stands(&self, standing: Standing, is_heard: bool) {
        let mut state = self.lock();
        let before = state.standing.replace(standing);
        let known = before.map(|before| before.seen_as()).or(state.promised_in);
        state.lease_in_doubt |= known.is_some_and(|known| known != standing.seen_as());
        let was_known = state.promised_in.is_some();
        let is_known = was_known || is_heard && standing.is_current();
        if standing.is_current() {
            state.on_record = Some(standing.seen_as());
            if is_known {
                state.promised_in = Some(standing.seen_as());
            }
        }
        if is_known != was_known
            || before.map(|before| (before.is_current(), before.seen_as()))
                != Some((standing.is_current(), standing.seen_as()))
        {
            if standing.instead_of.is_some() {
                warn!(?standing, "another store answers than that of the pool");
            } else if !standing.is_current() {
                warn!(?standing, "the pool's store was restored from a backup, and is not confirmed");
            }
            self.news.notify_one();
            self.turned.notify_one();
        }
    }

    /// All guests of this host are on record in the store as it was seen, or, with a reason, they are not. One that does not say
    /// yet that it is frozen is called what it was called before, so nothing is said of that.
    pub fn set_on_record(&self, seen: &Standing, obstacle: Option<String>) {
        if seen.broken {
            return;
        }
        let on_record = obstacle.is_none().then(|| seen.seen_as());
        let mut state = self.lock();
        if std::mem::replace(&mut state.on_record, on_record) != on_record {
            self.news.notify_one();
        }
        state.contested.clone_from(&obstacle);
        drop(state);
        if let Some(obstacle) = obstacle {
            self.set_obstacle(Some(obstacle));
        }
    }

    /// Whether it was found out whether guests can be guarded. An agent that has just begun does not know, and the one before it may
    /// have guarded some.
    #[must_use]
    pub fn has_judged(&self) -> bool {
        self.judged.initialized()
    }

    /// What is said of the host.
    #[must_use]
    pub fn protection(&self) -> HostProtection {
        let state = self.lock();
        let epoch = state.on_record.map(|epoch| epoch.to_string());
        match state.obstacle.clone() {
            None => HostProtection { state: ProtectionState::Ready, message: String::new(), epoch },
            Some(message) => HostProtection {
                state: ProtectionState::Unavailable,
                message: message.chars().take(512).collect(),
                epoch,
            },
        }
    }

    /// Waits until [`Fence::protection`] says something else.
    pub async fn protection_changed(&self) {
        self.news.notified().await;
    }

    fn set_obstacle(&self, obstacle: Option<String>) {
        let mut state = self.lock();
        if self.judged.set(()).is_ok() || state.obstacle != obstacle {
            if let Some(obstacle) = &obstacle {
                warn!(obstacle, "no guest can be protected here");
            }
            state.obstacle = obstacle;
            self.news.notify_one();
        }
    }

    /// Whether the guest is in the list of those that are guarded.
    #[must_use]
    pub fn guards(&self, guest: Uuid) -> bool {
        self.lock().guarded.as_ref().is_some_and(|guarded| guarded.contains_key(&guest))
    }

    /// Promises to stop a guest in time, which this host owns under `token`; with the token from then on. Does nothing while
    /// the host cannot promise that: also while renewals go unanswered, when little is left of the time in which it would have to.
    ///
    /// # Errors
    /// When the store does not answer, or takes the host for gone: then the promise is kept, and may not be on record.
    /// [`ReconcileError::Outdated`] when the host does not own the guest under this token.
    pub async fn guard(&self, guest: Uuid, token: Token) -> Result<Option<Token>, ReconcileError> {
        let (is_new, lease) = {
            let mut state = self.lock();
            let can = state.obstacle.is_none() && state.vitals.rung(Instant::now()) == Rung::Healthy;
            let Some(deadline) = state.vitals.deadline().filter(|_| can) else { return Ok(None) };
            let Some(guarded) = &mut state.guarded else { return Ok(None) };
            let is_new = !guarded.contains_key(&guest);
            guarded.entry(guest).or_default();
            let lease = state.vitals.lease();
            let kept = self.write_down(&state, lease).and_then(|()| self.arm(&mut state, deadline));
            if let Err(error) = kept {
                if is_new {
                    self.strike(&mut state, guest);
                }
                return Err(error.into());
            }
            (is_new, lease)
        };
        self.changed.notify_one();
        match self.ownership.guard(VmUid(guest), &self.me, token, true).await? {
            Guard::Written(token) => {
                info!(%guest, %token, "guarded");
                Ok(Some(token))
            }
            Guard::NotLive => {
                // To renew that lease proves nothing, so another is asked for.
                if let Some(lease) = lease {
                    self.lock().vitals.ended(lease);
                }
                Err(ReconcileError::Unheard("the pool's store takes this host for gone".to_owned()))
            }
            // An earlier promise may have come through meanwhile.
            Guard::Refused(Some(owner)) if owner.is(&self.me) => Err(ReconcileError::Outdated),
            Guard::Refused(_) => {
                if is_new {
                    self.forget(guest);
                }
                Err(ReconcileError::Outdated)
            }
        }
    }

    /// Takes the promise back for a guest that this host owns under `token`; with the token from then on. After that no promise
    /// that is still under way comes through.
    ///
    /// # Errors
    /// When the store does not answer: then the promise is kept. [`ReconcileError::Outdated`] when the host does not own the
    /// guest under this token.
    pub async fn unguard(&self, guest: Uuid, token: Token) -> Result<Token, ReconcileError> {
        match self.ownership.guard(VmUid(guest), &self.me, token, false).await? {
            Guard::Written(token) => {
                info!(%guest, %token, "guarded no more");
                self.forget(guest);
                Ok(token)
            }
            Guard::NotLive | Guard::Refused(_) => Err(ReconcileError::Outdated),
        }
    }

    /// What was promised of the guest need not be kept any more: it is not this host's, or there is no domain of it here, and
    /// none is let run before its record was read.
    pub fn forget(&self, guest: Uuid) {
        self.strike(&mut self.lock(), guest);
    }

    /// Takes a guest off the list.
    fn strike(&self, state: &mut State, guest: Uuid) {
        let struck = state.guarded.as_mut().is_some_and(|guarded| guarded.remove(&guest).is_some());
        if struck {
            self.align(state);
        }
    }

    /// Has the watchdog reset the host at its deadline if there is anything to guard, and stops it otherwise; then keeps for the
    /// next agent what it has to know. What fails is tried again whenever a renewal is answered, and is said until then.
    fn align(&self, state: &mut State) {
        let Some(guarded) = &state.guarded else { return };
        let aligned = match (guarded.is_empty(), state.vitals.deadline()) {
            (false, Some(deadline)) => self.arm(state, deadline),
            (true, _) if state.may_be_armed => self.disarm(state),
            (true | false, _) => Ok(()),
        };
        let lease = state.vitals.lease();
        let aligned = aligned.and(self.write_down(state, lease));
        if let Err(error) = &aligned {
            warn!(%error, "the watchdog is not as it should be");
        }
        state.trouble = aligned.err().map(|error| error.to_string());
    }

    fn arm(&self, state: &mut State, deadline: Instant) -> Result<(), WatchdogError> {
        state.may_be_armed = true;
        if Mutant::WatchdogNotArmed.is_active() {
            return Ok(());
        }
        let wrong = deadline.saturating_duration_since(Instant::now()) / 3;
        let deadline = match (Mutant::WatchdogTooSoon.is_active(), Mutant::WatchdogTooLate.is_active()) {
            (true, _) => deadline.checked_sub(wrong).unwrap_or(deadline),
            (false, true) => deadline + wrong * 6,
            (false, false) => deadline,
        };
        self.watchdog.set(deadline)
    }

    fn disarm(&self, state: &mut State) -> Result<(), WatchdogError> {
        self.watchdog.disarm()?;
        state.may_be_armed = false;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No section under this lock can panic half-way through a change, so a poisoned state is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // What was promised outlives the agent.
        if Mutant::DisarmAtExit.is_active() {
            drop(self.watchdog.disarm());
        }
    }
}

/// The times of a profile.
fn timing(profile: Profile) -> Timing {
    match profile {
        Profile::Default => Timing::DEFAULT,
        Profile::Fast => Timing::FAST,
    }
}
