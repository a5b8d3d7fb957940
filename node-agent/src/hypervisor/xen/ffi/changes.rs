//! The functions that change a domain whose guest runs.

use super::{Asynchronous, CallError, Context, INVALID, Libxl, Object, Room, check};
use std::{
    ffi::{CString, c_char, c_int},
    ptr,
};

/// The memory target is no difference.
const ABSOLUTE: c_int = 0;
/// Xen keeps the guest from holding more than its target.
const ENFORCED: c_int = 1;
/// The functions that fill and empty a structure of one type.
struct Kind {
    init: unsafe extern "C" fn(Object),
    from_json: unsafe extern "C" fn(Context, Object, *const c_char) -> c_int,
    dispose: unsafe extern "C" fn(Object),
}

impl Libxl {
    /// Lets a guest run on its first so many virtual CPUs.
    pub fn set_vcpus(&self, domid: u16, vcpus: u32) -> Result<(), CallError> {
        let count = c_int::try_from(vcpus).map_err(|_| CallError::Refused(INVALID))?;
        let mut room = Room::new();
        let map = room.object();
        // SAFETY: `map` is zeroed, aligned for any type, and larger than the structure.
        unsafe { (self.functions.libxl_bitmap_init)(map) };
        // SAFETY: it is initialised; the bits that are set lie within what was allocated; null makes the call
        // synchronous.
        let result = unsafe {
            check((self.functions.libxl_bitmap_alloc)(self.context, map, count)).and_then(|()| {
                (0..count).for_each(|bit| (self.functions.libxl_bitmap_set)(map, bit));
                check((self.functions.libxl_set_vcpuonline)(self.context, domid.into(), map, ptr::null()))
            })
        };
        // SAFETY: it was initialised above and is used no more; what it points to was allocated by libxl.
        unsafe { (self.functions.libxl_bitmap_dispose)(map) };
        result
    }

    /// Asks a guest to hold so much memory, in KiB, and keeps it from holding more.
    pub fn set_memory(&self, domid: u16, kib: u64) -> Result<(), CallError> {
        let kib = i64::try_from(kib).map_err(|_| CallError::Refused(INVALID))?;
        // SAFETY: the context is open.
        check(unsafe {
            (self.functions.libxl_set_memory_target)(self.context, domid.into(), kib, ABSOLUTE, ENFORCED)
        })
    }

    /// `libxl_domain_sched_params` of a domain in JSON.
    pub fn scheduling(&self, domid: u16) -> Result<serde_json::Value, CallError> {
        let mut room = Room::new();
        let parameters = room.object();
        // SAFETY: `parameters` is zeroed, aligned for any type, and larger than the structure.
        unsafe { (self.functions.libxl_domain_sched_params_init)(parameters) };
        // SAFETY: it is initialised, and filled before it is written out.
        let result = unsafe {
            check((self.functions.libxl_domain_sched_params_get)(self.context, domid.into(), parameters))
                .and_then(|()| {
                    self.json((self.functions.libxl_domain_sched_params_to_json)(self.context, parameters))
                })
        };
        // SAFETY: it was initialised above and is used no more.
        unsafe { (self.functions.libxl_domain_sched_params_dispose)(parameters) };
        result
    }

    /// Schedules a domain as a `libxl_domain_sched_params` says; what it leaves out stays as it is.
    pub fn set_scheduling(&self, domid: u16, parameters: &serde_json::Value) -> Result<(), CallError> {
        let functions = &self.functions;
        let kind = Kind {
            init: functions.libxl_domain_sched_params_init,
            from_json: functions.libxl_domain_sched_params_from_json,
            dispose: functions.libxl_domain_sched_params_dispose,
        };
        // SAFETY: the functions are those of one type, and the object that they fill is of it.
        unsafe {
            self.with_object(&kind, parameters, |parameters| {
                (functions.libxl_domain_sched_params_set)(self.context, domid.into(), parameters)
            })
        }
    }

    /// Adds a `libxl_device_disk`.
    pub fn attach_disk(&self, domid: u16, disk: &serde_json::Value) -> Result<(), CallError> {
        self.with_device(&self.disk(), disk, domid, self.functions.libxl_device_disk_add)
    }

    /// Asks the guest to let go of a `libxl_device_disk`, and removes it when the guest has. Fails after ten seconds, and
    /// leaves the disk to the guest.
    pub fn detach_disk(&self, domid: u16, disk: &serde_json::Value) -> Result<(), CallError> {
        self.with_device(&self.disk(), disk, domid, self.functions.libxl_device_disk_safe_remove)
    }

    /// Changes what is in a CD drive to what a `libxl_device_disk` says, which names the drive by its `vdev`. When it fails the
    /// drive may be empty.
    pub fn change_cd(&self, domid: u16, disk: &serde_json::Value) -> Result<(), CallError> {
        self.with_device(&self.disk(), disk, domid, self.functions.libxl_cdrom_insert)
    }

    /// Adds a `libxl_device_nic`.
    pub fn attach_interface(&self, domid: u16, interface: &serde_json::Value) -> Result<(), CallError> {
        self.with_device(&self.interface(), interface, domid, self.functions.libxl_device_nic_add)
    }

    /// Removes a `libxl_device_nic`, after ten seconds by force.
    pub fn detach_interface(&self, domid: u16, interface: &serde_json::Value) -> Result<(), CallError> {
        self.with_device(&self.interface(), interface, domid, self.functions.libxl_device_nic_remove)
    }

    fn disk(&self) -> Kind {
        Kind {
            init: self.functions.libxl_device_disk_init,
            from_json: self.functions.libxl_device_disk_from_json,
            dispose: self.functions.libxl_device_disk_dispose,
        }
    }

    fn interface(&self) -> Kind {
        Kind {
            init: self.functions.libxl_device_nic_init,
            from_json: self.functions.libxl_device_nic_from_json,
            dispose: self.functions.libxl_device_nic_dispose,
        }
    }

    fn with_device(
        &self,
        kind: &Kind,
        device: &serde_json::Value,
        domid: u16,
        call: unsafe extern "C" fn(Context, u32, Object, Asynchronous) -> c_int,
    ) -> Result<(), CallError> {
        // SAFETY: every caller names the functions of one type; null makes the call synchronous.
        unsafe {
            self.with_object(kind, device, |device| call(self.context, domid.into(), device, ptr::null()))
        }
    }

    /// Fills a structure from JSON and calls a function on it.
    ///
    /// # Safety
    /// `kind` must be the functions of one type, and `call` must take an object of this type.
    unsafe fn with_object(
        &self,
        kind: &Kind,
        content: &serde_json::Value,
        call: impl FnOnce(Object) -> c_int,
    ) -> Result<(), CallError> {
        let text = CString::new(content.to_string()).map_err(|_| CallError::Refused(INVALID))?;
        let mut room = Room::new();
        let object = room.object();
        // SAFETY: `object` is zeroed, aligned for any type, and larger than the structure; it is initialised before it is
        // filled, and filled before it is used; `text` ends with a zero and is only read; disposed of, it is used no more.
        unsafe {
            (kind.init)(object);
            let result = check((kind.from_json)(self.context, object, text.as_ptr()))
                .and_then(|()| check(call(object)));
            (kind.dispose)(object);
            result
        }
    }
}
