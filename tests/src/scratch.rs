//! A folder that is gone when its owner is, however the owner ends.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Removes the folder once its standard input closes, which the kernel does when the owner ends, by `SIGKILL` too. Servers
/// that are being killed at that moment may still write a file into the folder: hence several tries.
const JANITOR: &str =
    r#"read -r _; for _ in 1 2 3 4 5 6 7 8 9 10; do rm -rf -- "$1" && exit 0; sleep 0.2; done"#;

/// The environment variable that keeps scratch folders, logs and data included, for a look after a failure.
pub const KEEP: &str = "KUBEXEN_KEEP_SCRATCH";

/// A new private folder under the system's temporary folder.
///
/// It is removed on drop, and also when this process ends without dropping it, as libtest does with statics. With the
/// environment variable [`KEEP`] set it stays, and its path is printed.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    janitor: Option<Child>,
}

impl Scratch {
    /// Makes the folder; `purpose` becomes part of its name.
    ///
    /// # Errors
    /// When the folder cannot be made or no shell can be started.
    pub fn new(purpose: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("kubexen-{purpose}-"))
            .tempdir()
            .context("cannot make a temporary folder")?;
        if std::env::var_os(KEEP).is_some() {
            let path = folder.keep();
            eprintln!("{KEEP} is set: {} stays", path.display());
            return Ok(Self { path, janitor: None });
        }
        // In a process group of its own, so that Ctrl-C at a terminal does not end it before its time.
        let mut command = Command::new("sh");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let janitor = command
            .args(["-c", JANITOR, "janitor"])
            .arg(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start a shell")?;
        Ok(Self { path: folder.keep(), janitor: Some(janitor) })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(mut janitor) = self.janitor.take() {
            drop(janitor.stdin.take());
            if let Err(error) = janitor.wait() {
                eprintln!("cannot wait for the removal of {}: {error}", self.path.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_folder_is_gone_with_all_that_is_in_it() {
        let scratch = Scratch::new("test").unwrap();
        let path = scratch.path().to_owned();
        std::fs::create_dir(path.join("inner")).unwrap();
        std::fs::write(path.join("inner/file"), "x").unwrap();
        drop(scratch);
        assert!(!path.exists());
    }
}
