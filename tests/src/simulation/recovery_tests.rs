//! Guests of dead hosts run elsewhere, and never twice.

use super::stage::{PATIENCE, SECOND, Stage, condition, play, protected};
use kube::api::{Patch, PatchParams};
use kubexen_crds::MachineRecovery;
use kubexen_ownership::liveness::{Liveness, Timing, Voter};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn guests_of_a_dead_host_run_elsewhere_in_their_order_and_leave_a_timeline() {
    play(json!({}), async |stage| {
        let first = json!({"restartPriority": "Protected", "order": 10, "startDelay": "30s"});
        let later = json!({"restartPriority": "Protected", "order": 20});
        let machines = [
            ("db-0", first.clone()),
            ("db-1", first),
            ("web-0", later),
            ("spare", json!({"restartPriority": "BestEffort"})),
            ("left", json!({})),
        ];
        stage.machines_on("host-a", &machines).await;
        stage.cut_power("host-a").await;
        let (cut, cut_at) = (Instant::now(), stage.world.clock.now());
        for name in ["db-0", "db-1"] {
            stage.until_back(name, "host-a").await;
        }
        assert!(cut.elapsed() < Duration::from_secs(60), "lease, grace and a start took {:?}", cut.elapsed());
        stage.until_back("web-0", "host-a").await;
        // Nobody knows that they have stopped.
        for name in ["left", "spare"] {
            assert!(stage.is_owned_by(name, "host-a").await);
            let machine = stage.machine(name);
            assert_eq!(condition(&machine["status"], "Ready").unwrap()["reason"], "HostDead");
        }
        stage.confirm_dead("host-a").await;
        stage.until_back("spare", "host-a").await;
        let timeline = |name: &str| {
            let recovery = stage.machine(name)["status"]["recovery"].clone();
            serde_json::from_value::<MachineRecovery>(recovery).unwrap()
        };
        for name in ["db-0", "db-1", "web-0", "spare"] {
            let MachineRecovery { from, fenced, stolen, started, ready, to, .. } = timeline(name);
            assert_eq!((from.as_str(), Some(to)), ("host-a", stage.is_ready_on(name)));
            let (started, ready) = (started.unwrap(), ready.unwrap());
            let in_order = fenced.0 <= stolen.0 && stolen.0 <= started.0 && started.0 <= ready.0;
            assert!(in_order, "{name}: {fenced:?} {stolen:?} {started:?} {ready:?}");
        }
        let waited = timeline("web-0").stolen.0.duration_since(timeline("db-1").ready.unwrap().0);
        assert!(waited.as_secs() >= 29, "the delay was {waited}");
        assert!(stage.is_owned_by("left", "host-a").await, "it waits for its host");
        stage
            .until("the record is complete", |stage| {
                let host = stage.world.api.object("hosts", "", "host-a").unwrap();
                let recovery = &host["status"]["recovery"];
                recovery["completed"].is_string() && recovery["machines"].as_i64() >= Some(3)
            })
            .await;
        let host = stage.world.api.object("hosts", "", "host-a").unwrap();
        let last_sign = host["status"]["recovery"]["lastSign"].as_str().unwrap().parse().unwrap();
        let silent_for = cut_at.duration_since(last_sign).as_secs();
        assert!(
            (0..=10).contains(&silent_for),
            "the agent's last heartbeat was {silent_for} s before it ended"
        );
        assert_eq!(condition(&host["status"], "Ready").unwrap()["reason"], "Fenced");
        let not_recovering =
            |stage: &Stage| stage.recovering().is_some_and(|said| said.1 == "NothingToRecover");
        stage.until("the Pool says that it is over", not_recovering).await;
        let quiet = Duration::from_mins(5);
        sleep(quiet).await;
        assert!(stage.world.judge.last_write().elapsed() >= quiet - SECOND * 30, "writes go on");
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn when_too_many_hosts_are_silent_nothing_is_stolen_until_an_operator_confirms_one() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.machines_on("host-b", &[("two", protected())]).await;
        stage.cut_power("host-a").await;
        stage.cut_power("host-b").await;
        sleep(Duration::from_mins(3)).await;
        assert_eq!(stage.recovering(), Some(("False".to_owned(), "StormBrake".to_owned())));
        let pool = stage.world.api.object("pools", "", "default").unwrap();
        assert_eq!(pool["status"]["availability"]["silentHosts"], json!(["host-a", "host-b"]));
        assert!(stage.is_owned_by("one", "host-a").await);
        assert!(stage.world.pool_store.roll().await.unwrap().fenced.is_empty());
        stage.confirm_dead("host-a").await;
        stage.until("its guest is back", |stage| stage.is_ready_on("one").as_deref() == Some("host-c")).await;
        // One silent host is no storm.
        stage.until("so is the other's", |stage| stage.is_ready_on("two").as_deref() == Some("host-c")).await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_disarmed_pool_does_nothing_and_goes_on_when_it_is_armed() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.cut_power("host-a").await;
        let disarm = json!({"spec": {"availability": {"disarmed": true}}});
        stage.pools.patch("default", &PatchParams::default(), &Patch::Merge(disarm)).await.unwrap();
        sleep(Duration::from_mins(3)).await;
        assert_eq!(stage.recovering(), Some(("False".to_owned(), "Disarmed".to_owned())));
        assert!(stage.world.pool_store.roll().await.unwrap().fenced.is_empty());
        let host = stage.world.api.object("hosts", "", "host-b").unwrap();
        assert_eq!(host["status"]["availability"]["disarmed"], true, "agents are told");
        let arm = json!({"spec": {"availability": {"disarmed": false}}});
        stage.pools.patch("default", &PatchParams::default(), &Patch::Merge(arm)).await.unwrap();
        stage.until_back("one", "host-a").await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_recovery_gets_through_whichever_write_its_controller_dies_after() {
    for writes in 1..=12 {
        play(json!({}), async |stage| {
            stage.machines_on("host-a", &[("one", protected()), ("two", protected())]).await;
            stage.cut_power("host-a").await;
            sleep(Timing::DEFAULT.lease).await;
            let leader = stage.leading().await;
            stage.world.judge.arm(&stage.world.controllers[leader].name.clone(), writes);
            let began = Instant::now();
            while !["one", "two"].iter().all(|name| stage.is_back(name, "host-a")) {
                let judge = Arc::clone(&stage.world.judge);
                tokio::select! {
                    biased;
                    () = judge.wake.notified() => {
                        judge.disarm();
                        stage.world.controllers[leader].crash(&judge).await;
                        stage.world.start_controller(leader);
                    }
                    () = sleep(SECOND) => {}
                }
                stage.world.check_processes().await;
                assert!(began.elapsed() < PATIENCE, "{writes}: {:?}", stage.world.judge.verdict());
            }
            stage.nothing_is_broken();
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_steal_whose_answer_is_lost_is_settled_by_a_read() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        stage.cut_power("host-a").await;
        let fenced = |stage: &Stage| {
            let host = stage.world.api.object("hosts", "", "host-a").unwrap();
            condition(&host["status"], "Ready").is_some_and(|ready| ready["reason"] == "Fenced")
        };
        // The fence record and the steal.
        sleep(Timing::DEFAULT.lease + Timing::DEFAULT.grace / 2).await;
        stage.world.pool_store.lose_answers(2);
        stage.until_back("one", "host-a").await;
        stage.until("the host is said to be fenced", fenced).await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_recovery_costs_seven_writes_for_each_machine_and_seven_for_its_host_and_the_pool() {
    play(json!({}), async |stage| {
        let names = ["one", "two", "three"];
        stage.machines_on("host-a", &names.map(|name| (name, protected()))).await;
        sleep(Duration::from_mins(1)).await;
        let known = stage.world.judge.verdict().1.len();
        stage.cut_power("host-a").await;
        for name in names {
            stage.until_back(name, "host-a").await;
        }
        sleep(Duration::from_mins(2)).await;
        let (_, trace, _) = stage.world.judge.verdict();
        let writes = |of: &dyn Fn(&str, &str) -> bool| {
            let written = |line: &&String| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                [_, _, "creates" | "changes" | "ends", kind, object, ..] => of(kind, object),
                _ => false,
            };
            trace.iter().skip(known).filter(written).count()
        };
        for name in names {
            let of_machine = |kind: &str, object: &str| {
                ["VirtualMachine", "Domain"].contains(&kind) && object.ends_with(name)
            };
            assert_eq!(writes(&of_machine), 7, "{name}:\n{}", trace[known..].join("\n"));
        }
        let of_pool = |kind: &str, object: &str| kind == "Pool" || object == "/host-a";
        assert_eq!(writes(&of_pool), 7);
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_with_most_of_its_members_on_one_host_protects_nobody_until_another_is_elsewhere() {
    let members = |addresses: [&str; 3]| {
        let member = |address: &str| Voter::new(address, [format!("https://{address}:2380").as_str()]);
        addresses.map(member).to_vec()
    };
    play(json!({}), async |stage| {
        stage.world.pool_store.set_voters(members(["host-a", "host-a", "host-b"]));
        let redundant = |stage: &Stage| {
            let pool = stage.world.api.object("pools", "", "default").unwrap();
            condition(&pool["status"], "StoreRedundant").is_some_and(|said| said["status"] == "True")
        };
        stage.until("the Pool says so", |stage| !redundant(stage)).await;
        stage.machines_on("host-b", &[("one", json!({}))]).await;
        let protect = json!({"spec": {"availability": protected()}});
        stage.machines.patch("one", &PatchParams::default(), &Patch::Merge(protect)).await.unwrap();
        let reason = |stage: &Stage| {
            let machine = stage.machine("one");
            condition(&machine["status"], "Protected").map(|said| said["status"] == "True")
        };
        stage.until("the machine says so", |stage| reason(stage) == Some(false)).await;
        sleep(Duration::from_mins(1)).await;
        assert!(!stage.owner_of("one").await.unwrap().guarded, "nobody could give it to another host");
        stage.world.pool_store.set_voters(members(["host-a", "host-b", "10.9.9.9"]));
        stage.until("the Pool says that it is mended", redundant).await;
        stage.until_guarded("one").await;
        stage.cut_power("host-b").await;
        stage.until_back("one", "host-b").await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_takes_over_writes_nothing_anew_of_what_is_protected() {
    for addresses in
        [["host-a", "host-a", "host-b"], ["host-a", "host-b", "10.9.9.9"], ["host-a", "host-b", "etcd-3"]]
    {
        play(json!({"hostFailuresToTolerate": 1}), async |stage| {
            let member = |address: &str| Voter::new(address, [format!("https://{address}:2380").as_str()]);
            stage.world.pool_store.set_voters(addresses.map(member).to_vec());
            stage.machines_on("host-b", &[("one", json!({}))]).await;
            let protect = json!({"spec": {"availability": protected()}});
            stage.machines.patch("one", &PatchParams::default(), &Patch::Merge(protect)).await.unwrap();
            let said = |stage: &Stage| condition(&stage.machine("one")["status"], "Protected").is_some();
            stage.until("the machine says whether it is protected", said).await;
            sleep(Duration::from_mins(1)).await;
            let (known, leader) = (stage.world.judge.verdict().1.len(), stage.leading().await);
            let judge = Arc::clone(&stage.world.judge);
            stage.world.controllers[leader].crash(&judge).await;
            sleep(Duration::from_mins(2)).await;
            assert_ne!(stage.leading().await, leader);
            let (_, trace, _) = stage.world.judge.verdict();
            let written = |line: &&String| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                [_, _, "creates" | "changes" | "ends", kind, ..] => {
                    ["VirtualMachine", "Domain", "Host", "Pool"].contains(kind)
                }
                _ => false,
            };
            let written: Vec<&String> = trace.iter().skip(known).filter(written).collect();
            assert_eq!(written, Vec::<&String>::new(), "{addresses:?}");
            stage.nothing_is_broken();
        })
        .await;
    }
}
