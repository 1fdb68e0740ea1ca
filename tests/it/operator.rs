//! The manual steps of an operator on the log, the committed offset and the tables, with the commands that
//! `docs/stops/` names.

use crate::service::{Bench, await_http, http, kafka};
use devstack::producer::create_topic;
use devstack::{Server, kafka as broker};
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use std::ops::Range;
use std::time::{Duration, Instant};
use tallyhouse_core::protocol::intent::Metadata;

const DEADLINE: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);

pub fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", kafka()).create().unwrap()
}

pub fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))
}

/// Changes one setting of a topic.
pub async fn alter_topic(topic: &str, name: &str, value: &str) {
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set(name, value);
    admin().alter_configs(&[change], &options()).await.unwrap().remove(0).unwrap();
}

/// A batch that a dead member left announced.
#[derive(Debug, Clone)]
pub struct OpenBatch {
    pub partition: i32,
    pub start: u64,
    pub end: u64,
    pub metadata: String,
}

impl Bench {
    fn simple_consumer(&self) -> BaseConsumer {
        ClientConfig::new().set("bootstrap.servers", kafka()).set("group.id", &self.topic).create().unwrap()
    }

    /// Returns the group's committed offset of a partition, with its metadata.
    pub fn committed(&self, partition: i32) -> Option<(u64, String)> {
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic, partition);
        let list = self.simple_consumer().committed_offsets(list, KAFKA_TIMEOUT).unwrap();
        let element = list.find_partition(&self.topic, partition).unwrap();
        let offset = element.offset().to_raw().and_then(|offset| u64::try_from(offset).ok())?;
        Some((offset, element.metadata().to_owned()))
    }

    /// Waits until the committed offsets of these partitions sum up to `records`. The lag gauge of a partition may still rest on the
    /// log as it was at the assignment.
    pub async fn await_committed(&self, partitions: Range<i32>, records: u64, member: &Server) {
        let deadline = Instant::now() + DEADLINE;
        let committed = |partition| self.committed(partition).map_or(0, |(offset, _)| offset);
        while partitions.clone().map(committed).sum::<u64>() < records {
            assert!(Instant::now() < deadline, "{records} records are not committed: {}", member.stderr());
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Returns the batches that are announced and not committed.
    pub fn open_batches(&self, partitions: i32) -> Vec<OpenBatch> {
        let open = |partition| {
            let (start, metadata) = self.committed(partition)?;
            let (end, _) = Metadata::decode(metadata.as_bytes()).unwrap()?.next?;
            Some(OpenBatch { partition, start, end, metadata })
        };
        (0..partitions).filter_map(open).collect()
    }

    /// Commits any offset with any metadata, as soon as the group has no members any more.
    pub async fn commit_by_hand(&self, partition: i32, offset: u64, metadata: &[u8]) {
        // SAFETY: bytes that are not UTF-8 are never read as text: `set_metadata` copies the bytes.
        let metadata = unsafe { std::str::from_utf8_unchecked(metadata) };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&self.topic, partition, Offset::Offset(offset as i64)).unwrap();
        list.find_partition(&self.topic, partition).unwrap().set_metadata(metadata);
        let consumer = self.simple_consumer();
        let deadline = Instant::now() + DEADLINE;
        while let Err(error) = consumer.commit(&list, CommitMode::Sync) {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Runs `kafka-consumer-groups.sh` for this group, as soon as the group has no members any more.
    pub async fn consumer_groups(&self, arguments: &[&str]) {
        let arguments = [&["--bootstrap-server", kafka(), "--group", &self.topic], arguments].concat();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let printed = broker::tool("org.apache.kafka.tools.consumer.group.ConsumerGroupCommand", &arguments);
            // The tool ends with 0 whatever it prints.
            let printed = printed.unwrap_or_else(|error| error.to_string());
            if !printed.contains("Error") && !printed.contains("is not empty") {
                return;
            }
            assert!(Instant::now() < deadline, "{arguments:?}: {printed}");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Runs `--delete-offsets` for these partitions (`0,2`).
    pub async fn delete_offsets(&self, partitions: &str) {
        self.consumer_groups(&["--delete-offsets", "--topic", &format!("{}:{partitions}", self.topic)]).await;
    }

    /// Runs `tallyhouse resume --yes` for these partitions (`0,2`), as soon as the group has no members any more.
    pub async fn resume(&self, partitions: &str, choice: &str) -> String {
        let arguments = ["resume", "--partition", partitions, choice, "--yes"];
        let deadline = Instant::now() + DEADLINE;
        loop {
            let (status, printed, error) = self.run(&arguments, &[]);
            if status == Some(0) {
                return printed;
            }
            let has_members = error.contains("end all of them with SIGTERM first");
            assert!(has_members && Instant::now() < deadline, "{arguments:?}: {printed}{error}");
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Gives the rows and counters of a partition another topic id, or none, as if they were of another log or of an
    /// older broker.
    pub async fn rename_rows(&self, partition: i32, topic_id: &str) {
        let old = self.source(partition).await;
        let id = if topic_id.is_empty() { String::new() } else { format!("@{topic_id}") };
        let new = format!("{}/{partition}{id}", self.topic);
        for table in ["email_events", "rejected_events", "daily"] {
            let all =
                format!("SELECT * REPLACE ('{new}' AS source) FROM (SELECT * FROM {table} WHERE source = '{old}')");
            self.execute(&format!("INSERT INTO {table} {all}")).await;
            self.execute(&format!("DELETE FROM {table} WHERE source = '{old}'")).await;
        }
    }

    pub async fn delete_records(&self, partition: i32, before: u64) {
        let mut gone = TopicPartitionList::new();
        gone.add_partition_offset(&self.topic, partition, Offset::Offset(before as i64)).unwrap();
        admin().delete_records(&gone, &options()).await.unwrap();
    }

    /// Deletes the topic and makes it again, with another topic id.
    pub async fn recreate_topic(&self, partitions: i32) {
        admin().delete_topics(&[&self.topic], &options()).await.unwrap();
        while matches!(create_topic(kafka(), &self.topic, partitions), Err(KafkaError::AdminOp(_))) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Returns the text of the `source` column of a partition, from the tables.
    pub async fn source(&self, partition: i32) -> String {
        let sql = format!("SELECT DISTINCT source FROM email_events WHERE source LIKE '{}/{partition}@%'", self.topic);
        let sources: Vec<String> = self.client.query(&sql).rows().await.unwrap();
        assert_eq!(sources.len(), 1, "{sources:?}");
        sources[0].clone()
    }

    /// Counts the rows of a batch that will never be completed, where they are not counted yet: the statement of `docs/stops/`.
    pub async fn count_leftovers(&self, source: &str, start: u64, end: u64) {
        let page = include_str!("../../docs/stops/intent_gone.md");
        let sql =
            page.split("```sql").filter_map(|part| part.split("```").next()).find(|sql| sql.contains("INSERT INTO"));
        let sql = sql.unwrap().replace("<source>", source).replace("<start>", &start.to_string());
        self.execute(sql.replace("<end>", &end.to_string()).trim().trim_end_matches(';')).await;
    }

    /// Starts a member that dies at a fail point, and returns the batch it had under way there. `applied` finds that
    /// batch in the tables (SQL for a count of rows, `{source}` and `{end}` filled in).
    pub async fn die_at(&self, point: &str, applied: &str, partitions: i32) -> OpenBatch {
        let member = self.die(&[("TALLYHOUSE_FAILPOINT", point)]);
        for batch in self.open_batches(partitions) {
            let OpenBatch { partition, start, end, .. } = batch;
            let source = format!("source LIKE '{}/{partition}@%'", self.topic);
            let sql = applied.replace("{source}", &source).replace("{end}", &end.to_string());
            if self.count(&sql.replace("{start}", &start.to_string())).await > 0 {
                return batch;
            }
        }
        panic!("no open batch for {applied}: {:?}\n{}", self.open_batches(partitions), member.stderr());
    }
}

/// The batch is announced and nothing of it is in the tables.
pub const ANNOUNCED: &str =
    "SELECT toUInt64(count() = 0) FROM email_events WHERE {source} AND source_offset >= {start}";
/// Its rows are in `email_events` and its counters are not in `daily`.
pub const HALF_APPLIED: &str = "SELECT count() FROM email_events WHERE {source} AND source_offset >= {start} \
     AND (SELECT max(end_offset) FROM daily WHERE {source}) < {end}";
/// Its counters, which are written last, are in `daily`.
pub const APPLIED: &str = "SELECT count() FROM daily WHERE {source} AND end_offset >= {end}";

/// Waits until partitions have stopped for this reason (several, where a kill left several batches open). Then checks
/// that all reports of the stop name its page.
pub async fn await_stop(member: &Server, code: &str, text: &str) {
    await_http(member, "/readyz", text).await;
    await_http(member, "/readyz", &format!("Step by step: `tallyhouse explain {code}`")).await;
    let gauge = format!("tallyhouse_stopped_partitions{{reason=\"{code}\",");
    await_http(member, "/metrics", &gauge).await;
    let metrics = http(member, "/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with(&gauge));
    let stopped = line.and_then(|line| line.rsplit(' ').next()?.parse::<u32>().ok());
    assert!(stopped >= Some(1), "{metrics}");
    let log = member.stderr();
    assert!(log.contains("partition stopped") && log.contains(&format!("tallyhouse explain {code}")), "{log}");
}
