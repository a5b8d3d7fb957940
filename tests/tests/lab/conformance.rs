//! The suite that every hypervisor implementation passes, on a real Xen. The simulated one passes it in the unit tests.

use crate::bed::bed;
use anyhow::{Result, ensure};
use std::time::Duration;

/// The whole suite builds some twenty guests, one after the other.
const LIMIT: Duration = Duration::from_secs(900);

#[tokio::test]
async fn xen_passes_the_conformance_suite() -> Result<()> {
    let bed = bed().await;
    let host = bed.lab.host("xen-2")?;
    let suite = "kubexen-node-agent conformance --bridge xenbr0 --patience 240";
    let output = host.exec_within(suite, LIMIT).await?;
    print!("{}", output.text());
    ensure!(
        output.code == 0,
        "a case failed:\n{}\n{}",
        output.text(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
