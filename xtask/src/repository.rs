//! The source tree, and how programs are run on it.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};

/// The root of the source tree.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |folder| root().join(folder))
}

/// Where the control plane's programs are.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// A cargo command in the root of the tree, with what the workspace's build scripts and tests need in its environment.
///
/// # Errors
/// On a platform that the crate `protoc-bin-vendored` has no `protoc` for.
pub fn cargo() -> Result<Command> {
    let protoc = protoc_bin_vendored::protoc_bin_path().context(
        "install protobuf-compiler and build with cargo itself; etcd-client's build script needs protoc",
    )?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("PROTOC", protoc).env("KUBEXEN_TOOLS", tools());
    for (name, _) in std::env::vars_os().filter(|(name, _)| describes_a_package(name)) {
        command.env_remove(name);
    }
    Ok(command)
}

/// Whether cargo has set this variable to describe xtask itself.
///
/// Build scripts may watch these (ring's does): were they handed on, everything above ring would be built again at each change
/// between `cargo xtask` and cargo alone.
fn describes_a_package(variable: &OsStr) -> bool {
    let variable = variable.to_string_lossy();
    variable.starts_with("CARGO_PKG_") || variable.starts_with("CARGO_MANIFEST_")
}

/// Runs a command to its end, with its output shown.
///
/// # Errors
/// When it cannot be started or says that it failed.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {}", line(command)))?;
    ensure!(status.success(), "`{}` failed ({status})", line(command));
    Ok(())
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started, says that it failed, or prints something that is not UTF-8.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", line(command)))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", line(command), output.status, message.trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Becomes another program, so that signals meant for this one reach it.
///
/// # Errors
/// Always: it returns only when the program cannot be executed.
pub fn become_program(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(anyhow!(error).context(format!("cannot run {}", line(command))))
}

/// Whether a program of this name is on the search path.
pub fn installed(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(program).is_file()))
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_is_not_told_about_the_package_xtask() {
        let command = cargo().unwrap();
        let removed = |name: &str| command.get_envs().any(|(key, value)| key == name && value.is_none());
        // Cargo sets both for the test program as well.
        assert!(removed("CARGO_MANIFEST_DIR") && removed("CARGO_PKG_NAME"));
    }
}
