//! `cargo xtask docs`: the book under `docs/`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::markdown;
use crate::repository::{self, cargo, installed, root, run as run_command, target};

/// The mdBook that builds the book where none is installed.
const MDBOOK: &str = "0.5.4";

/// Check the book's links and table of contents, and build it into target/book
///
/// mdBook is taken from the search path, or else built into target/tools once, which takes about two minutes.
#[derive(Debug, Args)]
pub struct Arguments {}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let Arguments {} = arguments;
    let book = build()?;
    eprintln!("the book is in {}", book.display());
    Ok(())
}

/// Checks the book, builds it, and tells where it is.
///
/// # Errors
/// When a link or the table of contents is broken, or mdBook cannot be installed or refuses the book.
pub fn build() -> Result<PathBuf> {
    check()?;
    let book = target().join("book");
    let mut command = Command::new(mdbook()?);
    command.args(["build", "--dest-dir"]).arg(&book).arg("docs").current_dir(root());
    let output = command.output().context("cannot run mdbook")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // What mdBook only warns of is text that a reader does not get to see.
    ensure!(output.status.success() && !said.contains("WARN"), "mdbook does not like the book:\n{said}");
    Ok(book)
}

/// The program mdBook, built if there is none.
fn mdbook() -> Result<PathBuf> {
    if installed("mdbook") {
        return Ok(PathBuf::from("mdbook"));
    }
    let folder = repository::tools().join(format!("mdbook-{MDBOOK}"));
    let program = folder.join("bin").join("mdbook");
    if !program.is_file() {
        eprintln!("building mdbook {MDBOOK} ...");
        install(&folder)?;
    }
    Ok(program)
}

/// Builds mdBook without its server and search, and unoptimised: it has a handful of pages to convert.
fn install(folder: &Path) -> Result<()> {
    let mut command = cargo()?;
    command.args([
        "install",
        "--quiet",
        "--locked",
        "--debug",
        "--no-default-features",
        "--version",
        MDBOOK,
        "--root",
    ]);
    run_command(command.arg(folder).arg("mdbook"))
}

/// Checks the links of all pages and of the README, and that every page is in the book's table of contents.
///
/// # Errors
/// When something is broken; all of it is listed.
fn check() -> Result<()> {
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
