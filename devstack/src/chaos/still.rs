//! Measures the time for which partitions stand still after the faults: the log has records, and the committed offset does not move.

use super::AnyError;
use super::lane::Lane;
use super::plan::{REBALANCE_GRACE_MS, SESSION_TIMEOUT_MS};
use super::replicas;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Longest time that a partition may stand still; more is a violation. A session may have to end, a revocation may
/// wait for its grace, and 10 s are for everything in between.
pub const STILL_MAX: Duration = Duration::from_millis(SESSION_TIMEOUT_MS + REBALANCE_GRACE_MS + 10_000);
/// The same for large batches. One may wait for an insert of which nothing is known, and be read again. Two may wait
/// for each other.
pub const STILL_MAX_LARGE: Duration = Duration::from_millis(STILL_MAX.as_millis() as u64 + 10_000);
/// Time that replicas take longer, once the last fault is over. Keeper may have to end a session of 5 s. A member's look at its server
/// may take 5 s, and its attempt to use another one 10 s. Such an attempt may come once more, as a member returns. A fetch that failed
/// waits 5 s, and has 5 s then.
const REPLICAS_TAKE: Duration = Duration::from_secs(40);
/// Time for which members insert nothing after parts were lost. It is 6 s for the session, 30 s until ClickHouse gives a sender up, and 8 s
/// for the longest insert timeout here. A member may see the loss up to 10 s after the fault.
pub const AFTER_LOSS: Duration = Duration::from_millis(SESSION_TIMEOUT_MS + 30_000 + 8_000 + 10_000);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Returns the longest time that a partition may stand still, if no parts were lost.
pub fn most(lane: &Lane<'_>) -> Duration {
    let replicas = if lane.servers.clickhouse.is_cluster() { REPLICAS_TAKE } else { Duration::ZERO };
    replicas + if lane.is_large { STILL_MAX_LARGE } else { STILL_MAX }
}

/// Returns the allowed times in words.
pub fn described(is_cluster: bool) -> String {
    let more = if is_cluster { REPLICAS_TAKE } else { Duration::ZERO };
    let [small, large] = [STILL_MAX + more, STILL_MAX_LARGE + more];
    let loss = if is_cluster { format!("; {AFTER_LOSS:?} more after lost parts") } else { String::new() };
    format!("{small:?} allowed ({large:?} with large batches{loss})")
}

/// The longest time that a partition stood still.
#[derive(Debug, Default)]
pub struct Still {
    /// Length of that time.
    pub longest: Duration,
    /// The time from which on it is a violation.
    most: Duration,
    partition: i32,
    /// For each partition: the committed offset, and the time since which the log has more than that.
    seen: BTreeMap<i32, (i64, Option<Instant>)>,
}

impl Still {
    /// Takes a partition's committed offset and the end of its log.
    fn look(&mut self, partition: i32, committed: i64, end: i64, now: Instant) {
        let (before, since) = self.seen.get(&partition).copied().unwrap_or((committed, Some(now)));
        let since = since.filter(|_| committed == before).unwrap_or(now);
        let waits = committed < end;
        self.seen.insert(partition, (committed, waits.then_some(since)));
        let still = now.duration_since(since);
        if waits && still > self.longest {
            (self.longest, self.partition) = (still, partition);
        }
    }

    /// Starts with nothing known.
    fn new(most: Duration) -> Still {
        Still { most, ..Still::default() }
    }

    fn is_too_long(&self) -> bool {
        self.longest > self.most
    }

    fn is_behind(&self) -> bool {
        self.seen.values().any(|(_, since)| since.is_some())
    }

    /// Returns the violation, if that was too long.
    pub fn violation(&self) -> Option<String> {
        let Still { longest, partition, most, .. } = self;
        self.is_too_long().then(|| {
            format!("partition {partition} stood still for {longest:.1?} after the last fault, more than {most:?}")
        })
    }
}

/// Looks until everything in the log is committed once the checks are over, or has stood still for too long.
/// `lengths`: of the members' logs before the round.
pub fn watch(lane: &Lane<'_>, lengths: &[u64], checked: &AtomicBool) -> Result<Still, AnyError> {
    let mut still = Still::new(most(lane));
    loop {
        // This comes before the look, so that the last look sees all that the checks saw.
        let last = checked.load(Ordering::Relaxed);
        let committed: BTreeMap<i32, i64> = lane.topic.committed()?.into_iter().collect();
        for partition in 0..lane.topic.partitions()? {
            let (low, end) = lane.topic.bounds(partition)?;
            // Nothing is committed for the control records and aborted transactions at the end of a log.
            let end = end.min(lane.ledger.lock().stored_end(partition));
            let committed = committed.get(&partition).copied().unwrap_or(low);
            still.look(partition, committed, end, Instant::now());
        }
        if still.is_too_long() && lane.logged_since(lengths, replicas::LOST) > 0 {
            still.most = most(lane) + AFTER_LOSS;
        }
        if last && (!still.is_behind() || still.is_too_long()) {
            return Ok(still);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the longest time for a partition whose log ends at 10. The values are committed at seconds 0, 1, 2 and
    /// so on.
    fn longest(committed: &[i64]) -> u64 {
        let (begun, mut still) = (Instant::now(), Still::new(STILL_MAX));
        for (second, &offset) in (0..).zip(committed) {
            still.look(0, offset, 10, begun + Duration::from_secs(second));
        }
        assert_eq!(still.is_behind(), committed.last() < Some(&10));
        still.longest.as_secs()
    }

    #[test]
    fn only_records_that_wait_stand_still() {
        assert_eq!(longest(&[10, 10, 10]), 0);
        assert_eq!(longest(&[0, 0, 0, 10, 10, 10]), 2);
        assert_eq!(longest(&[0, 0, 3, 3, 3, 3, 10]), 3);
        assert_eq!(longest(&[1, 2, 3, 4]), 0);
        assert_eq!(longest(&[5, 5, 5]), 2);
    }

    #[test]
    fn too_long_is_a_violation() {
        let (begun, mut still) = (Instant::now(), Still::new(STILL_MAX));
        still.look(3, 0, 10, begun);
        still.look(3, 0, 10, begun + STILL_MAX);
        assert_eq!(still.violation(), None);
        still.look(3, 0, 10, begun + STILL_MAX + Duration::from_secs(1));
        assert!(still.violation().is_some_and(|told| told.starts_with("partition 3 stood still for 22.0s")));
    }
}
