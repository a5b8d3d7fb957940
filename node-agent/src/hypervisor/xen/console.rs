//! What guests write to their consoles, kept in bounded files.
//!
//! xenconsoled (for a PV console) and the device model (for a serial port) offer each console as a pty and name it in
//! xenstore. This module reads the pty of every domain that has an ownership token and appends what comes to
//! `<state>/console/<uuid>.log`, raw. A file that reaches 64 KiB becomes the older half of a ring of two, so at most
//! 128 KiB are kept, across restarts of the agent too.
//!
//! A pty has one stream of output: what is read here is not seen by an `xl console` on the same domain.

use super::{
    accounting::{Account, Accounting},
    xenstore::{StoreError, XenStore},
};
use rustix::{
    fs::{Mode, OFlags},
    termios::{OptionalActions, tcgetattr, tcsetattr},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe::Receiver,
    task::{AbortHandle, JoinSet, spawn_blocking},
    time::sleep,
};
use uuid::Uuid;

/// Bytes in each of the two halves of a ring.
const HALF: u64 = 64 * 1024;
/// Time between two looks for consoles that are not read yet, and for files that nobody needs.
const ROUND: Duration = Duration::from_secs(5);

/// The files of one console.
#[derive(Clone, Debug)]
pub struct ConsoleLog {
    newer: PathBuf,
    older: PathBuf,
}

impl ConsoleLog {
    /// The files of this domain in a folder.
    #[must_use]
    pub fn new(folder: &Path, uuid: Uuid) -> Self {
        Self { newer: folder.join(format!("{uuid}.log")), older: folder.join(format!("{uuid}.log.1")) }
    }

    /// Adds output at the end.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn append(&self, output: &[u8]) -> io::Result<()> {
        let length = fs::metadata(&self.newer).map_or(0, |file| file.len());
        if length > 0 && length + output.len() as u64 > HALF {
            fs::rename(&self.newer, &self.older)?;
        }
        fs::OpenOptions::new().create(true).append(true).open(&self.newer)?.write_all(output)
    }

    /// What is kept, oldest first; nothing if there are no files.
    ///
    /// # Errors
    /// Whatever the file system says, except that a file is missing.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        let mut output = read_if_there(&self.older)?;
        output.extend(read_if_there(&self.newer)?);
        Ok(output)
    }

    /// Removes the files.
    ///
    /// # Errors
    /// Whatever the file system says, except that a file is missing.
    pub fn remove(&self) -> io::Result<()> {
        for path in [&self.newer, &self.older] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

fn read_if_there(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

/// The domains that have files in a folder.
fn kept(folder: &Path) -> io::Result<BTreeSet<Uuid>> {
    let mut uuids = BTreeSet::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let uuid = name
            .to_str()
            .and_then(|name| name.split_once('.'))
            .and_then(|(uuid, _)| Uuid::parse_str(uuid).ok());
        uuids.extend(uuid);
    }
    Ok(uuids)
}

/// All consoles of a host.
#[derive(Debug)]
pub struct Consoles {
    folder: PathBuf,
    store: Arc<XenStore>,
    accounting: Accounting,
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Readers {
    tasks: JoinSet<()>,
    by_domain: BTreeMap<Uuid, (u16, AbortHandle)>,
}

impl Consoles {
    /// Consoles whose files are in `folder`, which is made if need be.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn new(folder: PathBuf, store: Arc<XenStore>, accounting: Accounting) -> io::Result<Self> {
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, store, accounting, readers: Mutex::default() })
    }

    /// The files of a domain's console.
    #[must_use]
    pub fn log(&self, uuid: Uuid) -> ConsoleLog {
        ConsoleLog::new(&self.folder, uuid)
    }

    /// Finds consoles to read and files to remove, for ever. Failures are logged and tried again in the next round.
    pub async fn follow(&self) {
        loop {
            if let Err(error) = self.round().await {
                tracing::debug!("looking for consoles: {error:#}");
            }
            sleep(ROUND).await;
        }
    }

    async fn round(&self) -> anyhow::Result<()> {
        let folder = self.folder.clone();
        // Files first: a domain that comes between the two looks is then not taken for gone.
        let files = spawn_blocking(move || kept(&folder)).await??;
        let domains = self.accounting.domains().await?;
        for account in &domains {
            if self.store.read(&super::token_path(account.domid)).await?.is_some() {
                self.attach(account).await?;
            }
        }
        for uuid in files.into_iter().filter(|uuid| domains.iter().all(|account| account.uuid != *uuid)) {
            self.forget(uuid).await?;
        }
        Ok(())
    }

    /// Begins to read a domain's console, unless that is being done or there is none yet.
    ///
    /// # Errors
    /// [`StoreError`] when xenstore or the pty cannot be read.
    pub async fn attach(&self, account: &Account) -> Result<(), StoreError> {
        let (uuid, domid) = (account.uuid, account.domid);
        // When a domain dies its pty is closed, and another program may be given the same number.
        if account.dying || self.is_attached(uuid, domid) {
            return Ok(());
        }
        let Some(tty) = self.tty(domid).await? else { return Ok(()) };
        let pty = open_raw(&tty)?;
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        while readers.tasks.try_join_next().is_some() {}
        let reader = readers.tasks.spawn(keep(pty, self.log(uuid)));
        if let Some((_, previous)) = readers.by_domain.insert(uuid, (domid, reader)) {
            previous.abort();
        }
        Ok(())
    }

    fn is_attached(&self, uuid: Uuid, domid: u16) -> bool {
        let readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.by_domain.get(&uuid).is_some_and(|(other, reader)| *other == domid && !reader.is_finished())
    }

    /// The pty of a domain's console: its serial port if it has one, its PV console otherwise. Both nodes are
    /// dom0's to write.
    async fn tty(&self, domid: u16) -> Result<Option<PathBuf>, StoreError> {
        for console in ["serial/0/tty", "console/tty"] {
            let path = self.store.read_text(&format!("/local/domain/{domid}/{console}")).await?;
            if let Some(path) = path.filter(|path| path.starts_with("/dev/pts/")) {
                return Ok(Some(path.into()));
            }
        }
        Ok(None)
    }

    /// Stops reading a domain's console and removes its files.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub async fn forget(&self, uuid: Uuid) -> io::Result<()> {
        let reader = self.readers.lock().unwrap_or_else(PoisonError::into_inner).by_domain.remove(&uuid);
        if let Some((_, reader)) = reader {
            reader.abort();
        }
        let log = self.log(uuid);
        spawn_blocking(move || log.remove()).await?
    }
}

/// Opens a pty for reading, without becoming its session's terminal, and so that bytes come through unchanged.
///
/// A pty that is read without blocking behaves as a pipe does, and is read as one.
fn open_raw(path: &Path) -> io::Result<Receiver> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let pty = rustix::fs::open(path, flags, Mode::empty())?;
    let mut settings = tcgetattr(&pty)?;
    settings.make_raw();
    tcsetattr(&pty, OptionalActions::Now, &settings)?;
    Receiver::from_file_unchecked(File::from(pty))
}

/// Appends what a pty yields to a log until its other side is closed.
async fn keep(mut pty: Receiver, log: ConsoleLog) {
    let mut buffer = [0; 4096];
    loop {
        // A pty whose other side is closed ends with an error (EIO).
        let output = match pty.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => buffer[..length].to_vec(),
        };
        let log = log.clone();
        match spawn_blocking(move || log.append(&output)).await {
            Ok(Ok(())) => {}
            // The guest goes on; what cannot be kept is lost.
            Ok(Err(error)) => tracing::warn!("keeping console output: {error}"),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_log_keeps_its_end_in_two_bounded_halves() {
        let folder = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(folder.path(), Uuid::nil());
        assert!(log.read().unwrap().is_empty());
        let mut written = Vec::new();
        for number in 0..40_u8 {
            let chunk = vec![number; 4096];
            log.append(&chunk).unwrap();
            written.extend(chunk);
        }
        let kept = log.read().unwrap();
        assert!(kept.len() >= 64 * 1024 && kept.len() <= 128 * 1024, "{}", kept.len());
        assert!(written.ends_with(&kept));
    }

    #[test]
    fn a_log_that_is_removed_leaves_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(folder.path(), Uuid::nil());
        for _ in 0..20 {
            log.append(&[b'x'; 4096]).unwrap();
        }
        assert_eq!(kept(folder.path()).unwrap(), BTreeSet::from([Uuid::nil()]));
        log.remove().unwrap();
        log.remove().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn files_of_others_in_the_folder_are_not_taken_for_logs() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["README", "x.log", "lost+found"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(kept(folder.path()).unwrap().is_empty());
    }

    #[tokio::test]
    async fn bytes_of_a_pty_are_kept_unchanged_until_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let log = ConsoleLog::new(folder.path(), Uuid::nil());
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let pty = open_raw(Path::new(OsStr::from_bytes(name.as_bytes()))).unwrap();
        let reader = tokio::spawn(keep(pty, log.clone()));
        let output = b"one\r\ntwo\x1b[0m\x03\xff";
        rustix::io::write(&master, output).unwrap();
        while log.read().unwrap().len() < output.len() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        drop(master);
        reader.await.unwrap();
        assert_eq!(log.read().unwrap(), output);
    }
}
