//! The only module that calls C: libxl, loaded at run time and spoken to in its own JSON; and in [`features`] and
//! [`watchdog`] a function each of the library below it.
//!
//! libxl exports a `_from_json` or `_to_json` function for every type of its interface, so no layout of a C
//! structure is known here, and one binary serves several Xen releases. A structure is a zeroed buffer many times
//! larger than any release's. Prototypes are those of `libxl.h` and `xentoollog.h` of Xen 4.17; an asynchronous
//! operation is made synchronous by a null `ao_how`.
#![allow(unsafe_code)] // A C library can be called in no other way. This module is the whole of it.

mod changes;

mod features;

pub mod watchdog;

use super::rounds::progress_line;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::{
    ffi::{CStr, CString, c_char, c_int, c_uint, c_ulong, c_void},
    io::Write,
    os::fd::{AsRawFd, BorrowedFd},
    ptr,
};
use uuid::Uuid;

/// Libraries that are tried, in this order. A context of one release works on that release of Xen alone, and a dom0
/// has the one that fits installed.
const LIBRARIES: [&str; 5] = [
    "libxenlight.so.4.17",
    "libxenlight.so.4.18",
    "libxenlight.so.4.19",
    "libxenlight.so.4.20",
    "libxenlight.so.4.21",
];
const LOG_LIBRARY: &str = "libxentoollog.so.1";

/// `XTL_INFO`: what a person who looks for a cause wants, without libxl's tracing.
const LOG_LEVEL: c_int = 5;
/// `LIBXL_TRIGGER_POWER`.
const TRIGGER_POWER: c_int = 1;
/// `ERROR_NONSPECIFIC`, for what libxl reports without a number.
const NONSPECIFIC: c_int = -1;
/// `ERROR_INVAL`.
pub const INVALID: c_int = -6;
/// `ERROR_DOMAIN_NOTFOUND`.
const DOMAIN_NOT_FOUND: c_int = -21;
/// `LIBXL_SUSPEND_LIVE`.
const SUSPEND_LIVE: c_int = 2;
/// The guest is told that it was not restored anywhere, which Linux has understood since 2.6 and other PV drivers do too.
const CANCEL_SUSPEND: c_int = 1;
/// No descriptor: only COLO has one that sends back.
const NO_DESCRIPTOR: c_int = -1;
/// The stream format that every release since Xen 4.6 writes; the structure's own default is the one before it.
const RESTORE_PARAMETERS: &CStr = cr#"{"checkpointed_stream": 0, "stream_version": 2}"#;
/// `INVALID_DOMID`: no domain yet.
const INVALID_DOMID: u32 = u32::MAX;

type Context = *mut c_void;
type Object = *mut c_void;
/// `const libxl_asyncop_how *`, always null here.
type Asynchronous = *const c_void;

/// Why libxl cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// None of the known libraries is installed, or a function is missing in the one that is.
    #[error("libxl cannot be loaded (tried {})", LIBRARIES.join(", "))]
    Library(#[from] libloading::Error),
    /// The context could not be made; the log says why. Usually this machine does not run Xen.
    #[error("libxl_ctx_alloc failed with {0}")]
    Context(c_int),
}

/// Why one call failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallError {
    /// The domain is not there.
    NoSuchDomain,
    /// Less memory is free than is needed; both in KiB.
    OutOfMemory { need_kib: u64, free_kib: u64 },
    /// libxl's error number.
    Refused(i32),
}

/// Declares the table of functions and how it is filled.
macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)+) => {
        /// Addresses of libxl's functions, under their own names.
        #[derive(Clone, Copy)]
        struct Functions { $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)+ }

        impl Functions {
            /// Looks all of them up.
            ///
            /// # Safety
            /// The library must be libxl, whose functions have these types, and must stay loaded.
            unsafe fn load(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: the caller vouches for the types and for the library's life.
                unsafe { Ok(Self { $($name: *library.get(concat!(stringify!($name), "\0").as_bytes())?,)+ }) }
            }
        }
    };
}

functions! {
    libxl_ctx_alloc: fn(*mut Context, c_int, c_uint, *mut c_void) -> c_int;
    libxl_ctx_free: fn(Context) -> c_int;
    libxl_get_version_info: fn(Context) -> *const c_void;
    libxl_version_info_to_json: fn(Context, *const c_void) -> *mut c_char;
    libxl_domain_config_init: fn(Object);
    libxl_domain_config_from_json: fn(Context, Object, *const c_char) -> c_int;
    libxl_domain_config_dispose: fn(Object);
    libxl_domain_need_memory: fn(Context, Object, u32, *mut u64) -> c_int;
    libxl_get_free_memory: fn(Context, *mut u64) -> c_int;
    libxl_domain_create_new: fn(Context, Object, *mut u32, Asynchronous, *const c_void) -> c_int;
    libxl_dominfo_init: fn(Object);
    libxl_dominfo_dispose: fn(Object);
    libxl_dominfo_to_json: fn(Context, Object) -> *mut c_char;
    libxl_domain_info: fn(Context, Object, u32) -> c_int;
    libxl_domain_destroy: fn(Context, u32, Asynchronous) -> c_int;
    libxl_domain_unpause: fn(Context, u32, Asynchronous) -> c_int;
    libxl_send_trigger: fn(Context, u32, c_int, u32, Asynchronous) -> c_int;
    libxl_domain_suspend: fn(Context, u32, c_int, c_int, Asynchronous) -> c_int;
    libxl_domain_resume: fn(Context, u32, c_int, Asynchronous) -> c_int;
    libxl_domain_restore_params_init: fn(Object);
    libxl_domain_restore_params_from_json: fn(Context, Object, *const c_char) -> c_int;
    libxl_domain_restore_params_dispose: fn(Object);
    libxl_domain_create_restore: fn(Context, Object, *mut u32, c_int, c_int, Object, Asynchronous, *const c_void) -> c_int;
    libxl_bitmap_init: fn(Object);
    libxl_bitmap_alloc: fn(Context, Object, c_int) -> c_int;
    libxl_bitmap_set: fn(Object, c_int);
    libxl_bitmap_dispose: fn(Object);
    libxl_set_vcpuonline: fn(Context, u32, Object, Asynchronous) -> c_int;
    libxl_set_memory_target: fn(Context, u32, i64, c_int, c_int) -> c_int;
    libxl_domain_sched_params_init: fn(Object);
    libxl_domain_sched_params_from_json: fn(Context, Object, *const c_char) -> c_int;
    libxl_domain_sched_params_to_json: fn(Context, Object) -> *mut c_char;
    libxl_domain_sched_params_dispose: fn(Object);
    libxl_domain_sched_params_get: fn(Context, u32, Object) -> c_int;
    libxl_domain_sched_params_set: fn(Context, u32, Object) -> c_int;
    libxl_device_disk_init: fn(Object);
    libxl_device_disk_from_json: fn(Context, Object, *const c_char) -> c_int;
    libxl_device_disk_dispose: fn(Object);
    libxl_device_disk_add: fn(Context, u32, Object, Asynchronous) -> c_int;
    libxl_device_disk_safe_remove: fn(Context, u32, Object, Asynchronous) -> c_int;
    libxl_cdrom_insert: fn(Context, u32, Object, Asynchronous) -> c_int;
    libxl_device_nic_init: fn(Object);
    libxl_device_nic_from_json: fn(Context, Object, *const c_char) -> c_int;
    libxl_device_nic_dispose: fn(Object);
    libxl_device_nic_add: fn(Context, u32, Object, Asynchronous) -> c_int;
    libxl_device_nic_remove: fn(Context, u32, Object, Asynchronous) -> c_int;
}

unsafe extern "C" {
    /// The C library's standard error stream: libxl's logger writes to a `FILE *`.
    static stderr: *mut c_void;
    fn free(pointer: *mut c_void);
}

/// The beginning of every `struct xentoollog_logger`, which `xentoollog.h` declares; a logger's own data follow it.
#[repr(C)]
struct Logger {
    vmessage: *const c_void,
    progress: Progress,
    destroy: *const c_void,
}

type Progress = unsafe extern "C" fn(*mut Logger, *const c_char, *const c_char, c_int, c_ulong, c_ulong);

/// Writes what libxl tells of its progress to standard error, as far as somebody there wants to know it.
unsafe extern "C" fn tell_progress(
    _: *mut Logger,
    _context: *const c_char,
    doing: *const c_char,
    _percent: c_int,
    done: c_ulong,
    total: c_ulong,
) {
    if doing.is_null() {
        return;
    }
    // SAFETY: libxl passes a string that ends with a zero and that lives as long as the call.
    let doing = unsafe { CStr::from_ptr(doing) };
    if let Some(line) = progress_line(&doing.to_string_lossy(), done, total) {
        // Whoever reads it may be gone.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}

/// A libxl context. It belongs to the thread that made it.
pub struct Libxl {
    context: Context,
    functions: Functions,
    name: &'static str,
    // Declared last, so that the code outlives the context.
    _library: Library,
    _log_library: Library,
}

/// Room for one of libxl's structures: 1 MiB, where the largest of Xen 4.17 takes about 4 KiB.
struct Room(Box<[u128]>);

impl Room {
    fn new() -> Self {
        Self(vec![0; (1 << 20) / size_of::<u128>()].into_boxed_slice())
    }

    fn object(&mut self) -> Object {
        self.0.as_mut_ptr().cast()
    }
}

impl Libxl {
    /// Loads the newest-known library that is installed, and opens a context that logs to standard error.
    ///
    /// # Errors
    /// [`LoadError`] where there is no libxl, or no Xen.
    pub fn open() -> Result<Self, LoadError> {
        let (name, library) = Self::library()?;
        // SAFETY: loading runs the library's constructors, which have no requirements.
        let log_library = unsafe { Library::open(Some(LOG_LIBRARY), RTLD_NOW | RTLD_GLOBAL) }?;
        // SAFETY: these are libxl and its log library, whose functions have the types that their headers declare;
        // both are kept in the result for as long as the addresses are.
        let (functions, create_logger) = unsafe {
            let create_logger: unsafe extern "C" fn(*mut c_void, c_int, c_uint) -> *mut Logger =
                *log_library.get(b"xtl_createlogger_stdiostream\0")?;
            (Functions::load(&library)?, create_logger)
        };
        let mut context = ptr::null_mut();
        // SAFETY: `stderr` is the C library's open stream. The logger is made for this context and is never freed,
        // so it outlives it; nobody else knows it while one of its functions is replaced by another of the same type;
        // a null logger is refused by libxl and shows as an error. `context` is a valid place for the result.
        let code = unsafe {
            let logger = create_logger(stderr, LOG_LEVEL, 0);
            if let Some(logger) = logger.as_mut() {
                logger.progress = tell_progress;
            }
            (functions.libxl_ctx_alloc)(&raw mut context, 0, 0, logger.cast())
        };
        if code != 0 || context.is_null() {
            return Err(LoadError::Context(code));
        }
        Ok(Self { context, functions, name, _library: library, _log_library: log_library })
    }

    fn library() -> Result<(&'static str, Library), LoadError> {
        let mut last = None;
        for name in LIBRARIES {
            // SAFETY: loading runs the library's constructors, which have no requirements.
            match unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) } {
                Ok(library) => return Ok((name, library)),
                // The first error is told: it names the library of the release that most hosts have.
                Err(error) => last = last.or(Some(error)),
            }
        }
        Err(last.map_or(LoadError::Context(NONSPECIFIC), LoadError::Library))
    }

    /// File name of the library in use.
    pub fn library_name(&self) -> &'static str {
        self.name
    }

    /// `libxl_version_info` in JSON.
    pub fn version(&self) -> Result<serde_json::Value, CallError> {
        // SAFETY: the context is open. libxl owns the structure and keeps it for the life of the context.
        let info = unsafe { (self.functions.libxl_get_version_info)(self.context) };
        if info.is_null() {
            return Err(CallError::Refused(NONSPECIFIC));
        }
        // SAFETY: `info` is the structure that the function takes.
        self.json(unsafe { (self.functions.libxl_version_info_to_json)(self.context, info) })
    }

    /// Builds a domain, which is left paused, and returns its number.
    pub fn create(&self, config: &serde_json::Value) -> Result<u16, CallError> {
        self.with_config(config, |config| {
            let mut domid = INVALID_DOMID;
            // SAFETY: `config` is filled, `domid` a valid place for the result; null makes the call synchronous and
            // asks for no news of the console.
            check(unsafe {
                (self.functions.libxl_domain_create_new)(
                    self.context,
                    config,
                    &raw mut domid,
                    ptr::null(),
                    ptr::null(),
                )
            })?;
            Ok(domid)
        })
    }

    /// Builds a domain from a stream, which is left paused, and returns its number.
    pub fn restore(&self, config: &serde_json::Value, stream: BorrowedFd<'_>) -> Result<u16, CallError> {
        let mut room = Room::new();
        let parameters = room.object();
        // SAFETY: `parameters` is zeroed, aligned for any type, and larger than the structure.
        unsafe { (self.functions.libxl_domain_restore_params_init)(parameters) };
        // SAFETY: it is initialised, and the text ends with a zero and is only read.
        let result = check(unsafe {
            (self.functions.libxl_domain_restore_params_from_json)(
                self.context,
                parameters,
                RESTORE_PARAMETERS.as_ptr(),
            )
        })
        .and_then(|()| self.with_config(config, |config| self.restore_from(config, parameters, stream)));
        // SAFETY: it was initialised above and is used no more; what it points to was allocated by libxl.
        unsafe { (self.functions.libxl_domain_restore_params_dispose)(parameters) };
        result
    }

    fn restore_from(
        &self,
        config: Object,
        parameters: Object,
        stream: BorrowedFd<'_>,
    ) -> Result<u32, CallError> {
        let mut domid = INVALID_DOMID;
        // SAFETY: `config` and `parameters` are filled, `domid` is a valid place for the result, the stream stays open
        // during the call; null makes the call synchronous and asks for no news of the console.
        check(unsafe {
            (self.functions.libxl_domain_create_restore)(
                self.context,
                config,
                &raw mut domid,
                stream.as_raw_fd(),
                NO_DESCRIPTOR,
                parameters,
                ptr::null(),
                ptr::null(),
            )
        })?;
        Ok(domid)
    }

    /// Fills a `libxl_domain_config`, makes sure that there is memory for it, and builds a domain from it.
    fn with_config(
        &self,
        config: &serde_json::Value,
        build: impl FnOnce(Object) -> Result<u32, CallError>,
    ) -> Result<u16, CallError> {
        let text = CString::new(config.to_string()).map_err(|_| CallError::Refused(INVALID))?;
        let mut room = Room::new();
        let object = room.object();
        // SAFETY: `object` is zeroed, aligned for any type, and larger than the structure.
        unsafe { (self.functions.libxl_domain_config_init)(object) };
        let result = self.fill(object, &text).and_then(|()| build(object));
        // SAFETY: it was initialised above and is used no more; what it points to was allocated by libxl.
        unsafe { (self.functions.libxl_domain_config_dispose)(object) };
        u16::try_from(result?).map_err(|_| CallError::Refused(NONSPECIFIC))
    }

    fn fill(&self, config: Object, text: &CStr) -> Result<(), CallError> {
        // SAFETY: `config` is initialised, `text` ends with a zero and is only read.
        check(unsafe {
            (self.functions.libxl_domain_config_from_json)(self.context, config, text.as_ptr())
        })?;
        let (mut need_kib, mut free_kib) = (0, 0);
        // SAFETY: `config` is filled; libxl completes defaults in it, which creation then keeps.
        check(unsafe {
            (self.functions.libxl_domain_need_memory)(self.context, config, INVALID_DOMID, &raw mut need_kib)
        })?;
        // SAFETY: the second argument is a valid place for the result.
        check(unsafe { (self.functions.libxl_get_free_memory)(self.context, &raw mut free_kib) })?;
        if need_kib > free_kib {
            return Err(CallError::OutOfMemory { need_kib, free_kib });
        }
        Ok(())
    }

    /// The UUID that the domain with this number has now.
    pub fn uuid(&self, domid: u16) -> Result<Uuid, CallError> {
        let mut room = Room::new();
        let object = room.object();
        // SAFETY: `object` is zeroed, aligned for any type, and larger than the structure.
        unsafe { (self.functions.libxl_dominfo_init)(object) };
        let result = self.uuid_into(object, domid);
        // SAFETY: it was initialised above and is used no more.
        unsafe { (self.functions.libxl_dominfo_dispose)(object) };
        result
    }

    fn uuid_into(&self, object: Object, domid: u16) -> Result<Uuid, CallError> {
        // SAFETY: `object` is initialised.
        check(unsafe { (self.functions.libxl_domain_info)(self.context, object, domid.into()) })?;
        // SAFETY: `object` is filled.
        let info = self.json(unsafe { (self.functions.libxl_dominfo_to_json)(self.context, object) })?;
        let uuid = info["uuid"].as_str().and_then(|text| text.parse().ok());
        uuid.ok_or(CallError::Refused(NONSPECIFIC))
    }

    /// Takes a domain apart with its device model, devices and xenstore nodes.
    pub fn destroy(&self, domid: u16) -> Result<(), CallError> {
        // SAFETY: the context is open; null makes the call synchronous.
        check(unsafe { (self.functions.libxl_domain_destroy)(self.context, domid.into(), ptr::null()) })
    }

    /// Lets a domain run, and its device model if it has one.
    pub fn unpause(&self, domid: u16) -> Result<(), CallError> {
        // SAFETY: as above.
        check(unsafe { (self.functions.libxl_domain_unpause)(self.context, domid.into(), ptr::null()) })
    }

    /// Writes a domain's memory and state to a stream and leaves it suspended. When writing fails, the domain may be
    /// left running or suspended.
    pub fn suspend(&self, domid: u16, stream: BorrowedFd<'_>, live: bool) -> Result<(), CallError> {
        let flags = if live { SUSPEND_LIVE } else { 0 };
        // SAFETY: the context and the stream are open; null makes the call synchronous.
        check(unsafe {
            (self.functions.libxl_domain_suspend)(
                self.context,
                domid.into(),
                stream.as_raw_fd(),
                flags,
                ptr::null(),
            )
        })
    }

    /// Lets a suspended domain run on, and its device model if it has one.
    pub fn resume(&self, domid: u16) -> Result<(), CallError> {
        // SAFETY: the context is open; null makes the call synchronous.
        check(unsafe {
            (self.functions.libxl_domain_resume)(self.context, domid.into(), CANCEL_SUSPEND, ptr::null())
        })
    }

    /// Presses the ACPI power button of a domain. The virtual CPU does not matter for this trigger.
    pub fn power_button(&self, domid: u16) -> Result<(), CallError> {
        // SAFETY: as above.
        check(unsafe {
            (self.functions.libxl_send_trigger)(self.context, domid.into(), TRIGGER_POWER, 0, ptr::null())
        })
    }

    /// Takes over a string that libxl allocated, and reads it.
    fn json(&self, text: *mut c_char) -> Result<serde_json::Value, CallError> {
        if text.is_null() {
            return Err(CallError::Refused(NONSPECIFIC));
        }
        // SAFETY: libxl's `_to_json` functions return a string from malloc that ends with a zero.
        let value = serde_json::from_slice(unsafe { CStr::from_ptr(text) }.to_bytes());
        // SAFETY: it came from malloc, is owned by us, and was read.
        unsafe { free(text.cast()) };
        value.map_err(|_| CallError::Refused(NONSPECIFIC))
    }
}

impl Drop for Libxl {
    fn drop(&mut self) {
        // SAFETY: the context is open and used no more. A failure to free it has no remedy.
        unsafe { (self.functions.libxl_ctx_free)(self.context) };
    }
}

fn check(code: c_int) -> Result<(), CallError> {
    match code {
        0.. => Ok(()),
        DOMAIN_NOT_FOUND => Err(CallError::NoSuchDomain),
        refused => Err(CallError::Refused(refused)),
    }
}
