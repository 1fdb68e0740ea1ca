//! Retention beyond a committed offset: the partition stops, and the fault carries out the remedy of
//! `docs/stops/retention_gap.md`.

use super::AnyError;
use super::lane::Lane;
use super::plan::Fault;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Maximum number of records that are removed.
const REMOVED_MAX: i64 = 500;
const STOPPED: &str = "tallyhouse_stopped_partitions{reason=\"retention_gap\"";
/// Longest wait until the group finds the gap. The group has to form, and a static member's session may have to end
/// before.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest wait until the producer has filled the log beyond a committed offset.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Removes records beyond a committed offset. Returns true if the partition stopped.
pub fn beyond_positions(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    // In a group's first round nothing is committed yet.
    lane.await_balance()?;
    let mut members = lane.lock_all();
    lane.terminate_all(&members);
    let gap = find(fault, lane)?;
    if let Some((partition, from, to)) = gap {
        lane.topic.delete_below(&[(partition, to)])?;
        lane.ledger.lock().note_absent(partition, from..to);
    }
    lane.start_all(&mut members)?;
    let Some((partition, from, to)) = gap else { return Ok(false) };
    let has_stopped = await_stop(lane);
    let skipped = lane.topic.committed()?.into_iter().find(|&(number, offset)| number == partition && offset > from);
    if let Some((_, offset)) = skipped {
        lane.report(format!(
            "partition {partition} went on to {offset}, though [{from}, {to}) was removed before it was consumed"
        ));
    }
    // This is the remedy: stop every member, go on with the first record that is left, start the members.
    lane.terminate_all(&members);
    lane.topic.reset_offset(partition, to)?;
    lane.start_all(&mut members)?;
    Ok(has_stopped)
}

/// Finds a partition with records beyond its committed offset, none of them in an announced batch, and the range to
/// remove. If an announced batch lost records, the stop would be another (`intent_gone`), and its stored part would
/// be unknown.
fn find(fault: &Fault, lane: &Lane<'_>) -> Result<Option<(i32, i64, i64)>, AnyError> {
    let deadline = Instant::now() + RECORDS_TIMEOUT;
    loop {
        let mut committed = lane.topic.announced()?;
        let rotation = fault.victim % committed.len().max(1);
        committed.rotate_left(rotation);
        for (partition, offset, announced) in committed {
            // At least one record is left, so that the log does not end where it begins.
            let end = lane.topic.bounds(partition)?.1 - 1;
            let to = end.min(offset + REMOVED_MAX);
            if announced.is_none() && to > offset {
                return Ok(Some((partition, offset, to)));
            }
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
        sleep(LOOK_INTERVAL);
    }
}

fn await_stop(lane: &Lane<'_>) -> bool {
    let deadline = Instant::now() + STOP_TIMEOUT;
    let has_stopped = |slot: &super::lane::Slot| {
        let metrics = slot.http("/metrics").unwrap_or_default();
        let stopped = metrics.lines().find(|line| line.starts_with(STOPPED));
        stopped.is_some_and(|line| !line.ends_with(" 0"))
    };
    while Instant::now() < deadline {
        if lane.slots.iter().any(has_stopped) {
            return true;
        }
        sleep(LOOK_INTERVAL);
    }
    false
}
