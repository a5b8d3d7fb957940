//! Loop devices, by the kernel's own interface (`include/uapi/linux/loop.h`, Linux 5.8 or newer).
//!
//! A number is given to another file as soon as a device is cleared. So whoever acts on a device opens it first, which
//! keeps its binding from changing, and then looks whether it still belongs to the expected file.

#![expect(unsafe_code, reason = "ioctl")]

use rustix::{
    fs::{self as sys, Mode, OFlags},
    io::Errno,
    ioctl::{self, Ioctl, IoctlOutput, NoArg, Opcode, Setter},
};
use std::{
    collections::BTreeMap,
    ffi::{OsString, c_void},
    fs, io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// What the kernel adds to the path of a backing file that was deleted.
pub(super) const DELETED: &str = " (deleted)";

/// The number of a loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct LoopDevice(u32);

/// How a device is bound to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attachment {
    pub(super) read_only: bool,
    /// It was cleared while somebody had it open, and goes when they let go.
    pub(super) vanishing: bool,
}

const CLR_FD: Opcode = 0x4c01;
const SET_CAPACITY: Opcode = 0x4c07;
const CONFIGURE: Opcode = 0x4c0a;
const CTL_GET_FREE: Opcode = 0x4c82;

const FLAG_READ_ONLY: u32 = 1;
const FLAG_DIRECT_IO: u32 = 16;

/// Guests must see the same sector size on every host, so the kernel is not to choose it by the disk below.
const BLOCK_SIZE: u32 = 512;

/// How often another program may take the free device first.
const ATTEMPTS: u32 = 64;

/// How often and after how long it is looked whether a cleared device is gone: half a second in all, because programs
/// such as udev look at it for a moment.
const CLEAR_POLLS: u32 = 100;
const CLEAR_POLL: Duration = Duration::from_millis(5);

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

/// `LOOP_CTL_GET_FREE`, whose result is the number it returns.
struct GetFree;

// SAFETY: the call takes no argument and touches no memory of the caller.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(out: IoctlOutput, _: *mut c_void) -> rustix::io::Result<u32> {
        u32::try_from(out).map_err(|_| Errno::RANGE)
    }
}

/// The node of a device.
pub(super) fn node(device: LoopDevice) -> PathBuf {
    PathBuf::from(format!("/dev/loop{}", device.0))
}

/// The files of all devices that have one.
pub(super) fn backing_files() -> io::Result<BTreeMap<LoopDevice, PathBuf>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")).map(str::parse);
        if let Some(Ok(number)) = number {
            let device = LoopDevice(number);
            if let Some(path) = backing_file(device)? {
                files.insert(device, path);
            }
        }
    }
    Ok(files)
}

/// The devices that belong to a file, whether it was deleted since or not.
pub(super) fn devices_of(file: &Path) -> io::Result<Vec<LoopDevice>> {
    Ok(backing_files()?
        .into_iter()
        .filter(|(_, path)| is_same(path, file))
        .map(|(device, _)| device)
        .collect())
}

/// How a device is bound.
pub(super) fn attachment(device: LoopDevice) -> io::Result<Attachment> {
    let flag = |name| Ok::<_, io::Error>(attribute(device, name)?.is_some_and(|text| text == b"1"));
    Ok(Attachment { read_only: flag("ro")?, vanishing: flag("loop/autoclear")? })
}

/// Binds a free device to an open file, with direct I/O where the file system can, so that dom0 does not cache what
/// the guest caches as well and a write that the guest was told of is on the disk.
pub(super) fn attach(file: &OwnedFd, read_only: bool) -> io::Result<LoopDevice> {
    let control = open(Path::new("/dev/loop-control"), OFlags::RDWR)?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the opcode takes no argument, as `GetFree` says.
        let device = LoopDevice(unsafe { ioctl::ioctl(&control, GetFree) }?);
        let opened = open(&node(device), OFlags::RDWR)?;
        let config = LoopConfig {
            fd: file.as_raw_fd().unsigned_abs(),
            block_size: BLOCK_SIZE,
            info: LoopInfo64 {
                device: 0,
                inode: 0,
                rdevice: 0,
                offset: 0,
                size_limit: 0,
                number: 0,
                encrypt_type: 0,
                encrypt_key_size: 0,
                flags: FLAG_DIRECT_IO | if read_only { FLAG_READ_ONLY } else { 0 },
                file_name: [0; 64],
                crypt_name: [0; 64],
                encrypt_key: [0; 32],
                init: [0; 2],
            },
            reserved: [0; 8],
        };
        // SAFETY: the opcode takes a pointer to a `struct loop_config`, which it only reads.
        match unsafe { ioctl::ioctl(&opened, Setter::<CONFIGURE, LoopConfig>::new(config)) } {
            Ok(()) => return Ok(device),
            // Another program was faster.
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(Errno::BUSY.into())
}

/// Makes a device as large as its file is by now, if it still belongs to that file.
pub(super) fn learn_size(device: LoopDevice, file: &Path) -> io::Result<()> {
    let Some(opened) = open_bound(device, file)? else { return Ok(()) };
    // SAFETY: the opcode takes no argument.
    Ok(unsafe { ioctl::ioctl(&opened, NoArg::<SET_CAPACITY>::new()) }?)
}

/// Unbinds a device from a file. Answers false when somebody else has it open: then it goes when they let go.
pub(super) fn detach(device: LoopDevice, file: &Path) -> io::Result<bool> {
    let Some(opened) = open_bound(device, file)? else { return Ok(true) };
    // SAFETY: the opcode takes no argument.
    match unsafe { ioctl::ioctl(&opened, NoArg::<CLR_FD>::new()) } {
        Ok(()) | Err(Errno::NXIO) => {}
        Err(errno) => return Err(errno.into()),
    }
    // The kernel unbinds it when the last one who has it open lets go.
    drop(opened);
    for _ in 0..CLEAR_POLLS {
        if !is_bound(device, file)? {
            return Ok(true);
        }
        thread::sleep(CLEAR_POLL);
    }
    Ok(false)
}

/// Opens a device if it belongs to a file; while it is open it stays so.
fn open_bound(device: LoopDevice, file: &Path) -> io::Result<Option<OwnedFd>> {
    let opened = match open(&node(device), OFlags::RDONLY) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    Ok(is_bound(device, file)?.then_some(opened))
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    sys::open(path, flags | OFlags::CLOEXEC, Mode::empty())
}

fn is_bound(device: LoopDevice, file: &Path) -> io::Result<bool> {
    Ok(backing_file(device)?.is_some_and(|path| is_same(&path, file)))
}

fn is_same(backing: &Path, file: &Path) -> bool {
    backing == file || {
        let mut deleted = file.as_os_str().to_owned();
        deleted.push(DELETED);
        backing.as_os_str() == deleted
    }
}

fn backing_file(device: LoopDevice) -> io::Result<Option<PathBuf>> {
    let text = attribute(device, "loop/backing_file")?;
    Ok(text.filter(|text| !text.is_empty()).map(|text| OsString::from_vec(text).into()))
}

/// An attribute of a device without its line break; nothing if the device, or its binding, is not there.
fn attribute(device: LoopDevice, name: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(format!("/sys/block/loop{}/{name}", device.0)) {
        Ok(mut text) => {
            if text.last() == Some(&b'\n') {
                text.pop();
            }
            Ok(Some(text))
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => Ok(None),
        // The attribute went away between its opening and its reading.
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}
