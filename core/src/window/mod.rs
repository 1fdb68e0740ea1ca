//! The live window of one Kafka partition: counters and columnar raw rows of the offsets consumed since the last freeze.
//!
//! To append an event, the window allocates only column chunks. The first time a campaign has an event on a day, it allocates one
//! counter entry. A window must never take an offset twice or out of order. Its content depends on the records alone, so that a
//! replay of the same offsets builds the same batch.

pub mod buffer;
pub mod intake;
pub mod native;

use crate::days::Day;
use crate::decode::RECORD_TIMES_MS;
use crate::decode::event::{Event, EventType, UuidBytes};
use crate::decode::reject::{Reason, Rejection};
use crate::window::native::Column;
use foldhash::fast::FixedState;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};

/// Limits at which a window has to be frozen regardless of its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Greatest number of records (`flush.rows_max`).
    pub rows_max: u64,
    /// Greatest size in bytes (`flush.bytes_max`).
    pub bytes_max: usize,
    /// Number of distinct days (`flush.days_max`), each of which is a ClickHouse partition of one insert. The first event of one
    /// more day is the window's last.
    pub days_max: usize,
}

/// The parts of one record of the log that a window needs.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Offset of the record in its partition.
    pub offset: u64,
    /// The record's timestamp in milliseconds since 1970-01-01 UTC, if it has one.
    pub timestamp_ms: Option<i64>,
    /// Key of the record, if it has one.
    pub key: Option<&'a [u8]>,
    /// Value of the record; `None` for a tombstone.
    pub payload: Option<&'a [u8]>,
}

/// The key of a counter. The event types stand side by side in its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CounterKey {
    /// UTC day of the counted events.
    pub day: Day,
    /// Id of the events' campaign.
    pub campaign_id: UuidBytes,
    /// Id of the campaign's workspace.
    pub workspace_id: UuidBytes,
}

impl Hash for CounterKey {
    /// Hashes three whole numbers. The derived code hashes the ids as slices, including their lengths, once for each event.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_ne_bytes(self.campaign_id));
        state.write_u128(u128::from_ne_bytes(self.workspace_id));
        state.write_u16(self.day.0);
    }
}

/// Events by type, in the order of [`crate::decode::event::EventType::ALL`]. A window has far fewer records than a number of 32 bits
/// counts. The table of counters stays small, because to find a counter in it is the largest part of the reader's work.
pub type Totals = [u32; EventType::ALL.len()];

/// The raw rows of one day, one column each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawRows {
    /// Number of rows in each column.
    pub rows: u64,
    pub(super) campaign_id: Column,
    pub(super) workspace_id: Column,
    pub(super) email: Column,
    pub(super) event_type: Column,
    pub(super) event_time: Column,
    pub(super) metadata: Column,
    pub(super) source_offset: Column,
}

/// The rejected records, one column each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RejectedRows {
    /// Number of rows in each column.
    pub rows: u64,
    pub(super) source_offset: Column,
    pub(super) timestamp_ms: Column,
    /// Reasons as indexes into [`Reason::ALL`].
    pub(super) reasons: Vec<u8>,
    pub(super) error: Column,
    pub(super) key: Column,
    pub(super) payload: Column,
}

/// Kafka timestamps of the records of a window, in steps of [`ARRIVAL_STEP_MS`], with the number of records in each.
pub type Arrivals = Vec<(i64, u64)>;

/// Resolution of [`Arrivals`], in milliseconds.
pub const ARRIVAL_STEP_MS: i64 = 50;
/// More steps than this are merged: the delay of a backlog needs no finer figure.
const ARRIVALS_MAX: usize = 1_024;

/// Number of bytes counted for one counter entry. It takes 68 of key and value in a hash table that is half empty right after it
/// has grown. It takes them once more in the batch's list while the table is still there.
const COUNTER_BYTES: usize = 300;
/// Bytes counted for one day: the first chunk of each of its columns.
const DAY_BYTES: usize = 7 << 10;
/// Bytes counted for a raw row beside its strings: fixed columns and lengths.
const RAW_ROW_BYTES: usize = 16 + 16 + 1 + 4 + 8 + 4;
/// Bytes counted for a rejected row beside its strings.
const REJECTED_ROW_BYTES: usize = 8 + 8 + 1 + 6;

/// A window: counters, raw rows and rejects of the offsets that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    start: u64,
    next: u64,
    bytes: usize,
    raw: Vec<(Day, RawRows)>,
    /// Index of each day in `raw`, and that of the last event's day.
    day_places: HashMap<Day, usize, FixedState>,
    last_day: usize,
    counters: HashMap<CounterKey, Totals, FixedState>,
    rejected: RejectedRows,
    arrivals: Arrivals,
    totals: Totals,
    records: u64,
}

impl Window {
    /// Returns an empty window that starts at an offset.
    pub fn new(start: u64) -> Window {
        Window {
            start,
            next: start,
            bytes: 0,
            raw: Vec::new(),
            day_places: HashMap::default(),
            last_day: 0,
            counters: HashMap::default(),
            rejected: RejectedRows::default(),
            arrivals: Vec::new(),
            totals: Totals::default(),
            records: 0,
        }
    }

    /// Returns the first offset that the window covers.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns one past the last offset taken or passed.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Returns the memory held, in bytes; an estimate from the appended records.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Returns the number of events by type.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Returns the number of rejected records.
    pub fn rejects(&self) -> u64 {
        self.rejected.rows
    }

    /// Returns the number of counters.
    pub fn counters(&self) -> usize {
        self.counters.len()
    }

    /// Returns the number of records taken.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// True if no record was taken.
    pub fn is_empty(&self) -> bool {
        self.records() == 0
    }

    /// True if the window covers offsets. Some of them may have no record.
    pub fn has_offsets(&self) -> bool {
        self.next > self.start
    }

    /// Notes that the log has no more records before this offset.
    pub fn pass(&mut self, end: u64) {
        self.next = self.next.max(end);
    }

    /// True if the window has to be frozen before it takes more.
    pub fn is_full(&self, limits: &Limits) -> bool {
        self.records() >= limits.rows_max || self.bytes >= limits.bytes_max || self.raw.len() > limits.days_max
    }

    /// Takes a record with its decoded form, and returns the bytes that it added. A record before [`Window::next`] was taken
    /// already (a stale fetch) and adds nothing.
    pub fn push(&mut self, record: &Record<'_>, decoded: &Result<Event<'_>, Rejection>) -> usize {
        if record.offset < self.next {
            return 0;
        }
        self.next = record.offset + 1;
        self.records += 1;
        self.note_arrival(record.timestamp_ms);
        let added = match decoded {
            Ok(event) => self.push_event(record.offset, event),
            Err(rejection) => self.push_rejected(record, rejection),
        };
        self.bytes += added;
        added
    }

    fn push_event(&mut self, offset: u64, event: &Event<'_>) -> usize {
        let day = Day::of(event.event_time);
        let days = self.raw.len();
        let rows = self.rows_of(day);
        rows.rows += 1;
        rows.campaign_id.put_uuid(&event.campaign_id);
        rows.workspace_id.put_uuid(&event.workspace_id);
        rows.email.put_string(event.email.as_bytes());
        rows.event_type.put(&[event.event_type as u8]);
        rows.event_time.put(&event.event_time.to_le_bytes());
        rows.metadata.put_string(event.metadata.as_bytes());
        rows.source_offset.put(&offset.to_le_bytes());

        let key = CounterKey { day, campaign_id: event.campaign_id, workspace_id: event.workspace_id };
        let counters = self.counters.len();
        self.counters.entry(key).or_default()[event.event_type.index()] += 1;
        self.totals[event.event_type.index()] += 1;
        let (new_days, new_counters) = (self.raw.len() - days, self.counters.len() - counters);
        let strings = event.email.len() + event.metadata.len();
        RAW_ROW_BYTES + strings + new_counters * COUNTER_BYTES + new_days * DAY_BYTES
    }

    /// Returns the rows of a day. Most events have the day of the event before them.
    fn rows_of(&mut self, day: Day) -> &mut RawRows {
        if self.raw.get(self.last_day).is_none_or(|(last, _)| *last != day) {
            self.last_day = *self.day_places.entry(day).or_insert_with(|| {
                self.raw.push((day, RawRows::default()));
                self.raw.len() - 1
            });
        }
        &mut self.raw[self.last_day].1
    }

    fn push_rejected(&mut self, record: &Record<'_>, rejection: &Rejection) -> usize {
        let (key, payload) = (record.key.unwrap_or_default(), record.payload.unwrap_or_default());
        let rows = &mut self.rejected;
        rows.rows += 1;
        rows.source_offset.put(&record.offset.to_le_bytes());
        rows.timestamp_ms.put(&record.timestamp_ms.unwrap_or(0).to_le_bytes());
        rows.reasons.push(reason_index(rejection.reason));
        rows.error.put_string(rejection.error.as_bytes());
        rows.key.put_string(key);
        rows.payload.put_string(payload);
        REJECTED_ROW_BYTES + rejection.error.len() + key.len() + payload.len()
    }

    /// Returns the Kafka timestamp of the first record that had one, rounded down to [`ARRIVAL_STEP_MS`].
    pub fn oldest_ms(&self) -> Option<i64> {
        self.arrivals.first().map(|&(arrival_ms, _)| arrival_ms)
    }

    fn note_arrival(&mut self, timestamp_ms: Option<i64>) {
        // A time that cannot be right would give delays of decades. It would also make a healthy member look stale.
        let Some(timestamp_ms) = timestamp_ms.filter(|ms| RECORD_TIMES_MS.contains(ms)) else { return };
        let step = timestamp_ms - timestamp_ms.rem_euclid(ARRIVAL_STEP_MS);
        let crowded = self.arrivals.len() == ARRIVALS_MAX;
        match self.arrivals.last_mut() {
            Some((last, records)) if crowded || *last == step => *records += 1,
            _ => self.arrivals.push((step, 1)),
        }
    }

    /// Takes the window apart, for [`crate::batch::Batch::freeze`].
    pub(super) fn into_parts(mut self) -> Parts {
        self.raw.sort_unstable_by_key(|(day, _)| *day);
        Parts {
            raw: self.raw,
            counters: self.counters.into_iter().collect(),
            rejected: self.rejected,
            arrivals: self.arrivals,
        }
    }
}

/// The content of a window: the days are in order, the counters are not.
pub(super) struct Parts {
    pub raw: Vec<(Day, RawRows)>,
    pub counters: Vec<(CounterKey, Totals)>,
    pub rejected: RejectedRows,
    pub arrivals: Arrivals,
}

fn reason_index(reason: Reason) -> u8 {
    // The enum's own order is that of `Reason::ALL`. A test checks that.
    reason as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event(campaign: u8, event_type: EventType, event_time: u32) -> Event<'static> {
        Event {
            campaign_id: [campaign; 16],
            workspace_id: [0; 16],
            email: "a@b".into(),
            event_type,
            event_time,
            metadata: "{}",
            unknown_fields: 0,
        }
    }

    fn record(offset: u64) -> Record<'static> {
        Record { offset, timestamp_ms: Some(0), key: None, payload: Some(b"x") }
    }

    #[test]
    fn reasons_are_numbered_in_the_order_of_all() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(reason_index(reason)), index);
        }
    }

    #[test]
    fn an_impossible_timestamp_makes_no_delay() {
        let mut window = Window::new(0);
        for (offset, timestamp_ms) in [1, 1_795_501_800, 1_795_501_800_000_000, i64::MIN].into_iter().enumerate() {
            let record = Record { timestamp_ms: Some(timestamp_ms), ..record(offset as u64) };
            window.push(&record, &Ok(event(1, EventType::Open, 0)));
            assert_eq!(window.oldest_ms(), None, "{timestamp_ms}");
        }
        window.push(&Record { timestamp_ms: Some(1_795_501_800_000), ..record(9) }, &Ok(event(1, EventType::Open, 0)));
        assert!(window.oldest_ms().is_some());
    }

    #[test]
    fn midnight_parts_the_days() {
        let mut window = Window::new(0);
        for (offset, time) in [86_399, 86_400, 86_399].into_iter().enumerate() {
            window.push(&record(offset as u64), &Ok(event(1, EventType::Open, time)));
        }
        let days: Vec<_> = window.into_parts().raw.into_iter().map(|(day, rows)| (day.0, rows.rows)).collect();
        assert_eq!(days, [(0, 2), (1, 1)]);
    }

    #[test]
    fn a_stale_record_is_taken_once() {
        let mut window = Window::new(5);
        assert_eq!(window.push(&record(4), &Ok(event(1, EventType::Open, 0))), 0);
        assert!(window.push(&record(7), &Ok(event(1, EventType::Open, 0))) > 0);
        assert_eq!(window.push(&record(7), &Ok(event(1, EventType::Open, 0))), 0);
        assert_eq!((window.start(), window.next(), window.records()), (5, 8, 1));
    }

    /// Days that alternate do not close a window each time. Only a day beyond the limit closes it.
    #[test]
    fn one_day_too_many_is_the_last() {
        let limits = Limits { rows_max: 1_000, bytes_max: 1 << 20, days_max: 3 };
        let mut window = Window::new(0);
        for offset in 0..100 {
            window.push(&record(offset), &Ok(event(1, EventType::Open, 86_400 * (offset % 3) as u32)));
            assert!(!window.is_full(&limits), "{offset}");
        }
        window.push(&record(100), &Ok(event(1, EventType::Open, 86_400 * 3)));
        assert!(window.is_full(&limits));
    }

    proptest! {
        /// Counters are the GROUP BY of the events in any order. Nothing is lost between rows and rejects.
        #[test]
        fn counters_are_the_group_by_of_the_rows(
            events in proptest::collection::vec(proptest::option::weighted(0.9, (0u8..4, 0usize..EventType::ALL.len(), 0u32..400_000)), 0..300)
        ) {
            let mut window = Window::new(10);
            let mut wanted: HashMap<(Day, u8, usize), u64> = HashMap::new();
            for (n, event_or_not) in events.iter().enumerate() {
                let decoded = match *event_or_not {
                    Some((campaign, kind, time)) => {
                        *wanted.entry((Day::of(time), campaign, kind)).or_default() += 1;
                        Ok(event(campaign, EventType::ALL[kind], time))
                    }
                    None => Err(Rejection::new(Reason::NotJson, "no")),
                };
                window.push(&record(10 + n as u64), &decoded);
            }
            prop_assert_eq!(window.records(), events.len() as u64);
            let parts = window.into_parts();
            let mut found: HashMap<(Day, u8, usize), u64> = HashMap::new();
            for (key, totals) in &parts.counters {
                for (kind, &total) in totals.iter().enumerate().filter(|(_, total)| **total > 0) {
                    found.insert((key.day, key.campaign_id[0], kind), total.into());
                }
            }
            prop_assert_eq!(found, wanted);
            let rows: u64 = parts.raw.iter().map(|(_, rows)| rows.rows).sum();
            prop_assert_eq!(rows + parts.rejected.rows, events.len() as u64);
            prop_assert!(parts.raw.is_sorted_by_key(|(day, _)| *day));
        }
    }
}
