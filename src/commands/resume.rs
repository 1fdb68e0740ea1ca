//! `tallyhouse resume`: lets a stopped partition go on, by a commit that carries an operator's decision.
//!
//! Must never commit while the group has members, nor over an offset that the plan did not see.

use crate::commands::audit::{AuditError, Reader};
use crate::config::Config;
use crate::kafka::observer::{self, Observer};
use crate::kafka::{KAFKA_TIMEOUT, offsets};
use serde::Serialize;
use tallyhouse_core::protocol::intent::Metadata;
use tallyhouse_core::protocol::marks::{Marks, down_to_mark};
use tallyhouse_core::protocol::outlook::{Before, Outlook, Position};
use tallyhouse_core::protocol::stop::StopReason;
use tallyhouse_core::protocol::{Committed, LogView, may_commit};
use tallyhouse_core::source::{OffsetRange, Source};

/// The operator's decision about a stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// Go on where the partition stands, and accept what the stop warns of.
    Continue,
    /// Count again what the stop warns of.
    CountAnew,
}

impl Choice {
    fn flag(self) -> &'static str {
        match self {
            Choice::Continue => "--continue",
            Choice::CountAnew => "--count-anew",
        }
    }
}

/// The commit that is planned for one partition.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Number of the partition, from 0.
    pub partition: i32,
    /// The reason of its stop, as a word.
    pub stopped: &'static str,
    /// The reason in words.
    pub reason: String,
    /// The operator's decision about it.
    pub choice: Choice,
    /// The current commit; absent if there is none.
    pub committed: Option<Commit>,
    /// The commit to make.
    pub commits: Commit,
    /// The name of the partition's rows from then on.
    pub source: String,
    /// The next action of `tallyhouse run`.
    pub then: String,
    #[serde(skip)]
    found: Option<Committed>,
    #[serde(skip)]
    wanted: Committed,
}

/// A committed offset, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Commit {
    /// The next offset to read.
    pub offset: u64,
    /// Metadata of the commit.
    pub metadata: String,
}

impl Commit {
    fn of(committed: &Committed) -> Commit {
        let metadata = String::from_utf8_lossy(&committed.metadata).into_owned();
        Commit { offset: committed.offset, metadata }
    }
}

impl Plan {
    /// Returns the commit in lines of text.
    pub fn text(&self) -> String {
        let Plan { partition, stopped, reason, commits, source, then, .. } = self;
        let of = |at: &Commit| format!("offset {}, {:?}", at.offset, at.metadata);
        let committed = self.committed.as_ref().map_or_else(|| "nothing".to_owned(), of);
        format!(
            "partition {partition} is stopped, {stopped}: {reason}\n  committed now   {committed}\n  to be committed {}\n  rows are stored under {source}\n  \
             `tallyhouse run` then {then}\n",
            of(commits)
        )
    }
}

/// The reason why a partition is not resumed.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// A server cannot be asked.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// The topic has no such partition.
    #[error("the topic {topic} has no partition {partition}. Name one that it has")]
    #[expect(missing_docs, reason = "its text says it")]
    NoPartition { topic: String, partition: i32 },
    /// The partition does not stop.
    #[error("partition {partition} does not stop: `tallyhouse run` {then}. There is nothing to resume")]
    #[expect(missing_docs, reason = "its text says it")]
    NotStopped { partition: i32, then: String },
    /// The choice is no remedy for this stop.
    #[error("partition {partition} is stopped, {code}, and {flag} is no remedy for that: {why}. Do what {page} says")]
    #[expect(missing_docs, reason = "its text says it")]
    NoRemedy { partition: i32, code: &'static str, flag: &'static str, why: String, page: String },
    /// Kafka lets nobody change the offsets of a group with members.
    #[error(
        "the group {group} has {members} members. Kafka lets nobody change its offsets meanwhile: end all of them with SIGTERM first; one \
         that was killed counts until kafka.session_timeout_ms is over"
    )]
    #[expect(missing_docs, reason = "its text says it")]
    Members { group: String, members: usize },
    /// Somebody has committed since the plan.
    #[error(
        "the committed offset of partition {0} has changed since the plan was made. Nothing was changed for it; run it again"
    )]
    Overtaken(i32),
    /// Kafka refused the commit.
    #[error("partition {partition}: the offset cannot be committed: {error}. Run it again")]
    #[expect(missing_docs, reason = "its text says it")]
    Commit { partition: i32, error: String },
}

/// Returns the commit that would be made for each partition. Changes nothing.
///
/// # Errors
/// Any of [`ResumeError`]: one partition that cannot be resumed is enough.
pub async fn plan(
    config: &Config,
    reader: &Reader,
    partitions: &[i32],
    choice: Choice,
) -> Result<Vec<Plan>, ResumeError> {
    let group = reader.kafka(Observer::group).await?;
    if !group.members.is_empty() {
        return Err(ResumeError::Members { group: config.kafka.group_id.clone(), members: group.members.len() });
    }
    let positions = reader.positions_of(Some(partitions)).await?;
    let mut plans = Vec::with_capacity(partitions.len());
    for &partition in partitions {
        let position = positions.iter().find(|position| position.source.partition == partition);
        let Some(position) = position else {
            let topic = config.kafka.topics.events.clone();
            return Err(ResumeError::NoPartition { topic, partition });
        };
        plans.push(plan_of(reader, position, choice).await?);
    }
    Ok(plans)
}

async fn plan_of(reader: &Reader, position: &Position, choice: Choice) -> Result<Plan, ResumeError> {
    let partition = position.source.partition;
    let reason = match position.outlook() {
        Outlook::Stops(reason) => reason,
        Outlook::GoesOn(then) => return Err(ResumeError::NotStopped { partition, then }),
    };
    let no_remedy = |why: String| ResumeError::NoRemedy {
        partition,
        code: reason.code(),
        flag: choice.flag(),
        why,
        page: reason.page(),
    };
    let old = position.metadata().ok().flatten().unwrap_or_default();
    // The batch that was open in another log has its rows under that log's name.
    let mut left_open = None;
    if let (StopReason::OtherCluster { .. } | StopReason::TopicRecreated { .. }, Some((end, counts)), Some(committed)) =
        (&reason, old.next, &position.log.committed)
    {
        let range = OffsetRange { start: committed.offset, end };
        let cluster = if old.cluster_id.is_empty() { &position.log.cluster_id } else { &old.cluster_id }.clone();
        let source = Source { cluster, topic_id: old.id_of_rows().to_owned(), ..position.source.clone() };
        let marks = reader.marks(range, old.group.map(|group| group.id), &source).await?;
        left_open = Some((range, OpenBatch::new(range, &marks, marks.show_applied(range, counts))));
    }
    let (offset, metadata) = decide(position, &old, &reason, left_open, choice).map_err(&no_remedy)?;
    let wanted = Committed { offset, metadata: metadata.encode().into_bytes() };
    let log = LogView { committed: Some(wanted.clone()), ..position.log.clone() };
    let topic_id = log.id_of_rows().unwrap_or_default();
    let source = Source { topic_id, ..position.source.clone() };
    let from = down_to_mark(offset, metadata.marked);
    let progress = reader.progress(from, &source).await?;
    let before = Before::of(&log);
    let then = Position { source: source.clone(), progress, log, before, ..position.clone() }.outlook();
    let then = match then {
        Outlook::GoesOn(then) => then,
        // Offsets that retention has removed need a decision of their own.
        Outlook::Stops(next @ StopReason::RetentionGap { .. }) => format!("stops once more: {next}"),
        Outlook::Stops(next) => return Err(no_remedy(format!("it would stop once more: {next}"))),
    };
    Ok(Plan {
        partition,
        stopped: reason.code(),
        reason: reason.to_string(),
        choice,
        committed: position.log.committed.as_ref().map(Commit::of),
        commits: Commit::of(&wanted),
        source: source.name(),
        then,
        found: position.log.committed.clone(),
        wanted,
    })
}

/// The stored part of a batch that was open in another log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OpenBatch {
    Nothing,
    Part,
    All,
}

impl OpenBatch {
    fn new(range: OffsetRange, marks: &Marks, is_applied: bool) -> OpenBatch {
        match is_applied {
            true => OpenBatch::All,
            false if marks.show_nothing(range) => OpenBatch::Nothing,
            false => OpenBatch::Part,
        }
    }
}

/// Returns the offset and metadata to commit. Pure.
///
/// # Errors
/// The reason why the choice is no remedy.
fn decide(
    position: &Position,
    old: &Metadata,
    reason: &StopReason,
    left_open: Option<(OffsetRange, OpenBatch)>,
    choice: Choice,
) -> Result<(u64, Metadata), String> {
    let log = &position.log;
    let shown = position.progress.counted_end;
    let topic_id = if log.topic_id.is_empty() { &old.topic_id } else { &log.topic_id };
    // This is the same log, under the name that its rows have.
    let same = Metadata {
        topic_id: topic_id.clone(),
        is_plain: position.source.topic_id.is_empty() && !topic_id.is_empty(),
        cluster_id: log.cluster_id.clone(),
        marked: old.marked,
        again: old.again,
        next: None,
        group: None,
    };
    // This is another log, whose rows have a name of their own.
    let other = Metadata { topic_id: log.topic_id.clone(), cluster_id: log.cluster_id.clone(), ..Metadata::default() };
    let is_same_name = log.topic_id == old.id_of_rows();
    let committed = log.committed.as_ref().map(|committed| committed.offset);
    match (reason, choice) {
        (StopReason::SinkBehind { .. }, Choice::Continue) => {
            let committed = committed.ok_or("there is no committed offset")?;
            // The next counters set the mark again. Until then a mark would find the rows that are in no counter once more.
            let marked = shown.filter(|_| position.progress.uncounted.is_none());
            Ok((committed, Metadata { marked, next: old.next, group: old.group, ..same }))
        }
        (StopReason::SinkBehind { uncounted: Some(row), .. }, Choice::CountAnew) => Err(format!(
            "the rows are there, and only the counters of the row at offset {row} and its month are gone. `tallyhouse repair daily` counts \
             that month again"
        )),
        (StopReason::SinkBehind { .. }, Choice::CountAnew) => {
            let again = old.next.map(|(end, _)| end).max(committed).max(old.again);
            Ok((shown.unwrap_or(log.low), Metadata { marked: shown, again, ..same }))
        }
        (StopReason::RetentionGap { .. }, Choice::Continue) => Ok((log.low, same)),
        (StopReason::IntentGone { range, .. }, Choice::Continue) => Ok((range.end, same)),
        (StopReason::OtherCluster { .. } | StopReason::TopicRecreated { .. }, Choice::CountAnew) if is_same_name => Err(
            "no topic id tells both logs apart, so a row of this log would have the name and the offset of another row. Give the topic \
             another name in this cluster, or Tallyhouse another database"
                .to_owned(),
        ),
        (StopReason::OtherCluster { .. } | StopReason::TopicRecreated { .. }, Choice::CountAnew) => {
            // Somebody may have counted this log under the same name before, and removed the rows.
            Ok((log.low, Metadata { again: Some(log.high), ..other }))
        }
        (StopReason::OtherCluster { .. } | StopReason::TopicRecreated { .. }, Choice::Continue) => {
            let committed = committed.ok_or("there is no committed offset")?;
            let offset = match left_open {
                None | Some((_, OpenBatch::Nothing)) => committed,
                Some((range, OpenBatch::All)) => range.end,
                Some((range, OpenBatch::Part)) => {
                    return Err(format!(
                        "part of batch {range} is stored under the name of the other log, and only a member there can complete it"
                    ));
                }
            };
            let stored = position.progress.counted_end.max(position.progress.stored_end);
            match stored.filter(|&stored| is_same_name && stored > offset) {
                Some(stored) => Err(format!(
                    "no topic id tells both logs apart, and the tables have the other log up to offset {stored}. The records of this log \
                     from offset {offset} up to there would be taken for stored ones. Give the topic another name in this cluster, or \
                     Tallyhouse another database"
                )),
                None => Ok((offset, other)),
            }
        }
        (StopReason::RetentionGap { .. } | StopReason::IntentGone { .. }, Choice::CountAnew) => {
            Err("the records are gone".to_owned())
        }
        _ => Err("it takes another remedy".to_owned()),
    }
}

/// Commits the plans, if Kafka still has what they saw.
///
/// # Errors
/// Any of [`ResumeError`]; the plans before have been carried out.
pub async fn carry_out(config: &Config, plans: &[Plan]) -> Result<(), ResumeError> {
    let (config, plans) = (config.clone(), plans.to_vec());
    let committing = tokio::task::spawn_blocking(move || {
        let topic = &config.kafka.topics.events;
        let consumer = observer::standalone_consumer(&config).map_err(AuditError::Consumer)?;
        for Plan { partition, found, wanted, .. } in &plans {
            let fails = |error: rdkafka::error::KafkaError| ResumeError::Commit {
                partition: *partition,
                error: error.to_string(),
            };
            let now = offsets::committed(&consumer, topic, *partition, KAFKA_TIMEOUT).map_err(fails)?;
            if !may_commit(now.as_ref(), found.as_ref(), wanted) {
                return Err(ResumeError::Overtaken(*partition));
            }
            offsets::commit(&consumer, topic, &[(*partition, wanted)]).map_err(fails)?;
        }
        Ok(())
    });
    committing.await.map_err(AuditError::from)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallyhouse_core::protocol::intent::Counts;
    use tallyhouse_core::protocol::marks::Progress;

    fn position(metadata: &Metadata, reported: &str, shown: Option<u64>) -> Position {
        let committed = Some(Committed { offset: 100, metadata: metadata.encode().into_bytes() });
        let log = LogView {
            committed,
            topic_id: reported.to_owned(),
            ids_of_rows: vec![],
            cluster_id: "here".to_owned(),
            low: 10,
            high: 500,
        };
        let (topic_id, before) = (log.id_of_rows().unwrap(), Before::of(&log));
        Position {
            source: Source { cluster: String::new(), topic: "t".into(), topic_id, partition: 1 },
            progress: Progress { counted_end: shown, ..Progress::default() },
            log,
            first_stored: None,
            marks: None,
            before,
        }
    }

    fn decided(
        old: &Metadata,
        reported: &str,
        shown: Option<u64>,
        reason: &StopReason,
        open: Option<OpenBatch>,
        choice: Choice,
    ) -> Result<(u64, String), String> {
        let open = open.map(|open| (OffsetRange { start: 100, end: 150 }, open));
        let decided = decide(&position(old, reported, shown), old, reason, open, choice);
        decided.map(|(offset, metadata)| (offset, metadata.encode()))
    }

    const OPEN: Option<(u64, Counts)> = Some((150, Counts { rows: 50, rejects: 0 }));

    #[test]
    fn what_is_lost_from_the_tables_is_accepted_or_counted_again() {
        let reason = StopReason::SinkBehind { marked: 100, uncounted: None };
        let old = Metadata { topic_id: "X".into(), marked: Some(100), next: OPEN, ..Metadata::default() };
        let goes_on = "tallyhouse/2 topic=X cluster=here marked=60 end=150 rows=50 rejects=0".to_owned();
        assert_eq!(decided(&old, "X", Some(60), &reason, None, Choice::Continue), Ok((100, goes_on)));
        let again = "tallyhouse/2 topic=X cluster=here marked=60 again=150".to_owned();
        assert_eq!(decided(&old, "X", Some(60), &reason, None, Choice::CountAnew), Ok((60, again)));
        // Nothing is left, so it is the log's beginning. And rows without a topic id keep their name.
        let plain = Metadata { is_plain: true, next: None, ..old };
        let again = "tallyhouse/2 topic=X source=plain cluster=here again=100".to_owned();
        assert_eq!(decided(&plain, "", None, &reason, None, Choice::CountAnew), Ok((10, again)));
    }

    #[test]
    fn another_log_has_a_name_of_its_own() {
        let reason = StopReason::OtherCluster { offset: 100, committed: "there".into(), found: "here".into() };
        let old = Metadata { topic_id: "X".into(), cluster_id: "there".into(), ..Metadata::default() };
        let named = || "tallyhouse/2 topic=Y cluster=here".to_owned();
        let with = |open, choice| decided(&old, "Y", None, &reason, open, choice);
        assert_eq!(with(None, Choice::Continue), Ok((100, named())));
        assert_eq!(with(Some(OpenBatch::Nothing), Choice::Continue), Ok((100, named())));
        assert_eq!(with(Some(OpenBatch::All), Choice::Continue), Ok((150, named())));
        assert!(with(Some(OpenBatch::Part), Choice::Continue).unwrap_err().contains("[100, 150)"));
        assert_eq!(with(Some(OpenBatch::Part), Choice::CountAnew), Ok((10, named() + " again=500")));
    }

    /// Without topic ids the rows of both logs have one name. Then only records beyond all stored rows can be distinguished.
    #[test]
    fn logs_without_ids_go_on_behind_all_that_is_stored() {
        let reason = StopReason::OtherCluster { offset: 100, committed: "there".into(), found: "here".into() };
        let old = Metadata { cluster_id: "there".into(), ..Metadata::default() };
        let with = |shown, open, choice| decided(&old, "", shown, &reason, open, choice);
        let named = "tallyhouse/2 cluster=here".to_owned();
        assert_eq!(with(Some(100), None, Choice::Continue), Ok((100, named.clone())));
        assert_eq!(with(Some(150), Some(OpenBatch::All), Choice::Continue), Ok((150, named)));
        let stored = with(Some(120), None, Choice::Continue).unwrap_err();
        assert!(stored.contains("up to offset 120"), "{stored}");
        assert!(with(Some(100), None, Choice::CountAnew).unwrap_err().contains("another database"));
    }

    /// The rows are there, and the counters of one month are gone.
    #[test]
    fn lost_counters_alone_are_accepted_or_repaired() {
        let reason = StopReason::SinkBehind { marked: 100, uncounted: Some(99) };
        let old = Metadata { topic_id: "X".into(), marked: Some(100), ..Metadata::default() };
        let mut position = position(&old, "X", Some(100));
        position.progress.uncounted = Some(80);
        let decided = |choice| decide(&position, &old, &reason, None, choice);
        let (offset, metadata) = decided(Choice::Continue).unwrap();
        assert_eq!((offset, metadata.encode()), (100, "tallyhouse/2 topic=X cluster=here".to_owned()));
        assert!(decided(Choice::CountAnew).unwrap_err().contains("repair daily"));
    }

    #[test]
    fn what_is_gone_is_left_behind_and_not_counted_again() {
        let old = Metadata { topic_id: "X".into(), marked: Some(90), next: OPEN, ..Metadata::default() };
        let committed = "tallyhouse/2 topic=X cluster=here marked=90".to_owned();
        let gap = StopReason::RetentionGap { next: 5, low: 10 };
        assert_eq!(decided(&old, "X", Some(90), &gap, None, Choice::Continue), Ok((10, committed.clone())));
        let gone = StopReason::IntentGone { range: OffsetRange { start: 100, end: 150 }, low: 120 };
        assert_eq!(decided(&old, "X", Some(90), &gone, None, Choice::Continue), Ok((150, committed)));
        for reason in [gap, gone, StopReason::AheadOfLog { what: "it", offset: 2, high: 1 }] {
            assert!(decided(&old, "X", Some(90), &reason, None, Choice::CountAnew).is_err(), "{reason}");
        }
    }
}
