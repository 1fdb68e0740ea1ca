//! Whether the service is ready, and if not, why: one reason per cause, in words.
//!
//! Must never be ready while a partition that is ours is stopped or a server is known to be away.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The reasons for not being ready, and the reader's pulse.
#[derive(Debug, Default)]
pub struct Health {
    reasons: Mutex<BTreeMap<String, String>>,
    /// None until the reader polls for the first time: before that the service waits for servers, which is no hanging.
    pulse: Mutex<Option<Instant>>,
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
        *self.pulse.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago the reader polled last; zero while it has not started.
    pub fn pulse_age(&self) -> Duration {
        let pulse = *self.pulse.lock().unwrap_or_else(PoisonError::into_inner);
        pulse.map_or(Duration::ZERO, |last| last.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_ages_only_once_the_reader_has_started() {
        let health = Health::default();
        assert_eq!(health.pulse_age(), Duration::ZERO);
        health.beat();
        // As soon as the clock has moved.
        assert!((0..1_000_000).any(|_| health.pulse_age() > Duration::ZERO));
    }
}
