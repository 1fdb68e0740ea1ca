//! A fake of one Kafka partition's records.

use crate::decode::event::{Event, EventType};
use crate::decode::reject::{Reason, Rejection};
use crate::protocol::marks::PartitionId;
use crate::window::Record as WindowRecord;

/// The content of an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// An event of this day (`yyyymmdd`).
    Event { day: PartitionId },
    /// A record that is not an event, and so is rejected.
    Broken,
    /// No record: a transaction marker, or a record that was compacted away.
    Gap,
}

/// Days that events may have, with their first second.
pub const DAYS: [(PartitionId, u32); 3] =
    [(20_261_030, 1_793_318_400), (20_261_031, 1_793_404_800), (20_261_101, 1_793_491_200)];

/// Greatest length of an event's address, in bytes.
pub const EMAIL_MAX: usize = 16 << 10;
static EMAIL: [u8; EMAIL_MAX] = [b'a'; EMAIL_MAX];

/// The records. Those from `high` on are not produced yet, those below `low` are deleted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    records: Vec<Record>,
    /// Length of the addresses of its events, in bytes.
    pub email_bytes: usize,
    pub low: u64,
    pub high: u64,
}

impl Log {
    /// Returns a log that has its first `produced` records.
    pub fn new(records: Vec<Record>, produced: usize) -> Log {
        Log { records, email_bytes: 3, low: 0, high: produced as u64 }
    }

    pub fn record(&self, offset: u64) -> Record {
        self.records[offset as usize]
    }

    /// Returns the end of the log once all is produced.
    pub fn end(&self) -> u64 {
        self.records.len() as u64
    }

    /// Returns the first record at or after an offset, as a consumer gets it.
    pub fn next(&self, offset: u64) -> Option<u64> {
        (offset.max(self.low)..self.high).find(|&offset| self.record(offset) != Record::Gap)
    }

    /// Returns a record as the window takes it. The offset must not be a gap.
    pub fn decoded(&self, offset: u64) -> (WindowRecord<'static>, Result<Event<'static>, Rejection>) {
        let record = WindowRecord { offset, timestamp_ms: None, key: None, payload: None };
        let decoded = match self.record(offset) {
            Record::Event { day } => Ok(Event {
                campaign_id: [1; 16],
                workspace_id: [2; 16],
                email: String::from_utf8_lossy(&EMAIL[..self.email_bytes]),
                event_type: EventType::Open,
                event_time: DAYS.iter().find(|(known, _)| *known == day).map_or(0, |(_, second)| *second),
                metadata: "",
                unknown_fields: 0,
            }),
            Record::Broken | Record::Gap => Err(Rejection::new(Reason::NotJson, "no")),
        };
        (record, decoded)
    }
}

#[test]
fn the_days_begin_when_they_begin() {
    for (day, second) in DAYS {
        let of = crate::days::Day::of;
        assert_eq!((of(second).yyyymmdd(), of(second - 1) < of(second)), (day, true));
    }
}
