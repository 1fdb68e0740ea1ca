//! Reads the positions of the partitions. Must never write, neither to Kafka nor to ClickHouse.

use super::error::AuditError;
use super::tables;
use crate::clickhouse::client::Client;
use crate::clickhouse::schema::Schema;
use crate::clickhouse::sink::Sink;
use crate::config::Config;
use crate::kafka;
use crate::kafka::observer::Observer;
use crate::kafka::refusal::Refusal;
use rdkafka::error::KafkaResult;
use std::sync::Arc;
use std::time::Duration;
use tallyhouse_core::decode::mapped::Decoder;
use tallyhouse_core::protocol::LogView;
use tallyhouse_core::protocol::group::GroupId;
use tallyhouse_core::protocol::marks::{Marks, Progress};
use tallyhouse_core::protocol::outlook::{Before, Position};
use tallyhouse_core::source::{OffsetRange, Source};
use tallyhouse_core::stream::Stage;

/// Longest time that a group or partition may be without a broker.
const TAKE_OVER_TIME: Duration = Duration::from_secs(30);

/// Connections to both servers.
pub struct Reader {
    observer: Arc<Observer>,
    client: Client,
    schema: Schema,
    sink: Sink,
    decoder: Decoder,
}

impl Reader {
    /// Prepares the connections. They connect in the background.
    ///
    /// # Errors
    /// [`AuditError::Consumer`].
    pub fn new(config: &Config, client: Client, schema: Schema) -> Result<Reader, AuditError> {
        Ok(Reader {
            observer: Arc::new(Observer::new(config).map_err(AuditError::Consumer)?),
            sink: Sink::new(client.clone(), schema.clone()).for_stream(config.stream()),
            client,
            schema,
            decoder: config.decoder(),
        })
    }

    /// Returns the ClickHouse client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns the schema of the tables.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Returns the decoder of the event topic's records.
    pub fn decoder(&self) -> Decoder {
        self.decoder.clone()
    }

    /// Asks Kafka on a thread that may block. It asks again, for a while, where a broker is only about to take over
    /// its part.
    ///
    /// # Errors
    /// [`AuditError::Kafka`] if it does not answer well.
    pub async fn kafka<T: Send + 'static>(
        &self,
        ask: impl Fn(&Observer) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, AuditError> {
        let observer = Arc::clone(&self.observer);
        let patient = move || {
            let answer = kafka::retry_until(TAKE_OVER_TIME, || ask(&observer));
            answer.map_err(|error| AuditError::Kafka(observer.describe_error(&error).to_string()))
        };
        tokio::task::spawn_blocking(patient).await?
    }

    /// True if a lifecycle topic exists and may be read. Members do not consume another one.
    ///
    /// # Errors
    /// Any of [`AuditError`].
    pub async fn has_lifecycle(&self, stage: Stage, topic: &str) -> Result<bool, AuditError> {
        let topic = topic.to_owned();
        let asked = self.kafka(move |observer| match observer.lifecycle(stage, &topic) {
            Err(error) if matches!(Refusal::from_error(&error), Some(Refusal::Topic | Refusal::Group)) => Ok(false),
            found => found.map(|found| found.is_some()),
        });
        asked.await
    }

    /// Returns the position of each partition of the topic. It first asks Kafka for the name under which the
    /// partition's rows are stored, then the tables, then Kafka again.
    ///
    /// # Errors
    /// Any of [`AuditError`].
    pub async fn positions(&self) -> Result<Vec<Position>, AuditError> {
        self.positions_of(None).await
    }

    /// Returns the same as [`Reader::positions`], of these partitions only.
    ///
    /// # Errors
    /// Any of [`AuditError`].
    pub async fn positions_of(&self, only: Option<&[i32]>) -> Result<Vec<Position>, AuditError> {
        self.client.sync().await?;
        let mut named = Vec::new();
        let sources = self.kafka(Observer::sources).await?;
        for reported in
            sources.into_iter().filter(|reported| only.is_none_or(|only| only.contains(&reported.partition)))
        {
            let asked = reported.clone();
            let committed = self.kafka(move |observer| observer.committed(&asked)).await?;
            let (topic_id, cluster_id) = (reported.topic_id.clone(), String::new());
            let log = LogView { committed, topic_id, ids_of_rows: Vec::new(), cluster_id, low: 0, high: 0 };
            let log = self.with_ids(&reported, log).await?;
            let topic_id = log.id_of_rows().unwrap_or_default();
            let before = Before::of(&log);
            named.push((Source { topic_id, ..reported.clone() }, reported, before));
        }
        let names: Vec<String> = named.iter().map(|(source, ..)| source.name()).collect();
        let first = tables::first_offsets(&self.client, &names).await?;
        let mut positions = Vec::with_capacity(named.len());
        for (source, reported, before) in named {
            let progress = self.sink.progress(0, &source).await?;
            let asked = reported.clone();
            let log = self.kafka(move |observer| observer.log_view(&asked)).await?;
            let log = self.with_ids(&reported, log).await?;
            let first_stored = first.get(&source.name()).copied();
            let mut position = Position { source, progress, log, first_stored, marks: None, before };
            if let Some((range, _)) = position.intent() {
                position.marks = Some(self.sink.marks(range, &position.source, None).await?);
            }
            positions.push(position);
        }
        Ok(positions)
    }

    /// Returns how far a source is in the tables.
    ///
    /// # Errors
    /// Any of [`AuditError`].
    pub async fn progress(&self, from: u64, source: &Source) -> Result<Progress, AuditError> {
        Ok(self.sink.progress(from, source).await?)
    }

    /// Returns the marks of a batch in the tables, once no insert of it runs any more.
    ///
    /// # Errors
    /// Any of [`AuditError`].
    pub async fn marks(
        &self,
        range: OffsetRange,
        group: Option<GroupId>,
        source: &Source,
    ) -> Result<Marks, AuditError> {
        self.sink.await_ended(range, group, source).await?;
        Ok(self.sink.marks(range, source, None).await?)
    }

    /// Reads from the tables which topic ids the rows of a partition have, where there is no committed offset.
    async fn with_ids(&self, reported: &Source, mut log: LogView) -> Result<LogView, AuditError> {
        if log.committed.is_none() {
            log.ids_of_rows = self.sink.topic_ids(reported).await?;
        }
        Ok(log)
    }
}
