//! Where the programs are that the test bed runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

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

/// The path of one of the workspace's own programs, such as `kubexen-controller`, as it was built with this one.
///
/// # Errors
/// When the program is not there.
pub fn own(name: &str) -> Result<PathBuf> {
    found(own_folder()?.join(name), "cargo build --workspace --bins")
}

/// The path of the node agent that was built with the feature `xen`.
///
/// # Errors
/// When the program is not there.
pub fn xen_agent() -> Result<PathBuf> {
    found(own_folder()?.join("../xen/kubexen-node-agent"), "cargo xtask demo --xen` or `cargo xtask test lab")
}

/// The folder that cargo has put this program's siblings into.
fn own_folder() -> Result<PathBuf> {
    let this = std::env::current_exe().context("cannot tell where this program is")?;
    let folder = this.parent().unwrap_or(Path::new("."));
    // Test programs are one folder deeper than the others.
    Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned())
}

fn found(path: PathBuf, command: &str) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{} is missing: run `{command}`", path.display());
    }
    Ok(path)
}
