//! Why no host fits.

use kubexen_crds::{BootType, Firmware};
use std::{collections::BTreeMap, fmt};

/// Why a host does not fit. In the order in which the filters look.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is to be emptied.
    InMaintenance,
    /// Its agent does not report.
    NotReady,
    /// Its owner lets no new guests in.
    NotSchedulable,
    /// It lacks a label that the guest asks for.
    SelectorMismatch,
    /// Its Xen cannot run guests of this mode.
    ModeNotOffered(BootType),
    /// It does not receive running guests of this mode.
    DoesNotReceive(BootType),
    /// It has no address on the Pool's network for migrations.
    NotOnMigrationNetwork,
    /// Its CPUs lack this feature, the first by name of those that the guest may use.
    CpuFeatureMissing(String),
    /// Its catalogue lacks this kernel.
    KernelMissing(String),
    /// It has no boot loader for guests of this mode.
    BootLoaderMissing(BootType),
    /// It lacks this firmware.
    FirmwareMissing(Firmware),
    /// This disk is on another host.
    DiskElsewhere(String),
    /// It has not attached this repository.
    RepositoryNotAttached(String),
    /// It does not have this image of this repository.
    ImageMissing(String, String),
    /// It has not attached this network.
    NetworkNotAttached(String),
    /// A guest of the same anti-affinity group is here.
    AntiAffinity,
    /// The location of this repository has too little room.
    RepositoryFull(String),
    /// The guest has more vCPUs than the host has CPUs.
    TooFewCpus,
    /// Too few vCPUs are left.
    Vcpus,
    /// Too little memory is left.
    Memory,
    /// What is left is kept for the protected guests of hosts that may die.
    FailureReserve,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InMaintenance => f.write_str("in maintenance"),
            Self::NotReady => f.write_str("not ready"),
            Self::NotSchedulable => f.write_str("not schedulable"),
            Self::SelectorMismatch => f.write_str("host selector does not match"),
            Self::ModeNotOffered(BootType::Pvh) => f.write_str("PVH not offered"),
            Self::ModeNotOffered(BootType::Hvm) => f.write_str("HVM not offered"),
            Self::ModeNotOffered(BootType::Pv) => f.write_str("PV not offered"),
            Self::DoesNotReceive(boot) => write!(f, "not receiving running {boot:?} guests"),
            Self::NotOnMigrationNetwork => f.write_str("not on the migration network"),
            Self::CpuFeatureMissing(feature) => write!(f, "CPU feature {feature} missing"),
            Self::KernelMissing(kernel) => write!(f, "kernel {kernel} not in catalogue"),
            Self::BootLoaderMissing(BootType::Pvh) => f.write_str("pvgrub for PVH not installed"),
            Self::BootLoaderMissing(BootType::Hvm) => f.write_str("pvgrub for HVM not installed"),
            Self::BootLoaderMissing(BootType::Pv) => f.write_str("pvgrub for PV not installed"),
            Self::FirmwareMissing(Firmware::Bios) => f.write_str("BIOS not installed"),
            Self::FirmwareMissing(Firmware::Uefi) => f.write_str("UEFI not installed"),
            Self::DiskElsewhere(disk) => write!(f, "disk {disk} is on another host"),
            Self::RepositoryNotAttached(repository) => write!(f, "repository {repository} not attached"),
            Self::ImageMissing(image, repository) => {
                write!(f, "image {image} of repository {repository} missing")
            }
            Self::NetworkNotAttached(network) => write!(f, "network {network} not attached"),
            Self::AntiAffinity => f.write_str("anti-affinity"),
            Self::RepositoryFull(repository) => write!(f, "room in repository {repository}"),
            Self::TooFewCpus => f.write_str("fewer CPUs than the guest has vCPUs"),
            Self::Vcpus => f.write_str("vCPUs"),
            Self::Memory => f.write_str("memory"),
            Self::FailureReserve => f.write_str("failure reserve"),
        }
    }
}

/// How many hosts each reason excludes. Every host of the pool counts once, under the first reason that excludes it.
///
/// Displays as `0/12 hosts fit: 7 memory, 3 network prod not attached, 2 not schedulable`: the most frequent reason
/// first, then by text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejections {
    counts: BTreeMap<Reason, u32>,
}

impl Rejections {
    /// Counts hosts under a reason; `reason` is called only if there are any.
    pub(crate) fn add(&mut self, hosts: u32, reason: impl FnOnce() -> Reason) {
        if hosts > 0 {
            *self.counts.entry(reason()).or_default() += hosts;
        }
    }

    /// Adds what was counted of other hosts.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (reason, hosts) in &other.counts {
            self.add(*hosts, || reason.clone());
        }
    }

    /// Number of hosts: all hosts of the pool.
    #[must_use]
    pub fn hosts(&self) -> u32 {
        self.counts.values().sum()
    }

    /// Number of hosts by reason; no reason counts zero.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<Reason, u32> {
        &self.counts
    }
}

impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0/{} hosts fit: ", self.hosts())?;
        if self.counts.is_empty() {
            return f.write_str("the pool has no hosts");
        }
        let mut parts: Vec<(u32, String)> =
            self.counts.iter().map(|(reason, count)| (*count, reason.to_string())).collect();
        parts.sort_by(|(count, text), (other_count, other_text)| {
            other_count.cmp(count).then_with(|| text.cmp(other_text))
        });
        for (index, (count, text)) in parts.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{count} {text}")?;
        }
        Ok(())
    }
}
