//! The transactions of liveness as data, decided without I/O, clock or randomness.
//!
//! ```text
//! JOIN     fenced/<boot> absent, live/<boot> as seen  → put live/<boot> on a new lease
//! REJOIN   epoch as seen, live/<boot> as seen          → delete fenced/<boot>, put live/<boot> on a new lease
//! FENCE    live/<boot> absent, fenced/<boot> as seen  → put fenced/<boot>, unless it says as much
//! UNFENCE  always                                     → delete fenced/<boot>
//! EPOCH    epoch as seen                              → put epoch
//! ```
//!
//! JOIN compares its own key too. A JOIN whose answer was lost may still be under way when the next one has succeeded: were it
//! executed then, the key would go back to the earlier lease, which nobody renews, and a host that renews its lease without
//! fail would be found gone.

use kubexen_mutants::Mutant;
use serde::{Deserialize, Serialize};

use super::{FenceRecord, Proof, Roll, Standing};
use crate::names::{HostBoot, LeaseId};
use crate::protocol::{Compare, Transaction, Write};
use crate::record::{Entry, Key};

/// The only version of the values that there is so far.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct LiveValue {
    version: u32,
    agent: String,
    /// The lease that the key hangs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<LeaseId>,
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
pub(super) fn decode_fence(key: &Key, entry: &Entry) -> FenceRecord {
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

/// JOIN: `me` is to be live on `lease`, given what its live key holds.
#[must_use]
pub fn joining(me: &HostBoot, agent: &str, lease: LeaseId, live: Option<&Entry>) -> Transaction {
    let key = Key::Live(me.clone());
    let value = encode(&LiveValue { version: VERSION, agent: agent.to_owned(), lease: Some(lease) });
    let mut compares = Vec::new();
    if !Mutant::FencedMayJoin.is_active() {
        compares.push(Compare::Absent(Key::Fenced(me.clone())));
    }
    if !Mutant::JoinOverLaterJoin.is_active() {
        compares.push(as_seen(key.clone(), live));
    }
    Transaction { compares, writes: vec![Write::PutLeased { key, value, lease }] }
}

/// The lease by which a boot is live, by its live key; none if that does not say.
pub(super) fn lease_of(live: &Entry) -> Option<LeaseId> {
    serde_json::from_slice::<LiveValue>(&live.value).ok()?.lease
}

/// REJOIN: `me` is to be live on `lease` in a store that is frozen and was `seen` so, whatever its fence key says, given what its
/// live key holds.
#[must_use]
pub fn rejoining(
    me: &HostBoot,
    agent: &str,
    lease: LeaseId,
    live: Option<&Entry>,
    seen: &Standing,
) -> Transaction {
    let key = Key::Live(me.clone());
    let value = encode(&LiveValue { version: VERSION, agent: agent.to_owned(), lease: Some(lease) });
    let compares = vec![seen.unchanged(), as_seen(key.clone(), live)];
    let unfence = Write::Delete(Key::Fenced(me.clone()));
    Transaction { compares, writes: vec![unfence, Write::PutLeased { key, value, lease }] }
}

/// FENCE: `boot` is to be dead for good, given what its fence key holds.
///
/// # Errors
/// The record that stands, if it proves as much as `record` already.
pub fn fencing(
    boot: &HostBoot,
    record: &FenceRecord,
    fenced: Option<&Entry>,
) -> Result<Transaction, FenceRecord> {
    let key = Key::Fenced(boot.clone());
    if let Some(entry) = fenced {
        let stands = decode_fence(&key, entry);
        if stands.proof.covers_unguarded() || !record.proof.covers_unguarded() {
            return Err(stands);
        }
    }
    let mut compares = vec![as_seen(key.clone(), fenced)];
    if !Mutant::FencedWhileLive.is_active() {
        compares.push(Compare::Absent(Key::Live(boot.clone())));
    }
    let value = encode(&FenceValue { version: VERSION, record: record.clone() });
    Ok(Transaction { compares, writes: vec![Write::Put { key, value }] })
}

/// UNFENCE: nothing is to be known against `boot`, whose fence key was seen to hold `fenced`.
#[must_use]
pub fn unfencing(boot: &HostBoot, fenced: &Entry) -> Transaction {
    let key = Key::Fenced(boot.clone());
    Transaction { compares: vec![as_seen(key.clone(), Some(fenced))], writes: vec![Write::Delete(key)] }
}

impl Roll {
    /// The roll that these keys make; those that do not speak of hosts are passed over.
    pub fn of<'a>(
        cluster: u64,
        revision: u64,
        entries: impl IntoIterator<Item = (&'a Key, &'a Entry)>,
    ) -> Self {
        let mut roll = Self { cluster, revision, ..Self::default() };
        for (key, entry) in entries {
            match key {
                Key::Live(boot) => {
                    let value = serde_json::from_slice::<LiveValue>(&entry.value);
                    roll.live.insert(boot.clone(), value.map(|value| value.agent).unwrap_or_default());
                }
                Key::Fenced(boot) => drop(roll.fenced.insert(boot.clone(), decode_fence(key, entry))),
                Key::Owner(_) | Key::Disk(_) | Key::Epoch => {}
            }
        }
        roll
    }
}

/// The condition that `key` still holds what it was seen with.
fn as_seen(key: Key, entry: Option<&Entry>) -> Compare {
    match entry {
        None => Compare::Absent(key),
        Some(entry) => Compare::Unchanged { key, mod_revision: entry.mod_revision },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::host;

    #[test]
    fn a_request_to_unfence_that_comes_late_removes_no_later_record() {
        let boot = host("xen-1", "boot-1");
        let seen = Entry { value: Vec::new(), mod_revision: 7 };
        let unfencing = unfencing(&boot, &seen);
        assert_eq!(
            unfencing.compares,
            [Compare::Unchanged { key: Key::Fenced(boot.clone()), mod_revision: 7 }]
        );
        assert_eq!(unfencing.writes, [Write::Delete(Key::Fenced(boot))]);
    }

    #[test]
    fn the_layout_of_the_values_is_the_one_that_other_versions_read() {
        let live = LiveValue { version: VERSION, agent: "0.1.0".to_owned(), lease: Some(LeaseId(7)) };
        assert_eq!(String::from_utf8(encode(&live)).unwrap(), r#"{"version":1,"agent":"0.1.0","lease":7}"#);
        let entry = |value: &str| Entry { value: value.into(), mod_revision: 1 };
        let before = entry(r#"{"version":1,"agent":"0.1.0"}"#);
        assert_eq!(lease_of(&before), None, "an earlier version did not say it");
        let record = FenceRecord { by: "controller-1".to_owned(), proof: Proof::Confirmed, revision: 7 };
        let text = r#"{"version":1,"by":"controller-1","proof":"Confirmed","revision":7}"#;
        let value = encode(&FenceValue { version: VERSION, record: record.clone() });
        assert_eq!(String::from_utf8(value).unwrap(), text);
        let key = Key::Fenced(host("xen-1", "boot-1"));
        assert_eq!(decode_fence(&key, &entry(text)), record);
        for bad in ["", "{}", &text.replace(":1,", ":2,"), &text.replace("Confirmed", "Guessed")] {
            assert_eq!(decode_fence(&key, &entry(bad)).proof, Proof::LeaseEnded, "{bad}");
        }
    }
}
