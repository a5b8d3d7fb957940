//! What the API server can do without KubeXen: one client that makes the writes of a start itself.
//!
//! For each machine the same number of writes of the same kinds as a start takes, one after the other: its user's create,
//! its finalizer, its Domain, its status twice, the Domain's status once, and two events. It reads nothing and watches
//! nothing.

use super::workload::{create_namespace, for_each, machine, name};
use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use kubexen_crds::{
    Domain, VirtualMachine,
    condition::{self, State, Wanted},
    names::{CONTROLLER_FINALIZER, host_namespace, host_object_name},
};
use serde_json::{Value, json};
use std::{ops::Range, time::Duration};
use tokio::time::Instant;

/// A client that makes the writes itself. Its hosts exist in name only.
#[derive(Clone)]
pub(super) struct Bare {
    client: Client,
    namespace: String,
    hosts: usize,
}

impl Bare {
    /// Makes the namespaces: one for the machines, one for each host.
    pub(super) async fn prepare(client: Client, namespace: &str, hosts: usize) -> Result<Self> {
        let bare = Self { client, namespace: namespace.to_owned(), hosts };
        create_namespace(&bare.client, namespace).await?;
        for number in 0..hosts {
            create_namespace(&bare.client, &host_namespace(&bare.host(number))).await?;
        }
        Ok(bare)
    }

    fn host(&self, number: usize) -> String {
        format!("{}-{}", self.namespace, number % self.hosts)
    }

    /// Makes all writes for these machines; returns how long that took.
    pub(super) async fn run(&self, numbers: Range<usize>) -> Result<Duration> {
        let began = Instant::now();
        for_each(numbers, |number| self.start(number)).await?;
        Ok(began.elapsed())
    }

    async fn start(&self, number: usize) -> Result<()> {
        let host = self.host(number);
        let machines = Api::<VirtualMachine>::namespaced(self.client.clone(), &self.namespace);
        let domains = Api::<Domain>::namespaced(self.client.clone(), &host_namespace(&host));
        let (create, patch) = (PostParams::default(), PatchParams::default());
        let created = machines.create(&create, &machine(number)?).await?;
        let finalizers = json!({"metadata": {
            "uid": created.uid(), "resourceVersion": created.resource_version(),
            "finalizers": [CONTROLLER_FINALIZER],
        }});
        machines.patch(&name(number), &patch, &Patch::Merge(&finalizers)).await?;
        let domain = self.domain(&created)?;
        domains.create(&create, &domain).await?;
        let starting = self.machine_status(&created, &host, State::False, "Starting");
        machines.patch_status(&name(number), &patch, &Patch::Merge(&starting)).await?;
        self.event(&created, "Scheduled", &format!("placed on host {host}")).await?;
        let running = json!({"status": {
            "observedGeneration": 1, "phase": "Running", "domid": 1, "ownerToken": 1,
            "conditions": conditions(vec![Wanted::new("Ready", State::True, "Running", "The domain runs")]),
        }});
        domains.patch_status(&domain.name_any(), &patch, &Patch::Merge(&running)).await?;
        let running = self.machine_status(&created, &host, State::True, "Running");
        machines.patch_status(&name(number), &patch, &Patch::Merge(&running)).await?;
        self.event(&created, "Started", &format!("the guest runs on host {host}")).await
    }

    fn domain(&self, machine: &VirtualMachine) -> Result<Domain> {
        let name = machine.name_any();
        let spec = &machine.spec;
        let object = json!({
            "metadata": {
                "name": host_object_name(&self.namespace, &name),
                "labels": {"bench": "bare"},
            },
            "spec": {
                "virtualMachine": {"namespace": self.namespace, "name": name, "uid": machine.uid()},
                "machine": {"cpus": spec.cpu.count, "memory": spec.memory.size, "boot": spec.boot},
                "lifecycle": spec.lifecycle,
            },
        });
        serde_json::from_value(object).context("the Domain of the benchmark")
    }

    fn machine_status(
        &self,
        machine: &VirtualMachine,
        host: &str,
        ready: State,
        reason: &'static str,
    ) -> Value {
        let wanted = vec![
            Wanted::new("Ready", ready, reason, format!("the guest runs on host {host}")),
            Wanted::new("Scheduled", State::True, "Scheduled", format!("placed on host {host}")),
            Wanted::new("Synchronized", State::True, "Synchronized", "the guest has the spec as it is"),
        ];
        json!({"status": {
            "observedGeneration": 1, "phase": "Running", "host": host, "ownerToken": 1,
            "domain": {
                "namespace": host_namespace(host),
                "name": host_object_name(&self.namespace, &machine.name_any()),
            },
            "conditions": conditions(wanted),
        }})
    }

    async fn event(&self, machine: &VirtualMachine, reason: &str, note: &str) -> Result<()> {
        let now = Timestamp::now();
        let object = json!({
            "metadata": {"name": format!("{}.{:x}", machine.name_any(), now.as_nanosecond())},
            "action": "Reconcile", "reason": reason, "note": note, "type": "Normal",
            "eventTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(now),
            "regarding": machine.object_ref(&()),
            "reportingController": "kubexen-bench", "reportingInstance": "bare",
        });
        let events = Api::<Event>::namespaced(self.client.clone(), &self.namespace);
        events.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// Removes what these machines are and have, so that a controller that starts afterwards sees none of it.
    pub(super) async fn clear(&self, numbers: Range<usize>) -> Result<()> {
        let machines = Api::<VirtualMachine>::namespaced(self.client.clone(), &self.namespace);
        let let_go = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        let (let_go, machines) = (&let_go, &machines);
        for_each(numbers, |number| async move {
            machines.patch(&name(number), &PatchParams::default(), let_go).await?;
            Ok(())
        })
        .await?;
        let (delete, all) = (DeleteParams::background(), ListParams::default());
        machines.delete_collection(&delete, &all).await?;
        for number in 0..self.hosts {
            let namespace = host_namespace(&self.host(number));
            let domains = Api::<Domain>::namespaced(self.client.clone(), &namespace);
            domains.delete_collection(&delete, &all).await?;
        }
        Ok(())
    }
}

fn conditions(wanted: Vec<Wanted>) -> Value {
    json!(condition::set(&[], wanted, Some(1), Timestamp::now()))
}
