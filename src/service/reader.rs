//! The reader: one thread that polls Kafka, decodes, and appends to the live windows.
//!
//! It is the only one that polls and the only one that seeks, so a record polled before a seek can never reach the window
//! that is made after it. Must never wait for ClickHouse: at the memory limit it pauses its partitions and goes on polling.

use super::memory::Memory;
use super::windows::Windows;
use crate::config::Config;
use crate::core::decode::{TimeBounds, decode};
use crate::core::reject::Reason;
use crate::core::window::Record;
use crate::health::Health;
use crate::kafka::consumer::{Consumer, is_unreadable};
use crate::kafka::fetched::Fetched;
use crate::kafka::refusal::Refusal;
use crate::metrics::{CONSUMED, DECODED, PAUSED, PAUSES, READER_BUSY, REJECTED, UNKNOWN_FIELDS};
use metrics::{counter, gauge};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, oneshot};

/// Longest wait for a record; also how late a command may be looked at.
const POLL_WAIT: Duration = Duration::from_millis(20);
/// Records between two looks at commands and memory.
const RECORDS_PER_TURN: usize = 1_000;
/// What to do about a batch that cannot be read.
const REMEDY: &str = "See docs/rejects.md#batches-that-cannot-be-read";
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time that waking a fetcher may keep the reader from polling.
const WAKE_TIMEOUT: Duration = Duration::from_millis(100);
/// The cause at `/readyz` of what Kafka refuses.
const ACCESS: &str = "access";

/// What the tasks ask of the reader.
pub enum Command {
    /// Seek, make a window there, and resume.
    Fill {
        /// The partition.
        partition: i32,
        /// First offset to consume.
        from: u64,
        /// Where the first window must end.
        until: Option<u64>,
        /// Notified when there is a batch.
        wake: Arc<Notify>,
    },
    /// Pause a partition that stopped.
    Pause(i32),
    /// Give all partitions up and join the group anew.
    Rejoin,
    /// Take no more records; answered when the last one is in.
    Quiesce(oneshot::Sender<()>),
    /// Leave the group and end.
    End,
}

/// What was consumed since the start, for the summary.
#[derive(Debug, Default)]
pub struct Tally {
    /// Records taken.
    pub consumed: AtomicU64,
    /// Records that were no events.
    pub rejected: AtomicU64,
}

/// The reader.
pub struct Reader {
    /// What it has fetched.
    pub fetched: Fetched,
    /// The consumer; dropped, and so closed, on this thread.
    pub consumer: Arc<Consumer>,
    /// The event topic.
    pub topic: String,
    /// Where records go.
    pub windows: Arc<Windows>,
    /// What tells when to pause.
    pub memory: Arc<Memory>,
    /// Where the pulse and refusals show.
    pub health: Arc<Health>,
    /// How event times are judged.
    pub bounds: TimeBounds,
    /// What a refusal is told with.
    pub config: Config,
    /// What the tasks ask for.
    pub commands: Receiver<Command>,
    /// What was consumed.
    pub tally: Arc<Tally>,
}

#[derive(Default)]
struct Turn {
    paused: bool,
    quiet: bool,
    ended: bool,
    rejoin: bool,
    /// Kafka has refused us, and given nothing since.
    refused: bool,
    /// Commands that librdkafka was not ready for.
    again: Vec<Command>,
    consumed: u64,
    decoded: u64,
    unknown_fields: u64,
    /// Time without a record to take, in this turn.
    waited: Duration,
    /// Time that was not waited, in all turns.
    busy: Duration,
}

impl Reader {
    /// Polls until told to end, then leaves the group. Gives the reason if Kafka ended it: an error that librdkafka calls fatal
    /// (a static member that was fenced, a group protocol that the broker does not speak) is never over.
    pub fn run(self) -> Option<String> {
        let mut turn = Turn::default();
        while !turn.ended {
            let begun = Instant::now();
            // Rebalances and what else concerns the client, and never a record: of a partition that was not taken over none is wanted.
            while let Some(polled) = self.consumer.poll(Duration::ZERO) {
                if let Err(error) = polled {
                    self.on_error(&error, &mut turn);
                }
            }
            for _ in 0..RECORDS_PER_TURN {
                if self.memory.is_full() && !turn.paused || !self.take_fetched(&mut turn) {
                    break;
                }
            }
            self.health.beat();
            match self.consumer.context().unreadable() {
                Some(reason) => {
                    self.health.set("unreadable", format!("a batch in Kafka cannot be read: {reason}. {REMEDY}"))
                }
                None => self.health.clear("unreadable"),
            }
            self.report(&mut turn, begun);
            self.obey(&mut turn);
            self.mind_memory(&mut turn);
            if std::mem::take(&mut turn.rejoin) && !turn.quiet {
                self.rejoin();
            }
            if let Some((_, reason)) = self.consumer.client().fatal_error() {
                return Some(reason);
            }
        }
        None
    }

    /// Takes the next record, and waits for it a little; tells whether there was one. In a backlog there always is, and not to wait needs
    /// no look at the clock.
    fn take_fetched(&self, turn: &mut Turn) -> bool {
        let mut visit = |partition, record: KafkaResult<Record<'_>>| match record {
            Ok(record) => self.take(partition, &record, turn),
            Err(error) => self.on_error(&error, turn),
        };
        if self.fetched.take(Duration::ZERO, &mut visit) {
            return true;
        }
        let begun = Instant::now();
        let came = self.fetched.take(POLL_WAIT, &mut visit);
        turn.waited += begun.elapsed();
        came
    }

    fn take(&self, partition: i32, record: &Record<'_>, turn: &mut Turn) {
        if turn.quiet {
            return;
        }
        self.admitted(turn);
        let decoded = decode(record.payload, record.timestamp_ms, &self.bounds);
        if !self.windows.push(partition, record, &decoded) {
            return;
        }
        turn.consumed += 1;
        match &decoded {
            Ok(event) => {
                turn.decoded += 1;
                turn.unknown_fields += u64::from(event.unknown_fields);
            }
            Err(rejection) => counter!(REJECTED, "reason" => Reason::code(rejection.reason)).increment(1),
        }
    }

    fn on_error(&self, error: &KafkaError, turn: &mut Turn) {
        match error {
            KafkaError::PartitionEOF(partition) => {
                self.admitted(turn);
                self.windows.reached_end(*partition);
            }
            // The position is outside of the log (`auto.offset.reset=error`); which partition's, the crate does not tell.
            KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset) => self.windows.check(None),
            // Told in words through `Context::unreadable`.
            error if is_unreadable(error) => {}
            error => {
                tracing::warn!("consuming: {error}");
                let trouble = self.consumer.context().take_trouble();
                let refusal = Refusal::in_answer(error).or(trouble.refusal);
                // Once, as finding the words can take a second.
                if let Some(refusal) = refusal.filter(|_| !turn.refused) {
                    let told = refusal.told(&self.config);
                    tracing::error!("{told}");
                    self.health.set(ACCESS, told);
                    turn.refused = true;
                }
            }
        }
    }

    /// Kafka gives us something: whatever right was missing is there again.
    fn admitted(&self, turn: &mut Turn) {
        if std::mem::take(&mut turn.refused) {
            self.health.clear(ACCESS);
        }
    }

    fn report(&self, turn: &mut Turn, begun: Instant) {
        turn.busy += begun.elapsed().saturating_sub(std::mem::take(&mut turn.waited));
        counter!(READER_BUSY).absolute(turn.busy.as_secs());
        if turn.consumed > 0 {
            counter!(CONSUMED).increment(turn.consumed);
            counter!(DECODED).increment(turn.decoded);
            counter!(UNKNOWN_FIELDS).increment(turn.unknown_fields);
            self.tally.consumed.fetch_add(turn.consumed, Ordering::Relaxed);
            self.tally.rejected.fetch_add(turn.consumed - turn.decoded, Ordering::Relaxed);
            (turn.consumed, turn.decoded, turn.unknown_fields) = (0, 0, 0);
        }
        self.memory.report();
    }

    fn obey(&self, turn: &mut Turn) {
        let again = std::mem::take(&mut turn.again);
        again.into_iter().for_each(|command| self.obey_one(command, turn));
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey_one(command, turn),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    turn.ended = true;
                    return;
                }
            }
        }
    }

    fn obey_one(&self, command: Command, turn: &mut Turn) {
        match command {
            Command::Fill { partition, from, until, wake } => match self.seek(partition, from) {
                Ok(()) => {
                    self.windows.open(partition, from, until, wake);
                    if !turn.paused && !turn.quiet {
                        self.set_paused(false, &[partition]);
                    }
                }
                Err(error) => {
                    // Right after an assignment the fetcher may not be started yet: the next turn tries again. A task
                    // that has gone meanwhile holds the other half of `wake` no more.
                    tracing::debug!(partition, from, "seek is not possible yet: {error}");
                    if Arc::strong_count(&wake) > 1 {
                        turn.again.push(Command::Fill { partition, from, until, wake });
                    }
                }
            },
            Command::Pause(partition) => self.set_paused(true, &[partition]),
            Command::Rejoin => turn.rejoin = true,
            Command::Quiesce(done) => {
                turn.quiet = true;
                self.set_paused(true, &self.windows.partitions());
                let _ = done.send(());
            }
            Command::End => turn.ended = true,
        }
    }

    fn rejoin(&self) {
        self.consumer.unsubscribe();
        if let Err(error) = self.consumer.subscribe(&[&self.topic]) {
            tracing::error!("joining the group anew failed: {error}");
        }
    }

    fn seek(&self, partition: i32, from: u64) -> KafkaResult<()> {
        self.windows.close(partition);
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        list.add_partition_offset(&self.topic, partition, offset)?;
        let list = self.consumer.seek_partitions(list, SEEK_TIMEOUT)?;
        list.elements().iter().try_for_each(|element| element.error())?;
        self.fetched.take_over(&self.topic, partition)
    }

    fn set_paused(&self, paused: bool, partitions: &[i32]) {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        let done = if paused { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        if let Err(error) = done {
            tracing::warn!(?partitions, paused, "pausing or resuming failed: {error}");
        }
        if !paused {
            self.wake_fetchers(partitions);
        }
    }

    /// librdkafka's fetcher of a broker sleeps for up to a second (`rd_kafka_max_block_ms`) while all its partitions are paused,
    /// and nobody tells it of a resumption. Any request to the broker wakes it; the answer does not matter, but without one
    /// there is nothing to hurry for.
    fn wake_fetchers(&self, partitions: &[i32]) {
        for &partition in partitions {
            if self.consumer.fetch_watermarks(&self.topic, partition, WAKE_TIMEOUT).is_err() {
                break;
            }
        }
    }

    fn mind_memory(&self, turn: &mut Turn) {
        if turn.quiet {
            return;
        }
        if !turn.paused && self.memory.is_full() {
            turn.paused = true;
            counter!(PAUSES).increment(1);
            tracing::info!(used_bytes = self.memory.used_bytes(), "memory limit reached: consumption pauses");
        } else if turn.paused && self.memory.has_room() {
            turn.paused = false;
            tracing::info!(used_bytes = self.memory.used_bytes(), "memory is free again: consumption goes on");
        } else {
            return;
        }
        self.memory.set_pressed(turn.paused);
        gauge!(PAUSED).set(f64::from(u8::from(turn.paused)));
        self.set_paused(turn.paused, &self.windows.partitions());
        if turn.paused {
            self.windows.wake_all();
        }
    }
}
