//! The kinds that the controller watches: where each is mirrored, what refers to what, and who has to look again
//! when one of them changes.
//!
//! Every rule here only wakes. What is to be done is decided by those who are woken, from what they see then; waking
//! too often costs microseconds, waking too seldom leaves something undone until the next change.

use crate::{
    context::{Context, Queues},
    evacuation, migration, pool,
    view::{
        View, disks_of, has_finalizer, host_of_namespace, is_deleting, is_ready, suspended_disks, uid,
        user_key,
    },
    virtual_machine::{is_protected, suspension::saved_machine},
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, Resource, ResourceExt, core::DeserializeGuard, runtime::watcher};
use kubexen_crds::{
    Domain, Host, MigrationPhase, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine,
    VirtualMachineMigration, Volume,
    host::Location,
    names::{EVACUATES, HEARTBEAT_LEASE, host_namespace},
};
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

impl Watched for VirtualMachine {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.machines
    }

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }

    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>> {
        Some(&queues.machines)
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        view.machines_of_disk.set(change.key, now(change, attached_disks));
        view.machines_of_network.set(change.key, now(change, attached_networks));
        view.suspended_of_disk.set(change.key, now(change, suspended_disks));
        view.touched.machines([change.key.clone()]);
        if differs(change, |machine| (uid(machine).to_owned(), machine.spec.placement.anti_affinity.clone()))
        {
            for domain in view.domains_of_machine.to(change.key) {
                view.touched.host_of(&domain.namespace);
            }
        }
        if differs(change, suspended_disks) {
            touch_users(view, either(change, suspended_disks));
        }
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        if differs(change, |machine| (is_deleting(machine), machine.spec.clone())) {
            pool::wake(context, any(change, is_protected));
        }
        // What was kept for one that was protected is free.
        if differs(change, is_protected) {
            context.scheduler.wake();
        }
        if differs(change, |machine| (is_deleting(machine), machine.spec.power_state)) {
            let migrations = context.view.migrations_of_machine.to(change.key);
            context.queues.add_all(&context.queues.migrations, migrations);
        }
        if differs(change, suspended_disks) {
            for disk in either(change, suspended_disks) {
                context.queues.add_all(&context.queues.machines, context.view.machines_of_disk.to(&disk));
                context.queues.add(&context.queues.disks, disk);
            }
        }
        // A network that is being deleted waits for the last machine that names it.
        if differs(change, attached_networks) {
            for key in either(change, attached_networks) {
                if context.view.networks.get(&key).is_some_and(|network| is_deleting(&*network)) {
                    context.queues.add(&context.queues.networks, key);
                }
            }
        }
    }
}

impl Watched for VirtualDisk {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.disks
    }

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }

    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>> {
        Some(&queues.disks)
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        let repository = |disk: &Self| BTreeSet::from([Key::cluster(&disk.spec.repository)]);
        view.disks_of_repository.set(change.key, now(change, repository));
        view.touched.machines(view.machines_of_disk.to(change.key));
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        // Of a disk's status, machines care for nothing but where it is.
        let usable = |disk: &Self| {
            let host = disk.status.as_ref().and_then(|status| status.host.clone());
            (uid(disk).to_owned(), is_deleting(disk), has_finalizer(disk), host)
        };
        if differs(change, usable) {
            context.queues.add_all(&context.queues.machines, context.view.machines_of_disk.to(change.key));
            let suspended =
                |disk: &Self| saved_machine(disk).map(|(machine, _)| machine).into_iter().collect();
            context.queues.add_all(&context.queues.machines, either(change, suspended));
            context.scheduler.wake();
            pool::wake(context, false);
        }
        if change.after.is_none()
            && let Some(disk) = change.before
        {
            context.queues.add(&context.queues.repositories, Key::cluster(&disk.spec.repository));
        }
    }
}

impl Watched for Network {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.networks
    }

    fn api(client: &Client, _namespace: &str) -> Api<Self> {
        Api::all(client.clone())
    }

    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>> {
        Some(&queues.networks)
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        if differs(change, |network| (uid(network).to_owned(), is_deleting(network), network.spec.clone())) {
            view.touched.all();
        }
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        if differs(change, |network| (uid(network).to_owned(), is_deleting(network), network.spec.clone())) {
            context.queues.add_all(&context.queues.machines, context.view.machines_of_network.to(change.key));
            context.scheduler.wake();
            pool::wake(context, false);
        }
    }
}

impl Watched for StorageRepository {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.repositories
    }

    fn api(client: &Client, _namespace: &str) -> Api<Self> {
        Api::all(client.clone())
    }

    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>> {
        Some(&queues.repositories)
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        if differs(change, |repository| {
            (uid(repository).to_owned(), is_deleting(repository), repository.spec.clone())
        }) {
            view.touched.all();
        }
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        if differs(change, |repository| {
            (uid(repository).to_owned(), is_deleting(repository), repository.spec.clone())
        }) {
            for disk in context.view.disks_of_repository.to(change.key) {
                context.queues.add_all(&context.queues.machines, context.view.machines_of_disk.to(&disk));
                context.queues.add(&context.queues.disks, disk);
            }
            context.scheduler.wake();
            pool::wake(context, false);
        }
    }
}

impl Watched for Host {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.hosts
    }

    fn api(client: &Client, _namespace: &str) -> Api<Self> {
        Api::all(client.clone())
    }

    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>> {
        Some(&queues.hosts)
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        view.touched.host(&change.key.name);
        let domains = view.domains_of_host(&change.key.name);
        view.touched.machines(domains.iter().flat_map(|domain| machine_of(domain)));
        // What machines are made of, and where disks are, depends on these.
        let kind = |host: &Self| {
            let status = host.status.clone().unwrap_or_default();
            let features = status.cpu.and_then(|cpu| cpu.feature_sets);
            let storage = |location: Location| (location.name, location.shared, location.id);
            (features, status.locations.into_iter().map(storage).collect::<Vec<_>>())
        };
        if differs(change, kind) {
            view.touched.all();
        }
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        let Context { view, queues, scheduler, .. } = context;
        if differs(change, is_ready) {
            let domains = view.domains_of_host(&change.key.name);
            queues.add_all(&queues.machines, domains.iter().flat_map(|domain| machine_of(domain)));
        }
        let protects = |host: &Self| {
            let said = host.status.as_ref().and_then(|status| status.protection.clone());
            said.map(|said| (said.state, said.message))
        };
        if differs(change, protects) {
            let domains = view.domains_of_host(&change.key.name);
            queues.add_all(&queues.machines, domains.iter().flat_map(|domain| machine_of(domain)));
        }
        let keeps = |host: &Self| {
            let locations =
                host.status.as_ref().map(|status| status.locations.as_slice()).unwrap_or_default();
            let storage = |location: &Location| (location.name.clone(), location.id.clone());
            (is_ready(host), is_deleting(host), locations.iter().map(storage).collect::<Vec<_>>())
        };
        if differs(change, keeps) {
            let volumes = view.volumes_of_host.to(&Key::cluster(host_namespace(&change.key.name)));
            queues.add_all(&queues.disks, volumes.iter().filter_map(|volume| user_key(&volume.name)));
        }
        let offers = |host: &Self| {
            let status = host.status.clone().unwrap_or_default();
            let labels = host.metadata.labels.clone();
            let room = (
                status.memory,
                status.cpu.map(|cpu| (cpu.count, cpu.feature_sets)),
                (status.locations, status.unusable_locations),
                status.uplinks,
            );
            let software = (status.kernels, status.boot_loaders, status.firmware, status.xen);
            (is_ready(host), is_deleting(host), host.spec.clone(), labels, room, software)
        };
        if differs(change, offers) {
            evacuation::wake_all(context);
            queues.add_all(&queues.networks, view.networks.keys());
            queues.add_all(&queues.repositories, view.repositories.keys());
            queues.add_all(&queues.pools, view.pools.keys());
            // Whether they can be protected depends on which hosts there are.
            let machines = view.machines.list();
            let protected = machines.iter().filter(|machine| is_protected(machine));
            queues.add_all(&queues.machines, protected.map(|machine| Key::of(&**machine)));
            scheduler.wake();
        }
    }
}

impl Watched for Pool {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.pools
    }

    fn api(client: &Client, _namespace: &str) -> Api<Self> {
        Api::all(client.clone())
    }

    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>> {
        Some(&queues.pools)
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        if differs(change, |pool| (pool.spec.clone(), pool.status.clone().and_then(|status| status.cpu))) {
            view.touched.all();
        }
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        let level = |pool: &Self| pool.status.as_ref().and_then(|status| status.cpu.clone());
        if differs(change, |pool| (pool.spec.clone(), level(pool))) {
            context.scheduler.wake();
            migration::wake_next(context);
        }
        // Agents hear of the policy from their Hosts.
        if differs(change, |pool| pool.spec.availability.clone()) {
            context.queues.add_all(&context.queues.hosts, context.view.hosts.keys());
        }
        let disarmed = |pool: &Self| pool.spec.availability.disarmed;
        if differs(change, disarmed) {
            let ends = !change.after.is_some_and(|pool| disarmed(pool));
            let machines = context.view.machines.list().into_iter().filter(|machine| is_protected(machine));
            let keys = machines.map(|machine| Key::of(&*machine));
            // When it ends, those on a host hear of it once that host can protect them again.
            let keys = keys.filter(|key| !ends || context.view.domains_of_machine(key).is_empty());
            context.queues.add_all(&context.queues.machines, keys);
        }
    }
}

impl Watched for Domain {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.domains
    }

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }

    fn queue(_queues: &Queues) -> Option<&WorkQueue<Key>> {
        None
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        let host = |domain: &Self| domain.metadata.namespace.iter().map(Key::cluster).collect();
        let addresses = |domain: &Self| {
            domain.spec.machine.interfaces.iter().map(|interface| Key::cluster(&interface.mac)).collect()
        };
        view.domains_of_machine.set(change.key, now(change, machine_of));
        view.domains_of_host.set(change.key, now(change, host));
        view.domains_of_disk.set(change.key, now(change, disks_of));
        view.domains_of_address.set(change.key, now(change, addresses));
        view.touched.host_of(&change.key.namespace);
        view.touched.machines(either(change, machine_of));
        if differs(change, disks_of) {
            touch_users(view, either(change, disks_of));
        }
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        let Context { view, queues, scheduler, .. } = context;
        queues.add_all(&queues.machines, either(change, machine_of));
        let used = |domain: &Self| {
            let held = domain.status.as_ref().and_then(|status| status.memory.clone());
            (domain.spec.protected, domain.spec.machine.clone(), domain.spec.migration.clone(), held)
        };
        if differs(change, used) {
            pool::wake(context, any(change, |domain| domain.spec.protected));
        }
        let migration = |domain: &Self| migration::key_of(domain).into_iter().collect();
        queues.add_all(&queues.migrations, either(change, migration));
        if differs(change, |domain| {
            domain.status.as_ref().map(|status| (status.phase, status.observed_generation))
        }) {
            for machine in either(change, machine_of) {
                queues.add_all(&queues.migrations, view.migrations_of_machine.to(&machine));
            }
        }
        if change.after.is_none() && change.before.is_some_and(|domain| domain.spec.migration.is_some()) {
            migration::wake_next(context);
        }
        if differs(change, disks_of) {
            for disk in either(change, disks_of) {
                // Machines that want the disk too.
                queues.add_all(&queues.machines, view.machines_of_disk.to(&disk));
                if view.disks.get(&disk).is_some_and(|disk| is_deleting(&*disk)) {
                    queues.add(&queues.disks, disk);
                }
            }
        }
        wake_emptied_host(context, &change.key.namespace);
        if change.after.is_none() {
            wake_deleted_host(context, &change.key.namespace);
            scheduler.wake();
        }
    }
}

impl Watched for VirtualMachineMigration {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.migrations
    }

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }

    fn queue(queues: &Queues) -> Option<&WorkQueue<Key>> {
        Some(&queues.migrations)
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        let machine = |migration: &Self| BTreeSet::from([migration::machine_of(migration)]);
        let host =
            |migration: &Self| migration.labels().get(EVACUATES).map(Key::cluster).into_iter().collect();
        view.migrations_of_machine.set(change.key, now(change, machine));
        view.migrations_of_evacuation.set(change.key, now(change, host));
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        let is_final = |migration: &Self| {
            migration.status.as_ref().and_then(|status| status.phase).is_some_and(MigrationPhase::is_final)
        };
        if change.after.is_none_or(|migration| is_final(migration)) {
            migration::wake_next(context);
        }
        let host =
            |migration: &Self| migration.labels().get(EVACUATES).map(Key::cluster).into_iter().collect();
        context.queues.add_all(&context.queues.hosts, either(change, host));
    }
}

impl Watched for Volume {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.volumes
    }

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }

    fn queue(_queues: &Queues) -> Option<&WorkQueue<Key>> {
        None
    }

    fn index(view: &View, change: &Change<'_, Self>) {
        let host = |volume: &Self| volume.metadata.namespace.iter().map(Key::cluster).collect();
        view.volumes_of_disk.set(change.key, now(change, disk_of));
        view.volumes_of_host.set(change.key, now(change, host));
        view.touched.volumes();
        touch_users(view, either(change, disk_of));
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        let Context { view, queues, scheduler, .. } = context;
        if let Some(disk) = user_key(&change.key.name) {
            if change.after.is_none() {
                queues.add_all(&queues.machines, view.machines_of_disk.to(&disk));
            }
            queues.add(&queues.disks, disk);
        }
        if change.after.is_none() {
            wake_deleted_host(context, &change.key.namespace);
            scheduler.wake();
        }
    }
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

impl Watched for Lease {
    fn mirror(view: &View) -> &Mirror<Self> {
        &view.heartbeats
    }

    fn api(client: &Client, namespace: &str) -> Api<Self> {
        Api::namespaced(client.clone(), namespace)
    }

    fn selection() -> watcher::Config {
        watcher::Config::default().labels("kubexen.io/heartbeat=true")
    }

    fn queue(_queues: &Queues) -> Option<&WorkQueue<Key>> {
        None
    }

    fn wake(context: &Context, change: &Change<'_, Self>) {
        let Some(host) =
            host_of_namespace(&change.key.namespace).filter(|_| change.key.name == HEARTBEAT_LEASE)
        else {
            return;
        };
        if change.after.is_some() {
            context.heartbeats.beat(host);
        } else {
            context.heartbeats.forget(host);
        }
        // A heartbeat of a host that is Ready changes nothing.
        if change.after.is_none() || !context.view.is_host_ready(host) {
            context.queues.add(&context.queues.hosts, Key::cluster(host));
        }
    }
}
