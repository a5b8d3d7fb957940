//! What a host that hears nothing of the pool's store does with guests that it is only building.

use super::{
    recovery_tests::{Stage, object, protected},
    step::{Action, Seconds},
    world::{HOSTS, USERS},
};
use kube::{Api, api::PostParams};
use kubexen_crds::VirtualDisk;
use kubexen_node_agent::hypervisor::DomainState;
use kubexen_ownership::liveness::Timing;
use serde_json::json;
use std::time::Duration;
use tokio::{task::LocalSet, time::sleep};

/// How the domain of a machine stands on the host that it is on.
fn state(stage: &Stage, name: &str) -> Option<DomainState> {
    let uid = stage.machine(name)["metadata"]["uid"].as_str()?.to_owned();
    let domains = stage.world.hosts.iter().flat_map(|side| side.host.domains().unwrap_or_default());
    domains.into_iter().find(|domain| domain.uuid.to_string() == uid).map(|domain| domain.state)
}

/// Whether the watchdog runs on the host that a machine is on.
fn has_watchdog(stage: &Stage, name: &str) -> bool {
    let host = stage.machine(name)["status"]["host"].clone();
    let side = stage.world.hosts.iter().find(|side| host == side.name);
    side.is_some_and(|side| side.host.watchdog().unwrap().is_some())
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_is_built_while_the_ladder_is_climbed_is_not_let_run_before_the_store_answers() {
    let test = async {
        let mut stage = Stage::set(json!({})).await;
        let late = Timing::DEFAULT.lease;
        for side in &stage.world.hosts {
            *side.build_delay.lock().unwrap() = late;
        }
        let disks: Api<VirtualDisk> = Api::namespaced(stage.machines.clone().into_client(), USERS);
        let disk = json!({"metadata": {"name": "one"}, "spec": {"repository": "san", "size": "64Mi"}});
        disks.create(&PostParams::default(), &object(disk)).await.unwrap();
        let machine = json!({"metadata": {"name": "one"}, "spec": {
            "memory": {"size": "256Mi"},
            "boot": {"type": "PVH", "kernel": {"name": "linux", "commandLine": ""}},
            "disks": [{"name": "root", "disk": "one"}],
            "availability": protected(),
        }});
        stage.machines.create(&PostParams::default(), &object(machine)).await.unwrap();
        stage.until_guarded("one").await;
        assert_eq!(state(&stage, "one"), None, "it is not built yet");
        stage.world.pool_store.set_outage(true);
        // All that was guarded is gone, as far as the ladder sees, before the guest is there.
        sleep(late + Duration::from_secs(1)).await;
        stage.until("it is built", |stage| state(stage, "one").is_some()).await;
        for _ in 0..60 {
            let state = state(&stage, "one");
            assert!(state.is_none_or(|state| state != DomainState::Running), "{state:?}");
            sleep(Duration::from_secs(1)).await;
        }
        for host in HOSTS {
            let (process, late, r#for) = (format!("agent-{host}"), Seconds(1.5), Seconds(30.0));
            stage.world.perform(&Action::SlowStore { process, late, r#for }).await;
        }
        stage.world.pool_store.set_outage(false);
        stage.until("it runs", |stage| state(stage, "one") == Some(DomainState::Running)).await;
        assert!(has_watchdog(&stage, "one"), "it runs, and nobody keeps what was promised of it");
        stage.until_guarded("one").await;
        stage.nothing_is_broken();
    };
    LocalSet::new().run_until(test).await;
}
