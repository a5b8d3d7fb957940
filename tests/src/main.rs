//! `kubexen-testbed`: the test bed's programs for people, normally started through `cargo xtask`.

use anyhow::Result;
use clap::{Parser, Subcommand};
use kubexen_testbed::control_plane::command::ControlPlaneCommand;

/// Runs parts of KubeXen's test bed.
#[derive(Debug, Parser)]
#[command(name = "kubexen-testbed", version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    ControlPlane(ControlPlaneCommand),
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().verb {
        Verb::ControlPlane(command) => command.run().await,
    }
}
