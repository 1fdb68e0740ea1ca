//! The dead-letter topic: a fault that makes it refuse, and the check that each reject is in it.

use super::AnyError;
use super::lane::Lane;
use super::ledger::REJECT;
use super::plan::Fault;
use super::verify::Stored;
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Size of a letter, in bytes. It is larger than the topic's limit for a time, and smaller than Kafka's default.
const LARGE_BYTES: usize = 200_000;
const REFUSING_BYTES: u64 = 100_000;
const DEFAULT_BYTES: u64 = 1_048_588;
/// Log text of a member whose letter is refused.
const REFUSED: &str = "does not take a rejected record";
/// Longest wait until a member reaches the record.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait until another partition goes on.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(4);
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// The partition of the dead-letter topic.
const PARTITION: i32 = 0;
/// The names of the headers are a promise of `docs/rejects.md`.
const SOURCE: &str = "tallyhouse-source";
const OFFSET: &str = "tallyhouse-offset";
/// Maximum number of offsets that a message lists.
const LISTED: usize = 8;

/// Makes the topic refuse large batches for a time. One partition has a record whose letter is too large: it waits,
/// and others go on. With large batches everyone's letters are too many for the limit, and all wait.
pub fn refuse(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    let lengths = lane.log_lengths();
    let partition = fault.victim as i32 % lane.topic.partitions()?;
    lane.dead_letters.limit_batches(REFUSING_BYTES)?;
    let large = vec![b'x'; LARGE_BYTES];
    lane.feed().send_one(partition, &large, REJECT)?;
    let deadline = Instant::now() + REFUSAL_TIMEOUT;
    let mut refused = false;
    while !refused && Instant::now() < deadline {
        sleep(LOOK_INTERVAL);
        refused = lane.logged_since(&lengths, REFUSED) > 0;
    }
    let before = committed(lane)?;
    let (begun, lasts) = (Instant::now(), Duration::from_millis(fault.lasts_ms));
    let (mut is_held, mut others_go_on) = (true, false);
    while begun.elapsed() < lasts || !others_go_on && begun.elapsed() < OTHERS_TIMEOUT {
        sleep(LOOK_INTERVAL);
        let now = committed(lane)?;
        let moved = |number: &i32| now.get(number) > before.get(number);
        is_held &= !moved(&partition);
        others_go_on |= now.keys().any(|number| *number != partition && moved(number));
    }
    lane.dead_letters.limit_batches(DEFAULT_BYTES)?;
    Ok(refused && is_held && (others_go_on || lane.is_large))
}

fn committed(lane: &Lane<'_>) -> Result<BTreeMap<i32, i64>, AnyError> {
    Ok(lane.topic.committed()?.into_iter().collect())
}

/// The letters of a group of rounds.
#[derive(Debug, Default)]
pub struct Letters {
    /// The offsets up to which the topic is read.
    read: i64,
    /// Number of letters of each record, by partition and offset.
    found: BTreeMap<i32, Vec<u16>>,
    /// Number of letters beyond one for each record. A batch has its letters again if its delivery or insert failed,
    /// or another member completed it.
    pub repeated: u64,
}

impl Letters {
    fn note(&mut self, letter: &BorrowedMessage<'_>) -> Option<()> {
        let header = |name| letter.headers()?.iter().find(|header| header.key == name)?.value;
        let source = std::str::from_utf8(header(SOURCE)?).ok()?;
        let partition: i32 = source.rsplit_once('/')?.1.split('@').next()?.parse().ok()?;
        let offset: usize = std::str::from_utf8(header(OFFSET)?).ok()?.parse().ok()?;
        let found = self.found.entry(partition).or_default();
        if found.len() <= offset {
            found.resize(offset + 1, 0);
        }
        self.repeated += u64::from(found[offset] > 0);
        found[offset] = found[offset].saturating_add(1);
        Some(())
    }
}

/// Checks that each stored reject has a letter, and that nothing else has one.
pub fn check(lane: &Lane<'_>, stored: &Stored) -> Result<Vec<String>, AnyError> {
    let mut letters = lane.letters.lock().unwrap_or_else(PoisonError::into_inner);
    let end = lane.dead_letters.bounds(PARTITION)?.1;
    let mut unreadable = 0;
    if letters.read < end {
        lane.dead_letters.read(PARTITION, letters.read, end, end - 1, |letter| {
            unreadable += u64::from(letters.note(letter).is_none());
        })?;
        letters.read = end;
    }
    let mut violations = Vec::new();
    if unreadable > 0 {
        violations.push(format!("{unreadable} letters have no source and offset"));
    }
    let (mut missing, mut others) = (Vec::new(), Vec::new());
    for partition in stored.partitions() {
        let found = letters.found.get(&partition).map_or(&[][..], Vec::as_slice);
        let fates = stored.fates(partition);
        for offset in 0..fates.len().max(found.len()) {
            let is_reject = fates.get(offset) == Some(&REJECT);
            match (is_reject, found.get(offset).is_some_and(|&count| count > 0)) {
                (true, false) => missing.push((partition, offset)),
                (false, true) => others.push((partition, offset)),
                _ => {}
            }
        }
    }
    for (what, places) in [("rejects without a letter", missing), ("letters of no reject", others)] {
        if !places.is_empty() {
            let first = &places[..places.len().min(LISTED)];
            violations.push(format!(
                "{} {what}: (partition, offset) {first:?}, last {:?}",
                places.len(),
                places.last()
            ));
        }
    }
    Ok(violations)
}
