//! Debian's packages that the lab is made of.
//!
//! Programs that run on this machine or are copied into dom0 are installed. The hypervisor and the kernel are only
//! downloaded and unpacked into the cache: installing them would change how this machine boots.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::progress::Step;

/// Installed packages, each with what the lab takes from it in its name or in [`super::dom0`].
const INSTALLED: [&str; 20] = [
    "binutils",
    "busybox-static",
    "dmsetup",
    "e2fsprogs",
    "grub-xen-host",
    "gzip",
    "ipxe-qemu",
    "iproute2",
    "lvm2",
    "nftables",
    "ovmf",
    "qemu-system-x86",
    "qemu-system-xen",
    "seabios",
    "socat",
    "util-linux",
    "xen-utils-4.17",
    "xen-utils-common",
    "xenstore-utils",
    "xz-utils",
];

/// The hypervisor; of the same Xen release as the tools above, because the two speak an unstable interface.
const HYPERVISOR: &str = "xen-hypervisor-4.17-amd64";

/// Names of Debian 12's kernels; the number in the middle is the ABI and grows with each security update.
const KERNEL_PREFIX: &str = "linux-image-6.1.0-";
const KERNEL_SUFFIX: &str = "-amd64-unsigned";

/// Folders of the unpacked packages.
#[derive(Debug, Clone)]
pub struct Unpacked {
    /// Of the hypervisor's package.
    pub hypervisor: PathBuf,
    /// Of the kernel's package.
    pub kernel: PathBuf,
}

/// Installs the packages that are missing, which needs root.
///
/// # Errors
/// On a system without dpkg, and when packages are missing that this user may not install: the message is the command
/// to run. When apt-get fails, with its own words.
pub async fn install() -> Result<()> {
    let missing = missing().await?;
    if missing.is_empty() {
        return Ok(());
    }
    let command = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("the lab needs packages that are not installed; run as root: {command}");
    }
    let step = Step::begin(format!("installing {} Debian packages", missing.len()));
    let install = [&["install", "--yes", "--no-install-recommends"][..], &missing[..]].concat();
    if apt_get(&install, Path::new("/")).await.is_err() {
        apt_get(&["update"], Path::new("/")).await?;
        apt_get(&install, Path::new("/")).await.with_context(|| format!("try by hand: {command}"))?;
    }
    step.done();
    Ok(())
}

/// Downloads and unpacks hypervisor and kernel below `cache`, unless that was done before.
///
/// # Errors
/// When apt cannot download them, or they cannot be unpacked.
pub async fn unpack(cache: &Path) -> Result<Unpacked> {
    let folder = cache.join("packages");
    tokio::fs::create_dir_all(&folder)
        .await
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let hypervisor = match unpacked(&folder, HYPERVISOR)? {
        Some(found) => found,
        None => download(&folder, HYPERVISOR).await?,
    };
    let kernel = match unpacked(&folder, KERNEL_PREFIX)? {
        Some(found) => found,
        None => {
            let package = match newest_kernel().await? {
                Some(package) => package,
                None => {
                    apt_get(&["update"], Path::new("/")).await?;
                    newest_kernel()
                        .await?
                        .context("apt knows no linux-image-6.1.0-*-amd64-unsigned: is this Debian 12?")?
                }
            };
            download(&folder, &package).await?
        }
    };
    Ok(Unpacked { hypervisor, kernel })
}

/// Which of the packages are not installed.
async fn missing() -> Result<Vec<&'static str>> {
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\\n"])
        .args(INSTALLED)
        .output()
        .await
        .context("the lab is made of Debian 12's packages, and dpkg-query does not run here")?;
    // dpkg-query fails when it knows nothing of one package; those are missing as well.
    let report = String::from_utf8_lossy(&output.stdout);
    let installed = |package: &str| report.lines().any(|line| line == format!("{package} installed"));
    Ok(INSTALLED.into_iter().filter(|package| !installed(package)).collect())
}

/// A package's folder in the cache, complete if it exists: see [`download`].
fn unpacked(folder: &Path, prefix: &str) -> Result<Option<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let named = entry.file_name().to_string_lossy().starts_with(prefix);
        if named && entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found.into_iter().max())
}

/// Downloads a package and unpacks it into a folder named as its file is; the folder appears only when it is complete.
async fn download(folder: &Path, package: &str) -> Result<PathBuf> {
    let step = Step::begin(format!("downloading and unpacking {package}"));
    let scratch = tempfile::tempdir_in(folder)?;
    if apt_get(&["download", package], scratch.path()).await.is_err() {
        apt_get(&["update"], Path::new("/")).await?;
        apt_get(&["download", package], scratch.path()).await?;
    }
    let archive = std::fs::read_dir(scratch.path())?
        .next()
        .with_context(|| format!("apt-get download {package} left no file"))??
        .path();
    let name = archive.file_stem().context("a package file without a name")?.to_owned();
    let target = scratch.path().join("unpacked");
    let status = Command::new("dpkg-deb").arg("--extract").args([&archive, &target]).status().await?;
    if !status.success() {
        bail!("dpkg-deb could not unpack {} ({status})", archive.display());
    }
    let kept = folder.join(name);
    tokio::fs::rename(&target, &kept).await?;
    step.done();
    Ok(kept)
}

/// The kernel with the highest ABI number that apt offers.
async fn newest_kernel() -> Result<Option<String>> {
    let output = Command::new("apt-cache").args(["pkgnames", KERNEL_PREFIX]).output().await?;
    Ok(newest(&String::from_utf8_lossy(&output.stdout)))
}

/// Picks the kernel with the highest ABI number from one package name per line.
fn newest(names: &str) -> Option<String> {
    let abi = |name: &str| name.strip_prefix(KERNEL_PREFIX)?.strip_suffix(KERNEL_SUFFIX)?.parse::<u32>().ok();
    let newest = names.lines().filter_map(|name| Some((abi(name)?, name))).max()?;
    Some(newest.1.to_owned())
}

/// Runs apt-get and shows what it said if it fails.
async fn apt_get(arguments: &[&str], folder: &Path) -> Result<()> {
    let output = Command::new("apt-get")
        .args(arguments)
        .current_dir(folder)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("apt-get does not run")?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("apt-get {} failed ({}):\n{}", arguments.join(" "), output.status, errors.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_number_and_no_flavour() {
        let names = "linux-image-6.1.0-9-amd64-unsigned\nlinux-image-6.1.0-56-amd64-unsigned\n\
                     linux-image-6.1.0-57-rt-amd64-unsigned\nlinux-image-6.1.0-58-amd64\n";
        assert_eq!(newest(names).as_deref(), Some("linux-image-6.1.0-56-amd64-unsigned"));
        assert_eq!(newest("linux-image-6.1.0-58-amd64\n"), None);
    }
}
