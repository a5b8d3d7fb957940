//! The repair of QEMU without which a UEFI guest ends its host: `files/qemu-interrupt.c` says what and why.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::cache::Digest;
use super::guest::run;

const SOURCE: &str = include_str!("files/qemu-interrupt.c");

/// Its name in a lab's folder.
pub const FILE: &str = "qemu-interrupt.so";

/// The digest of what [`write`] writes.
pub fn digest() -> Digest {
    let mut digest = Digest::default();
    digest.part(SOURCE.as_bytes());
    digest
}

/// Compiles it, with the compiler that links Rust's programs too.
///
/// # Errors
/// When the compiler does not run, or refuses the source.
pub fn write(target: &Path) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let source = scratch.path().join("qemu-interrupt.c");
    std::fs::write(&source, SOURCE)?;
    // Lazily bound: what starts QEMU gets the repair loaded as well, and has none of the functions that it calls.
    let options = ["-O2", "-Wall", "-Werror", "-fPIC", "-shared", "-Wl,-z,lazy", "-o"];
    run(Command::new("cc").args(options).args([target, &source]))
}
