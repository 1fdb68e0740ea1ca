//! Whether the service is ready, and if not, why: one reason per cause, in words.
//!
//! Must never be ready while a partition that is ours is stopped or a server is known to be away.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The reasons for not being ready, and the reader's pulse.
#[derive(Debug)]
pub struct Health {
    reasons: Mutex<BTreeMap<String, String>>,
    pulse: Mutex<Instant>,
}

impl Default for Health {
    fn default() -> Health {
        Health { reasons: Mutex::default(), pulse: Mutex::new(Instant::now()) }
    }
}

impl Health {
    fn reasons_locked(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.reasons.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `cause` keeps the service from being ready.
    pub fn set(&self, cause: &str, reason: impl Into<String>) {
        self.reasons_locked().insert(cause.to_owned(), reason.into());
    }

    /// `cause` is over.
    pub fn clear(&self, cause: &str) {
        self.reasons_locked().remove(cause);
    }

    /// Every cause with its reason; none means ready.
    pub fn reasons(&self) -> BTreeMap<String, String> {
        self.reasons_locked().clone()
    }

    /// The reader has polled.
    pub fn beat(&self) {
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Seconds since the reader polled last.
    pub fn pulse_age_seconds(&self) -> u64 {
        self.pulse.lock().unwrap_or_else(PoisonError::into_inner).elapsed().as_secs()
    }
}
