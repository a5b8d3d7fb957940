//! Whether the suite finds the faults that are built in on purpose: each mutant runs through the scenarios and then through
//! schedules by seed, until a promise is broken.

use super::{Outcome, Schedule, faults::Faults, replay, scenario, simulate_until};
use anyhow::{Result, ensure};
use clap::Parser;
use kubexen_mutants::{Mutant, select};
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode, time::Instant};

/// Build one fault after another into the pool, and show that the suite finds every one of them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask mutants", bin_name = "cargo xtask mutants")]
pub struct MutantsCommand {
    /// Where the scenarios are.
    #[arg(long, hide = true, default_value = "tests/scenarios")]
    scenarios: PathBuf,
    /// Run only the mutants whose names hold this text.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Print how the schedule in this file goes with each of these mutants, and run no other.
    #[arg(long, value_name = "FILE", requires = "only")]
    scenario: Option<PathBuf>,
    /// How many seeds a mutant is to survive until it counts as not found.
    #[arg(long, value_name = "COUNT", default_value_t = 400)]
    seeds: u64,
    /// Print one JSON object with `mutants`, `killed`, and for each mutant what killed it.
    #[arg(long)]
    json: bool,
    /// Print the names of the mutants, and run none.
    #[arg(long)]
    list: bool,
}

/// What broke a promise.
#[derive(Debug)]
struct Killer {
    /// The scenario's name, or none for a schedule by chance.
    scenario: Option<String>,
    seed: u64,
    promise: String,
}

impl MutantsCommand {
    /// Runs the mutants; fails when one of them survives.
    ///
    /// # Errors
    /// When a scenario cannot be read, no mutant has such a name, or a promise is broken without any mutant.
    pub fn run(self) -> Result<ExitCode> {
        let wanted = self.only.as_deref().unwrap_or_default().to_lowercase();
        let named = |mutant: &Mutant| format!("{mutant:?}").to_lowercase().contains(&wanted);
        let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(named).collect();
        ensure!(!mutants.is_empty(), "no mutant has {wanted:?} in its name; --list shows them all");
        if self.list {
            mutants.iter().for_each(|mutant| println!("{mutant:?}"));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(path) = &self.scenario {
            let schedule: Schedule = std::fs::read_to_string(path)?.parse()?;
            for mutant in mutants {
                select(Some(mutant));
                println!("{mutant:?}\n{}", scenario::story(&replay(&schedule)));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let scenarios = scenario::read_all(&self.scenarios)?;
        if let Some(killer) = by_scenario(&scenarios) {
            anyhow::bail!("without any mutant, {} breaks a promise: {}", killer.name(), killer.promise);
        }
        let mut results = Vec::new();
        for mutant in mutants {
            results.push(self.judge(mutant, &scenarios));
        }
        let killed = results.iter().filter(|result| !result["killedBy"].is_null()).count();
        if self.json {
            println!("{}", json!({"mutants": results.len(), "killed": killed, "results": results}));
        }
        eprintln!("{killed} of {} mutants were killed", results.len());
        Ok(if killed == results.len() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// Runs one mutant, and says what killed it.
    fn judge(&self, mutant: Mutant, scenarios: &[(String, Schedule)]) -> Value {
        let began = Instant::now();
        select(Some(mutant));
        let killer = by_scenario(scenarios).or_else(|| by_seed(self.seeds));
        select(None);
        let seconds = began.elapsed().as_secs_f64();
        let told = killer.as_ref().map_or_else(
            || "SURVIVED".to_owned(),
            |killer| format!("killed by {}: {}", killer.name(), killer.promise),
        );
        eprintln!("{mutant:?}: {told} ({seconds:.0} s)");
        let killed_by = killer.map(
            |killer| json!({"scenario": killer.scenario, "seed": killer.seed, "promise": killer.promise}),
        );
        json!({"mutant": format!("{mutant:?}"), "killedBy": killed_by})
    }
}

impl Killer {
    fn of(scenario: Option<&str>, outcome: &Outcome) -> Option<Self> {
        let promise = outcome.violations.first()?.clone();
        Some(Self { scenario: scenario.map(str::to_owned), seed: outcome.seed, promise })
    }

    fn name(&self) -> String {
        self.scenario
            .as_ref()
            .map_or_else(|| format!("seed {}", self.seed), |scenario| format!("the scenario {scenario}"))
    }
}

fn by_scenario(scenarios: &[(String, Schedule)]) -> Option<Killer> {
    scenarios.iter().find_map(|(name, schedule)| Killer::of(Some(name), &replay(schedule)))
}

fn by_seed(seeds: u64) -> Option<Killer> {
    let mut killer = None;
    simulate_until(0..seeds, &Faults::default(), |outcome| {
        let found = Killer::of(None, &outcome);
        let is_over = found.is_some();
        killer = killer.take().or(found);
        is_over
    });
    killer
}
