//! Guests that stop by themselves.

use crate::bed::{Guest, beside_others, hosts, nothing_is_left};
use anyhow::{Result, ensure};
use kubexen_crds::domain::StopReason;
use serde_json::json;

#[tokio::test]
async fn a_guest_that_crashes_is_started_again() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let exits = "console=hvc0 quiet kubexen.exit=crash kubexen.exit-after=3";
    let spec = json!({"boot": {"kernel": {"commandLine": exits}}, "lifecycle": {"shutdownTimeout": "0s"}});
    let guest = Guest::create(bed, "crasher", spec).await?;
    let uuid = guest.uuid().await?;
    let status = guest.wait_ready("Running").await?;
    let (home, _) = hosts(bed, &status)?;
    kubexen_testbed::process::wait_until("the guest was started again", crate::bed::PATIENCE, async || {
        let status = guest.domain(&home.name()).await?.status.unwrap_or_default();
        ensure!(status.restarts.unwrap_or(0) >= 1, "its status is {}", serde_json::to_string(&status)?);
        let reason = status.last_stop.map(|stop| stop.reason);
        ensure!(reason == Some(StopReason::Crash), "it stopped because of {reason:?}");
        Ok(())
    })
    .await?;
    guest.wait_ready("Running").await?;
    guest.delete().await?;
    nothing_is_left(&home, &uuid, None).await
}

#[tokio::test]
#[ignore = "minutes on an emulated machine: cargo xtask test lab -- --ignored powers_itself_off"]
async fn a_guest_that_powers_itself_off_stays_off_until_it_is_restarted() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let exits = "console=hvc0 quiet kubexen.exit=poweroff kubexen.exit-after=3";
    let spec = json!({"boot": {"kernel": {"commandLine": exits}}, "lifecycle": {"shutdownTimeout": "0s"}});
    let guest = Guest::create(bed, "finisher", spec).await?;
    let uuid = guest.uuid().await?;
    let status = guest.wait_ready("StoppedByGuest").await?;
    let (home, _) = hosts(bed, &status)?;
    let domains = home.check("xenstore-ls -f /local/domain").await?;
    ensure!(!domains.contains(&uuid), "a domain is left of a guest that powered itself off");
    guest.restart().await?;
    guest.wait_ready("Running").await?;
    guest.wait_ready("StoppedByGuest").await?;
    guest.delete().await?;
    nothing_is_left(&home, &uuid, None).await
}
