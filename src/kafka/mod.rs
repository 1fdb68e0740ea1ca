//! All code that talks to Kafka: the consumer with its rebalances, committed offsets with their metadata, the topic's id, and
//! producers (dead letters, replays).
//!
//! Must never decide where to start or what to commit: the core's protocol does that. Must never commit by itself.

mod certificate;
pub mod consumer;
pub mod dead_letters;
pub mod fetch_queue;
pub mod group;
pub mod held_back;
pub mod members;
mod native;
pub mod observer;
pub mod offsets;
pub mod producer;
pub mod refusal;
pub mod settings;
pub mod topic;

use crate::config::{self, SYSTEM_AUTHORITIES};
use consumer::Consumer;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use std::io::ErrorKind;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

/// Longest wait for one answer from Kafka.
pub const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Interval at which this client checks if a broker has refused it.
const METADATA_STEP: Duration = Duration::from_millis(500);

/// Greatest number of brokers' addresses that are tried, and the longest wait for each.
const ADDRESSES_MAX: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Time that librdkafka gets each time to report.
const REPORT_TIME: Duration = Duration::from_millis(20);

/// Time that the other brokers have to answer after one has refused this client.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// Returns the reason why the client cannot be created, with the keys to check in a last sentence. It omits the value, which may
/// be a secret.
pub fn masked(error: &KafkaError) -> String {
    let what = match error {
        KafkaError::ClientConfig(_, description, key, _) => format!("{key}: {description}"),
        other => other.to_string(),
    };
    match config::keys_named_in(&what).as_slice() {
        [] => format!("{what}. Check kafka.* and kafka.properties"),
        keys => format!("{what}. Check {}", keys.join(" and ")),
    }
}

/// Returns the topic's metadata. Gives up early if brokers refuse this client; the consumer's context then has the refusal.
/// Blocks, and polls the consumer, which must not have been given partitions yet.
///
/// # Errors
/// No broker answers.
pub fn metadata(consumer: &Consumer, topic: &str, within: Duration) -> KafkaResult<Metadata> {
    let mut deadline = Instant::now() + within;
    let mut refused = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match consumer.fetch_metadata(Some(topic), left.min(METADATA_STEP)) {
            Err(error) if left <= METADATA_STEP => {
                serve(consumer);
                return Err(error);
            }
            Err(_) => {
                serve(consumer);
                if consumer.context().is_refused() && !refused {
                    refused = true;
                    deadline = deadline.min(Instant::now() + AFTER_REFUSAL);
                }
            }
            answer => return answer,
        }
    }
}

/// Makes a blocking call to Kafka on a thread for such calls.
///
/// # Errors
/// Returns the call's error. [`KafkaError::Canceled`] means that the call did not end in order.
pub async fn blocking<T: Send + 'static>(call: impl FnOnce() -> KafkaResult<T> + Send + 'static) -> KafkaResult<T> {
    tokio::task::spawn_blocking(call).await.unwrap_or(Err(KafkaError::Canceled))
}

/// Returns the first address that brokers report and that accepts no connection, with the reason. Returns `None` also if no
/// broker reports an address. Blocks for a few seconds at most.
pub fn unreachable(consumer: &Consumer, topic: &str) -> Option<(String, String)> {
    let metadata = consumer.fetch_metadata(Some(topic), METADATA_STEP).ok()?;
    metadata.brokers().iter().take(ADDRESSES_MAX).find_map(|broker| {
        let address = format!("{}:{}", broker.host(), broker.port());
        connect(&address).err().map(|error| (address, error.to_string()))
    })
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let mut failed = Err(ErrorKind::NotFound.into());
    for at in address.to_socket_addrs()? {
        failed = TcpStream::connect_timeout(&at, CONNECT_TIMEOUT);
        if failed.is_ok() {
            break;
        }
    }
    failed
}

/// Lets librdkafka deliver its reports.
fn serve(consumer: &Consumer) {
    // A time bounds the loop: a poll that returns nothing may have served something, and brokers that are away continue to cause
    // reports.
    let deadline = Instant::now() + REPORT_TIME;
    while Instant::now() < deadline {
        drop(consumer.poll(REPORT_TIME));
    }
}

/// Environment variables from which OpenSSL reads authorities in place of the system's.
const AUTHORITY_VARIABLES: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// Returns librdkafka's configuration with these properties. It logs everything, since only the log contains some causes.
fn client_config(properties: Vec<(String, String)>) -> ClientConfig {
    let named = AUTHORITY_VARIABLES.iter().any(|name| std::env::var_os(name).is_some_and(|path| !path.is_empty()));
    let mut client = ClientConfig::new();
    client.set_log_level(RDKafkaLogLevel::Info);
    for (property, value) in properties.into_iter().filter(|(_, value)| !named || value != SYSTEM_AUTHORITIES) {
        client.set(property, value);
    }
    client
}

/// Writes a line of librdkafka's log into Tallyhouse's log.
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

/// Returns the error of a property that librdkafka refuses, without the property's value, which may be a secret.
fn without_value(error: KafkaError) -> KafkaError {
    match error {
        KafkaError::ClientConfig(code, description, key, _) => {
            KafkaError::ClientConfig(code, description, key, "***".to_owned())
        }
        other => other,
    }
}

/// Repeats a request for at most `within`, while a broker is about to take over its role. Blocks.
///
/// # Errors
/// Returns any other error of `ask`, or its last one when the time is up.
pub fn retry_until<T>(within: Duration, ask: impl Fn() -> KafkaResult<T>) -> KafkaResult<T> {
    let deadline = Instant::now() + within;
    loop {
        match ask() {
            Err(error) if is_changing_hands(&error) && Instant::now() < deadline => std::thread::sleep(RETRY_INTERVAL),
            answer => return answer,
        }
    }
}

/// Returns the text of an error of a member's request, with the request's name in Kafka's protocol. rust-rdkafka calls most of
/// them "meta data fetch".
pub fn describe_error(error: &KafkaError) -> String {
    match error {
        KafkaError::OffsetFetch(code) => format!("OffsetFetch (the committed offset): {code}"),
        KafkaError::ConsumerCommit(code) => format!("OffsetCommit: {code}"),
        KafkaError::AdminOp(code) => format!("DescribeTopics (the topic's id): {code}"),
        KafkaError::MetadataFetch(code) => format!("ListOffsets (the log's bounds): {code}"),
        other => other.to_string(),
    }
}

/// Returns the code that a broker or librdkafka answered. (rust-rdkafka's own function omits the answers to admin requests.)
pub fn code(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::AdminOp(code) => Some(*code),
        other => other.rdkafka_error_code(),
    }
}

/// True if a broker was just started or lost. In a fresh cluster the first question for a group creates its coordinator.
fn is_changing_hands(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use rdkafka::mocking::MockCluster;

    /// The text names the address that cannot be reached, not the one that answered.
    #[test]
    fn an_advertised_address_that_takes_no_connection_is_found() {
        let cluster = MockCluster::new(2).unwrap();
        cluster.create_topic("t", 1, 1).unwrap();
        let brokers = format!("kafka.brokers={}", cluster.bootstrap_servers());
        let flags = vec![brokers.parse().unwrap()];
        let config = config::load(&Sources { flags, ..Sources::default() }).unwrap().config;
        let consumer = observer::standalone_consumer(&config).unwrap();
        let started = Instant::now();
        while consumer.fetch_metadata(Some("t"), METADATA_STEP).is_err() {
            assert!(started.elapsed() < Duration::from_secs(30));
        }
        assert_eq!(unreachable(&consumer, "t"), None);
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        assert!(connect(&address).is_ok());
        drop(taken);
        assert_eq!(connect(&address).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        assert!(connect("no-such-host.invalid:9092").is_err());
    }
}
