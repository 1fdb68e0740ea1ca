//! A frozen batch is a window that was closed at an offset. It can be inserted as many times as necessary.
//!
//! A batch is immutable. Its content and order depend on the records [start, end) alone. Each insert is one Native block. The
//! encoding of a block must never depend on what was inserted before.

use crate::decode::event::{Day, EventType};
use crate::decode::reject::Reason;
use crate::protocol::Frozen;
use crate::protocol::marks::{Expected, Insert, PartitionId};
use crate::source::{OffsetRange, Table};
use crate::window::native::{Column, Values, constant_low_cardinality, low_cardinality, native_block};
use crate::window::{Arrivals, CounterKey, Totals, Window};
use bytes::Bytes;

/// Types of the enum column, as both tables declare it.
pub const EVENT_TYPE_COLUMN: &str = "Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5, \
                                     'sent' = 6, 'complaint' = 7, 'deferred' = 8)";

const LOW_CARDINALITY: &str = "LowCardinality(String)";

/// Finished chunks of one column. A clone copies handles and no bytes.
type Chunks = Vec<Bytes>;

#[derive(Debug)]
struct RawDay {
    day: Day,
    rows: u64,
    campaign_id: Chunks,
    workspace_id: Chunks,
    email: Chunks,
    event_type: Chunks,
    event_time: Chunks,
    metadata: Chunks,
    source_offset: Chunks,
}

#[derive(Debug)]
struct Rejected {
    rows: u64,
    source_offset: Chunks,
    timestamp_ms: Chunks,
    reasons: Vec<u8>,
    error: Chunks,
    key: Chunks,
    payload: Chunks,
}

/// One rejected record of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedRecord {
    /// Offset of the record.
    pub offset: u64,
    /// Timestamp of the record in milliseconds since 1970-01-01 UTC; 0 if it had none.
    pub timestamp_ms: i64,
    /// Reason for the rejection.
    pub reason: Reason,
    /// Error text of the decoder.
    pub error: Bytes,
    /// Key of the record; empty if it had none.
    pub key: Bytes,
    /// Value of the record; empty if it had none.
    pub payload: Bytes,
}

/// A frozen batch: the rows, rejects and counters of a range of offsets.
#[derive(Debug)]
pub struct Batch {
    range: OffsetRange,
    bytes: usize,
    raw: Vec<RawDay>,
    /// Counters, sorted; one per (day, campaign, workspace).
    counters: Vec<(CounterKey, Totals)>,
    rejected: Rejected,
    arrivals: Arrivals,
}

impl Batch {
    /// Closes a window at `end`. `end` is at or after the last offset that the window took.
    pub fn freeze(window: Window, end: u64) -> Batch {
        let range = OffsetRange { start: window.start(), end: end.max(window.next()) };
        let bytes = window.bytes();
        let parts = window.into_parts();
        let mut counters = parts.counters;
        counters.sort_unstable();
        let raw = parts.raw.into_iter().map(|(day, rows)| RawDay {
            day,
            rows: rows.rows,
            campaign_id: rows.campaign_id.finish(),
            workspace_id: rows.workspace_id.finish(),
            email: rows.email.finish(),
            event_type: rows.event_type.finish(),
            event_time: rows.event_time.finish(),
            metadata: rows.metadata.finish(),
            source_offset: rows.source_offset.finish(),
        });
        let rejected = Rejected {
            rows: parts.rejected.rows,
            source_offset: parts.rejected.source_offset.finish(),
            timestamp_ms: parts.rejected.timestamp_ms.finish(),
            reasons: parts.rejected.reasons,
            error: parts.rejected.error.finish(),
            key: parts.rejected.key.finish(),
            payload: parts.rejected.payload.finish(),
        };
        Batch { range, bytes, raw: raw.collect(), counters, rejected, arrivals: parts.arrivals }
    }

    /// Returns the offsets the batch covers.
    pub fn range(&self) -> OffsetRange {
        self.range
    }

    /// True if the batch has neither rows nor rejects.
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty() && self.rejected.rows == 0
    }

    /// Returns the months of its counters, as ClickHouse partitions of `daily`.
    pub fn months(&self) -> Vec<PartitionId> {
        self.frozen().expected.daily
    }

    /// Returns the memory that it holds, in bytes, as the window counted it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the rejected records, in the order of their offsets.
    pub fn rejected(&self) -> impl Iterator<Item = RejectedRecord> + use<'_> {
        let rows = &self.rejected;
        let [mut offsets, mut times, mut errors, mut keys, mut payloads] =
            [&rows.source_offset, &rows.timestamp_ms, &rows.error, &rows.key, &rows.payload]
                .map(|chunks| Values::of(chunks.clone()));
        rows.reasons.iter().filter_map(move |&reason| {
            Some(RejectedRecord {
                offset: u64::from_le_bytes(offsets.number()?),
                timestamp_ms: i64::from_le_bytes(times.number()?),
                reason: *Reason::ALL.get(usize::from(reason))?,
                error: errors.string()?,
                key: keys.string()?,
                payload: payloads.string()?,
            })
        })
    }

    /// Returns the times at which its records came into Kafka.
    pub fn arrivals(&self) -> &Arrivals {
        &self.arrivals
    }

    /// Returns the offset of each row with its day, and the offsets of the rejects.
    #[cfg(test)]
    pub(super) fn offsets(&self) -> (Vec<(PartitionId, u64)>, Vec<u64>) {
        let numbers = |chunks: &Chunks| {
            let mut values = Values::of(chunks.clone());
            std::iter::from_fn(move || values.number()).map(u64::from_le_bytes)
        };
        let rows = self.raw.iter().flat_map(|day| {
            let yyyymmdd = day.day.yyyymmdd();
            numbers(&day.source_offset).map(move |offset| (yyyymmdd, offset))
        });
        (rows.collect(), numbers(&self.rejected.source_offset).collect())
    }

    /// Returns the facts about the batch that the protocol needs.
    pub fn frozen(&self) -> Frozen {
        let mut daily: Vec<PartitionId> = self.counters.iter().map(|(key, _)| key.day.yyyymm()).collect();
        daily.dedup();
        let raw = self.raw.iter().map(|day| (day.day.yyyymmdd(), day.rows)).collect();
        Frozen { range: self.range, expected: Expected { raw, daily, rejected: self.rejected.rows } }
    }

    /// Returns the rows of one insert as one Native block, with their number. `source` is the text of the `source` column.
    pub fn block(&self, insert: &Insert, source: &str) -> (u64, Vec<Bytes>) {
        match insert.table {
            Table::Raw => self.raw_block(&insert.partitions, source),
            Table::Daily => self.daily_block(&insert.partitions, source),
            Table::Rejected => self.rejected_block(source),
        }
    }

    fn raw_block(&self, days: &[PartitionId], source: &str) -> (u64, Vec<Bytes>) {
        let days: Vec<&RawDay> = self.raw.iter().filter(|day| days.contains(&day.day.yyyymmdd())).collect();
        let rows = days.iter().map(|day| day.rows).sum();
        let column = |of: fn(&RawDay) -> &Chunks| -> Chunks { days.iter().flat_map(|day| of(day)).cloned().collect() };
        let columns = vec![
            ("campaign_id", "UUID", column(|d| &d.campaign_id)),
            ("workspace_id", "UUID", column(|d| &d.workspace_id)),
            ("email", "String", column(|d| &d.email)),
            ("event_type", EVENT_TYPE_COLUMN, column(|d| &d.event_type)),
            ("event_time", "DateTime('UTC')", column(|d| &d.event_time)),
            ("metadata", "String", column(|d| &d.metadata)),
            ("source", LOW_CARDINALITY, constant_low_cardinality(source, rows)),
            ("source_offset", "UInt64", column(|d| &d.source_offset)),
        ];
        (rows, native_block(rows, columns))
    }

    fn daily_block(&self, months: &[PartitionId], source: &str) -> (u64, Vec<Bytes>) {
        let (mut day, mut event_type, mut campaign_id, mut workspace_id, mut total, mut end_offset) =
            Default::default();
        let columns: [&mut Column; 6] =
            [&mut day, &mut event_type, &mut campaign_id, &mut workspace_id, &mut total, &mut end_offset];
        let [days, types, campaigns, workspaces, totals, ends] = columns;
        let mut rows = 0;
        for (key, by_type) in self.counters.iter().filter(|(key, _)| months.contains(&key.day.yyyymm())) {
            for (kind, count) in EventType::ALL.into_iter().zip(by_type).filter(|(_, count)| **count > 0) {
                rows += 1;
                days.put(&key.day.0.to_le_bytes());
                types.put(&[kind as u8]);
                campaigns.put_uuid(&key.campaign_id);
                workspaces.put_uuid(&key.workspace_id);
                totals.put(&count.to_le_bytes());
                ends.put(&self.range.end.to_le_bytes());
            }
        }
        let columns = vec![
            ("day", "Date", day.finish()),
            ("event_type", EVENT_TYPE_COLUMN, event_type.finish()),
            ("campaign_id", "UUID", campaign_id.finish()),
            ("workspace_id", "UUID", workspace_id.finish()),
            ("source", LOW_CARDINALITY, constant_low_cardinality(source, rows)),
            ("total", "UInt64", total.finish()),
            ("end_offset", "UInt64", end_offset.finish()),
        ];
        (rows, native_block(rows, columns))
    }

    fn rejected_block(&self, source: &str) -> (u64, Vec<Bytes>) {
        let rows = &self.rejected;
        let codes: Vec<&[u8]> = Reason::ALL.iter().map(|reason| reason.code().as_bytes()).collect();
        let columns = vec![
            ("source", LOW_CARDINALITY, constant_low_cardinality(source, rows.rows)),
            ("source_offset", "UInt64", rows.source_offset.clone()),
            ("kafka_timestamp", "DateTime64(3, 'UTC')", rows.timestamp_ms.clone()),
            ("reason", LOW_CARDINALITY, low_cardinality(&codes, &rows.reasons)),
            ("error", "String", rows.error.clone()),
            ("key", "String", rows.key.clone()),
            ("payload", "String", rows.payload.clone()),
        ];
        (rows.rows, native_block(rows.rows, columns))
    }
}

/// Returns the columns of one insert into a table, as its INSERT statement lists them.
pub fn column_list(table: Table) -> &'static str {
    match table {
        Table::Raw => "campaign_id, workspace_id, email, event_type, event_time, metadata, source, source_offset",
        Table::Daily => "day, event_type, campaign_id, workspace_id, source, total, end_offset",
        Table::Rejected => "source, source_offset, kafka_timestamp, reason, error, key, payload",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{TimeBounds, decode};
    use crate::window::Record;
    use proptest::prelude::*;

    fn batch(times: &[Option<u32>]) -> Batch {
        let mut window = Window::new(100);
        for (n, time) in times.iter().enumerate() {
            let payload = match time {
                Some(time) => format!(
                    r#"{{"campaign_id":"{0:032x}","workspace_id":"{0:032x}","email":"a","event_type":"click","event_time":{time}}}"#,
                    time % 3
                ),
                None => "broken".to_owned(),
            };
            let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
            let decoded = decode(Some(payload.as_bytes()), None, &bounds);
            let record =
                Record { offset: 100 + n as u64, timestamp_ms: None, key: None, payload: Some(payload.as_bytes()) };
            window.push(&record, &decoded);
        }
        Batch::freeze(window, 0)
    }

    proptest! {
        /// The same records give the same blocks, byte for byte. The deduplication token and the replay depend on that.
        #[test]
        fn the_same_records_freeze_to_the_same_bytes(times in proptest::collection::vec(proptest::option::weighted(0.9, 0u32..90_000_000), 1..100)) {
            let (once, twice) = (batch(&times), batch(&times));
            prop_assert_eq!(once.frozen(), twice.frozen());
            for insert in once.frozen().expected.inserts() {
                let (rows, block) = once.block(&insert, "t/0");
                let (rows_again, block_again) = twice.block(&insert, "t/0");
                prop_assert_eq!((rows, block.concat()), (rows_again, block_again.concat()));
            }
        }
    }

    #[test]
    fn rejected_records_are_given_back_as_they_came() {
        let mut window = Window::new(5);
        let payloads: Vec<Vec<u8>> = (0..50).map(|n| vec![n; usize::from(n) * 700]).collect();
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        for (offset, payload) in (5..).zip(&payloads) {
            let record = Record { offset, timestamp_ms: Some(-7), key: Some(b"k"), payload: Some(payload) };
            window.push(&record, &decode(record.payload, record.timestamp_ms, &bounds));
        }
        let batch = Batch::freeze(window, 0);
        let found: Vec<RejectedRecord> = batch.rejected().collect();
        assert_eq!(found.len(), payloads.len());
        for ((offset, payload), record) in (5..).zip(payloads).zip(found) {
            let Err(rejection) = decode(Some(&payload), Some(-7), &bounds) else { panic!("an event") };
            let error = Bytes::from(rejection.error);
            let (reason, key, payload) = (rejection.reason, Bytes::from_static(b"k"), Bytes::from(payload));
            assert_eq!(record, RejectedRecord { offset, timestamp_ms: -7, reason, error, key, payload });
        }
    }

    #[test]
    fn the_column_has_every_type_under_its_number() {
        let types = EventType::ALL.map(|event_type| format!("'{}' = {}", event_type.name(), event_type as i8));
        assert_eq!(EVENT_TYPE_COLUMN, format!("Enum8({})", types.join(", ")));
    }

    #[test]
    fn a_replay_may_end_beyond_the_last_record() {
        let mut window = Window::new(5);
        let record = Record { offset: 5, timestamp_ms: None, key: None, payload: None };
        window.push(&record, &decode(None, None, &TimeBounds { past_seconds_max: 0, future_seconds_max: 0 }));
        let frozen = Batch::freeze(window, 9).frozen();
        assert_eq!((frozen.range, frozen.expected.rejected), (OffsetRange { start: 5, end: 9 }, 1));
    }
}
