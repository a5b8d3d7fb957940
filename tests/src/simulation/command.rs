//! The command line of the simulation.

use super::{
    Outcome,
    faults::Faults,
    floor::{Counts, too_seldom},
    replay,
    scenario::story,
    shrink, simulate_all, simulate_under,
};
use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;
use std::{
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Run a whole pool under virtual time, with faults by seed, and say which promises it broke.
#[derive(Debug, Args)]
pub struct SimulateCommand {
    /// Run this one, and print its trace.
    #[arg(long, conflicts_with = "seeds", required_unless_present_any = ["seeds", "scenario"])]
    seed: Option<u64>,
    /// Run these, the last one excluded, and print what went wrong.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Run the schedule that is written in this file, and print how it went.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "seeds"])]
    scenario: Option<PathBuf>,
    /// With a scenario: print its trace instead, which has every write.
    #[arg(long, requires = "scenario", conflicts_with = "shrink")]
    trace: bool,
    /// Let only these faults happen by chance, separated by commas, as scenarios call them, or `none`; the others are left out.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', conflicts_with = "scenario")]
    faults: Vec<String>,
    /// Leave out what is not needed to break the same promise, and print what is left as a scenario.
    #[arg(long, conflicts_with = "seeds")]
    shrink: bool,
    /// Print one JSON object for each seed, and for several a last one with `schedules`, `violations`,
    /// `schedules_per_minute` and `counts`: how often what happened.
    #[arg(long)]
    json: bool,
}

/// How often many schedules tell how far they are.
const PROGRESS: Duration = Duration::from_secs(30);

fn range(text: &str) -> Result<Range<u64>> {
    let (first, end) = text.split_once("..").context("a range looks like 0..200")?;
    Ok(first.trim().parse()?..end.trim().parse()?)
}

impl SimulateCommand {
    /// Runs the schedules; fails when a promise was broken.
    ///
    /// # Errors
    /// When a scenario cannot be read, and when a fault has no such name.
    pub fn run(self) -> Result<ExitCode> {
        let faults = match self.faults.as_slice() {
            [] => Faults::default(),
            names => Faults::named(names)?,
        };
        let outcome = match (&self.scenario, self.seed) {
            (Some(path), _) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("Cannot read the scenario {}", path.display()))?;
                replay(&text.parse().with_context(|| path.display().to_string())?)
            }
            (None, Some(seed)) => simulate_under(seed, &faults),
            (None, None) => return Ok(self.many(self.seeds.clone().unwrap_or_default(), &faults)),
        };
        let broken = !outcome.violations.is_empty();
        if self.shrink {
            match shrink(&outcome.schedule) {
                Some(shortest) => print!("{shortest}"),
                None => eprintln!(
                    "every promise is kept when the schedule is replayed: there is nothing to make short"
                ),
            }
        } else if self.scenario.is_some() && !self.trace {
            print!("{}", story(&outcome));
        } else {
            if !self.json {
                outcome.trace.iter().for_each(|line| println!("{line}"));
            }
            show(&outcome, self.json);
        }
        Ok(if broken { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    fn many(&self, seeds: Range<u64>, faults: &Faults) -> ExitCode {
        let (count, began) = (seeds.clone().count(), Instant::now());
        let (mut done, mut broken, mut virtual_seconds) = (0_usize, 0_usize, 0.0);
        let mut told = began;
        let mut counts = Counts::new();
        simulate_all(seeds, faults, |outcome| {
            for (name, times) in &outcome.counts {
                *counts.entry(name.clone()).or_default() += times;
            }
            virtual_seconds += outcome.lasted.as_secs_f64();
            done += 1;
            broken += usize::from(show(&outcome, self.json));
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                eprintln!("{done} of {count} schedules, {broken} with broken promises");
            }
        });
        let took = began.elapsed().as_secs_f64();
        let per_minute = f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / took * 60.0;
        if self.json {
            let summary = json!({
                "schedules": count,
                "violations": broken,
                "schedules_per_minute": per_minute.round(),
                "counts": counts,
            });
            println!("{summary}");
        }
        eprintln!(
            "{count} schedules, {broken} with broken promises; {per_minute:.0} schedules a minute, {:.0} virtual seconds \
             a second",
            virtual_seconds / took,
        );
        if self.faults.is_empty() {
            let schedules = u64::try_from(count).unwrap_or(u64::MAX);
            too_seldom(&counts, schedules).iter().for_each(|what| eprintln!("too seldom: {what}"));
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
            "counts": outcome.counts,
        });
        println!("{line}");
    } else if let Some(complaint) = &complaint {
        println!("{complaint}\n");
    }
    complaint.is_some()
}
