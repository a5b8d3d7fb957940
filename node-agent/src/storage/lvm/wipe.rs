//! Makes a block device read as zeroes.

use super::Wipe;
use crate::storage::StorageError;
use rustix::{
    fs::{self as sys, FallocateFlags, Mode, OFlags},
    io::Errno,
};
use std::{os::fd::OwnedFd, path::Path, sync::Arc, time::Duration};
use tokio::{task::spawn_blocking, time::timeout};

/// What is wiped in one step, in bytes.
const STEP: u64 = 64 << 20;
/// Time limit of each step: 64 MiB at some 2 MiB/s.
pub(super) const STEP_LIMIT: Duration = Duration::from_secs(30);

const CALL: &str = "wipe the volume";

/// An open device that is being wiped.
#[derive(Debug)]
pub(super) struct Wiping {
    device: Arc<OwnedFd>,
    wipe: Wipe,
    done: u64,
    size: u64,
}

impl Wiping {
    /// Begins to wipe the first `size` bytes of a device.
    pub(super) fn begin(device: &Path, size: u64, wipe: Wipe) -> Result<Self, StorageError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = sys::open(device, flags, Mode::empty()).map_err(failed)?;
        Ok(Self { device: Arc::new(device), wipe, done: 0, size })
    }

    /// Wipes the next part. Answers whether there is more to do; at the end all is on the disk.
    ///
    /// Past the time limit the step goes on in its thread, and keeps the device open.
    pub(super) async fn step(&mut self) -> Result<bool, StorageError> {
        let (device, wipe, start) = (Arc::clone(&self.device), self.wipe, self.done);
        let length = STEP.min(self.size.saturating_sub(start));
        let last = start + length >= self.size;
        let work = spawn_blocking(move || {
            if length > 0 {
                zero(&device, wipe, start, length)?;
            }
            if last { sys::fsync(&*device) } else { Ok(()) }
        });
        let timed_out = |_| StorageError::TimedOut { call: CALL, limit: STEP_LIMIT };
        let result = timeout(STEP_LIMIT, work).await.map_err(timed_out)?;
        let panicked = |panic| StorageError::Io { call: CALL, source: std::io::Error::other(panic) };
        result.map_err(panicked)?.map_err(failed)?;
        self.done = start + length;
        Ok(!last)
    }
}

/// `fallocate` on a block device (Linux 4.9 and newer, `blkdev_fallocate`): `ZERO_RANGE` writes zeroes, with the
/// storage's help where it can; `PUNCH_HOLE` gives the blocks back to the storage if they certainly read as zeroes
/// afterwards, and is refused otherwise.
fn zero(device: &OwnedFd, wipe: Wipe, start: u64, length: u64) -> Result<(), Errno> {
    let write =
        || sys::fallocate(device, FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE, start, length);
    match wipe {
        Wipe::Zero => write(),
        Wipe::Discard => {
            let give_back = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match sys::fallocate(device, give_back, start, length) {
                Err(Errno::OPNOTSUPP) => write(),
                result => result,
            }
        }
    }
}

fn failed(errno: Errno) -> StorageError {
    StorageError::Io { call: CALL, source: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wiped_reads_as_zeroes_and_what_lies_behind_it_stays() {
        for wipe in [Wipe::Zero, Wipe::Discard] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("device");
            std::fs::write(&path, [7_u8; 12288]).unwrap();
            let mut wiping = Wiping::begin(&path, 8192, wipe).unwrap();
            assert!(!wiping.step().await.unwrap());
            let content = std::fs::read(&path).unwrap();
            assert!(content[..8192].iter().all(|byte| *byte == 0), "{wipe:?}");
            assert!(content[8192..].iter().all(|byte| *byte == 7), "{wipe:?}");
        }
    }
}
