//! `kubexen-node-agent`: see `kubexen_node_agent`.

use clap::Parser;
use kubexen_node_agent::args::Arguments;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
