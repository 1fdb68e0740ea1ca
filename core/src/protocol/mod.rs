//! The exactly-once protocol of one partition: intent, token, mark, as a state machine without I/O.
//!
//! ```text
//!  ReadCommitted ─► ReadProgress ─(open intent)─► Fill(start..end) ─► Commit(intent) ─► ReadMarks ─┐ missing rows
//!                        │                                                                         ▼
//!                        └─(plain offset)─► Fill(from..) ─► Commit(intent) ───► Insert raw, rejected, daily
//!                                             ▲                                    │        │ outcome unknown
//!                               AwaitBatch ───┘                                    │        └─► ReadMarks
//!                                   ▲                                              ▼
//!                                   └───────────────────────────────────────── Commit(end)
//! ```
//!
//! The happy path of a batch has four steps. `Fill`/`AwaitBatch` freezes it. `Commit` of its start carries the intent. `Insert`
//! writes into each table. `Commit` of its end carries the next batch's intent when that batch is ready.
//!
//! Failure paths: a commit that failed is tried again after a comparison. If somebody else has changed the committed offset, the
//! partition starts over from it. After an insert of unknown outcome the protocol reads the marks. An expired lease is renewed by
//! a commit of the same intent, and then the protocol reads the marks. A batch that is refused for its size is announced smaller,
//! if nothing of it is applied. After each insert that follows a reading of the marks the protocol reads them again, as the
//! acknowledgement of a repeat proves nothing. If rows are acknowledged and not shown, it looks for them again with growing
//! pauses. Then it inserts them once more under another token, and then it stops the partition. Before that token, a batch of a
//! group leaves it by a commit, so that its later tables need no such looks. [`Step::Stop`] is for decisions that only an operator
//! can make.
//!
//! Exactly one action is outstanding at a time. The machine must never ask for an insert without an intent that it knows to be
//! committed. It must never write counters before the batch's rows and rejects. It must never commit an end before all inserts of
//! the batch are known to be applied. In a lifecycle topic, its rows take the place of the counters ([`Progress`]).
//!
//! Dead letters are no step of the protocol. They are delivered as the beginning of the insert into `rejected_events`. So the
//! proof of the insert is also the proof of the letters, and a delivery that failed is an insert that did not happen.

pub mod group;
pub mod intent;
pub mod lease;
pub mod marks;
pub mod outlook;
pub mod stop;

use crate::guard::{self, Guard};
use crate::protocol::group::{GroupId, OfGroup};
use crate::protocol::intent::{Counts, Intent, Metadata};
use crate::protocol::marks::{Expected, Insert, Marks, Progress, down_to_mark, missing};
use crate::protocol::stop::StopReason;
use crate::source::OffsetRange;

/// A committed offset as Kafka keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Committed {
    /// The next offset to consume.
    pub offset: u64,
    /// Metadata of the commit, byte for byte.
    pub metadata: Vec<u8>,
}

/// State of a partition in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogView {
    /// Committed offset of the group, if there is one.
    pub committed: Option<Committed>,
    /// Id of the topic; empty if the broker reports none.
    pub topic_id: String,
    /// Topic ids in the `source` of this partition's rows in the tables, empty for a plain one. They are read only without a
    /// committed offset.
    pub ids_of_rows: Vec<String>,
    /// Id of the cluster; empty if the broker reports none.
    pub cluster_id: String,
    /// First offset in the log.
    pub low: u64,
    /// One past the last offset in the log.
    pub high: u64,
}

impl LogView {
    /// Returns the committed offset, if its metadata can be read and does not belong to a deleted topic of the same name.
    pub fn committed_offset(&self) -> Option<u64> {
        let committed = self.committed.as_ref()?;
        let metadata = Metadata::decode(&committed.metadata).ok()?;
        metadata.is_none_or(|metadata| metadata.is_of(&self.topic_id)).then_some(committed.offset)
    }

    /// Returns the topic id in the `source` of this partition's rows, also of future rows; empty for a plain one. The committed
    /// metadata contains it. Without a committed offset the rows do: the rows of a topic with an id are never older than those of
    /// one without. Returns `None` if the brokers report no id, and there are rows of several.
    pub fn id_of_rows(&self) -> Option<String> {
        let reported = Some(self.topic_id.clone());
        let metadata = match &self.committed {
            Some(committed) => Metadata::decode(&committed.metadata),
            None => Ok(None),
        };
        match metadata {
            Ok(Some(metadata)) if metadata.is_of(&self.topic_id) => Some(metadata.id_of_rows().to_owned()),
            Ok(None) if self.committed.is_none() => {
                let mut ids = self.ids_of_rows.iter().filter(|id| !id.is_empty());
                match (ids.next(), ids.next()) {
                    (None, _) if self.ids_of_rows.is_empty() => reported,
                    (None, _) => Some(String::new()),
                    (Some(id), None) if self.topic_id.is_empty() => Some(id.clone()),
                    (Some(_), Some(_)) if self.topic_id.is_empty() => None,
                    _ => reported,
                }
            }
            _ => reported,
        }
    }
}

/// True if a commit may be made: Kafka holds the commit that the member expects, or already the one that it wants. The caller
/// must check it each time, as close before the commit as possible.
pub fn may_commit(found: Option<&Committed>, expected: Option<&Committed>, wanted: &Committed) -> bool {
    found == expected || found == Some(wanted) || !guard::is_on(Guard::Compare)
}

/// True if a commit vouches for rows: its offset lies behind the one that the member expects.
pub fn vouches_for_rows(expected: Option<&Committed>, wanted: &Committed) -> bool {
    wanted.offset > expected.map_or(0, |expected| expected.offset)
}

/// The facts about a frozen batch that the protocol needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Frozen {
    /// The offsets the batch covers.
    pub range: OffsetRange,
    /// Rows that it leaves in the tables.
    pub expected: Expected,
    /// The group with which it is inserted; `None` if it is inserted alone.
    pub group: Option<OfGroup>,
}

impl Frozen {
    fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    fn group_id(&self) -> Option<GroupId> {
        self.group.map(|group| group.id)
    }

    /// Returns the batch as it leaves its group at the first of the inserts that are `left`. Returns `None` if it has left before, or if
    /// not all later inserts are left. Nobody has seen the first one's rows, so nobody has gone on to a later table.
    fn leaving(&self, left: &[Insert]) -> Option<Frozen> {
        let group = self.group.filter(|group| group.left_at.is_none())?;
        let (Insert { table, .. }, later) = left.split_first().filter(|(_, later)| !later.is_empty())?;
        let all = self.expected.inserts();
        let all_later = all.iter().skip_while(|insert| insert.table != *table).skip(1);
        let group = OfGroup { left_at: Some(*table), ..group };
        all_later.eq(later).then(|| Frozen { group: Some(group), ..self.clone() })
    }

    fn counts(&self) -> Counts {
        Counts { rows: self.expected.rows(), rejects: self.expected.rejected }
    }
}

/// The next action for the program around the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read the committed offset with its metadata, the topic id and the log's bounds. Answer: [`Outcome::Log`].
    ReadCommitted,
    /// Look again after a pause, as [`Action::ReadCommitted`] does. If the reason is found as often as the limit, it stops the
    /// partition. Answers are those of [`Action::ReadCommitted`].
    LookAgain(StopReason),
    /// Read from the tables how far the source has come, with rows at `from` and later. Answer: [`Outcome::Progress`].
    ReadProgress {
        /// The committed offset, 0 without one.
        from: u64,
    },
    /// Drop the buffered records and consume from `from`. Freeze a batch that ends exactly at `until` if it is given, otherwise
    /// when one is due. Answer: [`Outcome::Batch`], [`Outcome::Drained`], [`Outcome::PositionLost`] or, for a replay,
    /// [`Outcome::TooLarge`].
    Fill {
        /// First offset to consume.
        from: u64,
        /// Offset at which the batch must end.
        until: Option<u64>,
        /// Greatest number of records of a batch that is no replay, if larger ones were refused.
        records_max: Option<u64>,
    },
    /// Continue to consume, and freeze the next batch when it is due. Answers are those of [`Action::Fill`].
    AwaitBatch,
    /// Freeze the next batch if it is due already. Answer: [`Outcome::Batch`] or [`Outcome::NoBatch`].
    TakeBatch,
    /// Read the committed offset. If it is `expected` (or already `wanted`), commit `wanted` with the member's generation.
    /// Answer: [`Outcome::CommitDone`], [`Outcome::CommitFailed`], [`Outcome::CommitOvertaken`], [`Outcome::Unconfirmed`] or, if it
    /// `announces`, [`Outcome::Drained`].
    Commit {
        /// Commit that Kafka must still hold.
        expected: Option<Committed>,
        /// Commit that Kafka is to hold.
        wanted: Committed,
        /// The commit announces a batch that nobody else knows of yet. It must not be made once the partition is being revoked.
        announces: bool,
    },
    /// Insert part of a batch that was frozen and is not committed, if the lease holds. Answer: [`Outcome::Inserted`],
    /// [`Outcome::InsertUnproven`], [`Outcome::InsertUnknown`], [`Outcome::InsertTooLarge`] or [`Outcome::LeaseExpired`].
    Insert {
        /// Offsets of the batch, the end exclusive.
        range: OffsetRange,
        /// The group of the batch.
        group: Option<GroupId>,
        /// Part of the batch to insert.
        insert: Insert,
        /// Number of tokens of the insert that are used up or not to be used. It is part of the token. From 1 on the batch is
        /// inserted alone.
        attempt: u32,
    },
    /// Wait until no insert of this batch runs any more, then read the tables. Answer: [`Outcome::Marks`].
    ReadMarks {
        /// Offsets of the batch, the end exclusive.
        range: OffsetRange,
        /// The group of the batch.
        group: Option<GroupId>,
        /// Wait as well until no insert of an earlier owner can arrive any more. Then the answer may also be
        /// [`Outcome::Drained`].
        quiet: bool,
        /// Above 0: an acknowledged insert was not shown, and this is the next look. Pause first, longer each time. Then the
        /// answer may also be [`Outcome::Drained`].
        look: u32,
    },
}

/// The answer of the protocol to an outcome.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Perform this action, and pass its outcome on.
    Do(Action),
    /// Give the partition up: everything frozen is committed. This is final.
    Release,
    /// Stop the partition, with a visible error. This is final until the next assignment.
    Stop(StopReason),
}

/// The result of an [`Action`] that the program around the protocol has performed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// State of the partition in Kafka.
    Log(LogView),
    /// Position of the source in the tables.
    Progress(Progress),
    /// A batch is frozen.
    Batch(Frozen),
    /// No batch is due.
    NoBatch,
    /// The partition is being revoked or the service shuts down. So there is no batch, and no answer to a question that precedes
    /// one.
    Drained,
    /// The reader has no position any more, or the log ends before the required end. The protocol decides from the committed
    /// offset if that is a loss, or only somebody else's progress: the partition starts over.
    PositionLost,
    /// The batch to complete does not fit into this member's memory. About `limit_bytes` of `memory.limit_bytes` would be enough.
    TooLarge {
        /// Value of `memory.limit_bytes` that it needs.
        limit_bytes: u64,
    },
    /// The commit is acknowledged.
    CommitDone,
    /// The commit failed or its outcome is unknown.
    CommitFailed,
    /// Kafka holds neither the expected commit nor the wanted one.
    CommitOvertaken,
    /// Rows may have been lost with a replica since they were inserted. The commit is not made, and the marks decide.
    Unconfirmed,
    /// The insert is acknowledged.
    Inserted,
    /// The insert is acknowledged, and the server may have dropped it. Somebody else may have used the group's token.
    InsertUnproven,
    /// The insert failed or its outcome is unknown.
    InsertUnknown,
    /// The insert was refused for its size, several times.
    InsertTooLarge,
    /// Nothing was inserted: the last commit is too old to be sure of still owning the partition.
    LeaseExpired,
    /// Rows that the tables hold of the batch.
    Marks(Marks),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    /// Waiting for [`Outcome::Log`] before anything else is decided.
    Reading,
    /// Waiting for [`Outcome::Progress`] to see if an announced batch is the one to complete.
    Judging { log: LogView, intent: Intent },
    /// The counters end at the end of an announced batch: waiting for marks that show all its rows.
    CheckingCounted { log: LogView, intent: Intent, progress: Progress },
    /// Waiting for [`Outcome::Progress`] to find the offset to start from.
    Locating { log: LogView },
    /// The announced batch's records are gone: waiting for marks that show it applied.
    CheckingGone { intent: Intent, low: u64 },
    /// Re-reading an announced batch.
    Replaying { intent: Intent },
    /// The announced batch does not fit into memory: waiting for marks that show nothing of it applied. `quiet`: in addition,
    /// nothing of it can arrive any more.
    Shrinking { intent: Intent, limit_bytes: u64, quiet: bool },
    /// An insert of the batch was refused for its size: waiting for marks that show nothing of the batch applied. `quiet`: in
    /// addition, nothing of it can arrive any more.
    Refused { batch: Frozen, insert: Insert, quiet: bool },
    /// Waiting for the next batch. `first`: this is the first batch of this assignment. An intent for the same offsets may have
    /// been lost, and its tokens used.
    Filling { first: bool },
    /// Committing the intent of a batch. `applied_unknown`: part of it may be applied already. `repeated`: as in `Asking`, if the
    /// lease expired before the next insert.
    Announcing { batch: Frozen, applied_unknown: bool, repeated: Option<(Insert, u32)> },
    /// Reading the marks of a batch. `differs`: the counts of its intent, if the batch was rebuilt with other counts. `repeated`:
    /// the last repeated and acknowledged insert, with the number of times so far. `look`: the number of repeated looks for its
    /// rows.
    Asking { batch: Frozen, differs: Option<Counts>, repeated: Option<(Insert, u32)>, look: u32 },
    /// Inserting a batch; the first of `left` is under way. `attempt`: `None` at the first time, when no token of the batch was
    /// ever used.
    Inserting { batch: Frozen, left: Vec<Insert>, attempt: Option<u32> },
    /// All is applied; looking for a batch whose intent the commit of the end can carry.
    Applied { batch: Frozen },
    /// Committing a batch's end, with the next batch's intent if there is one.
    Finishing { next: Option<Frozen> },
    /// Committing the last batch's end before the partition is given up.
    Leaving,
    /// Committing an offset up to which the marks show everything applied. Afterwards the partition starts over from it.
    Settling,
    /// Released or stopped: no action follows.
    Ended,
}

/// The protocol of one assignment of one partition. Create it with [`Protocol::start`], then pass each outcome to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Protocol {
    state: State,
    /// Commit that Kafka holds, as far as this member knows.
    known: Option<Committed>,
    /// Commit that Kafka holds once the commit under way succeeds.
    wanted: Option<Committed>,
    topic_id: String,
    is_plain: bool,
    cluster_id: String,
    /// Greatest mark that `daily` has certainly shown. A lower one at the next assignment means that rows are gone.
    marked: Option<u64>,
    /// Records before this offset may have been inserted before, and their tokens used. Either the committed offset is gone and
    /// the tables have rows, or an operator has set the offset back.
    again: Option<u64>,
    /// Offset at which the next batch must begin.
    next_start: u64,
    /// Number of times that an announced batch was rebuilt with other records than those of its intent.
    incomplete: u32,
    /// Number of looks in a row that have found a reason to stop the partition.
    doubts: u32,
    /// Greatest number of records of a batch, once a larger one was refused. It only falls.
    records_max: Option<u64>,
}

/// Number of times that a batch is rebuilt with a wrong number of records before the partition stops.
const INCOMPLETE_MAX: u32 = 3;
/// Number of looks for the rows of an acknowledged insert, after the first one. A replica or a cache may show them late.
pub const LOOKS_FOR_ROWS: u32 = 3;
/// Number of acknowledged inserts of the same rows, each under a token of its own. An insert that left no rows may have used the
/// first token. If the second one also leaves none, the rows are hidden, and each further insert would count them once more.
pub const INSERTS_MAX: u32 = 2;

/// Number of looks in a row that must find the log too short, or the tables too empty, before the partition stops. A broker that
/// does not know yet that it is no longer the leader reports an old end.
pub const LOOKS_MAX: u32 = 10;

impl Protocol {
    /// Returns the protocol of a newly assigned partition, and its first action.
    pub fn start() -> (Protocol, Action) {
        let protocol = Protocol {
            state: State::Reading,
            known: None,
            wanted: None,
            topic_id: String::new(),
            is_plain: false,
            next_start: 0,
            incomplete: 0,
            cluster_id: String::new(),
            marked: None,
            again: None,
            doubts: 0,
            records_max: None,
        };
        (protocol, Action::ReadCommitted)
    }

    /// Takes the outcome of the last action and returns the next step. If an outcome does not belong to the last action, a debug
    /// build panics. A release build starts over from the committed offset, which is always safe.
    pub fn on_outcome(&mut self, seen: Outcome) -> Step {
        let state = std::mem::replace(&mut self.state, State::Ended);
        if let Outcome::Batch(batch) = &seen {
            // A batch that was lost on its way would leave a gap.
            if batch.range.start != self.next_start && guard::is_on(Guard::Fill) {
                return self.start_over();
            }
            self.next_start = batch.range.end;
        }
        match (state, seen) {
            (State::Reading, Outcome::Log(log)) => self.on_log(log),
            (State::Judging { .. } | State::Locating { .. }, Outcome::Progress(progress)) if self.is_behind(progress) => {
                let uncounted = progress.uncounted.filter(|_| self.marked <= progress.counted_end);
                self.doubt(StopReason::SinkBehind { marked: self.marked.unwrap_or(0), uncounted })
            }
            (State::Judging { log, intent }, Outcome::Progress(progress)) => self.on_announced(log, intent, progress),
            (State::CheckingCounted { log, intent, progress }, Outcome::Marks(marks)) => {
                // The rows may have been hidden when the progress was read, and so their missing counters.
                match intent.counts == Some(marks.counts()) && marks.are_counted() {
                    true => self.on_progress(&log, progress),
                    false => self.replay(intent, &log),
                }
            }
            (State::Locating { log }, Outcome::Progress(progress)) => self.on_progress(&log, progress),
            (State::CheckingGone { intent, low }, Outcome::Marks(marks)) => self.on_gone_marks(intent, low, &marks),
            (State::Replaying { intent }, Outcome::Batch(batch)) => {
                self.on_rebuilt(intent, Frozen { group: intent.group, ..batch })
            }
            (State::Replaying { intent }, Outcome::TooLarge { limit_bytes }) => self.shrink(intent, limit_bytes, false),
            (State::Shrinking { intent, limit_bytes, quiet }, Outcome::Marks(marks)) => {
                match intent.counts.is_some() && marks.show_nothing(intent.range) {
                    false => Step::Stop(StopReason::ReplayTooLarge { range: intent.range, limit_bytes }),
                    true if !quiet && guard::is_on(Guard::Quiet) => self.shrink(intent, limit_bytes, true),
                    // The announcement is taken back, so that the same records are announced in smaller batches.
                    true => {
                        let wanted = self.position(intent.range.start, None);
                        self.commit(State::Settling, wanted)
                    }
                }
            }
            // The reader has passed only transaction markers, so there is nothing to announce.
            (State::Filling { .. }, Outcome::Batch(batch)) if batch.is_empty() => self.finish(batch.range.end, None),
            (State::Filling { first }, Outcome::Batch(batch)) => {
                let applied_unknown = first || self.is_read_again(&batch);
                self.announce(batch, applied_unknown, None)
            }
            (
                State::Reading
                | State::Judging { .. }
                | State::Locating { .. }
                | State::CheckingGone { .. }
                | State::Replaying { .. }
                | State::Shrinking { .. }
                | State::Refused { .. }
                | State::Filling { .. }
                // Nothing of the batch is inserted. If the commit succeeded in spite of that, the next owner completes the batch.
                | State::Announcing { applied_unknown: false, .. }
                // The insert is acknowledged and its rows are not shown: the next owner continues to look.
                | State::Asking { .. },
                Outcome::Drained,
            ) => Step::Release,
            (State::Announcing { batch, applied_unknown, repeated }, Outcome::CommitDone) => {
                self.known = self.wanted.take();
                match applied_unknown {
                    false => self.insert_all(batch),
                    // A repeated insert was looked for often enough. A second series of looks could last longer than each lease.
                    true => self.ask(batch, None, repeated, LOOKS_FOR_ROWS),
                }
            }
            (State::Asking { batch, differs, repeated, look }, Outcome::Marks(marks)) => {
                self.on_marks(batch, differs, repeated, look, &marks)
            }
            (State::Inserting { batch, mut left, attempt: None }, Outcome::Inserted) => {
                left.remove(0);
                self.insert(batch, left, None)
            }
            (State::Inserting { batch, mut left, attempt }, Outcome::Inserted | Outcome::InsertUnproven) => {
                let insert = left.remove(0);
                match guard::is_on(Guard::Verify) {
                    true => self.ask(batch, None, Some((insert, attempt.unwrap_or(0) + 1)), 0),
                    false => self.insert(batch, left, attempt),
                }
            }
            (State::Inserting { batch, mut left, .. }, Outcome::InsertTooLarge) => {
                let insert = left.remove(0);
                self.look_at_refused(batch, insert, false)
            }
            (State::Refused { batch, insert, quiet }, Outcome::Marks(marks)) => {
                self.on_refused(batch, insert, quiet, &marks)
            }
            (State::Inserting { batch, left, attempt }, seen @ (Outcome::InsertUnknown | Outcome::LeaseExpired)) => {
                let repeated = left.first().cloned().zip(attempt.filter(|&inserts| inserts > 0));
                match seen {
                    Outcome::LeaseExpired => self.announce(batch, true, repeated),
                    _ => self.ask(batch, None, repeated, LOOKS_FOR_ROWS),
                }
            }
            (State::Applied { .. }, Outcome::Batch(next)) if next.is_empty() => self.finish(next.range.end, None),
            (State::Applied { batch }, Outcome::Batch(next)) => self.finish(batch.range.end, Some(next)),
            (State::Applied { batch }, Outcome::NoBatch | Outcome::Drained) => self.finish(batch.range.end, None),
            // The commit omits the announcement, of which nobody else knows yet. After that there is nothing left to do.
            (State::Finishing { next: Some(next) }, Outcome::Drained) => {
                let wanted = self.position(next.range.start, None);
                self.commit(State::Leaving, wanted)
            }
            // A batch that no second replica confirms is left to the next owner.
            (State::Leaving, Outcome::CommitDone | Outcome::CommitOvertaken | Outcome::Unconfirmed) => Step::Release,
            (State::Finishing { next }, Outcome::CommitDone) => {
                self.known = self.wanted.take();
                match next {
                    Some(batch) if self.is_read_again(&batch) => self.ask(batch, None, None, 0),
                    Some(batch) => self.insert_all(batch),
                    None => self.enter(State::Filling { first: false }, Action::AwaitBatch),
                }
            }
            (
                state @ (State::Announcing { .. } | State::Finishing { .. } | State::Leaving | State::Settling),
                Outcome::CommitFailed,
            ) => {
                match self.wanted.clone() {
                    Some(wanted) => self.commit(state, wanted),
                    None => self.start_over(),
                }
            }
            (State::Replaying { .. } | State::Filling { .. }, Outcome::PositionLost)
            | (
                State::Announcing { .. } | State::Finishing { .. } | State::Settling,
                Outcome::CommitOvertaken | Outcome::Unconfirmed,
            )
            | (State::Settling, Outcome::CommitDone) => self.start_over(),
            (state, seen) => {
                debug_assert!(false, "no action leads from {state:?} to {seen:?}");
                self.start_over()
            }
        }
    }

    fn enter(&mut self, state: State, action: Action) -> Step {
        self.state = state;
        Step::Do(action)
    }

    fn start_over(&mut self) -> Step {
        self.enter(State::Reading, Action::ReadCommitted)
    }

    fn on_log(&mut self, log: LogView) -> Step {
        self.topic_id.clone_from(&log.topic_id);
        self.is_plain = log.id_of_rows().is_some_and(|id| id.is_empty());
        self.cluster_id.clone_from(&log.cluster_id);
        self.known.clone_from(&log.committed);
        (self.marked, self.again) = (None, None);
        let Some(committed) = &log.committed else {
            if log.topic_id.is_empty() {
                self.topic_id = log.id_of_rows().unwrap_or_default();
            }
            return self.locate(log, 0);
        };
        let offset = committed.offset;
        let metadata = match Metadata::decode(&committed.metadata) {
            Ok(metadata) => metadata,
            Err(error) => return Step::Stop(StopReason::BadMetadata { offset, error }),
        };
        let reported = metadata.as_ref().map_or("", |m| &m.cluster_id);
        if !reported.is_empty() && !log.cluster_id.is_empty() && reported != log.cluster_id {
            let (committed, found) = (reported.to_owned(), log.cluster_id);
            return Step::Stop(StopReason::OtherCluster { offset, committed, found });
        }
        let ours = metadata.as_ref().is_none_or(|m| m.is_of(&log.topic_id));
        if let Some(metadata) = metadata.as_ref().filter(|_| ours) {
            (self.marked, self.again) = (metadata.marked, metadata.again);
            if log.topic_id.is_empty() {
                self.topic_id.clone_from(&metadata.topic_id);
            }
        }
        let group = metadata.as_ref().and_then(|m| m.group);
        match metadata.and_then(|m| m.next) {
            Some((end, counts)) => {
                let range = OffsetRange { start: offset, end };
                if !ours {
                    return Step::Stop(StopReason::TopicRecreated { range });
                }
                let intent = Intent { range, counts: Some(counts), group };
                let from = down_to_mark(offset, self.marked);
                self.enter(State::Judging { log, intent }, Action::ReadProgress { from })
            }
            // The offset belongs to a deleted topic of the same name: the new topic is consumed from its beginning.
            None if !ours => self.locate(log, 0),
            None => self.locate(log, offset),
        }
    }

    fn locate(&mut self, log: LogView, from: u64) -> Step {
        let from = down_to_mark(from, self.marked);
        self.enter(State::Locating { log }, Action::ReadProgress { from })
    }

    /// True if the batch may have been inserted before.
    fn is_read_again(&self, batch: &Frozen) -> bool {
        self.again.is_some_and(|again| batch.range.start < again)
    }

    /// True if rows that were shown are gone: ClickHouse was restored from a backup, has lost a part, or shows an older state. A
    /// row before the committed offset was counted, so one that is in no counter proves the same.
    fn is_behind(&self, progress: Progress) -> bool {
        let committed = self.known.as_ref().map(|known| known.offset);
        let is_missing = progress.uncounted.zip(committed).is_some_and(|(row, committed)| row < committed);
        let is_behind = self.marked > progress.counted_end || self.marked.is_some() && is_missing;
        is_behind && guard::is_on(Guard::Behind)
    }

    /// Completes an announced batch, unless the marks have passed it or cut through it. Then the announcement is an old one:
    /// librdkafka sent a commit late, over a newer one. (It keeps one for up to a session timeout while the coordinator is away.)
    /// A batch's own counters end at the end of the batch. So a mark inside of it or beyond it is another batch's, and so is a
    /// row beyond it.
    ///
    /// Several smaller batches may end there too, each with the counters of another month. Counters are written last. If none is
    /// missing and all rows are there, everything is applied, by any member.
    fn on_announced(&mut self, log: LogView, intent: Intent, progress: Progress) -> Step {
        let range @ OffsetRange { start, end } = intent.range;
        let overtaken = progress.counted_end.is_some_and(|counted| counted > start && counted != end)
            || progress.stored_end.is_some_and(|stored| stored > end);
        if overtaken && guard::is_on(Guard::Overtaken) {
            return self.on_progress(&log, progress);
        }
        let counted = progress.counted_end == Some(end) && progress.uncounted.is_none();
        if counted {
            let group = intent.group_id();
            let checking = State::CheckingCounted { log, intent, progress };
            return self.enter(checking, Action::ReadMarks { range, group, quiet: false, look: 0 });
        }
        self.replay(intent, &log)
    }

    fn replay(&mut self, intent: Intent, log: &LogView) -> Step {
        let (range, low) = (intent.range, log.low);
        if range.end > log.high {
            let what = "the announced batch's end";
            return self.doubt(StopReason::AheadOfLog { what, offset: range.end, high: log.high });
        }
        self.doubts = 0;
        if low > range.start {
            let group = intent.group_id();
            let asking = Action::ReadMarks { range, group, quiet: false, look: 0 };
            return self.enter(State::CheckingGone { intent, low }, asking);
        }
        let fill = self.fill(range.start, Some(range.end));
        self.enter(State::Replaying { intent }, fill)
    }

    /// Another member may have continued since, or a server may show an old state. So one look proves nothing, and nothing is at
    /// risk meanwhile.
    fn doubt(&mut self, reason: StopReason) -> Step {
        self.doubts += 1;
        match self.doubts < LOOKS_MAX && guard::is_on(Guard::Doubt) {
            true => self.enter(State::Reading, Action::LookAgain(reason)),
            false => Step::Stop(reason),
        }
    }

    /// Decides where to start without an open intent: at the committed offset or at the marks, whichever is further. Rows beyond
    /// that belong to a batch whose intent was lost. It is rebuilt up to its last row.
    fn on_progress(&mut self, log: &LogView, progress: Progress) -> Step {
        let committed = log.committed_offset();
        let marks = [("the committed offset", committed), ("the mark in `daily`", progress.counted_end)];
        for (what, offset) in marks.into_iter().chain([("a row's offset", progress.stored_end)]) {
            if let Some(offset) = offset.filter(|&offset| offset > log.high) {
                return self.doubt(StopReason::AheadOfLog { what, offset, high: log.high });
            }
        }
        self.doubts = 0;
        self.marked = self.marked.max(progress.counted_end);
        if log.committed.is_none() && progress.counted_end.max(progress.stored_end).is_some() {
            self.again = Some(log.high);
        }
        if let (Some(start), Some(end)) = (progress.uncounted, progress.counted_end) {
            return self.replay(Intent { range: OffsetRange { start, end }, counts: None, group: None }, log);
        }
        let from = committed.max(progress.counted_end).max(progress.rejected_end);
        if let Some(next) = from.filter(|&next| next < log.low) {
            return Step::Stop(StopReason::RetentionGap { next, low: log.low });
        }
        if let Some(end) = progress.stored_end.filter(|&end| end > from.unwrap_or(log.low)) {
            let range = OffsetRange { start: from.unwrap_or(log.low), end };
            return self.replay(Intent { range, counts: None, group: None }, log);
        }
        // Nothing was ever stored of an empty log. Its start is committed. So the member notices if retention takes records
        // before they are consumed. A tool that reads the group's lag does not take the partition for one that nobody consumes.
        let never_read = from.is_none() && log.low == log.high;
        match from.filter(|_| from != committed).or(never_read.then_some(log.low)) {
            Some(applied) => {
                let wanted = self.position(applied, None);
                self.commit(State::Settling, wanted)
            }
            None => {
                let fill = self.fill(from.unwrap_or(log.low), None);
                self.enter(State::Filling { first: true }, fill)
            }
        }
    }

    fn on_gone_marks(&mut self, intent: Intent, low: u64, marks: &Marks) -> Step {
        let Intent { range, counts, .. } = intent;
        if counts.is_some_and(|counts| marks.show_applied(range, counts)) {
            let wanted = self.position(range.end, None);
            return self.commit(State::Settling, wanted);
        }
        Step::Stop(StopReason::IntentGone { range, low })
    }

    /// Another decoder never changes the number of records. If the number differs, records are missing, and the batch is read
    /// once more.
    fn on_rebuilt(&mut self, intent: Intent, batch: Frozen) -> Step {
        let (range, rebuilt) = (batch.range, batch.counts());
        match intent.counts.filter(|&counts| counts != rebuilt) {
            Some(intent) if intent.records() != rebuilt.records() && guard::is_on(Guard::Whole) => {
                self.incomplete += 1;
                match self.incomplete < INCOMPLETE_MAX {
                    true => self.start_over(),
                    false => Step::Stop(StopReason::RebuiltDiffers { range, rebuilt, intent }),
                }
            }
            Some(intent) => self.ask(batch, Some(intent), None, 0),
            // A second commit of the intent shows that this member owns the partition before it inserts anything.
            None => self.announce(batch, true, None),
        }
    }

    /// Reads the marks to see if a batch that a member with more memory has announced may be announced smaller.
    fn shrink(&mut self, intent: Intent, limit_bytes: u64, quiet: bool) -> Step {
        let (range, group) = (intent.range, intent.group_id());
        self.enter(State::Shrinking { intent, limit_bytes, quiet }, Action::ReadMarks { range, group, quiet, look: 0 })
    }

    fn fill(&mut self, from: u64, until: Option<u64>) -> Action {
        self.next_start = from;
        Action::Fill { from, until, records_max: self.records_max }
    }

    /// Reads the marks to see if a batch that was refused for its size may be announced smaller.
    fn look_at_refused(&mut self, batch: Frozen, insert: Insert, quiet: bool) -> Step {
        let (range, group) = (batch.range, batch.group_id());
        self.enter(State::Refused { batch, insert, quiet }, Action::ReadMarks { range, group, quiet, look: 0 })
    }

    /// Takes back a batch that was refused for its size. Its records are announced in batches of at most half its size. The
    /// halving ends at batches of one record.
    fn on_refused(&mut self, batch: Frozen, insert: Insert, quiet: bool, marks: &Marks) -> Step {
        let (range, records) = (batch.range, batch.counts().records());
        // If this is not the first insert, an earlier one was applied, even if the marks do not show it.
        let is_first = batch.expected.inserts().first() == Some(&insert);
        match missing(&batch.expected, range, marks) {
            Ok(_) if is_first && marks.show_nothing(range) && records > 1 => {
                if !quiet && guard::is_on(Guard::Quiet) {
                    return self.look_at_refused(batch, insert, true);
                }
                self.records_max = Some(records / 2);
                let wanted = self.position(range.start, None);
                self.commit(State::Settling, wanted)
            }
            // Some of its ClickHouse partitions are applied, so the rest is smaller.
            Ok(left) if left.first() != Some(&insert) => self.insert(batch, left, Some(0)),
            Ok(_) => Step::Stop(StopReason::InsertTooLarge { range, records, table: insert.table }),
            Err(conflict) => Step::Stop(StopReason::Conflict { range, conflict }),
        }
    }

    fn on_marks(
        &mut self,
        batch: Frozen,
        differs: Option<Counts>,
        repeated: Option<(Insert, u32)>,
        look: u32,
        marks: &Marks,
    ) -> Step {
        let (range, group) = (batch.range, batch.group_id());
        match (missing(&batch.expected, range, marks), differs) {
            (Ok(left), None) => {
                let same = |(insert, _): &(Insert, u32)| left.first().is_some_and(|first| first.table == insert.table);
                let Some((mut insert, inserts)) = repeated.filter(same) else {
                    return self.insert(batch, left, Some(0));
                };
                // The tables show less than before. Another token would insert the hidden rows once more.
                let is_hidden = !left[0].partitions.iter().all(|partition| insert.partitions.contains(partition));
                if !is_hidden || !guard::is_on(Guard::Hidden) {
                    insert = left[0].clone();
                }
                let table = insert.table;
                let looks = if insert == left[0] { LOOKS_FOR_ROWS } else { 2 * LOOKS_FOR_ROWS };
                match guard::is_on(Guard::Shown) {
                    true if look < looks => {
                        let look = look + 1;
                        let asking = State::Asking { batch, differs, repeated: Some((insert, inserts)), look };
                        self.enter(asking, Action::ReadMarks { range, group, quiet: false, look })
                    }
                    true if inserts >= INSERTS_MAX || insert != left[0] => {
                        Step::Stop(StopReason::NotShown { range, table, inserts })
                    }
                    // Otherwise such a series of looks would follow for each table.
                    _ => match batch.leaving(&left) {
                        Some(batch) if guard::is_on(Guard::Leave) => {
                            self.announce(batch, true, Some((insert, inserts)))
                        }
                        leaving => self.insert(leaving.unwrap_or(batch), left, Some(inserts)),
                    },
                }
            }
            (Err(conflict), None) => Step::Stop(StopReason::Conflict { range, conflict }),
            // A batch that was rebuilt differently is harmless while nothing of it is applied: the intent is committed again.
            (Ok(left), Some(_)) if left == batch.expected.inserts() => self.announce(batch, true, None),
            // Rows that do not fit the rebuilt batch are no conflict: they fit the batch as it was announced.
            (_, Some(intent)) => {
                let rebuilt = batch.counts();
                Step::Stop(StopReason::RebuiltDiffers { range, rebuilt, intent })
            }
        }
    }

    fn position(&self, offset: u64, next: Option<&Frozen>) -> Committed {
        let next = next.filter(|_| guard::is_on(Guard::Intent));
        let (next, group) = (next.map(|batch| (batch.range.end, batch.counts())), next.and_then(|batch| batch.group));
        let (topic_id, cluster_id) = (self.topic_id.clone(), self.cluster_id.clone());
        let again = self.again.filter(|&again| offset < again && guard::is_on(Guard::Again));
        let metadata =
            Metadata { topic_id, is_plain: self.is_plain, cluster_id, marked: self.marked, again, next, group };
        Committed { offset, metadata: metadata.encode().into_bytes() }
    }

    fn commit(&mut self, state: State, wanted: Committed) -> Step {
        self.wanted = Some(wanted.clone());
        let announces =
            matches!(state, State::Announcing { applied_unknown: false, .. } | State::Finishing { next: Some(_) });
        self.enter(state, Action::Commit { expected: self.known.clone(), wanted, announces })
    }

    fn announce(&mut self, batch: Frozen, applied_unknown: bool, repeated: Option<(Insert, u32)>) -> Step {
        let wanted = self.position(batch.range.start, Some(&batch));
        self.commit(State::Announcing { batch, applied_unknown, repeated }, wanted)
    }

    /// Reads the marks. `look`: as in `Asking`, without a pause before this one.
    fn ask(&mut self, batch: Frozen, differs: Option<Counts>, repeated: Option<(Insert, u32)>, look: u32) -> Step {
        let (range, group) = (batch.range, batch.group_id());
        self.enter(
            State::Asking { batch, differs, repeated, look },
            Action::ReadMarks { range, group, quiet: false, look: 0 },
        )
    }

    fn insert_all(&mut self, batch: Frozen) -> Step {
        let left = batch.expected.inserts();
        self.insert(batch, left, None)
    }

    /// Inserts the rest of a batch. An acknowledgement alone does not count if a token may have been used before. ClickHouse
    /// stores the token before the rows. If it dies in between, it acknowledges and drops every repeat. So the marks are read
    /// after each repeat. Rows that are still missing after some looks are inserted under another token. A late insert under the
    /// first one would be dropped. The number of such inserts has a bound, because rows may be hidden permanently.
    fn insert(&mut self, batch: Frozen, left: Vec<Insert>, attempt: Option<u32>) -> Step {
        match left.first().cloned() {
            Some(insert) => {
                let (range, group) = (batch.range, batch.group_id());
                let left_before = batch.group.is_some_and(|group| group.has_left_before(insert.table));
                let attempt_of_token = attempt.unwrap_or(0) + u32::from(left_before);
                let action = Action::Insert { range, group, insert, attempt: attempt_of_token };
                self.enter(State::Inserting { batch, left, attempt }, action)
            }
            None => {
                if !batch.expected.daily.is_empty() {
                    self.marked = self.marked.max(Some(batch.range.end));
                }
                self.enter(State::Applied { batch }, Action::TakeBatch)
            }
        }
    }

    fn finish(&mut self, end: u64, next: Option<Frozen>) -> Step {
        let wanted = self.position(end, next.as_ref());
        self.commit(State::Finishing { next }, wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Table;
    use std::collections::BTreeMap;

    fn announced(end: u64, rows: u64, high: u64) -> LogView {
        let next = Some((end, Counts { rows, rejects: 0 }));
        let metadata = Metadata { topic_id: "id".into(), next, ..Metadata::default() };
        let committed = Some(Committed { offset: 0, metadata: metadata.encode().into_bytes() });
        LogView { committed, topic_id: "id".into(), ids_of_rows: vec![], cluster_id: String::new(), low: 0, high }
    }

    /// An announcement of [0, 2) comes late, after another owner has applied [0, 1) of October and [1, 2) of November. If it were
    /// completed, it would count October's event again, as October's counters end before it.
    #[test]
    fn what_others_have_applied_in_parts_is_not_replayed() {
        let progress = Progress { counted_end: Some(2), ..Progress::default() };
        let raw = [(20_261_031, 1), (20_261_101, 1)];
        let daily = [(202_610, 1), (202_611, 2)].into();
        let after = |rows: &[(u32, u64)], last_rows: [(u32, u64); 2]| {
            let (mut protocol, _) = Protocol::start();
            assert_eq!(
                protocol.on_outcome(Outcome::Log(announced(2, 2, 2))),
                Step::Do(Action::ReadProgress { from: 0 })
            );
            let step = protocol.on_outcome(Outcome::Progress(progress));
            assert!(matches!(step, Step::Do(Action::ReadMarks { .. })), "{step:?}");
            let raw = rows.iter().copied().collect();
            let (last_rows, daily) = (last_rows.into(), BTreeMap::clone(&daily));
            protocol.on_outcome(Outcome::Marks(Marks { raw, last_rows, daily, ..Marks::default() }))
        };
        let in_parts = [(20_261_031, 0), (20_261_101, 1)];
        assert!(matches!(after(&raw, in_parts), Step::Do(Action::Commit { wanted: Committed { offset: 2, .. }, .. })));
        // A row that a TTL has removed proves nothing about its counters: the batch decides.
        let replay = Step::Do(Action::Fill { from: 0, until: Some(2), records_max: None });
        assert_eq!(after(&raw[1..], in_parts), replay);
        // The rows were hidden when the progress was read, and October's counters end before its row.
        assert_eq!(after(&raw, [(20_261_031, 1), (20_261_101, 0)]), replay);
    }

    #[test]
    fn a_log_that_seems_too_short_stops_the_partition_only_if_it_stays_so() {
        let (mut protocol, _) = Protocol::start();
        let short = |protocol: &mut Protocol| {
            protocol.on_outcome(Outcome::Log(announced(9, 9, 5)));
            protocol.on_outcome(Outcome::Progress(Progress::default()))
        };
        for _ in 1..LOOKS_MAX {
            assert!(matches!(
                short(&mut protocol),
                Step::Do(Action::LookAgain(StopReason::AheadOfLog { offset: 9, high: 5, .. }))
            ));
        }
        // The broker knows the new end by now.
        protocol.on_outcome(Outcome::Log(announced(9, 9, 9)));
        assert!(matches!(protocol.on_outcome(Outcome::Progress(Progress::default())), Step::Do(Action::Fill { .. })));
        protocol.on_outcome(Outcome::PositionLost);
        for _ in 1..LOOKS_MAX {
            assert!(matches!(short(&mut protocol), Step::Do(Action::LookAgain(_))));
        }
        assert!(matches!(short(&mut protocol), Step::Stop(StopReason::AheadOfLog { .. })));
    }

    /// Others have used all tokens of a dead member's group. The next owner of a batch looks for its rows in the first table only. With a
    /// series of looks for each table the partition would stand still for too long.
    #[test]
    fn rows_of_a_group_are_looked_for_in_one_table_only() {
        let group = Some(OfGroup::whole(GroupId::from_u128(7)));
        let next = Some((4, Counts { rows: 3, rejects: 1 }));
        let metadata = Metadata { topic_id: "id".into(), next, group, ..Metadata::default() }.encode().into_bytes();
        let committed = Some(Committed { offset: 0, metadata });
        let (mut protocol, _) = Protocol::start();
        protocol.on_outcome(Outcome::Log(LogView { committed, ..announced(4, 3, 4) }));
        protocol.on_outcome(Outcome::Progress(Progress::default()));
        let expected = Expected { raw: [(20_261_031, 3)].into(), daily: vec![202_610], rejected: 1, lifecycle: 0 };
        let range = OffsetRange { start: 0, end: 4 };
        let mut step = protocol.on_outcome(Outcome::Batch(Frozen { range, expected, group: None }));
        let (mut shown, mut looks, mut inserts) = (Marks::default(), 0, Vec::new());
        let last = loop {
            step = protocol.on_outcome(match &step {
                Step::Do(Action::ReadMarks { look, .. }) => {
                    looks += u32::from(*look > 0);
                    Outcome::Marks(shown.clone())
                }
                Step::Do(Action::Insert { insert, attempt, .. }) => {
                    inserts.push((insert.table, *attempt));
                    match insert.table {
                        _ if *attempt == 0 => {}
                        Table::Raw => shown.raw = [(20_261_031, 3)].into(),
                        Table::Rejected => shown.rejected = 1,
                        _ => shown.daily = [(202_610, 4)].into(),
                    }
                    Outcome::InsertUnproven
                }
                Step::Do(Action::Commit { .. }) => Outcome::CommitDone,
                _ => break step,
            });
        };
        assert_eq!(last, Step::Do(Action::TakeBatch));
        let own = [Table::Raw, Table::Rejected, Table::Daily].map(|table| (table, 1));
        assert_eq!((looks, inserts), (LOOKS_FOR_ROWS, [&[(Table::Raw, 0)], &own[..]].concat()));
    }

    fn plain(metadata: Metadata, cluster_id: &str) -> LogView {
        let committed = Some(Committed { offset: 50, metadata: metadata.encode().into_bytes() });
        LogView {
            committed,
            topic_id: "id".into(),
            ids_of_rows: vec![],
            cluster_id: cluster_id.into(),
            low: 0,
            high: 90,
        }
    }

    /// A backup was restored: the marks that were shown are gone. A partition that continues would leave a gap that nobody sees.
    #[test]
    fn tables_that_show_less_than_they_did_stop_the_partition() {
        let metadata = Metadata { topic_id: "id".into(), marked: Some(48), ..Metadata::default() };
        let (mut protocol, _) = Protocol::start();
        let mut look = |counted_end| {
            let step = protocol.on_outcome(Outcome::Log(plain(metadata.clone(), "")));
            assert_eq!(step, Step::Do(Action::ReadProgress { from: 47 }));
            protocol.on_outcome(Outcome::Progress(Progress { counted_end, ..Progress::default() }))
        };
        for _ in 1..LOOKS_MAX {
            assert!(matches!(look(Some(47)), Step::Do(Action::LookAgain(_))));
        }
        let reason = StopReason::SinkBehind { marked: 48, uncounted: None };
        assert_eq!(look(None), Step::Stop(reason));
        let (mut protocol, _) = Protocol::start();
        protocol.on_outcome(Outcome::Log(plain(metadata.clone(), "")));
        let shown = Progress { counted_end: Some(48), ..Progress::default() };
        assert_eq!(
            protocol.on_outcome(Outcome::Progress(shown)),
            Step::Do(Action::Fill { from: 50, until: None, records_max: None })
        );
    }

    /// Brokers begin to report topic ids, and one reports none again. The partition continues under the name of its rows.
    #[test]
    fn an_id_on_one_side_only_is_the_same_topic() {
        let look = |metadata: &str, reported: &str| {
            let committed = Some(Committed { offset: 50, metadata: metadata.as_bytes().to_vec() });
            let (topic_id, cluster_id) = (reported.to_owned(), String::new());
            LogView { committed, topic_id, ids_of_rows: vec![], cluster_id, low: 0, high: 90 }
        };
        // Columns: the committed metadata, the reported id, the id in the rows' name, and the topic in the next commit.
        for (metadata, reported, of_rows, next) in [
            ("tallyhouse/1", "X", "", " topic=X source=plain"),
            ("tallyhouse/2 topic=X source=plain", "", "", " topic=X source=plain"),
            ("tallyhouse/2 topic=X source=plain", "X", "", " topic=X source=plain"),
            ("tallyhouse/2 topic=X", "", "X", " topic=X"),
            ("tallyhouse/2", "", "", ""),
            ("", "X", "X", " topic=X"),
        ] {
            let log = look(metadata, reported);
            assert_eq!(log.id_of_rows().unwrap(), of_rows, "{metadata} {reported}");
            let (mut protocol, _) = Protocol::start();
            assert_eq!(
                protocol.on_outcome(Outcome::Log(log)),
                Step::Do(Action::ReadProgress { from: 50 }),
                "{metadata} {reported}"
            );
            let counted = Progress { counted_end: Some(60), ..Progress::default() };
            let Step::Do(Action::Commit { wanted, .. }) = protocol.on_outcome(Outcome::Progress(counted)) else {
                panic!("{metadata}")
            };
            assert_eq!(String::from_utf8(wanted.metadata).unwrap(), format!("tallyhouse/2{next} marked=60"));
        }
        let recreated = look("tallyhouse/2 topic=X source=plain", "Y");
        assert_eq!((recreated.id_of_rows().unwrap().as_str(), recreated.committed_offset()), ("Y", None));
        // Without a committed offset the rows contain it.
        for (reported, ids, of_rows) in [
            ("X", &[][..], Some("X")),
            ("X", &[""], Some("")),
            ("X", &["", "W"], Some("X")),
            ("", &["X"], Some("X")),
            ("", &["", "X"], Some("X")),
            ("", &["W", "X"], None),
        ] {
            let ids_of_rows = ids.iter().map(|id| String::from(*id)).collect();
            let log = LogView { committed: None, ids_of_rows, ..look("", reported) };
            assert_eq!(log.id_of_rows().as_deref(), of_rows, "{reported} {ids:?}");
        }
    }

    /// A batch that is refused for its size is announced in halves while nothing of it is applied, down to one record.
    #[test]
    fn a_batch_that_is_refused_for_its_size_is_announced_smaller() {
        let (mut protocol, _) = Protocol::start();
        let batch = |end| {
            let expected =
                Expected { raw: [(20_261_031, end - 50)].into(), daily: vec![202_610], ..Expected::default() };
            Outcome::Batch(Frozen { range: OffsetRange { start: 50, end }, expected, group: None })
        };
        let nothing = || Outcome::Marks(Marks::default());
        let mut log = plain(Metadata { topic_id: "id".into(), ..Metadata::default() }, "");
        for (end, records_max) in [(55, None), (52, Some(2)), (51, Some(1))] {
            protocol.on_outcome(Outcome::Log(log.clone()));
            let fill = protocol.on_outcome(Outcome::Progress(Progress::default()));
            assert_eq!(fill, Step::Do(Action::Fill { from: 50, until: None, records_max }));
            protocol.on_outcome(batch(end));
            protocol.on_outcome(Outcome::CommitDone);
            assert!(matches!(protocol.on_outcome(nothing()), Step::Do(Action::Insert { .. })));
            let step = protocol.on_outcome(Outcome::InsertTooLarge);
            assert!(matches!(step, Step::Do(Action::ReadMarks { quiet: false, .. })), "{step:?}");
            if end == 51 {
                let stop = protocol.on_outcome(nothing());
                assert!(matches!(stop, Step::Stop(StopReason::InsertTooLarge { records: 1, .. })), "{stop:?}");
                break;
            }
            assert!(matches!(protocol.on_outcome(nothing()), Step::Do(Action::ReadMarks { quiet: true, .. })));
            let Step::Do(Action::Commit { wanted, .. }) = protocol.on_outcome(nothing()) else {
                panic!("not taken back")
            };
            assert_eq!((wanted.offset, Metadata::decode(&wanted.metadata).unwrap().unwrap().next), (50, None));
            log.committed = Some(wanted);
            protocol.on_outcome(Outcome::CommitDone);
        }
    }

    /// A batch whose rows are stored and whose counters are refused cannot be announced smaller.
    #[test]
    fn a_half_applied_batch_that_is_refused_for_its_size_stops() {
        let raw = [(20_261_031, 3), (20_261_101, 3)];
        let refused = |stored: &[(u32, u64)], daily: &[(u32, u64)]| {
            let (mut protocol, _) = Protocol::start();
            protocol.on_outcome(Outcome::Log(plain(Metadata { topic_id: "id".into(), ..Metadata::default() }, "")));
            protocol.on_outcome(Outcome::Progress(Progress::default()));
            let expected = Expected { raw: raw.into(), daily: vec![202_610, 202_611], ..Expected::default() };
            protocol.on_outcome(Outcome::Batch(Frozen {
                range: OffsetRange { start: 50, end: 56 },
                expected,
                group: None,
            }));
            protocol.on_outcome(Outcome::CommitDone);
            protocol.on_outcome(Outcome::Marks(Marks::default()));
            let marks = |raw: &[(u32, u64)], daily: &[(u32, u64)]| {
                let (raw, daily) = (raw.iter().copied().collect(), daily.iter().copied().collect());
                Outcome::Marks(Marks { raw, daily, ..Marks::default() })
            };
            if stored == raw {
                protocol.on_outcome(Outcome::Inserted);
                protocol.on_outcome(marks(stored, &[]));
            }
            protocol.on_outcome(Outcome::InsertTooLarge);
            protocol.on_outcome(marks(stored, daily))
        };
        let stop = refused(&raw, &[]);
        assert!(matches!(stop, Step::Stop(StopReason::InsertTooLarge { table: Table::Daily, .. })), "{stop:?}");
        // One day or one month was applied nevertheless, so the rest is smaller.
        let rest = |partitions: Vec<u32>, table| Insert { table, partitions };
        let day = refused(&raw[..1], &[]);
        assert!(
            matches!(&day, Step::Do(Action::Insert { insert, .. }) if *insert == rest(vec![20_261_101], Table::Raw)),
            "{day:?}"
        );
        let month = refused(&raw, &[(202_610, 56)]);
        assert!(
            matches!(&month, Step::Do(Action::Insert { insert, .. }) if *insert == rest(vec![202_611], Table::Daily)),
            "{month:?}"
        );
    }

    /// A partition that never had a record: its start is committed once.
    #[test]
    fn the_start_of_an_empty_log_is_committed() {
        let (mut protocol, _) = Protocol::start();
        let empty = LogView { committed: None, low: 7, high: 7, ..plain(Metadata::default(), "") };
        protocol.on_outcome(Outcome::Log(empty.clone()));
        let Step::Do(Action::Commit { wanted, .. }) = protocol.on_outcome(Outcome::Progress(Progress::default()))
        else {
            panic!("none")
        };
        assert_eq!((wanted.offset, wanted.metadata.as_slice()), (7, &b"tallyhouse/2 topic=id"[..]));
        assert_eq!(protocol.on_outcome(Outcome::CommitDone), Step::Do(Action::ReadCommitted));
        protocol.on_outcome(Outcome::Log(LogView { committed: Some(wanted), ..empty }));
        assert_eq!(
            protocol.on_outcome(Outcome::Progress(Progress::default())),
            Step::Do(Action::Fill { from: 7, until: None, records_max: None })
        );
    }

    /// A backup was restored, with the offset deleted. The marks of each batch that was stored before are read, also after a
    /// restart.
    #[test]
    fn what_was_stored_before_is_asked_for_until_its_end() {
        let (mut protocol, _) = Protocol::start();
        let lost = LogView { committed: None, ..plain(Metadata::default(), "") };
        protocol.on_outcome(Outcome::Log(lost));
        let counted = Progress { counted_end: Some(40), ..Progress::default() };
        let Step::Do(Action::Commit { wanted, .. }) = protocol.on_outcome(Outcome::Progress(counted)) else {
            panic!("no commit")
        };
        assert_eq!(wanted.metadata, b"tallyhouse/2 topic=id marked=40 again=90");
        let batch = |start, end| {
            let expected =
                Expected { raw: [(20_261_031, end - start)].into(), daily: vec![202_610], ..Expected::default() };
            Outcome::Batch(Frozen { range: OffsetRange { start, end }, expected, group: None })
        };
        // A member starts in the middle of it.
        let (mut protocol, _) = Protocol::start();
        protocol.on_outcome(Outcome::Log(LogView { committed: Some(wanted), ..plain(Metadata::default(), "") }));
        protocol.on_outcome(Outcome::Progress(counted));
        for (start, end, asks) in [(40, 60, true), (60, 90, true), (90, 95, false)] {
            assert!(matches!(protocol.on_outcome(batch(start, end)), Step::Do(Action::Commit { .. })), "{start}");
            let step = protocol.on_outcome(Outcome::CommitDone);
            assert_eq!(matches!(step, Step::Do(Action::ReadMarks { .. })), asks, "{start}: {step:?}");
            let mut step = step;
            let mut raw = BTreeMap::new();
            let mut daily = BTreeMap::new();
            while !matches!(step, Step::Do(Action::TakeBatch)) {
                step = match step {
                    Step::Do(Action::Insert { insert, .. }) => {
                        match insert.table {
                            Table::Raw => raw = [(20_261_031, end - start)].into(),
                            _ => daily = [(202_610, end)].into(),
                        }
                        protocol.on_outcome(Outcome::Inserted)
                    }
                    _ => protocol.on_outcome(Outcome::Marks(Marks {
                        raw: raw.clone(),
                        daily: daily.clone(),
                        ..Marks::default()
                    })),
                };
            }
            assert!(matches!(protocol.on_outcome(Outcome::NoBatch), Step::Do(Action::Commit { .. })));
            assert_eq!(protocol.on_outcome(Outcome::CommitDone), Step::Do(Action::AwaitBatch));
        }
    }

    /// Offsets that were copied from another cluster have no meaning for this cluster's log.
    #[test]
    fn offsets_of_another_cluster_stop_the_partition() {
        let of = |committed: &str, found: &str| {
            let metadata = Metadata { topic_id: "old".into(), cluster_id: committed.into(), ..Metadata::default() };
            Protocol::start().0.on_outcome(Outcome::Log(plain(metadata, found)))
        };
        assert!(matches!(of("one", "other"), Step::Stop(StopReason::OtherCluster { offset: 50, .. })));
        // Metadata of format 1 leaves it so. A topic that was created again is counted from its beginning.
        for (committed, found) in [("one", "one"), ("", "one"), ("one", "")] {
            assert_eq!(of(committed, found), Step::Do(Action::ReadProgress { from: 0 }));
        }
    }
}
