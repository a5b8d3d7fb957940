//! `kubexen-testbed`: the test bed's programs for people, normally started through `cargo xtask`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use kubexen_testbed::bench::command::BenchCommand;
use kubexen_testbed::control_plane::command::ControlPlaneCommand;
use kubexen_testbed::demo::command::DemoCommand;
use kubexen_testbed::lab::command::LabCommand;
use kubexen_testbed::simulation::command::SimulateCommand;

/// Runs parts of KubeXen's test bed.
#[derive(Debug, Parser)]
#[command(name = "kubexen-testbed", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Bench(BenchCommand),
    ControlPlane(ControlPlaneCommand),
    Demo(DemoCommand),
    Lab(LabCommand),
    Simulate(SimulateCommand),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().verb).await {
        Ok(code) => code,
        // Not returned from main, which would print a backtrace where the environment asks for them.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Bench(command) => command.run().await.map(|()| ExitCode::SUCCESS),
        Verb::ControlPlane(command) => command.run().await.map(|()| ExitCode::SUCCESS),
        Verb::Demo(command) => command.run().await,
        Verb::Lab(command) => command.run().await,
        Verb::Simulate(command) => tokio::task::spawn_blocking(move || command.run()).await?,
    }
}
