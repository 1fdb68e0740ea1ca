//! Waits between attempts: exponential backoff with jitter.
//!
//! Crates such as `backon` repeat a closure. The callers here wait in a `select!`, and keep a backoff for each step.

use crate::config::Retry;
use std::time::Duration;

/// The delays of one series of attempts.
#[derive(Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// Returns a new series of delays.
    pub fn new(retry: &Retry) -> Backoff {
        let max = Duration::from_millis(retry.backoff_max_ms);
        Backoff { min: Duration::from_millis(retry.backoff_min_ms).min(max), max, attempts: 0 }
    }

    /// Waits before the next attempt, between half of a bound and the bound. The bound doubles from the least delay up to the
    /// greatest.
    pub async fn wait(&mut self) {
        let bound = self.min.saturating_mul(1 << self.attempts.min(20)).min(self.max);
        self.attempts += 1;
        let least = (bound / 2).max(self.min);
        tokio::time::sleep(least + bound.saturating_sub(least).mul_f64(rand::random())).await;
    }
}
