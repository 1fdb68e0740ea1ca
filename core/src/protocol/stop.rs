//! Reasons why a partition stops. The texts tell the operator what to do next.
//!
//! A partition stops when it could lose or double an event by continuing. It must never stop for a state that ends by waiting or
//! retrying: the member retries those, visibly. Each reason has a page in `docs/stops/`, named by its code.

use crate::protocol::intent::{Counts, MetadataError};
use crate::protocol::marks::Conflict;
use crate::source::{OffsetRange, Table};

/// A state in which only an operator can decide how to continue.
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
    /// A batch was announced and is not fully applied, and its records are gone.
    #[error(
        "batch {range} was begun and its records are gone from the log (which now starts at {low}), so it can be neither \
         completed nor checked. Compare `email_events` and `daily` for these offsets, then stop all members and reset this \
         partition to offset {} with `kafka-consumer-groups.sh --reset-offsets`", range.end
    )]
    IntentGone {
        /// Offsets of the announced batch.
        range: OffsetRange,
        /// First offset the log still has.
        low: u64,
    },
    /// ClickHouse has rows, or Kafka a committed offset, beyond the end of the log.
    #[error(
        "{what} is {offset}, but the log ends at {high}. Records that were consumed are no longer in the log (an unclean \
         leader election, or a restored broker), or an offset was committed by hand. New records under used offsets would be \
         taken for old ones, so nothing is consumed. Delete an offset committed by hand with `kafka-consumer-groups.sh \
         --delete-offsets`; after a loss of records re-create the topic (it gets a new topic id)"
    )]
    AheadOfLog {
        /// Name of the position that is ahead.
        what: &'static str,
        /// Offset of that position.
        offset: u64,
        /// End of the log.
        high: u64,
    },
    /// The committed offset carries metadata that this build cannot read.
    #[error(
        "the committed offset {offset} cannot be trusted: {error}. If another program uses this consumer group, give \
         Tallyhouse its own. If a newer Tallyhouse wrote it, run that version. Otherwise stop all members and delete this \
         partition's committed offset with `kafka-consumer-groups.sh --delete-offsets`: the marks then say where to go on"
    )]
    BadMetadata {
        /// The committed offset with the unreadable metadata.
        offset: u64,
        /// Fault in its metadata.
        error: MetadataError,
    },
    /// The topic was deleted and re-created while a batch was open.
    #[error(
        "the topic was deleted and re-created while batch {range} of the old topic was open, so that batch can no longer be \
         completed. To go on with the new topic, stop all members and delete this partition's committed offset with \
         `kafka-consumer-groups.sh --delete-offsets`"
    )]
    TopicRecreated {
        /// Offsets of the open batch in the old topic.
        range: OffsetRange,
    },
    /// The tables hold part of a batch where only all or nothing is possible.
    #[error(
        "batch {range} has {} rows for partition {} of `{}`, ClickHouse has {}. The table was changed by hand, or another \
         program writes under this source. Inspect the rows of these offsets before anything else",
        conflict.expected, conflict.partition, conflict.table.name(), conflict.found
    )]
    Conflict {
        /// Offsets of the batch whose rows conflict.
        range: OffsetRange,
        /// Table, ClickHouse partition, and numbers of rows.
        conflict: Conflict,
    },
    /// The batch was rebuilt with other counts than those of its intent: part of it is applied, or records are missing.
    #[error(
        "batch {range} was rebuilt with {} rows and {} rejects, but its intent says {} and {}{}",
        rebuilt.rows, rebuilt.rejects, intent.rows, intent.rejects, differs_in_words(*rebuilt, *intent)
    )]
    RebuiltDiffers {
        /// Offsets of the rebuilt batch.
        range: OffsetRange,
        /// Counts of the rebuilt batch.
        rebuilt: Counts,
        /// Counts of its intent.
        intent: Counts,
    },
    /// ClickHouse acknowledges the rows of a batch and does not show them.
    #[error(
        "batch {range} was inserted into `{}` and acknowledged {inserts} times under tokens of its own, and ClickHouse does not show its \
         rows. Does a row policy hide them from this user, or does a TTL remove them? Does something between this member and ClickHouse answer \
         from a cache? Nothing more is inserted, as each repeat would count the batch once more. `tallyhouse check` names what it finds",
        table.name()
    )]
    NotShown {
        /// Offsets of the batch whose rows are hidden.
        range: OffsetRange,
        /// Table that does not show the rows.
        table: Table,
        /// Number of acknowledged inserts of the rows.
        inserts: u32,
    },
    /// ClickHouse, or a proxy before it, refuses an insert for its size, and the batch cannot be announced smaller.
    #[error(
        "the insert of batch {range} into `{}` is refused for its size, and the batch cannot be announced smaller, as {}. The log says who \
         refuses it. Raise that limit until the batch is committed",
        table.name(), if *records > 1 { "part of it is already in ClickHouse" } else { "it has one record" }
    )]
    InsertTooLarge {
        /// Offsets of the batch that is refused.
        range: OffsetRange,
        /// Number of its records.
        records: u64,
        /// Table whose insert is refused.
        table: Table,
    },
    /// A member with more memory has begun a batch that does not fit into this member's memory.
    #[error(
        "batch {range} was begun by a member with a larger memory.limit_bytes. Part of it is already in ClickHouse, and the rest does \
         not fit into this member's memory. Start a member with memory.limit_bytes = {}MiB or more until the batch is committed",
        limit_bytes.div_ceil(1 << 20)
    )]
    ReplayTooLarge {
        /// Offsets of the batch that does not fit.
        range: OffsetRange,
        /// Value of `memory.limit_bytes` that it needs, estimated from the records that were read.
        limit_bytes: u64,
    },
    /// The tables show less of the source than they did before.
    #[error("{}", behind_in_words(*marked, *uncounted))]
    SinkBehind {
        /// The greatest `end_offset` that was shown.
        marked: u64,
        /// First row that was counted and is in no counter now, if `daily` still shows `marked`. Then only counters are gone.
        uncounted: Option<u64>,
    },
    /// The committed offset was copied from another cluster.
    #[error(
        "the committed offset {offset} belongs to the Kafka cluster {committed}, this is the cluster {found}. The offsets were copied \
         (MirrorMaker, Cluster Linking), or kafka.brokers names another cluster. Only you know whether its log is the same"
    )]
    OtherCluster {
        /// The committed offset that was copied.
        offset: u64,
        /// Id of the cluster that it belongs to.
        committed: String,
        /// Id of the cluster that is consumed.
        found: String,
    },
}

fn behind_in_words(marked: u64, uncounted: Option<u64>) -> String {
    match uncounted {
        None => format!(
            "`daily` has shown this partition's counters up to offset {marked}, and shows them no more: rows that were stored are gone. Was \
             ClickHouse restored from a backup, or did it lose a part? Nothing is consumed, as what is missing would stay missing"
        ),
        Some(row) => format!(
            "`daily` has counted this partition's rows up to offset {marked}, and the row at offset {row} is in no counter any more. The \
             counters of its month are gone. `tallyhouse repair daily` counts that month again from the rows"
        ),
    }
}

fn differs_in_words(rebuilt: Counts, intent: Counts) -> &'static str {
    match rebuilt.records() == intent.records() {
        true => {
            ", and part of it is already in ClickHouse. Was the decoder or a `decode.*` setting changed? Run the version and settings \
             that began the batch until it is committed"
        }
        false => {
            ": the log no longer has the same records. Is the topic compacted (cleanup.policy), or was its log damaged? Nothing is \
             inserted, as what is missing would be lost"
        }
    }
}

impl StopReason {
    /// All codes, in the order of the variants.
    pub const CODES: [&str; 12] = [
        "retention_gap",
        "intent_gone",
        "ahead_of_log",
        "bad_metadata",
        "topic_recreated",
        "conflict",
        "rebuilt_differs",
        "replay_too_large",
        "sink_behind",
        "other_cluster",
        "not_shown",
        "insert_too_large",
    ];

    /// Returns a stable word for metrics and logs.
    pub fn code(&self) -> &'static str {
        match self {
            StopReason::RetentionGap { .. } => "retention_gap",
            StopReason::IntentGone { .. } => "intent_gone",
            StopReason::AheadOfLog { .. } => "ahead_of_log",
            StopReason::BadMetadata { .. } => "bad_metadata",
            StopReason::TopicRecreated { .. } => "topic_recreated",
            StopReason::Conflict { .. } => "conflict",
            StopReason::RebuiltDiffers { .. } => "rebuilt_differs",
            StopReason::ReplayTooLarge { .. } => "replay_too_large",
            StopReason::SinkBehind { .. } => "sink_behind",
            StopReason::OtherCluster { .. } => "other_cluster",
            StopReason::NotShown { .. } => "not_shown",
            StopReason::InsertTooLarge { .. } => "insert_too_large",
        }
    }

    /// Returns the command that prints the page with each step of the remedy.
    pub fn page(&self) -> String {
        format!("tallyhouse explain {}", self.code())
    }

    /// Returns the reason and its page, as the log and `/readyz` show them.
    pub fn message(&self) -> String {
        format!("{self}. Step by step: `{}`", self.page())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    const RANGE: OffsetRange = OffsetRange { start: 1, end: 2 };

    /// Returns the next variant. There is no wildcard, so a new variant does not compile until it is listed here.
    fn after(reason: Option<&StopReason>) -> Option<StopReason> {
        let counts = Counts { rows: 1, rejects: 0 };
        Some(match reason {
            None => StopReason::RetentionGap { next: 1, low: 2 },
            Some(StopReason::RetentionGap { .. }) => StopReason::IntentGone { range: RANGE, low: 3 },
            Some(StopReason::IntentGone { .. }) => StopReason::AheadOfLog { what: "it", offset: 2, high: 1 },
            Some(StopReason::AheadOfLog { .. }) => {
                StopReason::BadMetadata { offset: 1, error: MetadataError::Version(2) }
            }
            Some(StopReason::BadMetadata { .. }) => StopReason::TopicRecreated { range: RANGE },
            Some(StopReason::TopicRecreated { .. }) => {
                let conflict = Conflict { table: Table::Raw, partition: 20261101, expected: 2, found: 1 };
                StopReason::Conflict { range: RANGE, conflict }
            }
            Some(StopReason::Conflict { .. }) => {
                StopReason::RebuiltDiffers { range: RANGE, rebuilt: counts, intent: counts }
            }
            Some(StopReason::RebuiltDiffers { .. }) => {
                StopReason::ReplayTooLarge { range: RANGE, limit_bytes: 100 << 20 }
            }
            Some(StopReason::ReplayTooLarge { .. }) => StopReason::SinkBehind { marked: 2, uncounted: None },
            Some(StopReason::SinkBehind { .. }) => {
                StopReason::OtherCluster { offset: 1, committed: "one".into(), found: "other".into() }
            }
            Some(StopReason::OtherCluster { .. }) => {
                StopReason::NotShown { range: RANGE, table: Table::Daily, inserts: 2 }
            }
            Some(StopReason::NotShown { .. }) => {
                StopReason::InsertTooLarge { range: RANGE, records: 1, table: Table::Raw }
            }
            Some(StopReason::InsertTooLarge { .. }) => return None,
        })
    }

    fn one_of_each() -> Vec<StopReason> {
        std::iter::successors(after(None), |reason| after(Some(reason))).collect()
    }

    #[test]
    fn each_code_has_a_page_and_each_page_a_code() {
        let codes: Vec<&str> = one_of_each().iter().map(StopReason::code).collect();
        assert_eq!(codes, StopReason::CODES);
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/stops");
        let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let pages: BTreeSet<String> = names.filter(|name| name != "README.md").collect();
        let wanted: BTreeSet<String> = codes.iter().map(|code| format!("{code}.md")).collect();
        assert_eq!(pages, wanted);
        let index = fs::read_to_string(folder.join("README.md")).unwrap();
        for code in codes {
            assert!(index.contains(&format!("[`{code}`]({code}.md)")), "{code} is missing in docs/stops/README.md");
            let page = fs::read_to_string(folder.join(format!("{code}.md"))).unwrap();
            assert!(page.starts_with(&format!("# `{code}`")), "{code}.md is about something else");
            for part in ["## What happened", "## Safe and at risk", "## Look", "## Remedy", "## Verify"] {
                assert!(page.contains(&format!("\n{part}\n")), "{code}.md lacks {part:?}");
            }
        }
    }

    #[test]
    fn what_is_told_names_the_page() {
        for reason in one_of_each() {
            assert!(
                reason.message().ends_with(&format!(". Step by step: `tallyhouse explain {}`", reason.code())),
                "{reason}"
            );
        }
    }
}
