//! Where cargo put our own programs.

use anyhow::{Result, bail};
use std::path::PathBuf;

/// Which build of our programs is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// `target/debug`: what tests run.
    #[default]
    Debug,
    /// `target/release`: what benchmarks run.
    Release,
}

/// The path of one of our programs, such as `kubexen-controller`.
///
/// # Errors
/// When it was not built.
pub fn program(name: &str, profile: Profile) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| crate::programs::repository().join("target"), PathBuf::from);
    let (folder, flag) = match profile {
        Profile::Debug => ("debug", ""),
        Profile::Release => ("release", " --release"),
    };
    let path = target.join(folder).join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo build{flag} --bins`, or go through `cargo xtask`", path.display());
    }
    Ok(path)
}
