//! Which virtual machine a shared disk belongs to.
//!
//! Any host could write to a disk that several hosts reach. The pool etcd holds one record per such disk, at
//! `/kubexen/disks/<disk-uid>`: the virtual machine that has it. Together with that machine's ownership it says which one
//! host may write. The record holds as long as its machine has an owner, so nobody has to give it back: whoever stops a
//! machine releases the ownership, and that ends all of the machine's claims at once. Only a disk that is taken from a
//! machine which runs on is released by itself.
//!
//! ```text
//! CLAIM    absent                                 → put vm, if the claimer still owns vm
//!          vm's                                   → nothing to do
//!          another machine's, that nobody owns    → put vm, if both still hold
//!          another machine's, or retired          → refused
//! RELEASE  vm's                                   → delete, if unchanged
//!          anything else                          → nothing to do
//! RETIRE   absent, or of a machine nobody owns    → put "retired", if that still holds
//!          retired                                → nothing to do
//!          of a machine that has an owner         → refused
//! FORGET   retired, or of a machine nobody owns   → delete, if that still holds
//!          absent                                 → nothing to do
//!          of a machine that has an owner         → refused
//! ```
//!
//! A disk is retired before its data is deleted: from then on no claim succeeds, however late it arrives. It is forgotten by one
//! transaction, so that forgetting it a second time leaves nothing behind.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::drive::{self, Backend, MAX_REFUSALS, RequestError};
use crate::names::{Token, VmUid};
use crate::protocol::{Compare, Outcome, Transaction, Write};
use crate::record::{Entry, Key};
use crate::store::{ClaimDisk, ForgetDisk, RetireDisk, StoreError};

/// The identity of a disk: the UID of its `VirtualDisk` object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DiskUid(pub Uuid);

impl fmt::Display for DiskUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

/// The only version of the value that there is so far.
const VERSION: u32 = 1;

/// What the record of a disk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum DiskState {
    /// The disk is this machine's, as long as somebody owns the machine.
    HeldBy(VmUid),
    /// The disk is nobody's any more.
    Retired,
}

#[derive(Serialize, Deserialize)]
struct DiskValue {
    version: u32,
    state: DiskState,
}

fn encode(state: DiskState) -> Vec<u8> {
    let value = DiskValue { version: VERSION, state };
    serde_json::to_vec(&value).expect("a number and a UUID always have a JSON form")
}

fn decode(key: &Key, entry: &Entry) -> Result<DiskState, StoreError> {
    let corrupt = |reason: String| StoreError::Corrupt { key: key.clone(), reason };
    let value: DiskValue =
        serde_json::from_slice(&entry.value).map_err(|error| corrupt(error.to_string()))?;
    if value.version != VERSION {
        let reason =
            format!("its value has version {}, and this program knows version {VERSION}", value.version);
        return Err(corrupt(reason));
    }
    Ok(value.state)
}

/// The machines that `records` of disks name; a record that cannot be read is left out, and logged.
pub(crate) fn holders<'a>(records: impl Iterator<Item = (DiskUid, &'a Entry)>) -> BTreeMap<DiskUid, VmUid> {
    let mut holders = BTreeMap::new();
    for (disk, entry) in records {
        match decode(&Key::Disk(disk), entry) {
            Ok(DiskState::HeldBy(vm)) => drop(holders.insert(disk, vm)),
            Ok(DiskState::Retired) => {}
            Err(error) => tracing::error!(%error, "a record of a disk cannot be read"),
        }
    }
    holders
}

/// The record of a disk, and whether the machine that it names has an owner.
struct Seen {
    entry: Option<(Entry, DiskState)>,
    holder_is_owned: bool,
}

async fn look<B: Backend>(backend: &B, disk: DiskUid) -> Result<Seen, StoreError> {
    let key = Key::Disk(disk);
    let Some(entry) = drive::read(backend, key.clone()).await? else {
        return Ok(Seen { entry: None, holder_is_owned: false });
    };
    let state = decode(&key, &entry)?;
    let holder_is_owned = match state {
        DiskState::HeldBy(vm) => drive::read(backend, Key::Owner(vm)).await?.is_some(),
        DiskState::Retired => false,
    };
    Ok(Seen { entry: Some((entry, state)), holder_is_owned })
}

impl Seen {
    /// What must still hold for the disk to be free.
    fn still_free(&self, disk: DiskUid) -> Vec<Compare> {
        let key = Key::Disk(disk);
        match &self.entry {
            None => vec![Compare::Absent(key)],
            Some((entry, state)) => {
                let mut compares = vec![Compare::Unchanged { key, mod_revision: entry.mod_revision }];
                match state {
                    DiskState::HeldBy(vm) => compares.push(Compare::Absent(Key::Owner(*vm))),
                    DiskState::Retired => {}
                }
                compares
            }
        }
    }

    fn state(&self) -> Option<DiskState> {
        self.entry.as_ref().map(|(_, state)| *state)
    }
}

/// CLAIM: `vm`, owned under `token`, is to have `disk`.
pub(crate) async fn claim<B: Backend>(
    backend: &B,
    disk: DiskUid,
    vm: VmUid,
    token: Token,
) -> Result<ClaimDisk, StoreError> {
    let (verb, owner) = ("claim", Key::Owner(vm));
    for _ in 0..MAX_REFUSALS {
        let seen = look(backend, disk).await?;
        match seen.state() {
            Some(DiskState::HeldBy(holder)) if holder == vm => return Ok(ClaimDisk::Claimed),
            Some(DiskState::HeldBy(holder)) if seen.holder_is_owned => return Ok(ClaimDisk::HeldBy(holder)),
            Some(DiskState::Retired) => return Ok(ClaimDisk::Retired),
            Some(DiskState::HeldBy(_)) | None => {}
        }
        let mut compares = seen.still_free(disk);
        compares.push(Compare::Unchanged { key: owner.clone(), mod_revision: token.0 });
        let put = put(disk, DiskState::HeldBy(vm));
        match execute(backend, verb, disk, Transaction { compares, writes: vec![put] }).await? {
            None => return Ok(ClaimDisk::Claimed),
            Some(found) if found.get(&owner).is_none_or(|entry| entry.mod_revision != token.0) => {
                return Ok(ClaimDisk::NotOwner);
            }
            Some(_) => {}
        }
    }
    Err(StoreError::Contended { verb, key: Key::Disk(disk) })
}

/// RETIRE: nobody is to have `disk` any more.
pub(crate) async fn retire<B: Backend>(backend: &B, disk: DiskUid) -> Result<RetireDisk, StoreError> {
    let verb = "retire";
    for _ in 0..MAX_REFUSALS {
        let seen = look(backend, disk).await?;
        match seen.state() {
            Some(DiskState::Retired) => return Ok(RetireDisk::Retired),
            Some(DiskState::HeldBy(holder)) if seen.holder_is_owned => return Ok(RetireDisk::HeldBy(holder)),
            Some(DiskState::HeldBy(_)) | None => {}
        }
        let (compares, writes) = (seen.still_free(disk), vec![put(disk, DiskState::Retired)]);
        if execute(backend, verb, disk, Transaction { compares, writes }).await?.is_none() {
            return Ok(RetireDisk::Retired);
        }
    }
    Err(StoreError::Contended { verb, key: Key::Disk(disk) })
}

/// RELEASE: `vm` is to have `disk` no more.
pub(crate) async fn release<B: Backend>(backend: &B, disk: DiskUid, vm: VmUid) -> Result<(), StoreError> {
    let (verb, key) = ("release", Key::Disk(disk));
    for _ in 0..MAX_REFUSALS {
        let Some(entry) = drive::read(backend, key.clone()).await? else { return Ok(()) };
        if decode(&key, &entry)? != DiskState::HeldBy(vm) {
            return Ok(());
        }
        let compares = vec![Compare::Unchanged { key: key.clone(), mod_revision: entry.mod_revision }];
        let writes = vec![Write::Delete(key.clone())];
        if execute(backend, verb, disk, Transaction { compares, writes }).await?.is_none() {
            return Ok(());
        }
    }
    Err(StoreError::Contended { verb, key })
}

/// FORGET: nothing is to be left of `disk`.
pub(crate) async fn forget<B: Backend>(backend: &B, disk: DiskUid) -> Result<ForgetDisk, StoreError> {
    let verb = "forget";
    for _ in 0..MAX_REFUSALS {
        let seen = look(backend, disk).await?;
        match seen.state() {
            None => return Ok(ForgetDisk::Forgotten),
            Some(DiskState::HeldBy(holder)) if seen.holder_is_owned => return Ok(ForgetDisk::HeldBy(holder)),
            Some(DiskState::HeldBy(_) | DiskState::Retired) => {}
        }
        let (compares, writes) = (seen.still_free(disk), vec![Write::Delete(Key::Disk(disk))]);
        if execute(backend, verb, disk, Transaction { compares, writes }).await?.is_none() {
            return Ok(ForgetDisk::Forgotten);
        }
    }
    Err(StoreError::Contended { verb, key: Key::Disk(disk) })
}

fn put(disk: DiskUid, state: DiskState) -> Write {
    Write::Put { key: Key::Disk(disk), value: encode(state) }
}

/// What was found instead, if a condition did not hold.
async fn execute<B: Backend>(
    backend: &B,
    verb: &'static str,
    disk: DiskUid,
    transaction: Transaction,
) -> Result<Option<BTreeMap<Key, Entry>>, StoreError> {
    match backend.execute(&transaction).await {
        Ok(Outcome::Executed { .. }) => Ok(None),
        Ok(Outcome::Refused(found)) => Ok(Some(found)),
        Err(RequestError::NoAnswer(source)) => {
            Err(StoreError::Unknown { verb, key: Key::Disk(disk), source })
        }
        Err(RequestError::Final(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_of_key_and_value_is_the_one_that_other_versions_read() {
        let vm = VmUid(Uuid::from_u128(5));
        let text = r#"{"version":1,"state":{"HeldBy":"00000000-0000-0000-0000-000000000005"}}"#;
        assert_eq!(String::from_utf8(encode(DiskState::HeldBy(vm))).unwrap(), text);
        let retired = r#"{"version":1,"state":"Retired"}"#;
        assert_eq!(String::from_utf8(encode(DiskState::Retired)).unwrap(), retired);
        let key = Key::Disk(DiskUid(Uuid::from_u128(6)));
        assert_eq!(key.to_string(), "/kubexen/disks/00000000-0000-0000-0000-000000000006");
        let entry = |value: &str| Entry { value: value.into(), mod_revision: 1 };
        assert_eq!(decode(&key, &entry(text)).unwrap(), DiskState::HeldBy(vm));
        for bad in ["", "{}", r#"{"version":2,"state":"Retired"}"#, r#"{"version":1,"state":"Lost"}"#] {
            assert!(decode(&key, &entry(bad)).is_err(), "{bad}");
        }
    }
}
