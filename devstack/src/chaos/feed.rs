//! The producer, which notes in the ledger the records that Kafka has acknowledged.

use super::AnyError;
use super::ledger::{EVENT, Fate, Ledger, REJECT};
use crate::producer::{EVENT_TYPES, Events, Payload};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(10);
/// Number of distinct payloads of a backlog. Making a new one for each record would take longer than storing it.
const POOL: u64 = 4_096;
/// Size of a backlog's record, in bytes. The records are small, so a batch of 100,000 takes a third of what a member's
/// windows may hold.
const BACKLOG_BYTES: usize = 256;
/// Number of records for one partition in a row.
const RUN: u64 = 500;

/// The ledger, which several producers and the checks share.
#[derive(Clone, Default)]
pub struct SharedLedger(Arc<Mutex<Ledger>>);

impl SharedLedger {
    /// Locks the ledger, even after a thread panicked with the lock.
    pub fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for SharedLedger {}

impl ProducerContext for SharedLedger {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, fate: usize) {
        let mut ledger = self.lock();
        match result {
            Ok(message) if message.offset() >= 0 => ledger.note(message.partition(), message.offset(), fate as Fate),
            Ok(_) => ledger.unplaced += 1,
            Err(_) => ledger.unknown += 1,
        }
    }
}

/// Returns the fate of a record with this payload.
pub fn fate_of(payload: &Payload) -> Fate {
    let place = payload.event_type.and_then(|name| EVENT_TYPES.iter().position(|known| *known == name));
    place.map_or(REJECT, |place| EVENT + place as Fate)
}

/// Returns events of a few campaigns, so that counters have several rows. Enough of them are rejects for every batch
/// to have some.
pub fn events(seed: u64) -> Events {
    Events { seed, campaigns: 50, days: 3, broken_percent: 4, ..Events::default() }
}

fn backlog_payload(seed: u64, n: u64) -> Payload {
    let small = Events { size_bytes: Some(BACKLOG_BYTES), ..events(seed) };
    let whole = Events { broken_percent: 0, ..small.clone() }.payload(n);
    let payload = small.payload(n);
    // One of the ways to break an event changes a field that these events do not have.
    if payload.bytes == whole.bytes { whole } else { payload }
}

/// Produces events to a topic's partitions in turn.
pub struct Feed {
    topic: String,
    producer: ThreadedProducer<SharedLedger>,
    events: Events,
    /// Payloads of a backlog with their fates.
    pool: Vec<(Vec<u8>, Fate)>,
    /// Number of records sent so far.
    pub sent: u64,
}

impl Feed {
    /// Makes a producer that waits for all replicas, idempotent. It compresses its records if a backlog is to come.
    pub fn new(
        bootstrap: &str,
        topic: &str,
        seed: u64,
        is_large: bool,
        ledger: &SharedLedger,
    ) -> Result<Feed, AnyError> {
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("compression.type", if is_large { "lz4" } else { "none" })
            .set("queue.buffering.max.messages", "500000")
            .set("topic.metadata.refresh.interval.ms", "2000")
            .create_with_context(ledger.clone())?;
        let numbers = 0..if is_large { POOL } else { 0 };
        let pool = numbers.map(|n| backlog_payload(seed, n)).map(|payload| (fate_of(&payload), payload.bytes));
        let pool = pool.map(|(fate, bytes)| (bytes, fate)).collect();
        Ok(Feed { topic: topic.to_owned(), producer, events: events(seed), pool, sent: 0 })
    }

    /// Sends this number of records; does not wait for the acknowledgements.
    pub fn send(&mut self, count: u64, partitions: i32) -> Result<(), AnyError> {
        for _ in 0..count {
            let payload = self.events.payload(self.sent);
            let partition = i32::try_from(self.sent % u64::from(partitions.unsigned_abs().max(1)))?;
            self.send_one(partition, &payload.bytes, fate_of(&payload))?;
        }
        Ok(())
    }

    /// Sends the given number of records to each of these partitions, a run to each in turn. Waits for the
    /// acknowledgements, but no longer than until the deadline. Records that are not sent by then are left out.
    pub fn send_backlog(&mut self, shares: &[(i32, u64)], deadline: Instant) -> Result<(), AnyError> {
        let pool = std::mem::take(&mut self.pool);
        let most = shares.iter().map(|(_, count)| *count).max().unwrap_or(0);
        'all: for run in 0..most.div_ceil(RUN) {
            for &(partition, count) in shares {
                if Instant::now() > deadline {
                    break 'all;
                }
                for _ in run * RUN..((run + 1) * RUN).min(count) {
                    let (payload, fate) = &pool[(self.sent % pool.len() as u64) as usize];
                    self.send_one(partition, payload, *fate)?;
                }
            }
        }
        self.pool = pool;
        // Records that are not acknowledged by then are acknowledged later.
        let _ = self.producer.flush(deadline.saturating_duration_since(Instant::now()));
        Ok(())
    }

    /// Sends a record to a partition.
    pub fn send_one(&mut self, partition: i32, payload: &[u8], fate: Fate) -> Result<(), AnyError> {
        self.sent += 1;
        let record = BaseRecord::with_opaque_to(&self.topic, usize::from(fate));
        let mut record: BaseRecord<'_, [u8], [u8], usize> = record.partition(partition).payload(payload);
        while let Err((error, back)) = self.producer.send(record) {
            record = back;
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => sleep(QUEUE_FULL_WAIT),
                // The partition was added just now, and the producer does not know it yet.
                KafkaError::MessageProduction(RDKafkaErrorCode::UnknownPartition) => record.partition = Some(0),
                error => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until the outcome of every record is known. Returns the number of records sent so far.
    pub fn settle(&self) -> Result<u64, AnyError> {
        self.producer.flush(FLUSH_TIMEOUT)?;
        Ok(self.sent)
    }
}
