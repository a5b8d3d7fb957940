//! Which faults had their effect, and how often: a fault that nobody meets shows nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts effects of faults, each under the name that scenarios have for the fault. Clones count together.
#[derive(Clone, Debug, Default)]
pub(super) struct Effects(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Effects {
    /// A fault has had its effect: a request was lost, a call failed, a process ended or stood still that was to run.
    pub(super) fn had(&self, fault: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(fault).or_default() += 1;
    }

    /// How often each had.
    pub(super) fn all(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
