//! Debian packages that parts of the build need.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, anyhow};

use crate::repository::{installed, run};

/// What the node agent's feature `xen` needs to build: `xenctrl.h`, and libclang to read it.
pub const FOR_XEN: [&str; 2] = ["libxen-dev", "libclang-dev"];

/// Makes sure that the packages are installed: installs what is missing where this runs as root on Debian.
///
/// # Errors
/// Where packages are missing and cannot be installed; the message says what to do.
pub fn ensure(packages: &[&str]) -> Result<()> {
    if !installed("dpkg-query") {
        // Not Debian: the header tells whether Xen's development files are there under another package name.
        let present = Path::new("/usr/include/xenctrl.h").is_file();
        return present.then_some(()).ok_or_else(|| {
            anyhow!("install what Debian calls {} (Xen's headers, libclang)", packages.join(" and "))
        });
    }
    let missing = packages.iter().copied().filter(|package| !is_installed(package)).collect::<Vec<_>>();
    if missing.is_empty() {
        return Ok(());
    }
    // The owner of a process's folder in /proc is its effective user.
    if std::fs::metadata("/proc/self")?.uid() != 0 {
        return Err(anyhow!("run `sudo apt-get install --no-install-recommends {}`", missing.join(" ")));
    }
    eprintln!("installing {} ...", missing.join(" "));
    let mut install = Command::new("apt-get");
    install
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["install", "--yes", "--quiet", "--no-install-recommends"])
        .args(&missing)
        .stdout(Stdio::null());
    if run(&mut install).is_ok() {
        return Ok(());
    }
    // The package lists of a fresh machine are empty or old.
    run(Command::new("apt-get").args(["update", "--quiet"]).stdout(Stdio::null()))?;
    run(&mut install)
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}
