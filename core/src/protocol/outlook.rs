//! Where one partition stands: what Kafka and the tables say of it, and what `tallyhouse run` would make of that.
//!
//! Pure. What `run` would do is not described here a second time: it is asked of the protocol itself.

use super::{Action, Committed, LogView, Outcome, Protocol};
use crate::protocol::intent::{Counts, Metadata, MetadataError};
use crate::protocol::marks::{Marks, Progress};
use crate::protocol::stop::StopReason;
use crate::source::{OffsetRange, Source};

/// One partition of the topic, as read. The tables are asked before Kafka: a batch that is in the tables was then announced.
#[derive(Clone, Debug)]
pub struct Position {
    /// The partition.
    pub source: Source,
    /// How far it is in the tables.
    pub progress: Progress,
    /// What Kafka says; read after `progress`.
    pub log: LogView,
    /// First offset in `email_events` or `rejected_events`.
    pub first_stored: Option<u64>,
    /// What the tables hold of the open intent's offsets, if there is one.
    pub marks: Option<Marks>,
    /// The greatest mark that the tables have shown by a commit that was read before `progress`.
    pub marked: Option<u64>,
}

/// What a member does that is given the partition now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It goes on, in these words.
    GoesOn(String),
    /// It stops the partition.
    Stops(StopReason),
}

impl Position {
    /// The committed metadata, if it can be read.
    ///
    /// # Errors
    /// [`MetadataError`] as the protocol would see it.
    pub fn metadata(&self) -> Result<Option<Metadata>, MetadataError> {
        self.log.committed.as_ref().map_or(Ok(None), |committed| Metadata::decode(&committed.metadata))
    }

    /// The greatest mark that the tables have shown, by the commit of a look at Kafka.
    pub fn marked_by(log: &LogView) -> Option<u64> {
        log.committed_offset()?;
        Metadata::decode(&log.committed.as_ref()?.metadata).ok()??.marked
    }

    /// The committed offset, if it is one of this topic id and its metadata can be read.
    pub fn committed(&self) -> Option<u64> {
        self.log.committed_offset()
    }

    /// The open intent and its counts.
    pub fn intent(&self) -> Option<(OffsetRange, Counts)> {
        let start = self.committed()?;
        let (end, counts) = self.metadata().ok()??.next?;
        Some((OffsetRange { start, end }, counts))
    }

    /// The offset up to which every batch is finished in all tables, as far as Kafka and the marks of all months together tell.
    /// An open batch may be applied in some months and not in others, so with one only the committed offset counts.
    pub fn finished_up_to(&self) -> u64 {
        let committed = self.committed();
        match self.intent() {
            Some((range, _)) => range.start,
            None => committed.max(self.progress.uncounted.or(self.progress.counted_end)).unwrap_or(0),
        }
    }

    /// The offset up to which this source is counted in a month whose mark is `mark`: rows before it must be in `daily`, rows
    /// from it on are still to be counted by a member.
    ///
    /// # Errors
    /// The open batch, if the mark lies inside of it: no order of our inserts leaves that behind.
    pub fn counted_up_to(&self, mark: Option<u64>) -> Result<u64, OffsetRange> {
        match (self.intent(), mark) {
            (Some((range, _)), Some(mark)) if mark > range.start && mark < range.end => Err(range),
            (_, mark) => Ok(self.finished_up_to().max(mark.unwrap_or(0))),
        }
    }

    /// Why `tallyhouse run` stops the partition whatever the tables have; `None` where it depends on them.
    pub fn stops_by_log(log: &LogView) -> Option<StopReason> {
        let (mut protocol, _) = Protocol::start();
        let mut action = protocol.on_outcome(Outcome::Log(marked(log, None)));
        if matches!(action, Action::ReadProgress { .. }) {
            // The committed offset lies beyond the log's end: no progress changes that.
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

    /// What `tallyhouse run` does with the partition as it stands.
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

/// The log with another greatest mark that the tables have shown: they were asked before this look at Kafka, so they may have shown less then.
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
