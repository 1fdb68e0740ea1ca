//! The producer, with a ledger of what Kafka acknowledged: (partition, offset) and what must become of it.
//!
//! A record whose outcome is unknown is in no ledger: it may be in the log or not.

use super::AnyError;
use crate::producer::{EVENT_TYPES, Events};
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);
const QUEUE_FULL_WAIT: Duration = Duration::from_millis(10);

/// What must become of a record: a place in [`EVENT_TYPES`], or none for a reject.
pub type Fate = Option<u8>;

/// What was acknowledged and not verified yet.
#[derive(Debug, Default)]
pub struct Ledger {
    /// By partition and offset.
    pub acknowledged: BTreeMap<(i32, i64), Fate>,
    /// Records acknowledged without an offset (the broker had them already when the producer tried again).
    pub unplaced: u64,
    /// Records of which it is not known whether they are in the log.
    pub unknown: u64,
}

#[derive(Clone, Default)]
struct Deliveries(Arc<Mutex<Ledger>>);

impl Deliveries {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<Fate>;

    fn delivery(&self, result: &DeliveryResult<'_>, fate: Box<Fate>) {
        let mut ledger = self.ledger();
        match result {
            Ok(message) if message.offset() >= 0 => {
                ledger.acknowledged.insert((message.partition(), message.offset()), *fate);
            }
            Ok(_) => ledger.unplaced += 1,
            Err(_) => ledger.unknown += 1,
        }
    }
}

/// Produces events to a topic's partitions in turn.
pub struct Feed {
    topic: String,
    producer: ThreadedProducer<Deliveries>,
    events: Events,
    deliveries: Deliveries,
    sent: u64,
}

impl Feed {
    /// A producer that waits for all replicas, idempotent.
    pub fn new(bootstrap: &str, topic: &str, seed: u64) -> Result<Feed, AnyError> {
        let deliveries = Deliveries::default();
        let producer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("topic.metadata.refresh.interval.ms", "2000")
            .create_with_context(deliveries.clone())?;
        // Some campaigns, so that counters have company, and a share of rejects that every batch has some.
        let events = Events { seed, campaigns: 50, days: 3, broken_percent: 4, ..Events::default() };
        Ok(Feed { topic: topic.to_owned(), producer, events, deliveries, sent: 0 })
    }

    /// Sends so many records; does not wait for the acknowledgements.
    pub fn send(&mut self, count: u64, partitions: i32) -> Result<(), AnyError> {
        for _ in 0..count {
            let payload = self.events.payload(self.sent);
            let place = payload.event_type.and_then(|name| EVENT_TYPES.iter().position(|known| *known == name));
            let fate = place.map(|place| place as u8);
            let partition = i32::try_from(self.sent % u64::from(partitions.unsigned_abs().max(1)))?;
            self.sent += 1;
            let mut record: BaseRecord<'_, [u8], [u8], Box<Fate>> =
                BaseRecord::with_opaque_to(&self.topic, Box::new(fate)).partition(partition).payload(&payload.bytes);
            while let Err((error, back)) = self.producer.send(record) {
                record = back;
                match error {
                    KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => sleep(QUEUE_FULL_WAIT),
                    // A partition that was added just now: the producer has not heard of it yet.
                    KafkaError::MessageProduction(RDKafkaErrorCode::UnknownPartition) => record.partition = Some(0),
                    error => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Waits until the outcome of everything is known; gives the number of records sent so far.
    pub fn settle(&self) -> Result<u64, AnyError> {
        self.producer.flush(FLUSH_TIMEOUT)?;
        Ok(self.sent)
    }

    /// What is acknowledged.
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.deliveries.ledger()
    }
}
