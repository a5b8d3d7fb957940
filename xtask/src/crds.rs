//! `cargo xtask crds`: what is generated from the API's types.

use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::build::Profile;
use crate::repository::{cargo, root, run as run_command};

/// Write what is generated from the API's types: manifests, the chart's templates, the reference
#[derive(Debug, Args)]
pub struct Arguments {
    /// Write nothing; fail when something differs from the types
    #[arg(long)]
    pub check: bool,
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    // Asked about the whole workspace, so that dependencies are built with the features that everything else uses.
    run_command(cargo()?.args(["build", "--quiet", "--workspace", "--bin", "crdgen"]))?;
    let mut crdgen = Command::new(Profile::Dev.folder().join("crdgen"));
    if arguments.check {
        crdgen.arg("--check");
    }
    run_command(crdgen.current_dir(root()))
}
