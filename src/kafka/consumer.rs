//! The consumer of the group. It hands rebalances to the owner of the partitions.
//!
//! A partition is assigned paused: nothing is fetched before the protocol has decided where to start, and the reader then seeks
//! there. (Without a start, librdkafka would look for a committed offset itself. With `auto.offset.reset=error` it would give the
//! partition up if there is none.) Callbacks run inside `poll`, on the reader's thread.
//!
//! Must never give librdkafka a logical offset such as the log's end: it looks that up in the background. If the answer comes
//! after the seek, librdkafka looks again half a second later and jumps there, past records that nobody has read.

use super::refusal::{ClientErrors, Refusal, is_closed_at_once};
use crate::config::{Config, Tls};
use crate::platform::lock::locked;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Position of a partition until the seek: any offset that is not a logical one.
const PLACEHOLDER: Offset = Offset::Offset(0);

/// The consumer. Commits and look-ups may be made from any thread; only the reader polls.
pub type Consumer = BaseConsumer<Context>;

/// Receives the reports for the owner of the partitions. All methods run on the reader's thread, inside `poll`.
pub trait Rebalances: Send + Sync {
    /// The group has assigned these partitions to this member. They are paused.
    fn assigned(&self, partitions: &[i32]);
    /// The group is about to take these partitions away. Until this returns, commits are still accepted. `lost`: they belong to
    /// another member already, and nothing must be committed for them.
    fn revoked(&self, partitions: &[i32], lost: bool);
    /// librdkafka reports its statistics, every `statistics.interval.ms`.
    fn statistics(&self, statistics: &Statistics);
}

/// Longest wait for calls under way, as in [`close`].
const CALLS_END_TIMEOUT: Duration = Duration::from_secs(2);
/// Time between two looks for calls under way.
const CALLS_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Leaves the group, on this thread. A call to Kafka that is under way also holds the consumer. The last holder leaves, so this waits for
/// two seconds at most to be the last one. A process that ends before its consumer is closed would stay in the group until its session ends.
pub fn close(mut consumer: Arc<Consumer>) {
    let begun = Instant::now();
    while begun.elapsed() < CALLS_END_TIMEOUT {
        match Arc::try_unwrap(consumer) {
            Ok(last) => return drop(last),
            Err(held) => consumer = held,
        }
        std::thread::sleep(CALLS_POLL_INTERVAL);
    }
}

/// Time after the last report for which a batch still counts as unreadable. librdkafka tries it again twice a second.
const UNREADABLE_FOR: Duration = Duration::from_secs(10);

/// Receives the callbacks of the consumer from librdkafka.
pub struct Context {
    owner: Arc<dyn Rebalances>,
    trouble: Mutex<ClientErrors>,
    /// Text about the part of the log that could not be read, and time of the last attempt.
    unreadable: Mutex<Option<(Instant, String)>>,
}

impl Context {
    /// True if a broker has refused this client since the last [`Context::take_errors`].
    pub fn is_refused(&self) -> bool {
        locked(&self.trouble).refusal.is_some()
    }

    /// Returns and clears the errors that librdkafka has reported outside of a call, such as a refused login. It reports while it
    /// is polled.
    pub fn take_errors(&self) -> ClientErrors {
        std::mem::take(&mut locked(&self.trouble))
    }

    /// Returns the reason why a batch in the log cannot be read, in librdkafka's words, while librdkafka tries it again. Its
    /// partition stands still meanwhile. The crate does not report the partition. (librdkafka reports and skips a batch with a
    /// wrong checksum.)
    pub fn unreadable(&self) -> Option<String> {
        let mut unreadable = locked(&self.unreadable);
        unreadable.take_if(|(seen, _)| seen.elapsed() > UNREADABLE_FOR);
        unreadable.as_ref().map(|(_, reason)| reason.clone())
    }
}

/// True if the log's content is refused: it is too large, packed in a way that cannot be unpacked, or damaged.
pub fn is_unreadable(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{BadCompression, BadMessage, MessageSizeTooLarge, NotImplemented};
    let unreadable = [BadCompression, BadMessage, MessageSizeTooLarge, NotImplemented];
    error.rdkafka_error_code().is_some_and(|code| unreadable.contains(&code))
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        self.owner.statistics(&statistics);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // librdkafka reports the end of a partition here as well. The reader sees it in `poll`.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::PartitionEOF) {
            return;
        }
        let refusal = Refusal::of(error.rdkafka_error_code(), reason);
        // A failed handshake is no batch.
        if is_unreadable(&error) && refusal.is_none() {
            let mut unreadable = locked(&self.unreadable);
            if unreadable.replace((Instant::now(), reason.to_owned())).is_none() {
                tracing::error!(reason, "kafka: {error}: a batch in the log cannot be read");
            }
            return;
        }
        tracing::warn!(reason, "kafka: {error}");
        let mut trouble = locked(&self.trouble);
        // The report that all brokers are down comes after the reason. It is not a reason itself.
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            trouble.reason = Some(reason.to_owned());
        }
        if refusal.is_some() {
            trouble.refusal = refusal;
        }
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // librdkafka does not report it as an error.
        if is_closed_at_once(message) {
            locked(&self.trouble).reason = Some(message.to_owned());
        }
        super::log(level, facility, message);
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, event: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<i32> = list.elements().iter().map(|element| element.partition()).collect();
        let cooperative = matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let assigns = event == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if !assigns {
            self.owner.revoked(&partitions, consumer.assignment_lost());
        }
        let answer = if assigns { assign } else { unassign };
        let answered = answer(consumer, list, cooperative);
        if let Err(error) = &answered {
            tracing::error!(?partitions, assigns, "rebalance failed: {error}");
            // Without an answer, librdkafka and the whole group would wait permanently.
            if let Err(error) = answer(consumer, &mut TopicPartitionList::new(), cooperative) {
                tracing::error!(assigns, "rebalance failed without partitions, too: {error}");
            }
        }
        if assigns {
            self.owner.assigned(if answered.is_ok() { &partitions } else { &[] });
        }
    }
}

fn assign(consumer: &Consumer, list: &mut TopicPartitionList, cooperative: bool) -> KafkaResult<()> {
    list.set_all_offsets(PLACEHOLDER)?;
    // The first pause is before the assignment, so that nothing is fetched from the placeholder, which the log may have left
    // behind. The second is after it, for a partition that librdkafka did not know yet.
    consumer.pause(list)?;
    if cooperative {
        consumer.incremental_assign(list)?
    } else {
        consumer.assign(list)?
    }
    if let Err(error) = consumer.pause(list) {
        // Records that come now find no window and are dropped. The partition is assigned nevertheless.
        tracing::warn!("pausing what was assigned failed: {error}");
    }
    Ok(())
}

/// Assigns partitions again whose position librdkafka has lost: it no longer seeks them (`rd_kafka_toppar_seek` answers
/// `_STATE`). They are paused afterwards. Returns `false` in the eager protocol: it has no such step, and everything has to be
/// assigned again.
///
/// # Errors
/// librdkafka refuses it, for instance while a rebalance is under way.
pub fn reassign(consumer: &Consumer, partitions: &TopicPartitionList) -> KafkaResult<bool> {
    if !matches!(consumer.rebalance_protocol(), RebalanceProtocol::Cooperative) {
        return Ok(false);
    }
    consumer.incremental_unassign(partitions)?;
    consumer.incremental_assign(partitions)?;
    consumer.pause(partitions)?;
    Ok(true)
}

fn unassign(consumer: &Consumer, list: &mut TopicPartitionList, cooperative: bool) -> KafkaResult<()> {
    if cooperative { consumer.incremental_unassign(list) } else { consumer.unassign() }
}

/// If a file does not exist, librdkafka says only that its own property failed.
fn check_tls_files(tls: &Tls) -> KafkaResult<()> {
    let files = [
        ("kafka.tls.ca_file", &tls.ca_file),
        ("kafka.tls.cert_file", &tls.cert_file),
        ("kafka.tls.key_file", &tls.key_file),
    ];
    for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
        std::fs::File::open(path).map_err(|error| KafkaError::ClientCreation(format!("{key} = {path}: {error}")))?;
    }
    Ok(())
}

/// Creates the consumer of a member. It connects in the background.
///
/// # Errors
/// librdkafka refuses a property.
pub fn create(config: &Config, owner: Arc<dyn Rebalances>) -> KafkaResult<Consumer> {
    connect(config, config.kafka_properties(), owner)
}

/// Does the same as [`create`], with other values for some properties, and brokers answer at once. Must never be used for a member.
///
/// # Errors
/// Returns those of [`create`].
pub fn create_with(config: &Config, owner: Arc<dyn Rebalances>, others: &[(&str, &str)]) -> KafkaResult<Consumer> {
    let mut properties = config.reader_properties();
    properties.extend(others.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    connect(config, properties, owner)
}

fn connect(config: &Config, properties: Vec<(String, String)>, owner: Arc<dyn Rebalances>) -> KafkaResult<Consumer> {
    check_tls_files(&config.kafka.tls)?;
    super::client_config(properties)
        .create_with_context(Context { owner, trouble: Mutex::default(), unreadable: Mutex::default() })
        .map_err(super::without_value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Sources};
    use crate::kafka::fetch_queue::{Fetch, FetchQueue};
    use rdkafka::config::ClientConfig;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
    use std::sync::atomic::{AtomicBool, Ordering};

    const TOPIC: &str = "t";
    const RECORDS: i64 = 20;
    const DEADLINE: Duration = Duration::from_secs(60);

    #[derive(Default)]
    struct Owner {
        assigned: AtomicBool,
        /// librdkafka's word for the state of the last rebalance.
        join_state: Mutex<String>,
    }

    impl Rebalances for Owner {
        fn assigned(&self, _: &[i32]) {
            self.assigned.store(true, Ordering::Relaxed);
        }
        fn revoked(&self, _: &[i32], _: bool) {}
        fn statistics(&self, statistics: &Statistics) {
            if let Some(group) = &statistics.cgrp {
                self.join_state.lock().unwrap().clone_from(&group.join_state);
            }
        }
    }

    fn produce(brokers: &str) {
        let mut client = ClientConfig::new();
        // A batch has one record, so that one fetch brings one record.
        client.set("bootstrap.servers", brokers).set("batch.num.messages", "1");
        let producer: ThreadedProducer<DefaultProducerContext> = client.create().unwrap();
        for _ in 0..RECORDS {
            producer.send(BaseRecord::<(), _>::to(TOPIC).payload(&[0; 1_000])).unwrap();
        }
        producer.flush(DEADLINE).unwrap();
    }

    fn member(cluster: &MockCluster<'_, DefaultProducerContext>) -> (Arc<Owner>, Consumer) {
        let brokers = format!("kafka.brokers={}", cluster.bootstrap_servers());
        let settings = [
            &brokers,
            "kafka.topics.events=t",
            "kafka.properties.fetch.message.max.bytes=1000",
            "kafka.properties.statistics.interval.ms=100",
        ];
        let flags = settings.iter().map(|flag| flag.parse().unwrap()).collect();
        let config = config::load(&Sources { flags, ..Sources::default() }).unwrap().config;
        let owner = Arc::new(Owner::default());
        let consumer = create(&config, Arc::clone(&owner) as Arc<dyn Rebalances>).unwrap();
        (owner, consumer)
    }

    /// Returns a member of the group that has its partition, still paused, with the queue of its records.
    fn joined(cluster: &MockCluster<'_, DefaultProducerContext>) -> (Arc<Consumer>, FetchQueue) {
        let (owner, consumer) = member(cluster);
        let consumer = Arc::new(consumer);
        let fetched = FetchQueue::new(Arc::clone(&consumer));
        // The service does the same before it subscribes. librdkafka knows the partitions from then on.
        consumer.fetch_metadata(Some(TOPIC), DEADLINE).unwrap();
        consumer.subscribe(&[TOPIC]).unwrap();
        let started = Instant::now();
        while !owner.assigned.load(Ordering::Relaxed) {
            assert!(started.elapsed() < DEADLINE, "nothing is assigned");
            assert!(consumer.poll(Duration::from_millis(10)).is_none_or(|m| m.is_err()), "a record before the seek");
        }
        (consumer, fetched)
    }

    fn place() -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(TOPIC, 0, Offset::Offset(0)).unwrap();
        list
    }

    fn start(consumer: &Consumer, fetched: &FetchQueue) {
        consumer.seek_partitions(place(), DEADLINE).unwrap();
        fetched.redirect(TOPIC, 0).unwrap();
        consumer.resume(&place()).unwrap();
    }

    /// Returns the offsets up to the next end of the partition at `end` or later.
    fn read_to_end(consumer: &Consumer, fetched: &FetchQueue, end: u64) -> Vec<u64> {
        let (started, mut offsets, mut ended) = (Instant::now(), Vec::new(), false);
        while !ended || offsets.last().is_none_or(|&last| last + 1 < end) {
            assert!(started.elapsed() < DEADLINE, "only {offsets:?} came");
            let polled = consumer.poll(Duration::ZERO);
            assert!(polled.is_none_or(|m| m.is_err()), "a record of a partition that was taken over");
            fetched.take(Duration::from_millis(10), |_, fetch| match fetch {
                Fetch::Record(record) => {
                    offsets.push(record.offset);
                    ended = false;
                }
                Fetch::End(at) => {
                    assert_eq!(at, offsets.last().map_or(0, |last| last + 1), "the end is behind the last record");
                    ended = true;
                }
                Fetch::PositionLost | Fetch::Error(_) => {}
            });
        }
        offsets
    }

    #[test]
    fn a_consumer_is_closed_when_calls_under_way_have_ended() {
        let (_, consumer) = member(&MockCluster::new(1).unwrap());
        let consumer = Arc::new(consumer);
        let (call, after) = (Arc::clone(&consumer), Arc::downgrade(&consumer));
        let call = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(200));
            drop(call);
        });
        close(consumer);
        assert_eq!(after.strong_count(), 0, "the call closes it later");
        call.join().unwrap();
    }

    /// The brokers answer late. So everything that librdkafka asks at the assignment is answered after the seek.
    #[test]
    fn no_late_answer_moves_a_partition_away_from_the_seek() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        produce(&cluster.bootstrap_servers());
        cluster.broker_round_trip_time(1, Duration::from_millis(100)).unwrap();
        let (consumer, fetched) = joined(&cluster);
        start(&consumer, &fetched);
        assert_eq!(read_to_end(&consumer, &fetched, RECORDS as u64), (0..RECORDS as u64).collect::<Vec<_>>());
    }

    /// After a pause, librdkafka continues behind the last record, even if the end of the partition was reported since.
    #[test]
    fn a_pause_at_the_end_of_a_partition_skips_nothing() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        produce(&cluster.bootstrap_servers());
        let (consumer, fetched) = joined(&cluster);
        start(&consumer, &fetched);
        let (first, all) = (RECORDS as u64, 2 * RECORDS as u64);
        assert_eq!(read_to_end(&consumer, &fetched, first), (0..first).collect::<Vec<_>>());
        consumer.pause(&place()).unwrap();
        produce(&cluster.bootstrap_servers());
        consumer.resume(&place()).unwrap();
        assert_eq!(read_to_end(&consumer, &fetched, all), (first..all).collect::<Vec<_>>());
    }

    /// A position behind the log's end is lost. Only a new assignment restores the partition.
    #[test]
    fn a_lost_position_is_found_again() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        produce(&cluster.bootstrap_servers());
        let (consumer, fetched) = joined(&cluster);
        let mut behind = TopicPartitionList::new();
        behind.add_partition_offset(TOPIC, 0, Offset::Offset(10 * RECORDS)).unwrap();
        consumer.seek_partitions(behind, DEADLINE).unwrap();
        fetched.redirect(TOPIC, 0).unwrap();
        consumer.resume(&place()).unwrap();
        let (started, mut lost) = (Instant::now(), None);
        while lost.is_none() {
            assert!(started.elapsed() < DEADLINE, "nothing is said of the position");
            drop(consumer.poll(Duration::ZERO));
            fetched.take(Duration::from_millis(10), |partition, fetch| match fetch {
                Fetch::PositionLost => lost = Some(partition),
                Fetch::Record(_) | Fetch::End(_) | Fetch::Error(_) => {}
            });
        }
        assert_eq!(lost, Some(0), "the error belongs to its partition");
        consumer.pause(&place()).unwrap();
        let seek = || {
            let list = consumer.seek_partitions(place(), DEADLINE)?;
            list.elements().iter().try_for_each(|element| element.error())
        };
        assert!(seek().is_err(), "librdkafka seeks the partition again: `reassign` may go");
        assert_eq!(reassign(&consumer, &place()), Ok(true));
        while let Err(error) = seek() {
            assert!(started.elapsed() < DEADLINE, "{error}");
            drop(consumer.poll(Duration::from_millis(10)));
        }
        fetched.redirect(TOPIC, 0).unwrap();
        consumer.resume(&place()).unwrap();
        assert_eq!(read_to_end(&consumer, &fetched, RECORDS as u64), (0..RECORDS as u64).collect::<Vec<_>>());
    }

    /// librdkafka refuses to assign a partition twice. If it gets no answer, it waits for one, and the group waits for this
    /// member.
    #[test]
    fn an_assignment_that_fails_does_not_hold_the_group_up() {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic(TOPIC, 1, 1).unwrap();
        let (owner, consumer) = member(&cluster);
        consumer.fetch_metadata(Some(TOPIC), DEADLINE).unwrap();
        consumer.incremental_assign(&place()).unwrap();
        consumer.subscribe(&[TOPIC]).unwrap();
        let started = Instant::now();
        loop {
            let join_state = owner.join_state.lock().unwrap().clone();
            if join_state == "steady" {
                break;
            }
            assert!(started.elapsed() < DEADLINE, "still {join_state}");
            drop(consumer.poll(Duration::from_millis(10)));
        }
        assert!(owner.assigned.load(Ordering::Relaxed));
    }
}
