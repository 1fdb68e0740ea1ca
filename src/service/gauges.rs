//! Values that are read from time to time and not counted as they happen: lags, librdkafka's statistics, the deduplication
//! windows.
//!
//! Must never delay the service, or make it fail. A value that cannot be read keeps its last reading.

use super::Shared;
use crate::clickhouse::client::Client;
use crate::clickhouse::dedup;
use crate::clickhouse::servers::Servers;
use crate::platform::clock::unix_ms;
use crate::platform::metrics::{
    BROKER_CONNECTED, BROKER_ERRORS, BROKER_RTT, COMMITTED_LAG, DEDUP_HEADROOM, FETCH_QUEUE_BYTES, FETCH_QUEUE_RECORDS,
    LAG_SECONDS, OPEN_TRANSACTION_RECORDS, OPEN_TRANSACTION_SECONDS, PARTITIONS, POSITION_LAG, RECEIVED_BYTES,
    REPLICA_DELAY, REPLICA_READ_ONLY, TOKEN_LIFE,
};
use dashmap::DashMap;
use metrics::{counter, gauge};
use rdkafka::statistics::{Broker, Partition, Statistics};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tallyhouse_core::protocol::LogView;
use tallyhouse_core::stream::Stream;
use tokio_util::sync::CancellationToken;

/// Interval at which the deduplication windows are read.
const HEADROOM_INTERVAL: Duration = Duration::from_secs(60);

/// Copies librdkafka's statistics to the gauges.
pub fn take(shared: &Shared, statistics: &Statistics) {
    // The metrics of a client are those of the event topic's.
    let is_main = shared.stream == Stream::Events;
    if is_main {
        // The bootstrap addresses are listed as brokers with a negative id.
        statistics.brokers.values().filter(|broker| broker.nodeid >= 0).for_each(take_broker);
        counter!(RECEIVED_BYTES).absolute(statistics.rx_bytes.unsigned_abs());
    }
    let Some(topic) = statistics.topics.get(&shared.topic) else { return };
    let (mut records, mut bytes) = (0, 0);
    // A partition with number -1 stands for records without a partition, and a deleted one is unknown.
    let real = topic.partitions.values().filter(|partition| partition.partition >= 0 && !partition.unknown);
    gauge!(PARTITIONS, "topic" => shared.topic.clone()).set(real.count() as f64);
    for partition in topic.partitions.values() {
        // Partitions that were taken over share one queue (`kafka/fetch_queue.rs`), and each reports the whole queue.
        records = partition.fetchq_cnt.max(records);
        bytes = partition.fetchq_size.max(bytes);
        take_lags(shared, partition);
    }
    if is_main {
        gauge!(FETCH_QUEUE_RECORDS).set(records as f64);
        gauge!(FETCH_QUEUE_BYTES).set(bytes as f64);
    }
}

fn take_broker(broker: &Broker) {
    let id = broker.nodeid.to_string();
    gauge!(BROKER_CONNECTED, "broker" => id.clone()).set(f64::from(u8::from(broker.state == "UP")));
    let errors = broker.txerrs + broker.rxerrs + broker.req_timeouts;
    counter!(BROKER_ERRORS, "broker" => id.clone()).absolute(errors);
    if let Some(rtt) = broker.rtt.as_ref().filter(|rtt| rtt.cnt > 0) {
        gauge!(BROKER_RTT, "broker" => id).set(Duration::from_micros(rtt.p99.unsigned_abs()).as_secs_f64());
    }
}

/// Takes the state of a partition in Kafka, which a member reads before it consumes. librdkafka reports no committed offset before
/// the member's own first commit.
pub fn take_log(shared: &Shared, partition: i32, log: &LogView) {
    let committed = log.committed_offset().unwrap_or(log.low);
    shared.committed.insert(partition, committed);
    set_committed_lag(shared, partition, log.high, committed);
}

/// Sets a gauge of one partition.
fn set(shared: &Shared, name: &'static str, partition: i32, value: f64) {
    gauge!(name, "partition" => partition.to_string(), "topic" => shared.topic.clone()).set(value);
}

fn set_committed_lag(shared: &Shared, partition: i32, end: u64, committed: u64) {
    set(shared, COMMITTED_LAG, partition, end.saturating_sub(committed) as f64);
}

fn take_lags(shared: &Shared, partition: &Partition) {
    let committed = shared.committed.get(&partition.partition).map(|committed| *committed);
    if let (Some(committed), Ok(end)) = (committed, u64::try_from(partition.ls_offset)) {
        set_committed_lag(shared, partition.partition, end, committed);
    }
    let Some(next) = shared.windows.next(partition.partition) else { return };
    let end = partition.ls_offset.max(0).unsigned_abs();
    let number = partition.partition;
    set(shared, POSITION_LAG, number, end.saturating_sub(next) as f64);
    let (records, open_for) = shared.open_transactions.note(partition, next, Instant::now());
    set(shared, OPEN_TRANSACTION_RECORDS, number, records as f64);
    set(shared, OPEN_TRANSACTION_SECONDS, number, open_for.as_secs_f64());
    let oldest_ms = shared.unstored_ms(number);
    let age_ms = oldest_ms.map_or(0, |oldest_ms| (unix_ms() - oldest_ms).max(0));
    set(shared, LAG_SECONDS, number, age_ms as f64 / 1_000.0);
}

/// The transactions that prevent partitions from being read. The map has the last stable offset of each, and the time since which
/// it is unchanged.
#[derive(Debug, Default)]
pub struct OpenTransactions(DashMap<i32, (u64, Instant)>);

impl OpenTransactions {
    /// Takes the statistics of a partition that is read up to `next`. Returns the records behind its open transaction, and the
    /// time for which that one has been seen.
    fn note(&self, partition: &Partition, next: u64, now: Instant) -> (u64, Duration) {
        let [stable, end] = [partition.ls_offset, partition.hi_offset].map(|offset| offset.max(0).unsigned_abs());
        let records = end.saturating_sub(stable);
        // If a partition is not read so far yet, the transaction does not hold it back, and its statistics may be old.
        if records == 0 || next < stable {
            self.0.remove(&partition.partition);
            return (records, Duration::ZERO);
        }
        let mut known = self.0.entry(partition.partition).or_insert((stable, now));
        if known.0 != stable {
            *known = (stable, now);
        }
        (records, now.saturating_duration_since(known.1))
    }
}

/// Sets this member's lags of a partition to 0, once its task has ended. The next owner reports them, and a sum would count both.
pub fn forget(shared: &Shared, partition: i32) {
    shared.open_transactions.0.remove(&partition);
    shared.committed.remove(&partition);
    for lag in [POSITION_LAG, COMMITTED_LAG, LAG_SECONDS, OPEN_TRANSACTION_RECORDS, OPEN_TRANSACTION_SECONDS] {
        set(shared, lag, partition, 0.0);
    }
}

async fn take_replica(server: &Client) {
    let Ok(states) = server.table_states().await else { return };
    let set =
        |name, value: Option<u64>| gauge!(name, "server" => server.url().to_owned()).set(value.unwrap_or(0) as f64);
    set(REPLICA_DELAY, states.iter().map(|state| state.delay_s).max());
    set(REPLICA_READ_ONLY, Some(states.iter().filter(|state| state.is_cut_off()).count() as u64));
    set(TOKEN_LIFE, states.iter().map(|state| state.token_life_s).min());
}

/// Reads the deduplication windows and the state of replicas every minute until `stop`.
pub async fn watch_headroom(servers: Arc<Servers>, stop: CancellationToken) {
    loop {
        match dedup::windows(servers.in_use()).await {
            Ok(windows) => windows.into_iter().for_each(|window| {
                gauge!(DEDUP_HEADROOM, "table" => window.table.clone()).set(window.headroom_s() as f64);
            }),
            Err(error) => tracing::debug!("the deduplication windows are not known: {error}"),
        }
        for server in servers.all().iter().filter(|server| server.is_replica()) {
            take_replica(server).await;
        }
        tokio::select! {
            () = tokio::time::sleep(HEADROOM_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partition(stable: i64, end: i64) -> Partition {
        Partition { partition: 3, ls_offset: stable, hi_offset: end, ..Partition::default() }
    }

    /// Transactions that follow each other do not count as one that stays open.
    #[test]
    fn a_transaction_is_open_while_the_stable_offset_stands() {
        let (open, begun) = (OpenTransactions::default(), Instant::now());
        let note = |stable, end, next, second| {
            let (records, open_for) = open.note(&partition(stable, end), next, begun + Duration::from_secs(second));
            (records, open_for.as_secs())
        };
        assert_eq!(note(10, 10, 10, 0), (0, 0));
        assert_eq!([note(10, 12, 10, 5), note(10, 1_011, 10, 65)], [(2, 0), (1_001, 60)]);
        assert_eq!(note(900, 1_011, 10, 70), (111, 0), "another one, which is not reached yet");
        assert_eq!([note(900, 1_011, 900, 75), note(900, 1_011, 900, 80)], [(111, 0), (111, 5)]);
        assert_eq!([note(1_012, 1_012, 1_012, 85), note(1_012, 1_013, 1_012, 90)], [(0, 0), (1, 0)]);
    }
}
