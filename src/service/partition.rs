//! The task of one partition: it performs the actions of its protocol, one at a time.
//!
//! Must never do anything that the protocol did not ask for, and never answer with anything that it did not see. If Kafka or
//! ClickHouse fails for a while, the task tries again with backoff for as long as the partition is this member's.

use super::commits::{Commit, CommitGate};
use super::groups::{Answer, Arriving, Seat, Taken, Wait};
use super::reader::Command;
use super::windows::{Due, ReservedBatch};
use super::{Drain, Shared, gauges};
use crate::clickhouse::error::UNCONFIRMED;
use crate::clickhouse::sink::{self, OpenBatch};
use crate::config::memory::{limit_for_lifecycle, limit_for_replay};
use crate::kafka::dead_letters::Letters;
use crate::kafka::{self, KAFKA_TIMEOUT, refusal};
use crate::platform::clock::{boot_time, unix_ms};
use crate::platform::failpoint;
use crate::platform::metrics::{
    COMMIT_SECONDS, FLUSH_SECONDS, FLUSHED_BATCHES, INSERT_SECONDS, QUERYABLE, REPLAYS, RETRIES,
};
use crate::platform::retry::Backoff;
use metrics::{counter, histogram};
use rdkafka::error::{KafkaError, KafkaResult};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tallyhouse_core::batch::Part;
use tallyhouse_core::protocol::group::{GroupId, OfGroup};
use tallyhouse_core::protocol::lease::Lease;
use tallyhouse_core::protocol::marks::Insert;
use tallyhouse_core::protocol::stop::StopReason;
use tallyhouse_core::protocol::{
    Action, Committed, Frozen, LOOKS_MAX, LogView, Outcome, Protocol, Step, vouches_for_rows,
};
use tallyhouse_core::source::{OffsetRange, Source, Table};
use tallyhouse_core::stream::Stream;
use tallyhouse_core::window::ARRIVAL_STEP_MS;
use tallyhouse_core::window::buffer::Halt;
use tallyhouse_core::window::intake::Fill;
use tokio::sync::{Notify, watch};

/// Time for which a log may end before the end of a replay. A broker that has just become the leader may have an old end.
const SHORT_PATIENCE: Duration = Duration::from_secs(10);

/// Number of refusals of one batch for its size, before it is announced smaller.
const SIZE_REFUSALS_MAX: u32 = 4;

/// Names of steps that are used in two places. After a failure of one of the first two, ClickHouse is asked for this partition alone,
/// as a question for all fails for all.
const READ_COMMITTED: &str = "read_committed";
const READ_MARKS: &str = "read_marks";
const READ_PROGRESS: &str = "read_progress";
const DEAD_LETTER: &str = "dead_letter";
const REPLAY: &str = "replay";
const LOOK_AGAIN: &str = "look_again";
const SHOWN: &str = "shown";
const CONFIRM: &str = "confirm";

/// Pause before the second look for rows of an acknowledged insert.
const SHOWN_PAUSE: Duration = Duration::from_millis(500);

/// The task of one assigned partition.
pub struct Partition {
    shared: Arc<Shared>,
    source: Source,
    /// Batches that are frozen and not committed, in order.
    batches: VecDeque<(Arc<ReservedBatch>, Instant)>,
    /// Place in the group with which the first batch is inserted.
    seat: Option<Seat>,
    lease: Lease,
    /// Backoffs of the steps that have failed since they succeeded last.
    backoffs: BTreeMap<&'static str, Backoff>,
    wake: Arc<Notify>,
    /// Requested fill, until the partition starts over.
    fill: Option<Fill>,
    /// Bounds of the last replay that was begun.
    replayed: Option<(u64, u64)>,
    /// True until the batch is frozen that the fill has to rebuild.
    replaying: bool,
    /// Time at which the partition was assigned, on the boot clock.
    assigned: Duration,
    /// Time at which the member gave up the last insert without a clear answer, on the boot clock.
    unanswered: Duration,
    /// Batch whose insert was refused for its size last, and number of refusals.
    too_large: Option<(OffsetRange, u32)>,
    drain: watch::Receiver<Drain>,
    gate: CommitGate,
    /// Number of lost parts of the tables that this task knows of.
    lost: u64,
    /// Dead letters of the last batch that had any.
    letters: Option<Letters>,
    /// True if a step was refused permanently while the partition is being given up. Then no further attempt is made.
    refused: bool,
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.forget_failures();
        if std::thread::panicking() {
            self.shared.give_up(format!("the task of partition {} panicked", self.source.partition));
        }
    }
}

impl Partition {
    /// Returns the task of a partition that was just assigned.
    pub fn new(shared: Arc<Shared>, number: i32, drain: watch::Receiver<Drain>, gate: CommitGate) -> Partition {
        let source = Source {
            cluster: shared.cluster_id.clone(),
            topic: shared.topic.clone(),
            topic_id: String::new(),
            partition: number,
        };
        let (lease, lost) = (Lease::new(shared.session_timeout), shared.sink.lost());
        Partition {
            shared,
            source,
            batches: VecDeque::new(),
            seat: None,
            lease,
            backoffs: BTreeMap::new(),
            wake: Arc::default(),
            fill: None,
            replayed: None,
            replaying: false,
            assigned: boot_time(),
            unanswered: Duration::ZERO,
            too_large: None,
            drain,
            gate,
            lost,
            letters: None,
            refused: false,
        }
    }

    /// Runs the protocol until the partition is released or stops.
    pub async fn run(mut self) {
        let number = self.source.partition;
        let (mut protocol, first) = Protocol::start();
        let mut step = Step::Do(first);
        loop {
            let seen = match step {
                Step::Do(action) => self.perform(action).await,
                Step::Release => break,
                Step::Stop(reason) => {
                    self.shared.stop(number, &reason);
                    break;
                }
            };
            if self.refused {
                break;
            }
            tracing::trace!(partition = number, ?seen, "protocol");
            step = protocol.on_outcome(seen);
        }
    }

    async fn perform(&mut self, action: Action) -> Outcome {
        match action {
            Action::ReadCommitted => self.read_committed().await,
            Action::LookAgain(reason) => self.look_again(&reason).await,
            Action::ReadProgress { from } => self.read_progress(from).await,
            Action::Fill { from, until, records_max } => self.fill(from, until, records_max).await,
            Action::AwaitBatch => self.await_batch().await,
            Action::TakeBatch => self.take_batch(),
            // Nobody knows of the batch yet, and the next owner may end it at another offset.
            Action::Commit { announces: true, .. } if *self.drain.borrow() == Drain::Abandon => Outcome::Drained,
            Action::Commit { expected, wanted, .. } => match self.unconfirmed(expected.as_ref(), &wanted).await {
                Some(outcome) => outcome,
                None => self.commit(expected, wanted).await,
            },
            Action::Insert { range, group, insert, attempt } => self.insert(range, group, insert, attempt).await,
            Action::ReadMarks { quiet: true, .. } if !self.await_quiet().await => Outcome::Drained,
            Action::ReadMarks { look: look @ 1.., range, .. } if !self.await_shown(range, look).await => {
                Outcome::Drained
            }
            Action::ReadMarks { range, group, .. } => self.read_marks(range, group).await,
        }
    }

    async fn read_committed(&mut self) -> Outcome {
        self.drop_all();
        loop {
            let number = self.source.partition;
            let view = self.shared.questions.views.ask(number).await.unwrap_or(Err(KafkaError::Canceled));
            if let Ok(log) = &view {
                gauges::take_log(&self.shared, number, log);
            }
            match self.with_rows(view).await {
                Ok((view, id)) => {
                    self.succeeded(READ_COMMITTED);
                    self.source.topic_id = id;
                    self.shared.left_open.committed(number, view.committed.as_ref());
                    failpoint::hit("committed_read");
                    return Outcome::Log(view);
                }
                Err(error) => self.failed(READ_COMMITTED, &error).await,
            }
            if self.is_draining() {
                return Outcome::Drained;
            }
        }
    }

    /// Returns the state in Kafka, and the topic id in the `source` of the partition's rows. Without a committed offset it reads
    /// the id from the tables.
    async fn with_rows(&self, view: KafkaResult<LogView>) -> Result<(LogView, String), String> {
        let mut view = view.map_err(|error| kafka::describe_error(&error))?;
        if view.committed.is_none() {
            view.ids_of_rows = match self.backoffs.contains_key(READ_COMMITTED) {
                false => self.shared.questions.topic_ids.ask(self.source.partition).await.unwrap_or_else(no_answer)?,
                true => self.shared.sink.topic_ids(&self.source).await.map_err(|error| error.to_string())?,
            };
        }
        let id = view.id_of_rows().ok_or_else(|| {
            let (topic, ids) = (&self.source.topic, view.ids_of_rows.join(", "));
            format!(
                "the brokers tell no id of the topic {topic}, the tables have rows of several ({ids}), and there is no committed offset. \
                 Commit the offset from which this partition is to be counted: kafka-consumer-groups.sh --reset-offsets"
            )
        })?;
        Ok((view, id))
    }

    /// All looks together last for a session. No broker needs longer to learn that it is no longer the leader.
    async fn look_again(&mut self, reason: &StopReason) -> Outcome {
        self.note_failure(LOOK_AGAIN, reason);
        let pause = self.shared.session_timeout / LOOKS_MAX;
        let _ = tokio::time::timeout(pause, self.drain.changed()).await;
        match self.is_draining() {
            true => Outcome::Drained,
            false => self.read_committed().await,
        }
    }

    async fn read_progress(&mut self, from: u64) -> Outcome {
        loop {
            let progress = match self.backoffs.contains_key(READ_PROGRESS) {
                false => self.shared.questions.progress.ask((self.source.name(), from)).await.unwrap_or_else(no_answer),
                true => self.shared.sink.progress(from, &self.source).await.map_err(|error| error.to_string()),
            };
            match progress {
                Ok(progress) => {
                    self.succeeded(READ_PROGRESS);
                    return Outcome::Progress(progress);
                }
                Err(error) => self.failed(READ_PROGRESS, &error).await,
            }
            if self.is_draining() {
                return Outcome::Drained;
            }
        }
    }

    async fn read_marks(&mut self, range: OffsetRange, group: Option<GroupId>) -> Outcome {
        let months = self.held(range).map(|held| held.batch.months());
        if !self.backoffs.contains_key(READ_MARKS) {
            let batch = OpenBatch { range, group, source: self.source.clone(), months: months.clone() };
            match self.shared.questions.marks.ask(batch).await.unwrap_or_else(no_answer) {
                Ok(Some(marks)) => return Outcome::Marks(marks),
                // An insert of this batch still runs. The others do not wait for it.
                Ok(None) => {}
                Err(error) => self.failed(READ_MARKS, &error).await,
            }
        }
        loop {
            let marks = async {
                self.shared.sink.await_ended(range, group, &self.source).await?;
                self.shared.sink.marks(range, &self.source, months.as_deref()).await
            };
            match marks.await {
                Ok(marks) => {
                    self.succeeded(READ_MARKS);
                    return Outcome::Marks(marks);
                }
                Err(error) => self.refused(READ_MARKS, &error, error.is_for_good()).await,
            }
            if self.refused {
                return Outcome::Drained;
            }
        }
    }

    /// Waits until no insert of an earlier owner, and no own insert without an answer, can arrive any more. The lease must have
    /// ended, and ClickHouse must have given up the inserts whose sending had begun. Returns `false` if the partition is being
    /// revoked before that.
    async fn await_quiet(&mut self) -> bool {
        let sent = self.unanswered.max(self.assigned + self.shared.session_timeout);
        let quiet_at = sent + self.shared.sink.insert_timeout() + sink::receive_timeout();
        let left = quiet_at.saturating_sub(boot_time());
        tracing::warn!(
            partition = self.source.partition,
            seconds = left.as_secs(),
            "an announced batch is too large for memory.limit_bytes or for ClickHouse: waiting until nothing of it can arrive any more"
        );
        let _ = tokio::time::timeout(left, self.drain.changed()).await;
        !self.is_draining()
    }

    /// Pauses before the next look for the rows of an acknowledged insert: half a second, one, two. Returns `false` if the
    /// partition is being revoked.
    async fn await_shown(&mut self, range: OffsetRange, look: u32) -> bool {
        let error = format!("ClickHouse has acknowledged an insert of batch {range} and does not show its rows");
        self.note_failure(SHOWN, &error);
        let pause = SHOWN_PAUSE * (1 << (look - 1).min(8));
        let _ = tokio::time::timeout(pause, self.drain.changed()).await;
        !self.is_draining()
    }

    async fn fill(&mut self, from: u64, until: Option<u64>, records_max: Option<u64>) -> Outcome {
        self.drop_all();
        self.succeeded(LOOK_AGAIN);
        let number = self.source.partition;
        if let Some(until) = until {
            counter!(REPLAYS).increment(1);
            tracing::info!(
                partition = number,
                from,
                until,
                "completing an announced batch: its records are read again"
            );
            if self.replayed.replace((from, until)) == Some((from, until)) {
                self.failed(REPLAY, &format!("batch [{from}, {until}) could not be read whole")).await;
            }
        }
        self.replaying = until.is_some();
        let fill = Fill { partition: number, number: self.shared.next_fill(), from, until, records_max };
        self.fill = Some(fill);
        self.shared.send_to_reader(Command::Fill { fill, wake: Arc::clone(&self.wake) });
        self.await_batch().await
    }

    async fn await_batch(&mut self) -> Outcome {
        let number = self.source.partition;
        let windows = Arc::clone(&self.shared.windows);
        let Some(fill) = self.fill else { return Outcome::PositionLost };
        // Offset at which the log ended before the end of a replay, and deadline of the wait for more.
        let mut short: Option<(u64, Instant)> = None;
        let groups = Arc::clone(&self.shared.groups);
        // A batch that is read again must be the announced one, so it joins no group.
        let start_to_wait = |task: &Partition| (!task.replaying).then(|| groups.wait(&task.source, fill.number));
        let mut wait = start_to_wait(self);
        loop {
            let drain = *self.drain.borrow_and_update();
            let due = if drain == Drain::Flush { Due::Now } else { Due::Full };
            let alone = match &mut wait {
                _ if drain == Drain::Abandon => Ok(None),
                Some(_) => groups.take_alone(&windows, number, due),
                None => Ok(windows.take(number, due, fill.number)),
            };
            match alone {
                Ok(Some(held)) => return self.frozen(Arc::new(held), None),
                Ok(None) => {}
                Err(Arriving) => match taken(&mut wait).await {
                    Some((held, seat)) => return self.frozen(held, seat),
                    None => {
                        wait = start_to_wait(self);
                        continue;
                    }
                },
            }
            if drain != Drain::No {
                return Outcome::Drained;
            }
            let mut look_at = None;
            match windows.halted(number, fill.number) {
                Some(Halt::PositionLost) => return Outcome::PositionLost,
                Some(Halt::TooLarge { records, bytes }) => return too_large(self.shared.stream, fill, records, bytes),
                Some(Halt::EndsShort(end)) => {
                    let known = short.filter(|(known, _)| *known == end);
                    let (_, patient_until) = *short.insert(known.unwrap_or((end, Instant::now() + SHORT_PATIENCE)));
                    if patient_until <= Instant::now() {
                        tracing::warn!(
                            partition = number,
                            end,
                            "the log ends before an announced batch: starting over"
                        );
                        return Outcome::PositionLost;
                    }
                    look_at = Some(patient_until);
                }
                None => {}
            }
            let wake = Arc::clone(&self.wake);
            tokio::select! {
                taken = taken(&mut wait) => match taken {
                    Some((held, seat)) => return self.frozen(held, seat),
                    None => wait = start_to_wait(self),
                },
                () = wake.notified() => {}
                _ = self.drain.changed() => {}
                () = until(look_at) => {}
            }
        }
    }

    fn take_batch(&mut self) -> Outcome {
        self.note_applied();
        let due = match *self.drain.borrow() {
            Drain::No => Due::Full,
            Drain::Flush => Due::Now,
            Drain::Abandon => return Outcome::NoBatch,
        };
        let held = self.fill.and_then(|fill| self.shared.windows.take(fill.partition, due, fill.number));
        held.map_or(Outcome::NoBatch, |held| self.frozen(Arc::new(held), None))
    }

    fn frozen(&mut self, held: Arc<ReservedBatch>, seat: Option<Seat>) -> Outcome {
        let frozen = Frozen { group: seat.as_ref().map(Seat::group).map(OfGroup::whole), ..held.batch.frozen() };
        self.replaying = false;
        self.seat = seat.or(self.seat.take());
        self.batches.push_back((held, Instant::now()));
        self.note_oldest();
        failpoint::hit("batch_frozen");
        Outcome::Batch(frozen)
    }

    /// Notes that everything of the first batch is in ClickHouse.
    fn note_applied(&self) {
        let Some((held, _)) = self.batches.front() else { return };
        let now_ms = unix_ms();
        for &(arrival_ms, records) in held.batch.arrivals() {
            let delay_ms = (now_ms - arrival_ms - ARRIVAL_STEP_MS / 2).max(0);
            QUERYABLE.record(delay_ms.unsigned_abs(), records);
        }
    }

    /// Lets a second replica confirm the rows that a commit vouches for, if that is configured. Returns the outcome of a commit that
    /// must not be made.
    async fn unconfirmed(&mut self, expected: Option<&Committed>, wanted: &Committed) -> Option<Outcome> {
        if !vouches_for_rows(expected, wanted) {
            return None;
        }
        match self.shared.sink.confirm().await {
            Ok(lost) if lost == self.lost && !self.backoffs.contains_key(CONFIRM) => None,
            Ok(lost) => {
                self.succeeded(CONFIRM);
                self.lost = lost;
                Some(Outcome::Unconfirmed)
            }
            Err(problem) => {
                let error = format!("{UNCONFIRMED}: {problem}");
                self.failed(CONFIRM, &error).await;
                // Members insert the lost rows again meanwhile.
                let lost = self.shared.sink.lost();
                let is_known = std::mem::replace(&mut self.lost, lost) == lost;
                Some(if is_known { Outcome::CommitFailed } else { Outcome::Unconfirmed })
            }
        }
    }

    async fn commit(&mut self, expected: Option<Committed>, wanted: Committed) -> Outcome {
        let started = Instant::now();
        let number = self.source.partition;
        let within = KAFKA_TIMEOUT.min(self.lease.length());
        let commit = Commit { partition: number, expected, wanted: wanted.clone(), gate: self.gate.clone() };
        let attempt = self.shared.commits.ask(commit);
        // The call itself may wait for a coordinator for a long time. A comparison then shows if it succeeded.
        let outcome = tokio::time::timeout(within * 2, attempt).await;
        let outcome = outcome.map(|answer| answer.unwrap_or(Err(KafkaError::Canceled)));
        histogram!(COMMIT_SECONDS).record(started.elapsed());
        match outcome {
            Ok(Ok(Some(sent))) => {
                self.lease.renew(sent);
                self.shared.left_open.committed(number, Some(&wanted));
                self.shared.committed.insert(number, wanted.offset);
                self.succeeded("commit");
                self.drop_committed(wanted.offset);
                failpoint::hit(if self.batches.is_empty() { "end_committed" } else { "intent_committed" });
                Outcome::CommitDone
            }
            Ok(Ok(None)) => {
                counter!(RETRIES, "step" => "overtaken").increment(1);
                tracing::warn!(partition = number, "the committed offset was changed by another member: starting over");
                Outcome::CommitOvertaken
            }
            Ok(Err(error)) => {
                self.refused("commit", &kafka::describe_error(&error), refusal::is_for_good(&error)).await;
                Outcome::CommitFailed
            }
            Err(_) => {
                self.failed("commit", &"OffsetCommit: no answer in time").await;
                Outcome::CommitFailed
            }
        }
    }

    fn drop_committed(&mut self, offset: u64) {
        while let Some((held, frozen_at)) = self.batches.front()
            && held.batch.range().end <= offset
        {
            if !held.batch.is_empty() {
                histogram!(FLUSH_SECONDS).record(frozen_at.elapsed());
                counter!(FLUSHED_BATCHES).increment(1);
                self.shared.flushed_batches.fetch_add(1, Ordering::Relaxed);
            }
            self.batches.pop_front();
            // The batch of a group is always the first one.
            self.seat.take().into_iter().for_each(Seat::finish);
            // An insert whose answer was lost has succeeded as well.
            self.forget_failures();
        }
        self.note_oldest();
    }

    /// Drops everything: the partition starts over and its records are read again. Until the new start is known, it wants no
    /// records.
    fn drop_all(&mut self) {
        self.batches.clear();
        (self.letters, self.seat) = (None, None);
        self.note_oldest();
        if let Some(fill) = self.fill.take() {
            self.shared.windows.close(fill.partition);
            self.shared.send_to_reader(Command::Pause(fill.partition));
        }
    }

    /// Sets the gauges to the age of the oldest frozen record.
    fn note_oldest(&self) {
        let first = self.batches.front().and_then(|(held, _)| held.batch.arrivals().first());
        match first {
            Some(&(arrival_ms, _)) => self.shared.frozen_ms.insert(self.source.partition, arrival_ms),
            None => self.shared.frozen_ms.remove(&self.source.partition).map(|(_, arrival_ms)| arrival_ms),
        };
    }

    async fn insert(&mut self, range: OffsetRange, group: Option<GroupId>, insert: Insert, attempt: u32) -> Outcome {
        // The letters come before the check of the lease, as this may take long. Letters do no harm from any sender.
        if insert.table == Table::Rejected && !self.deliver_dead_letters(range).await {
            self.seat = None;
            return Outcome::InsertUnknown;
        }
        let Some(held) = self.held(range) else { return Outcome::InsertUnknown };
        let table = insert.table;
        // The group's token is of no more use to a source that was acknowledged and has no rows.
        let outcome = match self.seat.take().filter(|_| attempt == 0) {
            Some(seat) => {
                let answer = seat.insert(insert, held, &self.source, self.lease.clone()).await;
                self.seat = Some(seat);
                self.on_answer(answer).await
            }
            None => self.insert_alone(held, group, insert, attempt).await,
        };
        if matches!(outcome, Outcome::Inserted | Outcome::InsertUnproven) {
            failpoint::hit(match table {
                Table::Raw => "raw_inserted",
                Table::Daily => "daily_inserted",
                Table::Rejected => "rejected_inserted",
                Table::Lifecycle => "lifecycle_inserted",
            });
        }
        outcome
    }

    async fn on_answer(&mut self, answer: Answer) -> Outcome {
        match answer {
            Answer::Inserted => {
                self.succeeded("insert");
                Outcome::Inserted
            }
            Answer::Unproven => {
                self.succeeded("insert");
                Outcome::InsertUnproven
            }
            Answer::LeaseExpired => self.lease_expired(),
            Answer::Left => {
                self.seat = None;
                Outcome::InsertUnknown
            }
            Answer::Failed { error, for_good, reports } => {
                self.unanswered = boot_time();
                match reports {
                    true => self.refused("insert", &error, for_good).await,
                    false => self.wait_as_others("insert", &error).await,
                }
                Outcome::InsertUnknown
            }
        }
    }

    fn lease_expired(&self) -> Outcome {
        tracing::info!(partition = self.source.partition, "the lease has expired: the intent is committed again");
        Outcome::LeaseExpired
    }

    async fn insert_alone(
        &mut self,
        held: Arc<ReservedBatch>,
        group: Option<GroupId>,
        insert: Insert,
        attempt: u32,
    ) -> Outcome {
        if !self.lease.holds(boot_time()) {
            return self.lease_expired();
        }
        failpoint::hit("lease_checked");
        let (range, table, name) = (held.batch.range(), insert.table, self.source.name());
        let parts = [Part { batch: &held.batch, partitions: &insert.partitions, source: &name }];
        let token = self.source.token(range, group, table, attempt);
        let id = self.source.own_id(range, group, table, attempt);
        let started = Instant::now();
        let lease_holds = || self.lease.holds(boot_time());
        let outcome = self.shared.sink.insert(table, &parts, &token, &id, lease_holds).await;
        histogram!(INSERT_SECONDS, "table" => table.name()).record(started.elapsed());
        match outcome {
            Ok(rows) => {
                self.succeeded("insert");
                self.shared.note_rows(table, rows);
                // The others of its group may have used the token.
                if group.is_some() { Outcome::InsertUnproven } else { Outcome::Inserted }
            }
            Err(error) if error.refuses_size() => {
                let (_, before) = self.too_large.filter(|(refused, _)| *refused == range).unwrap_or((range, 0));
                self.too_large = Some((range, before + 1));
                // A user's other queries may take the memory for a while.
                if before + 1 < SIZE_REFUSALS_MAX {
                    self.failed("insert", &error).await;
                    return Outcome::InsertUnknown;
                }
                self.note_failure("insert", &error);
                Outcome::InsertTooLarge
            }
            Err(error) => {
                self.unanswered = boot_time();
                self.refused("insert", &error, error.is_for_good()).await;
                Outcome::InsertUnknown
            }
        }
    }

    fn held(&self, range: OffsetRange) -> Option<Arc<ReservedBatch>> {
        self.batches.iter().map(|(held, _)| held).find(|held| held.batch.range() == range).cloned()
    }

    /// Delivers a batch's dead letters if there is a topic for them. It delivers them once, even if the rows are inserted several
    /// times. They come before the rows. Then a proof that the rows are applied also proves that the letters were delivered, and
    /// no lost offset can lose one.
    async fn deliver_dead_letters(&mut self, range: OffsetRange) -> bool {
        let shared = Arc::clone(&self.shared);
        let known = self.letters.take().filter(|letters| letters.range() == range);
        let Some((dead_letters, held)) = shared.dead_letters.as_ref().zip(self.held(range)) else { return true };
        let mut letters = known.unwrap_or_else(|| Letters::new(&held.batch));
        if letters.are_delivered() {
            self.letters = Some(letters);
            return true;
        }
        let delivered = dead_letters.deliver(&self.source.name(), &held.batch, &mut letters).await;
        self.letters = Some(letters);
        match delivered {
            Ok(()) => {
                self.succeeded(DEAD_LETTER);
                failpoint::hit("dead_letters_delivered");
                true
            }
            Err(error) => {
                let (topic, for_good) = (dead_letters.topic(), refusal::is_for_good(&error));
                let error = format!("the dead-letter topic {topic} does not take a rejected record: {error}");
                self.refused(DEAD_LETTER, &error, for_good).await;
                false
            }
        }
    }

    fn is_draining(&self) -> bool {
        *self.drain.borrow() != Drain::No
    }

    /// Notes that a step is done, so its failures are over. The success of one step proves nothing about another.
    fn succeeded(&mut self, step: &'static str) {
        if self.backoffs.remove(step).is_some() {
            self.shared.health.clear(&self.cause(step));
        }
    }

    /// Notes that a step has failed. A partition that is being given up does not wait for a step that is refused permanently.
    async fn refused(&mut self, step: &'static str, error: &(dyn std::fmt::Display + Sync), for_good: bool) {
        if !for_good || !self.is_draining() {
            return self.failed(step, error).await;
        }
        let number = self.source.partition;
        tracing::error!(partition = number, step, "{error}; given up: the next owner completes what is open");
        if *self.drain.borrow() == Drain::Flush {
            self.shared.left_open.refused(number, format!("{step}: {error}"));
        }
        self.refused = true;
    }

    async fn failed(&mut self, step: &'static str, error: &(dyn std::fmt::Display + Sync)) {
        self.note_failure(step, error);
        self.wait_after_failure(step).await;
    }

    /// Notes that a step of the whole group has failed. Another source reports it for all.
    async fn wait_as_others(&mut self, step: &'static str, error: &(dyn std::fmt::Display + Sync)) {
        self.back_off(step, error);
        self.wait_after_failure(step).await;
    }

    async fn wait_after_failure(&mut self, step: &'static str) {
        let Some(backoff) = self.backoffs.get_mut(step) else { return };
        // A partition that is being given up does not wait for it.
        tokio::select! {
            () = backoff.wait() => {}
            _ = self.drain.changed() => {}
        }
    }

    fn note_failure(&mut self, step: &'static str, error: &(dyn std::fmt::Display + Sync)) {
        counter!(RETRIES, "step" => step).increment(1);
        tracing::warn!(partition = self.source.partition, step, "{error}; trying again");
        self.back_off(step, error);
    }

    fn back_off(&mut self, step: &'static str, error: &(dyn std::fmt::Display + Sync)) {
        self.shared.health.set(&self.cause(step), error.to_string());
        self.backoffs.entry(step).or_insert_with(|| Backoff::new(&self.shared.retry));
    }

    /// Returns the name of the cause at `/readyz` that keeps a step of this partition from being done.
    fn cause(&self, step: &str) -> String {
        format!("partition {}, {step}", self.source.partition)
    }

    /// Forgets all failures: the steps are done now, or the next owner has to try them.
    fn forget_failures(&mut self) {
        for step in std::mem::take(&mut self.backoffs).into_keys() {
            self.shared.health.clear(&self.cause(step));
        }
    }
}

/// Waits for the batch that was taken for a task. Returns `None` if there is none after all. It never ends for a task that does not
/// wait for one.
async fn taken(wait: &mut Option<Wait>) -> Option<Taken> {
    match wait {
        Some(wait) => (&mut wait.taken).await.ok(),
        None => std::future::pending().await,
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant.into()).await,
        None => std::future::pending().await,
    }
}

/// Returns the error of a joint question whose answers were lost.
fn no_answer<T>() -> Result<T, String> {
    Err("the question for all partitions was not answered".to_owned())
}

/// Returns the outcome of a replay of which `records` records took `bytes` bytes.
fn too_large(stream: Stream, fill: Fill, records: u64, bytes: usize) -> Outcome {
    let offsets = fill.until.unwrap_or(fill.from).saturating_sub(fill.from);
    let whole = u128::from(offsets) * bytes as u128 / u128::from(records.max(1));
    let of_pipeline = limit_for_replay(u64::try_from(whole).unwrap_or(u64::MAX));
    let limit_bytes = match stream {
        Stream::Events => of_pipeline,
        Stream::Lifecycle(_) => limit_for_lifecycle(of_pipeline),
    };
    Outcome::TooLarge { limit_bytes }
}
