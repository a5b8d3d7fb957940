//! What is left of something that was deleted, everywhere it could have left a trace.

use crate::world::World;
use anyhow::{Result, ensure};
use kube::{Api, Client, ResourceExt, api::ListParams};
use kubexen_crds::{Domain, Volume};
use kubexen_testbed::process::wait_until;
use std::{collections::BTreeSet, path::Path, time::Duration};

/// Time for what follows the end of an object: none of it is long.
const SOON: Duration = Duration::from_secs(10);

/// Waits until nothing is left of the objects with these UIDs: no Domain, no Volume, no domain on a simulated host, no
/// disk's file, no mark of an attached disk, no owner in the pool's store.
pub async fn are_gone(world: &World, client: &Client, uids: &BTreeSet<String>) -> Result<()> {
    wait_until("no trace is left", SOON, async || {
        let traces = of(world, client, uids).await?;
        ensure!(traces.is_empty(), "there are still: {}", traces.join(", "));
        Ok(())
    })
    .await
}

/// The traces of the objects with these UIDs.
pub async fn of(world: &World, client: &Client, uids: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    for domain in Api::<Domain>::all(client.clone()).list(&ListParams::default()).await? {
        if uids.contains(&domain.spec.virtual_machine.uid) {
            traces.push(format!("Domain {}", domain.name_any()));
        }
    }
    for volume in Api::<Volume>::all(client.clone()).list(&ListParams::default()).await? {
        if uids.contains(&volume.spec.virtual_disk.uid) {
            traces.push(format!("Volume {}", volume.name_any()));
        }
    }
    for key in world.control_plane.pool_keys("/kubexen/owners/").await? {
        if key.rsplit('/').next().is_some_and(|uid| uids.contains(uid)) {
            traces.push(format!("owner {key}"));
        }
    }
    for host in world.pool.host_names() {
        let mut names = Vec::new();
        file_names(&world.pool.host_folder(host), &mut names)?;
        for name in names {
            // <uid>.json, <uid>.raw, .<uid>.new, <uid>.attached
            if name.split('.').any(|part| uids.contains(part)) {
                traces.push(format!("{name} on {host}"));
            }
        }
    }
    Ok(traces)
}

fn file_names(folder: &Path, names: &mut Vec<String>) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            file_names(&entry.path(), names)?;
        } else {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(())
}
