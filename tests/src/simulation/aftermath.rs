//! What a broken promise leaves behind: what a person who is to repair it asks for first.

use super::world::World;
use kubexen_ownership::OwnershipStore;
use serde_json::{Value, json};

/// Kinds whose objects are shown, by plural.
const SHOWN: [&str; 4] = ["virtualmachines", "virtualmachinemigrations", "domains", "volumes"];

/// Puts the objects and the owners that are there now into the trace.
pub(super) async fn note(world: &World) {
    for plural in SHOWN {
        for object in world.api.objects(plural) {
            world.judge.note(format_args!("left: {plural} {}", brief(&object)));
        }
    }
    match world.pool_store.owners().await {
        Ok(owners) => {
            for (vm, owner) in owners {
                world.judge.note(format_args!("left: owner of {vm}: {owner:?}"));
            }
        }
        Err(error) => world.judge.note(format_args!("left: owners cannot be read: {error}")),
    }
}

/// An object without what nobody changes and what follows from the rest.
fn brief(object: &Value) -> Value {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    json!({
        "name": [&metadata["namespace"], &metadata["name"]],
        "uid": metadata["uid"],
        "deleted": metadata["deletionTimestamp"],
        "of": [&spec["virtualMachine"], &spec["virtualDisk"]],
        "wanted": [&spec["powerState"], &spec["host"], &spec["migration"], &spec["protected"]],
        "status": status,
    })
}
