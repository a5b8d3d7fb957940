//! What the controller counts. Labels come from fixed sets.

mod recovery;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use std::borrow::Cow;

pub(crate) use recovery::RecoveryMetrics;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reconcile {
    kind: Cow<'static, str>,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Failure {
    kind: Cow<'static, str>,
    category: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ApiWrite {
    kind: Cow<'static, str>,
    verb: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfKind {
    kind: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Evacuated {
    how: &'static str,
}

/// The controller's metrics. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Family<Reconcile, Counter>,
    errors: Family<Failure, Counter>,
    writes: Family<ApiWrite, Counter>,
    evacuated: Family<Evacuated, Counter>,
    queue_depth: Family<OfKind, Gauge>,
    undecodable: Family<OfKind, Gauge>,
    pending: Gauge,
    placement_seconds: Histogram,
    leading: Gauge,
    events_dropped: Gauge,
    recovery: RecoveryMetrics,
}

impl Metrics {
    /// Metrics that `registry` shows.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            errors: Family::default(),
            writes: Family::default(),
            evacuated: Family::default(),
            queue_depth: Family::default(),
            undecodable: Family::default(),
            pending: Gauge::default(),
            placement_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            leading: Gauge::default(),
            events_dropped: Gauge::default(),
            recovery: RecoveryMetrics::default(),
        };
        let registry = registry.sub_registry_with_prefix("kubexen_controller");
        registry.register("reconciles", "Looks at objects, by kind and outcome", metrics.reconciles.clone());
        registry.register("errors", "Looks that failed, by kind and category", metrics.errors.clone());
        registry.register(
            "api_writes",
            "Writes sent to the API server, by kind and verb",
            metrics.writes.clone(),
        );
        registry.register(
            "queue_depth",
            "Objects that wait for a look, by kind",
            metrics.queue_depth.clone(),
        );
        registry.register(
            "undecodable_objects",
            "Objects that cannot be decoded and are left alone, by kind",
            metrics.undecodable.clone(),
        );
        registry.register(
            "evacuated_guests",
            "Guests that began to leave a host in maintenance, by how",
            metrics.evacuated.clone(),
        );
        registry.register("pending_machines", "Machines that wait for a host", metrics.pending.clone());
        registry.register(
            "placement_pass_seconds",
            "Duration of one placement pass",
            metrics.placement_seconds.clone(),
        );
        registry.register("leading", "1 while this process leads, otherwise 0", metrics.leading.clone());
        registry.register(
            "events_dropped",
            "Events that were dropped because too many waited",
            metrics.events_dropped.clone(),
        );
        metrics.recovery.register(registry);
        metrics
    }

    pub(crate) fn recovery(&self) -> &RecoveryMetrics {
        &self.recovery
    }

    pub(crate) fn reconciled(&self, kind: Cow<'static, str>, outcome: &'static str) {
        self.reconciles.get_or_create(&Reconcile { kind, outcome }).inc();
    }

    pub(crate) fn failed(&self, kind: Cow<'static, str>, category: &'static str) {
        self.errors.get_or_create(&Failure { kind, category }).inc();
    }

    pub(crate) fn wrote(&self, kind: Cow<'static, str>, verb: &'static str) {
        self.writes.get_or_create(&ApiWrite { kind, verb }).inc();
    }

    pub(crate) fn evacuated(&self, how: &'static str) {
        self.evacuated.get_or_create(&Evacuated { how }).inc();
    }

    pub(crate) fn queue_depth(&self, kind: Cow<'static, str>, depth: usize) {
        self.queue_depth.get_or_create(&OfKind { kind }).set(count(depth));
    }

    pub(crate) fn undecodable(&self, kind: Cow<'static, str>, objects: usize) {
        self.undecodable.get_or_create(&OfKind { kind }).set(count(objects));
    }

    pub(crate) fn placed(&self, seconds: f64, pending: usize) {
        self.placement_seconds.observe(seconds);
        self.pending(pending);
    }

    pub(crate) fn pending(&self, pending: usize) {
        self.pending.set(count(pending));
    }

    pub(crate) fn leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }

    pub(crate) fn events_dropped(&self, events: u64) {
        self.events_dropped.set(i64::try_from(events).unwrap_or(i64::MAX));
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
