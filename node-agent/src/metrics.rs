//! The agent's metrics. Labels come from fixed sets; in a process with several agents they share them.

use kubexen_runtime::Outcome;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use std::future::Future;
use tokio::time::Instant;

/// Labels of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    kind: &'static str,
    outcome: &'static str,
}

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    reconciles: Family<Reconcile, Counter>,
    seconds: Histogram,
}

impl Metrics {
    /// Registers the metrics.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            seconds: Histogram::new([0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0]),
        };
        let registry = registry.sub_registry_with_prefix("kubexen_agent");
        registry.register("reconciles", "Reconciles by kind and outcome", metrics.reconciles.clone());
        registry.register("reconcile_seconds", "Duration of reconciles", metrics.seconds.clone());
        metrics
    }

    /// Runs a reconcile and counts it.
    pub async fn counted(&self, kind: &'static str, reconcile: impl Future<Output = Outcome>) -> Outcome {
        let started = Instant::now();
        let result = reconcile.await;
        self.seconds.observe(started.elapsed().as_secs_f64());
        let outcome = match result {
            Outcome::Settled => "settled",
            Outcome::Again(_) => "again",
            Outcome::Failed => "failed",
        };
        self.reconciles.get_or_create(&Reconcile { kind, outcome }).inc();
        result
    }
}
