//! The judge notices what it is there for.

use super::judge::Judge;
use crate::memory_api::{Observer, Write};
use kubexen_node_agent::hypervisor::{
    DomainConfig, Hypervisor,
    simulated::{Profile, SimulatedHost, SimulatedHypervisor},
};
use kubexen_runtime::clock::VirtualClock;
use serde_json::{Value, json};
use std::sync::Arc;
use uuid::Uuid;

const UUID: Uuid = Uuid::from_u128(1);

async fn judge_with_a_domain_on(host: &str) -> Judge {
    let judge = Judge::new();
    for name in ["host-a", "host-b"] {
        let clock = Arc::new(VirtualClock::starting_at(jiff::Timestamp::UNIX_EPOCH));
        let simulated = SimulatedHost::in_memory(name, Profile::default(), clock);
        judge.add_host(name, simulated.clone());
        if name == host {
            let hypervisor = SimulatedHypervisor::new(simulated);
            hypervisor.create(&config()).await.unwrap();
            hypervisor.unpause(UUID).await.unwrap();
        }
    }
    judge
}

fn config() -> DomainConfig {
    DomainConfig {
        uuid: UUID,
        token: 5,
        boot: kubexen_crds::BootType::Pvh,
        kernel: None,
        vcpus: 1,
        memory_kib: 1024,
        disks: Vec::new(),
        interfaces: Vec::new(),
    }
}

fn domain(deleting: bool) -> Value {
    let mut domain = json!({
        "metadata": {"namespace": "kubexen-host-host-a", "name": "shop.web"},
        "spec": {"virtualMachine": {"uid": UUID.to_string()}},
        "status": {"ownerToken": 5},
    });
    if deleting {
        domain["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    domain
}

fn write<'a>(before: Option<&'a Value>, object: &'a Value) -> Write<'a> {
    Write { client: "test", kind: "Domain", before, object, deleted: false }
}

fn broken(judge: &Judge) -> Vec<String> {
    judge.verdict().0.iter().filter_map(|how| how.split(':').next().map(str::to_owned)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_domain_that_is_built_on_a_second_host_breaks_a_promise() {
    let judge = judge_with_a_domain_on("host-a").await;
    judge.creating("host-a", UUID, 5);
    assert!(!judge.is_upset());
    judge.creating("host-b", UUID, 6);
    assert_eq!(broken(&judge), ["I1"]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_goes_back_breaks_a_promise() {
    let judge = judge_with_a_domain_on("host-a").await;
    judge.creating("host-a", UUID, 5);
    judge.creating("host-a", UUID, 4);
    let (before, mut after) = (domain(false), domain(false));
    after["status"] = json!({});
    judge.wrote(write(Some(&before), &after));
    assert_eq!(broken(&judge), ["I3", "I3"]);
}

#[tokio::test(start_paused = true)]
async fn a_running_domain_is_destroyed_only_when_its_object_says_so() {
    let judge = judge_with_a_domain_on("host-a").await;
    judge.destroying("host-a", UUID);
    assert_eq!(broken(&judge), ["I4"], "without an object");
    judge.wrote(write(None, &domain(false)));
    judge.destroying("host-a", UUID);
    assert_eq!(broken(&judge), ["I4", "I4"], "with an object that is wanted");
    judge.wrote(write(Some(&domain(false)), &domain(true)));
    judge.destroying("host-a", UUID);
    assert_eq!(broken(&judge).len(), 2, "with an object that is being deleted");
}
