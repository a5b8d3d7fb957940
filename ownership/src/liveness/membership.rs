//! How boots become live, fenced and unfenced: the transactions of liveness, carried through a store.

use std::collections::BTreeMap;
use std::time::Duration;

use super::epoch::{Epoch, Standing, beginning};
use super::transactions::{decode_fence, fencing, joining, lease_of, rejoining, unfencing};
use super::{Fence, FenceRecord, Join, Roll, Unfence};
use crate::drive::{self, Backend, Leases, MAX_REFUSALS, RequestError};
use crate::names::{HostBoot, LeaseId};
use crate::protocol::{Outcome, Transaction};
use crate::record::{Entry, Key};
use crate::store::StoreError;

/// What a refused transaction found.
type Found = BTreeMap<Key, Entry>;

pub(crate) async fn join<B: Leases>(
    backend: &B,
    me: &HostBoot,
    agent: &str,
    lease: Duration,
) -> Result<Join, StoreError> {
    let fenced = Key::Fenced(me.clone());
    let transaction = |lease, live: Option<&Entry>| joining(me, agent, lease, live);
    let refusal = |found: &Found| found.get(&fenced).map(|entry| decode_fence(&fenced, entry));
    let joined = live(backend, backend, "join", me, lease, transaction, refusal).await?;
    Ok(joined.map_or_else(Join::Fenced, Join::Joined))
}

pub(crate) async fn is_live_by<B: Leases>(
    backend: &B,
    me: &HostBoot,
    lease: LeaseId,
) -> Result<bool, StoreError> {
    let live = drive::read(backend, Key::Live(me.clone())).await?;
    Ok(live.as_ref().and_then(lease_of) == Some(lease))
}

/// As [`join`], in a store that is not confirmed, which `unconfirmed` writes to.
pub(crate) async fn rejoin<B: Leases>(
    backend: &B,
    unconfirmed: &impl Backend,
    me: &HostBoot,
    agent: &str,
    lease: Duration,
    frozen: &Standing,
) -> Result<Option<LeaseId>, StoreError> {
    let transaction = |lease, live: Option<&Entry>| rejoining(me, agent, lease, live, frozen);
    let refusal = |found: &Found| (!frozen.is_as_found(found)).then_some(());
    let rejoined = live(backend, unconfirmed, "rejoin", me, lease, transaction, refusal).await?;
    Ok(rejoined.ok())
}

/// Makes a boot live on a lease of its own, by the transaction for the lease and for what the live key holds. It is refused for
/// good where `refusal` reads a reason out of what was found; otherwise the live key had changed, and it is made anew.
async fn live<B: Leases, R>(
    backend: &B,
    writer: &impl Backend,
    verb: &'static str,
    me: &HostBoot,
    lease: Duration,
    transaction: impl Fn(LeaseId, Option<&Entry>) -> Transaction,
    refusal: impl Fn(&Found) -> Option<R>,
) -> Result<Result<LeaseId, R>, StoreError> {
    let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX);
    let live = Key::Live(me.clone());
    let (lease, _) = drive::retry(backend.read_attempts(), || backend.grant(seconds)).await?;
    let mut seen = drive::read(backend, live.clone()).await?;
    for _ in 0..MAX_REFUSALS {
        match execute(writer, verb, &live, &transaction(lease, seen.as_ref())).await? {
            Outcome::Executed { .. } => return Ok(Ok(lease)),
            Outcome::Refused(mut found) => {
                if let Some(reason) = refusal(&found) {
                    return Ok(Err(reason));
                }
                seen = found.remove(&live);
            }
        }
    }
    Err(StoreError::Contended { verb, key: live })
}

pub(crate) async fn fence<B: Leases>(
    backend: &B,
    boot: &HostBoot,
    record: &FenceRecord,
) -> Result<Fence, StoreError> {
    let (live, fenced) = (Key::Live(boot.clone()), Key::Fenced(boot.clone()));
    for _ in 0..MAX_REFUSALS {
        let before = drive::read(backend, fenced.clone()).await?;
        let transaction = match fencing(boot, record, before.as_ref()) {
            Ok(transaction) => transaction,
            Err(stands) => return Ok(Fence::Fenced(stands)),
        };
        match execute(backend, "fence", &fenced, &transaction).await? {
            Outcome::Executed { .. } => return Ok(Fence::Fenced(record.clone())),
            Outcome::Refused(found) if found.contains_key(&live) => return Ok(Fence::Alive),
            Outcome::Refused(_) => {}
        }
    }
    Err(StoreError::Contended { verb: "fence", key: fenced })
}

pub(crate) async fn unfence<B: Leases>(
    backend: &B,
    boot: &HostBoot,
    record: &FenceRecord,
) -> Result<Unfence, StoreError> {
    let key = Key::Fenced(boot.clone());
    for _ in 0..MAX_REFUSALS {
        let Some(entry) = drive::read(backend, key.clone()).await? else { return Ok(Unfence::Unfenced) };
        let stands = decode_fence(&key, &entry);
        if stands != *record {
            return Ok(Unfence::Refused(stands));
        }
        match execute(backend, "unfence", &key, &unfencing(boot, &entry)).await? {
            Outcome::Executed { .. } => return Ok(Unfence::Unfenced),
            Outcome::Refused(_) => {}
        }
    }
    Err(StoreError::Contended { verb: "unfence", key })
}

pub(crate) async fn roll<B: Leases>(backend: &B) -> Result<Roll, StoreError> {
    let records = drive::retry(backend.read_attempts(), || backend.hosts()).await?;
    Ok(Roll::of(records.cluster, records.revision, &records.entries))
}

pub(crate) async fn begin_epoch<B: Leases>(
    backend: &B,
    epoch: Epoch,
    seen: &Standing,
) -> Result<bool, StoreError> {
    match execute(backend, "begin epoch", &Key::Epoch, &beginning(epoch, seen)).await? {
        Outcome::Executed { .. } => Ok(true),
        Outcome::Refused(_) => Ok(false),
    }
}

pub(crate) async fn shortest_lease<B: Leases>(backend: &B) -> Result<Duration, StoreError> {
    let (lease, seconds) = drive::retry(backend.read_attempts(), || backend.grant(1)).await?;
    if let Err(RequestError::Final(error)) = backend.revoke(lease).await {
        return Err(error);
    }
    Ok(Duration::from_secs(seconds.unsigned_abs()))
}

async fn execute<B: Backend>(
    backend: &B,
    verb: &'static str,
    key: &Key,
    transaction: &Transaction,
) -> Result<Outcome, StoreError> {
    backend.execute(transaction).await.map_err(|error| match error {
        RequestError::NoAnswer(source) => StoreError::Unknown { verb, key: key.clone(), source },
        RequestError::Final(error) => error,
    })
}
