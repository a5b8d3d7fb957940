//! Objects for tests: of a machine with one vCPU and 1 GiB, in PVH mode, without disks and interfaces.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubexen_crds::{
    Availability, Boot, BootType, ByteQuantity, Domain, DomainSpec, DomainStatus, VirtualMachine,
    VirtualMachineSpec,
    domain::{DomainPhase, DomainPowerState, Machine, VirtualMachineReference},
    virtual_machine::{Cpu, Lifecycle, Memory, Placement, PowerState},
};

pub(crate) fn named(namespace: &str, name: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        uid: Some(uid.to_owned()),
        generation: Some(1),
        resource_version: Some("7".to_owned()),
        ..ObjectMeta::default()
    }
}

pub(crate) fn boot() -> Boot {
    Boot { type_: BootType::Pvh, firmware: None, kernel: None }
}

/// What a user asks for.
pub(crate) fn machine_spec() -> VirtualMachineSpec {
    VirtualMachineSpec {
        power_state: PowerState::Running,
        cpu: Cpu::default(),
        memory: Memory { size: ByteQuantity("1Gi".to_owned()), min: None, max: None },
        boot: boot(),
        disks: Vec::new(),
        interfaces: Vec::new(),
        placement: Placement::default(),
        lifecycle: Lifecycle::default(),
        cloud_init: None,
        cds: Vec::new(),
        availability: Availability::default(),
    }
}

/// The same for a host.
pub(crate) fn resolved_machine() -> Machine {
    Machine {
        cpus: 1,
        max_cpus: 1,
        cpu_weight: 256,
        cpu_cap_percent: 0,
        memory: ByteQuantity("1Gi".to_owned()),
        max_memory: ByteQuantity("1Gi".to_owned()),
        boot: boot(),
        cpu_level: None,
        cloud_init: None,
        cds: Vec::new(),
        disks: Vec::new(),
        interfaces: Vec::new(),
    }
}

/// A machine in the namespace `shop`.
pub(crate) fn virtual_machine(name: &str, uid: &str) -> VirtualMachine {
    VirtualMachine { metadata: named("shop", name, uid), spec: machine_spec(), status: None }
}

/// The Domain on a host of a machine in the namespace `shop`. Nothing was said of it yet.
pub(crate) fn domain(name: &str, machine_uid: &str, host: &str, uid: &str) -> Domain {
    Domain {
        metadata: named(&format!("kubexen-host-{host}"), &format!("shop.{name}"), uid),
        spec: DomainSpec {
            virtual_machine: VirtualMachineReference {
                namespace: "shop".to_owned(),
                name: name.to_owned(),
                uid: machine_uid.to_owned(),
            },
            power_state: DomainPowerState::Running,
            restart_requested: None,
            machine: resolved_machine(),
            lifecycle: Lifecycle::default(),
            protected: false,
            saved_state: None,
            migration: None,
        },
        status: None,
    }
}

/// The Domain with a guest that runs.
pub(crate) fn running(mut domain: Domain) -> Domain {
    domain.status = Some(DomainStatus {
        phase: Some(DomainPhase::Running),
        observed_generation: domain.metadata.generation,
        ..DomainStatus::default()
    });
    domain
}
