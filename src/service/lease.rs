//! The lease: how long after its last successful commit a member may believe that it still owns its partitions.
//!
//! Measured on CLOCK_BOOTTIME, which goes on while the process is stopped and while the machine sleeps: a process that was
//! suspended past the session timeout must find its lease expired when it goes on, before it inserts anything.

use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;

/// A time on CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
pub struct BootTime(Duration);

impl BootTime {
    /// The time now.
    pub fn now() -> BootTime {
        let time = clock_gettime(ClockId::Boottime);
        let (seconds, nanos) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
        BootTime(Duration::from_secs(seconds) + Duration::from_nanos(nanos))
    }

    /// How long ago this was.
    pub fn elapsed(self) -> Duration {
        BootTime::now().0.saturating_sub(self.0)
    }
}

/// The lease of one partition.
#[derive(Debug)]
pub struct Lease {
    length: Duration,
    renewed: Option<BootTime>,
}

impl Lease {
    /// No lease yet; one lasts for the session timeout less a quarter of it as margin.
    pub fn new(session_timeout_ms: u64) -> Lease {
        Lease { length: Duration::from_millis(session_timeout_ms / 4 * 3), renewed: None }
    }

    /// How long a lease lasts.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// A commit that was *sent* at this time was acknowledged: the member was in the group then or later.
    pub fn renew(&mut self, sent: BootTime) {
        self.renewed = Some(sent);
    }

    /// Whether an insert may begin.
    pub fn holds(&self) -> bool {
        self.renewed.is_some_and(|renewed| renewed.elapsed() < self.length)
    }
}
