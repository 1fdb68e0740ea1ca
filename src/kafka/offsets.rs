//! Committed offsets with their metadata, and the log's bounds. All calls block. Each has a timeout.

use super::consumer::Consumer;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use std::time::Duration;
use tallyhouse_core::protocol::{Committed, LogView};

/// Returns the group's committed offset of a partition, with its metadata byte for byte.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error.
pub fn committed(consumer: &Consumer, topic: &str, partition: i32, within: Duration) -> KafkaResult<Option<Committed>> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, partition);
    let list = consumer.committed_offsets(list, within).map_err(|error| match error {
        KafkaError::MetadataFetch(code) => KafkaError::OffsetFetch(code),
        other => other,
    })?;
    let pointer = list.ptr();
    // SAFETY: `pointer` is the list's own and lives as long as `list`. Its `cnt` elements lie at `elems`; `metadata` is null
    // or points to `metadata_size` bytes. The crate's accessor is not used as it panics on bytes that are not UTF-8.
    let (error, offset, metadata) = unsafe {
        if (*pointer).cnt != 1 {
            return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition));
        }
        let element = &*(*pointer).elems;
        let metadata = match element.metadata.is_null() {
            true => Vec::new(),
            false => std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size).to_vec(),
        };
        (element.err, element.offset, metadata)
    };
    if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Err(KafkaError::OffsetFetch(error.into()));
    }
    Ok(u64::try_from(offset).ok().map(|offset| Committed { offset, metadata }))
}

/// Commits an offset with its metadata, with the generation of the member, and waits for the answer.
///
/// # Errors
/// The commit failed, or its outcome is unknown.
pub fn commit(consumer: &Consumer, topic: &str, partition: i32, wanted: &Committed) -> KafkaResult<()> {
    let unusable = || KafkaError::ConsumerCommit(RDKafkaErrorCode::InvalidArgument);
    let offset = i64::try_from(wanted.offset).map_err(|_| unusable())?;
    let metadata = std::str::from_utf8(&wanted.metadata).map_err(|_| unusable())?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    list.find_partition(topic, partition).ok_or_else(unusable)?.set_metadata(metadata);
    consumer.commit(&list, CommitMode::Sync)
}

/// Returns the state of a partition of the topic with this id. It reads the committed offset first and then the bounds, which are
/// so never the older ones.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error.
pub fn log_view(
    consumer: &Consumer,
    topic: &str,
    topic_id: String,
    partition: i32,
    within: Duration,
) -> KafkaResult<LogView> {
    let committed = committed(consumer, topic, partition, within)?;
    let (low, high) = bounds(consumer, topic, partition, within)?;
    // librdkafka knows it after the first metadata.
    let cluster_id = consumer.client().fetch_cluster_id(within).unwrap_or_default();
    Ok(LogView { committed, topic_id, ids_of_rows: Vec::new(), cluster_id, low, high })
}

/// Returns the first offset of the log and one past its last.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error.
pub fn bounds(consumer: &Consumer, topic: &str, partition: i32, within: Duration) -> KafkaResult<(u64, u64)> {
    let (low, high) = consumer.fetch_watermarks(topic, partition, within)?;
    Ok((low.max(0).unsigned_abs(), high.max(0).unsigned_abs()))
}
