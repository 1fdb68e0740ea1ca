//! What chaos asks of Kafka besides producing: topics, offsets, retention, partitions. All calls block.

use super::AnyError;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a broker that is away, or an election, is waited for.
const PATIENCE: Duration = Duration::from_secs(90);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// One topic with one consumer group, asked directly and not through a proxy.
pub struct Topic {
    name: String,
    config: ClientConfig,
    admin: AdminClient<DefaultClientContext>,
    /// Never subscribes: it only asks.
    asker: BaseConsumer,
    runtime: Runtime,
}

impl Topic {
    /// Creates the topic with three replicas, of which two must have what is acknowledged. The group has its name.
    pub fn create(bootstrap: &str, name: &str, partitions: i32) -> Result<Topic, AnyError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("group.id", name);
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        let (admin, asker) = (config.create()?, config.create()?);
        let topic = Topic { name: name.to_owned(), config, admin, asker, runtime };
        let wanted = NewTopic::new(name, partitions, TopicReplication::Fixed(3)).set("min.insync.replicas", "2");
        patiently(|| {
            let created = topic.runtime.block_on(topic.admin.create_topics([&wanted], &options()))?;
            match created.into_iter().next().ok_or("no answer")? {
                // An attempt before may have been carried out without our hearing of it.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => Ok(()),
                Err((_, code)) => Err(code.into()),
            }
        })?;
        Ok(topic)
    }

    /// How many partitions it has.
    pub fn partitions(&self) -> Result<i32, AnyError> {
        let metadata = patiently(|| Ok(self.asker.fetch_metadata(Some(&self.name), TIMEOUT)?))?;
        let topic = metadata.topics().first().ok_or("the topic is gone")?;
        Ok(i32::try_from(topic.partitions().len())?)
    }

    /// First offset and one past the last, of a partition.
    pub fn bounds(&self, partition: i32) -> Result<(i64, i64), AnyError> {
        patiently(|| Ok(self.asker.fetch_watermarks(&self.name, partition, TIMEOUT)?))
    }

    /// The group's committed offset of each partition that has one.
    pub fn committed(&self) -> Result<Vec<(i32, i64)>, AnyError> {
        let mut list = TopicPartitionList::new();
        list.add_partition_range(&self.name, 0, self.partitions()? - 1);
        let list = patiently(|| Ok(self.asker.committed_offsets(list.clone(), TIMEOUT)?))?;
        let elements = list.elements();
        let committed = elements.iter().filter_map(|one| Some((one.partition(), one.offset().to_raw()?)));
        Ok(committed.filter(|(_, offset)| *offset >= 0).collect())
    }

    /// Deletes the records below these offsets.
    pub fn delete_below(&self, offsets: &[(i32, i64)]) -> Result<(), AnyError> {
        let mut list = TopicPartitionList::new();
        for &(partition, offset) in offsets {
            list.add_partition_offset(&self.name, partition, Offset::Offset(offset))?;
        }
        patiently(|| {
            // A client that knew another leader goes on asking that one.
            let admin: AdminClient<DefaultClientContext> = self.config.create()?;
            let deleted = self.runtime.block_on(admin.delete_records(&list, &options()))?;
            deleted.elements().iter().try_for_each(|one| Ok(one.error()?))
        })
    }

    /// Raises the number of partitions to this.
    pub fn raise_partitions(&self, count: i32) -> Result<(), AnyError> {
        let wanted = NewPartitions::new(&self.name, usize::try_from(count)?);
        patiently(|| {
            if self.partitions()? >= count {
                return Ok(());
            }
            let raised = self.runtime.block_on(self.admin.create_partitions([&wanted], &options()))?;
            Ok(raised.into_iter().next().ok_or("no answer")?.map(drop).map_err(|(_, code)| code)?)
        })
    }

    /// Deletes the topic.
    pub fn delete(&self) -> Result<(), AnyError> {
        patiently(|| Ok(self.runtime.block_on(self.admin.delete_topics(&[&self.name], &options())).map(drop)?))
    }
}

/// Asks again while brokers are away.
fn patiently<T>(ask: impl Fn() -> Result<T, AnyError>) -> Result<T, AnyError> {
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
