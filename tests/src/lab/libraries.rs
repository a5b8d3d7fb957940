//! Programs with the shared libraries that they load.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::archive::Archive;

/// Adds a program at `target`, and at their own paths the libraries that the dynamic linker would load for it.
///
/// # Errors
/// When the program is missing, or a library that it needs.
pub fn add_program(archive: &mut Archive, target: &str, source: &Path) -> Result<()> {
    archive.file(target, source)?;
    for library in libraries(source)? {
        archive.file(&library.to_string_lossy(), &library)?;
    }
    Ok(())
}

/// Paths of the libraries of a program, the dynamic linker's own included; none for a script or a static program.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd does not run")?;
    parse(&String::from_utf8_lossy(&output.stdout))
        .with_context(|| format!("{} cannot run", program.display()))
}

/// Reads ldd's lines: `name => /path (address)`, `/path (address)`, or `name (address)` for what the kernel provides.
fn parse(report: &str) -> Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for line in report.lines().map(str::trim) {
        if line.ends_with("=> not found") {
            bail!("a library is missing: {line}");
        }
        let target = line.split_once("=> ").map_or(line, |(_, path)| path);
        if target.starts_with('/')
            && let Some((path, _)) = target.rsplit_once(" (")
        {
            paths.insert(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_linker_are_found_and_the_vdso_is_not() {
        let report = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths: Vec<_> = parse(report).unwrap().into_iter().collect();
        let wanted = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(paths, wanted.map(PathBuf::from));
        assert!(parse("\tnot a dynamic executable\n").unwrap().is_empty());
    }

    #[test]
    fn a_missing_library_is_an_error_that_names_it() {
        let error = parse("\tlibxenlight.so.4.17 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libxenlight.so.4.17"), "{error}");
    }
}
