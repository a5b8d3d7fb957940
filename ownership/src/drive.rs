//! Carries a verb through a store: read, decide, execute, and learn the result when an answer is lost.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use crate::names::{LeaseId, Owner, VmUid};
use crate::protocol::{Decision, Outcome, Transaction, Verb};
use crate::record::{Entry, Key, decode};
use crate::store::{Cause, StoreError};

/// What a store must be able to do.
pub(crate) trait Backend: Sync {
    /// How often a read is tried before the store counts as unreachable.
    fn read_attempts(&self) -> u32;

    /// The value of one key, by one linearizable read, tried once.
    fn read(&self, key: Key) -> impl Future<Output = Result<Option<Entry>, RequestError>> + Send;

    /// Executes a transaction, sending it once.
    fn execute(
        &self,
        transaction: &Transaction,
    ) -> impl Future<Output = Result<Outcome, RequestError>> + Send;
}

/// What a store must be able to do for leases, each request sent once.
pub(crate) trait Leases: Backend {
    /// A new lease of this many seconds, or as many more as the store allows at the least; with how many it has.
    fn grant(&self, seconds: i64) -> impl Future<Output = Result<(LeaseId, i64), RequestError>> + Send;

    /// Renews a lease; false when there is no such lease any more.
    fn keep_alive(&self, lease: LeaseId) -> impl Future<Output = Result<bool, RequestError>> + Send;

    /// Ends a lease and what hangs on it, if it is still there.
    fn revoke(&self, lease: LeaseId) -> impl Future<Output = Result<(), RequestError>> + Send;

    /// All that is known of hosts, as of one moment, by a linearizable read.
    fn hosts(&self) -> impl Future<Output = Result<HostRecords, RequestError>> + Send;
}

/// All that is known of hosts, as of one moment.
#[derive(Clone, Debug)]
pub(crate) struct HostRecords {
    /// Identity of the store.
    pub(crate) cluster: u64,
    /// The store's revision.
    pub(crate) revision: u64,
    /// What the keys hold.
    pub(crate) entries: BTreeMap<Key, Entry>,
}

/// Why a request to the store has no answer.
#[derive(Debug)]
pub(crate) enum RequestError {
    /// None came. A transaction may have taken effect, or may yet do so.
    NoAnswer(Cause),
    /// It certainly had no effect, and another attempt will fare no better.
    Final(StoreError),
}

/// How many failures a call bears, once the result of a transaction of it is unknown, before it says so.
const RESOLVE_ATTEMPTS: u32 = 5;
/// The pause after the first of these failures; it doubles each time. All together they take 1.5 s, within which a
/// store that restarts usually answers again.
const RESOLVE_PAUSE: Duration = Duration::from_millis(100);
/// How many transactions may be refused because the record changed. Each refusal means that somebody else's
/// transaction took effect, so even the second is rare.
pub(crate) const MAX_REFUSALS: u32 = 8;

/// The owner that the value of `key` names.
pub(crate) fn owner_in(key: &Key, entry: Option<&Entry>) -> Result<Option<Owner>, StoreError> {
    let corrupt = |reason| StoreError::Corrupt { key: key.clone(), reason };
    entry.map(|entry| decode(entry).map_err(corrupt)).transpose()
}

/// The owners that `records` name; a record that cannot be read is left out, and logged.
pub(crate) fn readable_owners<'a>(
    records: impl Iterator<Item = (VmUid, &'a Entry)>,
) -> BTreeMap<VmUid, Owner> {
    let mut owners = BTreeMap::new();
    for (vm, entry) in records {
        match decode(entry) {
            Ok(owner) => {
                owners.insert(vm, owner);
            }
            Err(reason) => tracing::error!(%vm, reason, "an ownership record cannot be read"),
        }
    }
    owners
}

/// Reads `key`, trying as often as the store wants it.
pub(crate) async fn read<B: Backend>(backend: &B, key: Key) -> Result<Option<Entry>, StoreError> {
    retry(backend.read_attempts(), || backend.read(key.clone())).await
}

/// Makes a request that changes nothing, up to `attempts` times.
pub(crate) async fn retry<T, R>(attempts: u32, mut request: impl FnMut() -> R) -> Result<T, StoreError>
where
    R: Future<Output = Result<T, RequestError>>,
{
    let mut left = attempts;
    loop {
        left = left.saturating_sub(1);
        match request().await {
            Ok(answer) => return Ok(answer),
            Err(RequestError::NoAnswer(_)) if left > 0 => {}
            Err(RequestError::NoAnswer(source)) => return Err(StoreError::Unavailable { source }),
            Err(RequestError::Final(error)) => return Err(error),
        }
    }
}

/// Carries out `verb`.
///
/// It begins with a read, so that a store that cannot be reached is found out before anything is sent: from the first
/// transaction on, silence means that the result is unknown.
pub(crate) async fn run<B: Backend, V: Verb + Sync>(backend: &B, verb: &V) -> Result<V::Answer, StoreError> {
    let key = Key::Owner(verb.vm());
    let mut entry = read(backend, key.clone()).await?;
    let mut resolving = Resolving::default();
    let mut refusals = 0;
    loop {
        let owner = owner_in(&key, entry.as_ref())?;
        let transaction = match verb.decide(owner.as_ref(), resolving.begun()) {
            Decision::Answer(answer) => return Ok(answer),
            Decision::Execute(transaction) => transaction,
        };
        let failure = match backend.execute(&transaction).await {
            Ok(Outcome::Executed { revision }) => return Ok(verb.executed(revision)),
            Ok(Outcome::Refused(mut found)) => {
                if let Some(answer) = verb.refused(&found) {
                    return Ok(answer);
                }
                refusals += 1;
                if refusals < MAX_REFUSALS {
                    entry = found.remove(&key);
                    continue;
                }
                StoreError::Contended { verb: verb.name(), key: key.clone() }
            }
            Err(RequestError::NoAnswer(source)) => {
                entry = resolving.after(verb, source, backend, &key).await?;
                continue;
            }
            Err(RequestError::Final(error)) => error,
        };
        // An earlier transaction of this call may still have taken effect, whatever became of the last one.
        return Err(if resolving.begun() { unknown(verb, failure.into()) } else { failure });
    }
}

fn unknown<V: Verb>(verb: &V, source: Cause) -> StoreError {
    StoreError::Unknown { verb: verb.name(), key: Key::Owner(verb.vm()), source }
}

/// The search for the result of a transaction whose answer was lost.
#[derive(Default)]
struct Resolving {
    failures: u32,
}

impl Resolving {
    fn begun(&self) -> bool {
        self.failures > 0
    }

    /// What `key` holds after an answer was lost, from `cause`.
    async fn after<B: Backend, V: Verb>(
        &mut self,
        verb: &V,
        mut cause: Cause,
        backend: &B,
        key: &Key,
    ) -> Result<Option<Entry>, StoreError> {
        loop {
            if self.failures == RESOLVE_ATTEMPTS {
                return Err(unknown(verb, cause));
            }
            tracing::debug!(verb = verb.name(), vm = %verb.vm(), error = %cause, "resolving an unknown result");
            if self.failures > 0 {
                tokio::time::sleep(RESOLVE_PAUSE * (1 << (self.failures - 1))).await;
            }
            self.failures += 1;
            match backend.read(key.clone()).await {
                Ok(entry) => return Ok(entry),
                Err(RequestError::NoAnswer(source)) => cause = source,
                Err(RequestError::Final(error)) => return Err(unknown(verb, error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use super::*;
    use crate::conformance::{host, vm};
    use crate::protocol::StartVerb;
    use crate::store::Start;

    type Answer = fn() -> Result<Outcome, RequestError>;

    /// Finds every record absent, and answers transactions as scripted; the last answer is given for ever.
    struct Scripted(Mutex<VecDeque<Answer>>);

    impl Backend for Scripted {
        fn read_attempts(&self) -> u32 {
            1
        }

        async fn read(&self, _key: Key) -> Result<Option<Entry>, RequestError> {
            Ok(None)
        }

        async fn execute(&self, _transaction: &Transaction) -> Result<Outcome, RequestError> {
            let mut script = self.0.lock().unwrap();
            let answer = script.pop_front().unwrap();
            if script.is_empty() {
                script.push_back(answer);
            }
            answer()
        }
    }

    async fn start(script: &[Answer]) -> Result<Start, StoreError> {
        let backend = Scripted(Mutex::new(script.iter().copied().collect()));
        run(&backend, &StartVerb { vm: vm("a"), me: &host("xen-1", "boot-1") }).await
    }

    fn refused() -> Result<Outcome, RequestError> {
        Ok(Outcome::Refused(BTreeMap::new()))
    }

    fn lost() -> Result<Outcome, RequestError> {
        Err(RequestError::NoAnswer("lost".into()))
    }

    fn rejected() -> Result<Outcome, RequestError> {
        Err(RequestError::Final(StoreError::Rejected { source: "not allowed".into() }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_race_that_is_lost_for_ever_ends() {
        assert_eq!(start(&[refused]).await.unwrap_err().category(), "contended");
    }

    #[tokio::test(start_paused = true)]
    async fn answers_that_are_lost_for_ever_end_as_unknown() {
        let began = tokio::time::Instant::now();
        assert_eq!(start(&[lost]).await.unwrap_err().category(), "unknown");
        assert_eq!(began.elapsed(), Duration::from_millis(1_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_rejection_is_final_unless_an_earlier_answer_was_lost() {
        assert_eq!(start(&[rejected]).await.unwrap_err().category(), "rejected");
        assert_eq!(start(&[lost, rejected]).await.unwrap_err().category(), "unknown");
        assert_eq!(start(&[lost, refused]).await.unwrap_err().category(), "unknown");
    }
}
