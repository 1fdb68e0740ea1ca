//! A fake of one source's rows in ClickHouse, with the habits of the real server. An insert applies one ClickHouse partition
//! after the other, continues after its sender is gone, and may begin long after it was sent. It is dropped per partition while
//! its token is remembered. Two queries of one id do not run at once. The server may show rows late, or never, or an older state.
//! A restored backup takes rows away, and so does a TTL.
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
    /// Content of the batch of which the insert is a part.
    pub content: Content,
    pub token: String,
    /// The topic id in the `source` of its rows.
    pub id: String,
    /// The member whose task waits for the answer.
    pub waiting: Option<usize>,
    /// True if it has reached the server, and shows in `system.processes`.
    pub begun: bool,
    /// ClickHouse partitions that are not applied yet.
    pub left: Vec<PartitionId>,
}

/// The rows, as the number of times that each offset is in each table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rows {
    raw: Vec<u8>,
    rejected: Vec<u8>,
    counted: Vec<u8>,
    /// The ends of the batches that have counters in each month.
    ends: BTreeMap<PartitionId, BTreeSet<u64>>,
}

/// One source's rows in ClickHouse.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sink {
    rows: Rows,
    tokens: BTreeSet<(String, PartitionId)>,
    /// Batches and tables of which a token was stored without rows.
    halved: BTreeSet<(OffsetRange, Table)>,
    /// Other rows that are shown in place of these, for this number of looks; permanently if it is `None`.
    shown: Option<(Rows, Option<u32>)>,
    /// A TTL takes away rows of `email_events` of days before this one, sooner or later.
    expired_before: PartitionId,
    /// The TTL has taken away the rows of days before this one, and takes new ones away at once.
    removed_before: PartitionId,
    /// True if a backup was restored: rows that were shown are gone.
    pub restored: bool,
    /// True if it has shown other rows than there are.
    pub has_hidden: bool,
    /// True if tokens of rows were forgotten.
    pub has_forgotten: bool,
    /// For a while, inserts of batches with more records than this are refused.
    pub records_max: Option<u64>,
    /// The topic id in the `source` of the rows.
    id: String,
    pub sent: Vec<Sent>,
}

impl Rows {
    /// Returns the rows as they were before anything at or after this end of a batch was inserted.
    fn as_of(&self, end: u64) -> Rows {
        let mut rows = self.clone();
        for table in [&mut rows.raw, &mut rows.rejected, &mut rows.counted] {
            table.iter_mut().skip(end as usize).for_each(|times| *times = 0);
        }
        rows.ends.values_mut().for_each(|ends| ends.retain(|&known| known <= end));
        rows.ends.retain(|_, ends| !ends.is_empty());
        rows
    }
}

impl Sink {
    pub fn new(offsets: usize) -> Sink {
        let none = vec![0; offsets];
        let (raw, rejected, counted) = (none.clone(), none.clone(), none);
        Sink {
            rows: Rows { raw, rejected, counted, ends: BTreeMap::new() },
            tokens: BTreeSet::new(),
            halved: BTreeSet::new(),
            shown: None,
            records_max: None,
            id: String::new(),
            expired_before: 0,
            removed_before: 0,
            restored: false,
            has_hidden: false,
            has_forgotten: false,
            sent: Vec::new(),
        }
    }

    /// Continues to show the present rows for `looks` looks, or permanently.
    pub fn hide(&mut self, looks: Option<u32>) {
        self.show(self.rows.clone(), looks);
    }

    /// Shows no rows of one table, as with a row policy on it.
    pub fn hide_table(&mut self, table: Table, looks: Option<u32>) {
        let mut rows = self.rows.clone();
        match table {
            Table::Raw => rows.raw.fill(0),
            Table::Rejected => rows.rejected.fill(0),
            Table::Daily => rows.ends.clear(),
        }
        self.show(rows, looks);
    }

    /// Shows an older state, as a cache does, or a replica that lags.
    pub fn show_old(&mut self, end: u64, looks: Option<u32>) {
        self.show(self.rows.as_of(end), looks);
    }

    fn show(&mut self, rows: Rows, looks: Option<u32>) {
        self.shown = Some((rows, looks));
        self.has_hidden = true;
    }

    pub fn hides(&self) -> bool {
        self.shown.is_some()
    }

    /// Returns older states that lack counters of this one: the one before the last batch with counters, and the empty one.
    pub fn older(&self) -> Vec<u64> {
        let ends: BTreeSet<u64> = self.rows.ends.values().flatten().copied().collect();
        let before_last = ends.iter().rev().nth(1).copied().filter(|&end| end > 0);
        if ends.is_empty() { Vec::new() } else { before_last.into_iter().chain([0]).collect() }
    }

    /// True if a token was once stored without its rows.
    pub fn has_halved(&self) -> bool {
        !self.halved.is_empty()
    }

    /// Restores a backup, or loses all parts after this end. The tokens may be kept.
    pub fn restore(&mut self, end: u64, keeps_tokens: bool) {
        self.rows = self.rows.as_of(end);
        (self.shown, self.restored) = (None, true);
        if !keeps_tokens {
            self.forget_tokens();
        }
    }

    /// Returns the first day that the TTL has not reached.
    pub fn expired_before(&self) -> PartitionId {
        self.expired_before
    }

    /// Lets the TTL reach the days before this one.
    pub fn age(&mut self, day: PartitionId) {
        self.expired_before = day;
    }

    /// True if rows that the TTL has reached are still there.
    pub fn may_remove_expired(&self) -> bool {
        self.removed_before < self.expired_before
    }

    /// Lets the TTL remove the rows that it has reached.
    pub fn remove_expired(&mut self, log: &Log) {
        self.removed_before = self.expired_before;
        for (at, times) in self.rows.raw.iter_mut().enumerate() {
            if matches!(log.record(at as u64), Record::Event { day } if day < self.removed_before) {
                *times = 0;
            }
        }
    }

    /// Counts `more` further looks at the tables.
    pub fn note_looks(&mut self, more: u32) {
        let Some(looks) = self.shown.as_mut().and_then(|(_, looks)| looks.as_mut()) else { return };
        match looks.checked_sub(more) {
            Some(left) => *looks = left,
            None => self.shown = None,
        }
    }

    /// True if the insert is refused for its size.
    pub fn refuses(&self, index: usize) -> bool {
        let Content { rows, rejects } = &self.sent[index].content;
        self.records_max.is_some_and(|most| (rows.len() + rejects.len()) as u64 > most)
    }

    /// True if there are no rows.
    fn is_empty(&self) -> bool {
        let Rows { raw, rejected, counted, .. } = &self.rows;
        [raw, rejected, counted].iter().all(|rows| rows.iter().all(|&times| times == 0))
    }

    /// Returns the topic ids in the `source` of the rows.
    pub fn ids(&self) -> Vec<String> {
        if self.is_empty() { Vec::new() } else { vec![self.id.clone()] }
    }

    /// True if a member that reads rows with this topic id sees the existing rows.
    pub fn shows(&self, id: &str) -> bool {
        self.is_empty() || self.id == id
    }

    /// True if an insert is about to store rows with another topic id than that of the existing rows.
    pub fn is_of_two_ids(&mut self, index: usize) -> bool {
        if self.is_empty() {
            self.id.clone_from(&self.sent[index].id);
        }
        self.id != self.sent[index].id
    }

    fn shown(&self) -> &Rows {
        self.shown.as_ref().map_or(&self.rows, |(rows, _)| rows)
    }

    /// Lets a sent insert reach the server. Returns `false` if the server refuses it because its query id is running.
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
                if partition < self.removed_before {
                    return;
                }
                rows.iter().filter(|(day, _)| *day == partition).for_each(|(_, at)| self.rows.raw[*at as usize] += 1)
            }
            Table::Daily => {
                rows.iter()
                    .filter(|(day, _)| day / 100 == partition)
                    .for_each(|(_, at)| self.rows.counted[*at as usize] += 1);
                self.rows.ends.entry(partition).or_default().insert(range.end);
            }
            Table::Rejected => rejects.iter().for_each(|at| self.rows.rejected[*at as usize] += 1),
        }
    }

    /// Kills the server. Inserts that had begun keep the part that was applied. `halfway`: the tokens of the next ClickHouse
    /// partitions are stored, their rows are not.
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
        sent.begun && !sent.left.is_empty() && !sent.token.is_empty() && is_first && !self.restored
    }

    pub fn forget_tokens(&mut self) {
        self.tokens.clear();
        self.has_forgotten = true;
    }

    pub fn is_running(&self, range: OffsetRange) -> bool {
        self.sent.iter().any(|sent| sent.begun && sent.range == range)
    }

    pub fn raw_marks(&self, range: OffsetRange, log: &Log, marks: &mut Marks) {
        marks.expired_before = self.expired_before;
        for offset in range.start..range.end {
            if let (Record::Event { day }, rows @ 1..) = (log.record(offset), self.shown().raw[offset as usize]) {
                *marks.raw.entry(day).or_default() += u64::from(rows);
            }
        }
    }

    pub fn daily_marks(&self, marks: &mut Marks) {
        marks.daily = self.ends();
    }

    pub fn rejected_marks(&self, range: OffsetRange, marks: &mut Marks) {
        marks.rejected = (range.start..range.end).map(|offset| u64::from(self.shown().rejected[offset as usize])).sum();
    }

    pub fn ends(&self) -> BTreeMap<PartitionId, u64> {
        let greatest = |(month, ends): (&PartitionId, &BTreeSet<u64>)| Some((*month, *ends.last()?));
        self.shown().ends.iter().filter_map(greatest).collect()
    }

    /// Returns the position of the source, with the counters' ends as they were read a moment ago.
    pub fn progress(&self, from: u64, ends: &BTreeMap<PartitionId, u64>, log: &Log) -> Progress {
        let is_counted = |offset: u64| match log.record(offset) {
            Record::Event { day } => ends.get(&(day / 100)).is_some_and(|&end| offset < end),
            _ => true,
        };
        let shown = self.shown();
        let all = shown.raw.len() as u64;
        let counted_end = ends.values().max().copied();
        let stored = |rows: &[u8], offset: &u64| rows[*offset as usize] > 0;
        let uncounted = (from..counted_end.unwrap_or(0)).find(|o| stored(&shown.raw, o) && !is_counted(*o));
        let from = from.max(counted_end.unwrap_or(0));
        let first_raw = (from..all).find(|offset| stored(&shown.raw, offset)).unwrap_or(all);
        let rejected_end = (from..first_raw).rfind(|offset| stored(&shown.rejected, offset)).map(|offset| offset + 1);
        let is_stored = |offset: &u64| stored(&shown.raw, offset) || stored(&shown.rejected, offset);
        let stored_end = (from..all).rfind(is_stored).map(|offset| offset + 1);
        Progress { counted_end, uncounted, rejected_end, stored_end }
    }

    /// Returns an offset that is in a table more than `times_max` times.
    pub fn more_than(&self, times_max: u8) -> Option<String> {
        let Rows { raw, rejected, counted, .. } = &self.rows;
        let tables = [("email_events", raw), ("rejected_events", rejected), ("daily", counted)];
        tables.iter().find_map(|(table, times)| {
            let at = times.iter().position(|&times| times > times_max)?;
            Some(format!("{at} is {} times in {table}", times[at]))
        })
    }

    /// Returns a record below `end` that is missing in a table, and that no TTL has reached.
    pub fn missing_below(&self, end: u64, log: &Log) -> Option<String> {
        (0..end).find_map(|offset| {
            let at = offset as usize;
            let table = match log.record(offset) {
                Record::Event { day } if self.rows.raw[at] == 0 && day >= self.expired_before => "email_events",
                Record::Event { .. } if self.rows.counted[at] == 0 => "daily",
                Record::Broken if self.rows.rejected[at] == 0 => "rejected_events",
                _ => return None,
            };
            Some(format!("{offset} is not in {table}"))
        })
    }
}
