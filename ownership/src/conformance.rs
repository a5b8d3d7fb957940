//! What every ownership store must do, as a script that runs against any of them.
//!
//! A store passes when [`run`] returns `Ok`; it panics at the first promise that is broken. Each check uses virtual
//! machines of its own, so the script may run against a store that holds other records.

use std::sync::Arc;

use async_trait::async_trait;
use futures::future::join_all;
use uuid::Uuid;

use crate::names::{BootId, HostBoot, HostName, InvalidName, Owner, Token, VmUid};
use crate::store::{OwnershipStore, Release, Start, StoreError};

/// One store under test, and the hooks that the script needs besides the protocol.
#[async_trait]
pub trait Subject: Sync {
    /// A client of the store, on a connection of its own.
    fn client(&self) -> Arc<dyn OwnershipStore>;

    /// Executes each of the next `writes` transactions of the clients made here, and loses its answer.
    async fn lose_answers(&self, writes: u32);

    /// Writes `value` as the record of `vm`, behind the protocol's back.
    async fn overwrite(&self, vm: VmUid, value: &[u8]);
}

/// The virtual machine that the checks know by `name`.
#[must_use]
pub fn vm(name: &str) -> VmUid {
    VmUid(Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()))
}

/// A host at a boot.
///
/// # Errors
/// [`InvalidName`] as [`HostName::new`] and [`BootId::new`] say.
pub fn host(name: &str, boot: &str) -> Result<HostBoot, InvalidName> {
    Ok(HostBoot { host: HostName::new(name)?, boot_id: BootId::new(boot)? })
}
