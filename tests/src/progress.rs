//! Progress lines on standard error for whatever takes longer than a person wants to wonder.

use std::time::Instant;

/// One step of work: a line when it begins and a line when it is done.
#[derive(Debug)]
pub struct Step {
    what: String,
    began: Instant,
}

impl Step {
    /// Says that `what` begins.
    pub fn begin(what: impl Into<String>) -> Self {
        let what = what.into();
        eprintln!("{what} ...");
        Self { what, began: Instant::now() }
    }

    /// Says that it is done, and how long it took.
    pub fn done(self) {
        eprintln!("{}: done in {} s", self.what, self.began.elapsed().as_secs());
    }
}
