//! What machines refer to: disks, their Volumes, networks and repositories.

use super::{Watched, differs, disk_of, either, now, touch_users, wake_deleted_host};
use crate::{
    context::{Context, Queues},
    pool,
    view::{View, has_finalizer, is_deleting, uid, user_key},
    virtual_machine::suspension::saved_machine,
};
use kube::{Api, Client};
use kubexen_crds::{Network, StorageRepository, VirtualDisk, Volume};
use kubexen_runtime::{Key, Mirror, WorkQueue, mirror::Change};
use std::collections::BTreeSet;

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
        // Of the Volumes of a disk one is counted.
        let disks = either(change, disk_of);
        let volumes: Vec<_> = disks.iter().flat_map(|disk| view.volumes_of_disk(disk)).collect();
        let beside = volumes.iter().filter_map(|volume| volume.metadata.namespace.as_deref());
        view.touched.volumes(beside.chain([change.key.namespace.as_str()]));
        touch_users(view, disks);
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
