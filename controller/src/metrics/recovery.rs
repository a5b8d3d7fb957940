//! What is counted of hosts that die.

use jiff::Timestamp;
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

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfPhase {
    phase: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfProof {
    proof: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfReason {
    reason: &'static str,
}

/// Counts of recovery. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct RecoveryMetrics {
    silent: Gauge,
    fences: Family<OfProof, Counter>,
    steals: Counter,
    refusals: Family<OfReason, Counter>,
    store_errors: Family<OfReason, Counter>,
    phases: Family<OfPhase, Histogram>,
}

impl Default for RecoveryMetrics {
    fn default() -> Self {
        Self {
            silent: Gauge::default(),
            fences: Family::default(),
            steals: Counter::default(),
            refusals: Family::default(),
            store_errors: Family::default(),
            // From 50 ms to half an hour.
            phases: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.05, 2.0, 16))),
        }
    }
}

impl RecoveryMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("silent_hosts", "Hosts that are silent and not fenced", self.silent.clone());
        registry.register("fences", "Boots of hosts that were fenced, by proof", self.fences.clone());
        registry.register("steals", "Guests of dead hosts that were given to others", self.steals.clone());
        registry.register(
            "recovery_refusals",
            "Fences and steals that the pool's store refused, by reason",
            self.refusals.clone(),
        );
        registry.register(
            "pool_store_errors",
            "Failed calls of the pool's store, by category",
            self.store_errors.clone(),
        );
        registry.register(
            "recovery_seconds",
            "Phases of recoveries: silence (last heartbeat to lease gone), grace (lease gone to fenced), steal (fenced to given to another host), start (to Ready)",
            self.phases.clone(),
        );
    }

    pub(crate) fn silent_hosts(&self, hosts: usize) {
        self.silent.set(super::count(hosts));
    }

    pub(crate) fn fenced(&self, proof: &'static str) {
        self.fences.get_or_create(&OfProof { proof }).inc();
    }

    pub(crate) fn stole(&self) {
        self.steals.inc();
    }

    pub(crate) fn refused(&self, reason: &'static str) {
        self.refusals.get_or_create(&OfReason { reason }).inc();
    }

    pub(crate) fn store_failed(&self, reason: &'static str) {
        self.store_errors.get_or_create(&OfReason { reason }).inc();
    }

    pub(crate) fn phase(&self, phase: &'static str, from: Timestamp, to: Timestamp) {
        let seconds = to.duration_since(from).as_secs_f64().max(0.0);
        self.phases.get_or_create(&OfPhase { phase }).observe(seconds);
    }
}
