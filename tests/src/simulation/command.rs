//! The command line of the simulation.

use super::{Outcome, simulate_all};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use std::{ops::Range, process::ExitCode, time::Instant};

/// Run a whole pool under virtual time, with faults by seed, and say which promises it broke.
#[derive(Debug, Args)]
pub struct SimulateCommand {
    /// Run this one, and print its trace.
    #[arg(long, conflicts_with = "seeds", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// Run these, the last one excluded, and print what went wrong.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Print one JSON object for each seed.
    #[arg(long)]
    json: bool,
}

fn range(text: &str) -> Result<Range<u64>> {
    let (first, end) = text.split_once("..").context("a range looks like 0..200")?;
    Ok(first.trim().parse()?..end.trim().parse()?)
}

impl SimulateCommand {
    /// Runs the schedules; fails when a promise was broken.
    pub fn run(self) -> ExitCode {
        let mut broken = 0_usize;
        match (self.seed, self.seeds) {
            (Some(seed), _) => simulate_all(seed..seed + 1, |outcome| {
                if !self.json {
                    outcome.trace.iter().for_each(|line| println!("{line}"));
                }
                broken += usize::from(show(&outcome, self.json));
            }),
            (None, seeds) => {
                let (seeds, began) = (seeds.unwrap_or_default(), Instant::now());
                let (count, mut virtual_seconds) = (seeds.clone().count(), 0.0);
                simulate_all(seeds, |outcome| {
                    virtual_seconds += outcome.lasted.as_secs_f64();
                    broken += usize::from(show(&outcome, self.json));
                });
                let took = began.elapsed().as_secs_f64();
                eprintln!(
                    "{count} schedules, {broken} with broken promises; {:.1} schedules and {:.0} virtual seconds a second",
                    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took,
                    virtual_seconds / took,
                );
            }
        }
        if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Prints how a schedule went; says whether it broke a promise.
fn show(outcome: &Outcome, as_json: bool) -> bool {
    let complaint = outcome.complaint();
    if as_json {
        let line = json!({
            "seed": outcome.seed,
            "violations": outcome.violations,
            "writes": outcome.writes,
            "virtualSeconds": outcome.lasted.as_secs_f64(),
        });
        println!("{line}");
    } else if let Some(complaint) = &complaint {
        println!("{complaint}\n");
    }
    complaint.is_some()
}
