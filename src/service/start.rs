//! The start: it waits for the servers, and checks them before anything is consumed.
//!
//! Must never wait for a fault that waiting does not fix: that ends the service with one message.

use super::{ANSWER_TIMEOUT, RunError};
use crate::clickhouse::client::Client;
use crate::clickhouse::recipients;
use crate::clickhouse::schema::{Schema, SchemaProblem};
use crate::clickhouse::servers::{self, Servers};
use crate::config::{Config, GroupProtocol};
use crate::kafka::consumer::Consumer;
use crate::kafka::group::Session;
use crate::kafka::refusal::{self, Refusal};
use crate::kafka::{self, group, members, topic};
use crate::platform::advice::Advice;
use crate::platform::retry::Backoff;
use crate::service::health::Health;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use std::sync::Arc;
use std::time::Duration;
use tallyhouse_core::recipients::RecipientKey;
use tokio_util::sync::CancellationToken;

/// Kafka's default of `group.consumer.heartbeat.interval.ms`.
const HEARTBEAT_MS: u64 = 5_000;

/// Longest wait for the first answer of the only server. An idle service of ClickHouse Cloud wakes up meanwhile.
const WAKE_MAX: Duration = Duration::from_secs(90);

/// Time without the first answer after which people should know why nothing happens.
const SLOW: Duration = Duration::from_secs(6);

/// ClickHouse, found fit: its servers, the form of the tables, and the key of recipients if they are written.
pub(super) type Fit = (Arc<Servers>, Schema, Option<RecipientKey>);

/// Waits until one of the ClickHouse servers answers, and checks the way to it, this user's settings and the schema. Returns `None`
/// if it is stopped meanwhile.
pub(super) async fn await_schema(
    clients: &[Client],
    config: &Config,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<Fit>, RunError> {
    // With several servers, the next one is asked instead.
    if let [client] = clients {
        tokio::select! {
            () = await_awake(client, health) => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
    let mut backoff = Backoff::new(&config.retry);
    loop {
        let checked = tokio::select! {
            checked = first_fit(clients, config) => checked,
            () = stop.cancelled() => return Ok(None),
        };
        let error = match checked {
            Ok((servers, schema, key)) => {
                tracing::info!(form = %schema.form(), server = servers.in_use().described(), "the schema fits");
                health.clear("clickhouse");
                return Ok(Some((servers, schema, key)));
            }
            Err(SchemaProblem::ClickHouse(error)) if error.is_retryable() => error,
            Err(problem) => return Err(problem.into()),
        };
        tracing::warn!("{error}; trying again");
        health.set("clickhouse", error.to_string());
        tokio::select! {
            () = backoff.wait() => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Waits for the first answer of a server, for longer than a query may take.
async fn await_awake(client: &Client, health: &Health) {
    let mut answer = std::pin::pin!(client.await_answer(WAKE_MAX));
    if tokio::time::timeout(SLOW, &mut answer).await.is_err() {
        let (url, slow_s, wake_s) = (client.url(), SLOW.as_secs(), WAKE_MAX.as_secs());
        let message = format!(
            "the ClickHouse server at {url} has not answered for {slow_s} s. An idle service of ClickHouse Cloud takes up to a minute to \
             wake up, so this member waits for up to {wake_s} s"
        );
        tracing::warn!("{message}");
        health.set("clickhouse", message);
        answer.await;
    }
}

/// Returns the servers, with the first fit one in use. The error of one that may be fit later comes before that of another.
async fn first_fit(clients: &[Client], config: &Config) -> Result<Fit, SchemaProblem> {
    let mut problems = Vec::new();
    for (number, client) in clients.iter().enumerate() {
        match servers::fit(client).await {
            Ok((fit, ..)) if fit.is_shared() && (clients.len() > 1 || config.clickhouse.replicas_confirmed > 1) => {
                let problem = "ClickHouse Cloud stores an insert on several servers before it acknowledges it, so clickhouse.url names one address and \
                               clickhouse.replicas_confirmed is 1";
                return Err(fit.unfit(Advice::new(problem, "Set both so")).into());
            }
            Ok((fit, ..)) if clients.len() > 1 && !fit.is_replica() => {
                let problem = "its tables are not replicated, and clickhouse.url names several servers";
                return Err(fit.unfit(Advice::new(problem, "Name one server there")).into());
            }
            Ok((fit, schema, lost)) => {
                let key = match config.clickhouse.recipients {
                    true => Some(recipients::key(&fit).await?),
                    false => None,
                };
                return Ok((Arc::new(Servers::new(clients, number, &fit, &schema, lost)), schema, key));
            }
            Err(problem) => problems.push(problem),
        }
    }
    let may_pass =
        |problem: &SchemaProblem| matches!(problem, SchemaProblem::ClickHouse(error) if error.is_retryable());
    let first = problems.iter().position(may_pass).unwrap_or(0);
    Err(problems.swap_remove(first))
}

/// Waits until Kafka answers and the topic exists. Returns the cluster's id, or `None` if it is stopped meanwhile.
pub(super) async fn await_topic(
    consumer: &Arc<Consumer>,
    config: &Config,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<String>, RunError> {
    let mut backoff = Backoff::new(&config.retry);
    let brokers = &config.kafka.brokers;
    loop {
        let (asked, topic) = (Arc::clone(consumer), config.kafka.topics.events.clone());
        let error = match kafka::blocking(move || cluster_of_topic(&asked, &topic)).await {
            Ok(cluster_id) => {
                health.clear("kafka");
                // An error from one broker while another answered is no reason for later failures.
                consumer.context().take_errors();
                return Ok(Some(cluster_id));
            }
            Err(error) => error,
        };
        let trouble = consumer.context().take_errors();
        if let Some(refusal) = Refusal::from_error(&error).or(trouble.refusal) {
            return Err(describe(refusal, config).await);
        }
        let reason = match kafka::code(&error) {
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => {
                format!(
                    "the topic {} does not exist at {brokers}; create it, or set kafka.topics.events",
                    config.kafka.topics.events
                )
            }
            _ => refusal::no_answer(config, &trouble.reason.unwrap_or_else(|| error.to_string())).to_string(),
        };
        tracing::warn!("{reason}; trying again");
        health.set("kafka", reason);
        tokio::select! {
            () = backoff.wait() => {}
            () = stop.cancelled() => return Ok(None),
        }
    }
}

/// Checks the rights of this client for its next requests. If Kafka does not report them, or cannot now, the service continues.
/// `/readyz` then shows a missing right. It also shows a cause that keeps the member out of the group for now.
pub(super) async fn see_group(consumer: &Arc<Consumer>, config: &Config, health: &Health) -> Result<(), RunError> {
    let (asked, cloned) = (Arc::clone(consumer), config.clone());
    let seen = tokio::task::spawn_blocking(move || {
        let (topic, group) = (&cloned.kafka.topics.events, &cloned.kafka.group_id);
        if let Ok(Some(false)) = topic::may_read(&asked, topic, ANSWER_TIMEOUT) {
            return Err(Refusal::Topic);
        }
        let described = kafka::retry_until(ANSWER_TIMEOUT, || members::describe(&asked, group, topic, ANSWER_TIMEOUT));
        match described {
            Ok(group) if group.may_read == Some(false) => Err(Refusal::Group),
            Ok(group) => Ok(group.keeps_out(&cloned)),
            Err(error) => match Refusal::from_error(&error) {
                Some(refusal) => Err(refusal),
                None => Ok(kafka::unreachable(&asked, topic)
                    .map(|(address, why)| refusal::unreachable(&cloned, &address, &why))),
            },
        }
    });
    match seen.await {
        Ok(Err(refusal)) => Err(describe(refusal, config).await),
        Ok(Ok(Some(words))) => {
            tracing::warn!("{words}");
            health.set("assignment", format!("no partitions are assigned yet: {words}"));
            Ok(())
        }
        _ => Ok(()),
    }
}

async fn describe(refusal: Refusal, config: &Config) -> RunError {
    let config = config.clone();
    let message = tokio::task::spawn_blocking(move || refusal.describe(&config));
    RunError::Kafka(message.await.unwrap_or_else(|error| error.to_string()))
}

/// Returns the time for which the group counts a member after its commit was accepted. The lease depends on it. In the classic
/// protocol a commit begins the session again. In the consumer protocol only heartbeats do. The last one may be an interval older
/// than the commit. There the broker decides both times, so this asks the broker.
pub(super) async fn session_timeout_ms(consumer: &Arc<Consumer>, config: &Config) -> u64 {
    let configured_ms = config.kafka.session_timeout_ms;
    if config.kafka.group_protocol == GroupProtocol::Classic {
        return configured_ms;
    }
    let (asked, group) = (Arc::clone(consumer), config.kafka.group_id.clone());
    match kafka::blocking(move || group::session(&asked, &group, ANSWER_TIMEOUT)).await {
        Ok(Some(Session { timeout_ms, heartbeat_ms })) => {
            tracing::info!(
                configured_ms,
                broker_ms = timeout_ms,
                heartbeat_ms,
                "the lease counts on the shorter session timeout, less a heartbeat interval"
            );
            session_after_commit_ms(configured_ms.min(timeout_ms), heartbeat_ms)
        }
        unknown => {
            let error = unknown.err().map_or_else(|| "it tells none".to_owned(), |error| error.to_string());
            tracing::warn!(
                "the broker's session timeout for this group is not known ({error}). kafka.session_timeout_ms = \
                 {configured_ms} is trusted: it must not be above the broker's group.consumer.session.timeout.ms"
            );
            session_after_commit_ms(configured_ms, HEARTBEAT_MS)
        }
    }
}

/// Returns the part of a session that certainly remains when a commit is accepted. A heartbeat interval above half of the session
/// would be a mistake in the broker's settings.
fn session_after_commit_ms(timeout_ms: u64, heartbeat_ms: u64) -> u64 {
    timeout_ms - heartbeat_ms.min(timeout_ms / 2)
}

fn cluster_of_topic(consumer: &Consumer, topic: &str) -> KafkaResult<String> {
    let metadata = kafka::metadata(consumer, topic, ANSWER_TIMEOUT)?;
    if let Some(error) = metadata.topics().iter().find_map(|topic| topic.error()) {
        return Err(KafkaError::MetadataFetch(error.into()));
    }
    Ok(consumer.client().fetch_cluster_id(ANSWER_TIMEOUT).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::session_after_commit_ms;

    /// The last heartbeat may have come right before the commit, or an interval earlier.
    #[test]
    fn a_commit_does_not_prolong_the_session_of_the_consumer_protocol() {
        assert_eq!(session_after_commit_ms(45_000, 5_000), 40_000);
        assert_eq!(session_after_commit_ms(15_000, 5_000), 10_000);
        assert_eq!(session_after_commit_ms(6_000, 5_000), 3_000);
    }
}
