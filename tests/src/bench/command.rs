//! The command line of the benchmarks.

use super::{
    domain,
    evacuate::{self, Evacuate},
    failover, migrate,
    reserve::{self, ReserveBench},
    storm::{self, Storm},
};
use anyhow::Result;
use clap::{Args, Subcommand};
use serde::Serialize;
use std::fmt::Display;

/// Measure KubeXen against what is possible without it.
#[derive(Debug, Args)]
pub struct BenchCommand {
    #[command(subcommand)]
    benchmark: Benchmark,
}

#[derive(Debug, Subcommand)]
enum Benchmark {
    /// Create many machines at once on simulated hosts.
    Storm {
        /// Number of machines.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        vms: usize,
        /// Number of hosts.
        #[arg(long, value_name = "M", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
        hosts: u16,
        /// Print the result as JSON and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Put a host of a simulated pool into maintenance.
    Evacuate {
        /// Number of machines in the pool, 30 on each host.
        #[arg(long, value_name = "N", default_value_t = 1920)]
        vms: usize,
        /// Print the result as JSON and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Cut the power of simulated hosts, one after the other, and wait for their protected guests.
    Failover {
        /// Cuts with each profile.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
        rounds: u16,
        /// Print the result as JSON and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Compute the failure reserve of a pool of 64 hosts, anew and after single changes.
    Reserve {
        /// Number of machines in the pool.
        #[arg(long, value_name = "N", default_value_t = 2000)]
        vms: usize,
        /// Print the result as JSON and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Start domains on a Xen host of the lab, through the agent and by bare libxl.
    Domain {
        /// Print the result as JSON and nothing else.
        #[arg(long)]
        json: bool,
    },
    /// Move an idle and a busy guest between two Xen hosts of the lab, through the agents and by `xl migrate`.
    Migrate {
        /// Moves of each guest in each way, of which the median counts.
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
        moves: u16,
        /// Print the result as JSON and nothing else.
        #[arg(long)]
        json: bool,
    },
}

impl BenchCommand {
    /// Measures, and prints the result; progress goes to standard error.
    ///
    /// # Errors
    /// When something does not start, or a machine does not become Ready in time.
    pub async fn run(self) -> Result<()> {
        match self.benchmark {
            Benchmark::Storm { vms, hosts, json } => {
                show(&storm::run(Storm { machines: vms, hosts: hosts.into() }).await?, json)
            }
            Benchmark::Evacuate { vms, json } => {
                show(&evacuate::run(Evacuate { machines: vms }).await?, json)
            }
            Benchmark::Failover { rounds, json } => show(&failover::run(rounds.into()).await?, json),
            Benchmark::Reserve { vms, json } => show(&reserve::run(ReserveBench { machines: vms })?, json),
            Benchmark::Domain { json } => show(&domain::run().await?, json),
            Benchmark::Migrate { moves, json } => show(&migrate::run(moves).await?, json),
        }
    }
}

fn show(report: &(impl Display + Serialize), json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print!("{report}");
    }
    Ok(())
}
