//! Initial RAM file systems: cpio archives in the kernel's "newc" format.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux. Equal content gives equal bytes: entries
//! are sorted, and owners and times are zero.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cache::Digest;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// What a file consists of.
#[derive(Debug, Clone)]
enum Content {
    Bytes(Vec<u8>),
    /// Read when the archive is written.
    File(PathBuf),
}

#[derive(Debug, Clone)]
enum Entry {
    Directory,
    Symlink(String),
    File { executable: bool, content: Content },
}

/// An archive in the making: absolute path in the file system to be → what stands there.
///
/// The merged layout of Debian 12 is kept: whatever is added below /bin, /sbin, /lib or /lib64 lands below /usr, to which
/// those names are links.
#[derive(Debug, Clone)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    /// An archive that holds the links of the merged layout and nothing else.
    #[expect(
        clippy::new_without_default,
        reason = "an archive with links in it is not what Default promises"
    )]
    pub fn new() -> Self {
        let mut archive = Self { entries: BTreeMap::new() };
        for name in ["bin", "sbin", "lib", "lib64"] {
            archive.directory(&format!("/usr/{name}"));
            archive.entries.insert(name.to_owned(), Entry::Symlink(format!("usr/{name}")));
        }
        archive
    }

    /// Adds a folder and those it stands in.
    pub fn directory(&mut self, path: &str) {
        let path = placed(path);
        self.parents(&path);
        self.entries.entry(path).or_insert(Entry::Directory);
    }

    /// Adds a symbolic link; one that stands there already is replaced.
    pub fn symlink(&mut self, path: &str, target: &str) {
        let path = placed(path);
        self.parents(&path);
        self.entries.insert(path, Entry::Symlink(target.to_owned()));
    }

    /// Adds a file with this content.
    pub fn bytes(&mut self, path: &str, executable: bool, content: impl Into<Vec<u8>>) {
        self.file_entry(path, executable, Content::Bytes(content.into()));
    }

    /// Adds a copy of a file of this machine; links are followed.
    ///
    /// # Errors
    /// When there is no such file.
    pub fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        let metadata = source.metadata().with_context(|| format!("{} is missing", source.display()))?;
        let executable = metadata.permissions().mode() & 0o111 != 0;
        self.file_entry(path, executable, Content::File(source.to_owned()));
        Ok(())
    }

    /// Whether something stands at this path.
    pub fn contains(&self, path: &str) -> bool {
        self.entries.contains_key(&placed(path))
    }

    fn file_entry(&mut self, path: &str, executable: bool, content: Content) {
        let path = placed(path);
        self.parents(&path);
        self.entries.insert(path, Entry::File { executable, content });
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            self.entries.entry(path[..end].to_owned()).or_insert(Entry::Directory);
        }
    }

    /// A digest of all that the archive says, contents of files included.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn digest(&self) -> Result<Digest> {
        let mut digest = Digest::default();
        for (path, entry) in &self.entries {
            digest.part(path.as_bytes());
            match entry {
                Entry::Directory => digest.part(b"directory"),
                Entry::Symlink(target) => {
                    digest.part(b"link");
                    digest.part(target.as_bytes());
                }
                Entry::File { executable, content } => {
                    digest.part(if *executable { b"program" } else { b"file" });
                    digest.part(&content.read()?);
                }
            }
        }
        Ok(digest)
    }

    /// Writes the whole archive, its end mark included; its length is a multiple of four, so that the kernel finds another
    /// archive behind it.
    ///
    /// # Errors
    /// When a file cannot be read, or the output cannot be written.
    pub fn write(&self, output: &mut impl Write) -> Result<()> {
        let mut inode = 0;
        for (path, entry) in &self.entries {
            inode += 1;
            match entry {
                Entry::Directory => member(output, inode, DIRECTORY | 0o755, path, &[])?,
                Entry::Symlink(target) => member(output, inode, SYMLINK | 0o777, path, target.as_bytes())?,
                Entry::File { executable, content } => {
                    let mode = REGULAR | if *executable { 0o755 } else { 0o644 };
                    member(output, inode, mode, path, &content.read()?)?;
                }
            }
        }
        member(output, 0, 0, "TRAILER!!!", &[])
    }
}

impl Content {
    fn read(&self) -> Result<std::borrow::Cow<'_, [u8]>> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.into()),
            Self::File(path) => {
                Ok(std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?.into())
            }
        }
    }
}

/// Where a path really lies in the merged layout, without the leading slash that archives do not have.
fn placed(path: &str) -> String {
    let path = path.trim_matches('/');
    let first = path.split('/').next().unwrap_or_default();
    if path != first && matches!(first, "bin" | "sbin" | "lib" | "lib64") {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

/// Writes one member: header, name and content, each padded to four bytes.
fn member(output: &mut impl Write, inode: u32, mode: u32, name: &str, content: &[u8]) -> Result<()> {
    let size = u32::try_from(content.len()).with_context(|| format!("{name} is larger than cpio can say"))?;
    let name_size = u32::try_from(name.len() + 1)?;
    // Fields: inode, mode, uid, gid, links, time, size, device (2), special device (2), length of the name, checksum.
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    output.write_all(b"070701")?;
    for field in fields {
        write!(output, "{field:08x}")?;
    }
    output.write_all(name.as_bytes())?;
    // The header is 110 bytes long, the name ends in at least one zero byte.
    output.write_all(&[0; 4][..4 - (110 + name.len()) % 4])?;
    output.write_all(content)?;
    output.write_all(&[0; 3][..(4 - content.len() % 4) % 4])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Archive {
        let mut archive = Archive::new();
        archive.bytes("/sbin/tool", true, "odd");
        archive.symlink("/usr/bin/alias", "../sbin/tool");
        archive
    }

    fn written(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn equal_archives_are_equal_byte_for_byte_and_padded() {
        assert_eq!(written(&sample()), written(&sample()));
        assert_eq!(written(&sample()).len() % 4, 0);
        assert_eq!(sample().digest().unwrap().to_string(), sample().digest().unwrap().to_string());
    }

    #[test]
    fn a_changed_file_changes_the_digest() {
        let mut changed = sample();
        changed.bytes("/sbin/tool", true, "even");
        assert_ne!(changed.digest().unwrap().to_string(), sample().digest().unwrap().to_string());
    }

    #[test]
    fn files_below_sbin_land_below_usr() {
        assert!(sample().contains("/usr/sbin/tool") && sample().contains("/sbin/tool"));
        assert_eq!(placed("/lib"), "lib");
    }

    #[test]
    fn a_folder_stands_before_what_it_holds() {
        let text = String::from_utf8_lossy(&written(&sample())).into_owned();
        let at = |name: &str| text.find(name).unwrap();
        assert!(at("usr/sbin\0") < at("usr/sbin/tool\0"));
        assert!(at("usr/sbin/tool\0") < at("TRAILER!!!"));
    }
}
