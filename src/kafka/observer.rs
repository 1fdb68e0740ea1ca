//! Reads a topic and a group's committed offsets from outside of the group.
//!
//! Must never subscribe, commit, or seek anywhere but in its own assignment: a member must not notice that it is watched. All
//! calls block. Each has a timeout.

use super::consumer::{self, Consumer, Rebalances};
use super::held_back::{self, HeldBack};
use super::members::{self, Group};
use super::refusal::{self, Refusal};
use super::{KAFKA_TIMEOUT, group, offsets, topic};
use crate::config::Config;
use crate::platform::advice::Advice;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tallyhouse_core::protocol::{Committed, LogView};
use tallyhouse_core::source::{OffsetRange, Source};
use tallyhouse_core::stream::Stage;

/// Longest wait for one answer from either server.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Properties that limit librdkafka's prefetching to a few small batches.
const SMALL: &[(&str, &str)] = &[("queued.min.messages", "1"), ("queued.max.messages.kbytes", "64")];

/// A consumer with the group's name that never joins the group.
pub struct Observer {
    consumer: Consumer,
    config: Config,
    within: Duration,
}

/// The parts of one record that an observer uses.
pub struct Record<'a> {
    /// Offset of the record.
    pub offset: u64,
    /// Timestamp of the record, in milliseconds since 1970-01-01 UTC.
    pub timestamp_ms: Option<i64>,
    /// Value of the record.
    pub payload: Option<&'a [u8]>,
}

/// The way in which a look at a range of the log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// All committed records of the range were seen.
    Done,
    /// The log no longer has the range's beginning.
    Gone,
    /// The time was up; the records before this offset were seen.
    TimeUp(u64),
}

/// There is no group, so there is nothing to report.
pub struct Nobody;

impl Rebalances for Nobody {
    fn assigned(&self, _: &[i32]) {}
    fn revoked(&self, _: &[i32], _: bool) {}
    fn statistics(&self, _: &Statistics) {}
}

/// Returns a consumer that never joins the group, for manual assignment.
///
/// # Errors
/// librdkafka refuses a property.
pub fn standalone_consumer(config: &Config) -> KafkaResult<Consumer> {
    consumer::create_with(config, Arc::new(Nobody), &[])
}

/// The state of a lifecycle topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LifecycleTopic {
    /// Number of its partitions.
    pub partitions: usize,
    /// Number of records that are not committed.
    pub lag_records: u64,
}

impl Observer {
    /// Creates the consumer. It connects in the background.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn new(config: &Config) -> KafkaResult<Observer> {
        Observer::with_timeout(config, KAFKA_TIMEOUT)
    }

    /// Does the same as [`Observer::new`], with another longest wait for one answer.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn with_timeout(config: &Config, within: Duration) -> KafkaResult<Observer> {
        Ok(Observer { consumer: standalone_consumer(config)?, config: config.clone(), within })
    }

    /// Returns an observer for use beside a member. It takes little memory.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn small(config: &Config) -> KafkaResult<Observer> {
        Observer::with(config, SMALL)
    }

    /// Does the same as [`Observer::small`], and also reads records of open and aborted transactions.
    ///
    /// # Errors
    /// librdkafka refuses a property.
    pub fn uncommitted(config: &Config) -> KafkaResult<Observer> {
        Observer::with(config, &[SMALL, &[("isolation.level", "read_uncommitted")]].concat())
    }

    fn with(config: &Config, properties: &[(&str, &str)]) -> KafkaResult<Observer> {
        let consumer = consumer::create_with(config, Arc::new(Nobody), properties)?;
        Ok(Observer { consumer, config: config.clone(), within: KAFKA_TIMEOUT })
    }

    /// Returns the number of brokers, and the cluster's id, which is empty if it has none.
    ///
    /// # Errors
    /// Kafka does not answer in time.
    pub fn cluster(&self) -> KafkaResult<(usize, String)> {
        // The request is for this topic only, because a cluster may have many topics.
        let metadata = super::metadata(&self.consumer, self.topic(), self.within)?;
        let cluster_id = self.consumer.client().fetch_cluster_id(self.within).unwrap_or_default();
        Ok((metadata.brokers().len(), cluster_id))
    }

    /// Returns a failure and its remedy.
    pub fn describe_error(&self, error: &KafkaError) -> Advice {
        let kafka = &self.config.kafka;
        let (brokers, topic) = (&kafka.brokers, &kafka.topics.events);
        // An error in the background, such as a refused login, says more than that the time is up.
        let trouble = self.consumer.context().take_errors();
        let refusal = Refusal::from_error(error).or(trouble.refusal);
        if let Some(refusal) = refusal {
            return refusal.advice(&self.config);
        }
        match super::code(error) {
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => Advice::new(
                format!("the topic {topic} does not exist at {brokers}"),
                "Create it, or set kafka.topics.events",
            ),
            _ => match super::unreachable(&self.consumer, topic) {
                Some((address, why)) => refusal::unreachable(&self.config, &address, &why),
                None => refusal::no_answer(&self.config, &trouble.reason.unwrap_or_else(|| error.to_string())),
            },
        }
    }

    /// Returns a failed request about the group, and the remedy.
    pub fn describe_group_error(&self, error: &KafkaError) -> Advice {
        match Refusal::from_error(error) {
            Some(refusal) => refusal.advice(&self.config),
            None => match super::unreachable(&self.consumer, self.topic()) {
                Some((address, why)) => refusal::unreachable(&self.config, &address, &why),
                None => {
                    Advice::new(error.to_string(), "See that the group's coordinator and the partitions' leaders run")
                }
            },
        }
    }

    fn topic(&self) -> &str {
        &self.config.kafka.topics.events
    }

    fn group_id(&self) -> &str {
        &self.config.kafka.group_id
    }

    /// True if this client may read the topic; `None` if the broker does not report it.
    ///
    /// # Errors
    /// Kafka does not answer in time, or the topic does not exist.
    pub fn may_read_topic(&self) -> KafkaResult<Option<bool>> {
        topic::may_read(&self.consumer, self.topic(), self.within)
    }

    /// True if this client may write to another topic; `None` if the broker does not report it.
    ///
    /// # Errors
    /// Kafka does not answer in time, or the topic does not exist.
    pub fn may_write(&self, topic: &str) -> KafkaResult<Option<bool>> {
        topic::may_write(&self.consumer, topic, self.within)
    }

    /// Returns the group and its members.
    ///
    /// # Errors
    /// Kafka does not answer in time, or answers with an error.
    pub fn group(&self) -> KafkaResult<Group> {
        members::describe(&self.consumer, self.group_id(), self.topic(), self.within)
    }

    /// Returns the state of the lifecycle topic of a stage; `None` if it does not exist. This observer is one of the event topic.
    ///
    /// # Errors
    /// Kafka does not answer in time, or answers with an error; the right to read the topic or its group may be missing.
    pub fn lifecycle(&self, stage: Stage, topic: &str) -> KafkaResult<Option<LifecycleTopic>> {
        let metadata = self.consumer.fetch_metadata(Some(topic), self.within)?;
        let Some(found) = metadata.topics().first() else { return Ok(None) };
        match found.error().map(RDKafkaErrorCode::from) {
            Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => return Ok(None),
            Some(error) => return Err(KafkaError::MetadataFetch(error)),
            None => {}
        }
        // Its committed offsets are those of another group, which takes a client of its own.
        let observer = Observer::with_timeout(&self.config.for_lifecycle(stage, topic), self.within)?;
        if observer.may_read_topic()? == Some(false) {
            return Err(KafkaError::MetadataFetch(RDKafkaErrorCode::TopicAuthorizationFailed));
        }
        if observer.group()?.may_read == Some(false) {
            return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::GroupAuthorizationFailed));
        }
        let partitions: Vec<i32> = found.partitions().iter().map(|partition| partition.id()).collect();
        let views = offsets::log_views(&observer.consumer, topic, "", &partitions, self.within)?;
        let mut lag_records = 0;
        for view in views.into_values() {
            let view = view?;
            let committed = view.committed.map_or(0, |committed| committed.offset);
            lag_records += view.high.saturating_sub(committed.max(view.low));
        }
        Ok(Some(LifecycleTopic { partitions: partitions.len(), lag_records }))
    }

    /// Returns the group's session timeout in milliseconds if the broker decides it (KIP-848); `None` if it reports none.
    ///
    /// # Errors
    /// Kafka does not answer in time, or answers with an error.
    pub fn session_timeout_ms(&self) -> KafkaResult<Option<u64>> {
        let session = group::session(&self.consumer, self.group_id(), self.within)?;
        Ok(session.map(|session| session.timeout_ms))
    }

    /// Returns every partition of the topic, with the id that the brokers report. Its rows may carry another name:
    /// [`LogView::id_of_rows`].
    ///
    /// # Errors
    /// Kafka does not answer in time, or the topic does not exist.
    pub fn sources(&self) -> KafkaResult<Vec<Source>> {
        let topic_id = topic::topic_id(&self.consumer, self.topic(), self.within)?;
        let metadata = self.consumer.fetch_metadata(Some(self.topic()), self.within)?;
        let partitions = metadata.topics().first().map(|topic| topic.partitions()).unwrap_or_default();
        let mut numbers: Vec<i32> = partitions.iter().map(|partition| partition.id()).collect();
        numbers.sort_unstable();
        let source = |partition| Source {
            cluster: String::new(),
            topic: self.topic().to_owned(),
            topic_id: topic_id.clone(),
            partition,
        };
        Ok(numbers.into_iter().map(source).collect())
    }

    /// Returns only the committed offset of one partition.
    ///
    /// # Errors
    /// Kafka does not answer in time, or answers with an error.
    pub fn committed(&self, source: &Source) -> KafkaResult<Option<Committed>> {
        offsets::committed(&self.consumer, self.topic(), source.partition, self.within)
    }

    /// Reads the committed offset of one partition, then the log's bounds.
    ///
    /// # Errors
    /// Kafka does not answer in time, or answers with an error.
    pub fn log_view(&self, source: &Source) -> KafkaResult<LogView> {
        offsets::log_view(&self.consumer, self.topic(), &source.topic_id, source.partition, self.within)
    }

    /// Returns the real end of each partition, also behind open transactions. A partition whose end is not reported is missing.
    pub fn ends(&self, sources: &[Source]) -> BTreeMap<i32, u64> {
        let partitions: Vec<i32> = sources.iter().map(|source| source.partition).collect();
        held_back::ends(&self.consumer, self.topic(), &partitions, self.within).unwrap_or_else(|error| {
            tracing::debug!("the log's real ends cannot be asked for: {error}");
            BTreeMap::new()
        })
    }

    /// Returns the records that open transactions hold back, by [`Observer::ends`] and by the last stable offsets. The stable
    /// offsets were read after the ends.
    pub fn held_back(&self, ends: &BTreeMap<i32, u64>, stable: &BTreeMap<i32, u64>) -> BTreeMap<i32, HeldBack> {
        held_back::of(&self.config, ends, stable, self.within)
    }

    /// Returns the first offset whose record is not older than `timestamp_ms`; `None` if all are older.
    ///
    /// # Errors
    /// Kafka does not answer in time, or answers with an error.
    pub fn offset_at(&self, partition: i32, timestamp_ms: i64) -> KafkaResult<Option<u64>> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(self.topic(), partition, Offset::Offset(timestamp_ms))?;
        let list = self.consumer.offsets_for_times(list, self.within)?;
        Ok(match list.find_partition(self.topic(), partition).map(|element| element.offset()) {
            Some(Offset::Offset(offset)) => u64::try_from(offset).ok(),
            _ => None,
        })
    }

    /// Passes every committed record of a range to `visit`, in order, until `deadline`.
    ///
    /// # Errors
    /// Kafka does not answer, or answers with an error.
    pub fn look(
        &self,
        partition: i32,
        range: OffsetRange,
        deadline: Instant,
        visit: &mut dyn FnMut(Record<'_>),
    ) -> KafkaResult<ScanEnd> {
        let start = i64::try_from(range.start).map_err(|_| KafkaError::Seek("offset too large".to_owned()))?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(self.topic(), partition, Offset::Offset(start))?;
        self.consumer.assign(&list)?;
        let look = self.read(range, deadline, visit);
        self.consumer.unassign()?;
        look
    }

    fn read(&self, range: OffsetRange, deadline: Instant, visit: &mut dyn FnMut(Record<'_>)) -> KafkaResult<ScanEnd> {
        let mut next = range.start;
        while next < range.end {
            if Instant::now() > deadline {
                return Ok(ScanEnd::TimeUp(next));
            }
            let message = match self.consumer.poll(POLL_INTERVAL) {
                None => continue,
                Some(Ok(message)) => message,
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(ScanEnd::Done),
                Some(Err(error)) if is_gone(&error) => return Ok(ScanEnd::Gone),
                // Connections come and go. The deadline bounds the wait.
                Some(Err(error)) if is_passing(&error) => continue,
                Some(Err(error)) => return Err(error),
            };
            let offset = message.offset().max(0).unsigned_abs();
            if (next..range.end).contains(&offset) {
                let timestamp_ms = message.timestamp().to_millis();
                visit(Record { offset, timestamp_ms, payload: message.payload() });
            }
            next = next.max(offset + 1);
        }
        Ok(ScanEnd::Done)
    }
}

fn is_gone(error: &KafkaError) -> bool {
    // `auto.offset.reset=error` turns an offset that is gone into the second of these.
    matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::OffsetOutOfRange | RDKafkaErrorCode::AutoOffsetReset))
}

/// True if the error belongs to a connection that comes and goes.
pub fn is_passing(error: &KafkaError) -> bool {
    matches!(
        super::code(error),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
        )
    )
}

/// Judges an answer of [`Observer::may_write`].
///
/// # Errors
/// Returns the fault of the dead-letter topic, and the remedy.
pub fn describe_dead_letter_error(topic: &str, may_write: KafkaResult<Option<bool>>) -> Result<(), Advice> {
    let what = match may_write {
        Ok(Some(false)) => "may not be written to by this user".to_owned(),
        Ok(_) => return Ok(()),
        Err(error) => format!("cannot be looked at: {error}"),
    };
    Err(Advice::new(
        format!("the dead-letter topic {topic} {what}: each partition with a rejected record waits for it"),
        "Create it, allow this user Describe and Write on it, or set kafka.topics.dead_letter",
    ))
}
