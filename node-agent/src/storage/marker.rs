//! Files that tell which volumes of a simulated host are attached.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
};
use uuid::Uuid;

const SUFFIX: &str = ".attached";

fn path(folder: &Path, uuid: Uuid) -> PathBuf {
    folder.join(format!("{uuid}{SUFFIX}"))
}

/// Marks a volume as attached. Answers whether it is attached for this kind of access now.
pub(super) fn place(folder: &Path, uuid: Uuid, read_only: bool) -> io::Result<bool> {
    let access = if read_only { "read-only" } else { "read-write" };
    let path = path(folder, uuid);
    match fs::read_to_string(&path) {
        Ok(existing) => Ok(existing == access),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(folder)?;
            let temporary = path.with_extension("new");
            fs::write(&temporary, access)?;
            fs::rename(&temporary, &path)?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// Takes a volume's mark away, if it has one.
pub(super) fn remove(folder: &Path, uuid: Uuid) -> io::Result<()> {
    absent(fs::remove_file(path(folder, uuid)))
}

/// All marked volumes.
pub(super) fn all(folder: &Path) -> io::Result<BTreeSet<Uuid>> {
    let Some(entries) = present(fs::read_dir(folder))? else { return Ok(BTreeSet::new()) };
    let mut all = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        let uuid = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(Uuid::try_parse);
        all.extend(uuid.and_then(Result::ok));
    }
    Ok(all)
}

fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    present(result).map(|_| ())
}
