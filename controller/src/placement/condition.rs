//! What a host must be or have, whatever is used of it: filters 1 to 8.

use super::{HostView, Room, host_set::HostSet};
use kubexen_crds::{BootType, FeatureSet, Firmware, quantity::HostSelector};
use std::{cmp::Ordering, collections::BTreeMap};

/// A condition on a host that no placement changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Condition<'a> {
    /// It is not in maintenance.
    InService,
    /// The agent reports.
    Ready,
    /// New guests may come.
    Schedulable,
    /// The labels are there.
    Matches(Selector<'a>),
    /// Xen offers the mode.
    Mode(BootType),
    /// It receives running guests of the mode from other hosts.
    Receives(BootType),
    /// It is on the Pool's network for migrations.
    OnMigrationNetwork,
    /// Its CPUs give these features to guests of the mode.
    Features(BootType, &'a FeatureSet),
    /// The catalogue has the kernel.
    Kernel(&'a str),
    /// It has the boot loader for guests of the mode.
    BootLoader(BootType),
    /// The firmware is there.
    Firmware(Firmware),
    /// It is this host.
    Host(&'a str),
    /// The storage location is there, shared or not, on a host that the repository is for.
    Location(&'a str, bool, Selector<'a>),
    /// The storage location is there, and this shared storage stands behind it, on a host that the repository is for.
    Storage(&'a str, &'a str, Selector<'a>),
    /// The image is in this location, on a host that the repository is for.
    Image(&'a str, &'a str, Selector<'a>),
    /// The uplink is there, on a host that the network is for.
    Uplink(&'a str, Selector<'a>),
}

impl Condition<'_> {
    fn holds(self, host: &HostView) -> bool {
        match self {
            Self::InService => !host.maintenance,
            Self::Ready => host.ready,
            Self::Schedulable => host.schedulable,
            Self::Matches(selector) => selector.0.matches(&host.labels),
            Self::Mode(mode) => offers(host, mode),
            Self::Receives(mode) => host.receives.contains(&mode),
            Self::OnMigrationNetwork => host.on_migration_network,
            Self::Features(mode, level) => lacking(host, mode, level).is_empty(),
            Self::Kernel(kernel) => host.kernels.contains(kernel),
            Self::BootLoader(mode) => host.boot_loaders.contains(&mode),
            Self::Firmware(firmware) => host.firmware.contains(&firmware),
            Self::Host(name) => host.name == name,
            Self::Location(location, shared, selector) => {
                let is_such = |room: &Room| room.storage.is_some() == shared;
                host.locations.get(location).is_some_and(is_such) && selector.0.matches(&host.labels)
            }
            Self::Storage(location, storage, selector) => {
                let is_it = |room: &Room| room.storage.as_deref() == Some(storage);
                host.locations.get(location).is_some_and(is_it) && selector.0.matches(&host.labels)
            }
            Self::Image(location, image, selector) => {
                host.images.get(location).is_some_and(|images| images.contains(image))
                    && selector.0.matches(&host.labels)
            }
            Self::Uplink(uplink, selector) => {
                host.uplinks.contains(uplink) && selector.0.matches(&host.labels)
            }
        }
    }
}

/// Xen makes a domain with hardware assistance only if it can also translate the guest's addresses: in hardware
/// (`hap`) or by shadow page tables (`shadow`), which may be left out of a build of Xen.
fn offers(host: &HostView, mode: BootType) -> bool {
    let has = |capability| host.capabilities.contains(capability);
    match mode {
        BootType::Pvh | BootType::Hvm => has("hvm") && (has("hap") || has("shadow")),
        BootType::Pv => has("pv"),
    }
}

/// The features of a level that a host's CPUs do not give to guests of the mode.
pub(super) fn lacking(host: &HostView, mode: BootType, level: &FeatureSet) -> FeatureSet {
    host.cpu_features.of(mode).map_or_else(|| level.clone(), |features| level.without(features))
}

/// A host selector as a key: ordered by its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selector<'a>(pub(super) &'a HostSelector);

impl Ord for Selector<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.match_labels.cmp(&other.0.match_labels)
    }
}

impl PartialOrd for Selector<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The hosts that meet each condition, worked out when it is first asked for.
#[derive(Debug)]
pub(super) struct Conditions<'a> {
    hosts: Vec<&'a HostView>,
    met: BTreeMap<Condition<'a>, HostSet>,
}

impl<'a> Conditions<'a> {
    pub(super) fn new(hosts: Vec<&'a HostView>) -> Self {
        Self { hosts, met: BTreeMap::new() }
    }

    /// The hosts, in the order that their positions in the sets mean.
    pub(super) fn hosts(&self) -> &[&'a HostView] {
        &self.hosts
    }

    /// The hosts that meet the condition.
    pub(super) fn met(&mut self, condition: Condition<'a>) -> &HostSet {
        let hosts = &self.hosts;
        self.met
            .entry(condition)
            .or_insert_with(|| HostSet::of(hosts.len(), |host| condition.holds(hosts[host])))
    }
}
