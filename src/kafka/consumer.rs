//! The consumer of the group, with rebalances handed to whoever owns the partitions.
//!
//! A partition is assigned at the log's beginning and paused: nothing is of use before the protocol has said where to start, and
//! that is then a seek. (Without a start, librdkafka would look for a committed offset itself, and with
//! `auto.offset.reset=error` give the partition up where there is none.) It must be the beginning: librdkafka undoes a seek that
//! is made while it still asks for the offset of the assignment (seen in 2.12.1: half a second later it asks again and goes there).
//! From the beginning it comes by the wanted offset once more, and a window takes no offset twice; from the end it would skip what
//! was to be read, unnoticed. Callbacks run inside `poll`, on the reader's thread.

use crate::config::Config;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::{Arc, Mutex, PoisonError};

/// The consumer. Commits and look-ups may be made from any thread; only the reader polls.
pub type Consumer = BaseConsumer<Context>;

/// What is told to the owner of the partitions. All methods run on the reader's thread, inside `poll`.
pub trait Rebalances: Send + Sync {
    /// These partitions are ours now; they are paused.
    fn assigned(&self, partitions: &[i32]);
    /// These partitions are about to be taken; until this returns, commits are still accepted. `lost`: they belong to
    /// somebody else already, and nothing must be committed for them.
    fn revoked(&self, partitions: &[i32], lost: bool);
    /// librdkafka's statistics, every `statistics.interval.ms`.
    fn statistics(&self, statistics: &Statistics);
}

/// Receives librdkafka's callbacks.
pub struct Context {
    owner: Arc<dyn Rebalances>,
    last_error: Mutex<Option<KafkaError>>,
}

impl Context {
    /// The newest error that librdkafka reported outside of a call, such as a refused login; taken once.
    pub fn take_error(&self) -> Option<KafkaError> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.owner.statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // The end of a partition is reported here as well; the reader sees it in `poll`.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        tracing::warn!(reason, "kafka: {error}");
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg
            | RDKafkaLogLevel::Alert
            | RDKafkaLogLevel::Critical
            | RDKafkaLogLevel::Error
            | RDKafkaLogLevel::Warning => tracing::warn!(facility, "kafka: {message}"),
            _ => tracing::debug!(facility, "kafka: {message}"),
        }
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let done = if event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            assign(consumer, list, cooperative).map(|()| self.owner.assigned(&partitions))
        } else {
            self.owner.revoked(&partitions, consumer.assignment_lost());
            if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
        };
        if let Err(error) = done {
            tracing::error!(?partitions, "rebalance failed: {error}");
        }
    }
}

fn assign(consumer: &Consumer, list: &mut TopicPartitionList, cooperative: bool) -> KafkaResult<()> {
    list.set_all_offsets(Offset::Beginning)?;
    if cooperative {
        consumer.incremental_assign(list)?
    } else {
        consumer.assign(list)?
    }
    consumer.pause(list)
}

/// Makes the consumer; connects in the background.
///
/// # Errors
/// librdkafka refuses a property.
pub fn create(config: &Config, owner: Arc<dyn Rebalances>) -> KafkaResult<Consumer> {
    let mut client = ClientConfig::new();
    for (property, value) in config.kafka_properties() {
        client.set(property, value);
    }
    client.create_with_context(Context { owner, last_error: Mutex::new(None) })
}
