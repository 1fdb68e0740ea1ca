//! Kafka's half of the checks. Must never wait long for brokers that are away.

use super::{Code, Outcome, judge, with_skipped};
use crate::config::{Config, GroupProtocol};
use crate::kafka::observer::{ANSWER_TIMEOUT, LifecycleTopic, describe_dead_letter_error};
use crate::kafka::refusal::{self, Refusal};
use crate::kafka::{self, observer::Observer};
use crate::platform::advice::Advice;
use rdkafka::error::KafkaError;
use std::time::{Duration, Instant};
use tallyhouse_core::protocol::LogView;
use tallyhouse_core::source::Source;

pub(super) const CODES: [Code; 9] = [
    Code::Brokers,
    Code::Topic,
    Code::TopicRights,
    Code::GroupRights,
    Code::GroupProtocol,
    Code::Offsets,
    Code::Log,
    Code::SessionTimeout,
    Code::Memory,
];

/// Longest time that the group may be without a coordinator.
const COORDINATOR_TIME: Duration = Duration::from_secs(10);

/// Time limit of all questions about partitions together.
const PARTITIONS_TIME: Duration = Duration::from_secs(10);

/// Makes all checks about Kafka, on a thread that may block.
pub async fn checks(config: &Config, observer: Observer) -> Vec<Outcome> {
    let config = config.clone();
    let made = tokio::task::spawn_blocking(move || made(&config, &observer)).await;
    let failed = |error| {
        let problem = Advice::without_fix(format!("a call to Kafka did not end: {error}"));
        vec![Outcome::failed_with(Code::Brokers, problem)]
    };
    with_skipped(made.unwrap_or_else(failed), &CODES)
}

/// Returns the checks up to the first failure without which the others cannot be made.
fn made(config: &Config, observer: &Observer) -> Vec<Outcome> {
    let mut made = Vec::new();
    let fails = |code, error: &KafkaError| Outcome::failed_with(code, observer.describe_error(error));
    let group_fails = |code, error: &KafkaError| Outcome::failed_with(code, observer.describe_group_error(error));
    match observer.cluster() {
        Ok((brokers, cluster_id)) => {
            made.push(Outcome::ok(Code::Brokers, format!("{brokers} brokers, cluster id {cluster_id}")));
        }
        Err(error) => return vec![fails(Code::Brokers, &error)],
    }
    let sources = match kafka::retry_until(ANSWER_TIMEOUT, || observer.sources()) {
        Ok(sources) => sources,
        Err(error) => {
            made.push(fails(Code::Topic, &error));
            return made;
        }
    };
    let id = sources.first().map_or("", |source| source.topic_id.as_str());
    made.push(Outcome::ok(Code::Topic, format!("{} partitions, topic id {id}", sources.len())));
    made.push(match observer.may_read_topic() {
        Ok(may_read) => judge::topic_rights(may_read, config),
        Err(error) => fails(Code::TopicRights, &error),
    });
    if let Some(dead_letter) = &config.kafka.topics.dead_letter {
        made.push(match describe_dead_letter_error(dead_letter, observer.may_write(dead_letter)) {
            Ok(()) => Outcome::ok(Code::DeadLetter, format!("{dead_letter} is there")),
            Err(error) => Outcome::failed_with(Code::DeadLetter, error),
        });
    }
    made.extend(lifecycle_topics(config, observer));
    made.push(session_timeout(config, observer));
    made.push(judge::memory(config.memory.limit_bytes, config.flush.bytes_max, sources.len()));
    // The first question for offsets makes the coordinator in a fresh cluster.
    let ends = observer.ends(&sources);
    let logs = logs(observer, &sources);
    let group = kafka::retry_until(COORDINATOR_TIME, || observer.group());
    match logs {
        Ok(logs) => {
            let committed = logs.iter().filter(|(_, view)| view.committed.is_some()).count();
            let seen = format!("may be read; {committed} of {} partitions have one", logs.len());
            made.push(Outcome::ok(Code::Offsets, seen));
            let stable = logs.iter().map(|(partition, view)| (*partition, view.high)).collect();
            made.push(judge::log(&logs, &observer.held_back(&ends, &stable)));
        }
        // Kafka names no coordinator to a user that may not see the group. The question then waits for an answer that
        // never comes.
        Err(_) if group.as_ref().is_err_and(|error| Refusal::from_error(error).is_some()) => {
            made.extend([Code::Offsets, Code::Log].map(|code| Outcome::skipped(code, Code::GroupRights)));
        }
        Err(error) => {
            made.push(group_fails(Code::Offsets, &error));
            made.push(Outcome::skipped(Code::Log, Code::Offsets));
        }
    }
    match group {
        Ok(group) => {
            made.push(judge::group_rights(group.may_read, config));
            made.push(judge::group_protocol(&group, config));
        }
        Err(error) => {
            made.push(group_fails(Code::GroupRights, &error));
            made.push(Outcome::skipped(Code::GroupProtocol, Code::GroupRights));
        }
    }
    made
}

/// Looks at the lifecycle topics, if any is configured. A topic that does not exist is no problem: members wait for it.
fn lifecycle_topics(config: &Config, observer: &Observer) -> Option<Outcome> {
    let topics = config.kafka.topics.lifecycle();
    let (mut seen, mut fix) = (Vec::new(), None);
    for &(stage, topic) in &topics {
        let config = config.for_lifecycle(stage, topic);
        let found = kafka::retry_until(COORDINATOR_TIME, || observer.lifecycle(stage, topic));
        let grant = |kind, name| {
            let grant = refusal::grant(&config, kind, name);
            Some(format!("as an administrator run: {grant}. Or leave the topic out with an empty name"))
        };
        seen.push(match found {
            Ok(Some(LifecycleTopic { partitions, lag_records })) => {
                format!("{topic}: partitions {partitions}, records not committed {lag_records}")
            }
            Ok(None) => format!("{topic} does not exist, and members wait for it"),
            Err(error) => match Refusal::from_error(&error) {
                // A broker with rights hides topics that a user may not see.
                Some(Refusal::Topic) => {
                    fix = grant("topic", topic);
                    format!("{topic} does not exist, or this user may not read it")
                }
                Some(Refusal::Group) => {
                    fix = grant("group", &config.kafka.group_id);
                    format!("{topic} is not consumed, as this user may not read the group {}", config.kafka.group_id)
                }
                _ => {
                    fix = Some("see that the group's coordinator and the partitions' leaders run".to_owned());
                    format!("{topic} cannot be asked for: {}", kafka::describe_error(&error))
                }
            },
        });
    }
    let seen = seen.join("; ");
    Some(match fix {
        _ if topics.is_empty() => return None,
        None => Outcome::ok(Code::LifecycleTopics, seen),
        Some(fix) => Outcome::warning(Code::LifecycleTopics, seen, fix),
    })
}

fn session_timeout(config: &Config, observer: &Observer) -> Outcome {
    let asked = config.kafka.group_protocol == GroupProtocol::Consumer;
    let answer = asked.then(|| observer.session_timeout_ms().map_err(|error| error.to_string()));
    judge::session_timeout(config, answer)
}

fn logs(observer: &Observer, sources: &[Source]) -> Result<Vec<(i32, LogView)>, KafkaError> {
    let deadline = Instant::now() + PARTITIONS_TIME;
    let mut logs = Vec::with_capacity(sources.len());
    for source in sources {
        let within = deadline.saturating_duration_since(Instant::now()).min(ANSWER_TIMEOUT);
        if within.is_zero() {
            return Err(KafkaError::OffsetFetch(rdkafka::types::RDKafkaErrorCode::OperationTimedOut));
        }
        logs.push((source.partition, kafka::retry_until(within, || observer.log_view(source))?));
    }
    Ok(logs)
}
