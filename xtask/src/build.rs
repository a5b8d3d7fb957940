//! The workspace's own programs, as suites, the demo and the lab run them.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::repository::{cargo, run, target};
use crate::{packages, tools};

/// How much the compiler optimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build; for tests and the demo.
    Dev,
    /// For measurements.
    Release,
}

impl Profile {
    /// The folder below the target folder.
    pub fn folder(self) -> PathBuf {
        match self {
            Self::Dev => target().join("debug"),
            Self::Release => target().join("release"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Release => "release",
        }
    }
}

/// The features that build the node agent for real Xen, which makes that program GPL-3.0-only, and with the suite that the
/// lab runs inside dom0.
pub const XEN: &str = "kubexen-node-agent/xen,kubexen-node-agent/conformance";

/// The feature that builds the program that runs the mutants.
pub const MUTANTS: &str = "kubexen-testbed/mutants";

/// The node agent's program.
const AGENT: &str = "kubexen-node-agent";

/// A test program that no feature in [`XEN`] changes.
const TEST_WITHOUT_XEN: &str = "defaults";

/// Builds all programs of the workspace, and these test programs.
///
/// What only tests depend on gives shared dependencies more features. Where tests are to run, programs are built together with
/// one, or else those dependencies and most of the workspace would be built twice, with and without these features.
pub fn programs(profile: Profile, tests: &[&str]) -> Result<()> {
    let tests = tests.iter().flat_map(|test| ["--test", test]);
    run(cargo()?.args(["build", "--workspace", "--bins", "--profile", profile.name()]).args(tests))
}

/// Builds the node agent with the feature `xen`, installs what that needs, and puts it into `target/xen`.
///
/// It has a folder of its own because cargo puts both agents into the same place. To be called before [`programs`], which
/// puts the agent without that feature there again.
fn xen_agent(profile: Profile, tests: &[&str]) -> Result<()> {
    packages::ensure(&packages::FOR_XEN).context("the node agent's feature xen needs Debian packages")?;
    let agent = ["build", "--workspace", "--bin", AGENT, "--features", XEN, "--profile", profile.name()];
    run(cargo()?.args(agent).args(tests.iter().flat_map(|test| ["--test", test])))?;
    let folder = target().join("xen");
    std::fs::create_dir_all(&folder)?;
    let (built, unfinished) = (profile.folder().join(AGENT), folder.join("unfinished"));
    std::fs::copy(&built, &unfinished).with_context(|| format!("cannot copy {}", built.display()))?;
    // Moved into place, because a program that is running cannot be written to.
    std::fs::rename(&unfinished, folder.join(AGENT))?;
    Ok(())
}

/// Builds the program that runs the mutants, and tells where it is. No other program has them in it.
pub fn mutants() -> Result<PathBuf> {
    const PROGRAM: &str = "kubexen-mutants";
    run(cargo()?.args(["build", "--workspace", "--bin", PROGRAM, "--features", MUTANTS]))?;
    Ok(Profile::Dev.folder().join(PROGRAM))
}

/// Builds everything that runs against a real control plane, and these test programs.
pub fn everything(profile: Profile, xen: bool, tests: &[&str]) -> Result<()> {
    tools::ensure()?;
    if xen {
        xen_agent(profile, if tests.is_empty() { &[] } else { &[TEST_WITHOUT_XEN] })?;
    }
    programs(profile, tests)
}
