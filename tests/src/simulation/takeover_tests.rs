//! What a controller that comes to lead makes of the deaths that another one has dealt with.

use super::{
    stage::{Stage, condition, play, protected},
    world::CONTROLLERS,
};
use kube::api::{DeleteParams, Patch, PatchParams};
use kubexen_ownership::{Cut, liveness::Liveness};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

const MINUTE: Duration = Duration::from_mins(1);

impl Stage {
    fn status(&self, host: &str) -> Value {
        self.world.api.object("hosts", "", host).map(|host| host["status"].clone()).unwrap_or_default()
    }

    async fn fencing(&self, host: &str, words: Value) {
        let change = json!({"spec": {"fencing": words}});
        self.hosts.patch(host, &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    }

    /// Ends all controllers and starts them anew: what they knew is gone.
    async fn restart_controllers(&mut self) {
        let judge = Arc::clone(&self.world.judge);
        for number in 0..CONTROLLERS {
            self.world.controllers[number].crash(&judge).await;
            self.world.start_controller(number);
        }
    }

    async fn is_fenced(&self, host: &str) -> bool {
        let fenced = self.world.pool_store.roll().await.unwrap().fenced;
        fenced.keys().any(|boot| boot.host.as_str() == host)
    }

    async fn until_fenced(&self, host: &str, fenced: bool) {
        let began = Instant::now();
        while self.is_fenced(host).await != fenced {
            assert!(began.elapsed() < MINUTE * 10, "{:?}", self.world.judge.verdict());
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn is_complete(&self, host: &str) -> bool {
        self.status(host)["recovery"]["completed"].is_string()
    }
}

fn says(stage: &Stage, reason: &str) -> bool {
    stage.recovering().is_some_and(|said| said.1 == reason)
}

#[tokio::test(start_paused = true)]
async fn a_word_to_unfence_is_followed_once_whoever_leads() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        let number = stage.world.hosts.iter().position(|side| side.name == "host-a").unwrap();
        stage.world.hosts[number].agent.store.set_cut(Cut::Requests);
        stage.until_back("one", "host-a").await;
        stage.world.hosts[number].agent.store.set_cut(Cut::None);
        let boot = stage.boot("host-a").unwrap().boot_id.to_string();
        stage.fencing("host-a", json!({"unfenced": boot})).await;
        let is_written = |stage: &Stage| stage.status("host-a")["fencing"]["unfenced"] == *boot;
        stage.until("it says so", is_written).await;
        stage.until_fenced("host-a", false).await;
        sleep(MINUTE).await;
        // The word is forgotten, and the host dies for good.
        stage.machines_on("host-a", &[("two", protected())]).await;
        stage.cut_power("host-a").await;
        stage.until_back("two", "host-a").await;
        stage.restart_controllers().await;
        sleep(MINUTE * 2).await;
        assert!(stage.is_fenced("host-a").await, "it was followed before");
        stage.fencing("host-a", json!({"unfenced": null})).await;
        stage.until("it is forgotten", |stage| stage.status("host-a")["fencing"].is_null()).await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_another_controller_ends_is_said_to_be_complete() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected())]).await;
        for side in &stage.world.hosts {
            *side.build_delay.lock().unwrap() = MINUTE;
        }
        stage.cut_power("host-a").await;
        let began = Instant::now();
        while stage.is_owned_by("one", "host-a").await {
            assert!(began.elapsed() < MINUTE * 5, "{:?}", stage.world.judge.verdict());
            sleep(Duration::from_secs(1)).await;
        }
        let stolen = |stage: &Stage| stage.machine("one")["status"]["recovery"]["stolen"].is_string();
        stage.until("that is written down", stolen).await;
        let fenced = stage.status("host-a")["recovery"]["fenced"].clone();
        stage.restart_controllers().await;
        // So long that another controller leads, and has looked.
        sleep(MINUTE / 2).await;
        assert_eq!(stage.is_ready_on("one"), None, "it is still being started");
        assert!(says(stage, "Recovering"), "{:?}", stage.recovering());
        stage.until("it is complete", |stage| stage.is_complete("host-a")).await;
        assert_eq!(stage.status("host-a")["recovery"]["fenced"], fenced);
        assert_eq!(stage.machine("one")["status"]["recovery"]["fenced"], fenced);
        stage.until("the Pool says so", |stage| says(stage, "NothingToRecover")).await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_recovery_is_complete_when_the_last_guest_that_is_left_is_wanted_no_more() {
    for change in [None, Some(json!({"spec": {"powerState": "Halted"}}))] {
        play(json!({}), async |stage| {
            stage.machines_on("host-a", &[("one", protected())]).await;
            for host in ["host-b", "host-c"] {
                let closed = json!({"spec": {"schedulable": false}});
                stage.hosts.patch(host, &PatchParams::default(), &Patch::Merge(closed)).await.unwrap();
            }
            stage.cut_power("host-a").await;
            let rejected = |stage: &Stage| {
                let machine = stage.machine("one");
                condition(&machine["status"], "Ready").is_some_and(|ready| ready["reason"] == "Unschedulable")
            };
            stage.until("no host fits", rejected).await;
            stage.until("the Pool says so", |stage| says(stage, "Recovering")).await;
            match &change {
                None => drop(stage.machines.delete("one", &DeleteParams::default()).await.unwrap()),
                Some(change) => {
                    let patch = Patch::Merge(change.clone());
                    stage.machines.patch("one", &PatchParams::default(), &patch).await.unwrap();
                }
            }
            stage.until("it is complete", |stage| stage.is_complete("host-a")).await;
            stage.until("the Pool says so", |stage| says(stage, "NothingToRecover")).await;
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_not_answered_since_a_term_began_is_said_to_be_unreachable() {
    play(json!({}), async |stage| {
        stage.until("the Pool is quiet", |stage| says(stage, "NothingToRecover")).await;
        stage.world.pool_store.set_outage(true);
        stage.restart_controllers().await;
        stage.until("the Pool says so", |stage| says(stage, "PoolStoreUnreachable")).await;
        stage.world.pool_store.set_outage(false);
        stage.until("and when it is over", |stage| says(stage, "NothingToRecover")).await;
        stage.nothing_is_broken();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_fence_record_of_a_boot_that_is_over_is_removed() {
    play(json!({}), async |stage| {
        stage.machines_on("host-a", &[("one", protected()), ("left", json!({}))]).await;
        stage.cut_power("host-a").await;
        stage.until_back("one", "host-a").await;
        sleep(MINUTE * 5).await;
        assert!(stage.is_fenced("host-a").await, "the host is still off");
        let number = stage.world.hosts.iter().position(|side| side.name == "host-a").unwrap();
        let dead = stage.boot("host-a");
        stage.world.start_agent(number);
        stage.until("it is back", |stage| stage.is_ready_on("left").as_deref() == Some("host-a")).await;
        assert_ne!(stage.boot("host-a"), dead);
        assert!(stage.is_fenced("host-a").await, "what is under way may still be of the dead boot");
        stage.until_fenced("host-a", false).await;
        stage.nothing_is_broken();
    })
    .await;
}
