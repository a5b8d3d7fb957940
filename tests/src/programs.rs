//! Where the programs are that the test bed runs.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// The environment variable that names the folder of the control plane's programs.
pub const TOOLS: &str = "KUBEXEN_TOOLS";

/// The root of the source tree that this program was built from.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The path of one of the programs that `cargo xtask tools` provides, such as `etcd` or `kubectl`.
///
/// They are looked for in the folder that [`TOOLS`] names, otherwise in `target/tools`.
///
/// # Errors
/// When the program is not there.
pub fn tool(name: &str) -> Result<PathBuf> {
    let folder = std::env::var_os(TOOLS).map_or_else(|| repository().join("target/tools"), PathBuf::from);
    found(folder.join(name), "cargo xtask tools")
}

/// The path of the node agent that was built with the feature `xen`. It has a folder of its own, in whatever profile, because
/// cargo puts agents with and without the feature into the same place.
///
/// # Errors
/// When the program is not there.
pub fn xen_agent() -> Result<PathBuf> {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from);
    found(target.join("xen/kubexen-node-agent"), "cargo xtask demo --xen` or `cargo xtask test lab")
}

fn found(path: PathBuf, command: &str) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{} is missing: run `{command}`", path.display());
    }
    Ok(path)
}
