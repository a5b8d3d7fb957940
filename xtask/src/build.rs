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

/// The features that build the node agent for real Xen, which makes what contains it GPL-3.0-only, and with the suite that the
/// lab runs inside dom0.
pub const XEN: &str = "kubexen-node-agent/xen,kubexen-node-agent/conformance";

/// The feature that builds the program that runs the mutants.
pub const MUTANTS: &str = "kubexen-testbed/mutants";

/// The node agent's program.
const AGENT: &str = "kubexen-node-agent";

/// A test program that is quick to build.
const ANY_TEST: &str = "defaults";

/// Builds all programs of the workspace, and these test programs.
pub fn programs(profile: Profile, tests: &[&str]) -> Result<()> {
    build(profile, &["--bins"], tests)
}

/// Builds one program of the workspace and tells where it is.
pub fn program(profile: Profile, name: &str, features: &[&str]) -> Result<PathBuf> {
    build(profile, &[&["--bin", name], features].concat(), &[])?;
    Ok(profile.folder().join(name))
}

/// Builds what cargo is asked for.
///
/// What only tests depend on gives shared dependencies more features, and parts of the workspace asked for alone would leave some
/// out. Whatever is built is therefore built for the whole workspace and, in the profile that tests are built in, together with a
/// test program, or else those dependencies and most of the workspace would be built anew for every verb.
fn build(profile: Profile, what: &[&str], tests: &[&str]) -> Result<()> {
    let any_test = match profile {
        Profile::Dev => Some(ANY_TEST),
        Profile::Release => None,
    };
    let tests = any_test.iter().chain(tests).flat_map(|test| ["--test", test]);
    run(cargo()?.args(["build", "--workspace", "--profile", profile.name()]).args(what).args(tests))
}

/// As [`programs`], with the node agent for real Xen, which is put into `target/xen` too; installs what that needs.
///
/// It has a folder of its own because cargo puts an agent without the feature into the same place whenever one is built.
fn programs_for_xen(profile: Profile, tests: &[&str]) -> Result<()> {
    packages::ensure(&packages::FOR_XEN).context("the node agent's feature xen needs Debian packages")?;
    build(profile, &["--bins", "--features", XEN], tests)?;
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
    program(Profile::Dev, "kubexen-mutants", &["--features", MUTANTS])
}

/// Builds everything that runs against a real control plane, with the node agent for real Xen if that is wanted, and these test
/// programs.
pub fn everything(profile: Profile, xen: bool, tests: &[&str]) -> Result<()> {
    tools::ensure()?;
    if xen { programs_for_xen(profile, tests) } else { programs(profile, tests) }
}
