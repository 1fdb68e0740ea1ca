//! A fake of one Kafka partition's records.

use crate::core::marks::{Expected, PartitionId};
use crate::core::protocol::Frozen;
use crate::core::source::OffsetRange;

/// What is at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// An event of this day (`yyyymmdd`).
    Event { day: PartitionId },
    /// Not an event: to be rejected.
    Broken,
    /// Nothing: a transaction marker, or compacted away.
    Gap,
}

/// The records; those from `high` on are not produced yet, those below `low` are deleted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Log {
    records: Vec<Record>,
    pub low: u64,
    pub high: u64,
}

impl Log {
    /// A log that has its first `produced` records; the last record is not a gap.
    pub fn new(records: Vec<Record>, produced: usize) -> Log {
        Log { records, low: 0, high: produced as u64 }
    }

    pub fn record(&self, offset: u64) -> Record {
        self.records[offset as usize]
    }

    /// Where the log ends once all is produced.
    pub fn end(&self) -> u64 {
        self.records.len() as u64
    }

    /// Where a batch from `start` may end: after any record.
    pub fn ends(&self, start: u64) -> impl Iterator<Item = u64> {
        (start.max(self.low)..self.high).filter(|&offset| self.record(offset) != Record::Gap).map(|offset| offset + 1)
    }

    /// The batch of a range, as the window would build it.
    pub fn freeze(&self, range: OffsetRange) -> Frozen {
        let mut expected = Expected::default();
        for offset in range.start..range.end {
            match self.record(offset) {
                Record::Event { day } => *expected.raw.entry(day).or_default() += 1,
                Record::Broken => expected.rejected += 1,
                Record::Gap => {}
            }
        }
        expected.daily = expected.raw.keys().map(|day| day / 100).collect();
        expected.daily.dedup();
        Frozen { range, expected }
    }
}
