//! One call to this machine's storage, or the whole suite, as a subcommand that is run inside dom0.

use super::{
    Locations, Storage, VolumeId,
    conformance::every_promise_holds,
    locations::LocationConfig,
    lvm::{LvmConfig, Wipe},
};
use crate::config::PoolStore;
use anyhow::Result;
use clap::Subcommand;
use kubexen_ownership::{
    HostName,
    lock::{EtcdLocks, Locks},
};
use std::{collections::BTreeMap, process::ExitCode, sync::Arc};
use uuid::Uuid;

/// Name of the only location.
const LOCATION: &str = "location";

/// Which volume group, and what to do in it.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The volume group.
    #[arg(long)]
    volume_group: String,
    /// Give blocks back to the storage instead of writing zeroes.
    #[arg(long)]
    discard: bool,
    /// Name of this host.
    #[arg(long)]
    host: String,
    /// The pool's etcd.
    #[arg(long, required = true)]
    pool_store: Vec<String>,
    #[command(subcommand)]
    call: Call,
}

#[derive(Clone, Debug, Subcommand)]
enum Call {
    /// Run the suite. The group must be empty, with extents of 1 MiB and room for four of them.
    Suite,
    /// Print the location's facts, as JSON.
    Locations,
    /// Print the size of a volume in bytes, or nothing.
    Find { uuid: Uuid },
    /// Make a volume of this size in bytes.
    Create { uuid: Uuid, size: u64 },
    /// Make a volume larger, to this size in bytes.
    Grow { uuid: Uuid, size: u64 },
    /// Delete a volume.
    Delete { uuid: Uuid },
    /// Attach a volume and print its device.
    Attach {
        uuid: Uuid,
        #[arg(long)]
        read_only: bool,
    },
    /// Detach a volume.
    Detach { uuid: Uuid },
    /// Print the UUIDs of the volumes that are attached, a line each.
    Attached,
}

/// Does the call. A suite that fails panics.
///
/// # Errors
/// The storage's own.
pub fn main(arguments: &Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(arguments))?;
    Ok(ExitCode::SUCCESS)
}

async fn run(arguments: &Arguments) -> Result<()> {
    let wipe = if arguments.discard { Wipe::Discard } else { Wipe::Zero };
    let config = LocationConfig::Lvm(LvmConfig { volume_group: arguments.volume_group.clone(), wipe });
    let pool_store = PoolStore { endpoints: arguments.pool_store.clone(), tls: None };
    let host = HostName::new(arguments.host.clone())?;
    let locks: Arc<dyn Locks> = Arc::new(EtcdLocks::new(pool_store.etcd(), host));
    let storage = Locations::new(BTreeMap::from([(LOCATION.to_owned(), config)]), &locks)?;
    let volume = |uuid: &Uuid| VolumeId { location: LOCATION.to_owned(), uuid: *uuid };
    match &arguments.call {
        Call::Suite => every_promise_holds(&storage, LOCATION).await,
        Call::Locations => println!("{}", serde_json::to_string(&storage.locations().await)?),
        Call::Find { uuid } => {
            if let Some(size) = storage.find(&volume(uuid)).await? {
                println!("{size}");
            }
        }
        Call::Create { uuid, size } => storage.create(&volume(uuid), *size).await?,
        Call::Grow { uuid, size } => storage.grow(&volume(uuid), *size).await?,
        Call::Delete { uuid } => storage.delete(&volume(uuid)).await?,
        Call::Attach { uuid, read_only } => {
            println!("{}", storage.attach(&volume(uuid), *read_only).await?.display());
        }
        Call::Detach { uuid } => storage.detach(&volume(uuid)).await?,
        Call::Attached => {
            storage.attached().await?.iter().for_each(|volume| println!("{}", volume.uuid));
        }
    }
    Ok(())
}
