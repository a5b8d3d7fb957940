//! Whose turn it is: the oldest migrations first, as many as the Pool's limits allow.

use super::{is_empty, key_of, machine_of, movable, whereabouts};
use crate::{
    context::Context,
    evacuation,
    view::{View, host_of_namespace},
};
use kubexen_crds::{MigrationPhase, MigrationRole, VirtualMachineMigration, pool::MigrationPolicy};
use kubexen_runtime::Key;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Migrations take turns in beginning: each counts those that began before it.
pub(crate) type Starting = tokio::sync::Mutex<()>;

/// How many moves go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) pool: usize,
    pub(crate) hosts: BTreeMap<String, usize>,
}

impl Load {
    pub(crate) fn of_host(&self, host: &str) -> usize {
        self.hosts.get(host).copied().unwrap_or(0)
    }

    fn of(moves: &BTreeMap<Key, (String, String)>) -> Self {
        let mut load = Self { pool: moves.len(), ..Self::default() };
        for (source, destination) in moves.values() {
            load.add(source);
            load.add(destination);
        }
        load
    }

    pub(crate) fn add(&mut self, host: &str) {
        *self.hosts.entry(host.to_owned()).or_default() += 1;
    }
}

/// Whether a migration may begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It may. With the load that its destination is chosen by.
    Now(Load),
    /// As many moves as the Pool allows go on already, or are before it.
    PoolBusy(usize),
    /// The host that the guest is on takes part in as many moves as the Pool allows, or will before it.
    HostBusy(String, usize),
    /// Another migration of the same machine comes first.
    MachineBusy(Key),
    /// Its guest does not run, so it keeps no other from beginning.
    NotRunningYet,
}

/// The policy of the pool.
pub(crate) fn policy(view: &View) -> MigrationPolicy {
    view.pools.list().first().map(|pool| pool.spec.migration.clone()).unwrap_or_default()
}

pub(crate) fn limit(number: i32) -> usize {
    usize::try_from(number).unwrap_or(1).max(1)
}

/// The moves that go on, with source and destination: those on record, and those whose record is not written yet or was
/// deleted, by their Domains.
fn begun(view: &View) -> BTreeMap<Key, (String, String)> {
    let mut moves: BTreeMap<Key, (String, String)> = BTreeMap::new();
    for migration in view.migrations.list() {
        let Some(status) = &migration.status else { continue };
        if let (Some(source), Some(destination)) = (&status.source, &status.destination)
            && !status.phase.is_some_and(MigrationPhase::is_final)
        {
            moves.insert(Key::of(&*migration), (source.clone(), destination.clone()));
        }
    }
    for domain in view.domains.list() {
        let (Some(migration), Some(key)) = (&domain.spec.migration, key_of(&domain)) else { continue };
        if migration.role == MigrationRole::Destination && is_empty(&domain) && !is_over(view, &key) {
            let namespace = domain.metadata.namespace.as_deref().unwrap_or_default();
            let destination = host_of_namespace(namespace).unwrap_or_default();
            moves.entry(key).or_insert_with(|| (migration.peer.clone(), destination.to_owned()));
        }
    }
    moves
}

fn is_over(view: &View, migration: &Key) -> bool {
    let found = view.migrations.get(migration);
    found.and_then(|migration| migration.status.as_ref()?.phase).is_some_and(MigrationPhase::is_final)
}

/// Migrations that are neither over nor among those that have begun, oldest first.
fn waiting(view: &View, begun: &BTreeMap<Key, (String, String)>) -> Vec<Arc<VirtualMachineMigration>> {
    let mut waiting: Vec<_> = view
        .migrations
        .list()
        .into_iter()
        .filter(|migration| {
            let phase = migration.status.as_ref().and_then(|status| status.phase);
            !phase.is_some_and(MigrationPhase::is_final) && !begun.contains_key(&Key::of(&**migration))
        })
        .collect();
    waiting.sort_by_cached_key(|migration| {
        (migration.metadata.creation_timestamp.as_ref().map(|created| created.0), Key::of(&**migration))
    });
    waiting
}

/// Goes through the waiting migrations in their order and tells each one's turn, until `told` says stop.
fn tell(view: &View, mut told: impl FnMut(&VirtualMachineMigration, Turn) -> bool) {
    if view.migrations.keys().is_empty() {
        return;
    }
    let policy = policy(view);
    let (of_host, of_pool) = (limit(policy.max_per_host), limit(policy.max_per_pool));
    let begun = begun(view);
    let mut load = Load::of(&begun);
    let mut machines: BTreeMap<Key, Key> = view
        .domains
        .list()
        .iter()
        .filter(|domain| is_empty(domain))
        .filter_map(|domain| {
            let machine = &domain.spec.virtual_machine;
            Some((Key::new(&machine.namespace, &machine.name), key_of(domain)?))
        })
        .collect();
    for migration in waiting(view, &begun) {
        let key = Key::of(&*migration);
        let machine = machine_of(&migration);
        let source = source(view, &migration);
        let turn = match (machines.get(&machine), &source) {
            (_, _) if !runs(view, &machine) => Turn::NotRunningYet,
            (Some(before), _) if *before != key => Turn::MachineBusy(before.clone()),
            (_, _) if load.pool >= of_pool => Turn::PoolBusy(of_pool),
            (_, Some(source)) if load.of_host(source) >= of_host => Turn::HostBusy(source.clone(), of_host),
            (_, _) => Turn::Now(load.clone()),
        };
        machines.entry(machine).or_insert_with(|| key.clone());
        let goes = matches!(turn, Turn::Now(_));
        if !told(&migration, turn) {
            return;
        }
        if goes {
            load.pool += 1;
            if let Some(source) = source {
                load.add(&source);
            }
        }
    }
}

/// The moves that go on, and those that wait for their turn as far as it is known where from and where to.
pub(crate) fn expected(view: &View) -> Load {
    let begun = begun(view);
    let mut load = Load::of(&begun);
    let waiting = waiting(view, &begun).into_iter();
    for migration in waiting.filter(|migration| runs(view, &machine_of(migration))) {
        load.pool += 1;
        if let Some(source) = source(view, &migration) {
            load.add(&source);
        }
        if let Some(destination) = &migration.spec.host {
            load.add(destination);
        }
    }
    load
}

/// Whether the guest of a machine runs, in a Domain that it has not left.
fn runs(view: &View, machine: &Key) -> bool {
    whereabouts(view.domains_of_machine(machine)).0.iter().any(|domain| movable::runs(domain))
}

/// The host that the machine of a migration is on.
fn source(view: &View, migration: &VirtualMachineMigration) -> Option<String> {
    let machine = view.machines.get(&machine_of(migration))?;
    machine.status.as_ref()?.host.clone()
}

/// The turn of one migration.
pub(crate) fn turn(view: &View, migration: &VirtualMachineMigration) -> Turn {
    let mut turn = None;
    tell(view, |other, its_turn| {
        if Key::of(other) == Key::of(migration) {
            turn = Some(its_turn);
        }
        turn.is_none()
    });
    turn.unwrap_or_else(|| Turn::Now(Load::of(&begun(view))))
}

/// Queues the migrations whose turn it is, and the hosts that wait to begin more: something ended, or the limits changed.
pub(crate) fn wake_next(context: &Context) {
    evacuation::wake_all(context);
    let most = limit(policy(&context.view).max_per_pool);
    let mut next = BTreeSet::new();
    tell(&context.view, |migration, turn| {
        if matches!(turn, Turn::Now(_)) {
            next.insert(Key::of(migration));
        }
        next.len() < most
    });
    context.queues.add_all(&context.queues.migrations, next);
}
