//! Hosts, their heartbeats, and the pool that they make.

use super::{Watched, differs, machine_of};
use crate::{
    context::{Context, Queues},
    evacuation, migration,
    view::{View, host_of_namespace, is_deleting, is_ready, user_key},
    virtual_machine::is_protected,
};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, runtime::watcher};
use kubexen_crds::{
    Host, Pool,
    host::Location,
    names::{HEARTBEAT_LEASE, host_namespace},
};
use kubexen_runtime::{Key, Mirror, WorkQueue, mirror::Change};

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
        // Agents hear of the policy, and of the store's epoch, from their Hosts.
        let epoch =
            |pool: &Self| pool.status.as_ref().and_then(|status| status.availability.as_ref()?.epoch.clone());
        if differs(change, |pool| (pool.spec.availability.clone(), epoch(pool))) {
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
