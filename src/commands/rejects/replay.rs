//! `tallyhouse rejects replay`: puts rejected records back into the event topic, each row once.
//!
//! ```text
//! fence earlier replays ─► sign the ledger ─► read it up to the signature
//!        ─► transaction [ events, then a note in the ledger for each ] ─► commit ─► next transaction …
//! ```
//!
//! Kafka's transactions alone make it exact. All replays into a topic have one transactional id. A new replay shuts
//! out the one before it and has its open transaction aborted. So everything that the earlier one committed stands in
//! the ledger before the signature. A row that the ledger names is left out.
//!
//! An event and its note are committed together, and members read only committed records. A transaction that is cut
//! short anywhere counts nothing. Must never send an event outside of a transaction, nor without its note.

use super::candidates::Rows;
use super::ledger::{SIGNATURE, Until};
use super::plan::{Candidate, Target, judge};
use super::transactions::{ANSWER_TIMEOUT, Transactions};
use super::{Filter, Ledger, Origin, RejectsError, Replayed};
use crate::clickhouse::client::Client;
use crate::config::Config;
use crate::kafka::producer::{Outgoing, Producer};
use crate::kafka::settings::{self, ConfigResource};
use crate::kafka::{blocking, observer};
use crate::platform::clock::unix_ms;
use crate::platform::failpoint;
use crate::platform::output::ProgressFn;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tallyhouse_core::decode::mapped::Decoder;
use tokio_util::sync::CancellationToken;

/// Header with the origin of a replayed record's row, as `source:offset`.
pub const ORIGIN: &str = "tallyhouse-origin";
/// Header with the first record's timestamp in milliseconds, where the new record has another.
pub const ORIGIN_TIMESTAMP: &str = "tallyhouse-origin-timestamp";

/// Maximum number of records of one transaction. While it is open, members read nothing after it.
const TRANSACTION_RECORDS: usize = 500;
const TRANSACTION_BYTES: usize = 8 << 20;

/// Maximum number of refused rows that the output names.
const NAMED: usize = 5;
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

const CHECK_BROKERS: &str = "Check that the brokers run and kafka.brokers is right";
const ALLOW_DESCRIBE: &str = "Check that the brokers run, and allow this user DescribeConfigs on the event topic and on the \
                              topic of kafka.topics.replays";
const ALLOW_CREATE: &str = "Allow this user to create the topic of kafka.topics.replays, or make it: one partition, \
                            cleanup.policy=compact";

/// The options of a replay.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The rows to replay, with their own bytes. It is not looked at where `from` is given.
    pub filter: Filter,
    /// File with lines of an export to take the bytes from; `-` is standard input.
    pub from: Option<PathBuf>,
    /// True if the replay only prints its plan, and changes nothing.
    pub dry_run: bool,
}

/// The result of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// True if nothing was done; `replayed` is then the number that would be replayed.
    pub dry_run: bool,
    /// True if a signal ended it early.
    pub stopped: bool,
    /// Number of rows that are in the event topic now.
    pub replayed: u64,
    /// Number of these rows with other bytes than the row's.
    pub fixed: u64,
    /// Number of rows that had been replayed before.
    pub already_replayed: u64,
    /// Number of rows that were left out, as this version would reject them again.
    pub refused: u64,
    /// Number of rows of other topics, which were left out.
    pub of_other_topics: u64,
    /// Number of lines whose row does not exist.
    pub without_row: u64,
    /// Number of committed transactions.
    pub transactions: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { replayed, fixed, already_replayed, refused, of_other_topics, without_row, transactions, .. } =
            self;
        let would = if self.dry_run { "would be replayed" } else { "replayed" };
        writeln!(f, "{would}: {replayed} rows ({fixed} of them with mended bytes), in {transactions} transactions")?;
        let left_out = [
            (already_replayed, "rows were replayed before, and are not replayed again"),
            (refused, "rows are still no events: left out"),
            (of_other_topics, "rows are of other topics: left out"),
            (without_row, "lines have no row: left out"),
        ];
        left_out
            .into_iter()
            .filter(|(rows, _)| **rows > 0)
            .try_for_each(|(rows, what)| writeln!(f, "{rows} {what}"))?;
        match self.stopped {
            true => writeln!(f, "stopped before it was through; run it again to go on"),
            false => Ok(()),
        }
    }
}

/// Replays the rows. `say` receives each step, for people.
///
/// # Errors
/// Any of [`RejectsError`]. Transactions that were committed before it count, and the ledger has them.
pub async fn run(
    config: &Config,
    client: &Client,
    options: Options,
    stop: &CancellationToken,
    say: ProgressFn<'_>,
) -> Result<Summary, RejectsError> {
    let target = target(config).await?;
    target.remarks().iter().for_each(|remark| say(remark));
    let (transactions, ledger) = match options.dry_run {
        true => (None, read_ledger(config, Until::End).await?),
        false => {
            make_ledger(config, &target, say).await?;
            let (transactions, ledger) = begin(config).await?;
            (Some(transactions), ledger)
        }
    };
    say(&format!("{} rows were replayed into {} before", ledger.len(), target.topic));
    let mut replay = Replay {
        ledger_topic: config.kafka.topics.replays(),
        decoder: config.decoder(),
        target,
        transactions,
        ledger,
        pending: Vec::new(),
        pending_bytes: 0,
        pending_origins: HashSet::new(),
        summary: Summary { dry_run: options.dry_run, ..Summary::default() },
        last_progress: Instant::now(),
        say,
    };
    let mut rows = Rows::open(client, options.filter, options.from)?;
    while !stop.is_cancelled() {
        let (candidates, without_row) = rows.next(client).await?;
        if candidates.is_empty() && without_row.is_empty() {
            break;
        }
        replay.without_row(&without_row);
        for candidate in candidates {
            replay.take(candidate).await?;
            if stop.is_cancelled() {
                break;
            }
        }
    }
    replay.summary.stopped = stop.is_cancelled();
    replay.commit().await?;
    Ok(replay.summary)
}

/// Returns the ledger as it is now, for looking only. It is empty where there is none.
///
/// # Errors
/// Any of [`RejectsError`].
pub async fn look(config: &Config) -> Result<Ledger, RejectsError> {
    read_ledger(config, Until::End).await
}

fn kafka(doing: &'static str, error: KafkaError, remedy: &'static str) -> RejectsError {
    RejectsError::Kafka { doing, error, remedy }
}

async fn read_ledger(config: &Config, until: Until) -> Result<Ledger, RejectsError> {
    let config = config.clone();
    let read = tokio::task::spawn_blocking(move || Ledger::read(&config, &until, ANSWER_TIMEOUT)).await;
    read.unwrap_or_else(|_| Err(kafka("the ledger of replays cannot be read", KafkaError::Canceled, CHECK_BROKERS)))
}

/// Returns a topic's settings; `None` where it does not exist.
async fn settings_of(config: &Config, topic: &str) -> KafkaResult<Option<HashMap<String, String>>> {
    let (config, topic) = (config.clone(), topic.to_owned());
    blocking(move || {
        match settings::read(&observer::standalone_consumer(&config)?, ConfigResource::Topic(&topic), ANSWER_TIMEOUT) {
            Ok(settings) => Ok(Some(settings)),
            Err(KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition)) => Ok(None),
            Err(error) => Err(error),
        }
    })
    .await
}

async fn target(config: &Config) -> Result<Target, RejectsError> {
    let topic = config.kafka.topics.events.clone();
    let described = settings_of(config, &topic).await;
    let described = described.map_err(|error| kafka("the event topic cannot be described", error, ALLOW_DESCRIBE))?;
    let described = described.ok_or_else(|| RejectsError::NoTopic(topic.clone()))?;
    let (config, asked) = (config.clone(), topic.clone());
    let partitions = blocking(move || {
        let metadata = observer::standalone_consumer(&config)?.fetch_metadata(Some(&asked), ANSWER_TIMEOUT)?;
        let partitions = metadata.topics().first().map(|topic| topic.partitions()).unwrap_or_default();
        Ok((partitions.len(), partitions.first().map_or(1, |partition| partition.replicas().len())))
    });
    let (partitions, replicas) =
        partitions.await.map_err(|error| kafka("the event topic cannot be asked for", error, CHECK_BROKERS))?;
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    Ok(Target::new(&topic, number(partitions), number(replicas), &described))
}

/// Makes the ledger's topic where it is missing, and refuses a topic that could lose records.
async fn make_ledger(config: &Config, target: &Target, say: ProgressFn<'_>) -> Result<(), RejectsError> {
    let topic = config.kafka.topics.replays();
    let describe = async || {
        let described = settings_of(config, &topic).await;
        described.map_err(|error| kafka("the ledger's topic cannot be described", error, ALLOW_DESCRIBE))
    };
    let mut described = describe().await?;
    if described.is_none() {
        let made = settings::create_compacted(config, &topic, target.replicas, ANSWER_TIMEOUT).await;
        made.map_err(|error| kafka("the ledger's topic cannot be made", error, ALLOW_CREATE))?;
        say(&format!("made the topic {topic}, in which replays are noted; do not delete it"));
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        while described.is_none() && Instant::now() < deadline {
            tokio::time::sleep(POLL_INTERVAL).await;
            described = describe().await?;
        }
    }
    let policy = described.unwrap_or_default().remove("cleanup.policy").unwrap_or_default();
    if policy == "compact" {
        return Ok(());
    }
    let what = format!("has cleanup.policy={policy}: what it forgets could be replayed twice");
    let remedy = "Set its cleanup.policy to compact, if nothing was removed from it yet";
    Err(RejectsError::Ledger { topic, what, remedy })
}

/// Shuts out every earlier replay, signs the ledger and reads it.
async fn begin(config: &Config) -> Result<(Transactions, Ledger), RejectsError> {
    let transactions = Transactions::start(config).await?;
    let signature = format!("{:032x}", rand::random::<u128>());
    let topic = config.kafka.topics.replays();
    transactions.begin().await?;
    let mut sending = transactions.producer().sending();
    let (key, payload) = (SIGNATURE.as_bytes(), Some(signature.as_bytes()));
    let signed = Outgoing { topic: &topic, partition: Some(0), key, payload, timestamp_ms: None, headers: &[] };
    let sent = async {
        sending.send(&signed).await?;
        sending.finish().await.into_iter().collect::<KafkaResult<Vec<_>>>()
    };
    match sent.await {
        Ok(_) => transactions.commit().await?,
        Err(error) => return Err(transactions.abort(error).await),
    }
    let ledger = read_ledger(config, Until::Signature(signature)).await?;
    Ok((transactions, ledger))
}

struct Replay<'s> {
    ledger_topic: String,
    decoder: Decoder,
    target: Target,
    /// The transactions; `None` in a dry run.
    transactions: Option<Transactions>,
    ledger: Ledger,
    /// The rows of the next transaction, each with its new timestamp.
    pending: Vec<(Candidate, i64)>,
    pending_bytes: usize,
    pending_origins: HashSet<Origin>,
    summary: Summary,
    last_progress: Instant,
    say: ProgressFn<'s>,
}

impl Replay<'_> {
    fn without_row(&mut self, origins: &[Origin]) {
        for origin in origins {
            if self.summary.without_row < NAMED as u64 {
                (self.say)(&format!("{origin} has no row in rejected_events: left out"));
            }
            self.summary.without_row += 1;
        }
    }

    async fn take(&mut self, candidate: Candidate) -> Result<(), RejectsError> {
        let origin = &candidate.row.origin;
        if origin.topic_and_partition().is_none_or(|(topic, _)| topic != self.target.topic) {
            self.summary.of_other_topics += 1;
            return Ok(());
        }
        if self.ledger.get(origin).is_some() || self.pending_origins.contains(origin) {
            self.summary.already_replayed += 1;
            return Ok(());
        }
        let timestamp_ms = self.target.timestamp_ms(&candidate.row, unix_ms());
        if let Err(rejection) = judge(&candidate, timestamp_ms, &self.decoder) {
            if self.summary.refused < NAMED as u64 {
                let error = crate::commands::table::printable(&rejection.error);
                (self.say)(&format!("{origin} is still no event: {}: {error}: left out", rejection.reason.code()));
            }
            self.summary.refused += 1;
            return Ok(());
        }
        self.pending_bytes += candidate.bytes();
        self.pending_origins.insert(origin.clone());
        self.pending.push((candidate, timestamp_ms));
        if self.pending.len() >= TRANSACTION_RECORDS || self.pending_bytes >= TRANSACTION_BYTES {
            self.commit().await?;
        }
        Ok(())
    }

    /// Commits one transaction with all pending rows.
    async fn commit(&mut self) -> Result<(), RejectsError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        self.pending_origins.clear();
        let replayed = pending.len() as u64;
        let fixed = pending.iter().filter(|(candidate, _)| candidate.is_fixed()).count() as u64;
        if let Some(transactions) = self.transactions.clone().filter(|_| replayed > 0) {
            transactions.begin().await?;
            match self.send(transactions.producer(), &pending).await {
                Ok(()) => transactions.commit().await?,
                Err(error) => return Err(transactions.abort(error).await),
            }
            failpoint::hit("replay_committed");
            self.summary.transactions += 1;
        }
        self.summary.replayed += replayed;
        self.summary.fixed += fixed;
        if self.last_progress.elapsed() > PROGRESS_INTERVAL {
            self.last_progress = Instant::now();
            (self.say)(&format!("{} replayed so far", self.summary.replayed));
        }
        Ok(())
    }

    /// Sends the events, then their notes, which name the places of the events.
    async fn send(&mut self, producer: &Producer, pending: &[(Candidate, i64)]) -> KafkaResult<()> {
        let mut sending = producer.sending();
        for (Candidate { row, payload }, timestamp_ms) in pending {
            let (origin, own_ms) = (row.origin.to_string(), row.timestamp_ms.unwrap_or(0).to_string());
            let headers = [(ORIGIN, origin.as_bytes()), (ORIGIN_TIMESTAMP, own_ms.as_bytes())];
            let restamped = row.timestamp_ms.is_some_and(|own_ms| own_ms != *timestamp_ms);
            let event = Outgoing {
                topic: &self.target.topic,
                partition: self.target.partition(&row.origin),
                key: &row.key,
                payload: payload.as_deref(),
                timestamp_ms: Some(*timestamp_ms),
                headers: &headers[..if restamped { 2 } else { 1 }],
            };
            sending.send(&event).await?;
        }
        let places = sending.finish().await.into_iter().collect::<KafkaResult<Vec<_>>>()?;
        failpoint::hit("replay_produced");
        let mut sending = producer.sending();
        for ((candidate, _), place) in pending.iter().zip(places) {
            let (origin, at_ms, fixed) = (&candidate.row.origin, unix_ms(), candidate.is_fixed());
            let offset = place.offset.max(0).unsigned_abs();
            let replayed = Replayed { partition: place.partition, offset, at_ms, fixed };
            let note = serde_json::to_vec(&replayed).map_err(|_| KafkaError::Canceled)?;
            let key = origin.to_string();
            let note = Outgoing {
                topic: &self.ledger_topic,
                partition: Some(0),
                key: key.as_bytes(),
                payload: Some(&note),
                timestamp_ms: None,
                headers: &[],
            };
            sending.send(&note).await?;
            // The ledger in memory knows it before the commit. If the commit fails, this replay ends.
            self.ledger.note(origin, replayed);
        }
        sending.finish().await.into_iter().collect::<KafkaResult<Vec<_>>>()?;
        failpoint::hit("replay_noted");
        Ok(())
    }
}
