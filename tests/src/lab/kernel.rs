//! Kernels in the forms that QEMU and libxl take: decompressed beforehand, because software-emulated CPUs need many
//! seconds for what this machine does in one.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// First bytes of an xz stream.
const XZ_MAGIC: &[u8] = b"\xfd7zXZ\x00";

/// Writes the ELF kernel that is packed in a bzImage.
///
/// # Errors
/// When the image holds no xz stream that unpacks to an ELF file (Debian's kernels are packed with xz), or xz does not run.
pub fn extract_vmlinux(image: &Path, target: &Path) -> Result<()> {
    let bytes = std::fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let starts = bytes.windows(XZ_MAGIC.len()).enumerate().filter(|(_, window)| *window == XZ_MAGIC);
    for (start, _) in starts {
        // Behind the stream stands the rest of the image, which --single-stream ignores.
        let unpacked = filter("xz", &["--decompress", "--stdout", "--single-stream"], &bytes[start..])?;
        if unpacked.starts_with(b"\x7fELF") {
            return Ok(std::fs::write(target, unpacked)?);
        }
    }
    bail!("{} holds no kernel packed with xz", image.display())
}

/// Unpacks a gzip file, as Debian's hypervisor is.
///
/// # Errors
/// When gzip does not run, or the file does not unpack to anything.
pub fn gunzip(packed: &Path, target: &Path) -> Result<()> {
    let bytes = std::fs::read(packed).with_context(|| format!("cannot read {}", packed.display()))?;
    let unpacked = filter("gzip", &["--decompress", "--stdout"], &bytes)?;
    if unpacked.is_empty() {
        bail!("{} does not unpack", packed.display());
    }
    Ok(std::fs::write(target, unpacked)?)
}

/// What a program writes when it is given this input; its exit code and messages are not looked at.
fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("{program} does not run"))?;
    let mut stdin = child.stdin.take().context("a child without its input")?;
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that has seen enough closes its input, which is no failure.
            let _ = stdin.write_all(input);
        });
        child.wait_with_output()
    })?;
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_behind_decoys_and_before_trailing_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (image, target) = (folder.path().join("bzImage"), folder.path().join("vmlinux"));
        let kernel = [&b"\x7fELF"[..], &[7; 5000]].concat();
        let packed = filter("xz", &["--compress", "--stdout"], &kernel).unwrap();
        std::fs::write(&image, [b"setup code", XZ_MAGIC, b"decoy", &packed, b"signature"].concat()).unwrap();
        extract_vmlinux(&image, &target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), kernel);
    }

    #[test]
    fn an_image_without_a_kernel_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("bzImage");
        std::fs::write(&image, "no kernel").unwrap();
        let error = extract_vmlinux(&image, &folder.path().join("vmlinux")).unwrap_err();
        assert!(error.to_string().contains("bzImage"), "{error}");
    }
}
