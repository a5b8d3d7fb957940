//! What is known of a migration at one moment.

use super::{
    key_of,
    movable::{self, Sends},
    turns::{self, Turn},
};
use crate::{
    context::Context,
    placement::{Rejections, Verdict},
    scheduler,
    view::{host_of_namespace, uid},
    virtual_machine::{problem::Problem, references},
};
use kubexen_crds::{Domain, DomainMigration, MigrationRole, VirtualMachine, VirtualMachineMigration};
use kubexen_runtime::Key;
use std::{collections::BTreeSet, sync::Arc};

/// What is known of a migration at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Observed {
    /// The migration; none if it was deleted and its Domains are left.
    pub(crate) migration: Option<Arc<VirtualMachineMigration>>,
    /// The machine that it names.
    pub(crate) machine: Option<Arc<VirtualMachine>>,
    /// The Domain that the guest leaves, or would.
    pub(crate) source: Option<Arc<Domain>>,
    /// Whether the source was told to send the guest.
    pub(crate) told_to_send: bool,
    /// The Domain that the guest goes to, once there is one.
    pub(crate) destination: Option<Arc<Domain>>,
    /// Domains on other hosts that were to be the destination too: one that was asked for and came late.
    pub(crate) surplus: Vec<Arc<Domain>>,
    /// What earlier migrations of the same name, which were deleted, have left to be ended.
    pub(crate) earlier: Vec<Self>,
    /// Where the destination's agent listens.
    pub(crate) address: Option<String>,
    /// Whether the source's host reports.
    pub(crate) source_ready: bool,
    /// What speaks for and against beginning; looked for only before it has begun.
    pub(crate) beginning: Option<Beginning>,
}

/// What speaks for and against beginning.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Beginning {
    /// Whether it is its turn.
    pub(crate) turn: Turn,
    /// Whether the host that is asked for exists; true if none is.
    pub(crate) named_host_exists: bool,
    /// Whether guests of this boot type can leave the source while they run.
    pub(crate) source_sends: Sends,
    /// The network that the Pool names for migrations, if the host that is asked for has no address on it.
    pub(crate) named_host_lacks: Option<String>,
    /// The destination, or why there is none; none if it is not its turn or there is no guest to place.
    pub(crate) choice: Option<Choice>,
}

/// What came of looking for a destination.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Choice {
    /// This host.
    Host(String),
    /// This host, when it takes part in fewer moves.
    Later(String),
    /// No host fits.
    None(Rejections),
    /// What the machine refers to is not there.
    Unresolved(Problem),
}

/// The host that a Domain is on.
pub(crate) fn host_of(domain: &Domain) -> &str {
    domain.metadata.namespace.as_deref().and_then(host_of_namespace).unwrap_or_default()
}

/// Looks at a migration; none if there is neither it nor a Domain that names it.
pub(crate) fn observe(context: &Context, key: &Key) -> Option<Observed> {
    let view = &context.view;
    let migration = view.migrations.get(key);
    let machine_key = match &migration {
        Some(migration) => super::machine_of(migration),
        None => {
            let left = view.domains.list().into_iter().find(|domain| key_of(domain).as_ref() == Some(key))?;
            Key::new(&key.namespace, &left.spec.virtual_machine.name)
        }
    };
    let domains = view.domains_of_machine(&machine_key);
    let earlier = match &migration {
        Some(migration) => left_by_earlier(key, uid(&**migration), &domains)
            .into_iter()
            .map(|earlier| look(context, &machine_key, &domains, None, |part| part.uid == earlier))
            .collect(),
        None => Vec::new(),
    };
    let migration_uid = migration.as_deref().map(|migration| uid(migration).to_owned());
    let ours = |part: &DomainMigration| {
        part.name == key.name && migration_uid.as_ref().is_none_or(|uid| part.uid == *uid)
    };
    Some(Observed { earlier, ..look(context, &machine_key, &domains, migration, ours) })
}

/// The uids of earlier migrations of this name that some of these Domains still take part in, or were left by.
fn left_by_earlier(key: &Key, migration_uid: &str, domains: &[Arc<Domain>]) -> BTreeSet<String> {
    let left = |domain: &&Arc<Domain>| super::under_way(domain).is_some() || super::is_empty(domain);
    let parts = domains.iter().filter(left).filter_map(|domain| domain.spec.migration.as_ref());
    let of_earlier = parts.filter(|part| part.name == key.name && part.uid != migration_uid);
    of_earlier.map(|part| part.uid.clone()).collect()
}

/// Looks at the migration whose part in a Domain is one of `ours`.
fn look(
    context: &Context,
    machine_key: &Key,
    domains: &[Arc<Domain>],
    migration: Option<Arc<VirtualMachineMigration>>,
    ours: impl Fn(&DomainMigration) -> bool,
) -> Observed {
    let view = &context.view;
    let machine = view.machines.get(machine_key);
    let ours = |domain: &Domain, role| {
        domain.spec.migration.as_ref().is_some_and(|part| part.role == role && ours(part))
    };
    let told = domains.iter().find(|domain| ours(domain, MigrationRole::Source)).cloned();
    let peer = told.as_ref().and_then(|told| Some(told.spec.migration.as_ref()?.peer.clone()));
    let mut surplus: Vec<_> =
        domains.iter().filter(|domain| ours(domain, MigrationRole::Destination)).cloned().collect();
    // The one that has the guest, or else the one that the guest is sent to.
    surplus.sort_by_key(|domain| (super::is_empty(domain), peer.as_deref() != Some(host_of(domain))));
    let destination = (!surplus.is_empty()).then(|| surplus.remove(0));
    surplus.retain(|domain| super::is_empty(domain));
    let told_to_send = told.is_some();
    let source = match told {
        Some(source) => Some(source),
        // Before it has begun at the source, the source is the Domain that the guest is in.
        None => domains
            .iter()
            .find(|domain| !super::is_empty(domain) && !ours(domain, MigrationRole::Destination))
            .cloned(),
    };
    // The destination may have come and gone before the record says that there was one.
    let begun = told_to_send
        || destination.is_some()
        || migration.as_ref().and_then(|migration| migration.status.as_ref()).is_some_and(|status| {
            status.destination.is_some() || status.phase.is_some_and(|phase| phase.is_final())
        });
    let beginning = match (&migration, begun) {
        (Some(migration), false) => {
            Some(beginning(context, migration, machine.as_deref(), source.as_deref()))
        }
        (Some(_), true) | (None, _) => None,
    };
    Observed {
        address: destination.as_deref().and_then(|domain| movable::address(view, host_of(domain))),
        source_ready: source.as_deref().is_some_and(|domain| view.is_host_ready(host_of(domain))),
        migration,
        machine,
        source,
        told_to_send,
        destination,
        surplus,
        earlier: Vec::new(),
        beginning,
    }
}

fn beginning(
    context: &Context,
    migration: &VirtualMachineMigration,
    machine: Option<&VirtualMachine>,
    source: Option<&Domain>,
) -> Beginning {
    let view = &context.view;
    let turn = turns::turn(view, migration);
    let choice = match (&turn, machine, source) {
        (Turn::Now(load), Some(machine), Some(source)) => Some(match references::resolve(view, machine) {
            Ok(resolved) => {
                let find = |may_be: &dyn Fn(&str) -> bool| {
                    scheduler::find_destination(context, machine, &resolved, &source.spec.machine, |host| {
                        let named = migration.spec.host.as_deref();
                        host != host_of(source) && named.is_none_or(|named| named == host) && may_be(host)
                    })
                };
                let most = turns::limit(turns::policy(view).max_per_host);
                match (find(&|host| load.of_host(host) < most), find(&|_| true)) {
                    (Verdict::Placed { host }, _) => Choice::Host(host),
                    (Verdict::Unplaced(_), Verdict::Placed { host }) => Choice::Later(host),
                    (Verdict::Unplaced(_), Verdict::Unplaced(why)) => Choice::None(why),
                }
            }
            Err(problem) => Choice::Unresolved(problem),
        }),
        (
            Turn::Now(_)
            | Turn::PoolBusy(_)
            | Turn::HostBusy(..)
            | Turn::MachineBusy(_)
            | Turn::NotRunningYet,
            _,
            _,
        ) => None,
    };
    Beginning {
        turn,
        named_host_exists: migration
            .spec
            .host
            .as_deref()
            .is_none_or(|name| view.hosts.get(&Key::cluster(name)).is_some()),
        source_sends: source.map_or(Sends::No, |domain| movable::sends(view, domain)),
        named_host_lacks: migration.spec.host.as_deref().and_then(|name| movable::off_network(view, name)),
        choice,
    }
}
