//! The command line of the demo.

use super::{Demo, Show};
use anyhow::{Result, bail};
use clap::Args;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Start a whole pool, apply docs/examples, show the machines become Ready, and stay up until Ctrl-C.
#[derive(Debug, Args)]
pub struct DemoCommand {
    /// Run on real Xen hosts, booted in QEMU, in place of simulated ones.
    #[arg(long)]
    xen: bool,
    /// Number of hosts. Default: 4 simulated ones, or 2 with --xen.
    #[arg(long, value_name = "N")]
    hosts: Option<usize>,
    /// Machines to add to those of docs/examples.
    #[arg(long, value_name = "N", default_value_t = 0)]
    vms: usize,
    /// Stop when all machines are Ready; the exit code says whether they were.
    #[arg(long)]
    exit: bool,
}

impl DemoCommand {
    /// Runs the demo. Whatever way it ends, everything it started is stopped.
    ///
    /// # Errors
    /// When something does not start, or a machine does not become Ready in time.
    pub async fn run(self) -> Result<ExitCode> {
        let hosts = self.hosts.unwrap_or(if self.xen { 2 } else { 4 });
        if hosts < 2 {
            bail!("--hosts must be at least 2: the machines of docs/examples do not share a host");
        }
        let show = Show { xen: self.xen, hosts, machines: self.vms };
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let stopped = async {
            tokio::select! {
                biased;
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        tokio::select! {
            biased;
            () = stopped => {
                eprintln!("\nStopping; everything that this demo started is being removed");
                Ok(ExitCode::from(if self.exit { 130 } else { 0 }))
            }
            shown = self.show(show) => shown.map(|()| ExitCode::SUCCESS),
        }
    }

    async fn show(&self, show: Show) -> Result<()> {
        let demo = Demo::start(show).await?;
        demo.show(show).await?;
        if self.exit {
            println!("\nAll machines are Ready.");
            return Ok(());
        }
        demo.explain();
        println!("Ctrl-C stops everything.");
        std::future::pending().await
    }
}
