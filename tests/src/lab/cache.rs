//! Built parts of the lab, named by the digest of what they were built from.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use uuid::Uuid;

/// How many versions of one part are kept.
const KEPT: usize = 3;

/// A digest over a sequence of parts: a chain of version-5 UUIDs (SHA-1). It tells versions of our own files apart and
/// protects against nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Digest(Uuid);

impl Digest {
    /// Continues the digest with one more part; where a part ends matters.
    pub fn part(&mut self, bytes: &[u8]) {
        self.0 = Uuid::new_v5(&self.0, bytes);
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

/// The folder of built parts; holds its lock while it lives, so that two builds never meet.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the cache and waits until no other process builds in it.
    ///
    /// # Errors
    /// When the folder cannot be made or locked.
    pub fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let lock = File::create(folder.join("lock"))?;
        lock.lock().with_context(|| format!("cannot lock {}", folder.display()))?;
        Ok(Self { folder: folder.to_owned(), _lock: lock })
    }

    /// Where the cache lies.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The part `name` in the version `digest`, built by `build` into the path that it is given, unless it is there already.
    ///
    /// Only complete files get the part's name. Of each part the few versions used last are kept.
    ///
    /// # Errors
    /// Those of `build`, and when the folder cannot be written.
    pub fn part(
        &self,
        name: &str,
        digest: Digest,
        build: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let kept = self.folder.join(format!("{name}-{digest}"));
        if let Ok(file) = File::options().append(true).open(&kept) {
            file.set_modified(SystemTime::now())?;
            return Ok(kept);
        }
        let scratch = self.folder.join(format!("{name}.partial"));
        build(&scratch).with_context(|| format!("cannot build {name} of the lab"))?;
        std::fs::rename(&scratch, &kept)?;
        self.forget_old(name)?;
        Ok(kept)
    }

    fn forget_old(&self, name: &str) -> Result<()> {
        let mut versions = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let entry = entry?;
            let file = entry.file_name().to_string_lossy().into_owned();
            let digest = file.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            if digest.is_some_and(|digest| Uuid::parse_str(digest).is_ok()) {
                versions.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        versions.sort();
        for (_, path) in versions.iter().rev().skip(KEPT) {
            std::fs::remove_file(path)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        let mut digest = Digest::default();
        digest.part(text.as_bytes());
        digest
    }

    #[test]
    fn a_part_is_built_once_per_digest_and_old_versions_go() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let write = |path: &Path| Ok(std::fs::write(path, "built")?);
        let first = cache.part("guest", digest("a"), write).unwrap();
        let again = cache.part("guest", digest("a"), |_| anyhow::bail!("built twice")).unwrap();
        assert_eq!(first, again);
        for version in 0..2 * KEPT {
            cache.part("guest", digest(&version.to_string()), write).unwrap();
        }
        let left = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, KEPT + 1, "the versions that are kept, and the lock");
    }

    #[test]
    fn a_failed_build_leaves_no_part_behind() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path()).unwrap();
        let failed = cache.part("guest", digest("a"), |path| {
            std::fs::write(path, "half")?;
            anyhow::bail!("no space")
        });
        assert!(failed.is_err());
        assert!(cache.part("guest", digest("a"), |path| Ok(std::fs::write(path, "whole")?)).is_ok());
    }

    #[test]
    fn where_parts_end_matters_to_the_digest() {
        let mut other = Digest::default();
        other.part(b"a");
        other.part(b"b");
        assert_ne!(other.to_string(), digest("ab").to_string());
    }
}
