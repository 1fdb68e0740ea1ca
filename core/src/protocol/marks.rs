//! The marks show which batches are applied, and which parts of one are missing. They are read from the rows in ClickHouse.
//!
//! Every row carries its origin, in the same part as the data: `source_offset` in raw, rejected and lifecycle rows, `end_offset` in
//! counters and lifecycle rows. ClickHouse applies an insert atomically per ClickHouse partition, so each (table, partition) of a batch is applied
//! whole or not at all. Anything between is a conflict and must never be "repaired" by guessing.

use crate::guard::{self, Guard};
use crate::protocol::intent::Counts;
use crate::source::{OffsetRange, Table};
use std::collections::BTreeMap;

/// A ClickHouse partition: `yyyymmdd` for `email_events`, `yyyymm` for `daily`, 0 for `rejected_events` and `campaign_lifecycle`.
pub type PartitionId = u32;

/// Rows that one batch must leave in the tables once it is applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Expected {
    /// Number of rows of `email_events`, by day.
    pub raw: BTreeMap<PartitionId, u64>,
    /// Months of `daily` that have counters.
    pub daily: Vec<PartitionId>,
    /// Number of rows of `rejected_events`.
    pub rejected: u64,
    /// Number of rows of `campaign_lifecycle`. A batch of a lifecycle topic has neither rows of `email_events` nor counters.
    pub lifecycle: u64,
}

impl Expected {
    /// Returns the number of rows for valid records.
    pub fn rows(&self) -> u64 {
        self.raw.values().sum::<u64>() + self.lifecycle
    }

    /// True if the batch leaves no rows: its offsets hold no records.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0 && self.rejected == 0
    }

    /// Returns every insert that the batch needs, in order: a table and its ClickHouse partitions.
    pub fn inserts(&self) -> Vec<Insert> {
        let whole = |rows: u64| if rows > 0 { vec![0] } else { vec![] };
        let raw = self.raw.keys().copied().collect();
        in_order(raw, whole(self.rejected), whole(self.lifecycle), self.daily.clone())
    }
}

/// One insert: the rows of one batch for these ClickHouse partitions of this table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Insert {
    /// Table to insert into.
    pub table: Table,
    /// ClickHouse partitions of the table; never empty.
    pub partitions: Vec<PartitionId>,
}

/// Rows that the tables hold of one batch's offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marks {
    /// Number of rows of `email_events` with an offset in the range, by day.
    pub raw: BTreeMap<PartitionId, u64>,
    /// Offset of the last one of these rows, by day.
    pub last_rows: BTreeMap<PartitionId, u64>,
    /// Greatest `end_offset` in `daily`, by month. It covers only the batch's months, and only ends that lie after the batch's
    /// start.
    pub daily: BTreeMap<PartitionId, u64>,
    /// Number of rows of `rejected_events` with an offset in the range.
    pub rejected: u64,
    /// Number of rows of `campaign_lifecycle` with an offset in the range.
    pub lifecycle: u64,
    /// A TTL removes rows of `email_events` of days before this one, sooner or later. It is 0 without a TTL.
    pub expired_before: PartitionId,
}

impl Marks {
    /// Returns the numbers of rows and rejects that the tables hold of the batch.
    pub fn counts(&self) -> Counts {
        Counts { rows: self.raw.values().sum::<u64>() + self.lifecycle, rejects: self.rejected }
    }

    /// True if nothing of a batch is applied: no row, no reject, and no counter that ends after its start.
    pub fn show_nothing(&self, range: OffsetRange) -> bool {
        self.counts().records() == 0 && self.daily.values().all(|&end| end <= range.start)
    }

    /// True if each row is counted: the counters of its month end after it.
    pub fn are_counted(&self) -> bool {
        self.last_rows.iter().all(|(day, &last)| self.daily.get(&(day / 100)).is_some_and(|&end| end > last))
    }

    /// True if a batch is applied of which only the counts are known. Then all its rows are there, and so are the counters of
    /// each of its months.
    pub fn show_applied(&self, range: OffsetRange, counts: Counts) -> bool {
        let counted = |day: &PartitionId| self.daily.get(&(day / 100)).is_some_and(|&end| end >= range.end);
        self.counts() == counts && self.raw.keys().all(counted)
    }
}

/// Content of the tables that no order of Tallyhouse's inserts leaves.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conflict {
    /// Table in which it was found.
    pub table: Table,
    /// ClickHouse partition in which it was found.
    pub partition: PartitionId,
    /// Number of rows that the batch has there.
    pub expected: u64,
    /// Number of rows found there.
    pub found: u64,
}

/// Returns the inserts of a batch that are still missing.
///
/// # Errors
/// Returns a [`Conflict`] if a ClickHouse partition holds some of the batch's rows but not all.
pub fn missing(expected: &Expected, range: OffsetRange, marks: &Marks) -> Result<Vec<Insert>, Conflict> {
    if !guard::is_on(Guard::Mark) {
        return Ok(expected.inserts());
    }
    let mut raw = Vec::new();
    // Rows that a TTL removes show no mark. The member would otherwise repeat their insert without end.
    let is_kept = |day: PartitionId| day >= marks.expired_before || !guard::is_on(Guard::Expired);
    for (&day, &rows) in expected.raw.iter().filter(|&(&day, _)| is_kept(day)) {
        if !applied(Table::Raw, day, rows, marks.raw.get(&day).copied().unwrap_or(0))? {
            raw.push(day);
        }
    }
    if let Some((&day, &found)) = marks.raw.iter().find(|(day, _)| !expected.raw.contains_key(day)) {
        return Err(Conflict { table: Table::Raw, partition: day, expected: 0, found });
    }
    let unmarked = |month: &&PartitionId| marks.daily.get(month).is_none_or(|&end| end < range.end);
    let daily = expected.daily.iter().filter(unmarked).copied().collect();
    let whole = |table, expected, found| Ok(if applied(table, 0, expected, found)? { vec![] } else { vec![0] });
    let rejected = whole(Table::Rejected, expected.rejected, marks.rejected)?;
    let lifecycle = whole(Table::Lifecycle, expected.lifecycle, marks.lifecycle)?;
    Ok(in_order(raw, rejected, lifecycle, daily))
}

/// Returns the inserts that are not empty, in the order of [`Table::ALL`].
fn in_order(
    raw: Vec<PartitionId>,
    rejected: Vec<PartitionId>,
    lifecycle: Vec<PartitionId>,
    daily: Vec<PartitionId>,
) -> Vec<Insert> {
    let all = Table::ALL.into_iter().zip([raw, rejected, lifecycle, daily]);
    let mut all: Vec<Insert> = all
        .filter(|(_, partitions)| !partitions.is_empty())
        .map(|(table, partitions)| Insert { table, partitions })
        .collect();
    if !guard::is_on(Guard::CountersLast) {
        all.reverse();
    }
    all
}

fn applied(table: Table, partition: PartitionId, expected: u64, found: u64) -> Result<bool, Conflict> {
    match found {
        _ if found == expected => Ok(true),
        0 => Ok(false),
        _ => Err(Conflict { table, partition, expected, found }),
    }
}

/// Position of a source in the tables. It is read if the committed offset alone does not show it.
///
/// The rows of a lifecycle topic take the place of the counters. They are written last, in one ClickHouse partition, and each has the
/// `end_offset` of its batch. So their greatest `end_offset` proves the same as that of counters. But rejects are the first
/// insert of such a batch. They prove nothing about the rows between them, so a lifecycle topic has no `rejected_end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Progress {
    /// Greatest `end_offset` of the source in `daily`, if it lies after the requested offset. Counters are written last, so every
    /// batch that ends earlier is applied. The rows and rejects of the batch that ends there are applied too.
    pub counted_end: Option<u64>,
    /// First offset before `counted_end` of a row that is in no counter: the counters of its month end before it. Then the last
    /// insert into `daily` was applied for another month only.
    pub uncounted: Option<u64>,
    /// One past the last reject after `counted_end` and before any row. Up to there everything is applied. Rejects are written
    /// after rows, so no batch of theirs has rows before them, nor counters.
    pub rejected_end: Option<u64>,
    /// One past the last row or reject at or after both the requested offset and `counted_end`. It belongs to a batch that was
    /// half applied.
    pub stored_end: Option<u64>,
}

/// Returns the offset from which the tables have to be asked about rows. Their answer then includes the greatest mark that is
/// known to have been shown.
pub fn down_to_mark(from: u64, marked: Option<u64>) -> u64 {
    marked.map_or(from, |marked| from.min(marked.saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Stage, Stream};
    use proptest::prelude::*;

    const RANGE: OffsetRange = OffsetRange { start: 100, end: 200 };

    fn expected() -> Expected {
        let raw = [(20261031, 3), (20261101, 4)].into();
        Expected { raw, daily: vec![202610, 202611], rejected: 2, lifecycle: 0 }
    }

    #[test]
    fn nothing_applied_means_all_inserts_in_order() {
        assert_eq!(missing(&expected(), RANGE, &Marks::default()), Ok(expected().inserts()));
        let tables: Vec<_> = expected().inserts().iter().map(|i| i.table).collect();
        assert_eq!(tables, Stream::Events.tables());
        let lifecycle = Expected { lifecycle: 3, rejected: 1, ..Expected::default() };
        let inserts = missing(&lifecycle, RANGE, &Marks::default()).unwrap();
        let tables: Vec<_> = inserts.iter().map(|i| i.table).collect();
        assert_eq!(tables, Stream::Lifecycle(Stage::AudienceReady).tables());
    }

    #[test]
    fn rows_of_a_lifecycle_topic_are_all_there_or_none_is() {
        let expected = Expected { lifecycle: 3, rejected: 1, ..Expected::default() };
        let found = |lifecycle| Marks { lifecycle, rejected: 1, ..Marks::default() };
        assert_eq!(missing(&expected, RANGE, &found(3)), Ok(Vec::new()));
        assert!(found(3).show_applied(RANGE, Counts { rows: 3, rejects: 1 }) && !found(3).show_nothing(RANGE));
        let left = missing(&expected, RANGE, &found(0)).unwrap();
        assert_eq!(left, [Insert { table: Table::Lifecycle, partitions: vec![0] }]);
        assert_eq!(missing(&expected, RANGE, &found(2)).unwrap_err().table, Table::Lifecycle);
    }

    #[test]
    fn a_partition_with_some_of_the_rows_or_with_rows_of_another_day_is_a_conflict() {
        let some = Marks { raw: [(20261031, 2)].into(), ..Marks::default() };
        assert_eq!(missing(&expected(), RANGE, &some).unwrap_err().found, 2);
        let twice = Marks { rejected: 4, ..Marks::default() };
        assert_eq!(missing(&expected(), RANGE, &twice).unwrap_err().table, Table::Rejected);
        let stray = Marks { raw: [(20261105, 1)].into(), ..Marks::default() };
        assert_eq!(missing(&expected(), RANGE, &stray).unwrap_err().partition, 20261105);
    }

    #[test]
    fn an_expired_day_is_never_missing_nor_a_conflict() {
        for found in [0, 2, 3] {
            let raw = [(20261031, found), (20261101, 4)].into();
            let marks = Marks { raw, expired_before: 20261101, ..Marks::default() };
            let tables: Vec<_> =
                missing(&expected(), RANGE, &marks).unwrap().iter().map(|insert| insert.table).collect();
            assert_eq!(tables, [Table::Rejected, Table::Daily], "{found} rows");
        }
    }

    proptest! {
        /// For every subset of (table, partition) that is applied, exactly the rest is missing.
        #[test]
        fn exactly_what_is_not_applied_is_missing(applied in proptest::collection::vec(any::<bool>(), 5), later in 0u64..3) {
            let mut marks = Marks::default();
            if applied[0] { marks.raw.insert(20261031, 3); }
            if applied[1] { marks.raw.insert(20261101, 4); }
            marks.daily.insert(202610, if applied[2] { RANGE.end + later } else { RANGE.start });
            if applied[3] { marks.daily.insert(202611, RANGE.end + later); }
            if applied[4] { marks.rejected = 2; }
            let left: Vec<_> = missing(&expected(), RANGE, &marks).unwrap().into_iter()
                .flat_map(|i| i.partitions.into_iter().map(move |p| (i.table, p))).collect();
            let all = [(Table::Raw, 20261031), (Table::Raw, 20261101), (Table::Rejected, 0), (Table::Daily, 202610), (Table::Daily, 202611)];
            let done = [applied[0], applied[1], applied[4], applied[2], applied[3]];
            let wanted: Vec<_> = all.into_iter().zip(done).filter(|(_, done)| !done).map(|(part, _)| part).collect();
            prop_assert_eq!(left, wanted);
        }
    }
}
