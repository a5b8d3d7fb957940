//! What of a simulated domain changes while its guest runs, and how the guest follows.

use super::{
    guest::{Guest, GuestState, word},
    model::refused,
};
use crate::hypervisor::{
    CdConfig, Change, DiskConfig, DomainConfig, HypervisorError, InterfaceConfig, Link, PresentDisk,
    Scheduling, Settings,
};
use serde::{Deserialize, Serialize};

/// A guest that does not listen: it neither balloons, nor starts or stops virtual CPUs, nor lets go of disks and CDs.
const STUBBORN: &str = "kubexen.stubborn";

/// What a domain is made of besides its memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Hardware {
    pub(super) max_vcpus: u32,
    /// Virtual CPUs that the guest may run on.
    pub(super) vcpus: u32,
    pub(super) vcpus_online: u32,
    scheduling: Scheduling,
    pub(super) max_memory_kib: u64,
    pub(super) memory_target_kib: u64,
    disks: Vec<PresentDisk>,
    #[serde(default)]
    cds: Vec<CdConfig>,
    interfaces: Vec<InterfaceConfig>,
    pub(super) stubborn: bool,
}

impl Hardware {
    /// That of a domain whose building begins: it has run on no virtual CPU but the first.
    pub(super) fn of(config: &DomainConfig) -> Self {
        let stubborn = config.kernel.as_ref().and_then(|kernel| word(&kernel.command_line, STUBBORN));
        Self {
            max_vcpus: config.max_vcpus,
            vcpus: config.vcpus,
            vcpus_online: 1,
            scheduling: config.scheduling,
            max_memory_kib: config.max_memory_kib,
            memory_target_kib: config.memory_kib,
            disks: config.disks.iter().map(attached).collect(),
            cds: config.cds.clone(),
            interfaces: config.interfaces.clone(),
            stubborn: stubborn.is_some(),
        }
    }

    /// That of a domain that somebody else made.
    pub(super) fn foreign(memory_kib: u64) -> Self {
        Self {
            max_vcpus: 1,
            vcpus: 1,
            vcpus_online: 1,
            scheduling: Scheduling::default(),
            max_memory_kib: memory_kib,
            memory_target_kib: memory_kib,
            disks: Vec::new(),
            cds: Vec::new(),
            interfaces: Vec::new(),
            stubborn: true,
        }
    }

    fn disk(&mut self, target: &str) -> Option<&mut PresentDisk> {
        self.disks.iter_mut().find(|disk| disk.target == target)
    }

    fn interface(&mut self, index: u32) -> Result<&mut InterfaceConfig, HypervisorError> {
        let found = self.interfaces.iter_mut().find(|interface| interface.index == index);
        found.ok_or_else(|| refused("change", "there is no such interface"))
    }
}

fn attached(disk: &DiskConfig) -> PresentDisk {
    PresentDisk { target: disk.target.clone(), link: Link::Attached, device: Some(disk.device.clone()) }
}

impl Guest {
    /// What it has of what can change.
    pub(super) fn settings(&self) -> Settings {
        let Hardware { vcpus, vcpus_online, scheduling, memory_target_kib, disks, cds, interfaces, .. } =
            self.hardware.clone();
        Settings {
            vcpus,
            vcpus_online,
            scheduling: Some(scheduling),
            memory_target_kib,
            memory_kib: self.memory_kib,
            disks,
            cds,
            interfaces,
        }
    }

    /// Changes the domain; the guest follows by [`Guest::follow`].
    pub(super) fn change(&mut self, change: &Change) -> Result<(), HypervisorError> {
        let no = |detail| refused("change", detail);
        let hardware = &mut self.hardware;
        match change {
            Change::Vcpus(vcpus) if (1..=hardware.max_vcpus).contains(vcpus) => hardware.vcpus = *vcpus,
            Change::Vcpus(_) => return Err(no("the domain is built for fewer virtual CPUs")),
            Change::Scheduling(scheduling) => hardware.scheduling = *scheduling,
            Change::Memory(kib) if (1..=hardware.max_memory_kib).contains(kib) => {
                hardware.memory_target_kib = *kib;
            }
            Change::Memory(_) => return Err(no("the domain is built for less memory")),
            Change::AttachDisk(disk) => match hardware.disk(&disk.target) {
                Some(_) => return Err(no("there is such a disk already")),
                None => {
                    hardware.disks.push(attached(disk));
                    hardware.disks.sort_by(|one, other| one.target.cmp(&other.target));
                }
            },
            Change::DetachDisk(target) => {
                if let Some(disk) = hardware.disk(target) {
                    disk.link = Link::Closing;
                }
            }
            Change::KeepDisk(target) => {
                if let Some(disk) = hardware.disk(target) {
                    disk.link = Link::Attached;
                }
            }
            Change::Cd(cd) => {
                let is_locked = hardware.stubborn && matches!(self.state, GuestState::Running { .. });
                match hardware.cds.iter_mut().find(|present| present.target == cd.target) {
                    None => return Err(no("there is no such CD drive")),
                    Some(present) if *present == *cd => {}
                    Some(present) if is_locked && present.image.is_some() => {
                        return Err(HypervisorError::InUse(format!("the guest has locked {}", cd.target)));
                    }
                    Some(present) => present.clone_from(cd),
                }
            }
            Change::AttachInterface(interface) => match hardware.interface(interface.index) {
                Ok(_) => return Err(no("there is such an interface already")),
                Err(_) => {
                    hardware.interfaces.push(interface.clone());
                    hardware.interfaces.sort_by_key(|interface| interface.index);
                }
            },
            Change::DetachInterface(index) => {
                hardware.interfaces.retain(|interface| interface.index != *index);
            }
            Change::MoveInterface { index, bridge } => {
                hardware.interface(*index)?.bridge.clone_from(bridge);
            }
            Change::LimitInterface { index, rate_limit } => {
                hardware.interface(*index)?.rate_limit = *rate_limit;
            }
        }
        Ok(())
    }

    /// The guest does what it was asked for, if it runs and listens. It takes `free_kib` more memory at most.
    pub(super) fn follow(&mut self, free_kib: u64) {
        let hardware = &mut self.hardware;
        if !matches!(self.state, GuestState::Running { .. }) || hardware.stubborn {
            return;
        }
        hardware.vcpus_online = hardware.vcpus;
        self.memory_kib = hardware.memory_target_kib.min(self.memory_kib.saturating_add(free_kib));
        hardware.disks.retain(|disk| disk.link == Link::Attached);
    }
}
