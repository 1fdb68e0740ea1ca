//! Chaos's requests to Kafka besides producing: topics, offsets, retention, partitions. All calls block.

use super::AnyError;
use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a broker that is away, or for an election.
const PATIENCE: Duration = Duration::from_secs(90);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// A batch that a committed offset announces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announced {
    /// One past its last offset.
    pub end: i64,
    /// Number of its records.
    pub records: u64,
    /// Id of its group, if it has one.
    pub group: Option<u128>,
}

impl Announced {
    /// Reads the batch that the metadata names. The metadata of an end names none.
    fn read(metadata: &str) -> Option<Announced> {
        let word = |name: &str| metadata.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        let number = |name: &str| word(name)?.parse::<i64>().ok();
        let records = number("rows")? + number("rejects")?;
        let group = word("group").and_then(|id| u128::from_str_radix(id, 16).ok());
        Some(Announced { end: number("end")?, records: records.unsigned_abs(), group })
    }
}

/// One topic with one consumer group. Its questions go directly to Kafka and not through a proxy.
pub struct Topic {
    name: String,
    config: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
    /// The client for questions. It never subscribes.
    asker: BaseConsumer,
    runtime: Runtime,
}

impl Topic {
    /// Creates the topic with three replicas, of which two must have each acknowledged record. The group has its
    /// name.
    pub fn create(bootstrap: &str, name: &str, partitions: i32) -> Result<Topic, AnyError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("group.id", name);
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let (admin, asker) = (config.create()?, config.create()?);
        let topic = Topic { name: name.to_owned(), config, admin, asker, runtime };
        let wanted = NewTopic::new(name, partitions, TopicReplication::Fixed(3)).set("min.insync.replicas", "2");
        retry_until(|| {
            let created = topic.runtime.block_on(topic.admin.create_topics([&wanted], &options()))?;
            match created.into_iter().next().ok_or("no answer")? {
                // An earlier attempt may have succeeded although its answer was lost.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => Ok(()),
                Err((_, code)) => Err(code.into()),
            }
        })?;
        Ok(topic)
    }

    /// Returns the number of partitions.
    pub fn partitions(&self) -> Result<i32, AnyError> {
        let metadata = self.ask(|asker| asker.fetch_metadata(Some(&self.name), TIMEOUT))?;
        let topic = metadata.topics().first().ok_or("the topic is gone")?;
        Ok(i32::try_from(topic.partitions().len())?)
    }

    /// Returns the first offset of a partition, and one past its last.
    pub fn bounds(&self, partition: i32) -> Result<(i64, i64), AnyError> {
        self.ask(|asker| asker.fetch_watermarks(&self.name, partition, TIMEOUT))
    }

    /// Asks the existing client, and a new one if that fails. After a broker's restart a client was seen to take a
    /// partition for unknown for 90 s.
    fn ask<T>(&self, question: impl Fn(&BaseConsumer) -> KafkaResult<T>) -> Result<T, AnyError> {
        retry_until(|| Ok(question(&self.asker).or_else(|_| question(&self.config.create()?))?))
    }

    /// Returns the group's committed offset of each partition that has one.
    pub fn committed(&self) -> Result<Vec<(i32, i64)>, AnyError> {
        Ok(self.announced()?.into_iter().map(|(partition, offset, _)| (partition, offset)).collect())
    }

    /// Returns the same, with the batch that the committed offset announces, if there is one.
    pub fn announced(&self) -> Result<Vec<(i32, i64, Option<Announced>)>, AnyError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.name, 0, self.partitions()? - 1);
        let list = self.ask(|asker| asker.committed_offsets(list.clone(), TIMEOUT))?;
        let mut committed = Vec::new();
        for one in list.elements() {
            if let Some(offset) = one.offset().to_raw().filter(|offset| *offset >= 0) {
                committed.push((one.partition(), offset, Announced::read(one.metadata())));
            }
        }
        Ok(committed)
    }

    /// Commits the offset of a partition without metadata, once the group has no members any more.
    /// `kafka-consumer-groups.sh --reset-offsets` does the same.
    pub fn reset_offset(&self, partition: i32, offset: i64) -> Result<(), AnyError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(offset))?;
        retry_until(|| Ok(self.config.create::<BaseConsumer>()?.commit(&list, CommitMode::Sync)?))
    }

    /// Sets the maximum size of a batch of the topic.
    pub fn limit_batches(&self, bytes: u64) -> Result<(), AnyError> {
        let bytes = bytes.to_string();
        retry_until(|| {
            // Unnamed settings fall back to their defaults.
            let change = AlterConfig::new(ResourceSpecifier::Topic(&self.name)).set("min.insync.replicas", "2");
            let change = change.set("max.message.bytes", &bytes);
            let altered = self.runtime.block_on(self.admin.alter_configs(&[change], &options()))?;
            Ok(altered.into_iter().next().ok_or("no answer")?.map(drop).map_err(|(_, code)| code)?)
        })
    }

    /// Reads a partition from `from` up to and without `to`, as a consumer of committed records sees it. `last` is an
    /// offset that is seen for sure. If a broker reports an end of the log before it, the end is not believed.
    pub fn read(
        &self,
        partition: i32,
        from: i64,
        to: i64,
        last: i64,
        mut visit: impl FnMut(&BorrowedMessage<'_>),
    ) -> Result<(), AnyError> {
        let mut config = self.config.clone();
        config.set("enable.partition.eof", "true").set("enable.auto.commit", "false");
        config.set("isolation.level", "read_committed").set("auto.offset.reset", "earliest");
        let reader: BaseConsumer = config.create()?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.name, partition, Offset::Offset(from))?;
        reader.assign(&list)?;
        let deadline = Instant::now() + PATIENCE;
        let mut seen = from - 1;
        while Instant::now() < deadline {
            match reader.poll(RETRY_INTERVAL) {
                Some(Ok(message)) if message.offset() >= to => return Ok(()),
                Some(Ok(message)) => {
                    seen = message.offset();
                    visit(&message);
                }
                Some(Err(KafkaError::PartitionEOF(_))) if seen >= last => return Ok(()),
                Some(Err(_)) | None => {}
            }
            if seen + 1 >= to {
                return Ok(());
            }
        }
        Err(format!("{}/{partition} could not be read from {from} to {to} in {PATIENCE:?}", self.name).into())
    }

    /// Deletes the records below these offsets.
    pub fn delete_below(&self, offsets: &[(i32, i64)]) -> Result<(), AnyError> {
        let mut list = TopicPartitionList::new();
        for &(partition, offset) in offsets {
            list.add_partition_offset(&self.name, partition, Offset::Offset(offset))?;
        }
        retry_until(|| {
            // A client that knew another leader would go on asking that one.
            let admin: AdminClient<DefaultClientContext> = self.config.create()?;
            let deleted = self.runtime.block_on(admin.delete_records(&list, &options()))?;
            deleted.elements().iter().try_for_each(|one| Ok(one.error()?))
        })
    }

    /// Raises the number of partitions to this.
    pub fn raise_partitions(&self, count: i32) -> Result<(), AnyError> {
        let wanted = NewPartitions::new(&self.name, usize::try_from(count)?);
        retry_until(|| {
            if self.partitions()? >= count {
                return Ok(());
            }
            let raised = self.runtime.block_on(self.admin.create_partitions([&wanted], &options()))?;
            Ok(raised.into_iter().next().ok_or("no answer")?.map(drop).map_err(|(_, code)| code)?)
        })
    }

    /// Deletes the topic, and tries again while that fails.
    pub fn delete(&self) -> Result<(), AnyError> {
        retry_until(|| Ok(self.runtime.block_on(self.admin.delete_topics(&[&self.name], &options())).map(drop)?))
    }
}

/// Asks again while brokers are away.
fn retry_until<T>(ask: impl Fn() -> Result<T, AnyError>) -> Result<T, AnyError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask() {
            Err(_) if Instant::now() < deadline => std::thread::sleep(RETRY_INTERVAL),
            answer => return answer,
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT * 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_announcement_announces() {
        let announced = Announced::read("tallyhouse/1 topic=abc end=70 rows=55 rejects=5");
        assert_eq!(announced, Some(Announced { end: 70, records: 60, group: None }));
        let in_group = Announced::read("tallyhouse/2 end=70 rows=55 rejects=5 group=000000000000000000000000000000ff");
        assert_eq!(in_group.and_then(|announced| announced.group), Some(255));
        assert_eq!(Announced::read("tallyhouse/1 topic=abc"), None);
        assert_eq!(Announced::read(""), None);
    }
}
