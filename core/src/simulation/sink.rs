//! A fake of one source's rows in ClickHouse, with the habits of the real one: an insert applies one ClickHouse partition
//! after the other, goes on after its sender is gone, may begin long after it was sent, and is dropped per partition while
//! its token is remembered; two queries of one id do not run at once; and it may show rows late, or never.
//!
//! Must never be kinder than the server that `tests/it/protocol.rs` talks to.

use super::log::{Log, Record};
use crate::protocol::marks::{Insert, Marks, PartitionId, Progress};
use crate::source::{OffsetRange, Table};
use std::collections::{BTreeMap, BTreeSet};

/// The offsets of a batch's rows, each with its day, and of its rejects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    pub rows: Vec<(PartitionId, u64)>,
    pub rejects: Vec<u64>,
}

/// An insert that was sent and is not over.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sent {
    pub range: OffsetRange,
    pub insert: Insert,
    /// What the batch has, of which the insert is a part.
    pub content: Content,
    pub token: String,
    /// The topic id in the `source` of its rows.
    pub id: String,
    /// The member whose task waits for the answer.
    pub waiting: Option<usize>,
    /// It has reached the server, and shows in `system.processes`.
    pub begun: bool,
    /// ClickHouse partitions that are not applied yet.
    pub left: Vec<PartitionId>,
}

/// The rows, as the number of times that each offset is in each table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sink {
    raw: Vec<u8>,
    rejected: Vec<u8>,
    counted: Vec<u8>,
    ends: BTreeMap<PartitionId, u64>,
    tokens: BTreeSet<(String, PartitionId)>,
    /// Batches and tables of which a token was written down without rows.
    halved: BTreeSet<(OffsetRange, Table)>,
    /// An older state that is shown in the place of this one.
    shown: Option<Shown>,
    /// The topic id in the `source` of the rows.
    id: String,
    pub sent: Vec<Sent>,
}

/// An older state, which is shown for so many looks, or for good.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shown {
    raw: Vec<u8>,
    rejected: Vec<u8>,
    ends: BTreeMap<PartitionId, u64>,
    looks: Option<u32>,
}

impl Sink {
    pub fn new(offsets: usize) -> Sink {
        let none = vec![0; offsets];
        let (raw, rejected, counted) = (none.clone(), none.clone(), none);
        Sink {
            raw,
            rejected,
            counted,
            ends: BTreeMap::new(),
            tokens: BTreeSet::new(),
            halved: BTreeSet::new(),
            shown: None,
            id: String::new(),
            sent: Vec::new(),
        }
    }

    /// Goes on to show what it shows now, for so many looks or for good.
    pub fn hide(&mut self, looks: Option<u32>) {
        let (raw, rejected, ends) = (self.raw.clone(), self.rejected.clone(), self.ends.clone());
        self.shown = Some(Shown { raw, rejected, ends, looks });
    }

    pub fn hides(&self) -> bool {
        self.shown.is_some()
    }

    /// The tables are looked at so many times more.
    pub fn note_looks(&mut self, more: u32) {
        let Some(looks) = self.shown.as_mut().and_then(|shown| shown.looks.as_mut()) else { return };
        match looks.checked_sub(more) {
            Some(left) => *looks = left,
            None => self.shown = None,
        }
    }

    /// There are no rows.
    fn is_empty(&self) -> bool {
        [&self.raw, &self.rejected, &self.counted].iter().all(|rows| rows.iter().all(|&times| times == 0))
    }

    /// The topic ids in the `source` of the rows.
    pub fn ids(&self) -> Vec<String> {
        if self.is_empty() { Vec::new() } else { vec![self.id.clone()] }
    }

    /// Whoever asks for rows with this topic id sees those that there are.
    pub fn shows(&self, id: &str) -> bool {
        self.is_empty() || self.id == id
    }

    /// An insert is about to store rows with another topic id than those that are there.
    pub fn is_of_two_ids(&mut self, index: usize) -> bool {
        if self.is_empty() {
            self.id.clone_from(&self.sent[index].id);
        }
        self.id != self.sent[index].id
    }

    fn raw(&self) -> &[u8] {
        self.shown.as_ref().map_or(&self.raw, |shown| &shown.raw)
    }

    fn rejected(&self) -> &[u8] {
        self.shown.as_ref().map_or(&self.rejected, |shown| &shown.rejected)
    }

    /// A sent insert reaches the server; `false` when it is refused as its query id is running.
    pub fn begin(&mut self, index: usize) -> bool {
        let id = |sent: &Sent| (sent.range, sent.insert.table);
        let wanted = id(&self.sent[index]);
        let free = !self.sent.iter().any(|sent| sent.begun && id(sent) == wanted);
        self.sent[index].begun = free;
        free
    }

    /// Applies one ClickHouse partition of a begun insert, unless its token is remembered.
    pub fn apply(&mut self, index: usize, partition: usize) {
        let sent = &mut self.sent[index];
        let partition = sent.left.remove(partition);
        let (range, table, token) = (sent.range, sent.insert.table, sent.token.clone());
        if !token.is_empty() && !self.tokens.insert((token, partition)) {
            return;
        }
        let Content { rows, rejects } = &self.sent[index].content;
        match table {
            Table::Raw => {
                rows.iter().filter(|(day, _)| *day == partition).for_each(|(_, at)| self.raw[*at as usize] += 1)
            }
            Table::Daily => {
                rows.iter()
                    .filter(|(day, _)| day / 100 == partition)
                    .for_each(|(_, at)| self.counted[*at as usize] += 1);
                let end = self.ends.entry(partition).or_default();
                *end = range.end.max(*end);
            }
            Table::Rejected => rejects.iter().for_each(|at| self.rejected[*at as usize] += 1),
        }
    }

    /// The server dies: what had begun stays as far as it came. `halfway`: the tokens of the ClickHouse partitions that came next
    /// are written down, their rows are not.
    pub fn kill(&mut self, halfway: bool) -> Vec<usize> {
        let halved: Vec<Sent> = self.sent.iter().filter(|sent| halfway && self.can_be_halved(sent)).cloned().collect();
        for sent in halved {
            self.tokens.extend(sent.left.first().map(|partition| (sent.token, *partition)));
            self.halved.insert((sent.range, sent.insert.table));
        }
        let waiting = self.sent.iter().filter(|sent| sent.begun).filter_map(|sent| sent.waiting).collect();
        self.sent.retain(|sent| !sent.begun);
        waiting
    }

    pub fn may_die_halfway(&self) -> bool {
        self.sent.iter().any(|sent| self.can_be_halved(sent))
    }

    fn can_be_halved(&self, sent: &Sent) -> bool {
        let is_first = !self.halved.contains(&(sent.range, sent.insert.table));
        sent.begun && !sent.left.is_empty() && !sent.token.is_empty() && is_first
    }

    pub fn forget_tokens(&mut self) {
        self.tokens.clear();
    }

    pub fn is_running(&self, range: OffsetRange) -> bool {
        self.sent.iter().any(|sent| sent.begun && sent.range == range)
    }

    pub fn raw_marks(&self, range: OffsetRange, log: &Log, marks: &mut Marks) {
        for offset in range.start..range.end {
            if let (Record::Event { day }, rows @ 1..) = (log.record(offset), self.raw()[offset as usize]) {
                *marks.raw.entry(day).or_default() += u64::from(rows);
            }
        }
    }

    pub fn daily_marks(&self, marks: &mut Marks) {
        marks.daily = self.ends();
    }

    pub fn rejected_marks(&self, range: OffsetRange, marks: &mut Marks) {
        marks.rejected = (range.start..range.end).map(|offset| u64::from(self.rejected()[offset as usize])).sum();
    }

    pub fn ends(&self) -> BTreeMap<PartitionId, u64> {
        self.shown.as_ref().map_or(&self.ends, |shown| &shown.ends).clone()
    }

    /// How far the source has come, with the counters' ends as they were read a moment ago.
    pub fn progress(&self, from: u64, ends: &BTreeMap<PartitionId, u64>, log: &Log) -> Progress {
        let is_counted = |offset: u64| match log.record(offset) {
            Record::Event { day } => ends.get(&(day / 100)).is_some_and(|&end| offset < end),
            _ => true,
        };
        let all = self.raw.len() as u64;
        let counted_end = ends.values().max().copied();
        let stored = |rows: &[u8], offset: &u64| rows[*offset as usize] > 0;
        let uncounted = (from..counted_end.unwrap_or(0)).find(|o| stored(self.raw(), o) && !is_counted(*o));
        let from = from.max(counted_end.unwrap_or(0));
        let first_raw = (from..all).find(|offset| stored(self.raw(), offset)).unwrap_or(all);
        let rejected_end = (from..first_raw).rfind(|offset| stored(self.rejected(), offset)).map(|offset| offset + 1);
        let is_stored = |offset: &u64| stored(self.raw(), offset) || stored(self.rejected(), offset);
        let stored_end = (from..all).rfind(is_stored).map(|offset| offset + 1);
        Progress { counted_end, uncounted, rejected_end, stored_end }
    }

    /// An offset that is in a table more often than so many times.
    pub fn more_than(&self, times_max: u8) -> Option<String> {
        let tables = [("email_events", &self.raw), ("rejected_events", &self.rejected), ("daily", &self.counted)];
        tables.iter().find_map(|(table, times)| {
            let at = times.iter().position(|&times| times > times_max)?;
            Some(format!("{at} is {} times in {table}", times[at]))
        })
    }

    /// A record below `end` that is missing in a table.
    pub fn missing_below(&self, end: u64, log: &Log) -> Option<String> {
        (0..end).find_map(|offset| {
            let at = offset as usize;
            let table = match log.record(offset) {
                Record::Event { .. } if self.raw[at] == 0 => "email_events",
                Record::Event { .. } if self.counted[at] == 0 => "daily",
                Record::Broken if self.rejected[at] == 0 => "rejected_events",
                _ => return None,
            };
            Some(format!("{offset} is not in {table}"))
        })
    }
}
