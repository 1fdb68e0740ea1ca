//! Everything that talks to Kafka: the consumer with its rebalances, committed offsets with their metadata, the topic's id.
//!
//! Must never decide where to start or what to commit: that is the core's protocol. Must never commit by itself.

pub mod consumer;
pub mod group;
mod native;
pub mod observer;
pub mod offsets;
pub mod topic;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// Whether an error will not go away by waiting: wrong credentials, or a right that is missing.
pub fn is_permanent(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::GroupAuthorizationFailed
                | RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::ClusterAuthorizationFailed
        )
    )
}
