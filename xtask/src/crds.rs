//! `cargo xtask crds`: what is generated from the API's types.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::build::{self, Profile};
use crate::repository::{root, run as run_command};

/// Write what is generated from the API's types: manifests, the chart's templates, the reference
#[derive(Debug, Args)]
pub struct Arguments {
    /// Write nothing; fail when something differs from the types
    #[arg(long)]
    pub check: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut crdgen = Command::new(build::program(Profile::Dev, "crdgen", &[])?);
    if arguments.check {
        crdgen.arg("--check");
    }
    run_command(crdgen.current_dir(root()))
}
