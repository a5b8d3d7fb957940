//! Machines, the Domains that are made for them, and their moves.

use super::{
    Watched, any, attached_disks, attached_networks, differs, either, machine_of, now, touch_users,
    wake_deleted_host, wake_emptied_host,
};
use crate::{
    context::{Context, Queues},
    migration, pool,
    view::{View, disks_of, is_deleting, suspended_disks, uid},
    virtual_machine::is_protected,
};
use kube::{Api, Client, ResourceExt};
use kubexen_crds::{Domain, MigrationPhase, VirtualMachine, VirtualMachineMigration, names::EVACUATES};
use kubexen_runtime::{Key, Mirror, WorkQueue, mirror::Change};
use std::collections::BTreeSet;

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
