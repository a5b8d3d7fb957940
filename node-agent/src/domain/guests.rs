//! What guests say of themselves, as it was read last.
//!
//! Guests are read from time to time and not when a Domain is looked at. What is remembered of a guest changes at most
//! once in [`QUIET`], however often the guest changes its mind, and so does what is written of it.

use crate::hypervisor::{DomId, DomainUsage, GuestFacts, Hypervisor};
use kubexen_crds::{ByteQuantity, Domain, GuestInterface, GuestMemory, GuestStatus};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tracing::debug;
use uuid::Uuid;

/// Shortest time between two changes of what is remembered of a guest.
pub const QUIET: Duration = Duration::from_secs(30);

/// The published use of memory stays while the figure is nearer to it than this part of the whole.
const MEMORY_SLACK: u64 = 16;

/// What guests said last.
#[derive(Debug, Default)]
pub struct Guests(Mutex<BTreeMap<Uuid, Said>>);

/// What one guest said.
#[derive(Clone, Debug)]
struct Said {
    /// The domain that it was read from; none before it was read.
    domid: Option<DomId>,
    facts: GuestFacts,
    /// When it was last something else.
    changed: Option<Instant>,
}

impl Guests {
    /// What the guest in this domain said last; none if it was not read yet.
    #[must_use]
    pub fn said(&self, guest: Uuid, domid: DomId) -> Option<GuestFacts> {
        self.lock().get(&guest).filter(|said| said.domid == Some(domid)).map(|said| said.facts.clone())
    }

    /// Reads the guests of these domains whose time has come, and returns those that say something else than before.
    ///
    /// `published` are guests of which something is written down. What the agent that wrote it knew of the time is lost, so
    /// they are read only after [`QUIET`].
    pub async fn read(
        &self,
        hypervisor: &dyn Hypervisor,
        domains: &[DomainUsage],
        published: &BTreeSet<Uuid>,
    ) -> Vec<Uuid> {
        let mut different = Vec::new();
        for domain in domains {
            if !self.is_due(domain.uuid, published.contains(&domain.uuid)) {
                continue;
            }
            match hypervisor.guest(domain.uuid).await {
                Ok(facts) => {
                    if self.learn(domain.uuid, domain.domid, facts) {
                        different.push(domain.uuid);
                    }
                }
                Err(error) => debug!(guest = %domain.uuid, %error, "what the guest says was not read"),
            }
        }
        let present: BTreeSet<Uuid> = domains.iter().map(|domain| domain.uuid).collect();
        self.lock().retain(|guest, _| present.contains(guest));
        different
    }

    fn is_due(&self, guest: Uuid, published: bool) -> bool {
        let first =
            || Said { domid: None, facts: GuestFacts::default(), changed: published.then(Instant::now) };
        self.lock()
            .entry(guest)
            .or_insert_with(first)
            .changed
            .is_none_or(|changed| changed.elapsed() >= QUIET)
    }

    /// Remembers what a guest says, and tells whether it is something else than before.
    fn learn(&self, guest: Uuid, domid: DomId, facts: GuestFacts) -> bool {
        let mut guests = self.lock();
        let Some(said) = guests.get_mut(&guest) else { return false };
        let different = said.facts != facts || (said.domid != Some(domid) && !facts.is_empty());
        if different {
            said.changed = Some(Instant::now());
        }
        (said.domid, said.facts) = (Some(domid), facts);
        different
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Uuid, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is to be written of the guest of a Domain whose domain is there. As long as the guest was not read, what the object
/// says of the same domain stays.
#[must_use]
pub fn status(domain: &Domain, domid: DomId, said: Option<&GuestFacts>) -> Option<GuestStatus> {
    let before = domain.status.as_ref().filter(|status| status.domid == Some(i32::from(domid.0)));
    let before = before.and_then(|status| status.guest.as_ref());
    let Some(said) = said else { return before.cloned() };
    if said.is_empty() {
        return None;
    }
    let interface = |(number, addresses): (&u8, &Vec<std::net::IpAddr>)| {
        let mut interfaces = domain.spec.machine.interfaces.iter();
        let interface = interfaces.find(|interface| interface.index == i32::from(*number))?;
        let addresses = addresses.iter().map(ToString::to_string).collect();
        Some(GuestInterface { name: interface.name.clone(), addresses })
    };
    Some(GuestStatus {
        os_name: said.os_name.clone(),
        os_version: said.os_version.clone(),
        kernel_version: said.kernel_version.clone(),
        agent_version: said.agent_version.clone(),
        memory: memory(said, before.and_then(|before| before.memory.as_ref())),
        interfaces: said.addresses.iter().filter_map(interface).collect(),
    })
}

fn memory(said: &GuestFacts, before: Option<&GuestMemory>) -> Option<GuestMemory> {
    let said = said.memory?;
    let (total, used) = (said.total_kib * 1024, (said.total_kib - said.free_kib) * 1024);
    let near = |before: &&GuestMemory| {
        before.total.bytes() == Ok(total)
            && before.used.bytes().is_ok_and(|before| before.abs_diff(used) < total / MEMORY_SLACK)
    };
    let told =
        || GuestMemory { total: ByteQuantity::from_bytes(total), used: ByteQuantity::from_bytes(used) };
    Some(before.filter(near).cloned().unwrap_or_else(told))
}

#[cfg(test)]
mod tests;
