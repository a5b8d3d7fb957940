//! The agent of one host, put together.
//!
//! ```text
//!   mirrors (own namespace) ──┐
//!   hypervisor changes ───────┼──▶ work queue ──▶ domain / volume reconcile
//!   a look every 30 s ────────┘
//!   Host object ◀── publisher          Lease ◀── heartbeat
//! ```
//!
//! Several agents can run in one process, each with its own credentials and seams; that is how simulated pools are
//! made. Dropping [`run`] stops everything of this agent and no guest.

use crate::{
    config::Catalogue,
    domain::{Domains, Guests, Shutdowns, reclaim::Reclaimed},
    fence::{Fence, Policy, Watchdog},
    host::{self, Publisher},
    hypervisor::{DomainInfo, DomainUsage, Hypervisor, HypervisorError},
    metrics::{GuestSample, Metrics},
    migration::{self, Sessions, link::MigrationNetwork},
    mirrors::Mirrors,
    network::HostNetwork,
    storage::{Seeds, Storage},
};
use futures::FutureExt;
use kube::{Api, Client, ResourceExt, runtime::watcher};
use kubexen_crds::{Domain, names::host_namespace};
use kubexen_ownership::{
    BootId, HostBoot, HostName, InvalidName, OwnershipStore,
    liveness::{Epoch, Liveness},
};
use kubexen_runtime::{Clock, Key, Outcome, WorkQueue, concurrent::run_all, events};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::{Instrument, info, info_span, warn};
use uuid::Uuid;

/// Reconciles at a time. A domain's start waits for Xen most of the time.
const CONCURRENCY: usize = 8;
/// How often everything is looked at even if nothing was told.
const FULL_LOOK: Duration = Duration::from_secs(30);
/// How often guests are read and measured.
const GUESTS_LOOK: Duration = Duration::from_secs(10);
/// How often ownership without a domain is looked for.
const STRAYS_LOOK: Duration = Duration::from_secs(300);
/// How often what is here is put on record while the pool's store is frozen.
const RECORD_LOOK: Duration = Duration::from_secs(2);
/// How long changes are collected before the host's facts are gathered anew.
const FACTS_PAUSE: Duration = Duration::from_secs(2);
/// Wait between attempts to reach the hypervisor at the start.
const FIRST_CONTACT: Duration = Duration::from_secs(2);

/// All that an agent reaches the world through.
#[derive(Clone)]
pub struct Dependencies {
    /// Connection to the API server with this host's credentials.
    pub client: Client,
    /// Xen.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Disks.
    pub storage: Arc<dyn Storage>,
    /// Disks that the agent writes.
    pub seeds: Arc<dyn Seeds>,
    /// Bridges.
    pub network: Arc<dyn HostNetwork>,
    /// Who may run what.
    pub ownership: Arc<dyn OwnershipStore>,
    /// Which hosts are alive.
    pub liveness: Arc<dyn Liveness>,
    /// What resets this host.
    pub watchdog: Arc<dyn Watchdog>,
    /// Other hosts' agents.
    pub migrations: Arc<dyn MigrationNetwork>,
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The hypervisor names a boot that no key may hold.
    #[error("The host's boot id cannot be used")]
    BootId(#[from] InvalidName),
}

/// What is reconciled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    Domain(Key),
    Volume(Key),
}

/// Runs the agent of `host` until it is dropped.
///
/// # Errors
/// See [`AgentError`]. What may mend itself is waited for and logged, not returned.
pub async fn run(
    host: HostName,
    catalogue: Catalogue,
    world: Dependencies,
    metrics: Arc<Metrics>,
) -> Result<(), AgentError> {
    let span = info_span!("agent", %host);
    async {
        loop {
            run_one_boot(host.clone(), catalogue.clone(), world.clone(), Arc::clone(&metrics)).await?;
        }
    }
    .instrument(span)
    .await
}

async fn run_one_boot(
    host: HostName,
    catalogue: Catalogue,
    world: Dependencies,
    metrics: Arc<Metrics>,
) -> Result<(), AgentError> {
    let facts = loop {
        match world.hypervisor.facts().await {
            Ok(facts) => break facts,
            Err(error) => {
                warn!(%error, "waiting for the hypervisor");
                sleep(FIRST_CONTACT).await;
            }
        }
    };
    if let Err(error) = world.network.prepare().await {
        warn!(%error, "bridges are not as configured; guests that need them will wait");
    }
    let me = HostBoot { host, boot_id: BootId::new(facts.boot_id)? };
    info!(boot = %me.boot_id, xen = facts.xen_version, simulated = facts.simulated, "agent started");
    let instance = me.host.to_string();
    let (events, event_writer) = events::channel("kubexen-node-agent", instance, Arc::clone(&world.clock));
    let mirrors = Mirrors::default();
    let fence = Arc::new(Fence::new(
        me.clone(),
        Arc::clone(&world.liveness),
        Arc::clone(&world.ownership),
        Arc::clone(&world.hypervisor),
        Arc::clone(&world.watchdog),
    ));
    let domains = Domains {
        client: world.client.clone(),
        me: me.clone(),
        hypervisor: Arc::clone(&world.hypervisor),
        storage: Arc::clone(&world.storage),
        seeds: Arc::clone(&world.seeds),
        network: Arc::clone(&world.network),
        ownership: Arc::clone(&world.ownership),
        catalogue: catalogue.clone(),
        mirrors: mirrors.clone(),
        clock: Arc::clone(&world.clock),
        events,
        shutdowns: Shutdowns::default(),
        guests: Guests::default(),
        starts: tokio::sync::RwLock::default(),
        migrations: Arc::clone(&world.migrations),
        sessions: Sessions::default(),
        fence: Arc::clone(&fence),
    };
    let publisher = Publisher {
        client: world.client.clone(),
        host: me.host.to_string(),
        hypervisor: Arc::clone(&world.hypervisor),
        storage: Arc::clone(&world.storage),
        network: Arc::clone(&world.network),
        migrations: Arc::clone(&world.migrations),
        catalogue,
        mirrors: mirrors.clone(),
        fence: Arc::clone(&fence),
    };
    let queue = WorkQueue::default();
    let (facts_changed, thawed) = (Notify::new(), Notify::new());
    let own_host = Key::cluster(me.host.to_string());
    let policy = || {
        let host = mirrors.hosts.get(&own_host);
        let is_heard = host.is_some();
        let told = host.and_then(|host| host.status.as_ref()?.availability.clone()).unwrap_or_default();
        let disarmed = told.disarmed.then(|| "the pool is disarmed".to_owned());
        let epoch = told.epoch.as_deref().and_then(Epoch::parse);
        Policy { profile: told.profile, refusal: disarmed.or(told.refused), is_heard, epoch }
    };
    let say_protection = async {
        loop {
            fence.protection_changed().await;
            facts_changed.notify_one();
            // Guests are guarded from now on, or no more.
            queue_all_domains(&mirrors, &queue);
        }
    };
    let work = run_all([
        fence.run(policy, mirrors.hosts.synced()).boxed(),
        say_protection.boxed(),
        watch(&world.client, &me.host, &mirrors, &queue, &facts_changed).boxed(),
        work(&domains, &queue, &metrics).boxed(),
        follow_hypervisor(&domains, &queue, &facts_changed).boxed(),
        look_at_everything(&mirrors, &queue).boxed(),
        look_at_guests(&domains, &queue, &facts_changed, &metrics).boxed(),
        give_back_strays(&domains, &thawed).boxed(),
        keep_on_record(&domains, &queue, &thawed).boxed(),
        domains.sessions.run(|guest| queue_domains(&mirrors, &queue, &[guest], &facts_changed)).boxed(),
        migration::receive_connections(&*world.migrations, &domains.sessions).boxed(),
        publish(&publisher, &facts_changed).boxed(),
        host::beat(world.client.clone(), me.clone(), Arc::clone(&world.clock)).boxed(),
        event_writer.run(world.client.clone()).boxed(),
    ]);
    tokio::select! {
        biased;
        () = until_reset(&*world.hypervisor, me.boot_id.as_str()) => info!("the host was reset"),
        () = work => {}
    }
    Ok(())
}

/// Waits until the hypervisor shows another boot: only a simulated host is reset under its agent.
async fn until_reset(hypervisor: &dyn Hypervisor, boot_id: &str) {
    let mut changes = hypervisor.changes();
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        if hypervisor.facts().await.is_ok_and(|facts| facts.boot_id != boot_id) {
            return;
        }
    }
}

/// Keeps the mirrors true and queues what changed.
async fn watch(
    client: &Client,
    host: &HostName,
    mirrors: &Mirrors,
    queue: &WorkQueue<Task>,
    facts_changed: &Notify,
) {
    let namespace = host_namespace(host.as_str());
    let own_host = watcher::Config::default().fields(&format!("metadata.name={host}"));
    let namespaced = || watcher::Config::default();
    run_all([
        mirrors
            .domains
            .run(Api::namespaced(client.clone(), &namespace), namespaced(), |change| {
                queue.add(Task::Domain(change.key.clone()));
                if change.before.is_none() || change.after.is_none() {
                    facts_changed.notify_one();
                }
                if change.after.is_none() {
                    // Whoever waits for a volume of this domain, or to delete it, can go on.
                    for volume in change.before.iter().flat_map(|gone| gone.spec.volumes()) {
                        queue_users(mirrors, queue, &change.key.namespace, volume);
                        queue.add(Task::Volume(Key::new(change.key.namespace.clone(), volume)));
                    }
                }
            })
            .boxed(),
        mirrors
            .volumes
            .run(Api::namespaced(client.clone(), &namespace), namespaced(), |change| {
                queue.add(Task::Volume(change.key.clone()));
                queue_users(mirrors, queue, &change.key.namespace, &change.key.name);
            })
            .boxed(),
        mirrors.hosts.run(Api::all(client.clone()), own_host, |_| facts_changed.notify_one()).boxed(),
    ])
    .await;
}

/// Queues the domains that name this volume.
fn queue_users(mirrors: &Mirrors, queue: &WorkQueue<Task>, namespace: &str, volume: &str) {
    let names = |domain: &Domain| domain.spec.volumes().any(|named| named == volume);
    for domain in mirrors.domains.list().iter().filter(|domain| names(domain)) {
        queue.add(Task::Domain(Key::new(namespace, domain.name_any())));
    }
}

/// Works the queue off, once both kinds are known whole, since a Domain that is not listed yet must not look unknown, and an
/// agent that has just begun knows whether it may start any.
async fn work(domains: &Domains, queue: &WorkQueue<Task>, metrics: &Metrics) {
    domains.mirrors.domains.synced().await;
    domains.mirrors.volumes.synced().await;
    domains.fence.judged().await;
    queue
        .run(CONCURRENCY, |task| async move {
            match task {
                Task::Domain(key) => metrics.counted("Domain", domains.reconcile(&key)).await,
                Task::Volume(key) => {
                    let outcome = metrics.counted("Volume", domains.reconcile_volume(&key)).await;
                    if outcome == Outcome::Settled {
                        queue_users(&domains.mirrors, queue, &key.namespace, &key.name);
                    }
                    outcome
                }
            }
        })
        .await;
}

/// Queues the domains that the hypervisor shows otherwise than at the last look.
async fn follow_hypervisor(domains: &Domains, queue: &WorkQueue<Task>, facts_changed: &Notify) {
    let mut changes = domains.hypervisor.changes();
    let mut last: BTreeMap<Uuid, DomainInfo> = BTreeMap::new();
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        match differences(domains, &mut last).await {
            Ok(different) => queue_domains(&domains.mirrors, queue, &different, facts_changed),
            Err(error) => warn!(%error, "domains could not be listed"),
        }
    }
}

async fn differences(
    domains: &Domains,
    last: &mut BTreeMap<Uuid, DomainInfo>,
) -> Result<Vec<Uuid>, HypervisorError> {
    let now: BTreeMap<Uuid, DomainInfo> =
        domains.hypervisor.domains().await?.into_iter().map(|domain| (domain.uuid, domain)).collect();
    let mut different: Vec<Uuid> =
        now.iter().filter(|(uuid, domain)| last.get(*uuid) != Some(*domain)).map(|(uuid, _)| *uuid).collect();
    different.extend(last.keys().filter(|uuid| !now.contains_key(*uuid)));
    *last = now;
    Ok(different)
}

fn queue_domains(mirrors: &Mirrors, queue: &WorkQueue<Task>, different: &[Uuid], facts_changed: &Notify) {
    let by_uuid: BTreeMap<Uuid, Key> = mirrors
        .domains
        .list()
        .iter()
        .filter_map(|domain| {
            Some((Uuid::parse_str(&domain.spec.virtual_machine.uid).ok()?, Key::of(&**domain)))
        })
        .collect();
    for uuid in different {
        match by_uuid.get(uuid) {
            Some(key) => queue.add(Task::Domain(key.clone())),
            None => facts_changed.notify_one(),
        }
    }
}

/// Queues every Domain.
fn queue_all_domains(mirrors: &Mirrors, queue: &WorkQueue<Task>) {
    mirrors.domains.keys().into_iter().for_each(|key| queue.add(Task::Domain(key)));
}

/// Queues everything from time to time: what was told may have been lost.
async fn look_at_everything(mirrors: &Mirrors, queue: &WorkQueue<Task>) {
    let mut ticks = interval(FULL_LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        queue_all_domains(mirrors, queue);
        mirrors.volumes.keys().into_iter().for_each(|key| queue.add(Task::Volume(key)));
    }
}

/// Measures the guests from time to time and reads what they say, and queues those that say something new.
async fn look_at_guests(
    domains: &Domains,
    queue: &WorkQueue<Task>,
    facts_changed: &Notify,
    metrics: &Metrics,
) {
    domains.mirrors.domains.synced().await;
    let host = domains.me.host.as_str();
    let mut ticks = interval(GUESTS_LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut known: BTreeMap<Uuid, Arc<Domain>> = BTreeMap::new();
        for domain in domains.mirrors.domains.list() {
            if let Ok(uuid) = Uuid::parse_str(&domain.spec.virtual_machine.uid) {
                known.insert(uuid, domain);
            }
        }
        let usage = match domains.hypervisor.usage().await {
            Ok(usage) => usage,
            Err(error) => {
                warn!(%error, "guests could not be measured");
                continue;
            }
        };
        let usage: Vec<_> = usage.into_iter().filter(|domain| known.contains_key(&domain.uuid)).collect();
        let sample = |usage: &DomainUsage| {
            let machine = &known.get(&usage.uuid)?.spec.virtual_machine;
            Some(GuestSample {
                namespace: machine.namespace.clone(),
                name: machine.name.clone(),
                usage: *usage,
            })
        };
        metrics.guests(host, usage.iter().filter_map(sample).collect());
        let says = |domain: &Domain| domain.status.as_ref().is_some_and(|status| status.guest.is_some());
        let published: BTreeSet<Uuid> =
            known.iter().filter(|(_, domain)| says(domain)).map(|(uuid, _)| *uuid).collect();
        let different = domains.guests.read(&*domains.hypervisor, &usage, &published).await;
        queue_domains(&domains.mirrors, queue, &different, facts_changed);
    }
}

/// Gives back ownership and removes seeds that have no domain, at first and from time to time: they are rare and harm nobody
/// meanwhile.
async fn give_back_strays(domains: &Domains, thawed: &Notify) {
    domains.mirrors.domains.synced().await;
    loop {
        if let Err(error) = domains.give_back_strays().await {
            warn!(%error, "what has no domain was not looked for");
        }
        tokio::select! {
            biased;
            () = thawed.notified() => {}
            () = sleep(STRAYS_LOOK) => {}
        }
    }
}

/// Tells a store that was restored from a backup what is here, again and again until an operator confirms it; then goes on with
/// everything.
async fn keep_on_record(domains: &Domains, queue: &WorkQueue<Task>, thawed: &Notify) {
    domains.mirrors.domains.synced().await;
    let fence = &domains.fence;
    let mut frozen: Option<(Epoch, BTreeSet<Uuid>)> = None;
    loop {
        match fence.frozen() {
            // It is none of this pool's, or nobody knows whether it is.
            Some(seen) if seen.instead_of.is_some() => {}
            Some(seen) => {
                let (epoch, mine) = frozen.get_or_insert_with(|| (seen.seen_as(), BTreeSet::new()));
                if *epoch != seen.seen_as() {
                    (*epoch, *mine) = (seen.seen_as(), BTreeSet::new());
                }
                match domains.reclaim(&seen, mine).await {
                    Ok(Reclaimed::All) => fence.set_on_record(&seen, None),
                    Ok(Reclaimed::Contested(guest, other)) => {
                        let why = format!(
                            "the guest {guest} runs here, and host {other} says that it runs there: find out which is right, and \
                             destroy the other one's domain by hand"
                        );
                        fence.set_on_record(&seen, Some(why));
                    }
                    Ok(Reclaimed::Over) => {}
                    Err(error) => warn!(%error, "what is here could not be put on record"),
                }
            }
            None if frozen.take().is_some() => {
                info!("the pool's store is confirmed");
                thawed.notify_one();
                let (domains, volumes) = (domains.mirrors.domains.keys(), domains.mirrors.volumes.keys());
                domains.into_iter().for_each(|key| queue.add(Task::Domain(key)));
                volumes.into_iter().for_each(|key| queue.add(Task::Volume(key)));
            }
            None => {}
        }
        tokio::select! {
            biased;
            () = fence.turned() => {}
            () = sleep(RECORD_LOOK) => {}
        }
    }
}

/// Publishes the host's facts at first, once it is known whether guests are protected here, after changes, and from time to time.
async fn publish(publisher: &Publisher, facts_changed: &Notify) {
    publisher.mirrors.hosts.synced().await;
    publisher.mirrors.domains.synced().await;
    publisher.fence.judged().await;
    loop {
        if !publisher.publish().await {
            sleep(FACTS_PAUSE).await;
            continue;
        }
        tokio::select! {
            biased;
            () = facts_changed.notified() => sleep(FACTS_PAUSE).await,
            () = sleep(FULL_LOOK) => {}
        }
    }
}
