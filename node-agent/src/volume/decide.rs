//! What to do about one volume: pure and total.

use jiff::Timestamp;
use kubexen_crds::{
    ByteQuantity, Volume, VolumeStatus,
    condition::{self, State, Wanted},
    virtual_disk::Reclaim,
    volume::VolumePhase,
};
use serde::Serialize;

/// All that [`decide`] looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Whether the object is being deleted.
    pub deleting: bool,
    /// What becomes of the data then.
    pub reclaim: Reclaim,
    /// Wanted size in bytes.
    pub wanted: u64,
    /// Size of the data in bytes, if there is any.
    pub present: Option<u64>,
    /// Whether it is attached as a block device.
    pub attached: bool,
    /// Whether its status says that it was there, or its spec that it was there before the object.
    pub made_before: bool,
    /// Whether its device is known to have the wanted size: it was told in this look, or its status says so.
    pub told_size: bool,
    /// A Domain that names it.
    pub user: Option<String>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Plan {
    /// Make it, blank, of this size in bytes.
    Create(u64),
    /// Make it larger, to this size in bytes.
    Grow(u64),
    /// Give its block device back.
    Detach,
    /// Delete the data.
    Delete,
    /// Let the object go.
    LetGo,
    /// It is to go, but this Domain names it.
    WaitForUser(String),
    /// It was there and is gone: say so.
    ReportMissing,
    /// Nothing.
    Settled,
}

/// The next thing to do about a volume.
#[must_use]
pub fn decide(seen: &Observed) -> Plan {
    if seen.deleting {
        return match (&seen.user, seen.present, seen.reclaim) {
            (Some(user), _, _) => Plan::WaitForUser(user.clone()),
            (None, _, _) if seen.attached => Plan::Detach,
            (None, Some(_), Reclaim::Delete) => Plan::Delete,
            (None, Some(_), Reclaim::Retain) | (None, None, Reclaim::Delete | Reclaim::Retain) => Plan::LetGo,
        };
    }
    match seen.present {
        None if seen.made_before => Plan::ReportMissing,
        None => Plan::Create(seen.wanted),
        Some(size) if size < seen.wanted => Plan::Grow(seen.wanted),
        // An agent may have been killed before the device of a running guest learnt the size.
        Some(size) if size == seen.wanted && seen.attached && !seen.told_size => Plan::Grow(size),
        Some(_) => Plan::Settled,
    }
}

/// The status once nothing is left to do.
#[must_use]
pub fn status(volume: &Volume, seen: &Observed, plan: &Plan, now: Timestamp) -> VolumeStatus {
    let (phase, ready) = match plan {
        Plan::ReportMissing => (
            VolumePhase::Failed,
            Wanted::new(
                "Ready",
                State::False,
                "DataMissing",
                "The data of this volume was on this host and is not found any more; restore it, or delete the VirtualDisk",
            ),
        ),
        Plan::WaitForUser(user) => (
            VolumePhase::Ready,
            Wanted::new("Ready", State::True, "InUse", format!("Will be deleted when Domain {user} is gone")),
        ),
        Plan::Settled => {
            (VolumePhase::Ready, Wanted::new("Ready", State::True, "Ready", "The volume is there"))
        }
        Plan::Create(_) | Plan::Grow(_) | Plan::Detach | Plan::Delete | Plan::LetGo => (
            VolumePhase::Pending,
            Wanted::new("Ready", State::False, "InProgress", "The volume is being worked on"),
        ),
    };
    let before = volume.status.as_ref();
    VolumeStatus {
        observed_generation: volume.metadata.generation,
        phase: Some(phase),
        capacity: seen
            .present
            .map(ByteQuantity::from_bytes)
            .or_else(|| before.and_then(|status| status.capacity.clone())),
        conditions: conditions(volume, ready, now),
    }
}

/// The status after a step failed.
#[must_use]
pub fn failed(volume: &Volume, reason: &'static str, message: String, now: Timestamp) -> VolumeStatus {
    VolumeStatus {
        observed_generation: volume.metadata.generation,
        phase: Some(VolumePhase::Failed),
        capacity: volume.status.as_ref().and_then(|status| status.capacity.clone()),
        conditions: conditions(volume, Wanted::new("Ready", State::False, reason, message), now),
    }
}

fn conditions(
    volume: &Volume,
    ready: Wanted,
    now: Timestamp,
) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    let before = volume.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::set(before, vec![ready], volume.metadata.generation, now)
}
