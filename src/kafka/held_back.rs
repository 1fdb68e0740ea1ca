//! Records that an open transaction holds back. They lie behind the last stable offset, at which a reader of committed records
//! ends.
//!
//! A member's bounds of the log end there as well. So this module requests the real end separately. Must never be used by a
//! member: its statistics have both offsets.

use super::consumer::{self, Consumer};
use super::observer::Nobody;
use super::offsets;
use crate::config::Config;
use crate::platform::clock::unix_ms;
use rdkafka::bindings as c;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

const UNCOMMITTED: &[(&str, &str)] = &[("isolation.level", "read_uncommitted")];

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Least credible timestamp, in ms: the year 2010. A record that seems to be older has a timestamp with another meaning.
const OLDEST_MS: i64 = 1_262_304_000_000;

/// Time after which an open transaction needs attention. It is the default of `transaction.timeout.ms` of producers.
const OPEN_MAX: Duration = Duration::from_secs(60);

/// The records behind the last stable offset of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBack {
    /// Offsets up to the real end of the log.
    pub offsets: u64,
    /// Time for which the transaction has been open, by the timestamp of its first record, if it is known.
    pub open_for: Option<Duration>,
}

impl HeldBack {
    /// Returns the time for which the transaction has been open, if that is too long.
    pub fn open_too_long(&self) -> Option<Duration> {
        self.open_for.filter(|&open_for| open_for >= OPEN_MAX)
    }
}

/// Returns the real end of each partition whose end a broker reports. Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error.
pub fn ends(consumer: &Consumer, topic: &str, partitions: &[i32], within: Duration) -> KafkaResult<BTreeMap<i32, u64>> {
    let uncommitted = c::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED;
    let ends = offsets::list(consumer, topic, partitions, Offset::End, uncommitted, within)?;
    Ok(ends.into_iter().filter_map(|(partition, end)| Some((partition, end.ok()?))).collect())
}

/// Returns the records held back in each partition, by its real end and by its last stable offset. The ends must have been read
/// first. Then a transaction was open at some moment in between. Blocks for at most `within`.
pub fn of(
    config: &Config,
    ends: &BTreeMap<i32, u64>,
    stable: &BTreeMap<i32, u64>,
    within: Duration,
) -> BTreeMap<i32, HeldBack> {
    let behind = |(partition, stable): (&i32, &u64)| Some((*partition, ends.get(partition)?.saturating_sub(*stable)));
    let held: BTreeMap<i32, u64> = stable.iter().filter_map(behind).collect();
    let open = stable.iter().filter(|(partition, _)| held.get(partition).is_some_and(|&offsets| offsets > 0));
    let first: BTreeMap<i32, u64> = open.map(|(&partition, &stable)| (partition, stable)).collect();
    let since_ms = first_ms(config, &first, within).unwrap_or_else(|error| {
        tracing::debug!("the first records of open transactions cannot be read: {error}");
        BTreeMap::new()
    });
    let open_for = |partition| {
        let since_ms = since_ms.get(partition).filter(|&&ms| ms >= OLDEST_MS)?;
        u64::try_from(unix_ms() - since_ms).ok().map(Duration::from_millis)
    };
    held.iter().map(|(n, &offsets)| (*n, HeldBack { offsets, open_for: open_for(n) })).collect()
}

/// Returns the timestamps of the first records from these offsets on, committed or not.
fn first_ms(config: &Config, offsets: &BTreeMap<i32, u64>, within: Duration) -> KafkaResult<BTreeMap<i32, i64>> {
    let mut found = BTreeMap::new();
    if offsets.is_empty() {
        return Ok(found);
    }
    let reader = consumer::create_with(config, Arc::new(Nobody), UNCOMMITTED)?;
    let mut list = TopicPartitionList::new();
    for (&partition, &offset) in offsets {
        let offset = i64::try_from(offset).map_err(|_| KafkaError::Seek("offset too large".to_owned()))?;
        list.add_partition_offset(&config.kafka.topics.events, partition, Offset::Offset(offset))?;
    }
    reader.assign(&list)?;
    let deadline = Instant::now() + within;
    while found.len() < offsets.len() && Instant::now() < deadline {
        if let Some(Ok(record)) = reader.poll(POLL_INTERVAL) {
            found.entry(record.partition()).or_insert(record.timestamp().to_millis().unwrap_or_default());
        }
    }
    Ok(found)
}
