//! User data: from a Secret of the machine's owner to a disk that its guest finds, and to nobody else.

use crate::{
    scene::{PATIENCE, Scene, condition_is, host, message, ready_is},
    world::World,
};
use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt, api::PostParams};
use kubexen_crds::{MigrationPhase, VirtualMachine, names::host_namespace};
use kubexen_testbed::process::wait_until;
use serde_json::json;
use std::{os::unix::fs::PermissionsExt, path::PathBuf};

const FIRST: &str = "#cloud-config\nhostname: first-of-its-name\n";
const SECOND: &str = "#cloud-config\nhostname: second-of-its-name\n";

impl Scene {
    async fn write_user_data(&self, name: &str, key: &str, text: &str) -> Result<()> {
        let secrets: Api<Secret> = self.api();
        let secret = json!({"metadata": {"name": name}, "stringData": {key: text}});
        if secrets.get_opt(name).await?.is_some() {
            secrets.delete(name, &Default::default()).await?;
        }
        secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
        Ok(())
    }

    /// The machine's seed on its host, and the Secret there that it was made from.
    fn seed(&self, world: &World, machine: &VirtualMachine) -> Result<(PathBuf, Api<Secret>)> {
        let host = host(machine)?;
        let uid = machine.uid().context("no uid")?;
        let file = world.pool.host_folder(host).join(format!("state/seeds/{uid}.img"));
        Ok((file, Api::namespaced(self.client.clone(), &host_namespace(host))))
    }
}

/// Waits until neither the seed nor its Secret is there.
async fn until_gone((file, secrets): &(PathBuf, Api<Secret>)) -> Result<()> {
    wait_until("the seed is gone from the host", PATIENCE, async || {
        ensure!(!file.try_exists()?, "{} is there", file.display());
        ensure!(secrets.get_opt("cloud-init.seeds.web").await?.is_none(), "its Secret is there");
        Ok(())
    })
    .await
}

fn holds(file: &PathBuf, text: &str) -> Result<Vec<u8>> {
    let image = std::fs::read(file).with_context(|| file.display().to_string())?;
    let found = image.windows(text.len()).any(|window| window == text.as_bytes());
    ensure!(found, "{} does not hold {text:?}", file.display());
    Ok(image)
}

#[tokio::test]
async fn user_data_reaches_the_host_of_its_machine_goes_along_with_it_and_leaves_nothing() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::new(world, "seeds").await?;
    let spec = json!({"cloudInit": {"userDataSecret": {"name": "late"}}});
    scene.create_machine("web", spec).await?;
    let waiting = scene.until_ready_is("web", "False", "SecretNotFound").await?;
    ensure!(message(&waiting).contains("Secret late does not exist in namespace seeds"), "{waiting:?}");
    scene.write_user_data("late", "user-data", FIRST).await?;
    let waiting = scene.until_ready_is("web", "False", "SecretKeyMissing").await?;
    ensure!(message(&waiting).contains("`userData`"), "{waiting:?}");
    scene.write_user_data("late", "userData", FIRST).await?;
    let first = scene.until_ready_is("web", "True", "Running").await?;

    let seed = scene.seed(world, &first)?;
    let image = holds(&seed.0, FIRST)?;
    ensure!(std::fs::metadata(&seed.0)?.permissions().mode() & 0o777 == 0o600);
    let copy = seed.1.get("cloud-init.seeds.web").await?;
    ensure!(copy.owner_references().iter().any(|owner| owner.kind == "Domain"), "nobody owns the copy");
    let machine = serde_json::to_string(&first)?;
    ensure!(!machine.contains("first-of-its-name"), "the machine tells its user data: {machine}");

    // What the owner writes meanwhile is for the next restart: the guest that moves finds what it had.
    scene.write_user_data("late", "userData", SECOND).await?;
    scene.migrate("web-away", json!({"virtualMachine": "web"})).await?;
    scene.until_over("web-away", MigrationPhase::Succeeded).await?;
    let moved = scene
        .until("web", "runs elsewhere", |machine| {
            ready_is(machine, "True", "Running") && host(machine).ok() != host(&first).ok()
        })
        .await?;
    let there = scene.seed(world, &moved)?;
    ensure!(holds(&there.0, FIRST)? == image, "the guest finds another seed");
    until_gone(&seed).await?;

    let deleted: Api<Secret> = scene.api();
    deleted.delete("late", &Default::default()).await?;
    scene.restart("web").await?;
    scene
        .until("web", "waits with its restart", |machine| {
            condition_is(machine, "Synchronized", "False", "SecretNotFound")
        })
        .await?;
    holds(&there.0, FIRST)?;

    // With the copy gone too, no other host could make the seed.
    there.1.delete("cloud-init.seeds.web", &Default::default()).await?;
    scene.migrate("web-back", json!({"virtualMachine": "web"})).await?;
    let stays = scene.until_over("web-back", MigrationPhase::Failed).await?;
    let conditions = stays.status.map(|status| status.conditions).unwrap_or_default();
    ensure!(conditions.iter().any(|said| said.reason == "SecretNotFound"), "{conditions:?}");
    scene.write_user_data("late", "userData", SECOND).await?;
    wait_until("the restarted guest has the new seed", PATIENCE, async || holds(&there.0, SECOND)).await?;
    scene.until_ready_is("web", "True", "Running").await?;

    scene.delete::<VirtualMachine>("web").await?;
    until_gone(&there).await
}
