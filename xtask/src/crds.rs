//! `cargo xtask crds`: what is generated from the API's types.

use anyhow::Result;
use clap::Args;

use crate::repository::{cargo, run as run_command};

/// Write what is generated from the API's types: manifests, the chart's templates, the reference
#[derive(Debug, Args)]
pub struct Arguments {
    /// Write nothing; fail when something differs from the types
    #[arg(long)]
    pub check: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut command = cargo()?;
    command.args(["run", "--quiet", "-p", "kubexen-crds", "--bin", "crdgen"]);
    if arguments.check {
        command.args(["--", "--check"]);
    }
    run_command(&mut command)
}
