//! The pace at which a member flushes. `run` uses it to flush, and `status` uses it to judge.

use super::Config;
use std::time::Duration;

/// The pace of one member.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Value of the key `flush.age_ms`.
    pub flush_age: Duration,
    /// `flush.batches_per_second_max`, of one member.
    pub batches_per_second_max: f64,
}

impl Pace {
    /// Returns the pace of a configuration.
    pub fn of(config: &Config) -> Pace {
        Pace {
            flush_age: Duration::from_millis(config.flush.age_ms),
            batches_per_second_max: config.flush.batches_per_second_max,
        }
    }

    /// Returns the least time between two flushes of a member.
    pub fn interval_min(&self) -> Duration {
        Duration::from_secs_f64(1.0 / self.batches_per_second_max)
    }

    /// Returns the longest time between two flushes of a member, whatever the number of its partitions.
    pub fn flush_age(&self) -> Duration {
        self.flush_age.max(self.interval_min())
    }
}
