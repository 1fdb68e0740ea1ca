//! Everything that talks to Kafka: the consumer with its rebalances, committed offsets with their metadata, the topic's id,
//! and producers for dead letters and replays.
//!
//! Must never decide where to start or what to commit: that is the core's protocol. Must never commit by itself.

pub mod consumer;
pub mod dead_letters;
pub mod group;
pub mod members;
mod native;
pub mod observer;
pub mod offsets;
pub mod producer;
pub mod settings;
pub mod topic;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use std::time::{Duration, Instant};

const RETRY_INTERVAL: Duration = Duration::from_millis(200);

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

/// Puts a line of librdkafka's log into ours.
fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg
        | RDKafkaLogLevel::Alert
        | RDKafkaLogLevel::Critical
        | RDKafkaLogLevel::Error
        | RDKafkaLogLevel::Warning => tracing::warn!(facility, "kafka: {message}"),
        _ => tracing::debug!(facility, "kafka: {message}"),
    }
}

/// The error of a property that librdkafka refuses without the property's value, which may be a secret.
fn without_value(error: KafkaError) -> KafkaError {
    match error {
        KafkaError::ClientConfig(code, description, key, _) => {
            KafkaError::ClientConfig(code, description, key, "***".to_owned())
        }
        other => other,
    }
}

/// Asks again, for so long, where a broker is only about to take over its part. Blocks.
///
/// # Errors
/// What `ask` gives otherwise, or when the time is up.
pub fn patiently<T>(within: Duration, ask: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    let deadline = Instant::now() + within;
    loop {
        match ask() {
            Err(error) if is_changing_hands(&error) && Instant::now() < deadline => std::thread::sleep(RETRY_INTERVAL),
            answer => return answer,
        }
    }
}

/// A broker was just started or lost; in a fresh cluster the first question for a group makes its coordinator.
fn is_changing_hands(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}
