//! What the tests of the verbs speak of.

use uuid::Uuid;

use super::{Compare, Decision, Transaction, Write};
use crate::names::{BootId, HostBoot, HostName, Owner, Phase, Token, VmUid};
use crate::record::{Key, encode};

pub(super) const VM: VmUid = VmUid(Uuid::from_u128(1));
pub(super) const KEY: Key = Key::Owner(VM);

pub(super) fn at(host: &str, boot: &str) -> HostBoot {
    HostBoot { host: HostName::new(host).unwrap(), boot_id: BootId::new(boot).unwrap() }
}

pub(super) fn owner(host: &str, boot: &str, token: u64) -> Owner {
    let HostBoot { host, boot_id } = at(host, boot);
    Owner { host, boot_id, phase: Phase::Running, guarded: false, token: Token(token), succeeds: None }
}

/// The decision to make `new` the owner if `condition` holds.
pub(super) fn put<A>(new: &HostBoot, condition: Compare) -> Decision<A> {
    let write = Write::Put { key: KEY, value: encode(new, Phase::Running, false, None) };
    Decision::Execute(Transaction { compares: vec![condition], writes: vec![write] })
}
