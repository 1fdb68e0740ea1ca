//! The two clocks: one for leases, one to compare with the timestamps of Kafka and ClickHouse.
//!
//! Must never decide what is counted: the boot clock measures a lease, the wall clock only shows ages.

use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the time since the machine started (CLOCK_BOOTTIME). It continues while the process is stopped and while the machine
/// sleeps.
pub fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}

/// Returns the milliseconds since 1970, as in Kafka's timestamps. A clock before 1970 gives 0, which is as wrong.
pub fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
