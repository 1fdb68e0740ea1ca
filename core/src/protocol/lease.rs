//! The lease: how long after its last successful commit a member may believe that it still owns its partitions.
//!
//! Times are of a clock that goes on while the process is stopped and while the machine sleeps (CLOCK_BOOTTIME): a process
//! that was suspended past the session timeout must find its lease expired when it goes on, before it inserts anything.

use crate::guard::{self, Guard};
use std::time::Duration;

/// The lease of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lease {
    length: Duration,
    renewed: Option<Duration>,
}

impl Lease {
    /// No lease yet; one lasts for the session timeout less a quarter of it as margin.
    pub fn new(session_timeout: Duration) -> Lease {
        Lease { length: session_timeout / 4 * 3, renewed: None }
    }

    /// How long a lease lasts.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// A commit that was *sent* at this time was acknowledged: the member was in the group then or later.
    pub fn renew(&mut self, sent: Duration) {
        self.renewed = Some(sent);
    }

    /// Whether an insert may begin now.
    pub fn holds(&self, now: Duration) -> bool {
        !guard::is_on(Guard::Lease) || self.renewed.is_some_and(|renewed| now.saturating_sub(renewed) < self.length)
    }
}
