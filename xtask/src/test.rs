//! `cargo xtask test`: all suites, part by part, and one line that sums them up.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::ops::AddAssign;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::repository::{cargo, output};
use crate::{build, packages, tools};

/// Run the test suites, all parts or those that are named
///
/// A part that fails does not stop the later ones. The last line is always `N passed, N failed, N skipped`, over all parts;
/// the exit status is 0 only when no test failed and at least one ran.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The parts to run, all of them when none is named
    parts: Vec<Part>,
    /// Handed on to the test programs: a part of tests' names, or libtest's options such as --nocapture
    #[arg(last = true)]
    filter: Vec<String>,
}

/// A part of the suites, in the order in which they run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Part {
    /// Tables, properties and conformance of each crate; under a minute when warm
    Unit,
    /// What the real API server accepts, refuses, merges and grants
    Api,
    /// Simulated hosts on a real control plane, and whole pools under virtual time
    E2e,
    /// Real Xen hosts
    Lab,
}

impl Part {
    /// What cargo is asked to test, in one run of it or several. It is always asked about the whole workspace and given
    /// names of targets: for a part of the packages it would choose other features of shared dependencies, and build those
    /// once more.
    fn selections(self) -> Result<Vec<Vec<String>>> {
        let suites = |names: &[&str]| {
            names.iter().flat_map(|name| ["--test".to_owned(), (*name).to_owned()]).collect()
        };
        Ok(match self {
            Self::Unit => {
                // Of the programs only xtask has tests: what the others do is in their libraries.
                let mut tests = ["--lib", "--bin", "xtask"].map(str::to_owned).to_vec();
                tests.extend(integration_tests()?.into_iter().flat_map(|name| ["--test".to_owned(), name]));
                vec![tests, vec!["--doc".to_owned()]]
            }
            Self::Api => vec![suites(&["api"])],
            Self::E2e => vec![suites(&["e2e"])],
            Self::Lab => vec![suites(&["lab"])],
        })
    }

    /// What runs beside the selections, at the lowest priority: it needs the CPUs all the time, and they wait most of theirs.
    fn beside(self) -> Option<Vec<String>> {
        match self {
            Self::E2e => Some(vec!["--test".to_owned(), "simulation".to_owned()]),
            Self::Unit | Self::Api | Self::Lab => None,
        }
    }

    /// How many tests run at a time; as many as there are CPUs if nothing is said. Those on whole pools wait most of their
    /// time: for leases, back-offs and quiet minutes, and for guests to boot.
    fn threads(self) -> Option<usize> {
        match self {
            Self::E2e | Self::Lab => Some(3),
            Self::Unit | Self::Api => None,
        }
    }

    /// Builds the programs that the part runs, and the test programs where a build that came later would take the CPUs from
    /// tests that run by then.
    fn prepare(self, xen: bool) -> Result<()> {
        match self {
            Self::Unit | Self::Api => tools::ensure(),
            Self::E2e => build::everything(build::Profile::Dev, xen, &["e2e", "simulation"]),
            Self::Lab => build::everything(build::Profile::Dev, true, &["lab"]),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unit => "unit",
            Self::Api => "api",
            Self::E2e => "e2e",
            Self::Lab => "lab",
        })
    }
}

/// How all parts are built and which of their tests run.
#[derive(Clone, Copy, Debug)]
struct Choice<'a> {
    /// With what speaks to Xen. It needs Xen's headers to be built, and no Xen to be tested, but in the lab. All parts are
    /// built alike, or else most of the workspace would be built twice.
    xen: bool,
    filter: &'a [String],
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs the verb.
pub fn run(arguments: &Arguments) -> Result<()> {
    let parts = match arguments.parts.as_slice() {
        [] => Part::value_variants().iter().copied().collect::<BTreeSet<_>>(),
        named => named.iter().copied().collect(),
    };
    let packages = packages::ensure(&packages::FOR_XEN);
    if let Err(error) = &packages {
        eprintln!("== SKIPPED: what speaks to Xen: {error:#}");
    }
    let choice = Choice { xen: packages.is_ok(), filter: &arguments.filter };
    let mut total = Counts::default();
    for part in parts {
        let started = Instant::now();
        eprintln!("== {part}");
        let counts = run_part(part, choice);
        eprintln!("== {part}: {counts}, {} s", started.elapsed().as_secs());
        total += counts;
    }
    println!("{total}");
    ensure!(total.failed == 0, "tests failed");
    ensure!(total.passed > 0, "no test ran");
    Ok(())
}

/// Runs one part. What keeps its tests from running at all counts as one failure, so that it shows in the sum.
fn run_part(part: Part, choice: Choice<'_>) -> Counts {
    let mut counts = Counts::default();
    let broken = |error: anyhow::Error| {
        eprintln!("{part}: {error:#}");
        Counts { failed: 1, ..Counts::default() }
    };
    if let Err(error) = part.prepare(choice.xen) {
        return broken(error);
    }
    let selections = match part.selections() {
        Ok(selections) => selections,
        Err(error) => return broken(error),
    };
    let Some(beside) = part.beside() else {
        for selection in selections {
            counts += run_selection(part, &selection, choice).unwrap_or_else(broken);
        }
        return counts;
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| run_beside(part, &beside, choice));
        for selection in selections {
            counts += run_selection(part, &selection, choice).unwrap_or_else(broken);
        }
        eprintln!("== {part}: what ran beside this");
        let ended = beside.join().unwrap_or_else(|_| Err(anyhow!("a thread died")));
        counts += ended.unwrap_or_else(broken);
    });
    counts
}

/// Runs a selection at the lowest priority, and shows its output when it has ended.
fn run_beside(part: Part, selection: &[String], choice: Choice<'_>) -> Result<Counts> {
    let mut tests = cargo()?;
    tests.args(["--config", r#"target."cfg(unix)".runner = ["nice", "-n", "19"]"#]);
    let mut shown = Vec::new();
    let (status, counts, _) =
        count_while_showing(test_selection(&mut tests, part, selection, choice), &mut shown)?;
    std::io::stdout().lock().write_all(&shown)?;
    checked(selection, status, counts)
}

/// The integration tests of every package but the test bed, whose own are the other parts.
fn integration_tests() -> Result<BTreeSet<String>> {
    let text = output(cargo()?.args(["metadata", "--format-version", "1", "--no-deps"]))?;
    integration_tests_in(
        &serde_json::from_str(&text).context("cargo metadata printed something else than JSON")?,
    )
}

fn integration_tests_in(metadata: &Value) -> Result<BTreeSet<String>> {
    let list =
        |value: &Value| value.as_array().cloned().ok_or_else(|| anyhow!("cargo metadata misses a list"));
    let mut names = BTreeSet::new();
    for package in list(&metadata["packages"])?.iter().filter(|package| package["name"] != "kubexen-testbed")
    {
        let targets = list(&package["targets"])?;
        let tests = targets.iter().filter(|target| target["kind"][0] == "test");
        names.extend(tests.filter_map(|target| target["name"].as_str().map(str::to_owned)));
    }
    Ok(names)
}

/// Runs a selection; what fails in the lab runs once more, and the second result counts.
///
/// QEMU's emulation of nested virtualisation resets a guest now and then, about twice in sixty starts on a busy machine:
/// `xl dmesg` then shows the guest with an instruction pointer of Xen's own. That is neither KubeXen's nor Xen's doing, and a
/// test that watches the guest cannot tell. What fails twice is a failure. Tests of recovery have no second try: a guest that ran in
/// two places once is one too many.
fn run_selection(part: Part, selection: &[String], choice: Choice<'_>) -> Result<Counts> {
    let (counts, failed) = run_tests(part, selection, choice)?;
    let final_at_once = |name: &String| name.starts_with("recovery::");
    if part != Part::Lab || failed.is_empty() || failed.iter().any(final_at_once) {
        return Ok(counts);
    }
    eprintln!("== {part}: once more, in case the emulator reset a guest: {}", failed.join(", "));
    let filter = &exactly(choice.filter, &failed);
    let (again, _) = run_tests(part, selection, Choice { filter, ..choice })?;
    Ok(after_second_try(counts, again))
}

/// The filter that chooses these tests alone, with the options that they were chosen with before: one that is left out
/// unless it is asked for would not run.
fn exactly(filter: &[String], names: &[String]) -> Vec<String> {
    let options = filter.iter().filter(|word| word.starts_with('-') && *word != "--exact").cloned();
    options.chain(["--exact".to_owned()]).chain(names.iter().cloned()).collect()
}

/// What counts when the tests that failed ran again: one that did not run has not passed.
fn after_second_try(first: Counts, again: Counts) -> Counts {
    let passed = again.passed.min(first.failed);
    Counts { passed: first.passed + passed, failed: first.failed - passed, skipped: first.skipped }
}

/// Runs `cargo test` on a selection, shows its output as it comes, and counts; with the names of the tests that failed.
fn run_tests(part: Part, selection: &[String], choice: Choice<'_>) -> Result<(Counts, Vec<String>)> {
    let mut tests = cargo()?;
    let tests = test_selection(&mut tests, part, selection, choice);
    let (status, counts, failed) = count_while_showing(tests, &mut std::io::stdout())?;
    Ok((checked(selection, status, counts)?, failed))
}

fn test_selection<'a>(
    command: &'a mut Command,
    part: Part,
    selection: &[String],
    choice: Choice<'_>,
) -> &'a mut Command {
    command.args(["test", "--no-fail-fast", "--workspace"]).args(selection);
    if choice.xen {
        command.args(["--features", build::XEN]);
    }
    command.arg("--");
    if std::io::stdout().is_terminal() {
        // libtest sees a pipe.
        command.arg("--color=always");
    }
    if let Some(threads) = part.threads() {
        command.arg(format!("--test-threads={threads}"));
    }
    command.args(choice.filter)
}

fn checked(selection: &[String], status: ExitStatus, counts: Counts) -> Result<Counts> {
    ensure!(
        status.success() || counts.failed > 0,
        "cargo test --workspace {}: {status} without a failed test: it did not build, or a test program died",
        selection.join(" ")
    );
    Ok(counts)
}

fn count_while_showing(
    command: &mut Command,
    shown: &mut dyn Write,
) -> Result<(ExitStatus, Counts, Vec<String>)> {
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let (mut counts, mut failed) = (Counts::default(), Vec::new());
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("cannot read the output of cargo test")?;
            shown.write_all(&line)?;
            shown.write_all(b"\n")?;
            let line = String::from_utf8_lossy(&line);
            if let Some(result) = parse_result(&line) {
                counts += result;
            }
            failed.extend(parse_failure(&line).map(str::to_owned));
        }
    }
    Ok((child.wait()?, counts, failed))
}

/// The name in a line `test NAME ... FAILED`, with or without colours.
fn parse_failure(line: &str) -> Option<&str> {
    let (name, result) = line.strip_prefix("test ")?.split_once(" ... ")?;
    result.contains("FAILED").then_some(name)
}

/// Reads the line that libtest ends with: `test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; …`.
fn parse_result(line: &str) -> Option<Counts> {
    // With colours, escape sequences surround the word before the numbers.
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number =
        |what: &str| numbers.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    Some(Counts { passed: number(" passed")?, failed: number(" failed")?, skipped: number(" ignored")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted_with_and_without_colours() {
        let expected = Counts { passed: 9, failed: 1, skipped: 2 };
        let plain = "test result: FAILED. 9 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 1.61s";
        assert_eq!(parse_result(plain), Some(expected));
        assert_eq!(parse_result(&plain.replace("FAILED", "\u{1b}[31mFAILED\u{1b}[m")), Some(expected));
    }

    #[test]
    fn the_names_of_failed_tests_are_read_with_and_without_colours() {
        assert_eq!(parse_failure("test life::a_guest ... FAILED"), Some("life::a_guest"));
        assert_eq!(parse_failure("test life::a_guest ... \u{1b}[31mFAILED\u{1b}[m"), Some("life::a_guest"));
        assert_eq!(parse_failure("test life::a_guest ... ok"), None);
    }

    #[test]
    fn a_second_try_keeps_the_options_and_what_does_not_run_in_it_has_failed() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let filter = words(&["--ignored", "--nocapture", "boot"]);
        let again = exactly(&filter, &words(&["boot::a_guest"]));
        assert_eq!(again, words(&["--ignored", "--nocapture", "--exact", "boot::a_guest"]));
        let first = Counts { passed: 3, failed: 2, skipped: 1 };
        let one = Counts { passed: 1, failed: 0, skipped: 1 };
        assert_eq!(after_second_try(first, one), Counts { passed: 4, failed: 1, skipped: 1 });
    }

    #[test]
    fn other_lines_are_not_counted() {
        for line in ["", "running 9 tests", "test result", "test test_result: ok ... ok"] {
            assert_eq!(parse_result(line), None, "{line}");
        }
    }

    #[test]
    fn integration_tests_are_those_of_every_package_but_the_test_bed() {
        let metadata = serde_json::json!({"packages": [
            {"name": "a", "targets": [{"kind": ["lib"], "name": "a"}, {"kind": ["test"], "name": "etcd"}]},
            {"name": "kubexen-testbed", "targets": [{"kind": ["test"], "name": "api"}]},
        ]});
        assert_eq!(integration_tests_in(&metadata).unwrap(), BTreeSet::from(["etcd".to_owned()]));
    }

    #[test]
    fn a_test_program_that_dies_counts_as_a_failure_even_without_a_result() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo about to die; kill -9 $$"]);
        let (status, counts, failed) = count_while_showing(&mut command, &mut Vec::new()).unwrap();
        assert!(!status.success());
        assert_eq!(counts, Counts::default());
        assert!(failed.is_empty());
    }
}
