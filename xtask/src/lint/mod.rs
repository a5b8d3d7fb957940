//! `cargo xtask lint`: everything about the tree that a program can judge without running it.

mod licences;
mod spdx;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::build::{MUTANTS, XEN};
use crate::repository::{cargo, installed, run as run_command};
use crate::{crds, docs, packages};

/// Check formatting, clippy, rustdoc, generated files, licences and the book
///
/// Every check runs, also after one that failed. Clippy runs on the node agent's feature xen and the mutants too, where Xen's headers and
/// libclang are installed or can be (root on Debian).
#[derive(Debug, Args)]
pub struct Arguments {}

/// A check that could be done, or the reason why it was left out.
enum Outcome {
    Done,
    Skipped(String),
}

type Check = fn() -> Result<Outcome>;

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {} = arguments;
    let checks: [(&str, Check); 8] = [
        ("rustfmt", rustfmt),
        ("clippy", clippy),
        ("clippy on tests and with features xen and mutants", clippy_all),
        ("rustdoc", rustdoc),
        ("generated files", generated_files),
        ("licences", licences),
        ("cargo-deny", cargo_deny),
        ("documentation", documentation),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        eprintln!("== {name}");
        let started = Instant::now();
        match check() {
            Ok(Outcome::Done) => eprintln!("== {name}: in order, {} s", started.elapsed().as_secs()),
            Ok(Outcome::Skipped(reason)) => eprintln!("== {name}: SKIPPED: {reason}"),
            Err(error) => {
                eprintln!("== {name}: FAILED: {error:#}");
                failed.push(name);
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("not in order: {}", failed.join(", "))
}

fn rustfmt() -> Result<Outcome> {
    run_command(cargo()?.args(["fmt", "--all", "--", "--check"]))?;
    Ok(Outcome::Done)
}

fn clippy() -> Result<Outcome> {
    run_clippy(&[])
}

/// Tests are checked here alone: hardly a line of them depends on the features.
fn clippy_all() -> Result<Outcome> {
    if let Err(error) = packages::ensure(&packages::FOR_XEN) {
        run_clippy(&["--all-targets"])?;
        return Ok(Outcome::Skipped(format!("the features; the tests are in order. {error:#}")));
    }
    run_clippy(&["--all-targets", "--features", &format!("{XEN},{MUTANTS}")])
}

fn run_clippy(what: &[&str]) -> Result<Outcome> {
    let mut command = cargo()?;
    command.args(["clippy", "--quiet", "--locked", "--workspace"]).args(what);
    run_command(command.args(["--", "-Dwarnings"]))?;
    Ok(Outcome::Done)
}

fn rustdoc() -> Result<Outcome> {
    let mut command = cargo()?;
    command.args(["doc", "--quiet", "--locked", "--workspace", "--no-deps"]);
    run_command(command.env("RUSTDOCFLAGS", "-Dwarnings"))?;
    Ok(Outcome::Done)
}

fn generated_files() -> Result<Outcome> {
    crds::run(&crds::Arguments { check: true })?;
    Ok(Outcome::Done)
}

fn licences() -> Result<Outcome> {
    licences::check()?;
    Ok(Outcome::Done)
}

fn cargo_deny() -> Result<Outcome> {
    if !installed("cargo-deny") {
        let reason = "bans, sources and advisories need it: cargo install --locked cargo-deny";
        return Ok(Outcome::Skipped(reason.to_owned()));
    }
    run_command(cargo()?.args(["deny", "check", "licenses", "bans", "sources"]))?;
    Ok(Outcome::Done)
}

fn documentation() -> Result<Outcome> {
    docs::build()?;
    Ok(Outcome::Done)
}
