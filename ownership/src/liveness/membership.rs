//! The transactions of liveness: how boots become live, fenced and unfenced.
//!
//! ```text
//! JOIN     fenced/<boot> absent           → put live/<boot> on a new lease
//! FENCE    live/<boot> absent             → put fenced/<boot>, unless it says as much
//! UNFENCE  always                         → delete fenced/<boot>
//! ```

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Fence, FenceRecord, Join, Proof, Roll};
use crate::drive::{self, Leases, MAX_REFUSALS, RequestError};
use crate::names::HostBoot;
use crate::protocol::{Compare, Outcome, Transaction, Write};
use crate::record::{Entry, Key};
use crate::store::StoreError;

/// The only version of the values that there is so far.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct LiveValue {
    version: u32,
    agent: String,
}

#[derive(Serialize, Deserialize)]
struct FenceValue {
    version: u32,
    #[serde(flatten)]
    record: FenceRecord,
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and unit variants always have a JSON form")
}

/// What a fence record says. One that cannot be read is there all the same, and proves the least.
fn decode_fence(key: &Key, entry: &Entry) -> FenceRecord {
    match serde_json::from_slice::<FenceValue>(&entry.value) {
        Ok(FenceValue { version: VERSION, record }) => record,
        Ok(FenceValue { version, .. }) => unreadable(key, &format!("its value has version {version}")),
        Err(error) => unreadable(key, &error.to_string()),
    }
}

fn unreadable(key: &Key, reason: &str) -> FenceRecord {
    tracing::error!(%key, reason, "a fence record cannot be read");
    FenceRecord { by: "unknown".to_owned(), proof: Proof::LeaseEnded, revision: 0 }
}

pub(crate) async fn join<B: Leases>(
    backend: &B,
    me: &HostBoot,
    agent: &str,
    lease: Duration,
) -> Result<Join, StoreError> {
    let seconds = i64::try_from(lease.as_secs()).unwrap_or(i64::MAX);
    let (live, fenced) = (Key::Live(me.clone()), Key::Fenced(me.clone()));
    let (lease, _) = drive::retry(backend.read_attempts(), || backend.grant(seconds)).await?;
    let value = encode(&LiveValue { version: VERSION, agent: agent.to_owned() });
    let transaction = Transaction {
        compares: vec![Compare::Absent(fenced.clone())],
        writes: vec![Write::PutLeased { key: live, value, lease }],
    };
    match execute(backend, "join", &fenced, &transaction).await? {
        Outcome::Executed { .. } => Ok(Join::Joined(lease)),
        Outcome::Refused(found) => {
            let entry = found.get(&fenced);
            Ok(Join::Fenced(entry.map_or_else(
                || unreadable(&fenced, "it is neither there nor absent"),
                |entry| decode_fence(&fenced, entry),
            )))
        }
    }
}

pub(crate) async fn fence<B: Leases>(
    backend: &B,
    boot: &HostBoot,
    record: &FenceRecord,
) -> Result<Fence, StoreError> {
    let (live, fenced) = (Key::Live(boot.clone()), Key::Fenced(boot.clone()));
    for _ in 0..MAX_REFUSALS {
        let before = drive::read(backend, fenced.clone()).await?;
        let unchanged = match &before {
            None => Compare::Absent(fenced.clone()),
            Some(entry) => {
                let stands = decode_fence(&fenced, entry);
                if stands.proof.covers_unguarded() || !record.proof.covers_unguarded() {
                    return Ok(Fence::Fenced(stands));
                }
                Compare::Unchanged { key: fenced.clone(), mod_revision: entry.mod_revision }
            }
        };
        let value = encode(&FenceValue { version: VERSION, record: record.clone() });
        let transaction = Transaction {
            compares: vec![Compare::Absent(live.clone()), unchanged],
            writes: vec![Write::Put { key: fenced.clone(), value }],
        };
        match execute(backend, "fence", &fenced, &transaction).await? {
            Outcome::Executed { .. } => return Ok(Fence::Fenced(record.clone())),
            Outcome::Refused(found) if found.contains_key(&live) => return Ok(Fence::Alive),
            Outcome::Refused(_) => {}
        }
    }
    Err(StoreError::Contended { verb: "fence", key: fenced })
}

pub(crate) async fn unfence<B: Leases>(backend: &B, boot: &HostBoot) -> Result<(), StoreError> {
    let fenced = Key::Fenced(boot.clone());
    let transaction = Transaction { compares: Vec::new(), writes: vec![Write::Delete(fenced.clone())] };
    execute(backend, "unfence", &fenced, &transaction).await.map(drop)
}

pub(crate) async fn roll<B: Leases>(backend: &B) -> Result<Roll, StoreError> {
    let records = drive::retry(backend.read_attempts(), || backend.hosts()).await?;
    let mut roll = Roll { cluster: records.cluster, revision: records.revision, ..Roll::default() };
    for (key, entry) in records.entries {
        match &key {
            Key::Live(boot) => {
                let value = serde_json::from_slice::<LiveValue>(&entry.value);
                roll.live.insert(boot.clone(), value.map(|value| value.agent).unwrap_or_default());
            }
            Key::Fenced(boot) => drop(roll.fenced.insert(boot.clone(), decode_fence(&key, &entry))),
            Key::Owner(_) | Key::Disk(_) => {}
        }
    }
    Ok(roll)
}

pub(crate) async fn shortest_lease<B: Leases>(backend: &B) -> Result<Duration, StoreError> {
    let (lease, seconds) = drive::retry(backend.read_attempts(), || backend.grant(1)).await?;
    if let Err(RequestError::Final(error)) = backend.revoke(lease).await {
        return Err(error);
    }
    Ok(Duration::from_secs(seconds.unsigned_abs()))
}

async fn execute<B: Leases>(
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::host;

    #[test]
    fn the_layout_of_the_values_is_the_one_that_other_versions_read() {
        let value = encode(&LiveValue { version: VERSION, agent: "0.1.0".to_owned() });
        assert_eq!(String::from_utf8(value).unwrap(), r#"{"version":1,"agent":"0.1.0"}"#);
        let record = FenceRecord { by: "controller-1".to_owned(), proof: Proof::Confirmed, revision: 7 };
        let text = r#"{"version":1,"by":"controller-1","proof":"Confirmed","revision":7}"#;
        let value = encode(&FenceValue { version: VERSION, record: record.clone() });
        assert_eq!(String::from_utf8(value).unwrap(), text);
        let key = Key::Fenced(host("xen-1", "boot-1"));
        let entry = |value: &str| Entry { value: value.into(), mod_revision: 1 };
        assert_eq!(decode_fence(&key, &entry(text)), record);
        for bad in ["", "{}", &text.replace(":1,", ":2,"), &text.replace("Confirmed", "Guessed")] {
            assert_eq!(decode_fence(&key, &entry(bad)).proof, Proof::LeaseEnded, "{bad}");
        }
    }
}
