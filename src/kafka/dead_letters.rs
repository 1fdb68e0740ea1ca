//! The dead-letter topic: each rejected record once more, with headers that say why it was rejected.
//!
//! A batch's letters are delivered before its rows of `rejected_events` are inserted. So whatever shows that rows are applied (the
//! marks, a committed end) shows that their letters were delivered, and a crash in between delivers them again: at least once,
//! each time with the same headers. A member sends a letter again only while it is not acknowledged. Must never be the reason for two
//! rows, nor for none.

use super::producer::{self, Outgoing, Producer};
use crate::config::Config;
use crate::platform::metrics::DEAD_LETTERS;
use metrics::counter;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaResult;
use rdkafka::producer::Producer as _;
use std::sync::{Mutex, PoisonError};
use tallyhouse_core::batch::Batch;
use tallyhouse_core::decode::reject::Reason;
use tallyhouse_core::source::OffsetRange;

/// Header with the stable word of why the record was rejected.
pub const REASON: &str = "tallyhouse-reason";
/// Header with what the decoder said.
pub const ERROR: &str = "tallyhouse-error";
/// Header with where the record stands: the `source` of its row.
pub const SOURCE: &str = "tallyhouse-source";
/// Header with its offset there, in decimal digits. Source and offset together name a letter.
pub const OFFSET: &str = "tallyhouse-offset";

/// The dead-letter topic and a producer for it.
pub struct DeadLetters {
    topic: String,
    client: ClientConfig,
    /// Made anew after an error that librdkafka calls fatal.
    producer: Mutex<Producer>,
}

impl DeadLetters {
    /// `None` where no topic is configured. Connects in the background.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn new(config: &Config) -> KafkaResult<Option<DeadLetters>> {
        let Some(topic) = config.kafka.topics.dead_letter.clone() else { return Ok(None) };
        let client = producer::client_config(config);
        let producer = Mutex::new(Producer::new(&client)?);
        Ok(Some(DeadLetters { topic, client, producer }))
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Delivers the rejected records of a batch that are not acknowledged yet.
    ///
    /// # Errors
    /// One was not acknowledged, and may be in the topic all the same.
    pub async fn deliver(&self, source: &str, batch: &Batch, letters: &mut Letters) -> KafkaResult<()> {
        let producer = self.producer()?;
        let (mut sending, mut sent, mut refused) = (producer.sending(), Vec::new(), None);
        for (place, record) in batch.rejected().enumerate() {
            if letters.acknowledged[place] {
                continue;
            }
            let offset = record.offset.to_string();
            let outgoing = Outgoing {
                topic: &self.topic,
                partition: None,
                key: &record.key,
                payload: Some(&record.payload[..]).filter(|_| record.reason != Reason::Tombstone),
                timestamp_ms: Some(record.timestamp_ms).filter(|&time| time > 0),
                headers: &[
                    (REASON, record.reason.code().as_bytes()),
                    (ERROR, &record.error[..]),
                    (SOURCE, source.as_bytes()),
                    (OFFSET, offset.as_bytes()),
                ],
            };
            match sending.send(&outgoing).await {
                Ok(()) => sent.push(place),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        for (place, outcome) in sent.into_iter().zip(sending.finish().await) {
            match outcome {
                Ok(_) => {
                    letters.acknowledged[place] = true;
                    counter!(DEAD_LETTERS).increment(1);
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// The producer, made anew if its last error was fatal. The old one is dropped on a thread for blocking calls: it waits for its threads.
    fn producer(&self) -> KafkaResult<Producer> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if producer.inner.client().fatal_error().is_some() {
            let ended = std::mem::replace(&mut *producer, Producer::new(&self.client)?);
            tokio::task::spawn_blocking(move || drop(ended));
        }
        Ok(producer.clone())
    }
}

/// The letters of one batch.
pub struct Letters {
    range: OffsetRange,
    /// By the place of the record in the batch.
    acknowledged: Vec<bool>,
}

impl Letters {
    /// None is acknowledged.
    pub fn new(batch: &Batch) -> Letters {
        Letters { range: batch.range(), acknowledged: vec![false; batch.rejected().count()] }
    }

    /// Whose letters they are.
    pub fn range(&self) -> OffsetRange {
        self.range
    }

    /// All are acknowledged.
    pub fn are_delivered(&self) -> bool {
        self.acknowledged.iter().all(|&acknowledged| acknowledged)
    }
}
