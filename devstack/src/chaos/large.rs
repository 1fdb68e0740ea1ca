//! Faults of large groups: a backlog that fills the members' memory, and large batches that one member inherits from others.

use super::AnyError;
use super::lane::Lane;
use super::plan::{Fault, LARGE_BATCH, SESSION_TIMEOUT_MS};
use crate::proxy::Trouble;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Numbers of records of a backlog, by partition: two have a batch at least, and one has more than a member's windows
/// take ...
pub const BACKLOG: [u64; 3] = [190_000, 110_000, 10_000];
/// ... or several members together hold about as much as one member can.
const BACKLOG_INHERITED: [u64; 3] = [110_000, 110_000, 110_000];
/// Delay of a chunk of 8 KiB to ClickHouse. An insert of a large batch then takes some seconds.
const SLOWNESS: Duration = Duration::from_millis(5);
/// Delay that is longer than any wait, so that inserts do not arrive.
const STANDSTILL: Duration = Duration::from_secs(3);
/// Longest wait until members have announced large batches.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(8);
/// Longest wait until the remaining member has taken over: a session, a revocation, inserts on their way to
/// ClickHouse, and the reading.
const INHERIT_TIMEOUT: Duration = Duration::from_millis(SESSION_TIMEOUT_MS + 20_000);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// Minimum number of batches that one member must inherit.
const INHERITED_MIN: usize = 2;
/// Log text of a member that pauses because its memory is full.
pub const PAUSES: &str = "memory limit reached: consumption pauses";
/// Log text of a member that completes another one's batch.
const INHERITS: &str = "completing an announced batch";

/// Produces a backlog for the members while ClickHouse takes it slowly. Returns true if a member paused.
pub fn slow_consumers(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    let lengths = lane.log_lengths();
    let troubles = lane.begin_everywhere(Trouble::Delay(SLOWNESS));
    if fault.has_backlog {
        let members = lane.lock_all();
        lane.produce_backlog_unseen(&members, BACKLOG)?;
    }
    sleep(Duration::from_millis(fault.lasts_ms));
    lane.end_everywhere(&troubles);
    Ok(lane.logged_since(&lengths, PAUSES) > 0)
}

/// Lets ClickHouse take nothing while members announce large batches. Two of them die, and the third completes the
/// batches. Returns true if it completed at least two, one of them large.
pub fn inherit_batches(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    let mut members = lane.lock_all();
    // This is the member with the fewest partitions, so that there is most to inherit.
    let assigned: Vec<f64> = lane.slots.iter().map(|slot| slot.assigned(&lane.name)).collect();
    let turns = (0..assigned.len()).map(|number| (fault.victim + number) % assigned.len());
    let heir = turns.min_by(|&one, &other| assigned[one].total_cmp(&assigned[other])).unwrap_or(0);
    let troubles = lane.begin_everywhere(Trouble::Delay(STANDSTILL));
    lane.produce_backlog_unseen(&members, BACKLOG_INHERITED)?;
    let is_open = await_open(lane)?;
    for (number, member) in members.iter().enumerate() {
        if number != heir {
            member.kill9()?;
        }
    }
    lane.end_everywhere(&troubles);
    let lengths = lane.log_lengths();
    let inherited = || lane.slots[heir].log_from(lengths[heir]).matches(INHERITS).count();
    let deadline = Instant::now() + INHERIT_TIMEOUT;
    while is_open && inherited() < INHERITED_MIN && Instant::now() < deadline {
        sleep(LOOK_INTERVAL);
    }
    let has_inherited = inherited() >= INHERITED_MIN;
    for (number, member) in members.iter_mut().enumerate() {
        if number != heir {
            lane.replace(&lane.slots[number], member, None)?;
        }
    }
    Ok(is_open && has_inherited)
}

/// Waits until this number of batches is announced, one of them large.
fn await_open(lane: &Lane<'_>) -> Result<bool, AnyError> {
    let deadline = Instant::now() + ANNOUNCE_TIMEOUT;
    loop {
        let open: Vec<u64> =
            lane.topic.announced()?.iter().filter_map(|(.., open)| Some(open.as_ref()?.records)).collect();
        if open.len() > INHERITED_MIN && open.iter().any(|&records| records >= LARGE_BATCH) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        sleep(LOOK_INTERVAL);
    }
}
