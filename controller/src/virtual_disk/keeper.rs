//! Which host looks after a disk on shared storage, pure.
//!
//! The host that made a disk looks after it: it grows it, and in the end deletes it. When it cannot, another host that reaches
//! the same storage takes over:
//!
//! ```text
//!   Volume on a, and a cannot ──▶ Volume on b too, which says that the data exists
//!   both, and b can           ──▶ Volume on a let go: its agent's finalizer off, then deleted
//! ```
//!
//! The data stays where it is all the while. What deletes data is a Volume that is being deleted and carries its agent's
//! finalizer; here none is, unless its disk is. And no agent ever makes data anew for a Volume that says that it exists, or
//! whose status shows that it was made; only such Volumes are let go.

use super::host_of;
use crate::view::{is_deleting, is_in_maintenance, is_ready, uid};
use kube::ResourceExt;
use kubexen_crds::{Host, VirtualDisk, Volume, names::AGENT_FINALIZER, quantity::HostSelector};
use kubexen_runtime::{Key, Mirror};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// What is known of the hosts that look after a shared disk, or could.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hosts {
    /// Of those that have a Volume of the disk, those that can look after it.
    pub(crate) able: BTreeSet<String>,
    /// Of those that have one, those that are to have none: they are being deleted, or gone.
    pub(crate) leaving: BTreeSet<String>,
    /// The one that would take over, if somebody has to.
    pub(crate) heir: Option<String>,
}

/// What a host must have to look after a disk.
#[derive(Clone, Debug)]
pub(crate) struct Need<'a> {
    /// The location's name.
    pub(crate) location: &'a str,
    /// What the storage is called.
    pub(crate) storage: &'a str,
    /// Hosts that the repository is for.
    pub(crate) selector: &'a HostSelector,
}

impl Need<'_> {
    /// Whether a host can look after the disk: its agent reports, and says that it reaches the storage.
    fn is_met_by(&self, host: &Host) -> bool {
        let locations = host.status.as_ref().map(|status| status.locations.as_slice()).unwrap_or_default();
        let reaches = locations.iter().any(|location| {
            location.shared && location.name == self.location && location.id.as_deref() == Some(self.storage)
        });
        reaches && is_ready(host) && !is_deleting(host)
    }
}

/// Looks at the hosts that have a Volume of the disk; and at all others, for an heir, if none of these can look after it.
/// `users` are hosts where the disk is used, `taken` those where nothing of its name can be made now.
pub(crate) fn look(
    need: &Need<'_>,
    disk: &VirtualDisk,
    volumes: &[Arc<Volume>],
    all: &Mirror<Host>,
    users: &BTreeSet<String>,
    taken: &BTreeSet<String>,
) -> Hosts {
    let mut hosts = Hosts::default();
    let with_volume: BTreeSet<&str> = volumes.iter().filter_map(|volume| host_of(volume)).collect();
    for name in &with_volume {
        match all.get(&Key::cluster(*name)) {
            Some(host) if need.is_met_by(&host) => drop(hosts.able.insert((*name).to_owned())),
            Some(host) if !is_deleting(&*host) => {}
            Some(_) | None => drop(hosts.leaving.insert((*name).to_owned())),
        }
    }
    if !hosts.able.is_empty() {
        return hosts;
    }
    let no_labels = BTreeMap::new();
    let may = |host: &Host, name: &String| {
        need.is_met_by(host)
            && !is_in_maintenance(host)
            && need.selector.matches(host.metadata.labels.as_ref().unwrap_or(&no_labels))
            && !with_volume.contains(name.as_str())
            && !taken.contains(name)
    };
    let named = all.list().into_iter().map(|host| (host.name_any(), host));
    let mut heirs: Vec<String> = named.filter(|(name, host)| may(host, name)).map(|(name, _)| name).collect();
    // A guest learns at once that its disk grew if its own host does it.
    if heirs.iter().any(|name| users.contains(name)) {
        heirs.retain(|name| users.contains(name));
    }
    // The disks of one host go to several.
    let spread: usize = uid(disk).bytes().map(usize::from).sum();
    hosts.heir = spread.checked_rem(heirs.len()).map(|index| heirs.swap_remove(index));
    hosts
}

/// Whether it is certain that no agent makes the data of this Volume any more: it was made, or was there before.
pub(crate) fn is_made(volume: &Volume) -> bool {
    volume.spec.existing || volume.status.as_ref().is_some_and(|status| status.capacity.is_some())
}

impl Hosts {
    /// Whether this Volume's host can look after the disk.
    pub(crate) fn can_keep(&self, volume: &Volume) -> bool {
        host_of(volume).is_some_and(|host| self.able.contains(host))
    }

    /// Whether this Volume's host is to have it no longer.
    pub(crate) fn is_leaving(&self, volume: &Volume) -> bool {
        host_of(volume).is_some_and(|host| self.leaving.contains(host))
    }

    /// Of the Volumes of a disk the one whose host looks after it: one that can, if there is one.
    pub(crate) fn keeper<'a>(&self, volumes: &'a [Arc<Volume>]) -> Option<&'a Arc<Volume>> {
        let is_held = |volume: &Volume| volume.finalizers().iter().any(|name| name == AGENT_FINALIZER);
        volumes.iter().min_by_key(|volume| {
            (!is_held(volume), !is_made(volume), !self.can_keep(volume), Key::of(&***volume))
        })
    }

    /// The Volumes that may be let go, because the keeper does what there is to do.
    pub(crate) fn spare(&self, keeper: &Arc<Volume>, volumes: &[Arc<Volume>]) -> Vec<Key> {
        if !self.can_keep(keeper) || !is_made(keeper) {
            return Vec::new();
        }
        let others = volumes.iter().filter(|volume| !Arc::ptr_eq(volume, keeper) && is_made(volume));
        others.map(|volume| Key::of(&**volume)).collect()
    }

    /// The host that takes over from a keeper that cannot do what is to be done.
    pub(crate) fn heir_of(&self, keeper: &Volume) -> Option<&String> {
        self.heir.as_ref().filter(|_| is_made(keeper) && !self.can_keep(keeper))
    }
}
