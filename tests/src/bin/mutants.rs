//! `kubexen-mutants`: shows that the suite finds every fault that is built in on purpose; started by `cargo xtask mutants`.

use clap::Parser;
use kubexen_testbed::simulation::mutants::MutantsCommand;
use std::process::ExitCode;

fn main() -> ExitCode {
    match MutantsCommand::parse().run() {
        Ok(code) => code,
        // Not returned from main, which would print a backtrace where the environment asks for them.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
