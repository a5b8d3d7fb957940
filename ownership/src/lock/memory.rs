//! Locks without etcd: a model of its leases in memory, with faults to inject, for simulation and tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::{Backend, Guard, Holding, LockError, LockName, Locks, Put, acquire};
use crate::drive::RequestError;
use crate::names::{HostName, LeaseId};

/// Locks in memory, as one host uses them. Leases run out by tokio's clock, and revisions are counted as etcd counts
/// them. Each request yields to the executor once before it is executed.
#[derive(Clone, Debug)]
pub struct MemoryLocks {
    backend: Arc<MemoryBackend>,
}

impl MemoryLocks {
    /// Locks that nobody holds, as `holder` uses them.
    #[must_use]
    pub fn new(holder: HostName) -> Self {
        Self { backend: Arc::new(MemoryBackend { state: Arc::default(), holder }) }
    }

    /// The same locks as another host uses them.
    #[must_use]
    pub fn on_another_host(&self, holder: HostName) -> Self {
        Self { backend: Arc::new(MemoryBackend { state: Arc::clone(&self.backend.state), holder }) }
    }

    /// Begins or ends an outage: during it no request is executed, and none is answered. Leases run out all the same.
    pub fn set_outage(&self, outage: bool) {
        self.backend.lock().outage = outage;
    }

    /// Executes each of the next `writes` requests that take or give up a lock, and loses its answer.
    pub fn lose_answers(&self, writes: u32) {
        self.backend.lock().lost_answers = writes;
    }
}

#[async_trait]
impl Locks for MemoryLocks {
    async fn acquire(&self, name: &LockName, ttl: Duration, patience: Duration) -> Result<Guard, LockError> {
        acquire::acquire(self.backend.clone(), name, ttl, patience).await
    }
}

#[derive(Debug)]
struct MemoryBackend {
    state: Arc<Mutex<State>>,
    holder: HostName,
}

#[derive(Debug, Default)]
struct State {
    /// Time to live and end of each lease.
    leases: BTreeMap<LeaseId, (Duration, Instant)>,
    locks: BTreeMap<LockName, Holding>,
    revision: u64,
    last_lease: i64,
    outage: bool,
    lost_answers: u32,
}

impl MemoryBackend {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No section under this lock can panic half-way through a change, so a poisoned state is a whole one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state as the next request meets it, unless there is an outage.
    async fn request(&self) -> Result<MutexGuard<'_, State>, RequestError> {
        tokio::task::yield_now().await;
        let mut state = self.lock();
        if state.outage {
            return Err(RequestError::NoAnswer("outage injected".into()));
        }
        let now = Instant::now();
        let ended: Vec<LeaseId> =
            state.leases.iter().filter(|(_, (_, end))| *end <= now).map(|(lease, _)| *lease).collect();
        ended.into_iter().for_each(|lease| state.end(lease));
        Ok(state)
    }
}

impl State {
    fn end(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let before = self.locks.len();
        self.locks.retain(|_, holding| holding.lease != lease);
        self.revision += u64::from(self.locks.len() < before);
    }

    fn answer<T>(&mut self, answer: T) -> Result<T, RequestError> {
        if self.lost_answers == 0 {
            return Ok(answer);
        }
        self.lost_answers -= 1;
        Err(RequestError::NoAnswer("answer lost by injection".into()))
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn attempts(&self) -> u32 {
        1
    }

    async fn read(&self, name: &LockName) -> Result<Option<Holding>, RequestError> {
        Ok(self.request().await?.locks.get(name).cloned())
    }

    async fn grant(&self, seconds: i64) -> Result<LeaseId, RequestError> {
        let mut state = self.request().await?;
        state.last_lease += 1;
        let (lease, ttl) = (LeaseId(state.last_lease), Duration::from_secs(seconds.unsigned_abs()));
        state.leases.insert(lease, (ttl, Instant::now() + ttl));
        Ok(lease)
    }

    async fn put(&self, name: &LockName, lease: LeaseId) -> Result<Put, RequestError> {
        let mut state = self.request().await?;
        let put = match state.locks.get(name) {
            Some(holding) => Put::Taken(holding.clone()),
            None if !state.leases.contains_key(&lease) => Put::NoLease,
            None => {
                state.revision += 1;
                let revision = state.revision;
                let holding = Holding { lease, revision, holder: Some(self.holder.clone()) };
                state.locks.insert(name.clone(), holding);
                Put::Done(revision)
            }
        };
        state.answer(put)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, RequestError> {
        let mut state = self.request().await?;
        let Some((ttl, end)) = state.leases.get_mut(&lease) else { return Ok(false) };
        *end = Instant::now() + *ttl;
        Ok(true)
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), RequestError> {
        let mut state = self.request().await?;
        state.end(lease);
        state.answer(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::conformance::{self, Subject};

    #[async_trait]
    impl Subject for MemoryLocks {
        fn locks(&self, holder: HostName) -> Arc<dyn Locks> {
            Arc::new(self.on_another_host(holder))
        }

        async fn lose_answers(&self, writes: u32) {
            self.lose_answers(writes);
        }
    }

    fn host(name: &str) -> HostName {
        HostName::new(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn locks_in_memory_pass_the_conformance_script() {
        conformance::run(&MemoryLocks::new(host("nobody"))).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_ends_a_holders_time_and_nobody_waits_longer_than_the_lease() {
        let one = MemoryLocks::new(host("xen-1"));
        let two = one.on_another_host(host("xen-2"));
        let (name, ttl) = (LockName::new("a").unwrap(), Duration::from_secs(10));
        let mut guard = one.acquire(&name, ttl, Duration::ZERO).await.unwrap();
        one.set_outage(true);
        assert!(matches!(guard.renew().await, Err(LockError::Store(_))));
        let deadline = guard.deadline();
        tokio::time::sleep(ttl).await;
        one.set_outage(false);
        let next = two.acquire(&name, ttl, Duration::ZERO).await.unwrap();
        assert!(next.revision() > guard.revision() && Instant::now() > deadline);
        assert!(matches!(guard.last_for(Duration::from_secs(1)).await, Err(LockError::Lost(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_was_perhaps_taken_is_free_when_its_lease_has_run_out() {
        let locks = MemoryLocks::new(host("xen-1"));
        let (name, ttl) = (LockName::new("a").unwrap(), Duration::from_secs(10));
        locks.lose_answers(u32::MAX);
        let lost = locks.acquire(&name, ttl, Duration::ZERO).await;
        assert!(matches!(lost, Err(LockError::Unknown { .. })), "{lost:?}");
        locks.lose_answers(0);
        locks.acquire(&name, ttl, ttl).await.unwrap();
    }
}
