//! A real host that is emptied, switched off and on, and comes back.

use crate::{
    bed::{PATIENCE, hosts, nothing_is_left, own_world},
    migrations::{counted_to, counting_guest},
};
use anyhow::{Context, Result, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_crds::{
    Host, HostStatus, MigrationPhase, VirtualMachineMigration, condition::is_true, virtual_machine::Phase,
};
use kubexen_testbed::process::wait_until;
use serde_json::json;

async fn until(
    hosts: &Api<Host>,
    name: &str,
    what: &str,
    wanted: impl Fn(&HostStatus) -> bool,
) -> Result<HostStatus> {
    wait_until(&format!("{name} {what}"), PATIENCE, async || {
        let status = hosts.get(name).await?.status.unwrap_or_default();
        ensure!(wanted(&status), "its status is {}", serde_json::to_string(&status)?);
        Ok(status)
    })
    .await
}

#[tokio::test]
#[ignore = "ten minutes on an emulated machine: cargo xtask test lab -- --ignored maintenance"]
async fn a_host_that_was_rebooted_in_maintenance_comes_back_empty_and_takes_its_guest_again() -> Result<()> {
    let (_turn, bed) = own_world().await?;
    let (guest, before) = counting_guest(&bed, "evacuee", "10.88.0.34", &[]).await?;
    let uuid = guest.uuid().await?;
    let (home, other) = hosts(&bed, &before)?;
    let (name, count) = (home.name(), counted_to(&home, &uuid).await?);
    let client = bed.control_plane.client().await?;
    let all_hosts: Api<Host> = Api::all(client.clone());
    let maintenance = async |enabled: bool| {
        let change = Patch::Merge(json!({"spec": {"maintenance": {"enabled": enabled}}}));
        all_hosts.patch(&name, &PatchParams::default(), &change).await
    };

    maintenance(true).await?;
    let emptied =
        until(&all_hosts, &name, "is evacuated", |status| is_true(&status.conditions, "Evacuated")).await?;
    let runs_at = async |host: &str| {
        guest
            .wait(&format!("runs on {host}"), |status| {
                status.phase == Some(Phase::Running) && status.host.as_deref() == Some(host)
            })
            .await
    };
    runs_at(&other.name()).await?;
    nothing_is_left(&home, &uuid, None).await?;

    home.power_off().await?;
    home.power_on().await?;
    bed.pool.start_lab_agent(&bed.control_plane, &home).await?;
    let back = until(&all_hosts, &name, "is Ready after its boot", |status| {
        status.boot_id.is_some()
            && status.boot_id != emptied.boot_id
            && is_true(&status.conditions, "Ready")
            && is_true(&status.conditions, "Evacuated")
    })
    .await?;
    ensure!(back.unknown_domains.is_empty(), "{:?}", back.unknown_domains);
    let domains = home.check("xl vm-list").await?;
    ensure!(!domains.contains(&uuid), "the guest is there: {domains}");

    maintenance(false).await?;
    until(&all_hosts, &name, "is out of maintenance", |status| {
        !is_true(&status.conditions, "Evacuated") && is_true(&status.conditions, "Ready")
    })
    .await?;
    let migrations: Api<VirtualMachineMigration> = Api::namespaced(client, "default");
    let home_again =
        json!({"metadata": {"name": "home"}, "spec": {"virtualMachine": guest.name, "host": name}});
    migrations.create(&PostParams::default(), &serde_json::from_value(home_again)?).await?;
    wait_until("the guest has come back", PATIENCE, async || {
        let status = migrations.get("home").await?.status.context("no status")?;
        ensure!(status.phase == Some(MigrationPhase::Succeeded), "{}", serde_json::to_string(&status)?);
        Ok(())
    })
    .await?;
    runs_at(&name).await?;
    ensure!(counted_to(&home, &uuid).await? > count, "it counts from the beginning again");
    guest.delete().await
}
