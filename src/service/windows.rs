//! The live windows of this member's partitions. The reader writes them, the partitions' tasks take them, the HTTP endpoint reads
//! them.
//!
//! A record for a partition without a live window is dropped. That is safe: the window is made after the seek to its start.
//! [`Buffer`] decides the records that a window takes, and the moment when it is whole. Must never hold a map entry while
//! freezing or waiting.

use super::memory::{Account, Memory};
use crate::platform::metrics::WINDOW_SECONDS;
use dashmap::DashMap;
use metrics::histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tallyhouse_core::batch::Batch;
use tallyhouse_core::decode::event::{Event, EventType};
use tallyhouse_core::decode::reject::Rejection;
use tallyhouse_core::source::OffsetRange;
use tallyhouse_core::stream::Stream;
use tallyhouse_core::window::buffer::{Buffer, Halt};
use tallyhouse_core::window::intake::Fill;
use tallyhouse_core::window::{Limits, Record};
use tokio::sync::Notify;

/// Time without new records after which a window with many records does not wait for its age. Either a burst is over, or a
/// backlog is read. A batch of this size is worth its parts.
const IDLE: Duration = Duration::from_millis(500);
const IDLE_RECORDS_MIN: u64 = 1_000;

struct Live {
    buffer: Buffer,
    /// Time at which the window took its first record, or passed its first offset.
    opened: Option<Instant>,
    /// Time at which the reader came to the log's end, if nothing came after that.
    caught_up: Option<Instant>,
    /// True if the reader has paused the partition because there is no memory. Then its records are due.
    paused: bool,
    account: Arc<Account>,
    wake: Arc<Notify>,
}

impl Live {
    /// Notes that something came. Before it, the window may have been empty.
    fn note_opened(&mut self) {
        if self.opened.is_none() && self.buffer.window().has_offsets() {
            self.opened = Some(Instant::now());
        }
    }

    /// Notes that a window was closed.
    fn note_closed(&mut self) {
        if let Some(opened) = self.opened.take() {
            histogram!(WINDOW_SECONDS).record(opened.elapsed());
        }
        self.wake.notify_one();
    }

    /// Returns the time at which the window becomes due; `None` while it is empty or replaying.
    fn due_at(&self, ages: Ages) -> Option<Instant> {
        let opened = self.opened.filter(|_| self.buffer.until().is_none())?;
        let idle = self.caught_up.filter(|_| self.buffer.window().records() >= IDLE_RECORDS_MIN);
        let idle = idle.map(|since| (since + IDLE).max(opened + ages.idle));
        let most = opened + ages.most;
        Some(idle.map_or(most, |idle| idle.min(most)))
    }
}

/// A batch with its share of the memory, which is given back when the batch is dropped.
pub struct ReservedBatch {
    /// The batch that was frozen.
    pub batch: Batch,
    account: Arc<Account>,
}

impl Drop for ReservedBatch {
    fn drop(&mut self) {
        self.account.sub(self.batch.bytes());
    }
}

/// The effect of a record on its partition.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Number of bytes that the partition holds now.
    pub held: usize,
    /// Number of bytes that all partitions hold now.
    pub used: usize,
    /// Offsets before the record that had no record.
    pub passed_over: Option<OffsetRange>,
    /// Number of a fill whose replay is whole now.
    pub whole: Option<u64>,
}

/// The ages at which a window is due.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// Age at which a window is due in any case.
    pub most: Duration,
    /// Least age at which a window is due when the log has no more for now.
    pub idle: Duration,
}

/// The windows that may be taken.
#[derive(Clone, Copy, Debug)]
pub enum Due {
    /// A window that is closed, or that has to make room in memory.
    Full,
    /// Any window that is not empty.
    Now,
}

/// The state of one window, for people.
#[derive(Debug, Serialize)]
pub struct WindowSnapshot {
    start: u64,
    next: u64,
    bytes: usize,
    counters: usize,
    rejects: u64,
    sealed: usize,
    events: BTreeMap<&'static str, u32>,
}

/// The live windows, by partition.
pub struct Windows {
    live: DashMap<i32, Live>,
    stream: Stream,
    limits: Limits,
    memory: Arc<Memory>,
}

impl Windows {
    /// Creates the map without windows, for a stream.
    pub fn new(stream: Stream, limits: Limits, memory: Arc<Memory>) -> Windows {
        Windows { live: DashMap::new(), stream, limits, memory }
    }

    /// Starts a partition's window, in place of an earlier one. `wake` is notified of changes.
    pub fn open(&self, fill: &Fill, wake: Arc<Notify>) {
        let partition = fill.partition;
        self.close(partition);
        let live = Live {
            buffer: Buffer::of(fill),
            opened: None,
            caught_up: None,
            paused: false,
            account: Account::open(&self.memory),
            wake,
        };
        self.live.insert(partition, live);
    }

    /// Ends a partition's window and drops what it holds.
    pub fn close(&self, partition: i32) {
        if let Some((_, live)) = self.live.remove(&partition) {
            live.account.sub(live.buffer.bytes());
        }
    }

    /// Takes a record, if the partition has a window.
    pub fn push(&self, partition: i32, record: &Record<'_>, decoded: &Result<Event<'_>, Rejection>) -> Option<Taken> {
        let mut live = self.live.get_mut(&partition)?;
        let replay = live.buffer.until().map(|_| live.buffer.fill());
        let pushed = live.buffer.push(record, decoded, &self.limits);
        // The window takes the records that follow. A loss would show here first.
        let passed_over = (pushed.passed_over > 0)
            .then(|| OffsetRange { start: record.offset - pushed.passed_over, end: record.offset });
        if pushed.closed {
            live.note_closed();
        }
        live.caught_up = None;
        live.note_opened();
        let (held, used) = live.account.add(pushed.added);
        Some(Taken { held, used, passed_over, whole: replay.filter(|_| pushed.closed) })
    }

    /// Takes a batch if one of the windows of this fill is due. Between a request to fill and the reader's reaction, the window
    /// of the fill before is still live. A batch from that one would announce offsets that nobody asked for.
    pub fn take(&self, partition: i32, due: Due, fill: u64) -> Option<ReservedBatch> {
        let (window, end, account) = {
            let mut live = self.live.get_mut(&partition)?;
            let is_due = match due {
                Due::Now => true,
                Due::Full => live.paused,
            };
            let closed = live.buffer.closed();
            let (window, end) = live.buffer.take(fill, |_| is_due)?;
            if live.buffer.closed() == closed {
                live.note_closed();
            }
            (window, end, Arc::clone(&live.account))
        };
        Some(ReservedBatch { batch: Batch::freeze_of(self.stream, window, end), account })
    }

    /// Returns the time at which the open window of this fill becomes due; `None` while it is empty or replaying.
    pub fn due_at(&self, partition: i32, ages: Ages, fill: u64) -> Option<Instant> {
        self.live.get(&partition).filter(|live| live.buffer.fill() == fill)?.due_at(ages)
    }

    /// Notes that the reader has read all before this offset, and that the log has no more. Returns the number of a fill whose
    /// replay is whole now.
    pub fn reached_end(&self, partition: i32, end: u64) -> Option<u64> {
        let mut live = self.live.get_mut(&partition)?;
        let replay = live.buffer.until().map(|_| live.buffer.fill());
        live.buffer.reached_end(end);
        live.caught_up = Some(Instant::now());
        live.note_opened();
        let whole = replay.filter(|_| live.buffer.until().is_none());
        match whole {
            Some(_) => live.note_closed(),
            None => live.wake.notify_one(),
        }
        whole
    }

    /// Notes that the reader has lost the partition's position.
    pub fn lose_position(&self, partition: i32) {
        if let Some(mut live) = self.live.get_mut(&partition) {
            live.buffer.lose_position();
            live.wake.notify_one();
        }
    }

    /// Drops a replay that does not fit into memory.
    pub fn give_up(&self, partition: i32) {
        if let Some(mut live) = self.live.get_mut(&partition) {
            let before = live.buffer.bytes();
            live.buffer.give_up();
            live.account.sub(before - live.buffer.bytes());
            live.wake.notify_one();
        }
    }

    /// Returns the reason why nothing more comes of this fill, if there is one.
    pub fn halted(&self, partition: i32, fill: u64) -> Option<Halt> {
        self.live.get(&partition)?.buffer.halted(fill)
    }

    /// Pauses the partition because there is no memory, or resumes it.
    pub fn set_paused(&self, partition: i32, paused: bool) {
        if let Some(mut live) = self.live.get_mut(&partition) {
            live.paused = paused;
            live.wake.notify_one();
        }
    }

    /// Returns the bytes that a partition with a window holds, and the bytes of all of them.
    pub fn held_bytes(&self, partition: i32) -> Option<(usize, usize)> {
        self.live.get(&partition).map(|live| live.account.held_bytes())
    }

    /// Returns the next offset of a partition.
    pub fn next(&self, partition: i32) -> Option<u64> {
        self.live.get(&partition).map(|live| live.buffer.window().next())
    }

    /// Returns the Kafka timestamp of the oldest record that was not taken yet.
    pub fn oldest_ms(&self, partition: i32) -> Option<i64> {
        self.live.get(&partition)?.buffer.oldest().oldest_ms()
    }

    /// Returns the partitions that have a window.
    pub fn partitions(&self) -> Vec<i32> {
        self.live.iter().map(|live| *live.key()).collect()
    }

    /// Returns the state of all windows, for people.
    pub fn snapshot(&self) -> BTreeMap<i32, WindowSnapshot> {
        let snapshot = |live: &Live| {
            let window = live.buffer.window();
            WindowSnapshot {
                start: window.start(),
                next: window.next(),
                bytes: window.bytes(),
                counters: window.counters(),
                rejects: window.rejects(),
                sealed: live.buffer.closed(),
                events: EventType::ALL.iter().map(|t| t.name()).zip(window.totals().iter().copied()).collect(),
            }
        };
        self.live.iter().map(|live| (*live.key(), snapshot(&live))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallyhouse_core::decode::{TimeBounds, decode};

    const FILL: Fill = Fill { partition: 0, number: 1, from: 0, until: None, records_max: None };

    fn windows(rows_max: u64) -> Windows {
        Windows::new(Stream::Events, Limits { rows_max, bytes_max: 1 << 20, days_max: 9 }, Arc::default())
    }

    fn push(windows: &Windows, partition: i32, offsets: std::ops::Range<u64>) {
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        for offset in offsets {
            let record = Record { offset, timestamp_ms: None, key: None, payload: None };
            assert!(windows.push(partition, &record, &decode(None, None, &bounds)).is_some());
        }
    }

    /// Only a large window is flushed early, only when nothing more comes, and not before its pace allows.
    #[test]
    fn a_window_does_not_wait_for_its_age_when_a_burst_is_over() {
        let ages = Ages { most: Duration::from_secs(60), idle: Duration::from_secs(2) };
        let windows = windows(10 * IDLE_RECORDS_MIN);
        windows.open(&FILL, Arc::default());
        let due_in = || windows.due_at(0, ages, 1).map(|due| due.duration_since(Instant::now()));
        push(&windows, 0, 0..IDLE_RECORDS_MIN - 1);
        windows.reached_end(0, IDLE_RECORDS_MIN - 1);
        assert!(due_in() > Some(ages.idle), "too small");
        push(&windows, 0, IDLE_RECORDS_MIN - 1..IDLE_RECORDS_MIN);
        assert!(due_in() > Some(ages.idle), "a record came after the end");
        windows.reached_end(0, IDLE_RECORDS_MIN);
        assert!((Some(IDLE)..=Some(ages.idle)).contains(&due_in()), "{:?}", due_in());
    }

    /// After any sequence of records and takes, the held bytes equal the counted ones.
    #[test]
    fn memory_is_given_back() {
        let windows = windows(2);
        let start = |held: ReservedBatch| held.batch.range().start;
        windows.open(&Fill { number: 1, from: 10, ..FILL }, Arc::default());
        push(&windows, 0, 10..13);
        // The task has requested another fill, which the reader has not begun yet.
        assert!(windows.take(0, Due::Now, 2).is_none());
        let ages = Ages { most: Duration::from_secs(1), idle: Duration::ZERO };
        assert!(windows.due_at(0, ages, 2).is_none() && windows.due_at(0, ages, 1).is_some(), "nothing to wait for");
        assert_eq!(windows.take(0, Due::Now, 1).map(start), Some(10));
        let held = windows.take(0, Due::Now, 1);
        windows.open(&Fill { number: 2, from: 50, until: Some(90), ..FILL }, Arc::default());
        push(&windows, 0, 50..60);
        assert!(windows.take(0, Due::Now, 1).is_none() && windows.take(0, Due::Now, 2).is_none());
        assert!(windows.memory.used_bytes() > held.map_or(0, |held| held.batch.bytes()));
        windows.give_up(0);
        assert_eq!(windows.memory.used_bytes(), 0);
        windows.close(0);
        assert_eq!(windows.memory.used_bytes(), 0);
    }

    #[test]
    fn what_is_paused_is_due() {
        let windows = windows(100);
        windows.open(&FILL, Arc::default());
        push(&windows, 0, 0..5);
        assert!(windows.take(0, Due::Full, 1).is_none());
        windows.set_paused(0, true);
        assert!(windows.take(0, Due::Full, 1).is_some());
    }
}
