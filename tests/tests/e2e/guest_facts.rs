//! What guests say of themselves.

use crate::{
    scene::{Scene, boot_that_ends, described},
    world::World,
};
use anyhow::{Context, Result, ensure};
use kubexen_crds::VirtualMachine;
use serde_json::json;

#[tokio::test]
async fn what_a_guest_says_of_itself_stands_in_its_status_while_it_is_on() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "guest-facts").await?;
    let mut boot = boot_that_ends("nothing", 0);
    boot["kernel"]["commandLine"] = json!("console=hvc0 kubexen.agent kubexen.address=10.1.2.3/24");
    let interfaces = json!([{"name": "front", "network": scene.name}]);
    scene.create_machine("web", json!({"boot": boot, "interfaces": interfaces})).await?;
    let said = |machine: &VirtualMachine| machine.status.as_ref().and_then(|status| status.guest.clone());
    let machine = scene.until("web", "its guest says something", |machine| said(machine).is_some()).await?;
    let guest = said(&machine).with_context(|| described(&machine))?;
    ensure!(guest.os_name.as_deref() == Some("KubeXen simulated guest"), "it says {guest:?}");
    let [interface] = guest.interfaces.as_slice() else { anyhow::bail!("it says {guest:?}") };
    ensure!(interface.name == "front" && interface.addresses == ["10.1.2.3"], "it says {interface:?}");
    let memory = guest.memory.context("it says nothing of its memory")?;
    ensure!(memory.total.bytes()? == 64 << 20 && memory.used.bytes()? == 32 << 20, "it says {memory:?}");
    scene.set_power_state("web", "Halted").await?;
    let halted = scene.until_ready_is("web", "True", "Halted").await?;
    ensure!(said(&halted).is_none(), "it is off and says {:?}", said(&halted));
    scene.delete::<VirtualMachine>("web").await
}
