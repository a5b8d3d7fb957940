//! What has changed in the mirrors since the scheduler looked last.

use crate::view::host_of_namespace;
use kubexen_runtime::Key;
use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What has changed in the mirrors since the scheduler looked last. Marking too much costs microseconds.
#[derive(Debug, Default)]
pub(crate) struct Touched(Mutex<Marks>);

/// What has to be looked at anew.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Everything.
    pub(super) all: bool,
    /// Hosts, what they are and what is used of them.
    pub(super) hosts: BTreeSet<String>,
    /// Hosts, what disks use of their locations.
    pub(super) volumes: BTreeSet<String>,
    /// Machines, what they need and where they are.
    pub(super) machines: BTreeSet<Key>,
}

impl Touched {
    /// Something that any machine or host may depend on.
    pub(crate) fn all(&self) {
        self.lock().all = true;
    }

    /// A host, or a Domain in its namespace.
    pub(crate) fn host_of(&self, namespace: &str) {
        if let Some(host) = host_of_namespace(namespace) {
            self.host(host);
        }
    }

    /// A host.
    pub(crate) fn host(&self, host: &str) {
        self.lock().hosts.insert(host.to_owned());
    }

    /// Volumes in these namespaces.
    pub(crate) fn volumes<'a>(&self, namespaces: impl IntoIterator<Item = &'a str>) {
        let hosts = namespaces.into_iter().filter_map(host_of_namespace).map(str::to_owned);
        self.lock().volumes.extend(hosts);
    }

    /// These machines, what they refer to, or where they are.
    pub(crate) fn machines(&self, machines: impl IntoIterator<Item = Key>) {
        self.lock().machines.extend(machines);
    }

    /// What has changed since this was called last.
    pub(super) fn take(&self) -> Marks {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Marks> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
