//! What the broker has fixed for a consumer group (KIP-848), where the client no longer decides.

use super::consumer::Consumer;
use super::settings::{self, Of};
use rdkafka::error::KafkaResult;
use std::time::Duration;

const SESSION_TIMEOUT: &str = "consumer.session.timeout.ms";

/// The group's session timeout in milliseconds, as the broker has it; `None` where it tells none (before Kafka 4.0). Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; the right to describe the group's configuration may be missing.
pub fn session_timeout_ms(consumer: &Consumer, group: &str, within: Duration) -> KafkaResult<Option<u64>> {
    let settings = settings::read(consumer, Of::Group(group), within)?;
    Ok(settings.get(SESSION_TIMEOUT).and_then(|text| text.parse().ok()))
}
