//! The dead-letter topic: each rejected record once more, with headers that say why it was rejected.
//!
//! A batch's letters are delivered before its rows of `rejected_events` are inserted. So whatever shows that rows are applied (the
//! marks, a committed end) shows that their letters were delivered, and a crash in between delivers them again: at least once,
//! each time with the same headers. Must never be the reason for two rows, nor for none.

use super::producer::{self, Outgoing, Producer};
use crate::config::Config;
use crate::core::batch::Batch;
use crate::core::reject::Reason;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaResult;
use std::sync::{Mutex, PoisonError};

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
    /// Made anew after a failure: some errors end a producer for good.
    producer: Mutex<Option<Producer>>,
}

impl DeadLetters {
    /// `None` where no topic is configured. Connects in the background.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn new(config: &Config) -> KafkaResult<Option<DeadLetters>> {
        let Some(topic) = config.kafka.topics.dead_letter.clone() else { return Ok(None) };
        let client = producer::client_config(config);
        let producer = Mutex::new(Some(Producer::new(&client)?));
        Ok(Some(DeadLetters { topic, client, producer }))
    }

    /// The topic's name.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Delivers every rejected record of a batch, and gives their number.
    ///
    /// # Errors
    /// One was not acknowledged. Some may be in the topic, and will be there again after the next attempt.
    pub async fn deliver(&self, source: &str, batch: &Batch) -> KafkaResult<u64> {
        let producer = self.producer()?;
        let delivered = self.send(&producer, source, batch).await;
        if delivered.is_err() {
            *self.producer.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        delivered
    }

    fn producer(&self) -> KafkaResult<Producer> {
        let mut producer = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        match &*producer {
            Some(producer) => Ok(producer.clone()),
            None => Ok(producer.insert(Producer::new(&self.client)?).clone()),
        }
    }

    async fn send(&self, producer: &Producer, source: &str, batch: &Batch) -> KafkaResult<u64> {
        let mut sending = producer.sending();
        for record in batch.rejected() {
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
            sending.send(&outgoing).await?;
        }
        Ok(sending.finish().await?.len() as u64)
    }
}
