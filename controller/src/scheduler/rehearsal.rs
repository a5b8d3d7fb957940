//! The scheduler on mirrors that are filled by hand, to be measured without a server.

use super::{Scheduler, standing};
use crate::{placement::reserve::Promise, view::View, watched::Watched};
use kube::{core::DeserializeGuard, runtime::watcher::Event};
use kubexen_crds::{Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, Volume};

/// A pool as a leading controller knows it, from changes that it is told as by a watch. What it says is computed as the controller
/// computes it.
#[derive(Debug, Default)]
pub struct Rehearsal {
    view: View,
    scheduler: Scheduler,
}

impl Rehearsal {
    /// The Pool is so now.
    pub fn pool(&self, pool: Pool) {
        self.apply(pool);
    }

    /// A Host is so now.
    pub fn host(&self, host: Host) {
        self.apply(host);
    }

    /// A StorageRepository is so now.
    pub fn repository(&self, repository: StorageRepository) {
        self.apply(repository);
    }

    /// A Network is so now.
    pub fn network(&self, network: Network) {
        self.apply(network);
    }

    /// A VirtualDisk is so now.
    pub fn disk(&self, disk: VirtualDisk) {
        self.apply(disk);
    }

    /// A Volume is so now.
    pub fn volume(&self, volume: Volume) {
        self.apply(volume);
    }

    /// A VirtualMachine is so now.
    pub fn machine(&self, machine: VirtualMachine) {
        self.apply(machine);
    }

    /// A Domain is so now.
    pub fn domain(&self, domain: Domain) {
        self.apply(domain);
    }

    /// A Domain is gone.
    pub fn domain_gone(&self, domain: Domain) {
        self.take(Event::Delete(DeserializeGuard(Ok(domain))));
    }

    /// A term of leadership begins, in which nothing is known but what the mirrors show.
    pub fn begin_term(&self) {
        self.scheduler.clear();
    }

    /// What is promised now; none if no failure is to be tolerated.
    #[must_use]
    pub fn promise(&self) -> Option<Promise> {
        standing(&self.view, &self.scheduler).promise
    }

    fn apply<K: Watched>(&self, object: K) {
        self.take(Event::Apply(DeserializeGuard(Ok(object))));
    }

    fn take<K: Watched>(&self, event: Event<DeserializeGuard<K>>) {
        K::mirror(&self.view).take(event, &|change| K::index(&self.view, change));
    }
}
