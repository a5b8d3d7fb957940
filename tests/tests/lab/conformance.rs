//! The suite that every hypervisor implementation passes, on a real Xen. The simulated one passes it in the unit tests.
//!
//! Its cases of guests that are suspended, changed and questioned while they run take half an hour here, so they are run by
//! hand; what they stand for is shown by the guests of the other tests, which move, change and speak.

use crate::bed::alone;
use anyhow::{Result, ensure};
use kubexen_testbed::lab::LabHost;
use std::time::Duration;

/// What is left of the suite builds some twenty guests, one after the other on each host.
const LIMIT: Duration = Duration::from_secs(900);

/// Sets up a disk for guests, and says where it is.
const DISK: &str = "truncate -s 16M /srv/kubexen/conformance.img && losetup -f && losetup \"$(losetup -f)\" /srv/kubexen/conformance.img";

/// How often a case that failed is tried again: QEMU's emulation of nested virtualisation resets a guest now and then, and
/// the suite builds so many that one of them is often hit. On one machine two cases were hit four times of six.
const MORE_TRIES: usize = 6;

#[tokio::test]
async fn xen_passes_the_conformance_suite() -> Result<()> {
    let turn = alone().await;
    let hosts = turn.bed.lab.hosts();
    let parts = hosts.len();
    let each = hosts.iter().enumerate().map(|(part, host)| passes(host, part, parts));
    futures::future::try_join_all(each).await.map(drop)
}

/// Runs one part of the suite on one host.
async fn passes(host: &LabHost, part: usize, parts: usize) -> Result<()> {
    let disk = host.check(DISK).await?;
    let suite = format!(
        "kubexen-node-agent conformance --basic --bridge xenbr0 --disk {} --folder /srv/kubexen/streams --patience 120",
        disk.trim()
    );
    let output = host.exec_within(&format!("{suite} --part {part} --parts {parts}"), LIMIT).await?;
    show(host, &output.text());
    let mut failing = failed(&output.text());
    ensure!(
        output.code == 0 || !failing.is_empty(),
        "the suite could not run: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    for _ in 0..MORE_TRIES {
        let mut again = Vec::new();
        for case in failing {
            let retried = host.exec_within(&format!("{suite} {case}"), LIMIT).await?;
            show(host, &retried.text());
            if retried.code != 0 {
                again.push(case);
            }
        }
        failing = again;
    }
    ensure!(failing.is_empty(), "cases failed {} times: {failing:?}", 1 + MORE_TRIES);
    host.check(&format!(
        "losetup -d {} && rm -rf /srv/kubexen/conformance.img /srv/kubexen/streams",
        disk.trim()
    ))
    .await?;
    Ok(())
}

/// Prints the suite's output so that none of its lines looks like one of this test program's own, which are counted.
fn show(host: &LabHost, text: &str) {
    for line in text.lines() {
        println!("{}: {line}", host.name());
    }
}

/// The cases that the suite's output names as failed.
fn failed(text: &str) -> Vec<String> {
    let names = text.lines().filter_map(|line| line.strip_prefix("test conformance::")?.split_once(" ... "));
    names.filter(|(_, result)| result.contains("FAILED")).map(|(name, _)| name.to_owned()).collect()
}
