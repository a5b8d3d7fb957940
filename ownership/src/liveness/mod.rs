//! Which hosts are alive, and which are dead for good.
//!
//! ```text
//!   agent       Vitals ◀── join, renew ──▶ hosts/<host>/live/<boot-id>     on the agent's lease
//!                 │
//!                 ▼ Rung: what is due by now: refuse, pause, stop, reset
//!   controller  Judge  ◀── roll ───────────  live · fenced
//!                 │
//!                 ▼ due ──▶ fence ──▶ hosts/<host>/fenced/<boot-id> ──▶ OwnershipStore::steal
//! ```
//!
//! An agent keeps the key of its host's boot on a lease. That the key is gone proves nothing by itself; it is what the agent
//! promised that does: counted from when its last answered renewal was sent it stops what it guards, within a time that
//! [`Timing::check`] proves to be over before the lease can end. Whoever finds the key gone waits for the grace on its own
//! clock and then writes the fence record, which can only be written while the key is gone, and keeps it from ever coming
//! back. Only with that record is anything stolen.
//!
//! [`Vitals`], [`Judge`] and [`Timing`] are pure: they are told the time, and do no I/O.

mod epoch;
mod judge;
mod membership;
mod timing;
mod transactions;
mod vitals;
mod voters;

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub(crate) use self::epoch::Trust;
pub use self::epoch::{Epoch, Standing, beginning};
pub use self::judge::{AT_ONCE, Brake, Evidence, Judge, Silence, Tolerance, Verdict};
pub(crate) use self::membership::{
    begin_epoch, fence, is_live_by, join, rejoin, roll, shortest_lease, unfence,
};
pub use self::timing::{Timing, TimingBroken};
pub use self::transactions::{fencing, joining, rejoining, unfencing};
pub use self::vitals::{Rung, Vitals};
pub use self::voters::{OldMember, Survival, Voter, survival};
use crate::names::{HostBoot, LeaseId};
use crate::store::StoreError;

/// The answer to [`Liveness::join`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// The boot is live as long as this lease is renewed.
    Joined(LeaseId),
    /// The boot is fenced: its guarded guests belong to others, and it can never be live again.
    Fenced(FenceRecord),
}

/// The answer to [`Liveness::fence`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The boot is fenced, by this call or an earlier one; with the record that stands.
    Fenced(FenceRecord),
    /// The boot is live; nothing changed.
    Alive,
}

/// The answer to [`Liveness::unfence`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfence {
    /// The boot has no fence record, by this call or an earlier one.
    Unfenced,
    /// Another record stands than the one that was to be removed; nothing changed.
    Refused(FenceRecord),
}

/// Why a boot counts as dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proof {
    /// Its lease ended, and the grace is over. That proves guarded guests stopped, and no others.
    LeaseEnded,
    /// A person has seen that the host is off. That proves all of its guests stopped.
    Confirmed,
}

impl Proof {
    /// Whether guests that nobody guarded have stopped too.
    #[must_use]
    pub fn covers_unguarded(self) -> bool {
        match self {
            Self::LeaseEnded => false,
            Self::Confirmed => true,
        }
    }
}

/// What stands in the fence record of a boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceRecord {
    /// Who wrote it.
    pub by: String,
    /// Why the boot counts as dead.
    pub proof: Proof,
    /// The store's revision at which the boot was last seen not to be live before the record was written.
    pub revision: u64,
}

/// All hosts, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roll {
    /// Identity of the store; a store that is restored from a backup has another.
    pub cluster: u64,
    /// The store's revision.
    pub revision: u64,
    /// Boots that are live, with the version of the agent that said so.
    pub live: BTreeMap<HostBoot, String>,
    /// Boots that are dead for good. A record that cannot be read is here as one that proves the least.
    pub fenced: BTreeMap<HostBoot, FenceRecord>,
}

impl Roll {
    /// The boot at which a host is live, if it is.
    #[must_use]
    pub fn live_boot(&self, host: &str) -> Option<&HostBoot> {
        self.live.keys().find(|boot| boot.host.as_str() == host)
    }
}

/// Which hosts are alive, as agents and the controller tell each other.
///
/// Every method is linearizable and ends within a bound that the store states. Every method may be repeated.
#[async_trait]
pub trait Liveness: Send + Sync + fmt::Debug {
    /// Makes `me` live on a new lease, unless it is fenced. An earlier lease of the same boot counts no more, and ends by
    /// itself.
    ///
    /// The lease counts from before this call, not from its answer.
    ///
    /// # Errors
    /// [`StoreError`]; `me` may be live all the same until the lease ends.
    async fn join(&self, me: &HostBoot, agent: &str, lease: Duration) -> Result<Join, StoreError>;

    /// Makes `me` live on a new lease in a store that is frozen and was `seen` so, although it has a fence record of this boot, which
    /// is gone then; none if the store stands otherwise by now.
    ///
    /// The record is as old as the backup. A boot that is there to say so is not dead, and what it promised in the store that was it
    /// has stopped there: nothing is to be stopped once more by what nobody has confirmed.
    ///
    /// # Errors
    /// As of [`Liveness::join`].
    async fn rejoin(
        &self,
        me: &HostBoot,
        agent: &str,
        lease: Duration,
        seen: &Standing,
    ) -> Result<Option<LeaseId>, StoreError>;

    /// Renews a lease, by one request to one endpoint; false when it has ended. It counts from before this call.
    ///
    /// # Errors
    /// [`StoreError`], after which the next call asks another endpoint.
    async fn renew(&self, lease: LeaseId) -> Result<bool, StoreError>;

    /// Whether `me` is live by this lease, by a linearizable read. A store that was restored from a backup may have a lease that
    /// no live key hangs on, so that to renew it proves nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn is_live_by(&self, me: &HostBoot, lease: LeaseId) -> Result<bool, StoreError>;

    /// Ends a lease at once. To be called only by a host that guards nothing.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn leave(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// All hosts, by a linearizable read.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn roll(&self) -> Result<Roll, StoreError>;

    /// Fences a boot, unless it is live. A boot that is fenced already gets a record of `record.proof` only where that proves
    /// more.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be fenced now. Else [`StoreError`].
    async fn fence(&self, boot: &HostBoot, record: &FenceRecord) -> Result<Fence, StoreError>;

    /// Removes the fence record of a boot, which may be live again then, if it is still this record: a request that arrives
    /// late removes no later one.
    ///
    /// To be called only when somebody has made sure that no guest of it belongs to another host by now, or that the boot is
    /// over.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not be removed. Else [`StoreError`].
    async fn unfence(&self, boot: &HostBoot, record: &FenceRecord) -> Result<Unfence, StoreError>;

    /// The shortest lease that the store grants, which tells its election timeout: it is one and a half of that, rounded up to
    /// whole seconds (etcd 3.6, `server/etcdserver/server.go`, `minTTL`).
    ///
    /// # Errors
    /// [`StoreError`].
    async fn shortest_lease(&self) -> Result<Duration, StoreError>;

    /// Somebody has worked with a store that was seen as this, perhaps at other endpoints: another process of this boot, which has
    /// promised something there, or the pool. Another cluster whose record does not say that it follows that one is frozen for this
    /// client and its clones ([`Standing::instead_of`]). Says nothing to a client that has worked with a store itself.
    fn recall(&self, seen_as: Epoch);

    /// How the store stands to the records in it: whether it was restored from a backup. By a linearizable read. From then on
    /// this client answers accordingly.
    ///
    /// A cluster that this client has not worked with before counts only when most of the endpoints belong to it: the one that
    /// was can then do nothing any more.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn standing(&self) -> Result<Standing, StoreError>;

    /// Makes the records count in this epoch, if the store still stands as it was seen; false if it does not.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] when it may or may not have taken effect. Else [`StoreError`].
    async fn begin_epoch(&self, epoch: Epoch, seen: &Standing) -> Result<bool, StoreError>;

    /// The members of the store that may answer with an old state, and so cannot be relied on. One that does not answer, or does not
    /// say what it is, is not among them.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn old_members(&self) -> Result<Vec<OldMember>, StoreError>;

    /// The members of the store that have a vote, as it knows them.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn voters(&self) -> Result<Vec<Voter>, StoreError>;
}
