//! Settings of a consumer group that the broker decides (KIP-848), where the client no longer does.

use super::consumer::Consumer;
use super::settings::{self, ConfigResource};
use rdkafka::error::KafkaResult;
use std::time::Duration;

const SESSION_TIMEOUT: &str = "consumer.session.timeout.ms";
const HEARTBEAT_INTERVAL: &str = "consumer.heartbeat.interval.ms";

/// The group's times as the broker has them, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    /// Time without a heartbeat after which a member counts as dead.
    pub timeout_ms: u64,
    /// Interval at which members send a heartbeat.
    pub heartbeat_ms: u64,
}

/// Returns the group's session as the broker has it; `None` if it reports none (before Kafka 4.0). Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; the right to describe the group's configuration may be missing.
pub fn session(consumer: &Consumer, group: &str, within: Duration) -> KafkaResult<Option<Session>> {
    let settings = settings::read(consumer, ConfigResource::Group(group), within)?;
    let number = |name: &str| settings.get(name).and_then(|text| text.parse().ok());
    let times = number(SESSION_TIMEOUT).zip(number(HEARTBEAT_INTERVAL));
    Ok(times.map(|(timeout_ms, heartbeat_ms)| Session { timeout_ms, heartbeat_ms }))
}
