//! Measures the batches that members announce: the largest that a committed offset's metadata names in a round.

use super::AnyError;
use super::lane::Lane;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Time between two looks. A large batch is announced for longer than this: its insert takes some tenths of a second.
const LOOK_INTERVAL: Duration = Duration::from_millis(60);

/// Looks until the round is over. Returns the records of the largest batch.
pub fn watch(lane: &Lane<'_>, is_over: &AtomicBool) -> Result<u64, AnyError> {
    let mut largest = 0;
    while !is_over.load(Ordering::Relaxed) {
        let announced = lane.topic.announced()?;
        let records = announced.iter().filter_map(|(.., batch)| Some(batch.as_ref()?.records)).max();
        largest = largest.max(records.unwrap_or(0));
        std::thread::sleep(LOOK_INTERVAL);
    }
    Ok(largest)
}
