//! The reader: one thread that polls Kafka, decodes, and appends to the live windows.
//!
//! Only this thread polls and seeks. So a record polled before a seek can never reach the window that is made after it. Must
//! never wait for ClickHouse: a partition for which there is no memory pauses, and polling continues. [`Intake`] decides which
//! partition pauses and which fill begins.

use super::gaps::Gaps;
use super::memory::Memory;
use super::waker::Waker;
use super::windows::Windows;
use crate::config::Config;
use crate::kafka::consumer::{Consumer, is_unreadable, reassign};
use crate::kafka::fetch_queue::{Fetch, FetchQueue};
use crate::kafka::refusal::Refusal;
use crate::platform::metrics::{CONSUMED, DECODED, PAUSED, PAUSES, READER_BUSY, REJECTED, UNKNOWN_FIELDS};
use crate::service::health::Health;
use metrics::{counter, gauge};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};
use tallyhouse_core::decode::mapped::Decoder;
use tallyhouse_core::decode::reject::Reason;
use tallyhouse_core::stream::Stream;
use tallyhouse_core::window::Record;
use tallyhouse_core::window::intake::{Fill, Intake, Verdict};
use tokio::sync::{Notify, oneshot};

/// Longest wait for a record; also the longest delay of a command.
const POLL_WAIT: Duration = Duration::from_millis(20);
/// Number of records between two checks of commands and memory.
const RECORDS_PER_TURN: usize = 1_000;
/// Remedy for a batch that cannot be read.
const REMEDY: &str = "`tallyhouse explain rejects` says what to do, under \"Batches that cannot be read\"";
/// Time for which the oldest replay may take no record while others wait for its permit.
const REPLAY_PATIENCE: Duration = Duration::from_secs(5);
const SEEK_TIMEOUT: Duration = Duration::from_secs(10);
/// Name of the cause at `/readyz` for refusals by Kafka.
const ACCESS: &str = "access";

/// The requests of the tasks to the reader.
pub enum Command {
    /// Drop the partition's window. As soon as there is room, seek, make a window there, and resume.
    Fill {
        /// Fill with its first offset and its end.
        fill: Fill,
        /// Notified when there is a change.
        wake: Arc<Notify>,
    },
    /// Pause a partition that stopped or starts over.
    Pause(i32),
    /// The partition was revoked.
    Forget(i32),
    /// Take no more records. The reader answers when the last one is in.
    Quiesce(oneshot::Sender<()>),
    /// Leave the group and end.
    End,
}

/// The number of records consumed since the start, for the summary.
#[derive(Debug, Default)]
pub struct Tally {
    /// Number of records taken.
    pub consumed: AtomicU64,
    /// Number of records that were no events.
    pub rejected: AtomicU64,
}

/// The state of the reader thread, and the objects that it shares with the tasks.
pub struct Reader {
    /// Content of the topic.
    pub stream: Stream,
    /// Gets a message of each resumption. Ends before the consumer.
    pub waker: Waker,
    /// Queue of fetched records.
    pub fetched: FetchQueue,
    /// Consumer. The reader's thread closes it once this reader has ended.
    pub consumer: Arc<Consumer>,
    /// Name of the topic.
    pub topic: String,
    /// Windows that take the records.
    pub windows: Arc<Windows>,
    /// Count of the bytes that all windows and batches hold.
    pub memory: Arc<Memory>,
    /// Decisions about the partitions that read.
    pub intake: Intake,
    /// Health, which shows the pulse and refusals.
    pub health: Arc<Health>,
    /// Decoder of the records.
    pub decoder: Decoder,
    /// Configuration, for the texts of refusals.
    pub config: Config,
    /// Receiver of the offsets that the reader passes over.
    pub gaps: Gaps,
    /// Requests of the tasks.
    pub commands: Receiver<Command>,
    /// Number of consumed records.
    pub tally: Arc<Tally>,
}

struct PollState {
    intake: Intake,
    /// Partitions that pause because there is no memory.
    paused: BTreeSet<i32>,
    /// Partitions whose position librdkafka has lost: it no longer seeks them.
    lost: BTreeSet<i32>,
    /// Number and next offset of the oldest replay, and the time since which it stands there.
    replay: Option<(u64, u64, Instant)>,
    /// Verdict to carry out before the next record is taken.
    verdict: Option<(i32, Verdict)>,
    /// Notifier of each requested partition's task.
    wakes: BTreeMap<i32, Arc<Notify>>,
    quiet: bool,
    ended: bool,
    rejoin: bool,
    /// True if Kafka has refused this member, and given nothing since.
    refused: bool,
    consumed: u64,
    decoded: u64,
    unknown_fields: u64,
    /// Time without a record to take, in this state.
    waited: Duration,
    /// Time that was not spent waiting, in all turns.
    busy: Duration,
}

impl PollState {
    fn new(intake: Intake) -> PollState {
        PollState {
            intake,
            paused: BTreeSet::new(),
            lost: BTreeSet::new(),
            replay: None,
            verdict: None,
            wakes: BTreeMap::new(),
            quiet: false,
            ended: false,
            rejoin: false,
            refused: false,
            consumed: 0,
            decoded: 0,
            unknown_fields: 0,
            waited: Duration::ZERO,
            busy: Duration::ZERO,
        }
    }

    /// Forgets a partition's fill, because nobody wants it any more.
    fn forget(&mut self, partition: i32) {
        self.intake.forget(partition);
        self.paused.remove(&partition);
        self.wakes.remove(&partition);
    }
}

impl Reader {
    /// Polls until the command to end comes. If Kafka ended it, this returns the reason. An error that
    /// librdkafka calls fatal never ends (a static member that was fenced, a group protocol that the broker does not speak).
    pub fn run(self) -> Option<String> {
        let mut state = PollState::new(self.intake.clone());
        while !state.ended {
            let begun = Instant::now();
            // `poll` returns rebalances and other events of the client, and never a record: nobody wants records of a partition
            // that was not taken over.
            while let Some(polled) = self.consumer.poll(Duration::ZERO) {
                if let Err(error) = polled {
                    self.on_error(&error, &mut state);
                }
            }
            for _ in 0..RECORDS_PER_TURN {
                if !self.take_records(&mut state) || state.verdict.is_some() {
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
            self.report(&mut state, begun);
            self.carry_out(&mut state);
            self.handle_commands(&mut state);
            if !state.quiet {
                self.resume(&mut state);
                self.watch_replay(&mut state);
                self.begin_fills(&mut state);
                if std::mem::take(&mut state.rejoin) {
                    self.rejoin();
                }
            }
            if let Some((_, reason)) = self.consumer.client().fatal_error() {
                return Some(reason);
            }
        }
        None
    }

    /// Takes the next record, and waits for it a little. True if there was one. In a backlog there always is one. Without a wait,
    /// it needs no reading of the clock.
    fn take_records(&self, state: &mut PollState) -> bool {
        let mut visit = |partition, fetch: Fetch<'_>| match fetch {
            Fetch::Record(record) => self.take(partition, &record, state),
            Fetch::End(end) => {
                self.clear_access_error(state);
                let whole = self.windows.reached_end(partition, end);
                whole.into_iter().for_each(|number| state.intake.finish(number));
            }
            Fetch::PositionLost => {
                tracing::warn!(partition, "the position is outside of the log: the partition starts over");
                state.lost.insert(partition);
                self.windows.lose_position(partition);
            }
            Fetch::Error(error) => self.on_error(&error, state),
        };
        if self.fetched.take(Duration::ZERO, &mut visit) {
            return true;
        }
        let begun = Instant::now();
        let came = self.fetched.take(POLL_WAIT, &mut visit);
        state.waited += begun.elapsed();
        came
    }

    fn take(&self, partition: i32, record: &Record<'_>, state: &mut PollState) {
        if state.quiet {
            return;
        }
        self.clear_access_error(state);
        let decoded = self.decoder.decode(record.payload, record.timestamp_ms);
        let Some(taken) = self.windows.push(partition, record, &decoded) else { return };
        if let Some(gap) = taken.passed_over {
            self.gaps.note(partition, gap);
        }
        if let Some(number) = taken.whole {
            state.intake.finish(number);
        }
        let verdict = state.intake.after_record(partition, taken.held, taken.used);
        if verdict != Verdict::GoOn {
            state.verdict = Some((partition, verdict));
        }
        state.consumed += 1;
        match &decoded {
            Ok(event) => {
                state.decoded += 1;
                state.unknown_fields += u64::from(event.unknown_fields);
            }
            Err(rejection) => counter!(REJECTED, "reason" => Reason::code(rejection.reason)).increment(1),
        }
    }

    fn on_error(&self, error: &KafkaError, state: &mut PollState) {
        match error {
            // `Context::unreadable` reports it in words.
            error if is_unreadable(error) => {}
            error => {
                tracing::warn!("consuming: {error}");
                let trouble = self.consumer.context().take_errors();
                let refusal = Refusal::from_error(error).or(trouble.refusal);
                // The text is made only once, as this can take a second.
                if let Some(refusal) = refusal.filter(|_| !state.refused) {
                    let message = refusal.describe(&self.config);
                    tracing::error!("{message}");
                    self.health.set(ACCESS, message);
                    state.refused = true;
                }
            }
        }
    }

    /// Notes that Kafka has given something. So a missing right is there again.
    fn clear_access_error(&self, state: &mut PollState) {
        if std::mem::take(&mut state.refused) {
            self.health.clear(ACCESS);
        }
    }

    fn report(&self, state: &mut PollState, begun: Instant) {
        state.busy += begun.elapsed().saturating_sub(std::mem::take(&mut state.waited));
        if self.stream == Stream::Events {
            counter!(READER_BUSY).absolute(state.busy.as_secs());
            self.memory.report();
        }
        if state.consumed > 0 {
            counter!(CONSUMED).increment(state.consumed);
            counter!(DECODED).increment(state.decoded);
            counter!(UNKNOWN_FIELDS).increment(state.unknown_fields);
            self.tally.consumed.fetch_add(state.consumed, Ordering::Relaxed);
            self.tally.rejected.fetch_add(state.consumed - state.decoded, Ordering::Relaxed);
            (state.consumed, state.decoded, state.unknown_fields) = (0, 0, 0);
        }
    }

    /// Sets the gauge of the paused partitions of the event topic.
    fn report_paused(&self, state: &PollState) {
        if self.stream == Stream::Events {
            gauge!(PAUSED).set(state.paused.len() as f64);
        }
    }

    /// Carries out the verdict on memory after a record.
    fn carry_out(&self, state: &mut PollState) {
        let Some((partition, verdict)) = state.verdict.take() else { return };
        self.set_paused(true, &[partition]);
        match verdict {
            Verdict::GoOn => {}
            Verdict::Pause => {
                if state.paused.is_empty() {
                    counter!(PAUSES).increment(1);
                    tracing::info!(
                        partition,
                        used_bytes = self.memory.used_bytes(),
                        "memory limit reached: consumption pauses"
                    );
                }
                state.paused.insert(partition);
                self.windows.set_paused(partition, true);
            }
            Verdict::GiveWay => {
                let fill = state.intake.replays().iter().find(|fill| fill.partition == partition).copied();
                fill.into_iter().for_each(|fill| state.intake.defer(fill));
                self.windows.close(partition);
                tracing::info!(partition, "memory limit reached: the replay begins again when there is room");
            }
            Verdict::TooLarge => {
                let fill = state.intake.replays().iter().find(|fill| fill.partition == partition).copied();
                fill.into_iter().for_each(|fill| state.intake.finish(fill.number));
                self.windows.give_up(partition);
            }
        }
        self.report_paused(state);
    }

    /// Resumes partitions for which there is memory again.
    fn resume(&self, state: &mut PollState) {
        if state.paused.is_empty() {
            return;
        }
        let goes_on = |partition: &i32| match self.windows.held_bytes(*partition) {
            Some((held, used)) => state.intake.may_resume(*partition, held, used),
            None => true,
        };
        let resumed: Vec<i32> = state.paused.iter().copied().filter(goes_on).collect();
        if resumed.is_empty() {
            return;
        }
        for partition in &resumed {
            state.paused.remove(partition);
            self.windows.set_paused(*partition, false);
        }
        let live: Vec<i32> = resumed.into_iter().filter(|&partition| self.windows.next(partition).is_some()).collect();
        self.set_paused(false, &live);
        if state.paused.is_empty() {
            tracing::info!(used_bytes = self.memory.used_bytes(), "memory is free again: consumption goes on");
        }
        self.report_paused(state);
    }

    /// Gives the permit of the oldest replay to another one if it makes no progress. Its broker may be away for a long time.
    fn watch_replay(&self, state: &mut PollState) {
        let Some(fill) = state.intake.replays().first().copied() else { return };
        let next = self.windows.next(fill.partition).unwrap_or(fill.from);
        match state.replay {
            Some((number, known, since)) if (number, known) == (fill.number, next) => {
                if since.elapsed() > REPLAY_PATIENCE && state.intake.rotate().is_some() {
                    tracing::info!(partition = fill.partition, "the replay gets on no more: another one goes first");
                    self.windows.close(fill.partition);
                    self.set_paused(true, &[fill.partition]);
                    state.replay = None;
                }
            }
            _ => state.replay = Some((fill.number, next, Instant::now())),
        }
    }

    /// Begins the fills for which there is room, all in one go. A member may get a thousand partitions at once, and a request for each
    /// waits behind the fetches of those that read already.
    fn begin_fills(&self, state: &mut PollState) {
        state.intake.note_room();
        let mut begun = Vec::new();
        while let Some(fill) = state.intake.begin() {
            let partition = fill.partition;
            // If the task has ended meanwhile, it no longer holds the other half of `wake`.
            let wake = state.wakes.get(&partition).filter(|wake| Arc::strong_count(wake) > 1).cloned();
            let Some(wake) = wake else {
                state.forget(partition);
                continue;
            };
            if state.lost.contains(&partition) {
                match self.place(partition, fill.from).and_then(|place| reassign(&self.consumer, &place)) {
                    Ok(true) => {
                        state.lost.remove(&partition);
                    }
                    // All partitions are assigned again.
                    Ok(false) => {
                        state.rejoin = true;
                        state.forget(partition);
                        continue;
                    }
                    Err(error) => tracing::warn!(partition, "assigning the partition again failed: {error}"),
                }
            }
            begun.push((fill, wake));
        }
        if begun.is_empty() {
            return;
        }
        let (mut live, mut again) = (Vec::new(), Vec::new());
        let refused = self.seek(begun.iter().map(|(fill, _)| fill));
        for (fill, wake) in begun {
            let partition = fill.partition;
            let sought = refused.get(&partition).cloned().map_or(Ok(()), Err);
            match sought.and_then(|()| self.fetched.redirect(&self.topic, partition)) {
                Ok(()) => {
                    self.windows.open(&fill, wake);
                    live.push(partition);
                }
                Err(error) => {
                    // Right after an assignment librdkafka may not have started the fetcher yet. The next turn tries again.
                    tracing::debug!(partition, from = fill.from, "seek is not possible yet: {error}");
                    again.push(fill);
                }
            }
        }
        if !live.is_empty() {
            self.set_paused(false, &live);
        }
        again.into_iter().rev().for_each(|fill| state.intake.defer(fill));
    }

    fn handle_commands(&self, state: &mut PollState) {
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.handle_command(command, state),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    state.ended = true;
                    return;
                }
            }
        }
    }

    fn handle_command(&self, command: Command, state: &mut PollState) {
        match command {
            Command::Fill { fill, wake } => {
                self.windows.close(fill.partition);
                self.set_paused(true, &[fill.partition]);
                state.paused.remove(&fill.partition);
                state.wakes.insert(fill.partition, wake);
                state.intake.ask(fill);
            }
            Command::Pause(partition) => {
                self.set_paused(true, &[partition]);
                state.forget(partition);
            }
            Command::Forget(partition) => {
                state.forget(partition);
                state.lost.remove(&partition);
            }
            Command::Quiesce(done) => {
                state.quiet = true;
                self.set_paused(true, &self.windows.partitions());
                let _ = done.send(());
            }
            Command::End => state.ended = true,
        }
    }

    fn place(&self, partition: i32, from: u64) -> KafkaResult<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        self.place_in(&mut list, partition, from)?;
        Ok(list)
    }

    fn place_in(&self, list: &mut TopicPartitionList, partition: i32, from: u64) -> KafkaResult<()> {
        let offset = Offset::Offset(i64::try_from(from).unwrap_or(i64::MAX));
        list.add_partition_offset(&self.topic, partition, offset)
    }

    fn rejoin(&self) {
        self.consumer.unsubscribe();
        if let Err(error) = self.consumer.subscribe(&[&self.topic]) {
            tracing::error!("joining the group again failed: {error}");
        }
    }

    /// Moves paused partitions to where their fills begin; gives those that could not be moved, and why.
    fn seek<'a>(&self, fills: impl Iterator<Item = &'a Fill> + Clone) -> BTreeMap<i32, KafkaError> {
        let mut list = TopicPartitionList::new();
        let placed = fills.clone().try_for_each(|fill| self.place_in(&mut list, fill.partition, fill.from));
        match placed.and_then(|()| self.consumer.seek_partitions(list, SEEK_TIMEOUT)) {
            Ok(list) => {
                let refused =
                    |element: &TopicPartitionListElem<'_>| Some((element.partition(), element.error().err()?));
                list.elements().iter().filter_map(refused).collect()
            }
            Err(error) => fills.map(|fill| (fill.partition, error.clone())).collect(),
        }
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
            self.waker.wake(partitions);
        }
    }
}
