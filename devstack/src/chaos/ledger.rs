//! The ledger: the fate that each offset of the log must have, from Kafka's acknowledgements and from the changes to
//! the log.
//!
//! It has one byte for each offset, since a group of rounds has millions. An offset of which nothing is known must be
//! stored once too: it is a record whose acknowledgement was lost. Where transactions have left control records,
//! `verify::resolve` looks at the log and separates the two.

use std::collections::BTreeMap;
use std::ops::Range;

/// The fate that an offset must have. From 1 on, it is an event with this place in [`crate::producer::EVENT_TYPES`].
pub type Fate = u8;
/// Nobody has acknowledged it.
pub const UNKNOWN: Fate = 0;
/// The first kind of event.
pub const EVENT: Fate = 1;
/// It is stored as a reject.
pub const REJECT: Fate = 6;
/// It is not stored. It is a control record, a record of an aborted transaction, or a record that was removed before
/// it was consumed.
pub const ABSENT: Fate = 7;
/// It is stored, in any form: it is in the log, and its acknowledgement was lost.
pub const PRESENT: Fate = 8;

/// The fates of all offsets.
#[derive(Debug, Default)]
pub struct Ledger {
    partitions: BTreeMap<i32, Vec<Fate>>,
    /// Records acknowledged without an offset (the broker had them already when the producer tried again).
    pub unplaced: u64,
    /// Number of records of which it is not known if they are in the log.
    pub unknown: u64,
}

impl Ledger {
    /// Notes a fate. An absent offset stays absent: an acknowledgement can come after the record was removed.
    pub fn note(&mut self, partition: i32, offset: i64, fate: Fate) {
        let fates = self.partitions.entry(partition).or_default();
        let place = offset as usize;
        if fates.len() <= place {
            fates.resize(place + 1, UNKNOWN);
        }
        if fates[place] != ABSENT {
            fates[place] = fate;
        }
    }

    /// Notes that these are not stored.
    pub fn note_absent(&mut self, partition: i32, offsets: Range<i64>) {
        offsets.for_each(|offset| self.note(partition, offset, ABSENT));
    }

    /// Returns the partitions of which something is known.
    pub fn partitions(&self) -> impl Iterator<Item = i32> {
        self.partitions.keys().copied()
    }

    /// Returns the fates of a partition's offsets, from 0 on.
    pub fn of(&self, partition: i32) -> &[Fate] {
        self.partitions.get(&partition).map_or(&[], Vec::as_slice)
    }

    /// Returns one past the last offset of a partition of which something is known.
    pub fn end(&self, partition: i32) -> i64 {
        self.of(partition).len() as i64
    }

    /// Returns one past the last offset of a partition that is known to be stored in the end.
    pub fn stored_end(&self, partition: i32) -> i64 {
        let stored = |fate: &Fate| !matches!(*fate, UNKNOWN | ABSENT);
        self.of(partition).iter().rposition(stored).map_or(0, |place| place as i64 + 1)
    }

    /// Returns the offsets below `end` of a partition that nobody has acknowledged.
    pub fn unknown_below(&self, partition: i32, end: i64) -> Vec<i64> {
        let fates = self.of(partition);
        (0..end).filter(|&offset| fates.get(offset as usize).is_none_or(|&fate| fate == UNKNOWN)).collect()
    }

    /// Returns the number of offsets below `end` of a partition that must be stored.
    pub fn wanted_below(&self, partition: i32, end: i64) -> i64 {
        let fates = self.of(partition);
        let absent = fates.iter().take(end.max(0) as usize).filter(|&&fate| fate == ABSENT).count();
        end - absent as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_not_wanted_and_stays_absent() {
        let mut ledger = Ledger::default();
        ledger.note(1, 3, EVENT);
        ledger.note_absent(1, 4..6);
        ledger.note(1, 5, REJECT);
        assert_eq!(ledger.of(1), [UNKNOWN, UNKNOWN, UNKNOWN, EVENT, ABSENT, ABSENT]);
        assert_eq!((ledger.end(1), ledger.stored_end(1), ledger.end(0)), (6, 4, 0));
        assert_eq!((ledger.wanted_below(1, 8), ledger.wanted_below(0, 2)), (6, 2));
        assert_eq!(ledger.unknown_below(1, 7), [0, 1, 2, 6]);
    }
}
