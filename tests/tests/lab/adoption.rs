//! Agents that are killed, and domains that are not ours.

use crate::bed::{Guest, PATIENCE, beside_others, hosts, nothing_is_left};
use anyhow::{Context, Result, ensure};
use kube::Api;
use kubexen_crds::Host;
use kubexen_testbed::{lab::LabHost, process::wait_until};
use serde_json::json;

/// Kills the agent the moment `condition`, a shell command in dom0, holds.
async fn kill_agent_when(host: &LabHost, condition: &str) -> Result<()> {
    let watch = format!(
        "for _ in $(seq 4000); do {condition} && kill -9 $(cat /run/kubexen-agent/pid) && exit 0; done; exit 1"
    );
    host.exec_within(&watch, PATIENCE).await.and_then(|output| {
        ensure!(output.code == 0, "the moment to kill the agent did not come");
        Ok(())
    })
}

async fn domains_of(host: &LabHost, uuid: &str) -> Result<usize> {
    let nodes = host.check("xenstore-ls -f /local/domain").await?;
    let vm = format!("/vm = \"/vm/{uuid}\"");
    Ok(nodes.lines().filter(|line| line.ends_with(&vm)).count())
}

#[tokio::test]
async fn an_agent_that_is_killed_while_it_builds_or_destroys_a_domain_finishes_or_undoes_it() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let home = bed.lab.host("xen-1")?;
    let client = bed.control_plane.client().await?;
    let hosts_api: Api<Host> = Api::all(client);
    let label = json!({"metadata": {"labels": {"test/adoption": "here"}}});
    hosts_api.patch("xen-1", &Default::default(), &kube::api::Patch::Merge(label)).await?;
    let spec = json!({"placement": {"hostSelector": {"matchLabels": {"test/adoption": "here"}}},
        "lifecycle": {"shutdownTimeout": "0s"}});
    let guest = Guest::create(bed, "orphan", spec).await?;
    let uuid = guest.uuid().await?;

    kill_agent_when(&home, &format!("xenstore-exists /vm/{uuid}")).await.context("while it builds")?;
    let status = guest.wait_ready("Running").await?;
    ensure!(domains_of(&home, &uuid).await? == 1, "there is not exactly one domain");

    let domid = status.domain.and_then(|domain| domain.domid).context("no domid")?;
    let deletion = guest.delete();
    let gone_paths = format!(
        "! xenstore-exists /local/domain/{domid}/device/suspend 2>/dev/null || ! xenstore-exists /vm/{uuid}"
    );
    let half_gone = format!("{{ ! xenstore-exists /local/domain/{domid}/control || {gone_paths}; }}");
    let killing = async { kill_agent_when(&home, &half_gone).await.context("while it destroys") };
    let (deleted, killed) = tokio::join!(deletion, killing);
    killed?;
    deleted?;
    nothing_is_left(&home, &uuid, None).await
}

#[tokio::test]
async fn an_agent_that_is_killed_and_started_again_disturbs_no_guest() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let guest = Guest::create(bed, "undisturbed", json!({"lifecycle": {"shutdownTimeout": "0s"}})).await?;
    let uuid = guest.uuid().await?;
    let before = guest.wait_ready("Running").await?;
    let (home, _) = hosts(bed, &before)?;
    let pid = home.check("cat /run/kubexen-agent/pid").await?;
    home.check("kill -9 $(cat /run/kubexen-agent/pid)").await?;
    wait_until("another agent runs", PATIENCE, async || {
        let now = home.check("cat /run/kubexen-agent/pid").await?;
        ensure!(now != pid, "it is still the old one");
        Ok(())
    })
    .await?;
    guest.change(json!({"powerState": "Paused"})).await?;
    let after = guest.wait_ready("Paused").await.context("the new agent does not work")?;
    let stop = guest.domain(&home.name()).await?.status.and_then(|status| status.last_stop);
    ensure!(after.domain == before.domain, "the guest runs in another domain; it stopped before: {stop:?}");
    guest.delete().await?;
    nothing_is_left(&home, &uuid, None).await
}

#[tokio::test]
async fn a_domain_that_is_not_ours_is_reported_and_never_touched() -> Result<()> {
    let turn = beside_others().await;
    let bed = turn.bed;
    let home = bed.lab.host("xen-2")?;
    let uuid = "0b5d6c4e-7f1a-4a44-9c6e-00000000f00d";
    let config = format!(
        "name=\"foreign\"\nuuid=\"{uuid}\"\ntype=\"pvh\"\nkernel=\"/guest/vmlinux\"\nramdisk=\"/guest/initrd\"\n\
         extra=\"console=hvc0 quiet\"\nmemory=96\nvcpus=1\n"
    );
    home.push(config.as_bytes(), "/run/foreign.cfg", 0o600).await?;
    home.exec_within("xl create -e /run/foreign.cfg", PATIENCE).await?;
    let hosts: Api<Host> = Api::all(bed.control_plane.client().await?);
    let reported = async |wanted: bool| {
        wait_until("the Host says so", PATIENCE, async || {
            let unknown = hosts.get("xen-2").await?.status.unwrap_or_default().unknown_domains;
            ensure!(unknown.iter().any(|domain| domain.uuid == uuid) == wanted, "it says {unknown:?}");
            Ok(())
        })
        .await
    };
    reported(true).await?;
    home.check("kill -9 $(cat /run/kubexen-agent/pid)").await?;
    let guest = Guest::create(bed, "neighbour", json!({"lifecycle": {"shutdownTimeout": "0s"}})).await?;
    guest.wait_ready("Running").await?;
    guest.delete().await?;
    home.check("xl domid foreign").await.context("the foreign domain is gone")?;
    home.check("xl destroy foreign").await?;
    reported(false).await
}
