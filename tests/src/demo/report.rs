//! What the demo prints: what `kubectl` says, and what the guests themselves say.

use crate::{control_plane::ControlPlane, lab::Lab};
use anyhow::{Result, bail};
use kube::{Api, Client, ResourceExt};
use kubexen_crds::VirtualMachine;

/// Runs `kubectl` with its output shown.
pub(super) async fn kubectl(control_plane: &ControlPlane, arguments: &[&str]) -> Result<()> {
    let status = control_plane.kubectl()?.args(arguments).status().await?;
    if !status.success() {
        bail!("kubectl {} failed; see above", arguments.join(" "));
    }
    Ok(())
}

/// Shows on each host what Xen runs, and pings each guest that has an address from another host.
pub(super) async fn guests(client: &Client, lab: &Lab) -> Result<()> {
    for host in lab.hosts() {
        println!("\n{}# xl list", host.name());
        print!("{}", host.check("xl list").await?);
    }
    let machines: Api<VirtualMachine> = Api::all(client.clone());
    for machine in machines.list(&Default::default()).await? {
        let (Some(address), Some(home)) =
            (address(&machine), machine.status.as_ref().and_then(|status| status.host.clone()))
        else {
            continue;
        };
        let Some(other) = lab.hosts().into_iter().find(|host| host.name() != home) else { continue };
        println!("\n{}# ping -c 1 {address}    ({} runs on {home})", other.name(), machine.name_any());
        let ping =
            format!("for _ in $(seq 60); do ping -c 1 -W 2 {address} && exit 0; sleep 1; done; exit 1");
        let output = other.exec_within(&ping, std::time::Duration::from_secs(180)).await?;
        let answer = output.text();
        match answer.lines().find(|line| line.contains("bytes from")) {
            Some(line) => println!("{line}"),
            None => bail!("{} does not answer at {address}", machine.name_any()),
        }
    }
    Ok(())
}

/// The address that the machine's kernel command line gives to the test guest.
fn address(machine: &VirtualMachine) -> Option<String> {
    let kernel = machine.spec.boot.kernel.as_ref()?;
    let words = kernel.command_line.split_whitespace();
    let word = words.filter_map(|word| word.strip_prefix("kubexen.address=")).next()?;
    word.split('/').next().map(str::to_owned)
}
