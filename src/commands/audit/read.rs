//! Reads where the partitions stand. Must never write, neither to Kafka nor to ClickHouse.

use super::error::AuditError;
use super::tables;
use crate::clickhouse::client::Client;
use crate::clickhouse::schema::Schema;
use crate::clickhouse::sink::Sink;
use crate::config::Config;
use crate::kafka;
use crate::kafka::observer::Observer;
use rdkafka::error::KafkaResult;
use std::sync::Arc;
use std::time::Duration;
use tallyhouse_core::decode::TimeBounds;
use tallyhouse_core::protocol::outlook::Position;

/// How long a group or partition may be without a broker.
const TAKE_OVER_TIME: Duration = Duration::from_secs(30);

/// Connections to both servers.
pub struct Reader {
    observer: Arc<Observer>,
    client: Client,
    sink: Sink,
    time_bounds: TimeBounds,
}

impl Reader {
    /// Prepares the connections; connects in the background.
    ///
    /// # Errors
    /// [`AuditError::Consumer`].
    pub fn new(config: &Config, client: Client) -> Result<Reader, AuditError> {
        Ok(Reader {
            observer: Arc::new(Observer::new(config).map_err(AuditError::Consumer)?),
            sink: Sink::new(client.clone(), Schema::single()),
            client,
            time_bounds: config.time_bounds(),
        })
    }

    /// ClickHouse.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Which event times are believed.
    pub fn time_bounds(&self) -> TimeBounds {
        self.time_bounds
    }

    /// Asks Kafka on a thread that may block; again, for a while, where a broker is only about to take over its part.
    ///
    /// # Errors
    /// [`AuditError::Kafka`] if it does not answer well.
    pub async fn kafka<T: Send + 'static>(
        &self,
        ask: impl Fn(&Observer) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T, AuditError> {
        let observer = Arc::clone(&self.observer);
        let patient = move || {
            let answer = kafka::patiently(TAKE_OVER_TIME, || ask(&observer));
            answer.map_err(|error| AuditError::Kafka(observer.in_words(&error)))
        };
        tokio::task::spawn_blocking(patient).await?
    }

    /// Where each partition of the topic stands: first the tables, then Kafka.
    ///
    /// # Errors
    /// Any of [`AuditError`].
    pub async fn positions(&self) -> Result<Vec<Position>, AuditError> {
        let sources = self.kafka(Observer::sources).await?;
        let names: Vec<String> = sources.iter().map(|source| source.name()).collect();
        let first = tables::first_offsets(&self.client, &names).await?;
        let mut positions = Vec::with_capacity(sources.len());
        for (source, name) in sources.into_iter().zip(names) {
            let progress = self.sink.progress(0, &source).await?;
            let asked = source.clone();
            let log = self.kafka(move |observer| observer.log_view(&asked)).await?;
            let first_stored = first.get(&name).copied();
            let mut position = Position { source, progress, log, first_stored, marks: None };
            if let Some((range, _)) = position.intent() {
                position.marks = Some(self.sink.marks(range, &position.source, None).await?);
            }
            positions.push(position);
        }
        Ok(positions)
    }
}
