//! A converged pool writes nothing.

use crate::world::World;
use anyhow::{Context, Result, ensure};
use kubexen_testbed::{
    control_plane::{Mark, Writes},
    process::wait_until,
};
use std::time::Duration;

/// Longest time until the last write that follows a change: events, and what hosts say of their memory.
const SETTLED_WITHIN: Duration = Duration::from_secs(90);
/// Silence that begins the minute.
const CALM: Duration = Duration::from_secs(5);
/// How long nothing may be written.
const MINUTE: Duration = Duration::from_secs(60);

/// Makes sure that a minute passes without one write of the controller or an agent, leases aside.
pub async fn is_kept(world: &World) -> Result<()> {
    let mut mark = world.control_plane.audit_mark()?;
    wait_until("the last write was made", SETTLED_WITHIN, async || {
        let (since, now) = (mark, world.control_plane.audit_mark()?);
        tokio::time::sleep(CALM).await;
        mark = now;
        let writes = ours_since(world, since)?;
        ensure!(writes.total() == 0, "still written:\n{writes}");
        Ok(())
    })
    .await?;
    let mark = world.control_plane.audit_mark()?;
    tokio::time::sleep(MINUTE).await;
    let writes = ours_since(world, mark)?;
    ensure!(writes.total() == 0, "written at the fixpoint:\n{writes}");
    let beats: u64 = writes.leases.values().sum();
    ensure!(beats > 0, "not even a lease was renewed: the pool is dead, not calm");
    Ok(())
}

/// The writes of the controller and the agents since then, leases aside.
pub fn ours_since(world: &World, mark: Mark) -> Result<Writes> {
    let writes = world.control_plane.writes_since(mark).context("the audit log")?;
    Ok(writes.filter(|kind| kind.user.starts_with("system:serviceaccount:kubexen-")))
}
