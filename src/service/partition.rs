//! The task of one partition: carries out what its protocol asks for, one action at a time.
//!
//! Must never do anything the protocol did not ask for, and never answer what it did not see. What may fail for a while (Kafka,
//! ClickHouse) is tried again with backoff for as long as the partition is ours.

use super::reader::Command;
use super::windows::{Due, Held};
use super::{Drain, Shared};
use crate::clock::{boot_time, unix_ms};
use crate::core::lease::Lease;
use crate::core::marks::Insert;
use crate::core::protocol::{Action, Committed, Protocol, Seen, may_commit};
use crate::core::source::{OffsetRange, Source, Table};
use crate::core::window::ARRIVAL_STEP_MS;
use crate::failpoint;
use crate::kafka::{self, offsets, topic};
use crate::metrics::{
    COMMIT_SECONDS, DEAD_LETTERS, FLUSH_SECONDS, FLUSHED_BATCHES, FLUSHED_ROWS, INSERT_SECONDS, QUERYABLE, REPLAYS,
    RETRIES,
};
use crate::retry::Backoff;
use metrics::{counter, histogram};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};

/// Longest wait for one answer from Kafka.
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a partition's task may commit. A commit holds the lock from the comparison to its answer.
#[derive(Clone, Debug, Default)]
pub struct CommitGate(Arc<Mutex<bool>>);

impl CommitGate {
    /// Waits for the commit under way, which may outlive its task, and lets none pass any more: once the partition is
    /// somebody else's, a commit compared before could overwrite theirs.
    pub fn close(&self) {
        *self.closed() = true;
    }

    fn closed(&self) -> MutexGuard<'_, bool> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The task of one assigned partition.
pub struct Partition {
    shared: Arc<Shared>,
    source: Source,
    /// Frozen and not committed, in order.
    batches: VecDeque<(Held, Instant)>,
    lease: Lease,
    backoff: Backoff,
    wake: Arc<Notify>,
    drain: watch::Receiver<Drain>,
    gate: CommitGate,
    /// The batch whose dead letters are delivered, since its records were read.
    lettered: Option<OffsetRange>,
}

impl Drop for Partition {
    /// What keeps these letters from being delivered is the next owner's to say.
    fn drop(&mut self) {
        self.shared.health.clear(&self.dead_letter_cause());
    }
}

impl Partition {
    /// The task of a partition that was just assigned.
    pub fn new(shared: Arc<Shared>, number: i32, drain: watch::Receiver<Drain>, gate: CommitGate) -> Partition {
        let source = Source {
            cluster: shared.cluster_id.clone(),
            topic: shared.topic.clone(),
            topic_id: String::new(),
            partition: number,
        };
        let lease = Lease::new(shared.session_timeout);
        let backoff = Backoff::new(&shared.retry);
        Partition {
            shared,
            source,
            batches: VecDeque::new(),
            lease,
            backoff,
            wake: Arc::default(),
            drain,
            gate,
            lettered: None,
        }
    }

    /// Runs the protocol until the partition is released or stops.
    pub async fn run(mut self) {
        let number = self.source.partition;
        let (mut protocol, mut action) = Protocol::start();
        loop {
            let seen = match action {
                Action::Release => break,
                Action::Stop(reason) => {
                    self.shared.stop(number, &reason);
                    break;
                }
                action => self.perform(action).await,
            };
            tracing::trace!(partition = number, ?seen, "protocol");
            action = protocol.observe(seen);
        }
    }

    async fn perform(&mut self, action: Action) -> Seen {
        match action {
            Action::ReadCommitted => self.read_committed().await,
            Action::ReadProgress { from } => self.read_progress(from).await,
            Action::Fill { from, until } => self.fill(from, until).await,
            Action::AwaitBatch => self.await_batch().await,
            Action::TakeBatch => self.take_batch(),
            Action::Commit { expected, wanted } => self.commit(expected, wanted).await,
            Action::Insert { range, insert, attempt } => self.insert(range, insert, attempt).await,
            Action::ReadMarks { range } => self.read_marks(range).await,
            Action::Release | Action::Stop(_) => Seen::Drained,
        }
    }

    async fn read_committed(&mut self) -> Seen {
        self.drop_all();
        loop {
            let (name, number) = (self.source.topic.clone(), self.source.partition);
            let view = self.shared.kafka(move |consumer| {
                let topic_id = topic::topic_id(consumer, &name, KAFKA_TIMEOUT)?;
                offsets::log_view(consumer, &name, topic_id, number, KAFKA_TIMEOUT)
            });
            match view.await {
                Ok(view) => {
                    self.succeeded("kafka");
                    self.source.topic_id.clone_from(&view.topic_id);
                    failpoint::hit("committed_read");
                    return Seen::Log(view);
                }
                Err(error) => self.failed("kafka", "read_committed", &kafka::told(&error)).await,
            }
            if self.is_draining() {
                return Seen::Drained;
            }
        }
    }

    async fn read_progress(&mut self, from: u64) -> Seen {
        loop {
            match self.shared.sink.progress(from, &self.source).await {
                Ok(progress) => {
                    self.succeeded("clickhouse");
                    return Seen::Progress(progress);
                }
                Err(error) => self.failed("clickhouse", "read_progress", &error).await,
            }
            if self.is_draining() {
                return Seen::Drained;
            }
        }
    }

    async fn read_marks(&mut self, range: OffsetRange) -> Seen {
        loop {
            let marks = async {
                self.shared.sink.await_ended(range, &self.source).await?;
                self.shared.sink.marks(range, &self.source).await
            };
            match marks.await {
                Ok(marks) => {
                    self.succeeded("clickhouse");
                    return Seen::Marks(marks);
                }
                Err(error) => self.failed("clickhouse", "read_marks", &error).await,
            }
        }
    }

    async fn fill(&mut self, from: u64, until: Option<u64>) -> Seen {
        self.drop_all();
        let number = self.source.partition;
        if let Some(until) = until {
            counter!(REPLAYS).increment(1);
            tracing::info!(
                partition = number,
                from,
                until,
                "completing an announced batch: its records are read again"
            );
        }
        // A new one, so that a notice from an earlier fill cannot pass for this one's.
        self.wake = Arc::default();
        let wake = Arc::clone(&self.wake);
        self.shared.tell_reader(Command::Fill { partition: number, from, until, wake });
        self.await_batch().await
    }

    async fn await_batch(&mut self) -> Seen {
        let number = self.source.partition;
        let windows = Arc::clone(&self.shared.windows);
        loop {
            let ages = self.shared.flush_ages();
            let drain = *self.drain.borrow_and_update();
            let due = if drain == Drain::Flush || self.shared.memory.is_pressed() { Due::Now } else { Due::Aged(ages) };
            if drain != Drain::Abandon
                && let Some(held) = windows.take(number, due, &self.wake)
            {
                return self.frozen(held);
            }
            if drain != Drain::No {
                return Seen::Drained;
            }
            if let Some((next, until)) = windows.take_check(number, &self.wake)
                && let Some(seen) = self.check_bounds(next, until).await
            {
                return seen;
            }
            let wake = Arc::clone(&self.wake);
            let due_at = windows.due_at(number, ages);
            tokio::select! {
                () = wake.notified() => {}
                _ = self.drain.changed() => {}
                () = tokio::time::sleep_until(due_at.unwrap_or_else(|| Instant::now() + ages.most).into()) => {}
            }
        }
    }

    /// The reader came to an end: is it one of this replay, or of the log?
    async fn check_bounds(&mut self, next: u64, until: Option<u64>) -> Option<Seen> {
        let (name, number) = (self.source.topic.clone(), self.source.partition);
        let bounds = self.shared.kafka(move |consumer| offsets::bounds(consumer, &name, number, KAFKA_TIMEOUT)).await;
        let (low, high) = match bounds {
            Ok(bounds) => bounds,
            Err(error) => {
                self.failed("kafka", "read_bounds", &kafka::told(&error)).await;
                self.shared.windows.check(Some(number));
                return None;
            }
        };
        self.succeeded("kafka");
        let wanted = until.unwrap_or(next);
        if low <= next && wanted <= high {
            // Committed records end before `high` while a transaction is open, but never before an end consumed earlier.
            self.shared.windows.seal_replay(number);
            return None;
        }
        // Are they the bounds of another log?
        let name = self.source.topic.clone();
        match self.shared.kafka(move |consumer| topic::topic_id(consumer, &name, KAFKA_TIMEOUT)).await {
            Ok(id) if id != self.source.topic_id => {
                tracing::warn!(partition = number, topic_id = id, "the topic was deleted and re-created: joining anew");
                // librdkafka seeks no partition whose position it has lost: a new assignment starts it afresh.
                self.shared.tell_reader(Command::Rejoin);
                Some(Seen::Drained)
            }
            Ok(_) => Some(Seen::OutOfLog),
            Err(error) => {
                self.failed("kafka", "read_topic_id", &kafka::told(&error)).await;
                self.shared.windows.check(Some(number));
                None
            }
        }
    }

    fn take_batch(&mut self) -> Seen {
        self.note_applied();
        let due = match *self.drain.borrow() {
            Drain::No => Due::Aged(self.shared.flush_ages()),
            Drain::Flush => Due::Now,
            Drain::Abandon => return Seen::NoBatch,
        };
        match self.shared.windows.take(self.source.partition, due, &self.wake) {
            Some(held) => self.frozen(held),
            None => Seen::NoBatch,
        }
    }

    fn frozen(&mut self, held: Held) -> Seen {
        let frozen = held.batch.frozen();
        self.batches.push_back((held, Instant::now()));
        self.note_oldest();
        failpoint::hit("batch_frozen");
        Seen::Batch(frozen)
    }

    /// Everything of the first batch is in ClickHouse.
    fn note_applied(&self) {
        let Some((held, _)) = self.batches.front() else { return };
        let now_ms = unix_ms();
        for &(arrival_ms, records) in held.batch.arrivals() {
            let delay_ms = (now_ms - arrival_ms - ARRIVAL_STEP_MS / 2).max(0);
            QUERYABLE.record(delay_ms.unsigned_abs(), records);
        }
    }

    async fn commit(&mut self, expected: Option<Committed>, wanted: Committed) -> Seen {
        let started = Instant::now();
        let (name, number) = (self.source.topic.clone(), self.source.partition);
        let to_commit = wanted.clone();
        let within = KAFKA_TIMEOUT.min(self.lease.length());
        let gate = self.gate.clone();
        let attempt = self.shared.kafka(move |consumer| {
            let closed = gate.closed();
            if *closed {
                return Err(KafkaError::Canceled);
            }
            let begun = boot_time();
            let found = offsets::committed(consumer, &name, number, within)?;
            if !may_commit(found.as_ref(), expected.as_ref(), &to_commit) {
                return Ok(None);
            }
            let sent = boot_time();
            // A process that was stopped since it asked may have been overtaken since.
            if sent.saturating_sub(begun) > within {
                return Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::OperationTimedOut));
            }
            // Once its session has ended librdkafka commits without a member id and generation: that is accepted for a group
            // that has no members, and ends a static member for good.
            if consumer.assignment_lost() {
                return Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::AssignmentLost));
            }
            offsets::commit(consumer, &name, number, &to_commit)?;
            Ok(Some(sent))
        });
        // The call itself may wait for a coordinator for long; whether it went through is then found by comparing.
        let outcome = tokio::time::timeout(within * 2, attempt).await;
        histogram!(COMMIT_SECONDS).record(started.elapsed());
        match outcome {
            Ok(Ok(Some(sent))) => {
                self.lease.renew(sent);
                self.succeeded("kafka");
                self.drop_committed(wanted.offset);
                failpoint::hit(if self.batches.is_empty() { "end_committed" } else { "intent_committed" });
                Seen::CommitDone
            }
            Ok(Ok(None)) => {
                counter!(RETRIES, "step" => "overtaken").increment(1);
                tracing::warn!(partition = number, "the committed offset was changed by another member: starting over");
                Seen::CommitOvertaken
            }
            Ok(Err(error)) => {
                self.failed("kafka", "commit", &kafka::told(&error)).await;
                Seen::CommitFailed
            }
            Err(_) => {
                self.failed("kafka", "commit", &"OffsetCommit: no answer in time").await;
                Seen::CommitFailed
            }
        }
    }

    fn drop_committed(&mut self, offset: u64) {
        while let Some((held, frozen_at)) = self.batches.front()
            && held.batch.range().end <= offset
        {
            histogram!(FLUSH_SECONDS).record(frozen_at.elapsed());
            counter!(FLUSHED_BATCHES).increment(1);
            self.shared.flushed_batches.fetch_add(1, Ordering::Relaxed);
            self.batches.pop_front();
        }
        self.note_oldest();
    }

    /// The partition starts over: its records are read again.
    fn drop_all(&mut self) {
        self.batches.clear();
        self.lettered = None;
        self.note_oldest();
    }

    /// Tells the gauges how old the oldest frozen record is.
    fn note_oldest(&self) {
        let first = self.batches.front().and_then(|(held, _)| held.batch.arrivals().first());
        match first {
            Some(&(arrival_ms, _)) => self.shared.frozen_ms.insert(self.source.partition, arrival_ms),
            None => self.shared.frozen_ms.remove(&self.source.partition).map(|(_, arrival_ms)| arrival_ms),
        };
    }

    async fn insert(&mut self, range: OffsetRange, insert: Insert, attempt: u32) -> Seen {
        // Before the lease is looked at, as this may take long: letters are harmless whoever sends them.
        if insert.table == Table::Rejected && !self.deliver_dead_letters(range).await {
            return Seen::InsertUnknown;
        }
        if !self.lease.holds(boot_time()) {
            tracing::info!(partition = self.source.partition, "the lease has expired: the intent is committed again");
            return Seen::LeaseExpired;
        }
        failpoint::hit("lease_checked");
        let Some(held) = self.held(range) else { return Seen::InsertUnknown };
        let table = insert.table;
        let started = Instant::now();
        let outcome = self.shared.sink.insert(&held.batch, &insert, &self.source, attempt).await;
        histogram!(INSERT_SECONDS, "table" => table.name()).record(started.elapsed());
        match outcome {
            Ok(rows) => {
                self.succeeded("clickhouse");
                counter!(FLUSHED_ROWS, "table" => table.name()).increment(rows);
                self.shared.flushed_rows.fetch_add(if table == Table::Raw { rows } else { 0 }, Ordering::Relaxed);
                failpoint::hit(match table {
                    Table::Raw => "raw_inserted",
                    Table::Daily => "daily_inserted",
                    Table::Rejected => "rejected_inserted",
                });
                Seen::Inserted
            }
            Err(error) => {
                self.failed("clickhouse", "insert", &error).await;
                Seen::InsertUnknown
            }
        }
    }

    fn held(&self, range: OffsetRange) -> Option<&Held> {
        self.batches.iter().map(|(held, _)| held).find(|held| held.batch.range() == range)
    }

    /// Delivers a batch's dead letters where there is a topic for them; once, however often its rows are inserted. They go before
    /// the rows: then whatever shows the rows applied shows the letters delivered, and no lost offset can lose one.
    async fn deliver_dead_letters(&mut self, range: OffsetRange) -> bool {
        let shared = Arc::clone(&self.shared);
        let Some(dead_letters) = shared.dead_letters.as_ref().filter(|_| self.lettered != Some(range)) else {
            return true;
        };
        let Some(held) = self.held(range) else { return true };
        match dead_letters.deliver(&self.source.name(), &held.batch).await {
            Ok(letters) => {
                counter!(DEAD_LETTERS).increment(letters);
                self.lettered = Some(range);
                self.succeeded(&self.dead_letter_cause());
                failpoint::hit("dead_letters_delivered");
                true
            }
            Err(error) => {
                let topic = dead_letters.topic();
                let error = format!("the dead-letter topic {topic} does not take a rejected record: {error}");
                self.failed(&self.dead_letter_cause(), "dead_letter", &error).await;
                false
            }
        }
    }

    fn dead_letter_cause(&self) -> String {
        format!("dead letters of partition {}", self.source.partition)
    }

    fn is_draining(&self) -> bool {
        *self.drain.borrow() != Drain::No
    }

    fn succeeded(&mut self, server: &str) {
        self.backoff.reset();
        self.shared.health.clear(server);
    }

    async fn failed(&mut self, server: &str, step: &'static str, error: &(dyn std::fmt::Display + Sync)) {
        counter!(RETRIES, "step" => step).increment(1);
        tracing::warn!(partition = self.source.partition, step, "{error}; trying again");
        self.shared.health.set(server, error.to_string());
        self.backoff.wait().await;
    }
}
