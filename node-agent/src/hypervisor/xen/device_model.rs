//! The log that libxl lets each device model write, under the name of its domain.
//!
//! libxl keeps such a log for ever and numbers the older ones (`.log.1` …), which is right for domains that have names
//! people give, and a leak for domains that are named by UUIDs.

use super::{config::domain_name, xenstore::sanitize};
use std::{fs, io, path::Path};
use uuid::Uuid;

/// Where libxl keeps them (`XEN_LOG_DIR` of its build).
pub const FOLDER: &str = "/var/log/xen";

/// Bytes of the end of a log that an error message repeats.
const TAIL: usize = 512;

/// The end of what the domain's last device model said, on one line and safe to show; nothing if there was none.
#[must_use]
pub fn last_words(folder: &Path, uuid: Uuid) -> Option<String> {
    let log = fs::read(folder.join(format!("{}.log", stem(uuid)))).ok()?;
    let lines: Vec<&[u8]> = log[log.len().saturating_sub(TAIL)..].split(|byte| *byte == b'\n').collect();
    let text = sanitize(&lines.join(&b"; "[..]), TAIL);
    let text = text.trim_end_matches([';', ' ']);
    (!text.is_empty()).then(|| text.to_owned())
}

/// Removes all logs of the domain's device models.
///
/// # Errors
/// Whatever the file system says, except that something is missing.
pub fn remove_logs(folder: &Path, uuid: Uuid) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let stem = stem(uuid);
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with(&stem)) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
    }
    Ok(())
}

fn stem(uuid: Uuid) -> String {
    format!("qemu-dm-{}", domain_name(uuid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_one_printable_line() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(last_words(folder.path(), Uuid::nil()), None);
        let path = folder.path().join(format!("{}.log", stem(Uuid::nil())));
        fs::write(&path, "").unwrap();
        assert_eq!(last_words(folder.path(), Uuid::nil()), None);
        fs::write(&path, "char device redirected\nno \x1btun\n").unwrap();
        assert_eq!(last_words(folder.path(), Uuid::nil()).as_deref(), Some("char device redirected; no tun"));
    }

    #[test]
    fn logs_of_one_domain_are_removed_and_those_of_others_kept() {
        let folder = tempfile::tempdir().unwrap();
        let other = format!("{}.log", stem(Uuid::max()));
        for name in
            [other.clone(), format!("{}.log", stem(Uuid::nil())), format!("{}.log.1", stem(Uuid::nil()))]
        {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        remove_logs(folder.path(), Uuid::nil()).unwrap();
        let left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, [other.as_str()]);
        remove_logs(&folder.path().join("nowhere"), Uuid::nil()).unwrap();
    }
}
