//! What a volume holds, for the agent's own use of it: a guest that is saved to it.

use super::StorageError;
use async_trait::async_trait;
use rustix::fs::OFlags;
use std::{
    fmt,
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tokio::{task::spawn_blocking, time::timeout};

/// Time limit of each read and write; more than a disk takes whose path is switched over by its driver.
const LIMIT: Duration = Duration::from_secs(60);
/// Time limit of the read that shows whether a device can be reached. A guest stands still meanwhile.
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// Time limit of storing all that was written, which may be as much as the host has memory for.
const SYNC_LIMIT: Duration = Duration::from_secs(600);

/// What an attached volume holds.
#[async_trait]
pub trait Content: Send + Sync + fmt::Debug {
    /// Reads up to `length` bytes from `offset` on; fewer where the volume ends.
    async fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>>;

    /// Writes all of `bytes` from `offset` on, which must not be beyond the volume's end. A power cut may undo it until [`Content::sync`] was answered.
    async fn write_at(&self, offset: u64, bytes: Vec<u8>) -> io::Result<()>;

    /// Stores what was written, for good.
    async fn sync(&self) -> io::Result<()>;
}

/// A device node or a file.
#[derive(Debug)]
pub(super) struct FileContent {
    file: Arc<File>,
    /// Bytes: a file would grow where a device ends.
    size: u64,
}

impl FileContent {
    /// Opens it for reading and writing.
    pub(super) async fn open(path: &Path) -> Result<Self, StorageError> {
        let path = path.to_owned();
        let open = move || {
            let mut file = File::options().read(true).write(true).open(path)?;
            let size = file.seek(SeekFrom::End(0))?;
            Ok((file, size))
        };
        match within(LIMIT, open).await {
            Ok((file, size)) => Ok(Self { file: Arc::new(file), size }),
            Err(source) => Err(StorageError::Io { call: "open the volume", source }),
        }
    }
}

#[async_trait]
impl Content for FileContent {
    async fn read_at(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let file = Arc::clone(&self.file);
        within(LIMIT, move || {
            let mut buffer = vec![0; length];
            let mut filled = 0;
            while filled < length {
                match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                    Ok(0) => break,
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            buffer.truncate(filled);
            Ok(buffer)
        })
        .await
    }

    async fn write_at(&self, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        if offset + bytes.len() as u64 > self.size {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let file = Arc::clone(&self.file);
        within(LIMIT, move || file.write_all_at(&bytes, offset)).await
    }

    async fn sync(&self) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        within(SYNC_LIMIT, move || file.sync_data()).await
    }
}

/// What is read from a device past the kernel's cache must be aligned to its blocks, of which none is larger.
#[repr(align(4096))]
struct Block([u8; 4096]);

/// Reads the first block of a device from the storage itself.
///
/// # Errors
/// `Io`, also when there is no answer within [`CHECK_LIMIT`].
pub(super) async fn check_readable(device: &Path) -> Result<(), StorageError> {
    let device = device.to_owned();
    let read = move || {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let file = File::options().read(true).custom_flags(direct).open(device)?;
        file.read_exact_at(&mut Box::new(Block([0; 4096])).0, 0)
    };
    let done = within(CHECK_LIMIT, read).await;
    done.map_err(|source| StorageError::Io { call: "read from the volume", source })
}

/// A call of the kernel that cannot be broken off: after the limit it goes on without anybody who waits for it.
async fn within<T: Send + 'static>(
    limit: Duration,
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match timeout(limit, spawn_blocking(call)).await {
        Ok(done) => done.map_err(io::Error::other)?,
        Err(_) => {
            let message = format!("the storage did not answer within {} s", limit.as_secs());
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        }
    }
}
