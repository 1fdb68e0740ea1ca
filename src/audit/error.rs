//! Why an audit or a repair could not be done. Must never stand for something that was found.

use crate::clickhouse::error::ClickHouseError;
use rdkafka::error::KafkaError;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// ClickHouse could not be asked.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// Kafka could not be asked.
    #[error("Kafka at {brokers}: {error}. Check kafka.brokers, kafka.topics.events and that the brokers run")]
    Kafka {
        /// `kafka.brokers`.
        brokers: String,
        /// What librdkafka says.
        error: KafkaError,
    },
    /// librdkafka refuses the configuration.
    #[error("the Kafka client refuses its configuration: {0}")]
    Consumer(KafkaError),
    /// A thread of this process failed.
    #[error("a call to Kafka did not end properly: {0}")]
    Thread(#[from] tokio::task::JoinError),
}
