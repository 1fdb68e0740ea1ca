//! Why a partition stops, in words that say what to do next.
//!
//! A partition stops when going on could lose or double an event. It must never stop for something that waiting or
//! retrying mends: those are retried, visibly.

use super::intent::{Counts, MetadataError};
use super::marks::Conflict;
use super::source::OffsetRange;

/// A state in which only an operator can decide how to go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum StopReason {
    /// Retention (or `DeleteRecords`) removed records that were never consumed.
    #[error(
        "offsets {} up to {low} were removed from the log before they were consumed. They are lost to Tallyhouse; to go on \
         with what is left, stop all members and reset this partition with \
         `kafka-consumer-groups.sh --reset-offsets --to-earliest`",
        next
    )]
    RetentionGap {
        /// First offset that was not consumed.
        next: u64,
        /// First offset the log still has.
        low: u64,
    },
    /// A batch was announced, it is not fully applied, and its records are gone.
    #[error(
        "batch {range} was begun and its records are gone from the log (which now starts at {low}), so it can be neither \
         completed nor checked. Compare `email_events` and `daily` for these offsets, then stop all members and reset this \
         partition to offset {} with `kafka-consumer-groups.sh --reset-offsets`", range.end
    )]
    IntentGone {
        /// The batch.
        range: OffsetRange,
        /// First offset the log still has.
        low: u64,
    },
    /// ClickHouse has rows, or Kafka a committed offset, beyond the end of the log.
    #[error(
        "{what} is {offset}, but the log ends at {high}: records that were consumed are no longer in the log (an unclean \
         leader election, or a restored broker). New records under used offsets would be taken for old ones, so nothing is \
         consumed. Re-create the topic (it gets a new topic id), or move this consumer group's data to a new topic"
    )]
    AheadOfLog {
        /// Which position is ahead.
        what: &'static str,
        /// That position.
        offset: u64,
        /// The log's end.
        high: u64,
    },
    /// The committed offset carries metadata that this build cannot read.
    #[error(
        "the committed offset {offset} cannot be trusted: {error}. If another program uses this consumer group, give \
         Tallyhouse its own; if a newer Tallyhouse wrote it, run that version; otherwise stop all members and reset this \
         partition with `kafka-consumer-groups.sh --reset-offsets --to-offset {offset}`"
    )]
    BadMetadata {
        /// The committed offset.
        offset: u64,
        /// What is wrong with its metadata.
        error: MetadataError,
    },
    /// The topic was deleted and re-created while a batch was open.
    #[error(
        "the topic was deleted and re-created while batch {range} of the old topic was open, so that batch can no longer be \
         completed. To go on with the new topic, stop all members and delete this partition's committed offset with \
         `kafka-consumer-groups.sh --delete-offsets`"
    )]
    TopicRecreated {
        /// The open batch.
        range: OffsetRange,
    },
    /// The tables hold part of a batch where only all or nothing is possible.
    #[error(
        "batch {range} has {} rows for partition {} of `{}`, ClickHouse has {}: the table was changed by hand, or another \
         program writes under this source. Inspect the rows of these offsets before anything else",
        conflict.expected, conflict.partition, conflict.table.name(), conflict.found
    )]
    Conflict {
        /// The batch.
        range: OffsetRange,
        /// Where, and how many rows.
        conflict: Conflict,
    },
    /// The batch was rebuilt with other counts than its intent says, and part of it is applied.
    #[error(
        "batch {range} was rebuilt with {} rows and {} rejects, but its intent says {} and {}, and part of it is already in \
         ClickHouse. Was the decoder or a `decode.*` setting changed? Run the version and settings that began the batch until \
         it is committed",
        rebuilt.rows, rebuilt.rejects, intent.rows, intent.rejects
    )]
    RebuiltDiffers {
        /// The batch.
        range: OffsetRange,
        /// As rebuilt.
        rebuilt: Counts,
        /// By its intent.
        intent: Counts,
    },
}

impl StopReason {
    /// A stable word for metrics and logs.
    pub fn code(&self) -> &'static str {
        match self {
            StopReason::RetentionGap { .. } => "retention_gap",
            StopReason::IntentGone { .. } => "intent_gone",
            StopReason::AheadOfLog { .. } => "ahead_of_log",
            StopReason::BadMetadata { .. } => "bad_metadata",
            StopReason::TopicRecreated { .. } => "topic_recreated",
            StopReason::Conflict { .. } => "conflict",
            StopReason::RebuiltDiffers { .. } => "rebuilt_differs",
        }
    }
}
