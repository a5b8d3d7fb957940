//! What a simulated host keeps on disk, so that its guests outlive the agent's process as a real host's do.
//!
//! `host.json` tells the boot, `<uuid>.json` one domain each, and `starts.log` when every domain could run. Files
//! are replaced by renaming, so that a process killed at any moment leaves each file whole. They are not synced: a
//! simulated host does not outlive the machine.

use super::guest::Guest;
use crate::fence::Checkpoint;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// A line of `starts.log`: from now on a domain with a token can run, or it no longer can.
///
/// That it can is written before it is so, and that it cannot after it is so; so a domain never runs outside of what the
/// log tells. After a kill in between, the next start of the model writes what is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StartRecord {
    /// Which of them.
    pub event: StartEvent,
    /// The domain's UUID.
    pub uuid: Uuid,
    /// Its ownership token.
    pub token: u64,
    /// When, by the model's clock.
    pub at: Timestamp,
}

/// What happened to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StartEvent {
    /// Its building begins.
    Start,
    /// It was restored, and is let run for the first time.
    Arrive,
    /// It was suspended and stands still.
    Suspend,
    /// It runs on where it was suspended.
    Resume,
    /// It has this token from now on.
    Claim,
    /// Its guest stopped by itself, or it is gone. This follows [`StartEvent::Suspend`] too.
    Stop,
}

/// What `host.json` tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HostRecord {
    pub(super) boot_id: String,
    /// When this boot began.
    pub(super) booted_at: Timestamp,
    pub(super) next_domid: u16,
    /// When the watchdog resets the host, if it runs.
    #[serde(default)]
    pub(super) watchdog: Option<Timestamp>,
    /// What the agent keeps for the next one.
    #[serde(default)]
    pub(super) checkpoint: Option<Checkpoint>,
}

impl HostRecord {
    /// Of the host of this name, which boots at this moment.
    pub(super) fn booted(name: &str, now: Timestamp) -> Self {
        let boot_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{name} booted at {now}").as_bytes());
        Self { boot_id: boot_id.to_string(), booted_at: now, next_domid: 1, watchdog: None, checkpoint: None }
    }
}

/// A folder with the files of one simulated host, used by one process at a time.
#[derive(Debug)]
pub(super) struct Ledger {
    folder: PathBuf,
    log: File,
}

/// What was found in the folder.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) host: Option<HostRecord>,
    pub(super) guests: BTreeMap<Uuid, Guest>,
}

const HOST_FILE: &str = "host.json";
const LOG_FILE: &str = "starts.log";

impl Ledger {
    /// Opens the folder, made if it is not there, and reads what it holds.
    pub(super) fn open(folder: &Path) -> io::Result<(Self, Found)> {
        fs::create_dir_all(folder)?;
        let log = OpenOptions::new().create(true).append(true).open(folder.join(LOG_FILE))?;
        let mut found = Found { host: None, guests: BTreeMap::new() };
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            match (path.file_stem().and_then(|stem| stem.to_str()), path.extension()) {
                (Some(_), Some(extension)) if extension == "new" => fs::remove_file(&path)?,
                (Some("host"), Some(extension)) if extension == "json" => found.host = Some(read(&path)?),
                (Some(_), Some(extension)) if extension == "json" => {
                    let guest: Guest = read(&path)?;
                    found.guests.insert(guest.uuid, guest);
                }
                (_, _) => {}
            }
        }
        Ok((Self { folder: folder.to_owned(), log }, found))
    }

    pub(super) fn save_host(&self, host: &HostRecord) -> io::Result<()> {
        self.replace(HOST_FILE, host)
    }

    pub(super) fn save(&self, guest: &Guest) -> io::Result<()> {
        self.replace(&format!("{}.json", guest.uuid), guest)
    }

    pub(super) fn remove(&self, uuid: Uuid) -> io::Result<()> {
        match fs::remove_file(self.folder.join(format!("{uuid}.json"))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// All lines of the log.
    pub(super) fn records(&self) -> io::Result<Vec<StartRecord>> {
        let path = self.folder.join(LOG_FILE);
        fs::read_to_string(&path)?.lines().map(|line| parse(&path, line)).collect()
    }

    /// Appends a line in one write, which other readers see whole or not at all.
    pub(super) fn log(&mut self, record: &StartRecord) -> io::Result<()> {
        let mut line = serde_json::to_vec(record)?;
        line.push(b'\n');
        self.log.write_all(&line)
    }

    fn replace(&self, name: &str, content: &impl Serialize) -> io::Result<()> {
        let temporary = self.folder.join(format!("{name}.new"));
        fs::write(&temporary, serde_json::to_vec(content)?)?;
        fs::rename(&temporary, self.folder.join(name))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    parse(path, &fs::read_to_string(path)?)
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> io::Result<T> {
    serde_json::from_str(text).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}
