//! The controller as one future.

use crate::{
    context::{Context, Queues},
    error::Error,
    evacuation::Told,
    host::{access::Looks, heartbeat::Heartbeats},
    lease::{Elector, Leadership},
    metrics::Metrics,
    migration, network, pool,
    recovery::{self, PoolStore, Recovery},
    scheduler::{self, Scheduler},
    storage_repository,
    view::View,
    virtual_disk, virtual_machine,
    watched::{Watched, disk_of, machine_of},
};
use futures::FutureExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use kubexen_crds::{
    Domain, Host, Network, Pool, StorageRepository, VirtualDisk, VirtualMachine, VirtualMachineMigration,
    Volume,
};
use kubexen_runtime::{Clock, Key, Outcome, WorkQueue, concurrent::run_all, events, telemetry::Readiness};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Name of the Lease that the leading controller holds.
pub const LEASE: &str = "kubexen-controller";

/// Machines, and disks, that are worked on at a time. Each has at most one request in flight.
const CONCURRENCY: usize = 64;
/// The same for kinds of which there are few.
const FEW: usize = 8;
/// How often gauges that nothing keeps up to date are refreshed.
const REFRESH: Duration = Duration::from_secs(5);

/// What the controller needs from the outside: everything that a simulation replaces.
pub struct Dependencies {
    /// The API server.
    pub client: Client,
    /// Wall-clock time, for what people read. Spans of time are taken from `tokio::time`.
    pub clock: Arc<dyn Clock>,
    /// Set once all mirrors have their first list.
    pub readiness: Readiness,
    /// Where the controller counts.
    pub metrics: Metrics,
    /// Where it is known which hosts are alive and who owns what; without it no guest of a dead host is started elsewhere.
    pub pool_store: Option<PoolStore>,
}

/// How the controller is to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespace of the Lease named [`LEASE`].
    pub namespace: String,
    /// Name of this process, unique among all controllers at all times, restarted ones included.
    pub identity: String,
}

/// Runs the controller until `shutdown`.
///
/// # Guarantees
/// Everything happens inside this future: nothing is spawned, and dropping it ends everything at once. While it does not
/// lead it writes nothing but its bid for the lease; its mirrors stay warm. When it returns, the lease is released.
pub async fn run(dependencies: Dependencies, options: Options, shutdown: CancellationToken) {
    let Dependencies { client, clock, readiness, metrics, pool_store } = dependencies;
    let Options { namespace, identity } = options;
    let (recorder, writer) = events::channel("kubexen-controller", identity.clone(), Arc::clone(&clock));
    let leadership = Leadership::default();
    let recovery = Recovery::new(pool_store, identity.clone());
    let elector =
        Elector::new(client.clone(), &namespace, LEASE, identity, Arc::clone(&clock), leadership.clone());
    let context = Context {
        client: client.clone(),
        clock,
        events: recorder,
        metrics,
        leadership,
        view: View::default(),
        queues: Queues::default(),
        scheduler: Scheduler::default(),
        heartbeats: Heartbeats::default(),
        access: Looks::default(),
        evacuations: Told::default(),
        recovery,
        migration_start: migration::Starting::default(),
    };
    let lead = async {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = context.view.synced() => {}
        }
        context.heartbeats.all_listed();
        readiness.set(true);
        info!("all mirrors are filled");
        elector.run(&shutdown, || term(&context)).await;
        readiness.set(false);
    };
    let mut background = pin!(async {
        run_all([watch_all(&context).boxed(), writer.run(client).boxed(), refresh(&context).boxed()]).await;
    });
    tokio::select! {
        biased;
        () = lead => {}
        () = &mut background => {}
    }
}

/// Keeps all mirrors true, for ever.
async fn watch_all(context: &Context) {
    run_all([
        watch::<VirtualMachine>(context).boxed(),
        watch::<VirtualMachineMigration>(context).boxed(),
        watch::<VirtualDisk>(context).boxed(),
        watch::<Network>(context).boxed(),
        watch::<StorageRepository>(context).boxed(),
        watch::<Host>(context).boxed(),
        watch::<Pool>(context).boxed(),
        watch::<Domain>(context).boxed(),
        watch::<Volume>(context).boxed(),
        watch::<Lease>(context).boxed(),
    ])
    .await;
}

async fn watch<K: Watched>(context: &Context) {
    let mirror = K::mirror(&context.view);
    mirror.run(K::api_guarded(&context.client), K::selection(), |change| context.changed(change)).await;
}

/// Closes the queues when a term ends, however it ends.
struct Term<'a>(&'a Context);

impl<'a> Term<'a> {
    fn begin(context: &'a Context) -> Self {
        context.scheduler.clear();
        context.access.clear();
        context.recovery.clear();
        context.queues.restart(true);
        context.metrics.leading(true);
        Self(context)
    }
}

impl Drop for Term<'_> {
    fn drop(&mut self) {
        self.0.queues.restart(false);
        self.0.metrics.leading(false);
    }
}

/// One term of leadership: works until it is dropped. Returns only if it could not begin.
async fn term(context: &Context) {
    let _term = Term::begin(context);
    if let Err(error) = catch_up(context).await {
        warn!(%error, category = error.category(), "the term cannot begin");
        sleep(Duration::from_secs(1)).await;
        return;
    }
    let Context { view, queues, .. } = context;
    queues.add_all(&queues.hosts, view.hosts.keys());
    queues.add_all(&queues.pools, view.pools.keys());
    queues.add_all(&queues.repositories, view.repositories.keys());
    queues.add_all(&queues.networks, view.networks.keys());
    queues.add_all(&queues.disks, view.disks.keys());
    queues.add_all(&queues.disks, view.volumes.list().iter().flat_map(|volume| disk_of(volume)));
    queues.add_all(&queues.machines, view.machines.keys());
    queues.add_all(&queues.machines, view.domains.list().iter().flat_map(|domain| machine_of(domain)));
    queues.add_all(&queues.migrations, view.migrations.keys());
    queues.add_all(
        &queues.migrations,
        view.domains.list().iter().filter_map(|domain| migration::key_of(domain)),
    );
    run_all([
        work::<Host>(context, &queues.hosts, FEW, crate::host::reconcile).boxed(),
        work::<Pool>(context, &queues.pools, FEW, pool::reconcile).boxed(),
        work::<StorageRepository>(context, &queues.repositories, FEW, storage_repository::reconcile).boxed(),
        work::<Network>(context, &queues.networks, FEW, network::reconcile).boxed(),
        work::<VirtualDisk>(context, &queues.disks, CONCURRENCY, virtual_disk::reconcile).boxed(),
        work::<VirtualMachine>(context, &queues.machines, CONCURRENCY, virtual_machine::reconcile).boxed(),
        work::<VirtualMachineMigration>(context, &queues.migrations, FEW, migration::reconcile).boxed(),
        scheduler::run(context).boxed(),
        recovery::run(context).boxed(),
    ])
    .await;
}

/// Sees everything that an earlier leader made or went by, however far behind the watches are: a machine whose Domain were not in
/// the mirror yet would be placed a second time, one could be placed on a host that is said to be evacuated, and guests could be
/// started elsewhere although the Pool says that none is to be.
async fn catch_up(context: &Context) -> Result<(), Error> {
    context.find_all::<Pool>().await?;
    context.find_all::<Host>().await?;
    context.find_all::<Domain>().await?;
    context.find_all::<Volume>().await
}

/// Works one queue off, for ever.
async fn work<K: Watched>(
    context: &Context,
    queue: &WorkQueue<Key>,
    concurrency: usize,
    reconcile: impl AsyncFn(&Context, &Key) -> Result<Outcome, Error>,
) {
    let reconcile = &reconcile;
    queue
        .run(concurrency, |key| async move {
            let result = reconcile(context, &key).await;
            finish::<K>(context, &key, result)
        })
        .await;
}

/// Counts a look, and says when the next one is due.
fn finish<K: Watched>(context: &Context, key: &Key, result: Result<Outcome, Error>) -> Outcome {
    let kind = K::kind(&());
    let (outcome, label) = match result {
        Ok(Outcome::Settled) => (Outcome::Settled, "settled"),
        Ok(Outcome::Again(delay)) => (Outcome::Again(delay), "again"),
        Ok(Outcome::Failed) => (Outcome::Failed, "failed"),
        // The term is over, or the watch is about to show what was not known.
        Err(Error::Deposed) => (Outcome::Settled, "deposed"),
        Err(error) if error.is_conflict() => (Outcome::Again(Duration::from_millis(500)), "conflict"),
        Err(error) => {
            let category = error.category();
            warn!(%kind, %key, category, %error, "not reconciled");
            context.metrics.failed(kind.clone(), category);
            (Outcome::Failed, "failed")
        }
    };
    context.metrics.reconciled(kind, label);
    outcome
}

/// Refreshes what nothing else keeps up to date, for ever.
async fn refresh(context: &Context) {
    loop {
        refresh_kind::<VirtualMachine>(context);
        refresh_kind::<VirtualMachineMigration>(context);
        refresh_kind::<VirtualDisk>(context);
        refresh_kind::<Network>(context);
        refresh_kind::<StorageRepository>(context);
        refresh_kind::<Host>(context);
        refresh_kind::<Pool>(context);
        refresh_kind::<Domain>(context);
        refresh_kind::<Volume>(context);
        refresh_kind::<Lease>(context);
        context.metrics.events_dropped(context.events.dropped());
        sleep(REFRESH).await;
    }
}

fn refresh_kind<K: Watched>(context: &Context) {
    let undecodable = K::mirror(&context.view).undecodable().len();
    context.metrics.undecodable(K::kind(&()), undecodable);
    if let Some(queue) = K::queue(&context.queues) {
        context.metrics.queue_depth(K::kind(&()), queue.depth());
    }
}
