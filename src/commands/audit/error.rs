//! Reasons why an audit or a repair could not be done. Must never stand for something that was found.

use crate::clickhouse::error::ClickHouseError;
use crate::kafka;
use rdkafka::error::KafkaError;

/// The reason why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// ClickHouse could not be asked.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// Kafka could not be asked. The text says why, and what to do.
    #[error("{0}")]
    Kafka(String),
    /// librdkafka refuses the configuration.
    #[error("the Kafka client cannot be made: {}", kafka::masked(.0))]
    Consumer(KafkaError),
    /// A thread of this process failed.
    #[error("a call to Kafka did not end properly: {0}")]
    Thread(#[from] tokio::task::JoinError),
}
