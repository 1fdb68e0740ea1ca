//! A producer of transactions, committed and aborted in turn, beside the producer without transactions.

use super::AnyError;
use super::feed::{events, fate_of};
use super::lane::Lane;
use super::ledger::{ABSENT, Fate};
use super::plan::Fault;
use crate::dice::Dice;
use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Number of transactions of one fault.
const COUNT: u64 = 12;
/// Maximum number of records in a transaction, for each partition.
const RECORDS_MAX: u64 = 40;
const RECORDS_MAX_LARGE: u64 = 2_000;
/// Longest wait for one answer; a broker may be away.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Time in ms after which Kafka aborts a transaction that its producer has left.
const TRANSACTION_TIMEOUT_MS: &str = "20000";

/// The places of the open transaction's records, and the fate of each if it is committed.
#[derive(Clone, Default)]
struct Placed(Arc<Mutex<Vec<(i32, i64, Fate)>>>);

impl ClientContext for Placed {}

impl ProducerContext for Placed {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, fate: usize) {
        // A failed record is aborted. The log shows its place, if it has one.
        if let Ok(message) = result {
            let mut placed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            placed.push((message.partition(), message.offset(), fate as Fate));
        }
    }
}

struct Transactions<'a> {
    lane: &'a Lane<'a>,
    producer: ThreadedProducer<Placed>,
    placed: Placed,
}

impl<'a> Transactions<'a> {
    /// Starts a producer. Kafka aborts what an earlier producer of this group has left open.
    fn new(lane: &'a Lane<'a>) -> Result<Transactions<'a>, AnyError> {
        let deadline = Instant::now() + TIMEOUT * 3;
        loop {
            let placed = Placed::default();
            let producer: ThreadedProducer<Placed> = ClientConfig::new()
                .set("bootstrap.servers", lane.servers.kafka.bootstrap())
                .set("transactional.id", &lane.name)
                .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
                .create_with_context(placed.clone())?;
            match producer.init_transactions(TIMEOUT) {
                Ok(()) => return Ok(Transactions { lane, producer, placed }),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    /// Runs one transaction. An error leaves its outcome open: the log decides then.
    fn run(&self, records: impl Iterator<Item = (i32, Vec<u8>, Fate)>, is_committed: bool) -> KafkaResult<()> {
        self.placed.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.producer.begin_transaction()?;
        for (partition, payload, fate) in records {
            let record = BaseRecord::with_opaque_to(&self.lane.name, usize::from(fate));
            let record: BaseRecord<'_, [u8], [u8], usize> = record.partition(partition).payload(&payload);
            self.producer.send(record).map_err(|(error, _)| error)?;
        }
        self.producer.flush(TIMEOUT)?;
        match is_committed {
            true => retry_until(|| self.producer.commit_transaction(TIMEOUT))?,
            false => retry_until(|| self.producer.abort_transaction(TIMEOUT))?,
        }
        let placed = std::mem::take(&mut *self.placed.0.lock().unwrap_or_else(PoisonError::into_inner));
        let mut ledger = self.lane.ledger.lock();
        for (partition, offset, fate) in placed {
            ledger.note(partition, offset, if is_committed { fate } else { ABSENT });
        }
        Ok(())
    }
}

fn retry_until(end: impl Fn() -> KafkaResult<()>) -> KafkaResult<()> {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match end() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {}
            ended => return ended,
        }
    }
}

/// Runs transactions in the topic while records flow. Returns true if some were committed and some aborted.
pub fn produce(fault: &Fault, lane: &Lane<'_>) -> Result<bool, AnyError> {
    lane.has_markers.store(true, Ordering::Relaxed);
    let mut dice = Dice::new(fault.lasts_ms ^ fault.at_ms << 32);
    let made = events(dice.any());
    let most = if lane.is_large { RECORDS_MAX_LARGE } else { RECORDS_MAX };
    let partitions = lane.topic.partitions()?;
    let mut transactions = Transactions::new(lane)?;
    let (mut committed, mut aborted) = (0, 0);
    for number in 0..COUNT {
        let is_committed = dice.percent(60);
        let count = dice.within(1..=most) * u64::from(partitions.unsigned_abs());
        let records = (0..count).map(|n| {
            let payload = made.payload(number << 32 | n);
            let fate = fate_of(&payload);
            ((n % u64::from(partitions.unsigned_abs())) as i32, payload.bytes, fate)
        });
        match transactions.run(records, is_committed) {
            Ok(()) if is_committed => committed += 1,
            Ok(()) => aborted += 1,
            // A new producer has the open transaction aborted, if it was not ended.
            Err(_) => transactions = Transactions::new(lane)?,
        }
        sleep(Duration::from_millis(fault.lasts_ms / COUNT));
    }
    Ok(committed > 0 && aborted > 0)
}
