//! Waiting between attempts: exponential backoff with full jitter.

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
    /// A new series.
    pub fn new(retry: &Retry) -> Backoff {
        let max = Duration::from_millis(retry.backoff_max_ms);
        Backoff { min: Duration::from_millis(retry.backoff_min_ms).min(max), max, attempts: 0 }
    }

    /// Waits before the next attempt: between the least delay and a bound that doubles up to the greatest.
    pub async fn wait(&mut self) {
        let bound = self.min.saturating_mul(1 << self.attempts.min(20)).min(self.max);
        self.attempts += 1;
        let spread = bound.saturating_sub(self.min);
        tokio::time::sleep(self.min + spread.mul_f64(rand::random())).await;
    }

    /// The attempt succeeded: the next series starts from the least delay.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}
