//! Seed images: small disks that the agent itself writes for guests, each for one.
//!
//! An image holds what its guest's owner keeps in a Secret, so nobody but the agent's user may read its file. What there is
//! is read from the folder each time; an agent that was killed loses nothing and leaves nothing.
//!
//! - [`HostSeeds`] keeps files and attaches them through loop devices; on a simulated host a file is its own device node.
//! - [`MemorySeeds`] is a model for simulation.

use super::{StorageError, VolumeId, loop_device};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex as Shared, PoisonError},
    time::Duration,
};
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};
use uuid::Uuid;

/// The seed images of one host.
#[async_trait]
pub trait Seeds: Send + Sync + std::fmt::Debug {
    /// Makes this the image of a guest, and a device node of this host. An image that is there already stays as it is.
    ///
    /// # Errors
    /// `InUse` when the guest has another image, and still uses it.
    async fn place(&self, guest: Uuid, image: Vec<u8>) -> Result<PathBuf, StorageError>;

    /// Takes the device and the image of a guest away. Succeeds when it has none.
    ///
    /// # Errors
    /// `InUse` when somebody holds the device open: it goes when they let go, so try again.
    async fn remove(&self, guest: Uuid) -> Result<(), StorageError>;

    /// The guests that have an image.
    async fn present(&self) -> Result<BTreeSet<Uuid>, StorageError>;
}

/// Time limit of each call.
const CALL_LIMIT: Duration = Duration::from_secs(30);
const SUFFIX: &str = ".img";

/// Seed images in a folder of the agent's own.
#[derive(Debug)]
pub struct HostSeeds {
    folder: Arc<Folder>,
    /// One call at a time works in the folder.
    turn: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    loop_devices: bool,
}

impl HostSeeds {
    /// Images below `folder`, attached through loop devices. The folder is made when it is needed.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self::with(folder, true)
    }

    /// Images of a simulated host: an image's device node is its file.
    #[must_use]
    pub fn files_only(folder: &Path) -> Self {
        Self::with(folder, false)
    }

    fn with(folder: &Path, loop_devices: bool) -> Self {
        let folder = Folder { path: folder.to_owned(), loop_devices };
        Self { folder: Arc::new(folder), turn: Arc::default() }
    }

    /// Does blocking work in the folder. Past the time limit it goes on in its thread, and keeps its turn.
    async fn work<T: Send + 'static>(
        &self,
        call: &'static str,
        work: impl FnOnce(&Folder) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let (folder, turn) = (Arc::clone(&self.folder), Arc::clone(&self.turn));
        let done = async {
            let turn = turn.lock_owned().await;
            let work = spawn_blocking(move || {
                let result = work(&folder);
                drop(turn);
                result
            });
            work.await.map_err(|panic| StorageError::Io { call, source: io::Error::other(panic) })?
        };
        let timed_out = |_| StorageError::TimedOut { call, limit: CALL_LIMIT };
        timeout(CALL_LIMIT, done).await.map_err(timed_out)?
    }
}

#[async_trait]
impl Seeds for HostSeeds {
    async fn place(&self, guest: Uuid, image: Vec<u8>) -> Result<PathBuf, StorageError> {
        self.work("place a seed", move |folder| folder.place(guest, &image)).await
    }

    async fn remove(&self, guest: Uuid) -> Result<(), StorageError> {
        self.work("remove a seed", move |folder| folder.remove(guest)).await
    }

    async fn present(&self) -> Result<BTreeSet<Uuid>, StorageError> {
        self.work("list seeds", Folder::present).await
    }
}

impl Folder {
    fn place(&self, guest: Uuid, image: &[u8]) -> Result<PathBuf, StorageError> {
        let folder = self.make()?;
        let file = folder.join(file_name(guest));
        if read(&file)?.as_deref() != Some(image) {
            self.detach(guest, &file)?;
            let temporary = folder.join(temporary_name(guest));
            unlink(&temporary)?;
            let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
            made.and_then(|mut made| made.write_all(image).and_then(|()| made.sync_all()))
                .and_then(|()| fs::rename(&temporary, &file))
                .map_err(failed("write a seed"))?;
        }
        if !self.loop_devices {
            return Ok(file);
        }
        let devices = loop_device::devices_of(&file).map_err(failed("list loop devices"))?;
        let device = match devices.first() {
            Some(&device) => {
                let attachment = loop_device::attachment(device).map_err(failed("read a loop device"))?;
                if attachment.vanishing {
                    return Err(in_use(guest));
                }
                device
            }
            None => {
                let opened = fs::File::open(&file).map_err(failed("open a seed"))?;
                loop_device::attach(&opened.into(), true).map_err(failed("configure a loop device"))?
            }
        };
        Ok(loop_device::node(device))
    }

    fn remove(&self, guest: Uuid) -> Result<(), StorageError> {
        let Some(folder) = self.real_path()? else { return Ok(()) };
        unlink(&folder.join(temporary_name(guest)))?;
        let file = folder.join(file_name(guest));
        // The file goes last, so that a device is never left without it.
        if file.try_exists().map_err(failed("look for a seed"))? {
            self.detach(guest, &file)?;
            unlink(&file)?;
        }
        Ok(())
    }

    fn present(&self) -> Result<BTreeSet<Uuid>, StorageError> {
        let Some(folder) = self.real_path()? else { return Ok(BTreeSet::new()) };
        let mut guests = BTreeSet::new();
        for entry in fs::read_dir(folder).map_err(failed("list seeds"))? {
            let name = entry.map_err(failed("list seeds"))?.file_name();
            let guest = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(Uuid::try_parse);
            guests.extend(guest.and_then(Result::ok));
        }
        Ok(guests)
    }

    fn detach(&self, guest: Uuid, file: &Path) -> Result<(), StorageError> {
        if !self.loop_devices {
            return Ok(());
        }
        for device in loop_device::devices_of(file).map_err(failed("list loop devices"))? {
            if !loop_device::detach(device, file).map_err(failed("clear a loop device"))? {
                return Err(in_use(guest));
            }
        }
        Ok(())
    }

    /// The folder's path as the kernel tells it, once it is there for the agent's user alone.
    fn make(&self) -> Result<PathBuf, StorageError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .map_err(failed("make the seeds' folder"))?;
        fs::canonicalize(&self.path).map_err(failed("resolve the seeds' folder"))
    }

    fn real_path(&self) -> Result<Option<PathBuf>, StorageError> {
        match fs::canonicalize(&self.path) {
            Ok(path) => Ok(Some(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("resolve the seeds' folder")(error)),
        }
    }
}

fn file_name(guest: Uuid) -> String {
    format!("{guest}{SUFFIX}")
}

/// Under this name an image is written; it counts for nothing.
fn temporary_name(guest: Uuid) -> String {
    format!(".{guest}.new")
}

fn in_use(guest: Uuid) -> StorageError {
    StorageError::InUse(VolumeId { location: "the host's seeds".to_owned(), uuid: guest })
}

fn read(file: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read a seed")(error)),
    }
}

/// Removes a file, if it is there.
fn unlink(file: &Path) -> Result<(), StorageError> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("unlink a seed")(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> StorageError {
    move |source| StorageError::Io { call, source }
}

/// Seed images in memory. A clone is the same host again, as after a restart of its agent.
#[derive(Clone, Default)]
pub struct MemorySeeds(Arc<Shared<BTreeMap<Uuid, Vec<u8>>>>);

impl MemorySeeds {
    /// The image of a guest.
    #[must_use]
    pub fn image(&self, guest: Uuid) -> Option<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&guest).cloned()
    }
}

/// Images are secret: only whose there are is shown.
impl std::fmt::Debug for MemorySeeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(images.keys()).finish()
    }
}

#[async_trait]
impl Seeds for MemorySeeds {
    async fn place(&self, guest: Uuid, image: Vec<u8>) -> Result<PathBuf, StorageError> {
        tokio::task::yield_now().await;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(guest, image);
        Ok(PathBuf::from(format!("/dev/simulated/seeds/{guest}")))
    }

    async fn remove(&self, guest: Uuid) -> Result<(), StorageError> {
        tokio::task::yield_now().await;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&guest);
        Ok(())
    }

    async fn present(&self) -> Result<BTreeSet<Uuid>, StorageError> {
        tokio::task::yield_now().await;
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const GUEST: Uuid = Uuid::from_u128(1);

    async fn keeps_every_promise(seeds: &dyn Seeds) {
        assert!(seeds.present().await.unwrap().is_empty());
        seeds.remove(GUEST).await.unwrap();
        let node = seeds.place(GUEST, vec![1; 512]).await.unwrap();
        assert_eq!(seeds.place(GUEST, vec![1; 512]).await.unwrap(), node);
        seeds.place(GUEST, vec![2; 512]).await.unwrap();
        assert_eq!(seeds.present().await.unwrap(), BTreeSet::from([GUEST]));
        seeds.remove(GUEST).await.unwrap();
        assert!(seeds.present().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn files_and_memory_keep_every_promise_of_seeds() {
        let folder = tempfile::tempdir().unwrap();
        keeps_every_promise(&HostSeeds::files_only(&folder.path().join("seeds"))).await;
        keeps_every_promise(&MemorySeeds::default()).await;
    }

    #[tokio::test]
    async fn nobody_else_may_read_an_image_and_a_killed_agent_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seeds");
        let seeds = HostSeeds::files_only(&path);
        let file = seeds.place(GUEST, vec![1; 512]).await.unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&file), mode(&path)), (0o600, 0o700));
        assert_eq!(fs::read(&file).unwrap(), vec![1; 512]);

        fs::write(path.join(temporary_name(GUEST)), "half").unwrap();
        let again = HostSeeds::files_only(&path);
        again.place(GUEST, vec![3; 512]).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), vec![3; 512]);
        fs::write(path.join(temporary_name(GUEST)), "half").unwrap();
        again.remove(GUEST).await.unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
    }
}
