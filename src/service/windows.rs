//! The live windows of the partitions that are ours: the reader writes, the partitions' tasks take, the HTTP endpoint reads.
//!
//! A record for a partition without a live window is dropped, and that is safe: the window is made after the seek to where it
//! starts. Must never hold a map entry while freezing or waiting.

use super::memory::Memory;
use crate::core::batch::Batch;
use crate::core::event::{Event, EventType};
use crate::core::reject::Rejection;
use crate::core::window::{Limits, Record, Window};
use crate::metrics::{OFFSET_GAPS, WINDOW_SECONDS};
use dashmap::DashMap;
use metrics::{counter, histogram};
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::f64::consts::GOLDEN_RATIO;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// A window with many records does not wait for its age once the log has had no more for so long: a burst is over, or what
/// had piled up is read, and a batch of this size is worth its parts.
const IDLE: Duration = Duration::from_millis(500);
const IDLE_RECORDS_MIN: u64 = 1_000;

/// When it is a partition's turn, where the pace decides and not the age. All windows open at once when a member starts; flushed
/// a period later, all at once again, they would keep each other waiting (64 partitions on two cores: up to 4 s of 12).
#[derive(Clone, Copy, Debug)]
struct Turn {
    /// What the turns of all partitions count from.
    origin: Instant,
    /// Where in a period this partition's turn is, from 0 to 1.
    share: f64,
}

impl Turn {
    fn new(origin: Instant, partition: i32) -> Turn {
        // Multiples of the golden ratio lie evenly between two whole numbers, whichever partitions are ours.
        Turn { origin, share: (f64::from(partition) * GOLDEN_RATIO).fract() }
    }

    /// The first turn after an instant, at most a period later.
    fn after(self, instant: Instant, period: Duration) -> Instant {
        let first = self.origin + period.mul_f64(self.share);
        match instant.checked_duration_since(first) {
            None => first,
            Some(since) => first + period.mul_f64((since.as_secs_f64() / period.as_secs_f64()).floor() + 1.0),
        }
    }
}

struct Live {
    turn: Turn,
    window: Window,
    /// When the window took its first record.
    opened: Option<Instant>,
    /// When the reader came to the log's end, if nothing came after that.
    caught_up: Option<Instant>,
    /// Where the window must be closed, in a replay.
    until: Option<u64>,
    sealed: VecDeque<(Window, u64)>,
    /// The reader came to the log's end in a replay, or lost its position: the task looks which.
    check: bool,
    wake: Arc<Notify>,
}

impl Live {
    fn seal(&mut self, end: u64) {
        let window = std::mem::replace(&mut self.window, Window::new(end));
        self.sealed.push_back((window, end));
        if let Some(opened) = self.opened.take() {
            histogram!(WINDOW_SECONDS).record(opened.elapsed());
        }
        self.until = None;
        self.wake.notify_one();
    }

    /// When the window becomes due; `None` while it is empty or replaying.
    fn due_at(&self, ages: Ages) -> Option<Instant> {
        let opened = self.opened.filter(|_| self.until.is_none())?;
        let idle = self.caught_up.filter(|_| self.window.records() >= IDLE_RECORDS_MIN);
        let idle = idle.map(|since| (since + IDLE).max(opened + ages.idle));
        let most = if ages.is_paced() { self.turn.after(opened, ages.most) } else { opened + ages.most };
        Some(idle.map_or(most, |idle| idle.min(most)))
    }

    fn bytes(&self) -> usize {
        self.window.bytes() + self.sealed.iter().map(|(window, _)| window.bytes()).sum::<usize>()
    }
}

/// A batch with its share of the memory, given back when it is dropped.
pub struct Held {
    /// The batch.
    pub batch: Batch,
    memory: Arc<Memory>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.sub(self.batch.bytes());
    }
}

/// The ages at which a window is due.
#[derive(Clone, Copy, Debug)]
pub struct Ages {
    /// In any case.
    pub most: Duration,
    /// At the earliest, when the log has no more for now.
    pub idle: Duration,
}

impl Ages {
    /// Whether the pace decides: there are so many partitions that they have to take turns.
    fn is_paced(self) -> bool {
        self.idle >= self.most
    }
}

/// Which window is taken.
#[derive(Clone, Copy, Debug)]
pub enum Due {
    /// One that is old enough.
    Aged(Ages),
    /// Any that is not empty.
    Now,
}

/// One window, for people.
#[derive(Debug, Serialize)]
pub struct Glance {
    start: u64,
    next: u64,
    bytes: usize,
    counters: usize,
    rejects: u64,
    sealed: usize,
    events: BTreeMap<&'static str, u64>,
}

/// The windows.
pub struct Windows {
    live: DashMap<i32, Live>,
    origin: Instant,
    limits: Limits,
    memory: Arc<Memory>,
}

impl Windows {
    /// No windows yet.
    pub fn new(limits: Limits, memory: Arc<Memory>) -> Windows {
        Windows { live: DashMap::new(), origin: Instant::now(), limits, memory }
    }

    /// Starts a partition's window, in place of any it had. `wake` is notified when there is something to look at.
    pub fn open(&self, partition: i32, from: u64, until: Option<u64>, wake: Arc<Notify>) {
        let window = Window::new(from);
        let turn = Turn::new(self.origin, partition);
        let live =
            Live { turn, window, opened: None, caught_up: None, until, sealed: VecDeque::new(), check: false, wake };
        if let Some(old) = self.live.insert(partition, live) {
            self.memory.sub(old.bytes());
        }
    }

    /// Ends a partition's window and drops what it holds.
    pub fn close(&self, partition: i32) {
        if let Some((_, live)) = self.live.remove(&partition) {
            self.memory.sub(live.bytes());
        }
    }

    /// Takes a record; tells whether the partition has a window.
    pub fn push(&self, partition: i32, record: &Record<'_>, decoded: &Result<Event<'_>, Rejection>) -> bool {
        let Some(mut live) = self.live.get_mut(&partition) else { return false };
        if let Some(end) = live.until.filter(|&end| record.offset >= end) {
            live.seal(end);
        }
        // The window takes what follows; the audit tells which rows miss. A loss would show here first.
        let passed_over = record.offset.saturating_sub(live.window.next());
        if passed_over > 0 {
            counter!(OFFSET_GAPS).increment(passed_over);
        }
        let added = live.window.push(record, decoded);
        live.caught_up = None;
        if live.opened.is_none() && added > 0 {
            live.opened = Some(Instant::now());
        }
        if live.until.is_none() && live.window.is_full(&self.limits) {
            let end = live.window.next();
            live.seal(end);
        }
        drop(live);
        self.memory.add(added);
        true
    }

    /// Takes a batch if one is due of the window that was opened with this `wake`. Between a request to fill and the reader's
    /// obeying it, the window of the fill before is still live: taking from that one would announce offsets that nobody asked for.
    pub fn take(&self, partition: i32, due: Due, wake: &Arc<Notify>) -> Option<Held> {
        let (window, end) = {
            let mut live = self.live.get_mut(&partition).filter(|live| Arc::ptr_eq(&live.wake, wake))?;
            if live.sealed.is_empty() && live.until.is_none() && !live.window.is_empty() {
                let aged = match due {
                    Due::Now => true,
                    Due::Aged(ages) => live.due_at(ages).is_some_and(|due| due <= Instant::now()),
                };
                if aged {
                    let end = live.window.next();
                    live.seal(end);
                }
            }
            live.sealed.pop_front()?
        };
        Some(Held { batch: Batch::freeze(window, end), memory: Arc::clone(&self.memory) })
    }

    /// When the open window becomes due; `None` while it is empty or replaying.
    pub fn due_at(&self, partition: i32, ages: Ages) -> Option<Instant> {
        self.live.get(&partition)?.due_at(ages)
    }

    /// The reader is at the log's end: a replay may end there.
    pub fn reached_end(&self, partition: i32) {
        if let Some(mut live) = self.live.get_mut(&partition) {
            live.check |= live.until.is_some();
            live.caught_up = Some(Instant::now());
            live.wake.notify_one();
        }
    }

    /// The task of this partition, or without one of each, looks where it is in the log.
    pub fn check(&self, partition: Option<i32>) {
        for mut live in self.live.iter_mut().filter(|live| partition.is_none_or(|p| p == *live.key())) {
            live.check = true;
            live.wake.notify_one();
        }
    }

    /// Every task looks whether its window is due.
    pub fn wake_all(&self) {
        self.live.iter().for_each(|live| live.wake.notify_one());
    }

    /// Whether a look is asked for, once, in the window that was opened with this `wake`: the next offset and where a replay must
    /// end.
    pub fn take_check(&self, partition: i32, wake: &Arc<Notify>) -> Option<(u64, Option<u64>)> {
        let mut live = self.live.get_mut(&partition).filter(|live| Arc::ptr_eq(&live.wake, wake))?;
        std::mem::take(&mut live.check).then(|| (live.window.next(), live.until))
    }

    /// Closes a replay's window at its end: the log has nothing more before it.
    pub fn seal_replay(&self, partition: i32) {
        if let Some(mut live) = self.live.get_mut(&partition)
            && let Some(end) = live.until
        {
            live.seal(end);
        }
    }

    /// The next offset of a partition.
    pub fn next(&self, partition: i32) -> Option<u64> {
        self.live.get(&partition).map(|live| live.window.next())
    }

    /// Kafka timestamp of the oldest record that was not taken yet.
    pub fn oldest_ms(&self, partition: i32) -> Option<i64> {
        let live = self.live.get(&partition)?;
        live.sealed.front().map_or(&live.window, |(window, _)| window).oldest_ms()
    }

    /// The partitions that have a window.
    pub fn partitions(&self) -> Vec<i32> {
        self.live.iter().map(|live| *live.key()).collect()
    }

    /// All windows, for people.
    pub fn glance(&self) -> BTreeMap<i32, Glance> {
        let glance = |live: &Live| Glance {
            start: live.window.start(),
            next: live.window.next(),
            bytes: live.window.bytes(),
            counters: live.window.counters(),
            rejects: live.window.rejects(),
            sealed: live.sealed.len(),
            events: EventType::ALL.iter().map(|t| t.name()).zip(live.window.totals().iter().copied()).collect(),
        };
        self.live.iter().map(|live| (*live.key(), glance(&live))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::decode::{TimeBounds, decode};

    fn windows(rows_max: u64) -> Windows {
        Windows::new(Limits { rows_max, bytes_max: 1 << 20, days_max: 9 }, Arc::new(Memory::new(1 << 20)))
    }

    fn push(windows: &Windows, offsets: std::ops::Range<u64>) {
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        for offset in offsets {
            let record = Record { offset, timestamp_ms: None, key: None, payload: None };
            assert!(windows.push(0, &record, &decode(None, None, &bounds)));
        }
    }

    /// Only a large window is flushed early, only when nothing more comes, and not before its pace allows.
    #[test]
    fn a_window_does_not_wait_for_its_age_when_a_burst_is_over() {
        let ages = Ages { most: Duration::from_secs(60), idle: Duration::from_secs(2) };
        let windows = windows(10 * IDLE_RECORDS_MIN);
        windows.open(0, 0, None, Arc::default());
        let due_in = || windows.due_at(0, ages).map(|due| due.duration_since(Instant::now()));
        push(&windows, 0..IDLE_RECORDS_MIN - 1);
        windows.reached_end(0);
        assert!(due_in() > Some(ages.idle), "too small");
        push(&windows, IDLE_RECORDS_MIN - 1..IDLE_RECORDS_MIN);
        assert!(due_in() > Some(ages.idle), "a record came after the end");
        windows.reached_end(0);
        assert!((Some(IDLE)..=Some(ages.idle)).contains(&due_in()), "{:?}", due_in());
    }

    /// Whichever partitions a member has: no moment of a period has more than twice its share of them, and none waits longer.
    #[test]
    fn partitions_take_turns_when_the_pace_decides() {
        let (origin, period) = (Instant::now(), Duration::from_secs(8));
        for (step, count) in [(1, 32), (2, 32), (3, 40), (1, 1_000)] {
            let opened = origin + Duration::from_millis(12_345);
            let waits: Vec<Duration> =
                (0..count).map(|n| Turn::new(origin, n * step).after(opened, period) - opened).collect();
            assert!(waits.iter().all(|wait| *wait > Duration::ZERO && *wait <= period), "{waits:?}");
            let in_each = |eighth: u32| waits.iter().filter(|wait| wait.as_secs() as u32 == eighth).count() as i32;
            assert!((0..8).all(|eighth| in_each(eighth) <= count / 8 * 2), "every {step}th of {count}");
        }
        let turn = Turn::new(origin, 1);
        assert_eq!(turn.after(turn.after(origin, period), period), turn.after(origin, period) + period);
    }

    #[test]
    fn a_window_waits_for_its_turn_only_when_the_pace_decides() {
        let windows = windows(10);
        windows.open(1, 0, None, Arc::default());
        let record = Record { offset: 0, timestamp_ms: None, key: None, payload: None };
        let bounds = TimeBounds { past_seconds_max: 0, future_seconds_max: 0 };
        assert!(windows.push(1, &record, &decode(None, None, &bounds)));
        let most = Duration::from_secs(600);
        let due_in = |idle| windows.due_at(1, Ages { most, idle }).map(|due| due.duration_since(Instant::now()));
        assert!(due_in(Duration::from_secs(1)) > Some(most * 9 / 10), "the age decides");
        assert!(due_in(most) < Some(most * 7 / 10), "the turn of partition 1 is 0.62 of a period after the start");
    }

    #[test]
    fn a_window_of_an_earlier_fill_is_never_taken() {
        let windows = windows(2);
        let (earlier, wake) = (Arc::default(), Arc::default());
        windows.open(0, 10, None, Arc::clone(&earlier));
        push(&windows, 10..13);
        windows.check(Some(0));
        // The task has asked for another fill, which the reader has not obeyed yet.
        assert!(windows.take(0, Due::Now, &wake).is_none() && windows.take_check(0, &wake).is_none());
        assert_eq!(windows.take(0, Due::Now, &earlier).map(|held| held.batch.range().start), Some(10));
        windows.open(0, 50, None, Arc::clone(&wake));
        assert!(windows.take(0, Due::Now, &earlier).is_none() && windows.take(0, Due::Now, &wake).is_none());
    }
}
