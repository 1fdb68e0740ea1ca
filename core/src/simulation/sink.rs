//! A fake of one source's rows in ClickHouse, with the habits of the real server. The server may show rows late, or never, or an
//! older state. A restored backup takes rows away, and so does a TTL. Of two replicas each shows what it has fetched.
//! [`super::server`] has the inserts and their tokens.
//!
//! Must never be kinder than the server that `tests/it/protocol.rs` talks to.

use super::log::{Log, Record};
use crate::protocol::marks::{Marks, PartitionId, Progress};
use crate::source::{OffsetRange, Table};
use crate::stream::Stream;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// The offsets of a batch's rows, each with its day, and of its rejects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Content {
    pub rows: Vec<(PartitionId, u64)>,
    pub rejects: Vec<u64>,
}

/// The rows, as the number of times that each offset is in each table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rows {
    /// Rows of `email_events`, or of `campaign_lifecycle`.
    raw: Vec<u8>,
    rejected: Vec<u8>,
    counted: Vec<u8>,
    /// The ends of the batches that have counters in each month, or rows in `campaign_lifecycle`.
    ends: BTreeMap<PartitionId, BTreeSet<u64>>,
}

/// One source's rows in ClickHouse.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sink {
    stream: Stream,
    rows: Rows,
    /// The rows that each replica has fetched; empty if there is only one server.
    replicas: Vec<Rows>,
    /// The replica that is asked.
    asked: usize,
    /// Rows that one replica shows and takes away later, as no other replica has them: an insert that gave up on Keeper.
    phantoms: Vec<(usize, Table, PartitionId, OffsetRange, Content)>,
    /// Batches and tables of which a token was stored without rows.
    halved: BTreeSet<(OffsetRange, Table)>,
    /// Other rows that are shown in place of these, for this number of looks; permanently if it is `None`.
    shown: Option<(Rows, Option<u32>)>,
    /// A TTL takes away rows of `email_events` of days before this one, sooner or later.
    expired_before: PartitionId,
    /// The TTL has taken away the rows of days before this one, and takes new ones away at once.
    removed_before: PartitionId,
    /// Number of times that rows were lost with the only replica that had them.
    pub lost: u32,
    /// True from a loss of tokens until no older insert can arrive.
    pub quarantined: bool,
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
}

impl Rows {
    /// Adds the rows of one ClickHouse partition of an insert.
    fn add(&mut self, table: Table, partition: PartitionId, range: OffsetRange, content: &Content) {
        let Content { rows, rejects } = content;
        match table {
            Table::Raw => {
                rows.iter().filter(|(day, _)| *day == partition).for_each(|(_, at)| self.raw[*at as usize] += 1);
            }
            Table::Daily => {
                rows.iter()
                    .filter(|(day, _)| day / 100 == partition)
                    .for_each(|(_, at)| self.counted[*at as usize] += 1);
                self.ends.entry(partition).or_default().insert(range.end);
            }
            Table::Rejected => rejects.iter().for_each(|at| self.rejected[*at as usize] += 1),
            Table::Lifecycle => {
                rows.iter().for_each(|(_, at)| self.raw[*at as usize] += 1);
                self.ends.entry(partition).or_default().insert(range.end);
            }
        }
    }

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
    pub fn new(stream: Stream, offsets: usize, replicas: usize) -> Sink {
        let none = vec![0; offsets];
        let (raw, rejected, counted) = (none.clone(), none.clone(), none);
        let rows = Rows { raw, rejected, counted, ends: BTreeMap::new() };
        Sink {
            stream,
            replicas: vec![rows.clone(); replicas],
            asked: 0,
            phantoms: Vec::new(),
            rows,
            halved: BTreeSet::new(),
            shown: None,
            records_max: None,
            id: String::new(),
            expired_before: 0,
            removed_before: 0,
            lost: 0,
            quarantined: false,
            restored: false,
            has_hidden: false,
            has_forgotten: false,
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
            Table::Lifecycle => {
                rows.raw.fill(0);
                rows.ends.clear();
            }
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

    /// Restores a backup, or loses all parts after this end.
    pub fn restore(&mut self, end: u64) {
        self.rows = self.rows.as_of(end);
        self.replicas.fill(self.rows.clone());
        self.phantoms.clear();
        (self.shown, self.restored) = (None, true);
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
        for rows in std::iter::once(&mut self.rows).chain(&mut self.replicas) {
            for (at, times) in rows.raw.iter_mut().enumerate() {
                if matches!(log.record(at as u64), Record::Event { day } if day < self.removed_before) {
                    *times = 0;
                }
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
    pub fn is_of_two_ids(&mut self, id: &str) -> bool {
        if self.is_empty() {
            id.clone_into(&mut self.id);
        }
        self.id != id
    }

    fn shown(&self) -> Cow<'_, Rows> {
        if let Some((rows, _)) = &self.shown {
            return Cow::Borrowed(rows);
        }
        let mut rows = Cow::Borrowed(self.replicas.get(self.asked).unwrap_or(&self.rows));
        for (replica, table, partition, range, content) in &self.phantoms {
            if *replica == self.asked {
                rows.to_mut().add(*table, *partition, *range, content);
            }
        }
        rows
    }

    /// The next reads ask this replica.
    pub fn ask(&mut self, replica: usize) {
        self.asked = replica;
    }

    /// True if a replica has not fetched everything.
    pub fn lags(&self, replica: usize) -> bool {
        self.replicas.get(replica).is_some_and(|rows| *rows != self.rows)
    }

    /// A replica fetches everything that the shard has.
    pub fn fetch(&mut self, replica: usize) {
        self.replicas.get_mut(replica).into_iter().for_each(|rows| rows.clone_from(&self.rows));
    }

    /// Loses the disk of a replica, which begins again with what the other one has. Returns true if rows are gone.
    pub fn lose(&mut self, replica: usize) -> bool {
        let other = self.replicas[(replica + 1) % self.replicas.len()].clone();
        let is_lost = other != self.rows;
        self.lost += u32::from(is_lost);
        self.restored |= is_lost;
        self.rows = other;
        self.fetch(replica);
        is_lost
    }

    /// An insert gives up on Keeper. Its replica shows the rows of one ClickHouse partition for a while.
    pub fn pretend(
        &mut self,
        replica: usize,
        table: Table,
        partition: PartitionId,
        range: OffsetRange,
        content: &Content,
    ) {
        self.phantoms.push((replica, table, partition, range, content.clone()));
    }

    /// True if a replica shows rows that it will take away.
    pub fn has_phantoms(&self) -> bool {
        !self.phantoms.is_empty()
    }

    /// Takes away the rows that only one replica shows.
    pub fn vanish(&mut self) {
        self.phantoms.clear();
    }

    /// Applies the rows of one ClickHouse partition of an insert on this replica.
    pub fn apply(
        &mut self,
        replica: usize,
        table: Table,
        partition: PartitionId,
        range: OffsetRange,
        content: &Content,
    ) {
        if table == Table::Raw && partition < self.removed_before {
            return;
        }
        self.rows.add(table, partition, range, content);
        self.replicas.get_mut(replica).into_iter().for_each(|rows| rows.add(table, partition, range, content));
    }

    /// True if the server may die between the token and the rows of this batch and table.
    pub fn can_be_halved(&self, range: OffsetRange, table: Table) -> bool {
        !self.halved.contains(&(range, table)) && !self.restored
    }

    /// Notes that the server has died between the token and the rows of this batch and table.
    pub fn halve(&mut self, range: OffsetRange, table: Table) {
        self.halved.insert((range, table));
    }

    pub fn raw_marks(&self, range: OffsetRange, log: &Log, marks: &mut Marks) {
        marks.expired_before = self.expired_before;
        let shown = self.shown();
        if self.stream != Stream::Events {
            marks.lifecycle = (range.start..range.end).map(|offset| u64::from(shown.raw[offset as usize])).sum();
            return;
        }
        for offset in range.start..range.end {
            if let (Record::Event { day }, rows @ 1..) = (log.record(offset), shown.raw[offset as usize]) {
                *marks.raw.entry(day).or_default() += u64::from(rows);
                marks.last_rows.insert(day, offset);
            }
        }
    }

    pub fn daily_marks(&self, marks: &mut Marks) {
        // A lifecycle topic has no counters, and its marks are the number of its rows.
        if self.stream == Stream::Events {
            marks.daily = self.ends();
        }
    }

    pub fn rejected_marks(&self, range: OffsetRange, marks: &mut Marks) {
        let shown = self.shown();
        marks.rejected = (range.start..range.end).map(|offset| u64::from(shown.rejected[offset as usize])).sum();
    }

    pub fn ends(&self) -> BTreeMap<PartitionId, u64> {
        let greatest = |(month, ends): (&PartitionId, &BTreeSet<u64>)| Some((*month, *ends.last()?));
        self.shown().ends.iter().filter_map(greatest).collect()
    }

    /// Returns the position of the source, with the counters' ends as they were read a moment ago.
    pub fn progress(&self, from: u64, ends: &BTreeMap<PartitionId, u64>, log: &Log) -> Progress {
        let is_counted = |offset: u64| match log.record(offset) {
            Record::Event { day } if self.stream == Stream::Events => {
                ends.get(&(day / 100)).is_some_and(|&end| offset < end)
            }
            _ => true,
        };
        let shown = self.shown();
        let all = shown.raw.len() as u64;
        let counted_end = ends.values().max().copied();
        let stored = |rows: &[u8], offset: &u64| rows[*offset as usize] > 0;
        let uncounted = (from..counted_end.unwrap_or(0)).find(|o| stored(&shown.raw, o) && !is_counted(*o));
        let from = from.max(counted_end.unwrap_or(0));
        let first_raw = (from..all).find(|offset| stored(&shown.raw, offset)).unwrap_or(all);
        // Rejects of a lifecycle topic are written before the rows between them.
        let mut before_rows = if self.stream == Stream::Events { from..first_raw } else { 0..0 };
        let rejected_end = before_rows.rfind(|offset| stored(&shown.rejected, offset)).map(|offset| offset + 1);
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
                Record::Event { day } if self.rows.raw[at] == 0 && day >= self.expired_before => {
                    self.stream.row_table().name()
                }
                Record::Event { .. } if self.rows.counted[at] == 0 && self.stream == Stream::Events => "daily",
                Record::Broken if self.rows.rejected[at] == 0 => "rejected_events",
                _ => return None,
            };
            Some(format!("{offset} is not in {table}"))
        })
    }
}
