//! Hosts with unlike CPUs, and what guests see of them.

use crate::bed::{Bed, Guest, PATIENCE, beside_others, says};
use anyhow::{Context, Result, ensure};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use kubexen_crds::{FeatureSet, Host, MigrationPhase, Pool, VirtualMachineMigration, virtual_machine::Phase};
use kubexen_testbed::{lab::LabHost, process::wait_until};
use serde_json::json;

/// What the second host's CPUs have and the first one's lack.
const MORE: [&str; 3] = ["aes", "movbe", "popcnt"];

/// The flags of the CPU that the guest with this UUID told on the console of this host.
async fn flags(host: &LabHost, uuid: &str) -> Result<Vec<String>> {
    says(host, uuid, "GUEST up").await?;
    let console = host.check(&format!("cat /srv/kubexen/state/console/{uuid}.log*")).await?;
    let line = console.lines().find_map(|line| line.trim().strip_prefix("FLAGS ")?.strip_suffix(" ."));
    Ok(line.context("it says nothing of its CPU")?.split_whitespace().map(str::to_owned).collect())
}

async fn features_of_guests(bed: &Bed, host: &str) -> Result<FeatureSet> {
    let hosts: Api<Host> = Api::all(bed.control_plane.client().await?);
    wait_until(&format!("{host} says what it gives"), PATIENCE, async || {
        let cpu = hosts.get(host).await?.status.unwrap_or_default().cpu.unwrap_or_default();
        cpu.feature_sets.unwrap_or_default().hvm.context("it does not")
    })
    .await
}

#[tokio::test]
#[ignore = "five minutes on an emulated machine: cargo xtask test lab -- --ignored cpu_levels"]
async fn a_guest_sees_what_both_hosts_have_and_moves_to_the_weaker_one() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let (weak, strong) = (features_of_guests(bed, "xen-1").await?, features_of_guests(bed, "xen-2").await?);
    let more = strong.without(&weak).names();
    ensure!(
        MORE.iter().all(|name| more.iter().any(|other| other == name)),
        "the second has but {more:?} more"
    );
    ensure!(weak.without(&strong).is_empty(), "the first has {:?} more", weak.without(&strong).names());

    let client = bed.control_plane.client().await?;
    let pools: Api<Pool> = Api::all(client.clone());
    // Another test may have made it.
    let pool = json!({"apiVersion": "kubexen.io/v1alpha1", "kind": "Pool", "metadata": {"name": "default"}, "spec": {}});
    pools.patch("default", &PatchParams::apply("lab"), &Patch::Apply(pool)).await?;
    wait_until("the pool's level is what both have", PATIENCE, async || {
        let cpu = pools.get("default").await?.status.unwrap_or_default().cpu.context("it has none")?;
        ensure!(cpu.level.hvm == Some(weak.clone()), "it is {:?}", cpu.features);
        Ok(())
    })
    .await?;

    let hosts: Api<Host> = Api::all(client.clone());
    let label = Patch::Merge(json!({"metadata": {"labels": {"lab/cpu": "strong"}}}));
    hosts.patch("xen-2", &PatchParams::default(), &label).await?;
    let guest = Guest::create(
        bed,
        "leveled",
        json!({
            "memory": {"size": "96Mi"},
            "lifecycle": {"shutdownTimeout": "0s"},
            "placement": {"hostSelector": {"matchLabels": {"lab/cpu": "strong"}}},
        }),
    )
    .await?;
    let uuid = guest.uuid().await?;
    let status = guest.wait_ready("Running").await?;
    ensure!(status.host.as_deref() == Some("xen-2"), "it is on {:?}", status.host);
    let strong_host = bed.lab.host("xen-2")?;
    let seen = flags(&strong_host, &uuid).await?;
    let beyond: Vec<&String> = seen.iter().filter(|flag| MORE.contains(&flag.as_str())).collect();
    ensure!(beyond.is_empty() && seen.iter().any(|flag| flag == "cx16"), "it sees {seen:?}");

    guest.change(json!({"placement": null})).await?;
    let migrations: Api<VirtualMachineMigration> = Api::namespaced(client, "default");
    let migration = json!({"metadata": {"name": "to-the-weaker"}, "spec": {"virtualMachine": "leveled", "host": "xen-1"}});
    migrations.create(&PostParams::default(), &serde_json::from_value(migration)?).await?;
    wait_until("it has moved", PATIENCE, async || {
        let status = migrations.get("to-the-weaker").await?.status.unwrap_or_default();
        ensure!(status.phase == Some(MigrationPhase::Succeeded), "it is {}", serde_json::to_string(&status)?);
        Ok(())
    })
    .await?;
    guest
        .wait("runs on the weaker host", |status| {
            status.phase == Some(Phase::Running) && status.host.as_deref() == Some("xen-1")
        })
        .await?;
    says(&bed.lab.host("xen-1")?, &uuid, "TICK").await?;
    guest.delete().await
}
