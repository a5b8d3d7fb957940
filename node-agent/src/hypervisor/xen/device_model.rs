//! What belongs to device models: the user as whom they run, the empty folder that is their root then, and the log that
//! libxl lets each of them write, under the name of its domain.
//!
//! libxl keeps such a log for ever and numbers the older ones (`.log.1` …), which is right for domains that have names
//! people give, and a leak for domains that are named by UUIDs.

use super::{config::domain_name, xenstore::sanitize};
use std::{fs, io, path::Path};
use uuid::Uuid;

/// Where libxl keeps them (`XEN_LOG_DIR` of its build).
pub const FOLDER: &str = "/var/log/xen";

/// Where libxl makes the empty folder that is the root of a device model without privileges (`XEN_RUN_DIR` of its build). It
/// never removes it.
pub const ROOTS: &str = "/var/run/xen";

/// The users of this host.
pub const USERS: &str = "/etc/passwd";

/// The first of a range of users: libxl adds the domain's number.
pub const USER: &str = "xen-qemuuser-range-base";

/// Bytes of the end of a log that an error message repeats.
const TAIL: usize = 512;

/// The user as whom libxl (4.12 and later) runs a device model that is to have no privileges; none if this host has no such
/// user. `users` is a file of the form of `/etc/passwd`.
#[must_use]
pub fn user(users: &Path) -> Option<&'static str> {
    let text = fs::read_to_string(users).unwrap_or_default();
    text.lines().any(|line| line.split(':').next() == Some(USER)).then_some(USER)
}

/// Removes the root of the device model of the domain that had this number.
///
/// # Errors
/// Whatever the file system says, except that it is missing.
pub fn remove_root(folder: &Path, domid: u16) -> io::Result<()> {
    match fs::remove_dir(folder.join(format!("qemu-root-{domid}"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

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
    fn the_user_is_found_by_its_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        let users = folder.path().join("passwd");
        assert_eq!(user(&users), None);
        for (text, expected) in [
            ("root:x:0:0::/root:/bin/bash\n", None),
            ("xen-qemuuser-range-base-2:x:131072:131072::/:\n", None),
            ("root:x:0:0::/root:\nxen-qemuuser-range-base:x:131072:131072::/:\n", Some(USER)),
        ] {
            fs::write(&users, text).unwrap();
            assert_eq!(user(&users), expected, "{text}");
        }
    }

    #[test]
    fn the_root_of_a_device_model_goes_and_need_not_be_there() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("qemu-root-7")).unwrap();
        fs::create_dir(folder.path().join("qemu-root-70")).unwrap();
        remove_root(folder.path(), 7).unwrap();
        remove_root(folder.path(), 7).unwrap();
        assert!(!folder.path().join("qemu-root-7").exists() && folder.path().join("qemu-root-70").exists());
    }

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
