//! CLOCK_BOOTTIME, for leases: it goes on while the process is stopped and while the machine sleeps.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// Time since the machine started.
pub fn boot_time() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::from_secs(time.tv_sec.unsigned_abs()) + Duration::from_nanos(time.tv_nsec.unsigned_abs())
}
