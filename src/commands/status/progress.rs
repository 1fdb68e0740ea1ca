//! Compares looks that follow each other: which partitions move, and for how long one has not. Pure.
//!
//! One look shows a lag, which a healthy partition has as well until its next flush. A partition stands still only
//! under two conditions. Records that can be read have waited for longer than a flush and [`GRACE`], and nothing was
//! committed or announced in that time.

use super::{Standing, Status};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use tallyhouse_core::source::OffsetRange;

/// Time for an insert and its commits, a restart or a rebalance, beside the time in which a partition flushes.
pub const GRACE: Duration = Duration::from_secs(10);

/// The looks of one command at one partition, up to the last.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Motion {
    /// Time for which records have waited while neither the committed offset nor the announced batch changed.
    pub unmoved: Duration,
    /// True if an earlier look saw it move, or with nothing to do.
    pub was_well: bool,
}

/// The verdict on a partition's looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// No records wait in the partition.
    Idle,
    /// Records wait, and the partition moved or had nothing to do within the time that it may take.
    Moves,
    /// Records wait, and the looks do not lie far enough apart.
    NotJudged,
    /// Records have waited for longer than the partition may take, and nothing was committed or announced.
    StandsStill,
}

impl Standing {
    /// Judges the partition, if it may take this long to move.
    pub fn progress(&self, patience: Duration) -> Progress {
        let Motion { unmoved, was_well } = self.motion;
        match self.waits() {
            false => Progress::Idle,
            true if unmoved >= patience => Progress::StandsStill,
            true if was_well => Progress::Moves,
            true => Progress::NotJudged,
        }
    }

    /// True if a member has something to do for the partition.
    fn waits(&self) -> bool {
        self.intent.is_some() || self.lag() > 0
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    committed: Option<u64>,
    intent: Option<OffsetRange>,
    /// True if something waited when the time began.
    waited: bool,
    since: Duration,
    motion: Motion,
}

/// The looks of one command at each partition.
#[derive(Debug, Default)]
pub struct History(BTreeMap<i32, Entry>);

impl History {
    /// Notes a look and gives each of its partitions its motion. Both times are since the command began. A partition
    /// was seen at some moment between them, so that time is counted from a look's end to another's beginning.
    pub fn note(&mut self, status: &mut Status, begun: Duration, ended: Duration) {
        for partition in status.partitions.iter_mut().flatten() {
            let Ok(standing) = &mut partition.seen else { continue };
            let known = self.0.get(&partition.number).copied();
            let entry = match known {
                Some(known) if known.goes_on(standing) => {
                    Entry { motion: Motion { unmoved: begun.saturating_sub(known.since), ..known.motion }, ..known }
                }
                known => Entry {
                    committed: standing.committed,
                    intent: standing.intent,
                    waited: standing.waits(),
                    since: ended,
                    motion: Motion { was_well: known.is_some(), unmoved: Duration::ZERO },
                },
            };
            standing.motion = entry.motion;
            self.0.insert(partition.number, entry);
        }
    }
}

impl Entry {
    /// True if the time goes on. It begins again when the partition has moved, and with the first record after
    /// nothing has waited.
    fn goes_on(&self, standing: &Standing) -> bool {
        let unmoved = (self.committed, self.intent) == (standing.committed, standing.intent);
        unmoved && (self.waited || !standing.waits())
    }
}
