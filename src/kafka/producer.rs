//! Producers: of dead letters ([`super::dead_letters`]) and of replays ([`crate::commands::rejects`]).
//!
//! Must never accept an acknowledgement by fewer than all replicas, and never give a record up without an error.

use crate::config::Config;
use crate::platform::lock::locked;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::future_producer::Delivery;
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Longest time between handing a record over and its acknowledgement.
pub const DELIVERY_TIMEOUT: Duration = Duration::from_secs(10);

const QUEUE_FULL_WAIT: Duration = Duration::from_millis(20);

/// A record to be produced.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    /// Topic to which the record goes.
    pub topic: &'a str,
    /// Partition; the key decides if there is none.
    pub partition: Option<i32>,
    /// Key; the record has none if it is empty.
    pub key: &'a [u8],
    /// Value of the record.
    pub payload: Option<&'a [u8]>,
    /// Timestamp in milliseconds since 1970; the moment of sending if there is none.
    pub timestamp_ms: Option<i64>,
    /// Headers as pairs of name and value, in order.
    pub headers: &'a [(&'a str, &'a [u8])],
}

/// A producer, with the newest error that librdkafka reported outside of a call.
#[derive(Clone)]
pub struct Producer {
    /// Producer of the crate, for transactions.
    pub inner: FutureProducer<Context>,
    last_error: LastError,
}

type LastError = Arc<Mutex<Option<KafkaError>>>;

/// Receives the callbacks of the producer from librdkafka.
pub struct Context(LastError);

impl ClientContext for Context {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!(reason, "kafka: {error}");
        *locked(&self.0) = Some(error);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::log(level, facility, message);
    }
}

/// Returns the configuration of a producer.
pub fn client_config(config: &Config) -> ClientConfig {
    let mut client = super::client_config(config.producer_properties());
    client.set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string());
    client
}

impl Producer {
    /// Creates the producer. It connects in the background.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn new(client: &ClientConfig) -> KafkaResult<Producer> {
        let last_error = LastError::default();
        let inner = client.create_with_context(Context(Arc::clone(&last_error))).map_err(super::without_value)?;
        Ok(Producer { inner, last_error })
    }

    /// Hands one record over to librdkafka. Returns `None` while the queue is full.
    ///
    /// # Errors
    /// librdkafka refuses the record.
    fn hand_over(&self, record: &Outgoing<'_>) -> KafkaResult<Option<DeliveryFuture>> {
        let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
        for &(key, value) in record.headers {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        let outgoing: FutureRecord<'_, [u8], [u8]> = FutureRecord {
            topic: record.topic,
            partition: record.partition,
            payload: record.payload,
            key: Some(record.key).filter(|key| !key.is_empty()),
            timestamp: record.timestamp_ms,
            headers: Some(headers),
        };
        match self.inner.send_result(outgoing) {
            Ok(delivery) => Ok(Some(delivery)),
            Err((error, _)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) => Ok(None),
            Err((error, _)) => Err(error),
        }
    }

    /// Waits for one record's acknowledgement.
    ///
    /// # Errors
    /// The record was not acknowledged, and may be in the log nevertheless.
    async fn delivered(&self, delivery: DeliveryFuture) -> KafkaResult<Delivery> {
        match delivery.await {
            Ok(Ok(delivery)) => Ok(delivery),
            // An error in the meantime, such as a refused login, says more than that the time is up.
            Ok(Err((error, _))) => Err(self.take_error().unwrap_or(error)),
            Err(_) => Err(KafkaError::Canceled),
        }
    }

    fn take_error(&self) -> Option<KafkaError> {
        locked(&self.last_error).take()
    }

    /// Begins to send records.
    pub fn sending(&self) -> Sending<'_> {
        // Earlier errors are not about these records.
        self.take_error();
        Sending { producer: self, waiting: VecDeque::new(), done: Vec::new() }
    }
}

/// Records that librdkafka has taken over, with the deliveries known so far.
pub struct Sending<'p> {
    producer: &'p Producer,
    waiting: VecDeque<DeliveryFuture>,
    done: Vec<KafkaResult<Delivery>>,
}

impl Sending<'_> {
    /// Sends one record. It waits while the queue is full.
    ///
    /// # Errors
    /// librdkafka refuses the record, or it is larger than the whole queue.
    pub async fn send(&mut self, record: &Outgoing<'_>) -> KafkaResult<()> {
        loop {
            if let Some(delivery) = self.producer.hand_over(record)? {
                self.waiting.push_back(delivery);
                return Ok(());
            }
            match self.waiting.pop_front() {
                Some(oldest) => self.done.push(self.producer.delivered(oldest).await),
                None if self.producer.inner.in_flight_count() == 0 => {
                    return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge));
                }
                // Other senders fill the queue.
                None => tokio::time::sleep(QUEUE_FULL_WAIT).await,
            }
        }
    }

    /// Waits for every acknowledgement. Returns, in the order of sending, the place of each record or the reason why it was not
    /// acknowledged.
    pub async fn finish(mut self) -> Vec<KafkaResult<Delivery>> {
        for delivery in self.waiting {
            self.done.push(self.producer.delivered(delivery).await);
        }
        self.done
    }
}
