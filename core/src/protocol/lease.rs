//! A lease is the time after a member's last successful commit during which the member may believe that it owns its partitions.
//!
//! Times are of a clock that continues while the process is stopped and while the machine sleeps (CLOCK_BOOTTIME). A process that
//! was suspended past the session timeout must find its lease expired when it continues, before it inserts anything.

use crate::guard::{self, Guard};
use std::time::Duration;

/// Lease of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    length: Duration,
    renewed: Option<Duration>,
}

impl Lease {
    /// Creates a lease that does not hold yet. A lease lasts for the session timeout minus a quarter of it as margin.
    pub fn new(session_timeout: Duration) -> Lease {
        Lease { length: session_timeout / 4 * 3, renewed: None }
    }

    /// Returns the duration of a lease.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Renews the lease after a commit that was *sent* at this time was acknowledged. The member was in the group then or later.
    pub fn renew(&mut self, sent: Duration) {
        self.renewed = Some(sent);
    }

    /// True if an insert may begin now.
    pub fn holds(&self, now: Duration) -> bool {
        !guard::is_on(Guard::Lease) || self.renewed.is_some_and(|renewed| now.saturating_sub(renewed) < self.length)
    }
}
