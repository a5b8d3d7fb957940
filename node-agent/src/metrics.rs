//! The agent's metrics. Labels come from fixed sets, but for guests, which are told by their names; in a process with
//! several agents they share them.

use crate::hypervisor::DomainUsage;
use kubexen_runtime::Outcome;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};
use std::{
    collections::BTreeMap,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::Instant;

/// Labels of a reconcile.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    kind: &'static str,
    outcome: &'static str,
}

/// What a virtual machine used when it was measured last.
#[derive(Clone, Debug)]
pub struct GuestSample {
    /// Namespace of the VirtualMachine.
    pub namespace: String,
    /// Name of the VirtualMachine.
    pub name: String,
    /// What it used, by the hypervisor's account.
    pub usage: DomainUsage,
}

/// The agent's metrics.
#[derive(Debug)]
pub struct Metrics {
    reconciles: Family<Reconcile, Counter>,
    seconds: Histogram,
    guests: GuestSamples,
}

impl Metrics {
    /// Registers the metrics.
    #[must_use]
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            reconciles: Family::default(),
            seconds: Histogram::new([0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0]),
            guests: GuestSamples::default(),
        };
        let registry = registry.sub_registry_with_prefix("kubexen_agent");
        registry.register("reconciles", "Reconciles by kind and outcome", metrics.reconciles.clone());
        registry.register("reconcile_seconds", "Duration of reconciles", metrics.seconds.clone());
        registry.register_collector(Box::new(metrics.guests.clone()));
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

    /// Shows these guests of a host from now on, and no others of it.
    pub fn guests(&self, host: &str, samples: Vec<GuestSample>) {
        self.guests.lock().insert(host.to_owned(), samples);
    }
}

/// What the guests of each host used when they were measured last.
#[derive(Clone, Debug, Default)]
struct GuestSamples(Arc<Mutex<BTreeMap<String, Vec<GuestSample>>>>);

impl GuestSamples {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<GuestSample>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for GuestSamples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let hosts = self.lock();
        let mut family = |name, help, unit: Option<&Unit>, kind, encode: Encode| {
            let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
            for (host, guests) in &*hosts {
                for guest in guests {
                    let labels = [
                        ("host", host.as_str()),
                        ("namespace", guest.namespace.as_str()),
                        ("name", guest.name.as_str()),
                    ];
                    encode(&guest.usage, family.encode_family(&labels)?)?;
                }
            }
            Ok(())
        };
        let (gauge, counter) = (MetricType::Gauge, MetricType::Counter);
        family(
            "guest_memory",
            "Memory that the guest holds on its host",
            Some(&Unit::Bytes),
            gauge,
            |usage, to| ConstGauge::new(usage.memory_kib.saturating_mul(1024)).encode(to),
        )?;
        family("guest_vcpus", "Virtual CPUs of the guest", None, gauge, |usage, to| {
            ConstGauge::new(u64::from(usage.vcpus)).encode(to)
        })?;
        family(
            "guest_cpu",
            "CPU time that the guest was given",
            Some(&Unit::Seconds),
            counter,
            |usage, to| ConstCounter::new(usage.cpu_time.as_secs_f64()).encode(to),
        )
    }
}

/// How one figure of a guest is written.
type Encode = fn(&DomainUsage, prometheus_client::encoding::MetricEncoder<'_>) -> Result<(), std::fmt::Error>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::DomId;
    use std::time::Duration;
    use uuid::Uuid;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn each_guest_is_shown_with_its_names_until_it_is_gone() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let usage = DomainUsage {
            uuid: Uuid::from_u128(1),
            domid: DomId(3),
            memory_kib: 2048,
            vcpus: 2,
            cpu_time: Duration::from_millis(1500),
        };
        let sample = GuestSample { namespace: "shop".to_owned(), name: "web-1".to_owned(), usage };
        metrics.guests("host-1", vec![sample]);
        let labels = r#"{host="host-1",namespace="shop",name="web-1"}"#;
        let shown = text(&registry);
        for line in [
            format!("kubexen_agent_guest_memory_bytes{labels} 2097152\n"),
            format!("kubexen_agent_guest_vcpus{labels} 2\n"),
            format!("kubexen_agent_guest_cpu_seconds_total{labels} 1.5\n"),
        ] {
            assert!(shown.contains(&line), "{line} is not in {shown}");
        }
        metrics.guests("host-1", Vec::new());
        assert!(!text(&registry).contains("web-1"));
    }
}
