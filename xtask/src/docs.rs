//! `cargo xtask docs`: the book under `docs/`.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};
use clap::Args;

use crate::markdown;
use crate::repository::{installed, root, run as run_command};

/// Check the book's links and table of contents, and build it where mdbook is installed
#[derive(Debug, Args)]
pub struct Arguments {}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {} = arguments;
    check()?;
    if !installed("mdbook") {
        eprintln!(
            "links and table of contents are in order; to build the book, run `cargo install mdbook` first"
        );
        return Ok(());
    }
    run_command(Command::new("mdbook").args(["build", "docs"]).current_dir(root()))
}

/// Checks the links of all pages and of the README, and that every page is in the book's table of contents.
///
/// # Errors
/// When something is broken; all of it is listed.
pub fn check() -> Result<()> {
    let docs = root().join("docs");
    let pages = markdown::files_below(&docs)?;
    let mut files = pages.clone();
    files.extend(Some(root().join("README.md")).filter(|readme| readme.is_file()));
    let mut problems = markdown::broken_links(&files)?;
    problems.extend(unlisted(&docs.join("SUMMARY.md"), &pages)?);
    if problems.is_empty() {
        return Ok(());
    }
    bail!("broken documentation:\n{}", problems.join("\n"))
}

/// Pages that mdBook would leave out, because its table of contents does not name them.
fn unlisted(summary: &PathBuf, pages: &[PathBuf]) -> Result<Vec<String>> {
    let listed = markdown::linked_files(summary)?;
    let unlisted = pages.iter().filter(|page| *page != summary && !listed.contains(*page));
    Ok(unlisted.map(|page| format!("{}: not listed in docs/SUMMARY.md", page.display())).collect())
}
