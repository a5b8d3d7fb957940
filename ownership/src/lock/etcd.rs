//! Locks in the pool etcd.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::{Backend, Guard, Holding, LockError, LockName, Locks, Put, acquire};
use crate::drive::RequestError;
use crate::etcd::EtcdConfig;
use crate::etcd::link::{self, Link, revision};
use crate::names::{HostName, LeaseId};

/// The locks of a pool in its etcd.
///
/// It connects at the first call, and again after each failure, to the next endpoint. Without the patience for other
/// holders, an acquisition ends within some ten request limits, a renewal within one more than there are endpoints.
#[derive(Clone, Debug)]
pub struct EtcdLocks {
    backend: Arc<EtcdBackend>,
}

impl EtcdLocks {
    /// The locks as `holder` uses them. Does no I/O.
    #[must_use]
    pub fn new(config: EtcdConfig, holder: HostName) -> Self {
        Self { backend: Arc::new(EtcdBackend { link: Link::new(config), holder }) }
    }
}

#[async_trait]
impl Locks for EtcdLocks {
    async fn acquire(&self, name: &LockName, ttl: Duration, patience: Duration) -> Result<Guard, LockError> {
        acquire::acquire(self.backend.clone(), name, ttl, patience).await
    }
}

struct EtcdBackend {
    link: Link,
    holder: HostName,
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdBackend").field("config", self.link.config()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    fn attempts(&self) -> u32 {
        u32::try_from(self.link.config().endpoints.len()).unwrap_or(u32::MAX).saturating_add(1)
    }

    async fn read(&self, name: &LockName) -> Result<Option<Holding>, RequestError> {
        let key = name.key();
        let answer = self.link.request(|mut etcd| async move { etcd.get(key, None).await }).await?;
        Ok(answer.kvs().first().map(holding))
    }

    async fn grant(&self, seconds: i64) -> Result<LeaseId, RequestError> {
        let answer =
            self.link.request(|etcd| async move { etcd.lease_client().grant(seconds, None).await }).await?;
        Ok(LeaseId(answer.id()))
    }

    async fn put(&self, name: &LockName, lease: LeaseId) -> Result<Put, RequestError> {
        let put = TxnOp::put(name.key(), self.holder.as_str(), Some(PutOptions::new().with_lease(lease.0)));
        let request = Txn::new()
            .when([Compare::create_revision(name.key(), CompareOp::Equal, 0)])
            .and_then([put])
            .or_else([TxnOp::get(name.key(), None)]);
        let answer = self
            .link
            .request(|mut etcd| async move {
                match etcd.txn(request).await {
                    Ok(answer) => Ok(Some(answer)),
                    Err(error) if link::is_not_found(&error) => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .await?;
        let Some(answer) = answer else { return Ok(Put::NoLease) };
        if answer.succeeded() {
            return Ok(Put::Done(revision(answer.header())?));
        }
        let found = answer.op_responses().into_iter().find_map(|found| match found {
            TxnOpResponse::Get(found) => found.kvs().first().map(holding),
            TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
        });
        found.map(Put::Taken).ok_or_else(|| RequestError::NoAnswer("a key neither absent nor there".into()))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<bool, RequestError> {
        self.link.request(|etcd| link::keep_alive(etcd, lease)).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), RequestError> {
        self.link.request(|etcd| link::revoke(etcd, lease)).await
    }
}

fn holding(kv: &KeyValue) -> Holding {
    let holder = std::str::from_utf8(kv.value()).ok().and_then(|text| HostName::new(text).ok());
    // A revision is never negative: etcd counts from 1 up.
    Holding { lease: LeaseId(kv.lease()), revision: u64::try_from(kv.create_revision()).unwrap_or(0), holder }
}
