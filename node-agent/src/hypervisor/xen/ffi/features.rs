//! The CPU features that Xen gives to guests, which libxl does not tell: a function of libxenguest on a connection of
//! libxenctrl. Prototypes are those of `xenctrl.h` and `xenguest.h` of Xen 4.17.

use super::{CallError, Libxl, NONSPECIFIC};
use kubexen_crds::{FeatureSet, FeatureSets};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::{
    ffi::{c_int, c_uint, c_void},
    ptr,
};

/// `XEN_SYSCTL_cpu_featureset_*`: what guests of each kind are given by default.
const PV: u32 = 2;
const HVM: u32 = 3;
/// Words that are asked for: three times as many as Xen 4.17 has.
const ROOM: u32 = 64;

type Connection = *mut c_void;
type Open = unsafe extern "C" fn(*mut c_void, *mut c_void, c_uint) -> Connection;
type Close = unsafe extern "C" fn(Connection) -> c_int;
type Get = unsafe extern "C" fn(Connection, u32, *mut u32, *mut u32) -> c_int;

impl Libxl {
    /// The features that guests of each kind are given; none of a kind that this Xen does not run.
    pub fn feature_sets(&self) -> Result<FeatureSets, CallError> {
        self.ask_for_features().map_err(|error| {
            eprintln!("CPU features: {error}");
            CallError::Refused(NONSPECIFIC)
        })
    }

    fn ask_for_features(&self) -> Result<FeatureSets, libloading::Error> {
        // They are of the same release as libxl, which has loaded them already.
        let library = |name| {
            let name = self.name.replace("xenlight", name);
            // SAFETY: loading runs the library's constructors, which have no requirements.
            unsafe { Library::open(Some(name), RTLD_NOW | RTLD_GLOBAL) }
        };
        let (control, guest) = (library("xenctrl")?, library("xenguest")?);
        // SAFETY: these functions have these types in the headers of the libraries, both of which stay loaded until the end
        // of this function.
        let (open, close, get): (Open, Close, Get) = unsafe {
            (
                *control.get(b"xc_interface_open\0")?,
                *control.get(b"xc_interface_close\0")?,
                *guest.get(b"xc_get_cpu_featureset\0")?,
            )
        };
        // SAFETY: null loggers stand for one that writes to standard error.
        let connection = unsafe { open(ptr::null_mut(), ptr::null_mut(), 0) };
        if connection.is_null() {
            return Ok(FeatureSets::default());
        }
        let set = |index| {
            let (mut words, mut count) = ([0; ROOM as usize], ROOM);
            // SAFETY: the connection is open, and `words` has room for `count` words.
            let code = unsafe { get(connection, index, &raw mut count, words.as_mut_ptr()) };
            (code == 0).then(|| FeatureSet::from_words(&words))
        };
        let sets = FeatureSets { hvm: set(HVM), pv: set(PV) };
        // SAFETY: the connection is open and used no more. A failure to close it has no remedy.
        unsafe { close(connection) };
        Ok(sets)
    }
}
