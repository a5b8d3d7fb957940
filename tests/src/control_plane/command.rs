//! `kubexen-testbed control-plane`: a control plane for people who develop.

use anyhow::Result;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{ControlPlane, Options};

/// Starts a real control plane on this machine's loopback and keeps it up until Ctrl-C.
#[derive(Debug, Args)]
pub struct ControlPlaneCommand {
    /// Write through to the disk before answering, as a cluster for real data does.
    #[arg(long)]
    durable: bool,
}

impl ControlPlaneCommand {
    /// Runs until SIGINT or SIGTERM.
    ///
    /// # Errors
    /// When the control plane does not start.
    pub async fn run(self) -> Result<()> {
        let Self { durable } = self;
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        eprintln!("starting etcd, the pool's etcd, kube-apiserver and kube-controller-manager ...");
        let started = tokio::time::Instant::now();
        let options = Options { durable, ..Options::default() };
        let control_plane = tokio::select! {
            biased;
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            control_plane = ControlPlane::start(&options) => control_plane?,
        };
        eprintln!(
            "ready after {:.1} s; logs are in {}",
            started.elapsed().as_secs_f64(),
            control_plane.folder().display()
        );
        println!("export KUBECONFIG={}", control_plane.kubeconfig().display());
        println!("export KUBEXEN_POOL_ETCD={}", control_plane.pool_etcd_endpoints().join(","));
        eprintln!("Ctrl-C stops it and removes its data.");
        tokio::select! {
            biased;
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        eprintln!("stopping");
        Ok(())
    }
}
