//! The KubeXen API, group `kubexen.io`, version `v1alpha1`.
//!
//! Two layers. **User kinds** say what is wanted: [`VirtualMachine`], [`VirtualDisk`], [`Network`],
//! [`StorageRepository`], [`Host`], [`Pool`], [`VirtualMachineMigration`]. **Host kinds** say what one dom0 is to run, fully resolved, in the
//! namespace of that host: [`Domain`], [`Volume`]. The controller turns the first into the second; the agent of
//! the host makes Xen agree and reports in their status.
//!
//! The types are the only source of the CustomResourceDefinitions: `cargo xtask crds` writes them to
//! `crds/manifests/` and into the chart, and a check fails when the two differ. Validation is CEL inside the
//! schemas, so that the API server refuses bad input with no component of ours in the write path.

pub mod availability;
pub mod boot;
pub mod cd;
pub mod cloud_init;
pub mod condition;
pub mod cpu;
pub mod domain;
pub mod domain_migration;
pub mod evacuation;
pub mod guest;
mod guest_size;
pub mod host;
pub mod manifest;
pub mod names;
pub mod network;
pub mod pool;
pub mod quantity;
mod reference;
pub mod storage_repository;
pub mod virtual_disk;
pub mod virtual_machine;
pub mod virtual_machine_migration;
pub mod volume;

pub use availability::{
    Availability, HostAvailability, HostFencing, HostFencingStatus, HostProtection, HostRecovery,
    MachineRecovery, PoolAvailability, PoolAvailabilityStatus, Profile, ProtectionState, RestartPriority,
};
pub use boot::{Boot, BootType, Firmware, Kernel};
pub use cd::{Cd, DomainCd, DomainImage, Image};
pub use cloud_init::{CloudInit, DomainCloudInit};
pub use cpu::{FeatureSet, FeatureSets};
pub use domain::{Domain, DomainSpec, DomainStatus};
pub use domain_migration::{DomainMigration, DomainMigrationStatus, MigrationRole, MigrationStage};
pub use evacuation::{EvacuationAction, EvacuationStep, HostEvacuation, Maintenance};
pub use guest::{GuestInterface, GuestMemory, GuestStatus};
pub use host::{Host, HostSpec, HostStatus};
pub use network::{Network, NetworkSpec, NetworkStatus};
pub use pool::{Pool, PoolSpec, PoolStatus};
pub use quantity::{ByteQuantity, TimeSpan};
pub use storage_repository::{StorageRepository, StorageRepositorySpec, StorageRepositoryStatus};
pub use virtual_disk::{VirtualDisk, VirtualDiskSpec, VirtualDiskStatus};
pub use virtual_machine::{VirtualMachine, VirtualMachineSpec, VirtualMachineStatus};
pub use virtual_machine_migration::{
    MigrationPhase, VirtualMachineMigration, VirtualMachineMigrationSpec, VirtualMachineMigrationStatus,
};
pub use volume::{Volume, VolumeSpec, VolumeStatus};
