//! Guests that stop by themselves.

use crate::{
    scene::{Scene, boot_that_ends, host, message, ready_is},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use kubexen_crds::VirtualMachine;
use kubexen_testbed::pool::runs::runs_of;
use serde_json::json;

#[tokio::test]
async fn a_guest_that_powers_itself_off_stays_off_until_it_is_restarted() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "poweroff").await?;
    let made = scene.create_machine("batch", json!({"boot": boot_that_ends("poweroff", 2)})).await?;
    let uid = made.uid().context("no uid")?;
    // An agent writes that a guest stopped before it takes its domain apart.
    let off_after = |machine: &VirtualMachine, count: usize| {
        ready_is(machine, "True", "StoppedByGuest")
            && runs_of(&world.pool, &uid)
                .is_ok_and(|runs| runs.len() == count && runs.iter().all(|run| run.to.is_some()))
    };
    scene.until("batch", "it ran once and is off", |machine| off_after(machine, 1)).await?;
    scene.restart("batch").await?;
    scene.until("batch", "it ran again and is off", |machine| off_after(machine, 2)).await?;
    scene.delete::<VirtualMachine>("batch").await
}

#[tokio::test]
async fn a_guest_that_reboots_itself_is_started_again() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "reboot").await?;
    let made = scene.create_machine("web", json!({"boot": boot_that_ends("reboot", 2)})).await?;
    let uid = made.uid().context("no uid")?;
    scene
        .until("web", "it runs for the second time", |machine| {
            ready_is(machine, "True", "Running")
                && runs_of(&world.pool, &uid).is_ok_and(|runs| runs.len() >= 2)
        })
        .await?;
    scene.delete::<VirtualMachine>("web").await
}

#[tokio::test]
async fn a_guest_that_crashes_in_a_loop_waits_longer_each_time() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "crashes").await?;
    let made = scene.create_machine("web", json!({"boot": boot_that_ends("crash", 1)})).await?;
    let uid = made.uid().context("no uid")?;
    scene
        .until("web", "it says that it waits", |machine| message(machine).contains("crashed 2 times"))
        .await?;
    scene
        .until("web", "it runs for the third time", |_| {
            runs_of(&world.pool, &uid).is_ok_and(|runs| runs.len() == 3)
        })
        .await?;
    let runs = runs_of(&world.pool, &uid)?;
    let waits: Vec<_> = runs
        .windows(2)
        .filter_map(|pair| Some(pair[0].to?.duration_until(pair[1].from).as_secs_f64()))
        .collect();
    ensure!(waits[0] < 5.0, "it waited {} s after the first crash", waits[0]);
    ensure!((9.0..40.0).contains(&waits[1]), "it waited {} s after the second crash", waits[1]);
    scene.delete::<VirtualMachine>("web").await
}

#[tokio::test]
async fn a_crashed_guest_is_kept_for_inspection_if_its_owner_wants_that() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "preserve").await?;
    let spec = json!({"boot": boot_that_ends("crash", 1), "lifecycle": {"onCrash": "Preserve"}});
    let made = scene.create_machine("web", spec).await?;
    let crashed = scene.until_ready_is("web", "False", "Preserved").await?;
    let runs = runs_of(&world.pool, &made.uid().context("no uid")?)?;
    ensure!(runs.len() == 1, "it was started again: {runs:?}");
    ensure!(world.kept_of_domain(host(&crashed)?, &crashed)?.is_some(), "its memory is gone");
    scene.delete::<VirtualMachine>("web").await
}
