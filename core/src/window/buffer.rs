//! The buffer of one partition holds records that its task has not taken: the live window, and closed windows that wait.
//!
//! The reader appends records and reports the end of the log. The partition's task takes windows. A buffer belongs to one fill: a
//! task that has requested another fill takes nothing of it.
//!
//! A replay is whole only when the reader has passed its end. The reader passes it with a record at or after it, or with the end
//! of the log when that lies at or after it. The log's bounds prove nothing: they show the records of another broker, not the
//! records that were read.

use crate::decode::event::Event;
use crate::decode::reject::Rejection;
use crate::guard::{self, Guard};
use crate::window::intake::Fill;
use crate::window::{Limits, Record, Window};
use std::collections::VecDeque;

/// Reasons why a buffer takes no more records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Halt {
    /// The reader has lost its position: the partition has to start over.
    PositionLost,
    /// The log ended here, before the end of the replay. The next record cancels this.
    EndsShort(u64),
    /// The replay does not fit into memory. The fields give the size of the part that was read.
    TooLarge {
        /// Number of records that were read.
        records: u64,
        /// Number of bytes that they took.
        bytes: usize,
    },
}

/// The effect of a record on its buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Number of bytes by which the buffer has grown.
    pub added: usize,
    /// Number of offsets between the last record and this one.
    pub passed_over: u64,
    /// True if a window was closed.
    pub closed: bool,
}

/// The windows of one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffer {
    fill: u64,
    window: Window,
    /// Offset at which the window must be closed, in a replay.
    until: Option<u64>,
    /// Greatest number of records of a window that is no replay, if larger batches were refused.
    records_max: Option<u64>,
    closed: VecDeque<(Window, u64)>,
    halt: Option<Halt>,
}

impl Buffer {
    /// Returns an empty buffer of this fill. Its first window ends exactly at `until` if that is given.
    pub fn new(fill: u64, from: u64, until: Option<u64>) -> Buffer {
        Buffer { fill, window: Window::new(from), until, records_max: None, closed: VecDeque::new(), halt: None }
    }

    /// Returns an empty buffer for a fill.
    pub fn of(fill: &Fill) -> Buffer {
        Buffer { records_max: fill.records_max, ..Buffer::new(fill.number, fill.from, fill.until) }
    }

    /// Takes a record into the live window, and closes windows that are complete. It takes nothing after a permanent halt.
    pub fn push(&mut self, record: &Record<'_>, decoded: &Result<Event<'_>, Rejection>, limits: &Limits) -> Pushed {
        match self.halt {
            Some(Halt::EndsShort(_)) => self.halt = None,
            Some(_) => return Pushed::default(),
            None => {}
        }
        let mut closed = false;
        if let Some(end) = self.until.filter(|&end| record.offset >= end) {
            self.close(end);
            closed = true;
        }
        let passed_over = record.offset.saturating_sub(self.window.next());
        let added = self.window.push(record, decoded);
        let rows_max = self.records_max.map_or(limits.rows_max, |most| most.min(limits.rows_max));
        if self.until.is_none() && self.window.is_full(&Limits { rows_max, ..*limits }) {
            self.close(self.window.next());
            closed = true;
        }
        Pushed { added, passed_over, closed }
    }

    /// Notes that the reader has read all records before `end`, and that the log has no more for now.
    pub fn reached_end(&mut self, end: u64) {
        if matches!(self.halt, Some(Halt::PositionLost | Halt::TooLarge { .. })) {
            return;
        }
        match self.until {
            Some(until) if end >= until || !guard::is_on(Guard::End) => {
                self.halt = None;
                self.close(until);
            }
            Some(_) => self.halt = Some(Halt::EndsShort(end)),
            None => {}
        }
        // librdkafka passes transaction markers, and the records of aborted transactions, without a report.
        if self.until.is_none() {
            self.window.pass(end);
        }
    }

    /// Notes that the reader has lost its position: its next offset is not known.
    pub fn lose_position(&mut self) {
        if guard::is_on(Guard::Position) {
            self.halt = Some(Halt::PositionLost);
        }
    }

    /// Drops a replay that does not fit into memory.
    pub fn give_up(&mut self) {
        self.halt = Some(Halt::TooLarge { records: self.window.records(), bytes: self.window.bytes() });
        self.window = Window::new(self.window.start());
    }

    fn close(&mut self, end: u64) {
        let window = std::mem::replace(&mut self.window, Window::new(end));
        self.closed.push_back((window, end));
        self.until = None;
    }

    /// Takes the oldest window with its end, if the buffer is of this fill. If none is closed, it closes a live one that is
    /// `due`. A replay is due only when it is whole.
    pub fn take(&mut self, fill: u64, due: impl FnOnce(&Window) -> bool) -> Option<(Window, u64)> {
        if !self.has_batch(fill) {
            return None;
        }
        if self.closed.is_empty() && due(&self.window) {
            self.close(self.window.next());
        }
        self.closed.pop_front()
    }

    /// True if the buffer is of this fill and has a window to take. The window may not be due yet.
    pub fn has_batch(&self, fill: u64) -> bool {
        self.is_of(fill) && (!self.closed.is_empty() || self.until.is_none() && self.window.has_offsets())
    }

    /// Returns the reason why nothing more comes, if the buffer is of this fill and has no window to take.
    pub fn halted(&self, fill: u64) -> Option<Halt> {
        self.halt.filter(|_| self.is_of(fill) && self.closed.is_empty())
    }

    fn is_of(&self, fill: u64) -> bool {
        self.fill == fill || !guard::is_on(Guard::Fill)
    }

    /// Returns the number of its fill.
    pub fn fill(&self) -> u64 {
        self.fill
    }

    /// Returns the live window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Returns the oldest window, closed or live.
    pub fn oldest(&self) -> &Window {
        self.closed.front().map_or(&self.window, |(window, _)| window)
    }

    /// Returns number of closed windows.
    pub fn closed(&self) -> usize {
        self.closed.len()
    }

    /// Returns the end of the replay under way.
    pub fn until(&self) -> Option<u64> {
        self.until
    }

    /// Returns the memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.window.bytes() + self.closed.iter().map(|(window, _)| window.bytes()).sum::<usize>()
    }
}

#[cfg(test)]
impl std::hash::Hash for Buffer {
    /// The windows hold the records of the log from their start on, so their bounds and sizes distinguish them.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.fill, self.until, self.halt).hash(state);
        let live = std::iter::once((&self.window, &u64::MAX));
        for (window, end) in self.closed.iter().map(|(window, end)| (window, end)).chain(live) {
            (window.start(), window.next(), window.records(), window.bytes(), end).hash(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::reject::Reason;

    const LIMITS: Limits = Limits { rows_max: 100, bytes_max: 1 << 20, days_max: 9 };

    fn push(buffer: &mut Buffer, offsets: std::ops::Range<u64>) {
        for offset in offsets {
            let record = Record { offset, timestamp_ms: None, key: None, payload: None };
            buffer.push(&record, &Err(Rejection::new(Reason::NotJson, "no")), &LIMITS);
        }
    }

    fn taken(buffer: &mut Buffer) -> Option<(u64, u64, u64)> {
        buffer.take(1, |_| true).map(|(window, end)| (window.start(), end, window.records()))
    }

    #[test]
    fn a_replay_is_taken_once_the_reader_has_passed_its_end() {
        let mut buffer = Buffer::new(1, 10, Some(20));
        push(&mut buffer, 10..15);
        buffer.reached_end(15);
        assert_eq!((taken(&mut buffer), buffer.halted(1)), (None, Some(Halt::EndsShort(15))), "a stale end of the log");
        push(&mut buffer, 15..18);
        assert_eq!((taken(&mut buffer), buffer.halted(1)), (None, None));
        // There are only control records up to 20.
        buffer.reached_end(20);
        assert_eq!(taken(&mut buffer), Some((10, 20, 8)));
        push(&mut buffer, 20..22);
        assert_eq!(taken(&mut buffer), Some((20, 22, 2)));
        let mut buffer = Buffer::new(1, 10, Some(20));
        push(&mut buffer, 10..18);
        push(&mut buffer, 25..26);
        assert_eq!(taken(&mut buffer), Some((10, 20, 8)), "a record behind the end passes it as well");
    }

    /// Otherwise retention could remove a transaction's marker at the committed offset, which would look like a loss.
    #[test]
    fn what_the_log_ends_with_is_passed() {
        let mut buffer = Buffer::new(1, 10, None);
        buffer.reached_end(10);
        assert_eq!(taken(&mut buffer), None);
        buffer.reached_end(12);
        assert_eq!(taken(&mut buffer), Some((10, 12, 0)), "only markers");
        push(&mut buffer, 12..15);
        buffer.reached_end(16);
        buffer.reached_end(14);
        assert_eq!(taken(&mut buffer), Some((12, 16, 3)), "a marker after the last record");
        let mut buffer = Buffer::new(1, 10, Some(20));
        push(&mut buffer, 10..18);
        buffer.reached_end(25);
        assert_eq!(taken(&mut buffer), Some((10, 20, 8)));
        assert_eq!(taken(&mut buffer), Some((20, 25, 0)));
    }

    #[test]
    fn nothing_comes_after_a_lost_position_or_a_replay_that_was_given_up() {
        let mut buffer = Buffer::new(1, 0, None);
        push(&mut buffer, 0..5);
        buffer.lose_position();
        push(&mut buffer, 9..12);
        assert_eq!((buffer.halted(1), buffer.window().records()), (Some(Halt::PositionLost), 5));
        let mut buffer = Buffer::new(1, 0, Some(9));
        push(&mut buffer, 0..5);
        let bytes = buffer.bytes();
        buffer.give_up();
        push(&mut buffer, 5..20);
        buffer.reached_end(20);
        assert_eq!((buffer.bytes(), taken(&mut buffer)), (0, None));
        assert_eq!(buffer.halted(1), Some(Halt::TooLarge { records: 5, bytes }));
    }

    #[test]
    fn a_task_takes_nothing_of_another_fill() {
        let mut buffer = Buffer::new(1, 0, None);
        push(&mut buffer, 0..150);
        buffer.lose_position();
        assert!(buffer.take(2, |_| true).is_none() && buffer.halted(2).is_none());
        assert_eq!(taken(&mut buffer), Some((0, 100, 100)));
        assert_eq!(taken(&mut buffer), Some((100, 150, 50)));
        assert_eq!(buffer.halted(1), Some(Halt::PositionLost), "reported after what was read before");
    }
}
