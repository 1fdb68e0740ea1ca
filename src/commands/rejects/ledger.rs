//! The ledger: which rows have been replayed, kept in a compacted Kafka topic of one partition.
//!
//! Each of its records has the origin as its key. It is committed in the same transaction as its event: either both
//! are committed or none is. The newest record of a key stays permanently, so the ledger is complete as long as
//! nobody deletes it. Must never be read with doubt: a record that cannot be understood is refused, as skipping it
//! could replay a row twice.

use super::{Origin, RejectsError};
use crate::config::Config;
use crate::kafka::consumer::Consumer;
use crate::kafka::{self, observer};
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

/// Key of the record with which a replay signs the ledger before it reads it. No origin is written so.
pub(super) const SIGNATURE: &str = "replay";

/// Longest time without a record.
const SILENCE_MAX: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

const REMEDY: &str =
    "Find out who wrote it. To go on, write a tombstone for its key, and know that this row may be replayed again";

/// The result of a row's replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// Partition of the new record.
    pub partition: i32,
    /// Offset of the new record.
    pub offset: u64,
    /// Time of the replay, in milliseconds since 1970.
    pub at_ms: i64,
    /// True if it was replayed with other bytes than it had.
    pub fixed: bool,
}

/// All rows that were replayed.
#[derive(Clone, Debug, Default)]
pub struct Ledger(HashMap<String, BTreeMap<u64, Replayed>>);

/// The place up to which the ledger is read.
pub(super) enum Until {
    /// The record with which this replay has signed it. All that an earlier replay committed stands before it.
    Signature(String),
    /// The end of the committed records, as the broker sees it now.
    End,
}

impl Ledger {
    /// Returns the row's replay, if there was one.
    pub fn get(&self, origin: &Origin) -> Option<Replayed> {
        self.0.get(&origin.source)?.get(&origin.offset).copied()
    }

    /// Notes that the row of `origin` was replayed.
    pub(super) fn note(&mut self, origin: &Origin, replayed: Replayed) {
        self.0.entry(origin.source.clone()).or_default().insert(origin.offset, replayed);
    }

    /// Returns every source with the offsets of its replayed rows.
    pub(super) fn by_source(&self) -> impl Iterator<Item = (&str, impl Iterator<Item = u64>)> {
        self.0.iter().map(|(source, rows)| (source.as_str(), rows.keys().copied()))
    }

    /// Returns the number of replayed rows.
    pub fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }

    /// True if no row was replayed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes one record of the topic. A tombstone forgets the row; only an operator writes one.
    fn take(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), String> {
        let key = std::str::from_utf8(key).map_err(|_| "has a key that is no text".to_owned())?;
        if key == SIGNATURE {
            return Ok(());
        }
        let origin: Origin = key.parse().map_err(|()| format!("has a key that is not ours: {key:?}"))?;
        match value {
            Some(value) => {
                let replayed = serde_json::from_slice(value).map_err(|error| format!("cannot be read: {error}"))?;
                self.note(&origin, replayed);
            }
            None => {
                self.0.get_mut(&origin.source).map(|rows| rows.remove(&origin.offset));
            }
        }
        Ok(())
    }

    /// Reads the ledger; empty where there is no such topic. Blocks.
    ///
    /// # Errors
    /// Kafka does not answer in time; [`RejectsError::Ledger`] if it holds a record that is not understood.
    pub(super) fn read(config: &Config, until: &Until, within: Duration) -> Result<Ledger, RejectsError> {
        let topic = config.kafka.topics.replays();
        let failed = |error| RejectsError::Kafka {
            doing: "the ledger of replays cannot be read",
            error,
            remedy: "Check that the brokers run, and that this user may read the topic of kafka.topics.replays",
        };
        let consumer = observer::standalone_consumer(config).map_err(failed)?;
        let Some(partitions) = partitions(&consumer, &topic, until, within).map_err(failed)? else {
            return Ok(Ledger::default());
        };
        if partitions != 1 {
            let what = format!("has {partitions} partitions");
            let remedy = "It must have one: set kafka.topics.replays to another topic, which is made";
            return Err(RejectsError::Ledger { topic, what, remedy });
        }
        let bounds = kafka::retry_until(within, || consumer.fetch_watermarks(&topic, 0, within));
        let (low, _) = bounds.map_err(failed)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Offset(low)).map_err(failed)?;
        consumer.assign(&list).map_err(failed)?;
        let mut ledger = Ledger::default();
        let mut heard = Instant::now();
        loop {
            match consumer.poll(POLL_INTERVAL) {
                None | Some(Err(KafkaError::PartitionEOF(_))) if heard.elapsed() > SILENCE_MAX => {
                    return Err(failed(KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut)));
                }
                None => {}
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    if matches!(until, Until::End) {
                        return Ok(ledger);
                    }
                }
                Some(Err(error)) if observer::is_passing(&error) && heard.elapsed() < SILENCE_MAX => {}
                Some(Err(error)) => return Err(failed(error)),
                Some(Ok(message)) => {
                    heard = Instant::now();
                    let (key, value) = (message.key().unwrap_or_default(), message.payload());
                    if let Until::Signature(signature) = until
                        && key == SIGNATURE.as_bytes()
                        && value == Some(signature.as_bytes())
                    {
                        return Ok(ledger);
                    }
                    ledger.take(key, value).map_err(|what| RejectsError::Ledger {
                        topic: topic.clone(),
                        what: format!("has a record at offset {} that {what}", message.offset()),
                        remedy: REMEDY,
                    })?;
                }
            }
        }
    }
}

/// Returns the number of the topic's partitions; `None` where there is no such topic. A topic that was signed exists,
/// however late the brokers report it.
fn partitions(consumer: &Consumer, topic: &str, until: &Until, within: Duration) -> KafkaResult<Option<usize>> {
    let deadline = Instant::now() + within;
    loop {
        let metadata = consumer.fetch_metadata(Some(topic), within)?;
        let found = metadata.topics().first().map(|topic| (topic.partitions().len(), topic.error()));
        let (partitions, error) = found.unwrap_or_default();
        let code = error.map_or(RDKafkaErrorCode::UnknownTopicOrPartition, RDKafkaErrorCode::from);
        let is_unknown = matches!(code, RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition);
        match until {
            _ if partitions > 0 => return Ok(Some(partitions)),
            Until::End if is_unknown => return Ok(None),
            _ if Instant::now() > deadline => return Err(KafkaError::MetadataFetch(code)),
            _ => std::thread::sleep(POLL_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_what_is_not_ours_is_refused() {
        let mut ledger = Ledger::default();
        let origin = Origin { source: "t/0@x".into(), offset: 5 };
        let replayed = Replayed { partition: 1, offset: 9, at_ms: 3, fixed: true };
        let value = serde_json::to_vec(&replayed).unwrap();
        ledger.take(origin.to_string().as_bytes(), Some(&value)).unwrap();
        ledger.take(SIGNATURE.as_bytes(), Some(b"anything")).unwrap();
        assert_eq!((ledger.get(&origin), ledger.len()), (Some(replayed), 1));
        for (key, value) in [("t/0@x", &value[..]), ("\u{fffd}", &value), ("t/0@x:6", b"{}"), ("t/0@x:6", b"")] {
            assert!(ledger.take(key.as_bytes(), Some(value)).is_err(), "{key}");
        }
        ledger.take(origin.to_string().as_bytes(), None).unwrap();
        assert_eq!(ledger.get(&origin), None);
    }
}
