//! Xen's watchdog timers, through libxenctrl, and the priority of the thread that moves them. Prototypes are those of
//! `xenctrl.h` of Xen 4.17; the hypercall below has been the same since Xen 4.0, so any release's library will do.

use super::super::watchdog::slot::Timers;
use super::LIBRARIES;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::{
    ffi::{c_int, c_uint, c_void},
    io, ptr,
};

/// Above every ordinary thread, and below those of interrupts, which begin at 50.
const PRIORITY: c_int = 1;

type Connection = *mut c_void;
type Open = unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint) -> Connection;
type Close = unsafe extern "C" fn(Connection) -> c_int;
type Set = unsafe extern "C" fn(Connection, u32, u32) -> c_int;

/// The two watchdog timers of this domain. They belong to the thread that opened them.
pub struct XenTimers {
    connection: Connection,
    close: Close,
    set: Set,
    // Declared last, so that the code outlives the connection.
    _library: Library,
}

/// Why they cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// None of the known libraries is installed, or a function is missing in the one that is.
    #[error("libxenctrl cannot be loaded: {0}")]
    Library(#[from] libloading::Error),
    /// This machine does not run Xen, or this process is not root's.
    #[error("libxenctrl gives no connection to Xen: {0}")]
    Connection(#[source] io::Error),
}

impl XenTimers {
    /// Loads the newest-known library that is installed, and opens a connection that logs to standard error.
    ///
    /// # Errors
    /// [`OpenError`] where there is no such library, or no Xen.
    pub fn open() -> Result<Self, OpenError> {
        let library = Self::library()?;
        // SAFETY: these functions have these types in the library's header, and it is kept in the result for as long as the
        // addresses are.
        let (open, close, set): (Open, Close, Set) = unsafe {
            (
                *library.get(b"xc_interface_open\0")?,
                *library.get(b"xc_interface_close\0")?,
                *library.get(b"xc_watchdog\0")?,
            )
        };
        // SAFETY: null loggers stand for one that writes to standard error.
        let connection = unsafe { open(ptr::null_mut(), ptr::null_mut(), 0) };
        if connection.is_null() {
            return Err(OpenError::Connection(io::Error::last_os_error()));
        }
        Ok(Self { connection, close, set, _library: library })
    }

    fn library() -> Result<Library, libloading::Error> {
        let open = |name: &str| {
            // SAFETY: loading runs the library's constructors, which have no requirements.
            unsafe { Library::open(Some(name.replace("xenlight", "xenctrl")), RTLD_NOW | RTLD_LOCAL) }
        };
        let [first, others @ ..] = LIBRARIES;
        // The first error is told: it names the library of the release that most hosts have.
        open(first).or_else(|error| others.into_iter().find_map(|name| open(name).ok()).ok_or(error))
    }
}

impl Timers for XenTimers {
    /// The library keeps the page in which the arguments go over from the first call on, so later ones allocate nothing.
    fn set(&mut self, timer: u32, seconds: u32) -> io::Result<u32> {
        // SAFETY: the connection is open, and the other arguments are numbers.
        let code = unsafe { (self.set)(self.connection, timer, seconds) };
        u32::try_from(code).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for XenTimers {
    fn drop(&mut self) {
        // SAFETY: the connection is open and used no more. A failure to close it has no remedy.
        unsafe { (self.close)(self.connection) };
    }
}

/// Gives the calling thread a real-time priority, which what it forks does not inherit.
///
/// # Errors
/// What the system answers; `EPERM` where the process may not.
pub fn set_real_time() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    let policy = libc::SCHED_RR | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the number 0 is the calling thread, and the structure is valid during the call, which only reads it.
    match unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
