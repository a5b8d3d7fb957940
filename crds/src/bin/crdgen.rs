//! Writes everything that is generated from the API types, or checks that it is up to date.

use anyhow::{Context as _, bail};
use clap::Parser;
use kubexen_crds::manifest::{GENERATED_FOLDERS, GeneratedFile, generated_files};
use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};

/// Writes the CustomResourceDefinitions to `crds/manifests/` and into the chart, and the API reference to
/// `docs/reference/`.
#[derive(Parser)]
#[command(name = "crdgen")]
struct Arguments {
    /// Write nothing; fail and name the files that differ from the types.
    #[arg(long)]
    check: bool,
    /// Root of the repository.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
    root: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let Arguments { check, root } = Arguments::parse();
    let files = generated_files().context("cannot generate the definitions")?;
    let drift = drift(&root, &files)?;
    if check {
        return report(&drift);
    }
    for path in &drift.obsolete {
        fs::remove_file(root.join(path)).with_context(|| format!("cannot remove {}", path.display()))?;
        println!("removed {}", path.display());
    }
    for file in drift.missing.iter().chain(&drift.different) {
        let path = root.join(&file.path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        fs::write(&path, &file.content).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", file.path.display());
    }
    Ok(())
}

/// How the files in the repository differ from what the types say.
struct Drift<'a> {
    missing: Vec<&'a GeneratedFile>,
    different: Vec<&'a GeneratedFile>,
    obsolete: Vec<PathBuf>,
}

fn drift<'a>(root: &Path, files: &'a [GeneratedFile]) -> anyhow::Result<Drift<'a>> {
    let mut drift = Drift { missing: Vec::new(), different: Vec::new(), obsolete: Vec::new() };
    for file in files {
        match fs::read_to_string(root.join(&file.path)) {
            Ok(content) if content == file.content => {}
            Ok(_) => drift.different.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => drift.missing.push(file),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.path.display()));
            }
        }
    }
    let wanted: BTreeSet<&Path> = files.iter().map(|file| file.path.as_path()).collect();
    for folder in GENERATED_FOLDERS {
        let entries = match fs::read_dir(root.join(folder)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot read {folder}")),
        };
        for entry in entries {
            let path = Path::new(folder).join(entry?.file_name());
            if !wanted.contains(path.as_path()) {
                drift.obsolete.push(path);
            }
        }
    }
    drift.obsolete.sort();
    Ok(drift)
}

fn report(drift: &Drift<'_>) -> anyhow::Result<()> {
    let Drift { missing, different, obsolete } = drift;
    let lines: Vec<String> = missing
        .iter()
        .map(|file| format!("  missing   {}", file.path.display()))
        .chain(different.iter().map(|file| format!("  differs   {}", file.path.display())))
        .chain(obsolete.iter().map(|path| format!("  obsolete  {}", path.display())))
        .collect();
    if lines.is_empty() {
        return Ok(());
    }
    bail!(
        "generated files differ from the types in crds/src:\n{}\nrun `cargo xtask crds` and commit the result",
        lines.join("\n")
    )
}
