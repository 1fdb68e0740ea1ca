//! The service: `tallyhouse run`, from start to a graceful end.
//!
//! ```text
//!  reader thread                       one task per partition                        ClickHouse
//!  poll ─► decode ─► live window ────► take ─► freeze ─► intent ─► insert ─► commit
//!  (reader.rs)       (windows.rs)      (partition.rs, as the core's protocol says)
//! ```
//!
//! The lifecycle topics have pipelines of their own with the same code (`lifecycle.rs`).
//!
//! Must never exit because a server is away for a while: it waits and reports that. It ends on a signal. At the start it also
//! ends for a fault that waiting does not fix.

mod admin;
mod assignment;
mod commits;
mod gaps;
mod gauges;
mod groups;
mod health;
mod joint;
mod left_behind;
mod left_open;
mod lifecycle;
mod memory;
mod partition;
mod reader;
mod rotated;
mod start;
mod waker;
mod windows;

use self::health::Health;
use crate::clickhouse::client::ClickHouseOptions;
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::schema::{Schema, SchemaProblem};
use crate::clickhouse::servers::Servers;
use crate::clickhouse::sink::Sink;
use crate::config::pace::Pace;
use crate::config::{self, Config, Retry};
use crate::kafka::consumer::{self, Consumer};
use crate::kafka::dead_letters::DeadLetters;
use crate::kafka::fetch_queue::FetchQueue;
use crate::kafka::{self, KAFKA_TIMEOUT, masked};
use crate::platform::lock::locked;
use crate::platform::metrics::{self, FLUSH_AGE, FLUSHED_ROWS, STOPPED};
use ::metrics::{counter, gauge};
use assignment::Assignment;
use commits::{Commit, Sent};
use dashmap::DashMap;
use gaps::Gaps;
use groups::Groups;
use joint::{Joint, Questions};
use lifecycle::Pipelines;
use memory::Memory;
use metrics_process::Collector;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use reader::{Command, Reader, Tally};
use rotated::Credentials;
use start::{await_schema, await_topic, see_group, session_timeout_ms};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use tallyhouse_core::protocol::lease::Lease;
use tallyhouse_core::protocol::stop::StopReason;
use tallyhouse_core::recipients::RecipientKey;
use tallyhouse_core::source::Table;
use tallyhouse_core::stream::Stream;
use tallyhouse_core::window::Limits;
use tallyhouse_core::window::intake::Intake;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use left_open::LeftOpen;
pub use rotated::Reload;
use waker::Waker;
use windows::Ages;
pub use windows::{WindowSnapshot, Windows};

/// Longest wait for an answer from Kafka at the start.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// The way in which a partition's task is to end, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drain {
    /// The task continues to work.
    No,
    /// Finish the batch in flight and drop the rest. The next owner reads the rest again.
    Abandon,
    /// Flush all consumed records.
    Flush,
}

/// Reasons why the service did not start, or did not end cleanly.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// ClickHouse refuses this member.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// The schema does not exist or does not fit.
    #[error(transparent)]
    Schema(#[from] SchemaProblem),
    /// Kafka refuses this member: the refusal and its remedy.
    #[error("{0}")]
    Kafka(String),
    /// librdkafka refuses a property.
    #[error("the consumer, or the producer of dead letters, cannot be made: {0}")]
    Consumer(String),
    /// The HTTP endpoint cannot listen.
    #[error("admin.listen {address}: {error}")]
    Admin {
        /// Address to listen on.
        address: std::net::SocketAddr,
        /// Error of the system.
        error: std::io::Error,
    },
    /// Metrics are installed already: a process can have only one service.
    #[error("metrics: {0}")]
    Metrics(String),
    /// Not everything was flushed in time. Nothing is lost.
    #[error(
        "shutdown.grace_ms passed before all batches were committed. The next owner reads the rest again. {open}. {summary}"
    )]
    Grace {
        /// Names of the open batches.
        open: String,
        /// Totals of the work until then.
        summary: Summary,
    },
    /// Not everything was flushed, and waiting would not have changed that. Nothing is lost.
    #[error(
        "the member did not wait for a step that is refused permanently. {open}. Nothing is lost: the next owner completes it once the cause is \
         fixed. {summary}"
    )]
    Refused {
        /// Names of the open batches, with their refusals.
        open: String,
        /// Totals of the work until then.
        summary: Summary,
    },
    /// Kafka permanently refuses this member.
    #[error(
        "kafka refuses this member permanently: {0}. Nothing is lost: the next owner goes on. With kafka.group_instance_id, each \
         running process needs an id of its own"
    )]
    Fatal(String),
    /// librdkafka no longer takes part in the group.
    #[error(
        "librdkafka has left this member behind: {0}. Its partitions are given up, nothing is lost, and the next owner goes on. Start \
         the process again, as a supervisor does; see `tallyhouse explain librdkafka-left-behind`"
    )]
    LeftBehind(left_behind::Difference),
    /// There is a defect, or a call that never ends: only a new process helps.
    #[error(
        "{0}. Nothing is lost: the next owner goes on. Start the process again, as a supervisor does, and report this"
    )]
    Broken(String),
    /// The member's credentials were changed since the start.
    #[error(
        "this member is not ready, and its credentials were changed since it started: {0}. It has left the group and nothing is lost. \
         Start the process again, as a supervisor does, so that it takes up the new values"
    )]
    Rotated(String),
    /// The reader ended by itself.
    #[error("the reader thread ended unexpectedly")]
    Reader,
}

/// The work of one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of records consumed.
    pub consumed: u64,
    /// Number of records that were no events.
    pub rejected: u64,
    /// Number of rows for valid records that ClickHouse acknowledged.
    pub rows: u64,
    /// Number of batches committed.
    pub batches: u64,
    /// Time for which it ran.
    pub uptime: Duration,
}

impl Summary {
    /// Returns the work of both, which ran at the same time.
    #[must_use]
    fn with(self, other: Summary) -> Summary {
        Summary {
            consumed: self.consumed + other.consumed,
            rejected: self.rejected + other.rejected,
            rows: self.rows + other.rows,
            batches: self.batches + other.batches,
            uptime: self.uptime.max(other.uptime),
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { consumed, rejected, rows, batches, uptime } = self;
        let seconds = uptime.as_secs_f64();
        write!(f, "consumed {consumed}, rejected {rejected}, rows {rows}, batches {batches}, up {seconds:.1} s")
    }
}

/// The objects that all tasks of a pipeline share.
struct Shared {
    stream: Stream,
    /// Names the topic in the log, where it is not the event topic.
    span: tracing::Span,
    /// Consumer. The reference is weak: the reader owns the consumer, and closes it when it ends.
    consumer: Weak<Consumer>,
    sink: Sink,
    dead_letters: Option<DeadLetters>,
    windows: Arc<Windows>,
    groups: Arc<Groups>,
    health: Arc<Health>,
    left_open: Arc<LeftOpen>,
    commands: Sender<Command>,
    topic: String,
    questions: Questions,
    commits: Joint<Commit, KafkaResult<Sent>>,
    cluster_id: String,
    session_timeout: Duration,
    retry: Retry,
    pace: Pace,
    stopped: Mutex<BTreeMap<i32, &'static str>>,
    /// Reason why this process cannot continue, once there is one.
    broken: watch::Sender<Option<String>>,
    open_transactions: gauges::OpenTransactions,
    /// Kafka timestamp of the oldest record that is frozen and not stored, by partition.
    frozen_ms: DashMap<i32, i64>,
    /// Committed offset by partition; the log's start without one.
    committed: DashMap<i32, u64>,
    fills: AtomicU64,
    flushed_rows: AtomicU64,
    flushed_batches: AtomicU64,
}

impl Shared {
    /// Ends the service, because only a new process helps.
    fn give_up(&self, reason: String) {
        self.broken.send_replace(Some(reason));
    }

    /// Makes a blocking call to Kafka on a thread for such calls.
    async fn kafka<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Consumer) -> KafkaResult<T> + Send + 'static,
    ) -> KafkaResult<T> {
        let consumer = self.consumer.upgrade().ok_or(KafkaError::Canceled)?;
        kafka::blocking(move || call(&consumer)).await
    }

    /// Returns the number of a fill. No other fill has it.
    fn next_fill(&self) -> u64 {
        self.fills.fetch_add(1, Ordering::Relaxed)
    }

    fn send_to_reader(&self, command: Command) {
        // If the reader has ended, it needs no command.
        let _ = self.commands.send(command);
    }

    /// Returns the ages at which a window is flushed, so that ClickHouse gets at most `flush.batches_per_second_max`.
    fn flush_ages(&self) -> Ages {
        Ages { most: self.pace.flush_age(), idle: self.pace.interval_min() }
    }

    /// Counts rows that ClickHouse has acknowledged.
    fn note_rows(&self, table: Table, rows: u64) {
        counter!(FLUSHED_ROWS, "table" => table.name()).increment(rows);
        self.flushed_rows.fetch_add(if table == self.stream.row_table() { rows } else { 0 }, Ordering::Relaxed);
    }

    /// Returns the Kafka timestamp of the oldest record of a partition that is consumed and not stored.
    fn unstored_ms(&self, partition: i32) -> Option<i64> {
        let frozen_ms = self.frozen_ms.get(&partition).map(|oldest_ms| *oldest_ms);
        frozen_ms.or_else(|| self.windows.oldest_ms(partition))
    }

    fn stop(&self, partition: i32, reason: &StopReason) {
        let message = reason.message();
        tracing::error!(partition, reason = reason.code(), "partition stopped: {message}");
        self.windows.close(partition);
        self.send_to_reader(Command::Pause(partition));
        self.health.set(&format!("partition {partition}"), message);
        self.update_stopped(|stopped| stopped.insert(partition, reason.code()));
    }

    fn forget(&self, partition: i32) {
        self.windows.close(partition);
        self.send_to_reader(Command::Forget(partition));
        self.frozen_ms.remove(&partition);
        self.left_open.forget(partition);
        self.health.clear(&format!("partition {partition}"));
        self.update_stopped(|stopped| stopped.remove(&partition));
    }

    fn update_stopped<T>(&self, change: impl FnOnce(&mut BTreeMap<i32, &'static str>) -> Option<T>) {
        let mut stopped = locked(&self.stopped);
        let mut reasons: BTreeMap<&str, u32> = stopped.values().map(|&reason| (reason, 0)).collect();
        change(&mut stopped);
        stopped.values().for_each(|&reason| *reasons.entry(reason).or_default() += 1);
        for (reason, count) in reasons {
            gauge!(STOPPED, "reason" => reason.to_owned(), "topic" => self.topic.clone()).set(count);
        }
    }
}

/// The parts of a service that need no server. They exist while it waits for the servers.
struct Local {
    health: Arc<Health>,
    memory: Arc<Memory>,
    windows: Arc<Windows>,
}

/// The servers, found fit, and the facts that the service depends on.
struct Reached {
    servers: Arc<Servers>,
    schema: Schema,
    /// Key of the hashes of recipients, if they are written.
    recipient_key: Option<RecipientKey>,
    consumer: Arc<Consumer>,
    assignment: Arc<Assignment>,
    cluster_id: String,
    session_timeout: Duration,
}

/// A pipeline that consumes.
struct Running {
    servers: Arc<Servers>,
    assignment: Arc<Assignment>,
    shared: Arc<Shared>,
    tally: Arc<Tally>,
    reader_ended: oneshot::Receiver<Option<String>>,
}

/// Runs the service until `stop` is cancelled, then flushes, commits and leaves the group. `left_open` always has the batches
/// that an end at this moment would leave open. `reload` reads the configuration again.
///
/// # Errors
/// Returns any [`RunError`].
pub async fn run(
    config: &Config,
    clickhouse: &ClickHouseOptions,
    stop: CancellationToken,
    left_open: Arc<LeftOpen>,
    reload: Reload,
) -> Result<Summary, RunError> {
    let started = Instant::now();
    let credentials = Credentials::read(config);
    let local = prepare(config).await?;
    let Some(reached) = await_servers(config, clickhouse, &local.health, &stop).await? else {
        return Ok(Summary { uptime: started.elapsed(), ..Summary::default() });
    };
    tokio::spawn(gauges::watch_headroom(Arc::clone(&reached.servers), stop.clone()));
    tokio::spawn(Arc::clone(&reached.servers).watch(stop.clone()));
    let schema = reached.schema.clone();
    let mut running = start(config, Stream::Events, local, reached, left_open)?;
    let mut pipelines = Pipelines::start(config, &running, &schema, &credentials, &reload, &stop);
    let served = tokio::select! {
        // A pipeline that ends because of `stop` must not keep the events from being flushed.
        biased;
        served = serve(config, &mut running, &credentials, &reload, &stop) => served.map_err(|error| (error, false)),
        error = pipelines.failed() => Err((error, true)),
    };
    if let Err((error, consumes)) = served {
        if consumes {
            give_up(Duration::from_millis(config.rebalance.grace_ms), &mut running).await;
        }
        let _ = pipelines.end().await;
        return Err(error);
    }
    let (is_flushed, others) = tokio::join!(shut_down(config, &mut running), pipelines.end());
    Ok(running.sum_up(started, is_flushed)?.with(others?))
}

/// Phase 1: installs the metrics, and opens the HTTP endpoint.
async fn prepare(config: &Config) -> Result<Local, RunError> {
    let metrics =
        metrics::install(&config.kafka.topics.events).map_err(|error| RunError::Metrics(error.to_string()))?;
    let health = Arc::new(Health::default());
    health.set("assignment", "no partitions are assigned yet");
    let memory = Arc::new(Memory::new(config::memory::windows(config.memory.limit_bytes)));
    let windows = Arc::new(Windows::new(Stream::Events, limits(config), Arc::clone(&memory)));
    let state = admin::State {
        metrics,
        process: Collector::default(),
        health: Arc::clone(&health),
        windows: Arc::clone(&windows),
    };
    admin::start(config.admin.listen, state)
        .await
        .map_err(|error| RunError::Admin { address: config.admin.listen, error })?;
    Ok(Local { health, memory, windows })
}

/// Phase 2: waits for ClickHouse and Kafka, and checks both. Returns `None` if it is stopped meanwhile.
async fn await_servers(
    config: &Config,
    clickhouse: &ClickHouseOptions,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<Reached>, RunError> {
    let found = await_schema(&Servers::clients(clickhouse)?, config, health, stop).await?;
    let Some((servers, schema, recipient_key)) = found else { return Ok(None) };
    let assignment = Arc::new(Assignment::new(Duration::from_millis(config.rebalance.grace_ms)));
    let consumer = consumer::create(config, assignment.clone()).map_err(|error| RunError::Consumer(masked(&error)))?;
    let consumer = Arc::new(consumer);
    let Some(cluster_id) = await_topic(&consumer, config, health, stop).await? else { return Ok(None) };
    see_group(&consumer, config, health).await?;
    let session_timeout = Duration::from_millis(session_timeout_ms(&consumer, config).await);
    Ok(Some(Reached { servers, schema, recipient_key, consumer, assignment, cluster_id, session_timeout }))
}

/// Phase 3: joins the group, and starts the reader's thread and the tasks that work for all partitions.
fn start(
    config: &Config,
    stream: Stream,
    local: Local,
    reached: Reached,
    left_open: Arc<LeftOpen>,
) -> Result<Running, RunError> {
    let Local { health, memory, windows } = local;
    let Reached { servers, schema, recipient_key, consumer, assignment, cluster_id, session_timeout } = reached;
    let topic = &config.kafka.topics.events;
    let replicas_confirmed = config.clickhouse.replicas_confirmed;
    let sink = Sink::of_servers(Arc::clone(&servers), schema, session_timeout, replicas_confirmed)
        .for_stream(stream)
        .with_recipients(recipient_key);
    let span = match stream {
        Stream::Events => tracing::Span::none(),
        Stream::Lifecycle(_) => tracing::info_span!("lifecycle", topic),
    };
    let (commands, commands_for_reader) = channel();
    let commit_within = KAFKA_TIMEOUT.min(Lease::new(session_timeout).length());
    let shared = Arc::new(Shared {
        stream,
        span: span.clone(),
        consumer: Arc::downgrade(&consumer),
        dead_letters: DeadLetters::new(config).map_err(|error| RunError::Consumer(masked(&error)))?,
        windows: Arc::clone(&windows),
        groups: Arc::default(),
        health: Arc::clone(&health),
        left_open,
        commands,
        topic: topic.clone(),
        questions: Questions::new(&consumer, topic, &sink),
        commits: commits::start(&consumer, topic, commit_within),
        sink,
        cluster_id,
        session_timeout,
        retry: config.retry.clone(),
        pace: Pace::of(config),
        stopped: Mutex::default(),
        broken: watch::Sender::default(),
        open_transactions: gauges::OpenTransactions::default(),
        frozen_ms: DashMap::new(),
        committed: DashMap::new(),
        fills: AtomicU64::new(0),
        flushed_rows: AtomicU64::new(0),
        flushed_batches: AtomicU64::new(0),
    });
    // Rebalance callbacks need the tasks, and the tasks need the consumer. The subscription begins the first rebalance.
    assignment.start_with(Arc::clone(&shared));
    if stream == Stream::Events {
        gauge!(FLUSH_AGE).set(shared.flush_ages().most.as_secs_f64());
    }
    tokio::spawn(groups::flush_when_due(Arc::downgrade(&shared), limits(config)));
    consumer.subscribe(&[topic]).map_err(|error| RunError::Consumer(masked(&error)))?;
    let tally = Arc::new(Tally::default());
    let reader = Reader {
        stream,
        waker: Waker::start(Arc::clone(&consumer), topic.clone()),
        fetched: FetchQueue::new(Arc::clone(&consumer)),
        consumer,
        topic: topic.clone(),
        windows,
        memory,
        intake: Intake::new(config::memory::windows(config.memory.limit_bytes), config.flush.rows_max as u64),
        health,
        decoder: config.decoder(),
        config: config.clone(),
        gaps: Gaps::start(config),
        commands: commands_for_reader,
        tally: Arc::clone(&tally),
    };
    let (ended, reader_ended) = oneshot::channel();
    std::thread::spawn(move || {
        let _named = span.enter();
        let consumer = Arc::clone(&reader.consumer);
        let reason = reader.run();
        consumer::close(consumer);
        let _ = ended.send(reason);
    });
    tracing::info!(topic, group = config.kafka.group_id, "consuming");
    Ok(Running { servers, assignment, shared, tally, reader_ended })
}

/// Phase 4: waits for the signal. If the member cannot continue, it gives its partitions up and returns the reason.
async fn serve(
    config: &Config,
    running: &mut Running,
    credentials: &Credentials,
    reload: &Reload,
    stop: &CancellationToken,
) -> Result<(), RunError> {
    let mut broken = running.shared.broken.subscribe();
    let rotated = rotated::found(credentials, &running.shared.health, reload, rotated::INTERVAL);
    let reason = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        // The reader has left the group already.
        fatal = &mut running.reader_ended => return Err(fatal.ok().flatten().map_or(RunError::Reader, RunError::Fatal)),
        Ok(reason) = broken.wait_for(Option::is_some) => RunError::Broken(reason.clone().unwrap_or_default()),
        difference = left_behind::found(&running.shared, &running.assignment, config) => RunError::LeftBehind(difference),
        error = running.servers.other_server() => error.into(),
        keys = rotated => RunError::Rotated(keys),
    };
    give_up(Duration::from_millis(config.rebalance.grace_ms), running).await;
    Err(reason)
}

/// Phase 5: ends in order. It takes no more records, flushes, commits and leaves the group. Returns `false` if not everything was
/// committed in time.
async fn shut_down(config: &Config, running: &mut Running) -> bool {
    let Running { shared, assignment, reader_ended, .. } = running;
    let grace = Duration::from_millis(config.shutdown.grace_ms);
    tracing::info!(grace_ms = config.shutdown.grace_ms, "stopping: flushing what was consumed");
    shared.health.set("shutdown", "the service is stopping");
    let (quiet, is_quiet) = oneshot::channel();
    shared.send_to_reader(Command::Quiesce(quiet));
    let flushed = async {
        let _ = is_quiet.await;
        assignment.flush_all(grace).await
    };
    let is_flushed = tokio::time::timeout(grace, flushed).await.unwrap_or(false);
    shared.left_open.keep();
    shared.send_to_reader(Command::End);
    // To leave the group takes one answer from the coordinator. Without it the others wait for the session timeout.
    let _ = tokio::time::timeout(ANSWER_TIMEOUT, reader_ended).await;
    is_flushed
}

/// Gives all partitions up, then leaves the group, so that the others need not wait for this member's session to end.
async fn give_up(grace: Duration, running: &mut Running) {
    let Running { shared, assignment, reader_ended, .. } = running;
    // A commit that gets no answer outlives the grace.
    let _ = tokio::time::timeout(grace + ANSWER_TIMEOUT, assignment.abandon_all()).await;
    shared.send_to_reader(Command::End);
    let _ = tokio::time::timeout(ANSWER_TIMEOUT, reader_ended).await;
}

impl Running {
    /// Returns the work of the run, as an error if batches are left open that the next owner has to complete.
    fn sum_up(&self, started: Instant, is_flushed: bool) -> Result<Summary, RunError> {
        let summary = Summary {
            consumed: self.tally.consumed.load(Ordering::Relaxed),
            rejected: self.tally.rejected.load(Ordering::Relaxed),
            rows: self.shared.flushed_rows.load(Ordering::Relaxed),
            batches: self.shared.flushed_batches.load(Ordering::Relaxed),
            uptime: started.elapsed(),
        };
        let open = &self.shared.left_open;
        match is_flushed {
            false => Err(RunError::Grace { open: open.message(), summary }),
            true if open.has_refusal() => Err(RunError::Refused { open: open.message(), summary }),
            true => {
                if !open.is_empty() {
                    tracing::warn!("ended with a batch that is not completed by waiting. {}", open.message());
                }
                Ok(summary)
            }
        }
    }
}

fn limits(config: &Config) -> Limits {
    let flush = &config.flush;
    Limits { rows_max: flush.rows_max as u64, bytes_max: flush.bytes_max, days_max: flush.days_max }
}
