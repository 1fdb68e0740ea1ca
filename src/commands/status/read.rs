//! Looks at both servers, and at members that are named. Must never write, nor wait long for one that is away.

use super::asked::{Asked, Asker, MemberUrl};
use super::{History, Lifecycle, Motion, Partition, Standing, Status};
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::replica;
use crate::clickhouse::schema::{Schema, SchemaProblem};
use crate::clickhouse::sink::Sink;
use crate::config::Config;
use crate::config::pace::Pace;
use crate::kafka;
use crate::kafka::held_back::HeldBack;
use crate::kafka::members::Group;
use crate::kafka::observer::{ANSWER_TIMEOUT, Observer, describe_dead_letter_error};
use rdkafka::error::KafkaResult;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tallyhouse_core::protocol::LogView;
use tallyhouse_core::protocol::marks::{Progress, down_to_mark};
use tallyhouse_core::protocol::outlook::{Before, Outlook, Position};
use tallyhouse_core::source::Source;
use tallyhouse_core::stream::Stage;

/// Time after which a look asks for no more partitions.
const LOOK_TIME: Duration = Duration::from_secs(20);

/// Time between two questions about the movement of partitions.
const MOVED_INTERVAL: Duration = Duration::from_millis(500);

/// The data of all partitions that is read before ClickHouse is asked.
struct Logs {
    sources: Vec<Source>,
    views: Vec<Result<LogView, String>>,
    held_back: BTreeMap<i32, HeldBack>,
    group: Result<Group, String>,
    dead_letter: Result<(), String>,
    lifecycle: Vec<Lifecycle>,
}

/// Connections to both servers and to members, and the results of earlier looks.
pub struct Watcher {
    started: Instant,
    history: History,
    asker: Asker,
    members: Vec<MemberUrl>,
    observer: Arc<Observer>,
    client: Client,
    empty: Status,
    dead_letter: Option<String>,
    lifecycle: Vec<(Stage, String)>,
}

impl Watcher {
    /// Prepares the connections; connects to nothing yet. `client` should have a short time limit. `members` are
    /// asked for causes.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn new(config: &Config, client: Client, members: Vec<MemberUrl>) -> KafkaResult<Watcher> {
        let empty = Status {
            brokers: config.kafka.brokers.clone(),
            url: client.url().trim_end_matches('/').to_owned(),
            database: config.clickhouse.database.clone(),
            topic: config.kafka.topics.events.clone(),
            group_id: config.kafka.group_id.clone(),
            dead_letter: Ok(()),
            lifecycle: Vec::new(),
            clickhouse: Ok(()),
            replica: None,
            group: Err(String::new()),
            partitions: Ok(Vec::new()),
            pace: Pace::of(config),
            asked: Vec::new(),
        };
        let asker = Asker::new(&empty.topic);
        let observer = Arc::new(Observer::with_timeout(config, ANSWER_TIMEOUT)?);
        let dead_letter = config.kafka.topics.dead_letter.clone();
        let topics = config.kafka.topics.lifecycle().into_iter();
        let lifecycle = topics.map(|(stage, topic)| (stage, topic.to_owned())).collect();
        let (started, history) = (Instant::now(), History::default());
        Ok(Watcher { started, history, asker, members, observer, client, empty, dead_letter, lifecycle })
    }

    /// Looks at everything, and compares it with the looks before. The status itself names the servers that could not
    /// be asked.
    pub async fn look(&mut self) -> Status {
        let begun = self.started.elapsed();
        let asked = self.members.iter().cloned().map(|url| {
            let asker = self.asker.clone();
            tokio::spawn(async move { asker.ask(&url).await })
        });
        let asked: Vec<_> = asked.collect();
        let mut status = self.look_once().await;
        for (url, answer) in self.members.iter().zip(asked) {
            let failed = |error| Asked { url: url.to_string(), answer: Err(format!("{error}")) };
            status.asked.push(answer.await.unwrap_or_else(failed));
        }
        self.history.note(&mut status, begun, self.started.elapsed());
        status
    }

    /// Waits until each partition that only a later look can judge has moved, but not longer than `within`.
    pub async fn await_movement(&self, status: &Status, within: Duration) {
        let deadline = tokio::time::Instant::now() + within;
        let unjudged: Vec<i32> = status.unjudged().into_iter().map(|(number, _)| number).collect();
        let mut waiting: Vec<(i32, &Standing)> =
            status.standings().filter(|(number, _)| unjudged.contains(number)).collect();
        while !waiting.is_empty() {
            let next = tokio::time::Instant::now() + MOVED_INTERVAL;
            tokio::time::sleep_until(next.min(deadline)).await;
            if next >= deadline {
                return;
            }
            // A partition that cannot be asked counts as one that has not moved.
            let sources = |observer: &Observer| observer.sources().map_err(|error| error.to_string());
            let sources = self.blocking(sources).await.unwrap_or_default();
            let mut unmoved = Vec::with_capacity(waiting.len());
            for (number, standing) in waiting {
                match sources.iter().find(|source| source.partition == number) {
                    Some(source) if self.has_moved(source.clone(), standing).await => {}
                    _ => unmoved.push((number, standing)),
                }
            }
            waiting = unmoved;
        }
    }

    async fn has_moved(&self, source: Source, standing: &Standing) -> bool {
        let ask = move |observer: &Observer| {
            let log = log_view(observer, &source)?;
            let position = seen(source, log);
            Ok((position.committed(), position.intent().map(|(range, _)| range)))
        };
        self.blocking(ask).await.is_ok_and(|now| now != (standing.committed, standing.intent))
    }

    async fn look_once(&self) -> Status {
        let mut status = self.empty.clone();
        let deadline = Instant::now() + LOOK_TIME;
        let (logs, answered) = tokio::join!(self.logs(deadline), self.sink());
        let (sink, answered) = match answered {
            Ok((sink, replica)) => {
                status.replica = replica;
                (Some(sink), Ok(()))
            }
            Err(problem) => (None, Err(problem.to_string())),
        };
        status.clickhouse = answered;
        match logs {
            Ok(Logs { sources, views, held_back, group, dead_letter, lifecycle }) => {
                status.lifecycle = lifecycle;
                status.group = group;
                status.dead_letter = dead_letter;
                let mut partitions = Vec::with_capacity(sources.len());
                for (source, view) in sources.into_iter().zip(views) {
                    let number = source.partition;
                    let mut seen = match view {
                        Ok(log) => self.standing(source, log, sink.as_ref(), &mut status.clickhouse).await,
                        Err(error) => Err(error),
                    };
                    if let Ok(standing) = &mut seen {
                        standing.held_back = held_back.get(&number).copied();
                    }
                    partitions.push(Partition { number, seen });
                }
                status.partitions = Ok(partitions);
            }
            Err(error) => {
                status.group = Err(error.clone());
                status.partitions = Err(error);
            }
        }
        status
    }

    /// Returns the sink, if the tables are this binary's, and what is wrong with the server as a replica.
    async fn sink(&self) -> Result<(Sink, Option<String>), SchemaProblem> {
        let (client, schema) = Schema::found(&self.client).await?;
        schema.check(&client).await?;
        let states = if client.is_replica() { client.table_states().await? } else { Vec::new() };
        let replica = replica::problem(&states).map(|advice| format!("{}: {advice}", client.url()));
        Ok((Sink::new(client, schema), replica))
    }

    async fn logs(&self, deadline: Instant) -> Result<Logs, String> {
        let (dead_letter, lifecycle) = (self.dead_letter.clone(), self.lifecycle.clone());
        let read = move |observer: &Observer| {
            let sources = observer.cluster().and_then(|_| kafka::retry_until(ANSWER_TIMEOUT, || observer.sources()));
            let sources = sources.map_err(|error| observer.describe_error(&error).to_string())?;
            let group = kafka::retry_until(ANSWER_TIMEOUT, || observer.group());
            let group = group
                .map_err(|error| format!("the group cannot be asked for: {}", observer.describe_group_error(&error)));
            let view = |source: &Source| match Instant::now() < deadline {
                true => log_view(observer, source),
                false => Err("not asked: Kafka answered too slowly".to_owned()),
            };
            let ends = observer.ends(&sources);
            let views: Vec<Result<LogView, String>> = sources.iter().map(view).collect();
            let both = sources.iter().zip(&views);
            let stable = both.filter_map(|(source, view)| Some((source.partition, view.as_ref().ok()?.high))).collect();
            let held_back = observer.held_back(&ends, &stable);
            let dead_letter =
                dead_letter.map_or(Ok(()), |topic| describe_dead_letter_error(&topic, observer.may_write(&topic)));
            let dead_letter = dead_letter.map_err(|advice| advice.to_string());
            let state = |(stage, topic): (Stage, String)| {
                let seen = kafka::retry_until(ANSWER_TIMEOUT, || observer.lifecycle(stage, &topic));
                Lifecycle { topic, seen: seen.map_err(|error| kafka::describe_error(&error)) }
            };
            let lifecycle = lifecycle.into_iter().map(state).collect();
            Ok(Logs { sources, views, held_back, group, dead_letter, lifecycle })
        };
        self.blocking(read).await
    }

    /// Asks the tables and then Kafka again, so that the rows in the tables are in the log with which they are
    /// compared.
    async fn standing(
        &self,
        source: Source,
        log: LogView,
        sink: Option<&Sink>,
        clickhouse: &mut Result<(), String>,
    ) -> Result<Standing, String> {
        let reported = source.clone();
        let mut position = seen(source, log);
        let mut outlook = None;
        // A stop is reported only when a second look finds it as well, because members go on during the look.
        for _ in 0..2 {
            let Some(sink) = sink.filter(|_| clickhouse.is_ok()) else {
                outlook = None;
                break;
            };
            let asked = self.ask(sink, &mut position, &reported).await?;
            *clickhouse = asked.map_err(|error| error.to_string());
            outlook = clickhouse.is_ok().then(|| position.outlook());
            if !matches!(outlook, Some(Outlook::Stops(_))) {
                break;
            }
        }
        let outlook = outlook.or_else(|| Position::stops_by_log(&position.log).map(Outlook::Stops));
        Ok(Standing {
            start: position.log.low,
            end: position.log.high,
            committed: position.committed(),
            intent: position.intent().map(|(range, _)| range),
            outlook,
            held_back: None,
            motion: Motion::default(),
        })
    }

    /// Asks the tables about a partition. `reported` is the partition with the topic id that the brokers report.
    async fn ask(
        &self,
        sink: &Sink,
        position: &mut Position,
        reported: &Source,
    ) -> Result<Result<(), ClickHouseError>, String> {
        let ids_of_rows = match position.log.committed {
            Some(_) => Vec::new(),
            None => match sink.topic_ids(reported).await {
                Ok(ids) => ids,
                Err(error) => return Ok(Err(error)),
            },
        };
        position.log.ids_of_rows.clone_from(&ids_of_rows);
        position.source.topic_id = position.log.id_of_rows().unwrap_or_default();
        position.before = Before::of(&position.log);
        // A member would ask from this offset as well, because the rows before it are many.
        let committed = position.committed().unwrap_or(0);
        let from = down_to_mark(committed, position.before.marked);
        position.progress = match sink.progress(from, &position.source).await {
            Ok(progress) => progress,
            Err(error) => return Ok(Err(error)),
        };
        let reported = reported.clone();
        position.log = self.blocking(move |observer: &Observer| log_view(observer, &reported)).await?;
        position.log.ids_of_rows = ids_of_rows;
        if let Some((range, _)) = position.intent() {
            position.marks = match sink.marks(range, &position.source, None).await {
                Ok(marks) => Some(marks),
                Err(error) => return Ok(Err(error)),
            };
        }
        Ok(Ok(()))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Observer) -> Result<T, String> + Send + 'static,
    ) -> Result<T, String> {
        let observer = Arc::clone(&self.observer);
        let answer = tokio::task::spawn_blocking(move || ask(&observer)).await;
        answer.unwrap_or_else(|error| Err(format!("a call to Kafka did not end properly: {error}")))
    }
}

/// Makes the position of a partition from Kafka's answer.
fn seen(source: Source, log: LogView) -> Position {
    Position { source, progress: Progress::default(), log, first_stored: None, marks: None, before: Before::default() }
}

fn log_view(observer: &Observer, source: &Source) -> Result<LogView, String> {
    kafka::retry_until(ANSWER_TIMEOUT, || observer.log_view(source))
        .map_err(|error| observer.describe_group_error(&error).to_string())
}
