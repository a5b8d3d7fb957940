//! What of a domain changes while its guest runs: read from xenstore and Xen, changed through libxl.
//!
//! Two things do not go through libxl. A rate is written to xenstore, where Linux's netback watches it (since 4.1; libxl
//! only sets it when it adds an interface). An interface moves to another bridge by netlink, and its node in xenstore follows,
//! by which Xen's hotplug script finds the bridge when the interface goes.
//!
//! The nodes below `/libxl` and of the back ends are dom0's alone, so a guest cannot lie about what it was given.

use super::{
    Inner, config, home,
    lifecycle::SHORT,
    protocol::{Outcome, Request, Target},
    xenstore::sanitize,
};
use crate::{
    hypervisor::{
        Change, DiskConfig, DomainState, HypervisorError, InterfaceConfig, Link, PresentDisk, RATE_UNIT,
        Scheduling, Settings,
    },
    network,
};
use std::time::Duration;
use uuid::Uuid;

/// Time limit of adding a device and of changing a CD, in which libxl gives a hotplug script or the device model 40 s.
pub(super) const ATTACH: Duration = Duration::from_secs(60);
/// Time limit of removing a device, in which libxl gives the guest 10 s and a hotplug script 40 s.
const DETACH: Duration = Duration::from_secs(75);
/// Microseconds in which a limited interface may send its share: libxl's own default.
const RATE_INTERVAL: u64 = 1_000_000 / RATE_UNIT;

/// `XenbusState` of `xen/io/xenbus.h`.
mod state {
    pub const CONNECTED: &str = "4";
    pub const CLOSED: &str = "6";
}

impl Inner {
    /// See [`Hypervisor::settings`](crate::hypervisor::Hypervisor::settings).
    pub(super) async fn settings(&self, uuid: Uuid) -> Result<Settings, HypervisorError> {
        let target = self.whole("settings", uuid).await?;
        let account = self.accounting.find(uuid).await?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
        let home = home(target.domid);
        let mut vcpus = 0;
        while vcpus < account.vcpus {
            let node = self.store.read_text(&format!("{home}/cpu/{vcpus}/availability")).await?;
            if node.as_deref() != Some("online") {
                break;
            }
            vcpus += 1;
        }
        let mut memory_target_kib = 0;
        // The target that the guest is told leaves out what its emulated graphics card has.
        for node in ["target", "videoram"] {
            let text = self.store.read_text(&format!("{home}/memory/{node}")).await?;
            memory_target_kib += text.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        }
        let scheduling = match self.libxl(Request::Scheduling(target), SHORT).await? {
            Outcome::Scheduling(scheduling) => scheduling,
            other => return Err(super::lifecycle::unexpected(&other)),
        };
        Ok(Settings {
            vcpus,
            vcpus_online: account.vcpus_online,
            scheduling,
            memory_target_kib,
            memory_kib: account.memory_kib,
            disks: self.disks(target.domid).await?,
            cds: self.cds(target.domid).await?,
            interfaces: self.interfaces(target.domid).await?,
        })
    }

    /// See [`Hypervisor::change`](crate::hypervisor::Hypervisor::change).
    pub(super) async fn change(&self, uuid: Uuid, change: &Change) -> Result<(), HypervisorError> {
        let target = self.whole("change", uuid).await?;
        match change {
            Change::Vcpus(vcpus) => self.done(Request::SetVcpus { target, vcpus: *vcpus }, SHORT).await,
            Change::Scheduling(scheduling) => {
                self.done(Request::SetScheduling { target, scheduling: *scheduling }, SHORT).await
            }
            Change::Memory(kib) => self.done(Request::SetMemory { target, kib: *kib }, SHORT).await,
            Change::AttachDisk(disk) => {
                let disk = config::disk(disk);
                self.done(Request::AttachDisk { target, disk }, ATTACH).await
            }
            Change::DetachDisk(name) => self.detach_disk(target, name).await,
            Change::KeepDisk(name) => self.keep_disk(target, name).await,
            Change::Cd(cd) => self.change_cd(target, cd).await,
            Change::AttachInterface(interface) => {
                let interface = config::interface(interface);
                self.done(Request::AttachInterface { target, interface }, ATTACH).await
            }
            Change::DetachInterface(index) => {
                self.done(Request::DetachInterface { target, index: *index }, DETACH).await
            }
            Change::MoveInterface { index, bridge } => self.move_interface(target, *index, bridge).await,
            Change::LimitInterface { index, rate_limit } => {
                let node = format!("{}/rate", self.vif(target.domid, *index).await?);
                match rate_limit {
                    Some(rate) => {
                        let share = rate / RATE_UNIT;
                        self.store.write(&node, format!("{share},{RATE_INTERVAL}").as_bytes()).await?;
                    }
                    None => self.store.remove(&node).await?,
                }
                Ok(())
            }
        }
    }

    /// A domain that is neither half built nor waits for its token.
    async fn whole(&self, call: &'static str, uuid: Uuid) -> Result<Target, HypervisorError> {
        let account = self.accounting.find(uuid).await?.ok_or(HypervisorError::NoSuchDomain(uuid))?;
        match self.info(&account).await?.state {
            state @ (DomainState::HalfBuilt | DomainState::Restored | DomainState::Dying) => {
                Err(HypervisorError::Refused { call, detail: format!("the domain is {state:?}") })
            }
            DomainState::Running
            | DomainState::Paused
            | DomainState::Suspended
            | DomainState::Shutdown(_) => Ok(Target { domid: account.domid, uuid }),
        }
    }

    pub(super) async fn done(&self, request: Request, limit: Duration) -> Result<(), HypervisorError> {
        match self.libxl(request, limit).await? {
            Outcome::Done => Ok(()),
            other => Err(super::lifecycle::unexpected(&other)),
        }
    }

    /// The back ends of one kind of a domain's devices of one kind, by the numbers that libxl gave them.
    pub(super) async fn backends(
        &self,
        domid: u16,
        kind: &str,
        backend: &str,
    ) -> Result<Vec<(u32, String)>, HypervisorError> {
        let folder = format!("/libxl/{domid}/device/{kind}");
        let mut backends = Vec::new();
        for name in self.store.directory(&folder).await?.unwrap_or_default() {
            let Ok(number) = name.parse() else { continue };
            // In a driver domain: none of ours.
            let local = format!("/local/domain/0/backend/{backend}/{domid}/{number}");
            if self.store.read_text(&format!("{folder}/{name}/backend")).await?.as_ref() == Some(&local) {
                backends.push((number, local));
            }
        }
        backends.sort_unstable();
        Ok(backends)
    }

    async fn disks(&self, domid: u16) -> Result<Vec<PresentDisk>, HypervisorError> {
        let mut disks = Vec::new();
        for (_, backend) in self.backends(domid, "vbd", "vbd").await? {
            let Some(target) = self.store.read_text(&format!("{backend}/dev")).await? else { continue };
            let device = self.store.read(&format!("{backend}/params")).await?;
            let device = device.map(|device| sanitize(&device, 4096).into());
            disks.push(PresentDisk { target, link: self.link(&backend).await?, device });
        }
        disks.sort_by(|one, other| one.target.cmp(&other.target));
        Ok(disks)
    }

    async fn link(&self, backend: &str) -> Result<Link, HypervisorError> {
        let state = self.store.read_text(&format!("{backend}/state")).await?;
        let online = self.store.read_text(&format!("{backend}/online")).await?;
        Ok(match (state.as_deref(), online.as_deref()) {
            (Some(state::CLOSED), _) => Link::Closed,
            (_, Some("0")) => Link::Closing,
            (_, _) => Link::Attached,
        })
    }

    async fn interfaces(&self, domid: u16) -> Result<Vec<InterfaceConfig>, HypervisorError> {
        let mut interfaces = Vec::new();
        for (index, backend) in self.backends(domid, "vif", "vif").await? {
            let read = |name: &'static str| {
                let node = format!("{backend}/{name}");
                async move { self.store.read_text(&node).await }
            };
            interfaces.push(InterfaceConfig {
                bridge: read("bridge").await?.unwrap_or_default(),
                mac: read("mac").await?.unwrap_or_default(),
                index,
                rate_limit: read("rate").await?.as_deref().and_then(rate),
            });
        }
        Ok(interfaces)
    }

    /// Has libxl ask the guest and wait ten seconds. libxl fails when the guest did not let go by then, and leaves the
    /// request standing.
    async fn detach_disk(&self, target: Target, name: &str) -> Result<(), HypervisorError> {
        let Some(backend) = self.vbd(target.domid, name).await? else { return Ok(()) };
        let device = self.store.read(&format!("{backend}/params")).await?.unwrap_or_default();
        let disk = config::disk(&DiskConfig {
            device: sanitize(&device, 4096).into(),
            target: name.to_owned(),
            read_only: false,
        });
        let removed = self.done(Request::DetachDisk { target, disk }, DETACH).await;
        match removed {
            Err(HypervisorError::Refused { .. })
                if self.vbd(target.domid, name).await?.is_some()
                    && self.link(&backend).await? == Link::Closing =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// Takes back what libxl wrote to ask the guest, as long as the guest has not begun to let go.
    async fn keep_disk(&self, target: Target, name: &str) -> Result<(), HypervisorError> {
        let Some(backend) = self.vbd(target.domid, name).await? else { return Ok(()) };
        let Some(frontend) = self.store.read_text(&format!("{backend}/frontend")).await? else {
            return Ok(());
        };
        let guest = self.store.read_text(&format!("{frontend}/state")).await?;
        if guest.as_deref() == Some(state::CONNECTED) && self.link(&backend).await? == Link::Closing {
            self.store.write(&format!("{backend}/state"), state::CONNECTED.as_bytes()).await?;
            self.store.write(&format!("{backend}/online"), b"1").await?;
        }
        Ok(())
    }

    async fn move_interface(&self, target: Target, index: u32, bridge: &str) -> Result<(), HypervisorError> {
        let backend = self.vif(target.domid, index).await?;
        let port = format!("vif{}.{index}", target.domid);
        let failed = |error: network::NetworkError| HypervisorError::Refused {
            call: "move an interface",
            detail: error.to_string(),
        };
        network::bridge::move_port(&port, bridge).await.map_err(failed)?;
        // What an HVM guest uses until its own drivers take over; there is none for others.
        match network::bridge::move_port(&format!("{port}-emu"), bridge).await {
            Ok(()) | Err(network::NetworkError::NoSuchDevice(_)) => {}
            Err(error) => return Err(failed(error)),
        }
        Ok(self.store.write(&format!("{backend}/bridge"), bridge.as_bytes()).await?)
    }

    /// The back end of the disk with this target, if there is one.
    async fn vbd(&self, domid: u16, target: &str) -> Result<Option<String>, HypervisorError> {
        for (_, backend) in self.backends(domid, "vbd", "vbd").await? {
            if self.store.read_text(&format!("{backend}/dev")).await?.as_deref() == Some(target) {
                return Ok(Some(backend));
            }
        }
        Ok(None)
    }

    /// The back end of the interface with this index.
    async fn vif(&self, domid: u16, index: u32) -> Result<String, HypervisorError> {
        let found =
            self.backends(domid, "vif", "vif").await?.into_iter().find(|(number, _)| *number == index);
        found.map(|(_, backend)| backend).ok_or_else(|| HypervisorError::Refused {
            call: "change an interface",
            detail: format!("the domain has no interface {index}"),
        })
    }

    /// Lets a guest start on its first virtual CPUs alone. A PVH guest's firmware tables must show all of them to be
    /// there, because Linux brings no CPU up later that was not in its tables; so it is xenstore that says which are to be
    /// left alone.
    pub(super) async fn withhold_vcpus(
        &self,
        domid: u16,
        vcpus: u32,
        max_vcpus: u32,
    ) -> Result<(), HypervisorError> {
        for vcpu in vcpus..max_vcpus {
            self.store.write(&format!("{}/cpu/{vcpu}/availability", home(domid)), b"offline").await?;
        }
        Ok(())
    }
}

/// The rate that a node `bytes,microseconds` tells.
fn rate(text: &str) -> Option<u64> {
    let (bytes, interval) = text.split_once(',')?;
    let (bytes, interval) = (bytes.parse::<u64>().ok()?, interval.parse::<u64>().ok()?);
    bytes.checked_mul(1_000_000)?.checked_div(interval)
}

/// libxl's scheduling parameters in JSON, as what the trait knows; none where the scheduler has no weights.
pub(super) fn scheduling(parameters: &serde_json::Value) -> Option<Scheduling> {
    let number = |name: &str| parameters[name].as_u64().and_then(|number| u32::try_from(number).ok());
    Some(Scheduling { weight: number("weight")?, cap_percent: number("cap").unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_rate_is_bytes_in_an_interval() {
        assert_eq!(rate("512000,50000"), Some(10_240_000));
        for nonsense in ["", "512000", "a,b", "1,0", "18446744073709551615,1"] {
            assert_eq!(rate(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn a_scheduler_without_weights_has_none() {
        let credit = json!({"sched": "credit2", "weight": 512, "cap": 50, "period": -1});
        assert_eq!(scheduling(&credit), Some(Scheduling { weight: 512, cap_percent: 50 }));
        assert_eq!(scheduling(&json!({"sched": "null", "weight": -1, "cap": -1})), None);
    }
}
