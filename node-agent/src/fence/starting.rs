//! A guest that is being started.

use super::Fence;
use uuid::Uuid;

/// A guest that is being started, until this is dropped. If no domain was built, what was promised of it is not kept any longer:
/// the watchdog runs for guests alone that are here. Whatever the record says of it by then, and comes to say, the next start and
/// whatever lets the guest run read it first.
#[derive(Debug)]
pub struct Starting<'a> {
    fence: &'a Fence,
    guest: Uuid,
    may_be_here: bool,
}

impl Fence {
    /// A guest of which there is no domain here is about to be started.
    pub fn starting(&self, guest: Uuid) -> Starting<'_> {
        Starting { fence: self, guest, may_be_here: false }
    }
}

impl Starting<'_> {
    /// From now on there may be a domain of it here.
    pub fn builds(&mut self) {
        self.may_be_here = true;
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if !self.may_be_here {
            self.fence.forget(self.guest);
        }
    }
}
