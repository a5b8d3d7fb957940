//! What to change of a domain whose guest runs: pure, total, and all of the policy.
//!
//! What the Domain asks for is compared with what the hypervisor shows, and every difference is one [`LiveStep`]. The steps
//! do not depend on each other: one that fails, or that the guest does not follow, keeps none of the others. What is then
//! left is a [`Lag`], which the condition `Synchronized` tells.

use super::observe::Unmet;
use crate::hypervisor::{InterfaceConfig, Link, PresentDisk, Scheduling, Settings};
use jiff::{SignedDuration, Timestamp};
use kubexen_crds::{
    ByteQuantity, DomainStatus,
    cd::CD_TARGETS,
    condition::{self, State, Wanted},
};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// The condition that tells whether the guest has what it is to have.
pub const SYNCHRONIZED: &str = "Synchronized";

/// A guest that has not followed for this long is said not to respond.
const PATIENCE: SignedDuration = SignedDuration::from_secs(30);
/// How often a guest is looked at that has just been asked, and one that has not followed in time.
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(10);

const MIB_IN_KIB: u64 = 1024;
/// Memory that Xen counts of a domain besides what its guest is asked to hold, and what a balloon driver rounds.
const SLACK_KIB: u64 = 8 * MIB_IN_KIB;

/// What a running domain is to have, and what it has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// What its Domain asks for.
    pub wanted: Asked,
    /// What the hypervisor shows; none without a guest that could be changed.
    pub present: Option<Settings>,
    /// Whether the guest stands still, and so cannot follow.
    pub stands_still: bool,
    /// What was tried in this look.
    pub tried: Tried,
}

/// Steps that were tried.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tried {
    /// Those that were made. One that is to be made once more has to wait for the guest.
    pub done: Vec<LiveStep>,
    /// Those that failed.
    pub failed: Vec<Failure>,
}

impl Tried {
    fn has(&self, step: &LiveStep) -> bool {
        self.done.contains(step) || self.failed.iter().any(|failure| failure.step == *step)
    }
}

/// What a Domain asks for, of what can change.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Weight and cap.
    pub scheduling: Scheduling,
    /// Memory in KiB.
    pub memory_kib: u64,
    /// Disks.
    pub disks: Vec<AskedDisk>,
    /// CD drives.
    pub cds: Vec<AskedCd>,
    /// Interfaces.
    pub interfaces: Vec<AskedInterface>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            vcpus: 1,
            scheduling: Scheduling::default(),
            memory_kib: 0,
            disks: Vec::new(),
            cds: Vec::new(),
            interfaces: Vec::new(),
        }
    }
}

/// A disk that a Domain names.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedDisk {
    /// Its name.
    pub name: String,
    /// Name that the guest sees.
    pub target: String,
    /// Whether the guest is to let go of it.
    pub detach: bool,
    /// What keeps it from being attached; looked for only while it is not.
    pub need: Option<Unmet>,
    /// Whether this host may still have its volume; looked for only if the guest is to let go of it.
    pub stored: bool,
}

/// A CD drive that a Domain names.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedCd {
    /// Its name.
    pub name: String,
    /// Name under which the guest sees an image in it.
    pub target: String,
    /// Whether it is an emulated drive.
    pub emulated: bool,
    /// The image that is to be in it.
    pub image: Option<AskedImage>,
}

/// An image that is to be in a drive.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedImage {
    /// Its device on this host, if it has one; in an emulated drive its file, if it is there.
    pub device: Option<PathBuf>,
}

/// An interface that a Domain names.
#[derive(Clone, Debug, PartialEq)]
pub struct AskedInterface {
    /// Its name.
    pub name: String,
    /// Which of the guest's it is.
    pub index: u32,
    /// Hardware address.
    pub mac: String,
    /// Bridge to its network, or why there is none.
    pub bridge: Result<String, Unmet>,
    /// Most bytes per second.
    pub rate_limit: Option<u64>,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum LiveStep {
    /// Let the guest run on its first so many virtual CPUs.
    SetVcpus(u32),
    /// Set weight and cap.
    SetScheduling(Scheduling),
    /// Ask the guest to hold so much memory, in KiB.
    SetMemory(u64),
    /// Give the guest the disk of this name.
    AttachDisk(String),
    /// Ask the guest to let go of the disk with this target.
    DetachDisk(String),
    /// Take that back.
    KeepDisk(String),
    /// Give back the volume of the disk of this name, which the guest has no more.
    ReleaseVolume(String),
    /// Give the guest the image in the CD drive of this name.
    InsertImage(String),
    /// Ask the guest to let go of the image that it has under this target.
    EjectImage(String),
    /// Make what is in the emulated CD drive of this name what is to be in it.
    ChangeCd(String),
    /// Give the guest the interface of this name.
    AttachInterface(String),
    /// Take away the interface with this index.
    DetachInterface(u32),
    /// Plug the interface with this index into this bridge.
    MoveInterface(u32, String),
    /// Limit what the interface with this index sends, in bytes per second.
    LimitInterface(u32, Option<u64>),
}

/// A step that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// Which.
    pub step: LiveStep,
    /// One word from a fixed set.
    pub reason: &'static str,
    /// Why.
    pub message: String,
}

/// Something that the guest does not have yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lag {
    /// One word from a fixed set.
    pub reason: &'static str,
    /// What is so, and what helps.
    pub message: String,
    /// Whether the guest just takes its time, as far as is known.
    pub may_pass: bool,
}

impl Live {
    /// The next step, if there is one that was not tried in this look.
    #[must_use]
    pub fn next_step(&self) -> Option<LiveStep> {
        self.steps().into_iter().find(|step| !self.tried.has(step))
    }

    /// When to look again at a guest that has not followed; none if it has all that it is to have.
    #[must_use]
    pub fn look_again(&self, status: &DomainStatus, now: Timestamp) -> Option<Duration> {
        let lags = self.lags();
        if lags.is_empty() {
            return None;
        }
        let fresh = lags.iter().any(|lag| lag.may_pass) && !is_late(status, now);
        Some(if fresh { SOON } else { LATER })
    }

    fn steps(&self) -> Vec<LiveStep> {
        let Some(present) = &self.present else { return self.releases(|_| true) };
        let mut steps = Vec::new();
        if present.vcpus != self.wanted.vcpus {
            steps.push(LiveStep::SetVcpus(self.wanted.vcpus));
        }
        // A scheduler without weights treats all domains alike, which is what the default asks for.
        if present.scheduling.unwrap_or_default() != self.wanted.scheduling {
            steps.push(LiveStep::SetScheduling(self.wanted.scheduling));
        }
        if present.memory_target_kib != self.wanted.memory_kib {
            steps.push(LiveStep::SetMemory(self.wanted.memory_kib));
        }
        for disk in &self.wanted.disks {
            steps.extend(disk_step(disk, disk_of(present, &disk.target)));
        }
        steps.extend(self.releases(|disk| disk_of(present, &disk.target).is_none()));
        steps.extend(self.cd_steps(present));
        for interface in &self.wanted.interfaces {
            let found = present.interfaces.iter().find(|present| present.index == interface.index);
            steps.extend(interface_steps(interface, found));
        }
        let is_wanted = |index| self.wanted.interfaces.iter().any(|interface| interface.index == index);
        let unwanted = present.interfaces.iter().filter(|interface| !is_wanted(interface.index));
        steps.extend(unwanted.map(|interface| LiveStep::DetachInterface(interface.index)));
        steps
    }

    /// A guest without emulated drives cannot be given another image before it has let go of the one that it has.
    fn cd_steps(&self, present: &Settings) -> Vec<LiveStep> {
        let mut steps = Vec::new();
        for cd in &self.wanted.cds {
            if cd.emulated {
                steps.extend(drive_step(cd, present));
            } else {
                steps.extend(cd_step(cd, disk_of(present, &cd.target)));
            }
        }
        for removed in self.removed_cds(present).filter(|removed| removed.link != Link::Closing) {
            steps.push(LiveStep::EjectImage(removed.target.clone()));
        }
        steps
    }

    /// What the guest has in drives that it is not to have any more.
    fn removed_cds<'a>(&'a self, present: &'a Settings) -> impl Iterator<Item = &'a PresentDisk> {
        present.disks.iter().filter(move |disk| {
            CD_TARGETS.contains(&disk.target.as_str())
                && !self.wanted.cds.iter().any(|cd| cd.target == disk.target)
                && !self.wanted.disks.iter().any(|wanted| wanted.target == disk.target)
        })
    }

    /// Images that the guest has and is not to have, and does not let go of.
    fn kept_images(&self, present: &Settings) -> Vec<Lag> {
        let drives = self.wanted.cds.iter();
        let others = drives.filter_map(|cd| disk_of(present, &cd.target).filter(|disk| !has_image(cd, disk)));
        let closing = others.chain(self.removed_cds(present)).filter(|disk| disk.link == Link::Closing);
        let lag = |disk: &PresentDisk| Lag {
            reason: "DiskInUse",
            message: format!(
                "The guest has not let go of the image in its CD drive ({}); unmount it in the guest",
                disk.target
            ),
            may_pass: true,
        };
        closing.map(lag).collect()
    }

    /// Volumes to be given back of disks that are `gone` from the guest.
    fn releases(&self, gone: impl Fn(&AskedDisk) -> bool) -> Vec<LiveStep> {
        let released = |disk: &&AskedDisk| disk.detach && disk.stored && gone(disk);
        self.wanted
            .disks
            .iter()
            .filter(released)
            .map(|disk| LiveStep::ReleaseVolume(disk.name.clone()))
            .collect()
    }

    /// Disks that are to be detached and that the guest has no more.
    #[must_use]
    pub fn detached(&self) -> Vec<String> {
        let has =
            |target: &str| self.present.as_ref().is_some_and(|present| disk_of(present, target).is_some());
        let gone = |disk: &&AskedDisk| disk.detach && !disk.stored && !has(&disk.target);
        self.wanted.disks.iter().filter(gone).map(|disk| disk.name.clone()).collect()
    }

    /// What the guest does not have yet, once no step is left.
    #[must_use]
    pub fn lags(&self) -> Vec<Lag> {
        let Some(present) = &self.present else { return Vec::new() };
        let mut lags = Vec::new();
        for Failure { step: _, reason, message } in &self.tried.failed {
            lags.push(Lag { reason, message: message.clone(), may_pass: false });
        }
        if self.steps().iter().any(|step| self.tried.done.contains(step)) {
            lags.push(self.behind("The guest has not taken a change that was made".to_owned()));
        }
        for disk in &self.wanted.disks {
            match (disk_of(present, &disk.target).map(|disk| disk.link), disk.detach, &disk.need) {
                (Some(Link::Closing), true, _) => lags.push(Lag {
                    reason: "DiskInUse",
                    message: format!(
                        "The guest has not let go of disk {} ({}); unmount it in the guest, or list it in `spec.disks` \
                         again",
                        disk.name, disk.target
                    ),
                    may_pass: true,
                }),
                (None, false, Some(need)) => lags.push(unmet(need)),
                (_, _, _) => {}
            }
        }
        lags.extend(self.kept_images(present));
        let bridges = self.wanted.interfaces.iter().map(|interface| &interface.bridge);
        lags.extend(bridges.filter_map(|bridge| bridge.as_ref().err()).map(unmet));
        if present.vcpus_online != self.wanted.vcpus {
            lags.push(self.behind(format!(
                "The guest runs on {} of {} virtual CPUs",
                present.vcpus_online, self.wanted.vcpus
            )));
        }
        if !is_near(present.memory_kib, self.wanted.memory_kib) {
            lags.push(self.behind(format!(
                "The guest holds {} MiB of memory and is to hold {} MiB",
                present.memory_kib / MIB_IN_KIB,
                self.wanted.memory_kib / MIB_IN_KIB
            )));
        }
        lags
    }

    /// That the guest has not followed.
    fn behind(&self, message: String) -> Lag {
        if self.stands_still {
            let message = format!("{message}; it stands still, and follows when it runs");
            return Lag { reason: "GuestPaused", message, may_pass: false };
        }
        Lag { reason: "GuestNotResponding", message, may_pass: true }
    }

    /// What `Synchronized` says; nothing without a guest.
    #[must_use]
    pub fn condition(&self, status: &DomainStatus, now: Timestamp) -> Option<Wanted> {
        self.present.as_ref()?;
        let lags = self.lags();
        let Some(first) = lags.iter().find(|lag| !lag.may_pass).or(lags.first()) else {
            return Some(Wanted::new(
                SYNCHRONIZED,
                State::True,
                SYNCHRONIZED,
                "The guest has what it is to have",
            ));
        };
        let passing = lags.iter().all(|lag| lag.may_pass) && !is_late(status, now);
        let reason = if passing { "Applying" } else { first.reason };
        let messages: Vec<&str> = lags.iter().map(|lag| lag.message.as_str()).collect();
        Some(Wanted::new(SYNCHRONIZED, State::False, reason, messages.join(". ")))
    }

    /// Virtual CPUs that the guest runs on.
    #[must_use]
    pub fn vcpus_online(&self) -> Option<i32> {
        self.present.as_ref().and_then(|present| i32::try_from(present.vcpus_online).ok())
    }

    /// Memory that the guest holds: what it is to hold where that is so, so that a page more or less makes no news.
    #[must_use]
    pub fn memory(&self) -> Option<ByteQuantity> {
        let held = self.present.as_ref()?.memory_kib;
        let kib = if is_near(held, self.wanted.memory_kib) {
            self.wanted.memory_kib
        } else {
            held / MIB_IN_KIB * MIB_IN_KIB
        };
        Some(ByteQuantity::from_bytes(kib * 1024))
    }
}

fn disk_of<'a>(present: &'a Settings, target: &str) -> Option<&'a PresentDisk> {
    present.disks.iter().find(|disk| disk.target == target)
}

fn disk_step(disk: &AskedDisk, present: Option<&PresentDisk>) -> Option<LiveStep> {
    match (disk.detach, present.map(|present| present.link)) {
        (false, None) if disk.need.is_none() => Some(LiveStep::AttachDisk(disk.name.clone())),
        (false, Some(Link::Closing)) => Some(LiveStep::KeepDisk(disk.target.clone())),
        (true, Some(Link::Attached)) | (_, Some(Link::Closed)) => {
            Some(LiveStep::DetachDisk(disk.target.clone()))
        }
        (false, None | Some(Link::Attached)) | (true, None | Some(Link::Closing)) => None,
    }
}

/// Whether the guest has just what is to be in the drive.
fn has_image(cd: &AskedCd, present: &PresentDisk) -> bool {
    cd.image.as_ref().is_some_and(|image| image.device.is_some() && image.device == present.device)
}

fn cd_step(cd: &AskedCd, present: Option<&PresentDisk>) -> Option<LiveStep> {
    let Some(present) = present else {
        return cd.image.is_some().then(|| LiveStep::InsertImage(cd.name.clone()));
    };
    match (has_image(cd, present), present.link) {
        (true, Link::Attached) | (false, Link::Closing) => None,
        (true, Link::Closing) => Some(LiveStep::KeepDisk(cd.target.clone())),
        (false, Link::Attached) | (_, Link::Closed) => Some(LiveStep::EjectImage(cd.target.clone())),
    }
}

/// An emulated drive that the domain does not have is reported by the hypervisor.
fn drive_step(cd: &AskedCd, present: &Settings) -> Option<LiveStep> {
    let drive = present.cds.iter().find(|drive| drive.target == cd.target);
    let is_so = match (&cd.image, drive.and_then(|drive| drive.image.as_ref())) {
        (None, None) => true,
        (Some(image), Some(present)) => image.device.as_ref() == Some(present),
        (None, Some(_)) | (Some(_), None) => false,
    };
    (!is_so).then(|| LiveStep::ChangeCd(cd.name.clone()))
}

fn interface_steps(interface: &AskedInterface, present: Option<&InterfaceConfig>) -> Vec<LiveStep> {
    let AskedInterface { name, index, mac, bridge, rate_limit } = interface;
    let Ok(bridge) = bridge else { return Vec::new() };
    match present {
        None => vec![LiveStep::AttachInterface(name.clone())],
        // Another interface had this index.
        Some(present) if present.mac != *mac => vec![LiveStep::DetachInterface(*index)],
        Some(present) => {
            let moved = (present.bridge != *bridge).then(|| LiveStep::MoveInterface(*index, bridge.clone()));
            let limited =
                (present.rate_limit != *rate_limit).then_some(LiveStep::LimitInterface(*index, *rate_limit));
            moved.into_iter().chain(limited).collect()
        }
    }
}

fn unmet(need: &Unmet) -> Lag {
    Lag { reason: need.reason(), message: need.message(), may_pass: false }
}

/// Whether a guest holds what it is to hold.
fn is_near(held: u64, wanted: u64) -> bool {
    held.abs_diff(wanted) <= wanted / 64 + SLACK_KIB
}

/// Whether the guest has had its time. Whoever writes the condition down keeps since when it does not hold.
fn is_late(status: &DomainStatus, now: Timestamp) -> bool {
    condition::find(&status.conditions, SYNCHRONIZED)
        .filter(|condition| condition.status == State::False.as_str())
        .map(|condition| condition.last_transition_time.0.duration_until(now))
        // A clock that ran ahead may have dated it into the future.
        .is_some_and(|waits| waits >= PATIENCE || waits.is_negative())
}

#[cfg(test)]
mod tests;
