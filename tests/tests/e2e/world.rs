//! A control plane with a pool on it.

use anyhow::{Context, Result};
use kube::ResourceExt;
use kubexen_crds::{BootType, VirtualMachine};
use kubexen_testbed::{
    control_plane::{ControlPlane, Options},
    pool::{Pool, PoolOptions, SimulatedHostOptions},
};
use std::io::ErrorKind;
use tokio::sync::OnceCell;

/// A control plane with a pool on it.
#[derive(Debug)]
pub struct World {
    // The programs of the pool stop before what they talk to.
    pub pool: Pool,
    pub control_plane: ControlPlane,
}

impl World {
    /// A world of its own, for a test that does damage or counts.
    pub async fn start(options: PoolOptions) -> Result<Self> {
        Self::start_on(&Options::default(), options).await
    }

    /// As [`World::start`], on a control plane of another kind.
    pub async fn start_on(control_plane: &Options, options: PoolOptions) -> Result<Self> {
        let control_plane = ControlPlane::start(control_plane).await?;
        let pool = Pool::start(&control_plane, options).await?;
        Ok(Self { pool, control_plane })
    }

    /// Reboots the simulated hosts of an agent process: their guests are gone, and the agent starts anew.
    pub fn reboot(&mut self, number: usize) -> Result<()> {
        self.pool.cut_power(number)?;
        self.pool.start_agent(number)
    }

    /// What a simulated host keeps of a machine's domain; none once it is taken apart.
    pub fn kept_of_domain(&self, host: &str, machine: &VirtualMachine) -> Result<Option<String>> {
        let name = format!("{}.json", machine.uid().context("no uid")?);
        match std::fs::read_to_string(self.pool.host_folder(host).join("state/simulated").join(name)) {
            Ok(kept) => Ok(Some(kept)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// How many boots of a host have been fenced.
    pub async fn fenced(&self, host: &str) -> Result<usize> {
        Ok(self.control_plane.pool_keys(&format!("/kubexen/hosts/{host}/fenced/")).await?.len())
    }

    /// The world that peaceful tests share: four hosts, `host-1` to `host-4`, without a boot loader for PV guests.
    ///
    /// libtest never drops statics; that nothing is left when the suite ends is the doing of the processes' owner.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<World> = OnceCell::const_new();
        let simulated =
            SimulatedHostOptions { boot_loaders: vec![BootType::Pvh], ..SimulatedHostOptions::default() };
        let options = PoolOptions { simulated, ..PoolOptions::default() };
        SHARED.get_or_try_init(async || Self::start(options).await).await
    }
}
