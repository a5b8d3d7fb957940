//! The files that a lab host boots from, built from Debian's packages and kept in a cache.
//!
//! dom0's file system is two archives, one behind the other, which Linux unpacks in turn: the base is the same for all
//! labs and is rebuilt only when something in it changes; the overlay holds what belongs to one lab and the programs
//! under test, so that a new agent binary costs nothing but its copy.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::cache::{Cache, Digest};
use super::dom0::{self, GuestFiles};
use super::guest;
use super::kernel;
use super::libraries::add_program;
use super::modules::Modules;
use super::packages::{self, Unpacked};
use super::repair;
use crate::progress::Step;

/// A file of this machine that is to stand in every dom0 of a lab.
///
/// A program is stripped of debugging information and brings its shared libraries along; other files are copied as they
/// are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Where it is.
    pub source: PathBuf,
    /// Absolute path in dom0.
    pub destination: String,
}

impl FromStr for Extra {
    type Err = anyhow::Error;

    /// Reads `SOURCE:DESTINATION`.
    fn from_str(text: &str) -> Result<Self> {
        match text.rsplit_once(':') {
            Some((source, destination)) if !source.is_empty() && destination.starts_with('/') => {
                Ok(Self { source: PathBuf::from(source), destination: destination.to_owned() })
            }
            _ => bail!("{text:?} is not of the form SOURCE:/DESTINATION"),
        }
    }
}

/// What a host boots from; files in the cache, valid while no other version is built many times over.
#[derive(Debug, Clone)]
pub struct Image {
    /// The hypervisor, an ELF file.
    pub xen: PathBuf,
    /// dom0's kernel, a bzImage.
    pub kernel: PathBuf,
    /// The base of dom0's file system.
    pub base: PathBuf,
    /// What QEMU is started with so that UEFI guests do not end it, a shared library.
    pub repair: PathBuf,
}

/// Builds what is missing or has changed, from packages that it installs or downloads if they are missing.
///
/// # Errors
/// When packages are missing and cannot be installed, or a part cannot be built.
pub async fn build(cache: &Path) -> Result<Image> {
    packages::install().await?;
    let cache = cache.to_owned();
    let locked = tokio::task::spawn_blocking(move || Cache::open(&cache)).await??;
    let unpacked = packages::unpack(locked.folder()).await?;
    tokio::task::spawn_blocking(move || build_parts(&locked, &unpacked)).await?
}

fn build_parts(cache: &Cache, unpacked: &Unpacked) -> Result<Image> {
    let packed_xen = one_file(&unpacked.hypervisor.join("boot"), "xen-", ".gz")?;
    let xen = cache.part("xen", file_digest(&packed_xen)?, |target| kernel::gunzip(&packed_xen, target))?;

    let vmlinuz = one_file(&unpacked.kernel.join("boot"), "vmlinuz-", "")?;
    let vmlinux =
        cache.part("vmlinux", file_digest(&vmlinuz)?, |target| kernel::extract_vmlinux(&vmlinuz, target))?;

    let modules = Modules::of(&unpacked.kernel)?;
    let guest = guest::archive(&modules)?;
    let initrd = cache.part("guest", guest.digest()?, |target| {
        guest.write(&mut BufWriter::new(File::create(target)?))?;
        compress(target)
    })?;

    let hvm_disk = cache.part("hvm-disk", guest::hvm_disk_digest(), guest::write_hvm_disk)?;
    let uefi_program = cache.part("uefi-program", guest::uefi_program_digest(), guest::write_uefi_program)?;

    let guest_files = GuestFiles { vmlinux, vmlinuz: vmlinuz.clone(), initrd, hvm_disk, uefi_program };
    let dom0 = dom0::archive(&modules, &guest_files)?;
    let base = cache.part("dom0", dom0.digest()?, |target| {
        let step = Step::begin("building the dom0 image");
        let mut output = BufWriter::new(File::create(target)?);
        dom0.write(&mut output)?;
        output.flush()?;
        step.done();
        Ok(())
    })?;
    let repair = cache.part("qemu-interrupt", repair::digest(), repair::write)?;
    Ok(Image { xen, kernel: vmlinuz, base, repair })
}

/// Writes the base and behind it the overlay to `target`: a dom0 file system as QEMU hands it to Xen.
///
/// # Errors
/// When an extra is missing, or the file cannot be written.
pub fn assemble(image: &Image, overlay: &Archive, target: &Path) -> Result<()> {
    let mut output = File::create(target).with_context(|| format!("cannot create {}", target.display()))?;
    std::io::copy(&mut File::open(&image.base)?, &mut output)?;
    let mut output = BufWriter::new(output);
    overlay.write(&mut output)?;
    Ok(output.flush()?)
}

/// Adds extras to an overlay; programs are stripped into `scratch`, which must live until the overlay is written.
///
/// # Errors
/// When a file or one of its libraries is missing, or strip does not run.
pub fn add_extras(overlay: &mut Archive, extras: &[Extra], scratch: &Path) -> Result<()> {
    for (index, extra) in extras.iter().enumerate() {
        let mut start = [0; 4];
        let read = File::open(&extra.source).and_then(|mut file| std::io::Read::read(&mut file, &mut start));
        read.with_context(|| format!("cannot read {}", extra.source.display()))?;
        if &start != b"\x7fELF" {
            overlay.file(&extra.destination, &extra.source)?;
            continue;
        }
        let stripped = scratch.join(index.to_string());
        let status =
            Command::new("strip").arg("--strip-debug").arg("-o").args([&stripped, &extra.source]).status();
        if !status.context("strip does not run")?.success() {
            bail!("strip could not read {}", extra.source.display());
        }
        add_program(overlay, &extra.destination, &stripped)?;
    }
    Ok(())
}

/// Replaces a file by what gzip makes of it.
fn compress(path: &Path) -> Result<()> {
    let output = Command::new("gzip").args(["--no-name", "--stdout", "-6"]).arg(path).output()?;
    if !output.status.success() {
        bail!("gzip failed on {}", path.display());
    }
    Ok(std::fs::write(path, output.stdout)?)
}

fn file_digest(path: &Path) -> Result<Digest> {
    let mut digest = Digest::default();
    digest.part(&std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?);
    Ok(digest)
}

/// The one file of a folder whose name begins and ends so.
fn one_file(folder: &Path, prefix: &str, suffix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) && name.ends_with(suffix) {
            found.push(entry.path());
        }
    }
    found.into_iter().max().with_context(|| format!("{} holds no {prefix}*{suffix}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_extra_is_a_source_and_an_absolute_destination() {
        let extra: Extra = "target/debug/agent:/usr/bin/agent".parse().unwrap();
        assert_eq!(
            extra,
            Extra { source: "target/debug/agent".into(), destination: "/usr/bin/agent".into() }
        );
        for wrong in ["agent", "agent:relative", ":/usr/bin/agent"] {
            assert!(wrong.parse::<Extra>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_program_under_test_brings_its_libraries_and_a_text_file_does_not() {
        let scratch = tempfile::tempdir().unwrap();
        let text = scratch.path().join("config");
        std::fs::write(&text, "x").unwrap();
        let extras = [
            Extra { source: "/bin/true".into(), destination: "/usr/bin/agent".into() },
            Extra { source: text, destination: "/etc/kubexen/agent.yaml".into() },
        ];
        let mut overlay = Archive::new();
        add_extras(&mut overlay, &extras, scratch.path()).unwrap();
        assert!(overlay.contains("/usr/bin/agent") && overlay.contains("/etc/kubexen/agent.yaml"));
        assert!(overlay.contains("/lib64/ld-linux-x86-64.so.2"));
    }
}
