//! A frozen batch is a window that was closed at an offset. It can be inserted as many times as necessary.
//!
//! A batch is immutable. Its content and order depend on the records [start, end) alone. Each insert is one Native block. The
//! encoding of a block must never depend on what was inserted before.

use crate::days::Day;
use crate::decode::event::{EventType, UuidBytes};
use crate::decode::reject::Reason;
use crate::protocol::Frozen;
use crate::protocol::group::Size;
use crate::protocol::marks::{Expected, PartitionId};
use crate::source::{OffsetRange, Table};
use crate::stream::{Stage, Stream, audience_size};
use crate::tables;
use crate::window::native::{Chunks, Column, Values, low_cardinality, low_cardinality_runs, native_block};
use crate::window::{Arrivals, CounterKey, Totals, Window};
use bytes::Bytes;

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

/// The columns of one day that say whose events there are.
pub(super) struct Addressed<'a> {
    /// Number of events of the day.
    pub rows: u64,
    /// Campaign ids, addresses, types and times.
    pub chunks: [&'a [Bytes]; 4],
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
    stream: Stream,
    range: OffsetRange,
    bytes: usize,
    raw: Vec<RawDay>,
    /// Counters, sorted; one per (day, campaign, workspace).
    counters: Vec<(CounterKey, Totals)>,
    rejected: Rejected,
    arrivals: Arrivals,
}

impl Batch {
    /// Closes a window of events at `end`. `end` is at or after the last offset that the window took.
    pub fn freeze(window: Window, end: u64) -> Batch {
        Batch::freeze_of(Stream::Events, window, end)
    }

    /// Does the same as [`Batch::freeze`] for a window of any stream.
    pub fn freeze_of(stream: Stream, window: Window, end: u64) -> Batch {
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
        Batch { stream, range, bytes, raw: raw.collect(), counters, rejected, arrivals: parts.arrivals }
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

    /// Returns, for each day, the columns from which the rows of `recipients` are made.
    pub(super) fn addressed(&self) -> impl Iterator<Item = Addressed<'_>> {
        self.raw.iter().map(|day| Addressed {
            rows: day.rows,
            chunks: [&day.campaign_id, &day.email, &day.event_type, &day.event_time].map(Vec::as_slice),
        })
    }

    /// Returns the number of events of each counter, with the id of its campaign. A campaign may have several.
    pub(super) fn events_of_campaigns(&self) -> impl Iterator<Item = (&UuidBytes, u64)> {
        self.counters.iter().map(|(key, totals)| (&key.campaign_id, totals.iter().copied().map(u64::from).sum()))
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
        let rejected = self.rejected.rows;
        if let Stream::Lifecycle(_) = self.stream {
            let lifecycle = self.raw.iter().map(|day| day.rows).sum();
            let expected = Expected { lifecycle, rejected, ..Expected::default() };
            return Frozen { range: self.range, expected, group: None };
        }
        let mut daily: Vec<PartitionId> = self.counters.iter().map(|(key, _)| key.day.yyyymm()).collect();
        daily.dedup();
        let raw = self.raw.iter().map(|day| (day.day.yyyymmdd(), day.rows)).collect();
        Frozen { range: self.range, expected: Expected { raw, daily, rejected, lifecycle: 0 }, group: None }
    }

    /// Returns its size, for the bounds of a group.
    pub fn size(&self) -> Size {
        let records = self.raw.iter().map(|day| day.rows).sum::<u64>() + self.rejected.rows;
        Size { days: self.raw.iter().map(|day| day.day.yyyymmdd()).collect(), records, bytes: self.bytes }
    }
}

/// The rows of one batch in an insert.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// The batch that the rows belong to.
    pub batch: &'a Batch,
    /// ClickHouse partitions of the table that the insert writes.
    pub partitions: &'a [PartitionId],
    /// Text of the `source` column.
    pub source: &'a str,
}

/// Returns the rows of one insert as one Native block, with their number. A group's insert has parts of several batches.
pub fn block(table: Table, parts: &[Part<'_>]) -> (u64, Vec<Bytes>) {
    match table {
        Table::Raw => raw_block(parts),
        Table::Daily => daily_block(parts),
        Table::Rejected => rejected_block(parts),
        Table::Lifecycle => lifecycle_block(parts),
    }
}

fn raw_block(parts: &[Part<'_>]) -> (u64, Vec<Bytes>) {
    let (mut all_days, mut sources): (Vec<&RawDay>, Vec<(&str, u64)>) = Default::default();
    for Part { batch, partitions, source } in parts {
        let days: Vec<&RawDay> = batch.raw.iter().filter(|day| partitions.contains(&day.day.yyyymmdd())).collect();
        sources.push((*source, days.iter().map(|day| day.rows).sum()));
        all_days.extend(days);
    }
    let column = |of: fn(&RawDay) -> &Chunks| -> Chunks { all_days.iter().flat_map(|day| of(day)).cloned().collect() };
    let columns = [
        column(|d| &d.campaign_id),
        column(|d| &d.workspace_id),
        column(|d| &d.email),
        column(|d| &d.event_type),
        column(|d| &d.event_time),
        column(|d| &d.metadata),
        low_cardinality_runs(&sources),
        column(|d| &d.source_offset),
    ];
    let rows = sources.iter().map(|(_, rows)| rows).sum();
    (rows, native_block(rows, named(&tables::RAW, columns)))
}

/// Returns the rows of a lifecycle topic. Each one has the end of its batch, which is the mark that the batch is applied.
///
/// A window holds a lifecycle record as an event without an address. The column of the type is left out here.
fn lifecycle_block(parts: &[Part<'_>]) -> (u64, Vec<Bytes>) {
    let (mut all_days, mut sources): (Vec<&RawDay>, Vec<(&str, u64)>) = Default::default();
    let (mut stage, mut size, mut end_offset) = (Column::default(), Column::default(), Column::default());
    for Part { batch, source, .. } in parts {
        let Stream::Lifecycle(of_batch) = batch.stream else { continue };
        for day in &batch.raw {
            let mut metadata = Values::of(day.metadata.clone());
            for _ in 0..day.rows {
                let text = metadata.string().unwrap_or_default();
                stage.put(&[of_batch as u8]);
                size.put(&if of_batch == Stage::AudienceReady { audience_size(&text) } else { 0 }.to_le_bytes());
                end_offset.put(&batch.range.end.to_le_bytes());
            }
        }
        sources.push((*source, batch.raw.iter().map(|day| day.rows).sum()));
        all_days.extend(&batch.raw);
    }
    let column = |of: fn(&RawDay) -> &Chunks| -> Chunks { all_days.iter().flat_map(|day| of(day)).cloned().collect() };
    let columns = [
        column(|d| &d.campaign_id),
        column(|d| &d.workspace_id),
        stage.finish(),
        column(|d| &d.event_time),
        size.finish(),
        column(|d| &d.metadata),
        low_cardinality_runs(&sources),
        column(|d| &d.source_offset),
        end_offset.finish(),
    ];
    let rows = sources.iter().map(|(_, rows)| rows).sum();
    (rows, native_block(rows, named(&tables::LIFECYCLE, columns)))
}

/// Returns the counters of all parts, summed over their sources. The source is empty in such a row.
///
/// One counter of each source and month keeps the name of its source, with the end of the batch: the first one. It is the mark that
/// the batch is counted, in the same part as the month's other counters.
fn daily_block(parts: &[Part<'_>]) -> (u64, Vec<Bytes>) {
    let mut rows = CounterRows::default();
    let (mut sources, mut shared) = (Vec::new(), Vec::new());
    for Part { batch, partitions, source } in parts {
        let (mut marks, mut marked) = (0, None);
        for (key, totals) in batch.counters.iter().filter(|(key, _)| partitions.contains(&key.day.yyyymm())) {
            let (month, mut rest) = (key.day.yyyymm(), *totals);
            if marked.replace(month) != Some(month)
                && let Some(first) = rest.iter_mut().enumerate().find(|(_, count)| **count > 0)
            {
                let mut mark = [0; EventType::ALL.len()];
                mark[first.0] = std::mem::take(first.1).into();
                marks += rows.put(key, &mark, batch.range.end);
            }
            shared.push((*key, rest));
        }
        sources.push((*source, marks));
    }
    // The counters of each part are sorted, and a stable sort merges sorted runs.
    shared.sort_by_key(|(key, _)| *key);
    let of_all = shared.chunk_by(|(a, _), (b, _)| a == b).map(|same| {
        let sum = |kind: usize| same.iter().map(|(_, totals)| u64::from(totals[kind])).sum();
        rows.put(&same[0].0, &std::array::from_fn(sum), 0)
    });
    let unnamed = of_all.sum();
    sources.push(("", unnamed));
    let columns = [
        rows.day.finish(),
        rows.event_type.finish(),
        rows.campaign_id.finish(),
        rows.workspace_id.finish(),
        low_cardinality_runs(&sources),
        rows.total.finish(),
        rows.end_offset.finish(),
    ];
    let count = sources.iter().map(|(_, rows)| rows).sum();
    (count, native_block(count, named(&tables::DAILY, columns)))
}

/// The columns of `daily`, without `source`.
#[derive(Default)]
struct CounterRows {
    day: Column,
    event_type: Column,
    campaign_id: Column,
    workspace_id: Column,
    total: Column,
    end_offset: Column,
}

impl CounterRows {
    /// Adds one row for each type that has events. Returns their number.
    fn put(&mut self, key: &CounterKey, totals: &[u64; EventType::ALL.len()], end_offset: u64) -> u64 {
        let mut rows = 0;
        for (kind, count) in EventType::ALL.into_iter().zip(totals).filter(|(_, count)| **count > 0) {
            rows += 1;
            self.day.put(&key.day.0.to_le_bytes());
            self.event_type.put(&[kind as u8]);
            self.campaign_id.put_uuid(&key.campaign_id);
            self.workspace_id.put_uuid(&key.workspace_id);
            self.total.put(&count.to_le_bytes());
            self.end_offset.put(&end_offset.to_le_bytes());
        }
        rows
    }
}

fn rejected_block(parts: &[Part<'_>]) -> (u64, Vec<Bytes>) {
    let of_parts: Vec<&Rejected> = parts.iter().map(|part| &part.batch.rejected).collect();
    let codes: Vec<&[u8]> = Reason::ALL.iter().map(|reason| reason.code().as_bytes()).collect();
    let reasons: Vec<u8> = of_parts.iter().flat_map(|rejected| rejected.reasons.iter().copied()).collect();
    let sources: Vec<(&str, u64)> = parts.iter().map(|part| (part.source, part.batch.rejected.rows)).collect();
    let column = |of: fn(&Rejected) -> &Chunks| -> Chunks { of_parts.iter().flat_map(|r| of(r)).cloned().collect() };
    let columns = [
        low_cardinality_runs(&sources),
        column(|r| &r.source_offset),
        column(|r| &r.timestamp_ms),
        low_cardinality(&codes, &reasons),
        column(|r| &r.error),
        column(|r| &r.key),
        column(|r| &r.payload),
    ];
    let rows = sources.iter().map(|(_, rows)| rows).sum();
    (rows, native_block(rows, named(&tables::REJECTED, columns)))
}

/// Gives each column's values the name and type of its definition.
fn named<const N: usize>(
    columns: &[tables::Column; N],
    values: [Chunks; N],
) -> Vec<(&'static str, &'static str, Chunks)> {
    columns.iter().zip(values).map(|(column, chunks)| (column.name, column.block_type, chunks)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{TimeBounds, decode};
    use crate::protocol::marks::Insert;
    use crate::window::Record;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

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

    fn alone(batch: &Batch, insert: &Insert) -> (u64, Vec<Bytes>) {
        block(insert.table, &[Part { batch, partitions: &insert.partitions, source: "t/0" }])
    }

    proptest! {
        /// The same records give the same blocks, byte for byte. The deduplication token and the replay depend on that.
        #[test]
        fn the_same_records_freeze_to_the_same_bytes(times in proptest::collection::vec(proptest::option::weighted(0.9, 0u32..90_000_000), 1..100)) {
            let (once, twice) = (batch(&times), batch(&times));
            prop_assert_eq!(once.frozen(), twice.frozen());
            for insert in once.frozen().expected.inserts() {
                let (rows, block) = alone(&once, &insert);
                let (rows_again, block_again) = alone(&twice, &insert);
                prop_assert_eq!((rows, block.concat()), (rows_again, block_again.concat()));
            }
        }

        /// The block of a group has the rows of each batch after those of the one before.
        #[test]
        fn the_block_of_a_group_has_the_rows_of_all(times in groups()) {
            let batches: Vec<Batch> = times.iter().map(|times| batch(times)).collect();
            let of_each: Vec<(u64, Vec<Bytes>)> = batches.iter().map(|batch| whole(Table::Raw, &[(batch, "t/0")])).collect();
            let all: Vec<(&Batch, &str)> = batches.iter().map(|batch| (batch, "t/0")).collect();
            let (rows, block) = whole(Table::Raw, &all);
            prop_assert_eq!(rows, of_each.iter().map(|(rows, _)| rows).sum::<u64>());
            // The offsets are one number a row, at the end of the block.
            let offsets = |rows: u64, block: &[Bytes]| block.concat()[block.concat().len() - 8 * rows as usize..].to_vec();
            let each: Vec<u8> = of_each.iter().flat_map(|(rows, block)| offsets(*rows, block)).collect();
            prop_assert_eq!(offsets(rows, &block), each);
        }

        /// The counters of a group are those of its batches, each in one row but for one mark of each source and month.
        #[test]
        fn counters_of_a_group_are_summed_and_each_source_keeps_its_marks(times in groups()) {
            let batches: Vec<Batch> = times.iter().map(|times| batch(times)).collect();
            let names: Vec<String> = (0..batches.len()).map(|n| format!("t/{n}")).collect();
            let all: Vec<(&Batch, &str)> = batches.iter().zip(&names).map(|(batch, name)| (batch, name.as_str())).collect();
            let (count, block) = whole(Table::Daily, &all);
            let rows = counter_rows(&block.concat());
            prop_assert_eq!(count, rows.len() as u64);

            let (mut found, mut wanted, mut marks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            let mut unnamed = BTreeSet::new();
            for (key, source, total, end) in rows {
                prop_assert!(total > 0);
                *found.entry(key.clone()).or_insert(0) += total;
                match source.as_str() {
                    "" => prop_assert!(end == 0 && unnamed.insert(key), "two rows of one counter"),
                    _ => prop_assert_eq!(marks.insert((source, Day(key.0).yyyymm()), end), None),
                }
            }
            let mut wanted_marks = BTreeMap::new();
            for (batch, name) in &all {
                for (key, totals) in &batch.counters {
                    wanted_marks.insert(((*name).to_owned(), key.day.yyyymm()), batch.range.end);
                    for (kind, total) in EventType::ALL.iter().zip(totals).filter(|(_, total)| **total > 0) {
                        *wanted.entry((key.day.0, *kind as u8, key.campaign_id.to_vec())).or_insert(0) += u64::from(*total);
                    }
                }
            }
            prop_assert_eq!((found, marks), (wanted, wanted_marks));
        }
    }

    fn groups() -> impl Strategy<Value = Vec<Vec<Option<u32>>>> {
        proptest::collection::vec(
            proptest::collection::vec(proptest::option::weighted(0.9, 0u32..90_000_000), 1..20),
            1..5,
        )
    }

    /// Returns the block with everything of these batches, each under its source.
    fn whole(table: Table, batches: &[(&Batch, &str)]) -> (u64, Vec<Bytes>) {
        let partitions = |batch: &Batch| {
            let inserts = batch.frozen().expected.inserts().into_iter();
            inserts.filter(|insert| insert.table == table).flat_map(|insert| insert.partitions).collect()
        };
        let partitions: Vec<Vec<PartitionId>> = batches.iter().map(|(batch, _)| partitions(batch)).collect();
        let parts = batches.iter().zip(&partitions);
        let parts: Vec<Part<'_>> =
            parts.map(|((batch, source), partitions)| Part { batch, partitions, source }).collect();
        block(table, &parts)
    }

    /// A day, a type and a campaign.
    type Counter = (u16, u8, Vec<u8>);

    /// Reads the rows of a block of `daily`: the counter, its source, its total and its end.
    fn counter_rows(mut block: &[u8]) -> Vec<(Counter, String, u64, u64)> {
        fn take<'a>(block: &mut &'a [u8], bytes: usize) -> &'a [u8] {
            block.split_off(..bytes).unwrap()
        }
        fn varint(block: &mut &[u8]) -> usize {
            let bytes = block.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            take(block, bytes).iter().rev().fold(0, |number, byte| number << 7 | usize::from(byte & 0x7f))
        }
        fn string(block: &mut &[u8]) -> String {
            let length = varint(block);
            String::from_utf8(take(block, length).to_vec()).unwrap()
        }
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
        let (columns, rows) = (varint(&mut block), varint(&mut block));
        let mut values: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        let mut sources = Vec::new();
        for _ in 0..columns {
            let name = string(&mut block);
            let width = match string(&mut block).as_str() {
                "Date" => 2,
                "UUID" => 16,
                kind if kind.starts_with("Enum8") => 1,
                "LowCardinality(String)" => {
                    let keys = number(&take(&mut block, 24)[16..]);
                    let names: Vec<String> = (0..keys).map(|_| string(&mut block)).collect();
                    take(&mut block, 8);
                    sources = take(&mut block, rows).iter().map(|&index| names[usize::from(index)].clone()).collect();
                    continue;
                }
                _ => 8,
            };
            values.insert(name, take(&mut block, width * rows).chunks(width).map(<[u8]>::to_vec).collect());
        }
        let row = |n: usize| {
            let value = |name: &str| values[name][n].clone();
            let day = u16::from_le_bytes(value("day").try_into().unwrap());
            // ClickHouse stores a UUID as two numbers, each with its least byte first.
            let campaign = value("campaign_id").chunks(8).flat_map(|half| half.iter().rev().copied()).collect();
            let counter = (day, value("event_type")[0], campaign);
            (counter, sources[n].clone(), number(&value("total")), number(&value("end_offset")))
        };
        (0..rows).map(row).collect()
    }

    /// 64 partitions write hardly more rows into `daily` than one partition with the same events.
    #[test]
    fn rows_of_daily_do_not_grow_with_the_partitions() {
        let event = |n: u32| {
            format!(
                r#"{{"campaign_id":"{:032x}","workspace_id":"{:032x}","email":"a","event_type":"{}","event_time":1795501800}}"#,
                n % 100,
                7,
                EventType::ALL[n as usize / 100 % 5].name()
            )
        };
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        let mut windows: Vec<Window> = (0..65).map(|_| Window::new(0)).collect();
        for n in 0..64 * 200 {
            let payload = event(n);
            let payload = Some(payload.as_bytes());
            // The last window is the one partition that has everything.
            for window in [n as usize % 64, 64] {
                let record = Record { offset: n.into(), timestamp_ms: None, key: None, payload };
                windows[window].push(&record, &decode(payload, None, &bounds));
            }
        }
        let one = Batch::freeze(windows.pop().unwrap(), 0);
        let many: Vec<Batch> = windows.into_iter().map(|window| Batch::freeze(window, 0)).collect();
        let names: Vec<String> = (0..64).map(|n| format!("t/{n}")).collect();
        let many: Vec<(&Batch, &str)> = many.iter().zip(names.iter().map(String::as_str)).collect();
        let (of_one, of_many) = (whole(Table::Daily, &[(&one, "t/0")]).0, whole(Table::Daily, &many).0);
        assert!(of_one == 500 && of_many <= of_one + 64, "{of_many} rows, and {of_one} of one partition");
    }

    /// The values of a block are listed by position. One row is enough to see each value under its own column's name.
    #[test]
    fn each_value_stands_under_the_name_of_its_column() {
        let payload =
            br#"{"campaign_id":"00000000000000000000000000000001","workspace_id":"00000000000000000000000000000002",
            "email":"a@b","event_type":"bounce","event_time":1795501800,"metadata":{"k":1}}"#;
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        let mut window = Window::new(7);
        for (offset, payload) in [(7, &payload[..]), (8, b"broken")] {
            let timestamp_ms = Some(1_795_501_800_123);
            let record = Record { offset, timestamp_ms, key: Some(b"k"), payload: Some(payload) };
            window.push(&record, &decode(record.payload, record.timestamp_ms, &bounds));
        }
        let batch = Batch::freeze(window, 0);
        let error = batch.rejected().next().unwrap().error;
        let uuid = |last: u8| [0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, 0, 0, 0, 0].to_vec();
        let string = |text: &[u8]| [&[text.len() as u8], text].concat();
        let reasons: Vec<&[u8]> = Reason::ALL.iter().map(|reason| reason.code().as_bytes()).collect();
        let reason = Reason::ALL.iter().position(|reason| *reason == Reason::NotJson).unwrap();
        for insert in batch.frozen().expected.inserts() {
            let (rows, block) = alone(&batch, &insert);
            let columns = insert.table.definition().columns;
            let mut wanted = vec![columns.len() as u8, 1];
            for column in columns {
                wanted.extend([string(column.name.as_bytes()), string(column.block_type.as_bytes())].concat());
                wanted.extend(match column.name {
                    "campaign_id" => uuid(1),
                    "workspace_id" => uuid(2),
                    "email" => string(b"a@b"),
                    "event_type" => vec![EventType::Bounce as u8],
                    "event_time" => 1_795_501_800u32.to_le_bytes().to_vec(),
                    "metadata" => string(br#"{"k":1}"#),
                    // The counter is the mark of its source, so no row is left without a name.
                    "source" if insert.table == Table::Daily => low_cardinality_runs(&[("t/0", 1), ("", 0)]).concat(),
                    "source" => low_cardinality_runs(&[("t/0", 1)]).concat(),
                    "source_offset" if insert.table == Table::Raw => 7u64.to_le_bytes().to_vec(),
                    "source_offset" => 8u64.to_le_bytes().to_vec(),
                    "day" => 20_781u16.to_le_bytes().to_vec(),
                    "total" => 1u64.to_le_bytes().to_vec(),
                    "end_offset" => 9u64.to_le_bytes().to_vec(),
                    "kafka_timestamp" => 1_795_501_800_123i64.to_le_bytes().to_vec(),
                    "reason" => low_cardinality(&reasons, &[reason as u8]).concat(),
                    "error" => string(&error),
                    "key" => string(b"k"),
                    "payload" => string(b"broken"),
                    name => panic!("no value for {name}"),
                });
            }
            assert_eq!((rows, block.concat()), (1, wanted), "{:?}", insert.table);
        }
    }

    #[test]
    fn a_lifecycle_row_has_its_stage_its_size_and_the_end_of_its_batch() {
        let metadata = r#"{"size":1200}"#;
        let payload = format!(
            r#"{{"campaign_id":"{:032x}","workspace_id":"{:032x}","email":"","event_type":"open","event_time":1795501800,"metadata":{metadata}}}"#,
            1, 2
        );
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        for (stage, size) in [(Stage::AudienceReady, 1_200u64), (Stage::TemplateReady, 0)] {
            let mut window = Window::new(7);
            for (offset, payload) in [(7, payload.as_bytes()), (8, b"broken")] {
                let record = Record { offset, timestamp_ms: None, key: None, payload: Some(payload) };
                window.push(&record, &decode(record.payload, None, &bounds));
            }
            let batch = Batch::freeze_of(Stream::Lifecycle(stage), window, 12);
            let expected = Expected { lifecycle: 1, rejected: 1, ..Expected::default() };
            assert_eq!((batch.frozen().expected, batch.months()), (expected, Vec::new()));
            let mut wanted = vec![tables::LIFECYCLE.len() as u8, 1];
            let string = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
            for column in tables::LIFECYCLE {
                wanted.extend([string(column.name), string(column.block_type)].concat());
                wanted.extend(match column.name {
                    "campaign_id" => vec![0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
                    "workspace_id" => vec![0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
                    "stage" => vec![stage as u8],
                    "event_time" => 1_795_501_800u32.to_le_bytes().to_vec(),
                    "audience_size" => size.to_le_bytes().to_vec(),
                    "metadata" => string(metadata),
                    "source" => low_cardinality_runs(&[("t/0", 1)]).concat(),
                    "source_offset" => 7u64.to_le_bytes().to_vec(),
                    _ => 12u64.to_le_bytes().to_vec(),
                });
            }
            let part = Part { batch: &batch, partitions: &[0], source: "t/0" };
            let (rows, block) = block(Table::Lifecycle, &[part]);
            assert_eq!((rows, block.concat()), (1, wanted));
        }
        let stages = Stage::ALL.map(|stage| format!("'{}' = {}", stage.name(), stage as i8));
        assert_eq!(tables::STAGE, format!("Enum8({})", stages.join(", ")));
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
        let column = tables::RAW.iter().find(|column| column.name == "event_type").unwrap();
        assert_eq!(column.block_type, format!("Enum8({})", types.join(", ")));
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
