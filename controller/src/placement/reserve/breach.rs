//! What breaks a promise, and what would restore it.

use super::{
    super::{HostView, Reason, Rejections, Request, Snapshot, Verdict, place},
    Case, Failed, Reserve, TRIES, complete,
    facts::{Facts, GuestFacts, Room, occupy},
};
use kubexen_crds::pool::PlacementPolicy;
use kubexen_runtime::Key;
use std::fmt;

const GIB: u64 = 1 << 30;

/// Hosts that may not die, and a guest that would stay down.
///
/// Displays as a sentence without its first capital and last full stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// The hosts, by name; none if the guest is down already, because its host does not report.
    pub hosts: Vec<String>,
    /// The guest.
    pub guest: Key,
    /// Memory in bytes that it takes of a host, overhead included.
    pub memory: u64,
    /// Its vCPUs.
    pub vcpus: u32,
    /// How many guests have no place.
    pub left: usize,
    /// Why the other hosts cannot take it, once they have taken what they can; none if they can, and only an estimate
    /// says that there may be no room for all.
    pub rejections: Option<Rejections>,
    /// What would make room for it, most useful first.
    pub remedies: Vec<Remedy>,
}

/// What would make room for a guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// So much more that guests may take.
    Room {
        /// The host that lacks least.
        host: String,
        /// Memory in bytes.
        memory: u64,
        /// vCPUs.
        vcpus: u64,
    },
    /// A host in maintenance that takes guests again.
    EndMaintenance(String),
    /// A host that is not ready and comes back.
    BringBack(String),
    /// A host that lets guests in again.
    LetIn(String),
    /// The network, on another host.
    AttachNetwork(String),
    /// The repository, on another host.
    AttachRepository(String),
    /// Another host that suits the guest.
    AnotherHost,
    /// The guest, no longer protected.
    Unprotect(Key),
}

/// What breaks the promise of a reserve; there is a guest behind every failure.
pub(super) fn breach(reserve: &Reserve, failed: &Failed) -> Option<Breach> {
    let facts = &reserve.facts;
    let (case, doubted) = match failed {
        Failed::Case(position) => (reserve.cases[*position].clone(), None),
        Failed::Doubt(doubt) => {
            // The worst set by the estimate, as it really is.
            let mut case = Case::new(doubt.dead.clone(), facts.hosts.len());
            complete(&mut case, facts, &mut TRIES.clone());
            (case, Some(doubt.guest))
        }
    };
    let guest = case.left.first().copied().or(doubted).and_then(|number| facts.guest(number))?;
    let names = case.dead.iter().map(|host| facts.views[*host].name.clone()).collect();
    let survivors = survivors(facts, &case);
    let rejections = (!case.is_covered()).then(|| rejections(facts, &survivors, guest)).flatten();
    Some(Breach {
        hosts: names,
        guest: guest.request.key.clone(),
        memory: guest.need.memory,
        vcpus: guest.request.vcpus,
        left: case.left.len(),
        remedies: remedies(facts, &case, &survivors, guest, rejections.as_ref()),
        rejections,
    })
}

/// The hosts that are left, with what the plan of the case brings to them.
fn survivors(facts: &Facts, case: &Case) -> Vec<HostView> {
    let mut views = facts.views.clone();
    for one in case.plan.moves() {
        if let Some(guest) = facts.guest(one.guest) {
            occupy(&mut views[one.to], &guest.request);
        }
    }
    let survives = |(host, _): &(usize, HostView)| !case.dead.contains(host);
    views.into_iter().enumerate().filter(survives).map(|(_, view)| view).collect()
}

/// Why placement would not take the guest; none if it would.
fn rejections(facts: &Facts, survivors: &[HostView], guest: &GuestFacts) -> Option<Rejections> {
    let cpu_overcommit = i32::try_from(facts.overcommit).unwrap_or(i32::MAX);
    let policy = PlacementPolicy { cpu_overcommit, ..PlacementPolicy::default() };
    let snapshot = Snapshot { hosts: survivors.to_vec(), policy };
    let request = Request { protected: false, ..Request::clone(&guest.request) };
    match place(&snapshot, std::slice::from_ref(&request)).pop() {
        Some(Verdict::Unplaced(rejections)) => Some(rejections),
        Some(Verdict::Placed { .. }) | None => None,
    }
}

fn remedies(
    facts: &Facts,
    case: &Case,
    survivors: &[HostView],
    guest: &GuestFacts,
    rejections: Option<&Rejections>,
) -> Vec<Remedy> {
    let mut remedies: Vec<Remedy> = Vec::new();
    let class = &facts.classes[guest.class];
    let suits = |name: &str| {
        facts.views.iter().position(|view| view.name == name).is_some_and(|at| class.contains(at))
    };
    let suiting = || survivors.iter().filter(|view| suits(&view.name));
    if let Some(view) = suiting().find(|view| view.maintenance) {
        remedies.push(Remedy::EndMaintenance(view.name.clone()));
    }
    if let Some(view) = suiting().find(|view| !view.ready && !view.maintenance) {
        remedies.push(Remedy::BringBack(view.name.clone()));
    }
    if let Some(view) = suiting().find(|view| view.ready && !view.maintenance && !view.schedulable) {
        remedies.push(Remedy::LetIn(view.name.clone()));
    }
    let apart = |view: &&HostView| match guest.group {
        Some(_) => {
            guest.request.anti_affinity.as_ref().is_none_or(|(group, _)| !view.groups.contains_key(group))
        }
        None => true,
    };
    let lacking = suiting()
        .filter(|view| view.ready && !view.maintenance && view.schedulable)
        .filter(apart)
        .map(|view| {
            let free = Room::left(view, facts.overcommit);
            (guest.need.less(free), view)
        });
    let least = lacking.filter(|(lack, _)| lack.memory > 0 || lack.vcpus > 0);
    if let Some((lack, view)) = least.min_by_key(|(lack, view)| (facts.weight(*lack), view.name.clone())) {
        let (memory, vcpus) = (lack.memory, lack.vcpus);
        remedies.push(Remedy::Room { host: view.name.clone(), memory, vcpus });
    }
    for reason in rejections.into_iter().flat_map(|rejections| rejections.counts().keys()) {
        match reason {
            Reason::NetworkNotAttached(network) => remedies.push(Remedy::AttachNetwork(network.clone())),
            Reason::RepositoryNotAttached(repository) => {
                remedies.push(Remedy::AttachRepository(repository.clone()));
            }
            Reason::InMaintenance
            | Reason::NotReady
            | Reason::NotSchedulable
            | Reason::SelectorMismatch
            | Reason::ModeNotOffered(_)
            | Reason::DoesNotReceive(_)
            | Reason::NotOnMigrationNetwork
            | Reason::CpuFeatureMissing(_)
            | Reason::KernelMissing(_)
            | Reason::BootLoaderMissing(_)
            | Reason::FirmwareMissing(_)
            | Reason::DiskElsewhere(_)
            | Reason::ImageMissing(..)
            | Reason::AntiAffinity
            | Reason::RepositoryFull(_)
            | Reason::TooFewCpus
            | Reason::Vcpus
            | Reason::Memory
            | Reason::FailureReserve => {}
        }
    }
    if case.dead.len() < facts.hosts.len() || remedies.is_empty() {
        remedies.push(Remedy::AnotherHost);
    }
    remedies.push(Remedy::Unprotect(guest.request.key.clone()));
    remedies
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hosts, guest, memory, vcpus, left, rejections, remedies } = self;
        let size = format!("{guest} ({}, {vcpus} vCPUs)", gib(*memory));
        let others = match left.saturating_sub(1) {
            0 => String::new(),
            1 => " and another".to_owned(),
            more => format!(" and {more} others"),
        };
        match (hosts.as_slice(), rejections) {
            ([], Some(why)) => {
                write!(f, "the host of {size} does not report, and no other can take it{others}: {why}")?
            }
            ([], None) => {
                write!(f, "the host of {size} does not report, and no place was found for it{others}")?
            }
            (hosts, Some(why)) => {
                write!(
                    f,
                    "if {} {}, {size}{others} cannot start elsewhere: {why}",
                    listed(hosts),
                    die(hosts)
                )?;
            }
            (hosts, None) if *left > 0 => {
                write!(f, "if {} {}, no place was found for {size}{others}", listed(hosts), die(hosts))?;
            }
            (hosts, None) => write!(
                f,
                "it is not certain that all would find a place if {} {}, the largest {size}",
                listed(hosts),
                die(hosts)
            )?,
        }
        write!(f, "; to restore it: ")?;
        for (index, remedy) in remedies.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", or " };
            write!(f, "{separator}{remedy}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Room { host, memory, vcpus: 0 } => write!(f, "free {} more on {host}", gib(*memory)),
            Self::Room { host, memory: 0, vcpus } => write!(f, "free {vcpus} more vCPUs on {host}"),
            Self::Room { host, memory, vcpus } => {
                write!(f, "free {} and {vcpus} vCPUs more on {host}", gib(*memory))
            }
            Self::EndMaintenance(host) => write!(f, "end the maintenance of {host}"),
            Self::BringBack(host) => write!(f, "bring {host} back"),
            Self::LetIn(host) => write!(f, "make {host} schedulable"),
            Self::AttachNetwork(network) => write!(f, "attach network {network} to another host"),
            Self::AttachRepository(repository) => write!(f, "attach repository {repository} to another host"),
            Self::AnotherHost => f.write_str("add a host"),
            Self::Unprotect(guest) => write!(f, "no longer protect {guest}"),
        }
    }
}

/// Names in a sentence, at most four of them.
fn listed(hosts: &[String]) -> String {
    match hosts {
        [] => String::new(),
        [host] => host.clone(),
        [first @ .., last] if first.len() < 4 => format!("{} and {last}", first.join(", ")),
        [first, second, third, others @ ..] => {
            format!("{first}, {second}, {third} and {} others", others.len())
        }
        [_, _] => hosts.join(" and "),
    }
}

fn die(hosts: &[String]) -> &'static str {
    if hosts.len() == 1 { "dies" } else { "die" }
}

/// Bytes in GiB, rounded up to a tenth, so that what is asked for suffices.
fn gib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10).div_ceil(GIB);
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}
