//! The state of one partition in Kafka and in the tables, and the reaction of `tallyhouse run` to it.
//!
//! This module is pure. It does not repeat the decisions of `run`: it asks the protocol itself.

use super::{Action, Committed, LogView, Outcome, Protocol, Step};
use crate::protocol::intent::{Counts, Metadata, MetadataError};
use crate::protocol::marks::{Marks, Progress};
use crate::protocol::stop::StopReason;
use crate::source::{OffsetRange, Source};

/// One partition of the topic, as read. The tables are read before Kafka: a batch that is in the tables was then announced.
#[derive(Clone, Debug)]
pub struct Position {
    /// The partition that was read.
    pub source: Source,
    /// Position of the source in the tables.
    pub progress: Progress,
    /// State of the partition in Kafka, read after `progress`.
    pub log: LogView,
    /// First offset in `email_events` or `rejected_events`.
    pub first_stored: Option<u64>,
    /// Rows that the tables hold of the open intent's offsets, if there is one.
    pub marks: Option<Marks>,
    /// The commit that was read before `progress`.
    pub before: Before,
}

/// Facts of a commit that was read before the tables. A member may have gone on since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// Committed offset. Each row before it was counted.
    pub committed: Option<u64>,
    /// Greatest mark that the tables have shown.
    pub marked: Option<u64>,
}

impl Before {
    /// Returns the facts of the commit in a view of Kafka.
    pub fn of(log: &LogView) -> Before {
        let metadata = |committed: &Committed| Metadata::decode(&committed.metadata).ok().flatten();
        let committed = log.committed_offset();
        let marked = committed.and(log.committed.as_ref()).and_then(metadata).and_then(|metadata| metadata.marked);
        Before { committed, marked }
    }
}

/// The reaction of a member that gets the partition now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It continues. The text describes how.
    GoesOn(String),
    /// It stops the partition.
    Stops(StopReason),
}

impl Position {
    /// Returns the committed metadata, if it can be read.
    ///
    /// # Errors
    /// Returns the [`MetadataError`] that the protocol would see.
    pub fn metadata(&self) -> Result<Option<Metadata>, MetadataError> {
        self.log.committed.as_ref().map_or(Ok(None), |committed| Metadata::decode(&committed.metadata))
    }

    /// Returns the committed offset, if it is one of this topic id and its metadata can be read.
    pub fn committed(&self) -> Option<u64> {
        self.log.committed_offset()
    }

    /// Returns the open intent and its counts.
    pub fn intent(&self) -> Option<(OffsetRange, Counts)> {
        let start = self.committed()?;
        let (end, counts) = self.metadata().ok()??.next?;
        Some((OffsetRange { start, end }, counts))
    }

    /// Returns the offset up to which every batch is finished in all tables, as far as Kafka and the marks of all months together
    /// show. An open batch may be applied in some months and not in others. So with an open batch only the committed offset
    /// counts.
    pub fn finished_up_to(&self) -> u64 {
        let committed = self.committed();
        match self.intent() {
            Some((range, _)) => range.start,
            None => committed.max(self.progress.uncounted.or(self.progress.counted_end)).unwrap_or(0),
        }
    }

    /// Returns the offset up to which this source is counted in a month whose mark is `mark`. Rows before it must be in `daily`.
    /// A member has still to count the rows from it on.
    ///
    /// # Errors
    /// Returns the open batch if the mark lies inside of it: no order of Tallyhouse's inserts leaves that.
    pub fn counted_up_to(&self, mark: Option<u64>) -> Result<u64, OffsetRange> {
        match (self.intent(), mark) {
            (Some((range, _)), Some(mark)) if mark > range.start && mark < range.end => Err(range),
            (_, mark) => Ok(self.finished_up_to().max(mark.unwrap_or(0))),
        }
    }

    /// Returns the reason why `tallyhouse run` stops the partition regardless of the tables; `None` if it depends on them.
    pub fn stops_by_log(log: &LogView) -> Option<StopReason> {
        let (mut protocol, _) = Protocol::start();
        let mut step = protocol.on_outcome(Outcome::Log(marked(log, None)));
        if matches!(step, Step::Do(Action::ReadProgress { .. })) {
            // If the committed offset lies beyond the log's end, no progress changes that.
            step = protocol.on_outcome(Outcome::Progress(Progress::default()));
            if matches!(step, Step::Stop(_)) {
                return None;
            }
        }
        match step {
            Step::Stop(reason) | Step::Do(Action::LookAgain(reason)) => Some(reason),
            _ => None,
        }
    }

    /// Returns the reaction of `tallyhouse run` to the partition in its present state.
    pub fn outlook(&self) -> Outlook {
        let (mut protocol, _) = Protocol::start();
        let mut step = protocol.on_outcome(Outcome::Log(marked(&self.log, self.before.marked)));
        if matches!(step, Step::Do(Action::ReadProgress { .. })) {
            // A row that was committed since the tables were read was counted since then.
            let is_counted = |row: u64| self.before.committed <= Some(row) && Some(row) < self.committed();
            let uncounted = self.progress.uncounted.filter(|&row| !is_counted(row));
            step = protocol.on_outcome(Outcome::Progress(Progress { uncounted, ..self.progress }));
        }
        if let (Step::Do(Action::ReadMarks { .. }), Some(marks)) = (&step, &self.marks) {
            step = protocol.on_outcome(Outcome::Marks(marks.clone()));
        }
        match step {
            Step::Stop(reason) | Step::Do(Action::LookAgain(reason)) => Outlook::Stops(reason),
            Step::Do(Action::Fill { from, until: None, .. }) => Outlook::GoesOn(format!("reads on from offset {from}")),
            Step::Do(Action::Fill { from, until: Some(until), .. }) => {
                let range = OffsetRange { start: from, end: until };
                Outlook::GoesOn(format!("completes {range} first and reads on from offset {until}"))
            }
            Step::Do(Action::Commit { wanted: Committed { offset, .. }, .. }) => {
                Outlook::GoesOn(format!("commits offset {offset}, up to which all is applied, and reads on from there"))
            }
            _ => Outlook::GoesOn("finds the announced batch applied and reads on after it".to_owned()),
        }
    }
}

/// Returns the log with another greatest mark that the tables have shown. The tables were read before this view of Kafka, so they
/// may have shown less then.
fn marked(log: &LogView, marked: Option<u64>) -> LogView {
    let mut log = log.clone();
    if let Some(committed) = &mut log.committed
        && let Ok(Some(metadata)) = Metadata::decode(&committed.metadata)
    {
        committed.metadata =
            Metadata { marked: metadata.marked.and(marked), again: None, ..metadata }.encode().into_bytes();
    }
    log
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(offset: u64) -> LogView {
        let metadata = Metadata { topic_id: "id".into(), marked: Some(offset), ..Metadata::default() };
        let committed = Some(Committed { offset, metadata: metadata.encode().into_bytes() });
        LogView { committed, topic_id: "id".into(), ids_of_rows: vec![], cluster_id: String::new(), low: 0, high: 90 }
    }

    /// The tables were read when a batch had the counters of one month and not yet those of the other. Then it was committed.
    #[test]
    fn counters_that_came_after_the_tables_were_read_are_not_missing() {
        let source = Source { cluster: String::new(), topic: "t".into(), topic_id: "id".into(), partition: 0 };
        let progress = Progress { counted_end: Some(20), uncounted: Some(12), ..Progress::default() };
        let outlook = |before: u64| {
            let before = Before::of(&log(before));
            Position { source: source.clone(), progress, log: log(20), first_stored: None, marks: None, before }
                .outlook()
        };
        assert_eq!(outlook(12), Outlook::GoesOn("reads on from offset 20".to_owned()));
        let behind = StopReason::SinkBehind { marked: 13, uncounted: Some(12) };
        assert_eq!(outlook(13), Outlook::Stops(behind), "the row was committed before");
    }
}
