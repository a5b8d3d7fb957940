//! What one command of the lab tells the next: a folder, and in it `lab.json`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::process::ProcessRecord;

/// Whether a lab ends with the process that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifetime {
    /// It ends when its [`super::Lab`] is dropped, and at the latest when the process dies, however that happens: for tests.
    Owned,
    /// It stays until `lab down`.
    Detached,
}

/// The contents of `lab.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct State {
    /// See [`Lifetime`].
    pub lifetime: Lifetime,
    /// The process that made the lab.
    pub maker: ProcessRecord,
    /// What the hosts' control servers ask for.
    pub token: String,
    /// Memory of each host in MiB.
    pub memory_mib: u32,
    /// Memory of each dom0 in MiB.
    pub dom0_memory_mib: u32,
    /// Whether a hub lies between the hosts. Default: none does.
    #[serde(default)]
    pub switched: bool,
    /// The process of that hub, when it is not the maker.
    pub hub: Option<ProcessRecord>,
    /// Host 1 comes first. A host that is switched off has no machine.
    pub machines: Vec<Option<Machine>>,
}

/// A host that is switched on.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Machine {
    /// Its QEMU.
    pub process: ProcessRecord,
    /// Port on this machine's loopback that leads to its control server.
    pub control_port: u16,
}

impl State {
    /// Whether somebody uses the lab: a host runs, or an owner lives that may switch one on.
    pub fn in_use(&self) -> bool {
        self.processes().any(|process| process.is_alive())
            || (self.lifetime == Lifetime::Owned && self.maker.is_alive())
    }

    /// The processes that were started for the lab.
    pub fn processes(&self) -> impl Iterator<Item = ProcessRecord> {
        let machines = self.machines.iter().flatten().map(|machine| machine.process);
        machines.chain(self.hub)
    }

    /// Reads the state of the lab in this folder; `None` when there is no lab.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = file(folder);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let state = serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} was written by another version; end its QEMU processes and delete its folder",
                path.display()
            )
        })?;
        Ok(Some(state))
    }

    /// Writes the state; a reader sees the old one or the new one.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let scratch = folder.join("lab.json.new");
        std::fs::write(&scratch, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&scratch, file(folder))
            .with_context(|| format!("cannot write to {}", folder.display()))
    }
}

fn file(folder: &Path) -> PathBuf {
    folder.join("lab.json")
}

/// Folders of the labs below `root`, with their states.
///
/// # Errors
/// When a state cannot be read.
pub fn all(root: &Path) -> Result<Vec<(PathBuf, State)>> {
    let Ok(entries) = std::fs::read_dir(root) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        let folder = entry?.path();
        if let Some(state) = State::load(&folder)? {
            found.push((folder, state));
        }
    }
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    Ok(found)
}

/// Refuses names that are no plain folder name, or the cache's.
///
/// # Errors
/// When the name is refused.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(plain) || name == "cache" {
        bail!("{name:?} is no name for a lab: use letters, digits and dashes, at most 40, and not \"cache\"");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(maker: ProcessRecord, lifetime: Lifetime) -> State {
        let machine = Machine { process: maker, control_port: 1 };
        State {
            lifetime,
            maker,
            token: "t".to_owned(),
            memory_mib: 1,
            dom0_memory_mib: 1,
            switched: false,
            hub: None,
            machines: vec![Some(machine), None],
        }
    }

    #[test]
    fn a_state_is_read_as_it_was_written_and_labs_are_found_by_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("default");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::create_dir_all(root.path().join("cache")).unwrap();
        let written = state(ProcessRecord::of(std::process::id()).unwrap(), Lifetime::Detached);
        written.save(&folder).unwrap();
        let labs = all(root.path()).unwrap();
        assert_eq!(labs.len(), 1);
        assert_eq!(labs[0].0, folder);
        assert!(labs[0].1.in_use());
        assert_eq!(labs[0].1.processes().count(), 1);
    }

    #[test]
    fn names_that_would_leave_the_folder_are_refused() {
        for name in ["", "..", "a/b", "cache", "ü"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("test-1").is_ok());
    }
}
