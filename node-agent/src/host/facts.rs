//! From measurements to the status of a Host: pure.

use crate::{
    hypervisor::{DomainInfo, HostFacts},
    storage::{LocationsSeen, Obstacle},
};
use kubexen_crds::{
    BootType, ByteQuantity, HostProtection, HostStatus,
    host::{
        HostCpu, HostMemory, HostMigration, Location, MigrationNetworkAddress, UnknownDomain,
        UnusableLocation, Uplink, Xen,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};
use uuid::Uuid;

/// Most domains that are reported as unknown.
const MOST_UNKNOWN: usize = 32;

/// Most addresses that are reported.
const MOST_ADDRESSES: usize = 32;

/// Most networks for migrations that are reported.
const MOST_NETWORKS: usize = 16;

/// Most characters of the reason why a location cannot be used.
const MOST_WORDS: usize = 512;

/// The allocatable memory is a multiple of this, in KiB: 16 MiB.
const MEMORY_GRAIN_KIB: u64 = 16 * 1024;

/// A published figure stays while the measured one is nearer to it than this, in KiB: 64 MiB. Xen's own use goes up and
/// down with the number of domains, and each change would be a write.
const MEMORY_SLACK_KIB: u64 = 64 * 1024;

/// What was measured on a host at one moment.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Facts of this boot.
    pub facts: HostFacts,
    /// Memory that is free now, in KiB.
    pub free_memory_kib: u64,
    /// All domains but dom0.
    pub domains: Vec<DomainInfo>,
    /// UUIDs for which a Domain object stands.
    pub known: BTreeSet<Uuid>,
    /// Storage locations.
    pub locations: LocationsSeen,
    /// Usable uplinks.
    pub uplinks: Vec<String>,
    /// Addresses that others may reach.
    pub addresses: BTreeSet<IpAddr>,
    /// Where other hosts' agents reach this one; none if it takes no part in migrations.
    pub migration_address: Option<String>,
    /// Where they reach it on networks for migrations, by the networks' names.
    pub migration_networks: BTreeMap<String, String>,
    /// Names in the catalogue.
    pub kernels: Vec<String>,
    /// Whether guests can be protected.
    pub protection: HostProtection,
    /// Whether this agent has found that out yet.
    pub judged: bool,
}

impl Measured {
    /// The status that says so. Equal measurements give equal status; memory keeps what `before` says while it is near
    /// enough.
    #[must_use]
    pub fn status(&self, before: &HostStatus) -> HostStatus {
        let facts = &self.facts;
        let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
        HostStatus {
            boot_id: Some(facts.boot_id.clone()),
            agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            xen: Some(Xen {
                version: facts.xen_version.clone(),
                capabilities: facts.capabilities.clone(),
                simulated: facts.simulated,
                device_model_user: facts.device_model_user.clone(),
            }),
            cpu: Some(HostCpu {
                count: number(facts.cpus),
                sockets: number(facts.sockets),
                cores_per_socket: number(facts.cores_per_socket),
                threads_per_core: number(facts.threads_per_core),
                model: facts.cpu_model.chars().take(128).collect(),
                features: facts.cpu_features.iter().take(512).cloned().collect(),
                feature_sets: Some(facts.cpu_feature_sets.clone()),
            }),
            memory: Some(self.memory(before)),
            locations: self
                .locations
                .usable
                .iter()
                .map(|location| Location {
                    name: location.name.clone(),
                    capacity: ByteQuantity::from_bytes(location.capacity),
                    shared: location.shared,
                    images: location.images.clone(),
                    id: location.id.clone(),
                })
                .collect(),
            unusable_locations: self.unusable_locations(),
            uplinks: self.uplinks.iter().map(|name| Uplink { name: name.clone() }).collect(),
            addresses: self.addresses.iter().take(MOST_ADDRESSES).map(ToString::to_string).collect(),
            migration: self.migration(),
            kernels: self.kernels.clone(),
            boot_loaders: facts.boot_loaders.clone(),
            firmware: facts.firmware.clone(),
            unknown_domains: self.unknown_domains(),
            protection: Some(self.protection(before)),
            observed_generation: None,
            evacuation: None,
            availability: None,
            fencing: None,
            recovery: None,
            conditions: Vec::new(),
        }
    }

    /// What an earlier agent of the same boot has said stands as long as this one does not know better: guests that it guarded
    /// are guarded.
    fn protection(&self, before: &HostStatus) -> HostProtection {
        let same_boot = before.boot_id.as_ref() == Some(&self.facts.boot_id);
        let said = before.protection.as_ref().filter(|_| !self.judged && same_boot);
        HostProtection { epoch: self.protection.epoch.clone(), ..said.unwrap_or(&self.protection).clone() }
    }

    fn memory(&self, before: &HostStatus) -> HostMemory {
        let ours: u64 = self
            .domains
            .iter()
            .filter(|domain| self.known.contains(&domain.uuid))
            .map(|domain| domain.memory_kib)
            .sum();
        let measured = (self.free_memory_kib + ours) / MEMORY_GRAIN_KIB * MEMORY_GRAIN_KIB;
        let published = before
            .memory
            .as_ref()
            .filter(|_| before.boot_id.as_deref() == Some(self.facts.boot_id.as_str()))
            .and_then(|memory| memory.allocatable.bytes().ok())
            .map(|bytes| bytes / 1024);
        let allocatable = match published {
            Some(published) if published.abs_diff(measured) <= MEMORY_SLACK_KIB => published,
            Some(_) | None => measured,
        };
        HostMemory {
            total: ByteQuantity::from_bytes(self.facts.memory_total_kib * 1024),
            allocatable: ByteQuantity::from_bytes(allocatable * 1024),
        }
    }

    fn migration(&self) -> Option<HostMigration> {
        let address = self.migration_address.clone()?;
        let boot_types = [BootType::Hvm, BootType::Pv, BootType::Pvh];
        let live = boot_types.into_iter().filter(|boot| self.facts.suspends_live(*boot)).collect();
        let networks = self.migration_networks.iter().take(MOST_NETWORKS);
        let networks = networks
            .map(|(name, address)| MigrationNetworkAddress { name: name.clone(), address: address.clone() });
        Some(HostMigration { address, boot_types: live, networks: networks.collect() })
    }

    fn unusable_locations(&self) -> Vec<UnusableLocation> {
        let said = |obstacle: &Obstacle| UnusableLocation {
            name: obstacle.name.clone(),
            message: obstacle.reason.chars().take(MOST_WORDS).collect(),
        };
        self.locations.unusable.iter().map(said).collect()
    }

    fn unknown_domains(&self) -> Vec<UnknownDomain> {
        self.domains
            .iter()
            .filter(|domain| !self.known.contains(&domain.uuid))
            .take(MOST_UNKNOWN)
            .map(|domain| UnknownDomain { uuid: domain.uuid.to_string(), domid: i32::from(domain.domid.0) })
            .collect()
    }
}

/// The part of a Host's status that is the agent's to write: all but the controller's conditions and plans.
#[must_use]
pub fn of_the_agent(status: HostStatus) -> HostStatus {
    HostStatus {
        observed_generation: None,
        evacuation: None,
        availability: None,
        fencing: None,
        recovery: None,
        conditions: Vec::new(),
        ..status
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::{DomId, DomainState};
    use kubexen_crds::{FeatureSets, ProtectionState};

    fn measured(free_mib: u64) -> Measured {
        Measured {
            facts: HostFacts {
                boot_id: "boot".to_owned(),
                xen_version: "4.17.4".to_owned(),
                capabilities: vec!["hvm".to_owned()],
                simulated: false,
                cpus: 2,
                sockets: 1,
                cores_per_socket: 2,
                threads_per_core: 1,
                cpu_model: "model".to_owned(),
                cpu_features: Vec::new(),
                cpu_feature_sets: FeatureSets::default(),
                boot_loaders: Vec::new(),
                firmware: Vec::new(),
                device_model_user: None,
                memory_total_kib: 4 << 20,
            },
            free_memory_kib: free_mib * 1024,
            domains: vec![DomainInfo {
                uuid: Uuid::from_u128(7),
                domid: DomId(3),
                state: DomainState::Running,
                token: Some(9),
                sent_under: None,
                memory_kib: 512 * 1024,
                vcpus: 1,
            }],
            known: BTreeSet::from([Uuid::from_u128(7)]),
            locations: LocationsSeen::default(),
            uplinks: Vec::new(),
            addresses: BTreeSet::new(),
            migration_address: None,
            migration_networks: BTreeMap::new(),
            kernels: Vec::new(),
            protection: HostProtection { state: ProtectionState::Ready, message: String::new(), epoch: None },
            judged: true,
        }
    }

    #[test]
    fn an_agent_that_has_just_begun_takes_back_nothing_that_was_said_of_the_same_boot() {
        let before = measured(1024).status(&HostStatus::default());
        let unknown = HostProtection {
            state: ProtectionState::Unavailable,
            message: "the pool's store has not answered yet".to_owned(),
            epoch: None,
        };
        let mut begun = Measured { protection: unknown.clone(), judged: false, ..measured(1024) };
        assert_eq!(begun.status(&before).protection, before.protection);
        assert_eq!(
            begun.status(&HostStatus::default()).protection,
            Some(unknown.clone()),
            "nothing was said"
        );
        begun.judged = true;
        assert_eq!(begun.status(&before).protection, Some(unknown.clone()), "it knows better");
        begun.judged = false;
        begun.facts.boot_id = "another".to_owned();
        assert_eq!(begun.status(&before).protection, Some(unknown), "nobody guards anything yet");
    }

    #[test]
    fn memory_of_known_domains_counts_as_allocatable_and_that_of_others_does_not() {
        let mut host = measured(1024);
        assert_eq!(host.status(&HostStatus::default()).memory.unwrap().allocatable.bytes(), Ok(1536 << 20));
        host.known.clear();
        let status = host.status(&HostStatus::default());
        assert_eq!(status.memory.unwrap().allocatable.bytes(), Ok(1024 << 20));
        assert_eq!(status.unknown_domains.len(), 1);
    }

    #[test]
    fn a_small_change_of_free_memory_changes_nothing_that_is_published() {
        let before = measured(1024).status(&HostStatus::default());
        assert_eq!(measured(1000).status(&before), before);
        assert_ne!(measured(900).status(&before), before);
    }
}
