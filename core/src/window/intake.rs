//! The intake makes the decisions of a member's reader: it begins fills, pauses partitions and resumes them.
//!
//! One rule shares the memory: a partition may hold as much as is free. So one partition that waits for a server takes half of
//! the share at most, and two take two thirds. Some is always left for the others. The records that were read of a paused
//! partition are due at once.
//!
//! A replay cannot be cut short, so it could wait for memory that only its own end frees. The oldest replay therefore has a
//! permit: it is exempt from the rule above. Small replays read side by side. When memory is short, all but the oldest give way
//! and begin again later.

use crate::guard::{self, Guard};
use std::collections::VecDeque;

/// A request to read a partition from an offset on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fill {
    /// Number of the partition to read.
    pub partition: i32,
    /// Number of the fill. No two fills have the same number.
    pub number: u64,
    /// First offset to read.
    pub from: u64,
    /// Offset at which the first window must end. With it, the fill is a replay.
    pub until: Option<u64>,
    /// Greatest number of records of the later windows, if larger batches were refused.
    pub records_max: Option<u64>,
}

impl Fill {
    /// Returns the greatest number of records of a replay.
    fn records(&self) -> u64 {
        self.until.map_or(0, |until| until.saturating_sub(self.from))
    }
}

/// The state of a partition after a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The partition continues to read.
    GoOn,
    /// The partition pauses, and its records are due.
    Pause,
    /// Its replay is dropped, and begins again when there is room.
    GiveWay,
    /// Its replay does not fit into memory, even if the other partitions hold nothing.
    TooLarge,
}

/// The decisions of one member's reader.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Intake {
    share_bytes: usize,
    records_max: u64,
    /// Fills that have not begun yet.
    waiting: VecDeque<Fill>,
    /// Replays under way, the oldest first.
    replays: Vec<Fill>,
    /// True if a replay had to give way. Then only one at a time reads, until all have read.
    is_short: bool,
}

impl Intake {
    /// Creates the intake. `share_bytes`: bytes that windows and batches may hold. `records_max`: number of records of replays
    /// that read side by side.
    pub fn new(share_bytes: usize, records_max: u64) -> Intake {
        Intake { share_bytes, records_max, waiting: VecDeque::new(), replays: Vec::new(), is_short: false }
    }

    /// Returns the most bytes that windows and batches ever hold, apart from the last record. The oldest replay may use an eighth
    /// more than the share.
    pub fn most_bytes(share_bytes: usize) -> usize {
        share_bytes + share_bytes / 8
    }

    /// Takes a task's request for a fill. It replaces an earlier request for the same partition.
    pub fn ask(&mut self, fill: Fill) {
        self.forget(fill.partition);
        self.waiting.push_back(fill);
    }

    /// Forgets a partition's fill, because nobody wants it any more.
    pub fn forget(&mut self, partition: i32) {
        self.waiting.retain(|fill| fill.partition != partition);
        self.replays.retain(|fill| fill.partition != partition);
    }

    /// Notes that a replay is whole, or was given up. The next one may have its permit.
    pub fn finish(&mut self, number: u64) {
        self.replays.retain(|fill| fill.number != number);
    }

    /// Returns the next fill that may begin, and counts it as begun.
    pub fn begin(&mut self) -> Option<Fill> {
        let fill = self.waiting.remove(self.place_of_next()?)?;
        if fill.until.is_some() {
            self.replays.push(fill);
        }
        Some(fill)
    }

    /// Returns the place of the next fill that may begin.
    fn place_of_next(&self) -> Option<usize> {
        let reading: u64 = self.replays.iter().map(Fill::records).sum();
        let has_permit = |fill: &Fill| {
            self.replays.is_empty() || !self.is_short && reading.saturating_add(fill.records()) <= self.records_max
        };
        self.waiting.iter().position(|fill| fill.until.is_none() || has_permit(fill))
    }

    /// True if a fill may begin.
    #[cfg(test)]
    pub fn can_begin(&self) -> bool {
        self.place_of_next().is_some()
    }

    /// Lets a fill that had begun begin again: it could not read, or it had to give way.
    pub fn defer(&mut self, fill: Fill) {
        self.forget(fill.partition);
        self.waiting.push_front(fill);
    }

    /// Moves the oldest replay behind another waiting one, if there is one. The oldest makes no progress, as its broker is away.
    pub fn rotate(&mut self) -> Option<Fill> {
        let other = self.waiting.iter().any(|fill| fill.until.is_some());
        let first = self.replays.first().copied().filter(|_| other)?;
        self.forget(first.partition);
        self.waiting.push_back(first);
        Some(first)
    }

    /// Returns the replays under way, the oldest first.
    pub fn replays(&self) -> &[Fill] {
        &self.replays
    }

    /// Returns the verdict on a partition that holds `held` of the `used` bytes.
    pub fn after_record(&mut self, partition: i32, held: usize, used: usize) -> Verdict {
        let place = self.replays.iter().position(|fill| fill.partition == partition);
        if place == Some(0) && guard::is_on(Guard::Permit) {
            let most = Intake::most_bytes(self.share_bytes);
            return match (held >= most, used >= most) {
                (true, _) => Verdict::TooLarge,
                (false, true) => Verdict::Pause,
                (false, false) => Verdict::GoOn,
            };
        }
        match (held >= self.bound(used), place) {
            (true, Some(_)) if guard::is_on(Guard::Permit) => {
                self.is_short = true;
                Verdict::GiveWay
            }
            (true, _) => Verdict::Pause,
            (false, _) => Verdict::GoOn,
        }
    }

    /// True if a paused partition may continue.
    pub fn may_resume(&self, partition: i32, held: usize, used: usize) -> bool {
        if self.replays.first().is_some_and(|fill| fill.partition == partition) && guard::is_on(Guard::Permit) {
            return used < self.share_bytes;
        }
        let bound = self.bound(used);
        bound > 0 && held <= bound / 2
    }

    /// Ends the shortage of room once all replays that had to wait have had their turn.
    pub fn note_room(&mut self) {
        self.is_short &= self.waiting.iter().any(|fill| fill.until.is_some());
    }

    /// Returns the number of bytes that one partition may hold.
    fn bound(&self, used: usize) -> usize {
        let free = self.share_bytes.saturating_sub(used);
        match (guard::is_on(Guard::Share), free) {
            (true, _) => free,
            (false, 0) => 0,
            (false, _) => usize::MAX,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SHARE: usize = 1_000;

    fn fill(partition: i32, records: Option<u64>) -> Fill {
        Fill {
            partition,
            number: partition as u64,
            from: 5,
            until: records.map(|records| 5 + records),
            records_max: None,
        }
    }

    fn begun(intake: &mut Intake) -> Vec<i32> {
        std::iter::from_fn(|| intake.begin()).map(|fill| fill.partition).collect()
    }

    #[test]
    fn small_replays_read_side_by_side_and_a_large_one_alone() {
        let mut intake = Intake::new(SHARE, 100);
        for (partition, records) in [(0, 60), (1, 30), (2, 5_000), (3, 10)] {
            intake.ask(fill(partition, Some(records)));
        }
        intake.ask(fill(4, None));
        assert_eq!(begun(&mut intake), [0, 1, 3, 4], "what is no replay needs no permit");
        [0, 1].into_iter().for_each(|partition| intake.forget(partition));
        assert!(begun(&mut intake).is_empty());
        intake.forget(3);
        assert_eq!(begun(&mut intake), [2], "the large one has its turn");
        assert_eq!(intake.rotate(), None, "nobody waits for it");
        intake.ask(fill(0, Some(60)));
        assert_eq!(intake.rotate().map(|fill| fill.partition), Some(2));
        assert_eq!(begun(&mut intake), [0], "the large one waits for its next turn");
    }

    #[test]
    fn the_oldest_replay_goes_on_and_the_others_give_way() {
        let mut intake = Intake::new(SHARE, 100);
        [0, 1].into_iter().for_each(|partition| intake.ask(fill(partition, Some(10))));
        assert_eq!(begun(&mut intake), [0, 1]);
        assert_eq!(intake.after_record(0, 500, 990), Verdict::GoOn);
        assert_eq!(intake.after_record(1, 490, 990), Verdict::GiveWay);
        intake.defer(fill(1, Some(10)));
        assert!(begun(&mut intake).is_empty(), "one at a time from now on");
        assert_eq!(intake.after_record(0, 1_120, 1_124), Verdict::GoOn, "an eighth is borrowed");
        assert_eq!(intake.after_record(0, 900, 1_125), Verdict::Pause, "the others have to flush first");
        assert_eq!(intake.after_record(0, 1_125, 1_125), Verdict::TooLarge);
        intake.forget(0);
        assert_eq!(begun(&mut intake), [1]);
        intake.note_room();
        intake.ask(fill(2, Some(10)));
        assert_eq!(begun(&mut intake), [2], "side by side again");
    }

    proptest! {
        /// Any partitions may take records, and any may never give memory back. All together stay below the share, apart from a
        /// record each. A partition that holds nothing can always read.
        #[test]
        fn partitions_that_wait_leave_room(records in proptest::collection::vec((0usize..6, 1usize..20), 1..600)) {
            let mut intake = Intake::new(SHARE, 0);
            let mut held = [0usize; 7];
            let mut paused = [false; 7];
            for (partition, bytes) in records {
                let used = held.iter().sum::<usize>();
                paused[partition] &= !intake.may_resume(partition as i32, held[partition], used);
                if !paused[partition] {
                    held[partition] += bytes;
                    let used = used + bytes;
                    paused[partition] = intake.after_record(partition as i32, held[partition], used) == Verdict::Pause;
                }
            }
            let used = held.iter().sum::<usize>();
            prop_assert!(used < SHARE, "{held:?}");
            prop_assert!(intake.may_resume(6, 0, used), "{held:?}");
        }
    }
}
