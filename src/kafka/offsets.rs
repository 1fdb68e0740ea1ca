//! Committed offsets with their metadata, and the log's bounds, of one partition or of many by one request. All calls block. Each
//! has a timeout.

use super::consumer::Consumer;
use super::native;
use rdkafka::bindings as c;
use rdkafka::consumer::{CommitMode, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{Offset, TopicPartitionList};
use std::collections::BTreeMap;
use std::time::Duration;
use tallyhouse_core::protocol::{Committed, LogView};

/// Error of a partition whose leader gave no answer in time.
const NOT_ANSWERED: KafkaError = KafkaError::MetadataFetch(RDKafkaErrorCode::OperationTimedOut);

/// Answers for some partitions. The error of one says nothing about the others.
pub type Answers<T> = BTreeMap<i32, KafkaResult<T>>;

/// Returns the group's committed offset of a partition, with its metadata byte for byte.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error.
pub fn committed(consumer: &Consumer, topic: &str, partition: i32, within: Duration) -> KafkaResult<Option<Committed>> {
    committed_of(consumer, topic, &[partition], within)?.remove(&partition).unwrap_or(Err(NOT_ANSWERED))
}

/// As [`committed`], with one request for all these partitions.
///
/// # Errors
/// The group's coordinator does not answer in time, or answers with an error.
pub fn committed_of(
    consumer: &Consumer,
    topic: &str,
    partitions: &[i32],
    within: Duration,
) -> KafkaResult<Answers<Option<Committed>>> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for &partition in partitions {
        list.add_partition(topic, partition);
    }
    let list = consumer.committed_offsets(list, within).map_err(|error| match error {
        KafkaError::MetadataFetch(code) => KafkaError::OffsetFetch(code),
        other => other,
    })?;
    // SAFETY: the pointer is the list's own and lives as long as `list`. Its `cnt` elements lie at `elems`, which is null for
    // none.
    let elements = unsafe {
        let found = &*list.ptr();
        match usize::try_from(found.cnt) {
            Ok(count @ 1..) => std::slice::from_raw_parts(found.elems, count),
            _ => &[],
        }
    };
    Ok(elements.iter().map(|element| (element.partition, committed_in(element))).collect())
}

fn committed_in(element: &c::rd_kafka_topic_partition_t) -> KafkaResult<Option<Committed>> {
    native::check(element.err).map_err(KafkaError::OffsetFetch)?;
    let metadata = match element.metadata.is_null() {
        true => Vec::new(),
        // SAFETY: `metadata` points to `metadata_size` bytes of the element. The crate's accessor is not used as it panics on
        // bytes that are not UTF-8.
        false => unsafe { std::slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size).to_vec() },
    };
    Ok(u64::try_from(element.offset).ok().map(|offset| Committed { offset, metadata }))
}

/// Commits offsets with their metadata by one request, with the generation of the member, and waits for the answer.
///
/// # Errors
/// The commit failed for some of them, or its outcome is unknown.
pub fn commit(consumer: &Consumer, topic: &str, wanted: &[(i32, &Committed)]) -> KafkaResult<()> {
    let unusable = || KafkaError::ConsumerCommit(RDKafkaErrorCode::InvalidArgument);
    let mut list = TopicPartitionList::with_capacity(wanted.len());
    for (partition, wanted) in wanted {
        let offset = i64::try_from(wanted.offset).map_err(|_| unusable())?;
        let metadata = std::str::from_utf8(&wanted.metadata).map_err(|_| unusable())?;
        list.add_partition_offset(topic, *partition, Offset::Offset(offset))?;
        list.find_partition(topic, *partition).ok_or_else(unusable)?.set_metadata(metadata);
    }
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
    topic_id: &str,
    partition: i32,
    within: Duration,
) -> KafkaResult<LogView> {
    let mut views = log_views(consumer, topic, topic_id, &[partition], within)?;
    views.remove(&partition).unwrap_or(Err(NOT_ANSWERED))
}

/// As [`log_view`], with one request for the committed offsets of all these partitions, and two to each of their leaders.
///
/// # Errors
/// No partition has an answer: Kafka does not answer in time, or answers with an error.
pub fn log_views(
    consumer: &Consumer,
    topic: &str,
    topic_id: &str,
    partitions: &[i32],
    within: Duration,
) -> KafkaResult<Answers<LogView>> {
    let committed = committed_of(consumer, topic, partitions, within)?;
    // The bounds are those of a reader of committed records, as members are. The log only grows, so `low` is asked for first.
    let isolation = c::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED;
    let mut lows = list(consumer, topic, partitions, Offset::Beginning, isolation, within)?;
    let mut highs = list(consumer, topic, partitions, Offset::End, isolation, within)?;
    // librdkafka knows it after the first metadata.
    let cluster_id = consumer.client().fetch_cluster_id(within).unwrap_or_default();
    let mut view = |partition, committed: KafkaResult<Option<Committed>>| {
        let committed = committed?;
        let low = lows.remove(&partition).unwrap_or(Err(NOT_ANSWERED))?;
        let high = highs.remove(&partition).unwrap_or(Err(NOT_ANSWERED))?;
        let (topic_id, cluster_id) = (topic_id.to_owned(), cluster_id.clone());
        Ok(LogView { committed, topic_id, ids_of_rows: Vec::new(), cluster_id, low, high })
    };
    Ok(committed.into_iter().map(|(partition, committed)| (partition, view(partition, committed))).collect())
}

/// Returns the first offset of each partition's log ([`Offset::Beginning`]), or one past its last ([`Offset::End`]). Each leader gets
/// one request (`rd_kafka_ListOffsets`, which rust-rdkafka does not have), and the answer waits for half of `within` at most.
///
/// # Errors
/// No partition has an answer: Kafka does not answer in time, or answers with an error.
pub fn list(
    consumer: &Consumer,
    topic: &str,
    partitions: &[i32],
    at: Offset,
    isolation: c::rd_kafka_IsolationLevel_t,
    within: Duration,
) -> KafkaResult<Answers<u64>> {
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for &partition in partitions {
        list.add_partition_offset(topic, partition, at)?;
    }
    let client = consumer.client().native_ptr();
    let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
    // SAFETY: `client` lives as long as `consumer`, and `list` until the answer is read. The infos belong to the event.
    let answers = unsafe {
        let send = |options: *const c::rd_kafka_AdminOptions_t, queue| {
            let error = c::rd_kafka_AdminOptions_set_isolation_level(options.cast_mut(), isolation);
            drop(native::Owned(error, c::rd_kafka_error_destroy));
            c::rd_kafka_ListOffsets(client, list.ptr(), options, queue);
        };
        native::ask(client, operation, within, send, |event| {
            let mut count = 0;
            let result = c::rd_kafka_event_ListOffsets_result(event);
            let infos = c::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
            let answer = |index| {
                let found = &*c::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(index));
                let offset = native::check(found.err).map_err(KafkaError::MetadataFetch);
                // A leader that gave no answer leaves neither an error nor an offset.
                (found.partition, offset.and_then(|()| u64::try_from(found.offset).map_err(|_| NOT_ANSWERED)))
            };
            Ok((0..count).map(answer).collect())
        })
    };
    answers.map_err(|code| match code {
        RDKafkaErrorCode::NoEnt => KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownPartition),
        code => KafkaError::MetadataFetch(code),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};
    use crate::kafka::{observer, retry_until};
    use rdkafka::config::ClientConfig;
    use rdkafka::mocking::{MockCluster, MockCoordinator};
    use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};

    const WITHIN: Duration = Duration::from_secs(10);

    /// Four partitions have leaders in turn. Then one of the two brokers goes away.
    #[test]
    fn one_request_tells_all_partitions_but_those_of_a_leader_that_is_away() {
        let cluster = MockCluster::new(2).unwrap();
        cluster.create_topic("t", 4, 1).unwrap();
        (0..4).for_each(|partition| cluster.partition_leader("t", partition, Some(1 + partition % 2)).unwrap());
        cluster.coordinator(MockCoordinator::Group("clickhouse-writer".to_owned()), 1).unwrap();
        let brokers = cluster.bootstrap_servers();
        let producer: ThreadedProducer<DefaultProducerContext> =
            ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        for partition in 0..4 {
            (0..=partition)
                .for_each(|_| producer.send(BaseRecord::<(), _>::to("t").partition(partition).payload("x")).unwrap());
        }
        producer.flush(WITHIN).unwrap();
        let flags = vec![format!("kafka.brokers={brokers}").parse().unwrap()];
        let config = config::load(&Sources { flags, ..Sources::default() }).unwrap().config;
        let consumer = observer::standalone_consumer(&config).unwrap();
        let wanted = Committed { offset: 1, metadata: b"i1 end=2".to_vec() };
        retry_until(WITHIN, || commit(&consumer, "t", &[(2, &wanted)])).unwrap();

        let views = log_views(&consumer, "t", "id", &[0, 1, 2, 3], WITHIN).unwrap();
        for (partition, view) in views {
            let view = view.unwrap();
            assert_eq!((view.low, view.high), (0, 1 + u64::try_from(partition).unwrap()));
            assert_eq!(view.committed, (partition == 2).then(|| wanted.clone()));
            assert_eq!(view, log_view(&consumer, "t", "id", partition, WITHIN).unwrap());
        }

        cluster.broker_down(2).unwrap();
        let views = log_views(&consumer, "t", "id", &[0, 1, 2, 3], WITHIN / 4).unwrap();
        let answered: Vec<i32> =
            views.into_iter().filter_map(|(partition, view)| view.ok().map(|_| partition)).collect();
        assert_eq!(answered, [0, 2]);
    }
}
