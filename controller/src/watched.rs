//! The kinds that the controller watches: where each is mirrored, what refers to what, and who has to look again
//! when one of them changes.
//!
//! Every rule here only wakes. What is to be done is decided by those who are woken, from what they see then; waking
//! too often costs microseconds, waking too seldom leaves something undone until the next change.

mod hosts;
mod machines;
mod resources;

use crate::{
    context::{Context, Queues},
    view::{View, host_of_namespace, is_deleting},
};
use kube::{Api, Client, Resource, core::DeserializeGuard, runtime::watcher};
use kubexen_crds::{Domain, VirtualMachine, Volume};
use kubexen_runtime::{Key, Mirror, WorkQueue, mirror::Change};
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::BTreeSet, fmt::Debug, sync::Arc};

/// A kind that the controller watches.
pub(crate) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
{
    /// Where the kind is mirrored.
    fn mirror(view: &View) -> &Mirror<Self>;

    /// The objects of a namespace; for cluster-scoped kinds the namespace is empty.
    fn api(client: &Client, namespace: &str) -> Api<Self>;

    /// The objects of all namespaces.
    fn api_all(client: &Client) -> Api<Self> {
        Api::all(client.clone())
    }

    /// The objects of all namespaces, one that cannot be decoded being no obstacle for the others.
    fn api_guarded(client: &Client) -> Api<DeserializeGuard<Self>> {
        Api::all(client.clone())
    }

    /// Which objects are watched.
    fn selection() -> watcher::Config {
        watcher::Config::default()
    }

    /// The queue of the kind, if it has one.
    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>>;

    /// Notes what the object refers to.
    fn index(_view: &View, _change: &Change<'_, Self>) {}

    /// Queues other objects that may have to act.
    fn wake(context: &Context, change: &Change<'_, Self>);
}

/// What `of` says of the object before and after.
fn differs<K, T: PartialEq>(change: &Change<'_, K>, of: impl Fn(&K) -> T) -> bool {
    change.before.map(|object| of(object)) != change.after.map(|object| of(object))
}

/// Whether something holds before or after a change.
fn any<K>(change: &Change<'_, K>, of: impl Fn(&K) -> bool) -> bool {
    change.before.into_iter().chain(change.after).any(|object| of(object))
}

/// What `of` says of the object, before and after taken together.
fn either<K>(change: &Change<'_, K>, of: impl Fn(&K) -> BTreeSet<Key>) -> BTreeSet<Key> {
    [change.before, change.after].into_iter().flatten().flat_map(|object: &Arc<K>| of(object)).collect()
}

/// What `of` says of the object as it is now; nothing if it is gone.
fn now<K>(change: &Change<'_, K>, of: impl Fn(&K) -> BTreeSet<Key>) -> BTreeSet<Key> {
    change.after.map(|object| of(object)).unwrap_or_default()
}

fn attached_disks(machine: &VirtualMachine) -> BTreeSet<Key> {
    let namespace = machine.metadata.namespace.as_deref().unwrap_or_default();
    machine.spec.disks.iter().map(|disk| Key::new(namespace, &disk.disk)).collect()
}

fn attached_networks(machine: &VirtualMachine) -> BTreeSet<Key> {
    machine.spec.interfaces.iter().map(|interface| Key::cluster(&interface.network)).collect()
}

/// The machine that a Domain is for.
pub(crate) fn machine_of(domain: &Domain) -> BTreeSet<Key> {
    let machine = &domain.spec.virtual_machine;
    BTreeSet::from([Key::new(&machine.namespace, &machine.name)])
}

/// The disk that a Volume is for.
pub(crate) fn disk_of(volume: &Volume) -> BTreeSet<Key> {
    let disk = &volume.spec.virtual_disk;
    BTreeSet::from([Key::new(&disk.namespace, &disk.name)])
}

/// What these disks' machines need may be something else now.
fn touch_users(view: &View, disks: BTreeSet<Key>) {
    for disk in disks {
        view.touched.machines(view.machines_of_disk.to(&disk));
    }
}

/// A host in maintenance looks at every change of what is there.
fn wake_emptied_host(context: &Context, namespace: &str) {
    if let Some(host) = host_of_namespace(namespace).filter(|host| context.view.is_in_maintenance(host)) {
        context.queues.add(&context.queues.hosts, Key::cluster(host));
    }
}

/// A host that is being deleted waits for the last object in its namespace.
fn wake_deleted_host(context: &Context, namespace: &str) {
    let Some(host) = host_of_namespace(namespace).map(Key::cluster) else { return };
    if context.view.hosts.get(&host).is_some_and(|host| is_deleting(&*host)) {
        context.queues.add(&context.queues.hosts, host);
    }
}
