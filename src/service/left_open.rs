//! The batches that would stay open if this member ended now. Its last message names them.
//!
//! It must never decide anything: the committed offset alone determines the batch that the next owner completes.

use crate::platform::lock::locked;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use tallyhouse_core::protocol::Committed;
use tallyhouse_core::protocol::intent::Metadata;
use tallyhouse_core::source::OffsetRange;

/// The open batch of one partition.
#[derive(Debug, Default)]
struct Open {
    /// Batch that is announced, and not committed as far as this member knows.
    batch: Option<OffsetRange>,
    /// Refusal for which this member has given the batch up at its end.
    refused: Option<String>,
}

/// The open batches of all partitions of this member.
#[derive(Debug, Default)]
pub struct LeftOpen {
    partitions: Mutex<BTreeMap<i32, Open>>,
    kept: AtomicBool,
}

impl LeftOpen {
    fn locked(&self) -> MutexGuard<'_, BTreeMap<i32, Open>> {
        locked(&self.partitions)
    }

    /// Takes the offset that Kafka holds for a partition.
    pub(super) fn committed(&self, partition: i32, committed: Option<&Committed>) {
        let next = committed.and_then(|committed| {
            let (end, _) = Metadata::decode(&committed.metadata).ok()??.next?;
            Some(OffsetRange { start: committed.offset, end })
        });
        self.locked().entry(partition).or_default().batch = next;
    }

    /// Takes the refusal for which a partition was given up.
    pub(super) fn refused(&self, partition: i32, why: String) {
        self.locked().entry(partition).or_default().refused = Some(why);
    }

    /// Forgets a partition that is no longer this member's.
    pub(super) fn forget(&self, partition: i32) {
        if !self.kept.load(Ordering::Relaxed) {
            self.locked().remove(&partition);
        }
    }

    /// Notes that all partitions are given up now, for the end of the process. Their open batches have still to be reported.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// True if a partition was given up for a refusal.
    pub(super) fn has_refusal(&self) -> bool {
        self.locked().values().any(|open| open.refused.is_some())
    }

    /// True if no batch is open.
    pub(super) fn is_empty(&self) -> bool {
        self.locked().values().all(|open| open.batch.is_none() && open.refused.is_none())
    }

    /// Returns a text that names the open batches, without a full stop.
    pub fn message(&self) -> String {
        let mut partitions = Vec::new();
        for (partition, Open { batch, refused }) in self.locked().iter() {
            let batch = batch.map(|range| format!("batch {range} is announced and not committed"));
            let refused = refused.as_ref().map(|why| format!("refused: {why}"));
            let words: Vec<String> = batch.into_iter().chain(refused).collect();
            if !words.is_empty() {
                partitions.push(format!("partition {partition}: {}", words.join("; ")));
            }
        }
        match partitions.is_empty() {
            true => "No announced batch is left open".to_owned(),
            false => format!("Left open: {}", partitions.join(". ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(offset: u64, metadata: &str) -> Committed {
        Committed { offset, metadata: metadata.as_bytes().to_vec() }
    }

    #[test]
    fn it_names_what_is_announced_until_its_end_is_committed() {
        let left = LeftOpen::default();
        assert!(left.is_empty() && left.message().starts_with("No announced batch"));
        left.committed(3, Some(&committed(100, "tallyhouse/1 end=250 rows=150 rejects=0")));
        left.committed(1, Some(&committed(7, "tallyhouse/1")));
        assert_eq!(left.message(), "Left open: partition 3: batch [100, 250) is announced and not committed");
        left.refused(3, "insert: no".to_owned());
        assert!(
            left.has_refusal() && left.message().ends_with("not committed; refused: insert: no"),
            "{}",
            left.message()
        );
        left.forget(3);
        left.committed(1, Some(&committed(7, "of another program")));
        left.committed(2, None);
        assert!(left.is_empty() && !left.has_refusal());
        left.refused(2, "insert: no".to_owned());
        left.keep();
        left.forget(2);
        assert!(left.has_refusal(), "leaving the group has made it forget");
    }
}
