//! The state of one partition in Kafka and in the tables, and the reaction of `tallyhouse run` to it.
//!
//! This module is pure. It does not repeat the decisions of `run`: it asks the protocol itself.

use super::{Action, Committed, LogView, Outcome, Protocol};
use crate::protocol::intent::{Counts, Metadata, MetadataError};
use crate::protocol::marks::{Marks, Progress};
use crate::protocol::stop::StopReason;
use crate::source::{OffsetRange, Source};

/// One partition of the topic, as read. The tables are read before Kafka: a batch that is in the tables was then announced.
#[derive(Clone, Debug)]
pub struct Position {
    /// The partition.
    pub source: Source,
    /// Position of the source in the tables.
    pub progress: Progress,
    /// State of the partition in Kafka, read after `progress`.
    pub log: LogView,
    /// First offset in `email_events` or `rejected_events`.
    pub first_stored: Option<u64>,
    /// Rows that the tables hold of the open intent's offsets, if there is one.
    pub marks: Option<Marks>,
    /// Greatest mark that the tables have shown, by a commit that was read before `progress`.
    pub marked: Option<u64>,
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

    /// Returns the greatest mark that the tables have shown, by the commit in a view of Kafka.
    pub fn marked_by(log: &LogView) -> Option<u64> {
        log.committed_offset()?;
        Metadata::decode(&log.committed.as_ref()?.metadata).ok()??.marked
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
        let mut action = protocol.on_outcome(Outcome::Log(marked(log, None)));
        if matches!(action, Action::ReadProgress { .. }) {
            // If the committed offset lies beyond the log's end, no progress changes that.
            action = protocol.on_outcome(Outcome::Progress(Progress::default()));
            if matches!(action, Action::Stop(_)) {
                return None;
            }
        }
        match action {
            Action::Stop(reason) | Action::LookAgain(reason) => Some(reason),
            _ => None,
        }
    }

    /// Returns the reaction of `tallyhouse run` to the partition in its present state.
    pub fn outlook(&self) -> Outlook {
        let (mut protocol, _) = Protocol::start();
        let mut action = protocol.on_outcome(Outcome::Log(marked(&self.log, self.marked)));
        if matches!(action, Action::ReadProgress { .. }) {
            action = protocol.on_outcome(Outcome::Progress(self.progress));
        }
        if let (Action::ReadMarks { .. }, Some(marks)) = (&action, &self.marks) {
            action = protocol.on_outcome(Outcome::Marks(marks.clone()));
        }
        match action {
            Action::Stop(reason) | Action::LookAgain(reason) => Outlook::Stops(reason),
            Action::Fill { from, until: None, .. } => Outlook::GoesOn(format!("reads on from offset {from}")),
            Action::Fill { from, until: Some(until), .. } => {
                let range = OffsetRange { start: from, end: until };
                Outlook::GoesOn(format!("completes {range} first and reads on from offset {until}"))
            }
            Action::Commit { wanted: Committed { offset, .. }, .. } => {
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
