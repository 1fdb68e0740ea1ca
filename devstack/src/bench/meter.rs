//! Measures the cost of a run in ClickHouse, from `/proc`.
//!
//! Must never leave one run's merges to the next: a run ends when ClickHouse has settled.

use super::AnyError;
use crate::ClickHouse;
use std::time::{Duration, Instant};

/// Time without a merge after which ClickHouse has settled.
const SETTLED_AFTER: Duration = Duration::from_secs(2);
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);
const SETTLE_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// The cost of a run for one process, or for several of the same kind.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// User and system time, in seconds.
    pub cpu_seconds: f64,
    /// Most resident memory, in bytes. Of several processes it is the highest value of one. Of ClickHouse it is the
    /// increase over the memory before the run.
    pub peak_bytes: u64,
}

/// ClickHouse as it was when a run began.
pub struct Meter<'a> {
    clickhouse: &'a ClickHouse,
    cpu: Duration,
    memory_bytes: u64,
}

impl Meter<'_> {
    /// Begins once ClickHouse is idle.
    ///
    /// # Errors
    /// ClickHouse does not answer, or is not a process of this program.
    pub fn start(clickhouse: &ClickHouse) -> Result<Meter<'_>, AnyError> {
        settle(clickhouse)?;
        let server = clickhouse.server()?;
        server.reset_peak_memory()?;
        Ok(Meter { clickhouse, cpu: server.cpu_time()?, memory_bytes: server.rss_bytes()? })
    }

    /// Returns ClickHouse's cost since the start, merges included. Waits until the merges have settled.
    ///
    /// # Errors
    /// As [`Meter::start`].
    pub fn finish(self) -> Result<Cost, AnyError> {
        let server = self.clickhouse.server()?;
        let peak_bytes = server.peak_memory_bytes()?.saturating_sub(self.memory_bytes);
        settle(self.clickhouse)?;
        Ok(Cost { cpu_seconds: (server.cpu_time()? - self.cpu).as_secs_f64(), peak_bytes })
    }
}

/// Waits until merges have ended, a minute at most.
pub(super) fn settle(clickhouse: &ClickHouse) -> Result<(), AnyError> {
    let started = Instant::now();
    let mut quiet_since = started;
    while quiet_since.elapsed() < SETTLED_AFTER && started.elapsed() < SETTLE_TIMEOUT {
        if clickhouse.number("SELECT count() FROM system.merges")? > 0 {
            quiet_since = Instant::now();
        }
        std::thread::sleep(SETTLE_LOOK_INTERVAL);
    }
    Ok(())
}
