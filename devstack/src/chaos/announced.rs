//! Measures the batches that members announce: the largest, and the largest group, that the metadata of the committed offsets names
//! in a round.

use super::AnyError;
use super::lane::Lane;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Time between two looks. A large batch is announced for longer than this: its insert takes some tenths of a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(60);

/// The largest sizes of a round.
#[derive(Debug, Clone, Copy, Default)]
pub struct Largest {
    /// Number of records of a batch.
    pub records: u64,
    /// Number of sources of a group that was open.
    pub sources: u64,
}

/// Looks until the round is over.
pub fn watch(lane: &Lane<'_>, is_over: &AtomicBool) -> Result<Largest, AnyError> {
    let mut largest = Largest::default();
    while !is_over.load(Ordering::Relaxed) {
        let mut sources: BTreeMap<u128, u64> = BTreeMap::new();
        for batch in lane.topic.announced()?.into_iter().filter_map(|(.., batch)| batch) {
            largest.records = largest.records.max(batch.records);
            batch.group.into_iter().for_each(|group| *sources.entry(group).or_default() += 1);
        }
        largest.sources = largest.sources.max(sources.into_values().max().unwrap_or(0));
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(largest)
}
