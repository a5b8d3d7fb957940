//! Placement: which host runs which pending guest. Pure: no clock, no randomness, no I/O.
//!
//! ```text
//!   Snapshot (hosts and what is used of them, policy) ─┐
//!                                                      ├─▶ place ─▶ one Verdict per Request, in their order
//!   Requests (pending guests, in the order of a batch) ┘
//! ```
//!
//! Requests are placed one after the other; each sees what the earlier ones took. The same hosts and requests give
//! the same verdicts, whatever the order of the hosts.
//!
//! # Filters
//! In this order, and a host counts under the first one that excludes it:
//!
//! 1. the host is not in maintenance
//! 2. it is ready
//! 3. it is schedulable
//! 4. it carries the labels that the guest's host selector asks for
//! 5. its Xen offers the virtualisation mode: `pv` for PV; for PVH and HVM `hvm` together with a way to translate
//!    guest addresses, `hap` or `shadow`, because Xen refuses such a domain when it has neither; a guest that is to come
//!    while it runs needs a host that receives such guests and is on the Pool's network for migrations; and its CPUs
//!    have every feature that the guest may use
//! 6. its catalogue has the kernel, or the boot loader is there that boots guests of this mode from their disks; and the
//!    firmware is there that the guest starts with
//! 7. disk by disk: the host is where the disk is, or reaches the shared storage that it is on, or has the repository
//!    attached that the disk will be made in; image by image: it is there
//! 8. network by network: it is attached
//! 9. required anti-affinity: no guest of the group is here
//! 10. disk by disk: the location has room, the request's earlier disks there included
//! 11. the host has as many CPUs as the guest has vCPUs: more would make the guest's vCPUs wait for one another
//! 12. CPUs × overcommit ratio, less the vCPUs in use, suffices
//! 13. memory suffices, [overhead](memory_with_overhead) included
//! 14. the [failure reserve](reserve), if one is to be kept: what is left is not what protected guests of dead hosts need
//!
//! Anti-affinity is judged when a guest is placed, by the mode of that guest: one that only prefers to be alone may
//! join a guest that required it, where nothing else fits.
//!
//! # Scores
//! Of the hosts that are left, the first by this order is taken:
//!
//! 1. another than the one that the guest is to avoid, if there is one
//! 2. one that can keep the promise to stop the guest in time, if the guest is to be protected: it runs on another all the same,
//!    unprotected
//! 3. fewest guests of the group, if the guest prefers anti-affinity
//! 4. lowest cost. With *load* the more scarce of memory and CPU, and *skew* the distance between the two, both
//!    as a share of the host's capacity:
//!    - `Spread`: cost = load after + (skew after − skew before) / 4
//!    - `Pack`: cost = − load after + (skew after − skew before) / 4
//! 5. fewest guests placed by this batch
//! 6. name
//!
//! The load decides. The skew lets a guest with much memory go to a host whose CPUs are busier than its memory, so
//! that one resource is not left over where the other has run out.
//!
//! An example: hosts with 100 GiB and 16 CPUs, overcommit 4 (64 vCPUs), and a guest of 10 GiB, overhead included,
//! and 4 vCPUs.
//!
//! | host | memory before → after | CPU before → after | load | skew before → after | Spread | Pack |
//! |---|---|---|---|---|---|---|
//! | a | 40 % → 50 % | 12.5 % → 18.75 % | 50 | 27.5 → 31.25 | 50.94 | **−49.06** |
//! | b | 20 % → 30 % | 37.5 % → 43.75 % | 43.75 | 17.5 → 13.75 | **42.81** | −44.69 |
//!
//! # Cost
//! Filters 1 to 8 do not depend on use. Their outcome is kept for the batch as a set of hosts, once for each
//! distinct condition, so that for one guest they are a few intersections of bit sets. What remains is a pass over
//! arrays of numbers. Nothing is allocated per host.

mod batch;
mod condition;
mod filters;
mod host_set;
mod keeping;
mod memory;
mod rejection;
pub mod reserve;
mod resources;
mod score;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use memory::{growth_overhead, memory_with_overhead};
pub use rejection::{Reason, Rejections};

use batch::Batch;
use kubexen_crds::{
    BootType, FeatureSet, FeatureSets, Firmware, pool::PlacementPolicy, quantity::HostSelector,
    virtual_machine::AntiAffinityMode,
};
use kubexen_runtime::Key;
use reserve::Reserve;
use std::collections::{BTreeMap, BTreeSet};

/// The pool at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// All hosts, each name once, in any order.
    pub hosts: Vec<HostView>,
    /// How hosts are chosen.
    pub policy: PlacementPolicy,
}

/// What placement knows of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    /// Name.
    pub name: String,
    /// Labels of the Host object.
    pub labels: BTreeMap<String, String>,
    /// Whether it is to be emptied.
    pub maintenance: bool,
    /// Whether its agent is alive and reports.
    pub ready: bool,
    /// Whether its owner lets new guests in.
    pub schedulable: bool,
    /// Whether it can promise to stop a guest in time.
    pub protects: bool,
    /// Memory for guests in bytes, that of present guests included.
    pub memory_allocatable: u64,
    /// Memory of present guests in bytes: the sum of their [`memory_with_overhead`].
    pub memory_used: u64,
    /// Logical CPUs.
    pub cpus: u32,
    /// vCPUs of present guests.
    pub vcpus_used: u32,
    /// Features that its CPUs give to guests of each kind.
    pub cpu_features: FeatureSets,
    /// Storage locations that can be used, by name.
    pub locations: BTreeMap<String, Room>,
    /// Images for CD drives, by location.
    pub images: BTreeMap<String, BTreeSet<String>>,
    /// Uplinks that are up.
    pub uplinks: BTreeSet<String>,
    /// Names in the kernel catalogue.
    pub kernels: BTreeSet<String>,
    /// Boot types of guests for which it has a boot loader.
    pub boot_loaders: BTreeSet<BootType>,
    /// Firmware for HVM guests.
    pub firmware: BTreeSet<Firmware>,
    /// Boot types of guests that can come here while they run.
    pub receives: BTreeSet<BootType>,
    /// Whether it has an address on the Pool's network for migrations; true if the Pool names none.
    pub on_migration_network: bool,
    /// What its Xen can do: `pv`, `hvm`, `hap`, `shadow` …
    pub capabilities: BTreeSet<String>,
    /// Number of present guests by [`group_key`] of their anti-affinity group.
    pub groups: BTreeMap<String, u32>,
}

/// Room in a storage location, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// What disks there may have in sum.
    pub capacity: u64,
    /// What they have, those included that other hosts have made in the same shared storage.
    pub used: u64,
    /// What the storage is called, if several hosts reach it.
    pub storage: Option<String>,
}

impl Room {
    /// What is left.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }
}

/// A guest to place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The virtual machine.
    pub key: Key,
    /// Memory that the guest sees, in bytes. [`place`] adds the overhead.
    pub memory: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// [`growth_overhead`], if it can have more while it runs.
    pub growth: u64,
    /// Virtualisation mode.
    pub boot: BootType,
    /// CPU features that the guest may use, and that the host must have.
    pub cpu_level: Option<FeatureSet>,
    /// Kernel that the host's catalogue must have.
    pub kernel: Option<String>,
    /// Whether the host must have a boot loader for guests of this mode.
    pub boot_loader: bool,
    /// Firmware that the host must have.
    pub firmware: Option<Firmware>,
    /// Labels that the host must carry.
    pub selector: HostSelector,
    /// [`group_key`] of the anti-affinity group, and how strict it is.
    pub anti_affinity: Option<(String, AntiAffinityMode)>,
    /// Networks that must be attached.
    pub networks: Vec<NetworkNeed>,
    /// Disks that must be reachable.
    pub disks: Vec<DiskNeed>,
    /// Images that must be there.
    pub images: Vec<ImageNeed>,
    /// Whether the guest runs already, and is to come from another host.
    pub moves: bool,
    /// Whether room is kept for it on other hosts.
    pub protected: bool,
    /// Whether it has a Domain on a dead host, and is started elsewhere: nobody runs it. If it is protected, what the reserve keeps is
    /// for it, as far as other such guests do not need it; otherwise it is as any other.
    pub recovers: bool,
    /// Host that is taken only if no other fits.
    pub avoid: Option<String>,
}

/// A network that a guest needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkNeed {
    /// Name of the Network, for the message.
    pub network: String,
    /// Uplink that the host must have.
    pub uplink: String,
    /// Hosts that the Network is for.
    pub selector: HostSelector,
}

/// An image that a guest needs in a CD drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageNeed {
    /// Name of the StorageRepository, for the message.
    pub repository: String,
    /// Location that the host must have.
    pub location: String,
    /// Name that the host must have there.
    pub image: String,
    /// Hosts that the StorageRepository is for.
    pub selector: HostSelector,
}

/// A disk that a guest needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskNeed {
    /// The disk exists on one host.
    On {
        /// Name of the VirtualDisk, for the message.
        disk: String,
        /// The host.
        host: String,
    },
    /// The disk exists on storage that several hosts reach.
    Shared {
        /// Name of the StorageRepository, for the message.
        repository: String,
        /// Location that the host must have.
        location: String,
        /// What the storage there must be called.
        storage: String,
        /// Hosts that the StorageRepository is for.
        selector: HostSelector,
    },
    /// The disk is to be made where the guest goes.
    New {
        /// Name of the StorageRepository, for the message.
        repository: String,
        /// Location that the host must have.
        location: String,
        /// Whether that must be storage that several hosts reach; it must not otherwise.
        shared: bool,
        /// Size in bytes.
        size: u64,
        /// Hosts that the StorageRepository is for.
        selector: HostSelector,
    },
}

impl HostView {
    /// Whether the image is there, on a host that its repository is for.
    #[must_use]
    pub fn has_image(&self, need: &ImageNeed) -> bool {
        self.images.get(&need.location).is_some_and(|images| images.contains(&need.image))
            && need.selector.matches(&self.labels)
    }
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The guest goes to this host.
    Placed {
        /// Name of the host.
        host: String,
    },
    /// No host fits.
    Unplaced(Rejections),
}

/// Name of an anti-affinity group in [`HostView::groups`] and [`Request::anti_affinity`]: groups of two namespaces
/// are two groups.
#[must_use]
pub fn group_key(namespace: &str, group: &str) -> String {
    format!("{namespace}/{group}")
}

/// Places guests, in the order of the requests.
///
/// # Guarantees
/// There is one verdict per request, in the same order. No verdict exceeds what a host has, the earlier verdicts of
/// the batch included. A request is unplaced only if no host passes all filters at its turn, and then every host is
/// counted once. The result does not depend on the order of [`Snapshot::hosts`].
#[must_use]
pub fn place(snapshot: &Snapshot, requests: &[Request]) -> Vec<Verdict> {
    let mut batch = Batch::new(snapshot, None);
    requests.iter().map(|request| batch.place(request)).collect()
}

/// As [`place`], and keeps a failure reserve, which is of the same snapshot.
///
/// # Guarantees
/// Those of [`place`], and:
/// - A guest that is not protected leaves as many failures tolerated as there were, and no plan of the reserve leaves more
///   guests without a place than before.
/// - If as many failures are tolerated as are wanted, a protected guest leaves it so, itself included. If fewer are,
///   it may start wherever it fits.
/// - A protected guest that recovers may take the reserve. It leaves room for the others that are without a host, if
///   any host that it fits on does.
/// - The verdicts are of the first requests, of one at least; the others are left for another call when much of the reserve had to
///   be looked at.
///
/// The reserve counts what was placed from then on, until it is [told](Reserve::update) how these guests stand.
#[must_use]
pub fn place_keeping(snapshot: &Snapshot, requests: &[Request], reserve: &mut Reserve) -> Vec<Verdict> {
    reserve.await_recovery(requests);
    let mut batch = Batch::new(snapshot, Some(reserve));
    let mut verdicts = Vec::with_capacity(requests.len());
    for request in requests {
        if !verdicts.is_empty() && batch.is_spent() {
            break;
        }
        verdicts.push(batch.place(request));
    }
    verdicts
}
