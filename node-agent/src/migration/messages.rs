//! What the two ends of a migration say to each other, besides the guest itself.

use kubexen_ownership::{BootId, Token};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Version of this conversation. Agents of different versions do not migrate guests between them.
pub(super) const VERSION: u32 = 1;

/// What the source says first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Hello {
    pub(super) version: u32,
    /// UID of the VirtualMachineMigration.
    pub(super) migration: Uuid,
    /// UUID of the guest.
    pub(super) guest: Uuid,
    /// The boot of the source.
    pub(super) boot_id: BootId,
    /// The ownership that the destination is to take over.
    pub(super) token: Token,
}

/// What the source says after the guest's data.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum FromSource {
    /// The guest stands still, nothing of it is on its way to a disk, and its data was sent whole.
    Suspended,
}

/// What the destination says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum FromDestination {
    /// The guest may come.
    Ready,
    /// The guest runs here.
    Running,
    /// It will not come to that.
    Failed {
        /// Why.
        message: String,
    },
}
