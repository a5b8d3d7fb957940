//! `cargo xtask`: one verb for everything a person does to this repository.

mod build;
mod crds;
mod docs;
mod lint;
mod markdown;
mod packages;
mod repository;
mod test;
mod testbed;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Everything a person does to this repository.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Tools(tools::Arguments),
    Crds(crds::Arguments),
    Lint(lint::Arguments),
    Test(test::Arguments),
    Docs(docs::Arguments),
    /// Start a control plane, the controller and agents, and show virtual machines become Ready
    ///
    /// `cargo xtask demo --help` shows its options; `--xen` runs it on real Xen hosts in the lab.
    #[command(disable_help_flag = true)]
    Demo(testbed::Arguments),
    /// Build and boot real Xen hosts as virtual machines
    #[command(disable_help_flag = true)]
    Lab(testbed::Arguments),
    /// Measure storms of virtual machines and single domain starts
    #[command(disable_help_flag = true)]
    Bench(testbed::Arguments),
    /// Run whole pools under virtual time, with faults by seed or from a scenario
    #[command(disable_help_flag = true)]
    Simulate(testbed::Arguments),
    /// Build faults into the pool on purpose, and show that the suite finds every one of them
    #[command(disable_help_flag = true)]
    Mutants(testbed::Arguments),
    /// Start a real Kubernetes control plane on this machine and keep it up until Ctrl-C
    #[command(disable_help_flag = true)]
    ControlPlane(testbed::Arguments),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(()) => ExitCode::SUCCESS,
        // Not returned from main, which would print a backtrace where the environment asks for them.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<()> {
    match verb {
        Verb::Tools(arguments) => tools::run(&arguments),
        Verb::Crds(arguments) => crds::run(&arguments),
        Verb::Lint(arguments) => lint::run(&arguments),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Docs(arguments) => docs::run(&arguments),
        Verb::Demo(arguments) => testbed::run(testbed::Part::Demo, &arguments),
        Verb::Lab(arguments) => testbed::run(testbed::Part::Lab, &arguments),
        Verb::Bench(arguments) => testbed::run(testbed::Part::Bench, &arguments),
        Verb::Simulate(arguments) => testbed::run(testbed::Part::Simulate, &arguments),
        Verb::Mutants(arguments) => testbed::run_mutants(&arguments),
        Verb::ControlPlane(arguments) => testbed::run(testbed::Part::ControlPlane, &arguments),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_unknown_verb_is_answered_with_the_nearest_one() {
        let error = Arguments::try_parse_from(["cargo xtask", "tols"]).unwrap_err();
        assert!(error.to_string().contains("'tools'"), "{error}");
    }
}
