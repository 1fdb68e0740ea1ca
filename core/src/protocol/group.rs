//! A group is a set of batches of several partitions of one member, which one insert per table writes together.
//!
//! Each batch keeps its own protocol: its announcement, its marks and its end. The group only joins their inserts. An insert is
//! sent when every source in the group asks for one. So one insert has the rows of all of them.
//!
//! All sources of a group share a token, and nothing in ClickHouse's answer tells a dropped insert from an applied one. A source
//! that has left the group may have used the token: its next owner completes it under that token. Then ClickHouse drops the
//! group's own insert. So an acknowledgement proves the rows only while the group is whole. Otherwise each source reads its marks.
//!
//! Must never be whole again once a source has left it.

use crate::guard::{self, Guard};
use crate::protocol::marks::{Insert, PartitionId};
use crate::source::{OffsetRange, Table};
use crate::window::Limits;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// Id of a group. It is a hash of the sources and ranges of the batches, so no other set of batches has it.
pub type GroupId = Uuid;

/// The group of a batch, as the batch's announcement names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OfGroup {
    /// Id of the group.
    pub id: GroupId,
    /// Table at which the batch has left the group. Nothing of the batch is in later tables, and nobody has sent an insert of it there
    /// under the group's token. So its inserts into them have tokens of its own.
    pub left_at: Option<Table>,
}

impl OfGroup {
    /// Returns the group of a batch that is still in it.
    pub fn whole(id: GroupId) -> OfGroup {
        OfGroup { id, left_at: None }
    }

    /// True if the batch has left the group before its insert into this table.
    pub fn has_left_before(&self, table: Table) -> bool {
        self.left_at.is_some_and(|left_at| left_at < table)
    }
}

const NAMESPACE: Uuid = Uuid::from_bytes(*b"tallyhouse-group");

/// Returns the id of the group of these batches. Each is a source's name with a range, in the order of the names.
pub fn id_of<'a>(batches: impl IntoIterator<Item = (&'a str, OffsetRange)>) -> GroupId {
    let lines: String = batches.into_iter().map(|(name, range)| format!("{name} {range}\n")).collect();
    Uuid::new_v5(&NAMESPACE, lines.as_bytes())
}

/// The sources of one group, and the inserts that they ask for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Group {
    /// The sources that are in the group, by partition. A source that asks for an insert waits for the others.
    sources: BTreeMap<i32, Option<Insert>>,
    whole: bool,
}

/// One insert for several sources: each with the ClickHouse partitions that it still needs.
pub type JointInsert = Vec<(i32, Insert)>;

impl Group {
    /// Returns the group of these partitions, before any of them asks for an insert.
    pub fn new(partitions: impl IntoIterator<Item = i32>) -> Group {
        Group { sources: partitions.into_iter().map(|partition| (partition, None)).collect(), whole: true }
    }

    /// True if no source has left the group before its end was committed, and none is being revoked. Only then does an
    /// acknowledgement prove that the rows are there.
    pub fn is_whole(&self) -> bool {
        self.whole || !guard::is_on(Guard::WholeGroup)
    }

    /// True if the source is in the group.
    pub fn has(&self, partition: i32) -> bool {
        self.sources.contains_key(&partition)
    }

    /// True if no source is left in the group.
    pub fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Notes that a source asks for an insert. Returns the insert that is to be sent now, if all sources ask for one.
    pub fn ask(&mut self, partition: i32, insert: Insert) -> Option<JointInsert> {
        *self.sources.get_mut(&partition)? = Some(insert);
        self.next()
    }

    /// Notes that a source leaves the group, because its batch is committed. Returns the insert that is to be sent now.
    pub fn finish(&mut self, partition: i32) -> Option<JointInsert> {
        self.sources.remove(&partition)?;
        self.next()
    }

    /// Notes that a source leaves the group before its batch is committed. Returns the insert that is to be sent now.
    pub fn leave(&mut self, partition: i32) -> Option<JointInsert> {
        self.sources.remove(&partition)?;
        self.whole = false;
        self.next()
    }

    /// Notes that a source is being revoked. It may still commit its batch, and may be somebody else's at any moment.
    pub fn doubt(&mut self, partition: i32) {
        self.whole &= !self.has(partition);
    }

    /// Removes the sources that ask for nothing, as the others have waited for them long enough.
    pub fn leave_absent(&mut self) -> Option<JointInsert> {
        let before = self.sources.len();
        self.sources.retain(|_, asked| asked.is_some());
        self.whole &= self.sources.len() == before;
        self.next()
    }

    /// Ends the group: ClickHouse refuses an insert of it, and one source alone may be the reason.
    pub fn break_up(&mut self) {
        self.whole = false;
        self.sources.clear();
    }

    /// Returns the insert into the first table that any source asks for. The sources that ask for a later table go on waiting.
    fn next(&mut self) -> Option<JointInsert> {
        let asked: Option<Vec<Table>> = self.sources.values().map(|asked| Some(asked.as_ref()?.table)).collect();
        let table = asked?.into_iter().min()?;
        let of_table = |(&partition, asked): (&i32, &mut Option<Insert>)| {
            Some((partition, asked.take_if(|insert| insert.table == table)?))
        };
        Some(self.sources.iter_mut().filter_map(of_table).collect())
    }
}

/// Size of a batch, or of a group of batches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Days of its rows.
    pub days: BTreeSet<PartitionId>,
    /// Number of its records.
    pub records: u64,
    /// Memory that it holds, in bytes.
    pub bytes: usize,
}

impl Size {
    fn with(mut self, more: &Size) -> Size {
        self.days.extend(&more.days);
        Size { days: self.days, records: self.records + more.records, bytes: self.bytes + more.bytes }
    }

    fn is_within(&self, limits: &Limits) -> bool {
        self.days.len() <= limits.days_max && self.records <= limits.rows_max && self.bytes <= limits.bytes_max
    }
}

/// Returns the numbers of batches of the groups into which batches are cut, in their order. No group is larger than a single
/// batch may be. A batch that is larger is a group of its own.
pub fn cut(batches: &[Size], limits: &Limits) -> Vec<usize> {
    let mut groups: Vec<(usize, Size)> = Vec::new();
    for batch in batches {
        let with = |(_, size): &(usize, Size)| size.clone().with(batch);
        match groups.last().map(with).filter(|size| size.is_within(limits)).zip(groups.last_mut()) {
            Some((size, last)) => *last = (last.0 + 1, size),
            None => groups.push((1, batch.clone())),
        }
    }
    groups.into_iter().map(|(count, _)| count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn raw() -> Insert {
        Insert { table: Table::Raw, partitions: vec![20_261_031] }
    }

    fn daily() -> Insert {
        Insert { table: Table::Daily, partitions: vec![202_610] }
    }

    #[test]
    fn an_insert_is_sent_when_every_source_asks_for_one() {
        let mut group = Group::new([1, 2, 3]);
        assert_eq!((group.ask(1, raw()), group.ask(2, daily())), (None, None));
        assert_eq!(group.ask(3, raw()), Some(vec![(1, raw()), (3, raw())]), "the first table that is asked for");
        assert_eq!(group.ask(1, daily()), None, "3 has no answer yet");
        assert_eq!(group.ask(3, daily()), Some(vec![(1, daily()), (2, daily()), (3, daily())]));
        assert!(group.is_whole());
    }

    #[test]
    fn a_source_that_finishes_leaves_the_group_whole_and_one_that_leaves_does_not() {
        let mut group = Group::new([1, 2, 3]);
        group.ask(1, daily());
        assert_eq!(group.finish(2), None);
        assert!(group.is_whole());
        assert_eq!(group.leave(3), Some(vec![(1, daily())]), "nobody else is left");
        assert!(!group.is_whole());
        assert_eq!((group.leave(3), group.ask(3, raw())), (None, None), "it is not in the group any more");
        let mut group = Group::new([1]);
        group.doubt(7);
        assert!(group.is_whole(), "7 is no source of the group");
        group.doubt(1);
        assert!(!group.is_whole() && group.has(1));
    }

    #[test]
    fn nobody_waits_for_an_absent_source_for_ever() {
        let mut group = Group::new([1, 2]);
        assert_eq!(group.ask(1, raw()), None);
        assert_eq!(group.leave_absent(), Some(vec![(1, raw())]));
        assert!(!group.is_whole() && !group.has(2));
        group.break_up();
        assert_eq!(group.ask(1, raw()), None);
    }

    #[test]
    fn the_id_depends_on_each_source_and_range() {
        let range = |end| OffsetRange { start: 1, end };
        let id = id_of([("t/1", range(2)), ("t/2", range(2))]);
        assert_eq!(id, id_of([("t/1", range(2)), ("t/2", range(2))]));
        assert_ne!(id, id_of([("t/1", range(2)), ("t/2", range(3))]));
        assert_ne!(id, id_of([("t/1", range(2))]));
    }

    proptest! {
        /// Each batch is in one group, and no group is larger than allowed unless a single batch is.
        #[test]
        fn groups_are_no_larger_than_allowed(sizes in proptest::collection::vec((proptest::collection::btree_set(0u32..9, 1..4), 1u64..50, 1usize..9), 0..40)) {
            let limits = Limits { rows_max: 100, bytes_max: 20, days_max: 4 };
            let sizes: Vec<Size> = sizes.into_iter().map(|(days, records, bytes)| Size { days, records, bytes }).collect();
            let mut rest = sizes.as_slice();
            for count in cut(&sizes, &limits) {
                let (group, after) = rest.split_at(count);
                let whole = group.iter().fold(Size::default(), Size::with);
                prop_assert!(count == 1 || whole.is_within(&limits));
                let more = after.first().map(|next| whole.with(next));
                prop_assert!(more.is_none_or(|more| !more.is_within(&limits)), "cut too early");
                rest = after;
            }
            prop_assert!(rest.is_empty());
        }
    }
}
