//! The dead-letter topic gets each rejected record once more, with headers that contain the reason of the rejection.
//!
//! A batch's letters are delivered before its rows of `rejected_events` are inserted. So a proof that rows are applied (the
//! marks, a committed end) is also a proof that their letters were delivered. A crash in between delivers them again: at least
//! once, each time with the same headers. A member sends a letter again only while it is not acknowledged. Must never be the
//! reason for two rows, nor for none.

use super::producer::{self, Outgoing, Producer};
use crate::config::Config;
use crate::platform::lock::locked;
use crate::platform::metrics::DEAD_LETTERS;
use metrics::counter;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaResult;
use rdkafka::producer::Producer as _;
use std::sync::Mutex;
use tallyhouse_core::batch::Batch;
use tallyhouse_core::decode::reject::Reason;
use tallyhouse_core::source::OffsetRange;

/// Header with the stable word for the reason of the rejection.
pub const REASON: &str = "tallyhouse-reason";
/// Header with the error text of the decoder.
pub const ERROR: &str = "tallyhouse-error";
/// Header with the place of the record: the `source` of its row.
pub const SOURCE: &str = "tallyhouse-source";
/// Header with the record's offset there, in decimal digits. Source and offset together identify a letter.
pub const OFFSET: &str = "tallyhouse-offset";

/// The dead-letter topic and a producer for it.
pub struct DeadLetters {
    topic: String,
    client: ClientConfig,
    /// Producer, which is created again after an error that librdkafka calls fatal.
    producer: Mutex<Producer>,
}

impl DeadLetters {
    /// Returns `None` if no topic is configured. It connects in the background.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn new(config: &Config) -> KafkaResult<Option<DeadLetters>> {
        let Some(topic) = config.kafka.topics.dead_letter.clone() else { return Ok(None) };
        let client = producer::client_config(config);
        let producer = Mutex::new(Producer::new(&client)?);
        Ok(Some(DeadLetters { topic, client, producer }))
    }

    /// Returns the name of the dead-letter topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Delivers the rejected records of a batch that are not acknowledged yet.
    ///
    /// # Errors
    /// A record was not acknowledged, and may be in the topic nevertheless.
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

    /// Returns the producer, which is created again if its last error was fatal. The old one is dropped on a thread for blocking
    /// calls, because it waits for its threads.
    fn producer(&self) -> KafkaResult<Producer> {
        let mut producer = locked(&self.producer);
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
    /// True for each record that is acknowledged, by its place in the batch.
    acknowledged: Vec<bool>,
}

impl Letters {
    /// Returns the letters of a batch, of which none is acknowledged.
    pub fn new(batch: &Batch) -> Letters {
        Letters { range: batch.range(), acknowledged: vec![false; batch.rejected().count()] }
    }

    /// Returns the range of the batch to which the letters belong.
    pub fn range(&self) -> OffsetRange {
        self.range
    }

    /// True if all letters are acknowledged.
    pub fn are_delivered(&self) -> bool {
        self.acknowledged.iter().all(|&acknowledged| acknowledged)
    }
}
