//! The pipelines of the lifecycle topics, beside that of the event topic. Each has a consumer, windows and tasks of its own.
//!
//! Each has a consumer group of its own. So its rebalances hold up no event, and members of an older version, which know no lifecycle
//! topics, get none of their partitions.
//!
//! Must never keep the event topic from being counted: a topic that does not exist, or may not be read, is waited for.

use super::assignment::Assignment;
use super::memory::Memory;
use super::rotated::{Credentials, Reload};
use super::start::session_timeout_ms;
use super::windows::Windows;
use super::{ANSWER_TIMEOUT, Local, Reached, RunError, Running, Shared, Summary, limits, serve, shut_down, start};
use crate::clickhouse::schema::Schema;
use crate::clickhouse::servers::Servers;
use crate::config::Config;
use crate::kafka::consumer::{self, Consumer};
use crate::kafka::members::{self, Group};
use crate::kafka::refusal::Refusal;
use crate::kafka::{masked, topic};
use crate::platform::retry::Backoff;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaResult, RDKafkaErrorCode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tallyhouse_core::stream::{Stage, Stream};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// A broker with rights hides topics that a user may not see.
const NO_RIGHT: &str = "it does not exist, or this user may not read it";

const NO_GROUP: &str = "this user may not read its group";

/// The pipelines of all lifecycle topics.
pub(super) struct Pipelines {
    stop: CancellationToken,
    tasks: JoinSet<Result<Summary, RunError>>,
    done: Summary,
}

/// The objects that a pipeline takes over from that of the event topic.
#[derive(Clone)]
struct Given {
    events: Arc<Shared>,
    servers: Arc<Servers>,
    schema: Schema,
    credentials: Credentials,
    reload: Reload,
}

impl Pipelines {
    /// Starts a task for each configured topic. They end in order when `stop` is cancelled.
    pub fn start(
        config: &Config,
        events: &Running,
        schema: &Schema,
        credentials: &Credentials,
        reload: &Reload,
        stop: &CancellationToken,
    ) -> Pipelines {
        let (stop, mut tasks) = (stop.child_token(), JoinSet::new());
        let given = Given {
            events: Arc::clone(&events.shared),
            servers: Arc::clone(&events.servers),
            schema: schema.clone(),
            credentials: credentials.clone(),
            reload: Arc::clone(reload),
        };
        for (stage, topic) in config.kafka.topics.lifecycle() {
            tasks.spawn(run(config.for_lifecycle(stage, topic), stage, given.clone(), stop.clone()));
        }
        Pipelines { stop, tasks, done: Summary::default() }
    }

    /// Returns the first error with which a pipeline ends.
    pub async fn failed(&mut self) -> RunError {
        loop {
            match self.tasks.join_next().await {
                Some(ended) => match self.note(ended) {
                    Ok(()) => {}
                    Err(error) => return error,
                },
                None => return std::future::pending().await,
            }
        }
    }

    /// Ends all pipelines in order. Returns their work, or the first error.
    pub async fn end(&mut self) -> Result<Summary, RunError> {
        self.stop.cancel();
        let mut first = Ok(());
        while let Some(ended) = self.tasks.join_next().await {
            first = first.and(self.note(ended));
        }
        first.map(|()| self.done)
    }

    fn note(&mut self, ended: Result<Result<Summary, RunError>, JoinError>) -> Result<(), RunError> {
        let summary =
            ended.map_err(|error| RunError::Broken(format!("the pipeline of a lifecycle topic ended: {error}")))??;
        self.done = self.done.with(summary);
        Ok(())
    }
}

/// Runs one pipeline until `stop` is cancelled. `config` has its topic in the place of the event topic.
async fn run(config: Config, stage: Stage, given: Given, stop: CancellationToken) -> Result<Summary, RunError> {
    let started = Instant::now();
    if !await_topic(&config, &given.events, &stop).await {
        return Ok(Summary::default());
    }
    let assignment = Arc::new(Assignment::new(Duration::from_millis(config.rebalance.grace_ms)));
    let consumer = consumer::create(&config, assignment.clone()).map_err(|error| RunError::Consumer(masked(&error)))?;
    let consumer = Arc::new(consumer);
    let session_timeout = Duration::from_millis(session_timeout_ms(&consumer, &config).await);
    let stream = Stream::Lifecycle(stage);
    let memory = Arc::<Memory>::default();
    let local = Local {
        health: given.events.health.part(&config.kafka.topics.events),
        windows: Arc::new(Windows::new(stream, limits(&config), Arc::clone(&memory))),
        memory,
    };
    let reached = Reached {
        servers: given.servers,
        schema: given.schema,
        // Only counters vouch for recipients.
        recipient_key: None,
        consumer,
        assignment,
        cluster_id: given.events.cluster_id.clone(),
        session_timeout,
    };
    let mut running = start(&config, stream, local, reached, Arc::default())?;
    drop(given.events);
    serve(&config, &mut running, &given.credentials, &given.reload, &stop).await?;
    let is_flushed = shut_down(&config, &mut running).await;
    running.sum_up(started, is_flushed)
}

/// Waits until the topic exists and may be read. Returns `false` if `stop` is cancelled before.
async fn await_topic(config: &Config, events: &Shared, stop: &CancellationToken) -> bool {
    let (topic, group) = (&config.kafka.topics.events, &config.kafka.group_id);
    let (mut backoff, mut known) = (Backoff::new(&config.retry), None);
    loop {
        let (asked, of) = (topic.clone(), group.clone());
        let found = tokio::select! {
            found = events.kafka(move |consumer| look(consumer, &asked, &of)) => found,
            () = stop.cancelled() => return false,
        };
        let reason = match found {
            Ok(None) => return true,
            Ok(Some(reason)) => reason.to_owned(),
            // The event topic's pipeline reports it if Kafka does not answer.
            Err(_) => String::new(),
        };
        // One line is enough: some producers send no such messages.
        if !reason.is_empty() && known.as_ref() != Some(&reason) {
            tracing::info!(topic, group, "the lifecycle topic is waited for: {reason}");
            known = Some(reason);
        }
        tokio::select! {
            () = backoff.wait() => {}
            () = stop.cancelled() => return false,
        }
    }
}

/// Returns the reason why the topic cannot be consumed now. Blocks, and polls nothing.
fn look(consumer: &Consumer, name: &str, group: &str) -> KafkaResult<Option<&'static str>> {
    let metadata = consumer.fetch_metadata(Some(name), ANSWER_TIMEOUT)?;
    let error = metadata.topics().iter().find_map(|topic| topic.error()).map(RDKafkaErrorCode::from);
    match error {
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => return Ok(Some(NO_RIGHT)),
        Some(_) => return Ok(Some("it does not exist")),
        None => {}
    }
    if let Ok(Some(false)) = topic::may_read(consumer, name, ANSWER_TIMEOUT) {
        return Ok(Some(NO_RIGHT));
    }
    match members::describe(consumer, group, name, ANSWER_TIMEOUT) {
        Ok(Group { may_read: Some(false), .. }) => Ok(Some(NO_GROUP)),
        Err(error) if Refusal::from_error(&error) == Some(Refusal::Group) => Ok(Some(NO_GROUP)),
        _ => Ok(None),
    }
}
