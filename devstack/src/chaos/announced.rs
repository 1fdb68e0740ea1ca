//! Measures the batches that members announce in a round, by the metadata of the committed offsets. It finds the largest one, the
//! largest group, and the batches of groups.

use super::AnyError;
use super::lane::Lane;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Time between two looks. A large batch is announced for longer than this: its insert takes some tenths of a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(60);

/// The announced batches of a round.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Greatest number of records of a batch.
    pub records: u64,
    /// Greatest number of sources of a group that was open.
    pub sources: u64,
    /// Partition and end of each batch that was in a group.
    pub of_groups: BTreeSet<(i32, i64)>,
}

/// Looks until the round is over.
pub fn watch(lane: &Lane<'_>, is_over: &AtomicBool) -> Result<Seen, AnyError> {
    let mut seen = Seen::default();
    while !is_over.load(Ordering::Relaxed) {
        let mut sources: BTreeMap<u128, u64> = BTreeMap::new();
        for (partition, _, batch) in lane.topic.announced()? {
            let Some(batch) = batch else { continue };
            seen.records = seen.records.max(batch.records);
            if let Some(group) = batch.group {
                *sources.entry(group).or_default() += 1;
                seen.of_groups.insert((partition, batch.end));
            }
        }
        seen.sources = seen.sources.max(sources.into_values().max().unwrap_or(0));
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(seen)
}
