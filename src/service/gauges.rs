//! What is looked at from time to time rather than counted as it happens: lags, librdkafka's statistics, the deduplication windows.
//!
//! Must never wait for, or fail, what the service does: what cannot be had keeps its last value.

use super::Shared;
use crate::clickhouse::client::Client;
use crate::clickhouse::dedup;
use crate::clock::unix_ms;
use crate::metrics::{
    BROKER_CONNECTED, BROKER_ERRORS, BROKER_RTT, COMMITTED_LAG, DEDUP_HEADROOM, FETCH_QUEUE_BYTES, FETCH_QUEUE_RECORDS,
    LAG_SECONDS, PARTITIONS, POSITION_LAG, RECEIVED_BYTES,
};
use metrics::{counter, gauge};
use rdkafka::statistics::{Broker, Partition, Statistics};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the deduplication windows are looked at.
const HEADROOM_INTERVAL: Duration = Duration::from_secs(60);

/// Takes over librdkafka's statistics.
pub fn take(shared: &Shared, statistics: &Statistics) {
    // The bootstrap addresses are listed as brokers with a negative id.
    statistics.brokers.values().filter(|broker| broker.nodeid >= 0).for_each(take_broker);
    counter!(RECEIVED_BYTES).absolute(statistics.rx_bytes.unsigned_abs());
    let Some(topic) = statistics.topics.get(&shared.topic) else { return };
    let (mut records, mut bytes) = (0, 0);
    // One with number -1 stands for records without a partition, and a deleted one is unknown.
    let real = topic.partitions.values().filter(|partition| partition.partition >= 0 && !partition.unknown);
    gauge!(PARTITIONS).set(real.count() as f64);
    for partition in topic.partitions.values() {
        // Partitions that were taken over share one queue (`kafka/fetched.rs`), and each tells all of it.
        records = partition.fetchq_cnt.max(records);
        bytes = partition.fetchq_size.max(bytes);
        take_lags(shared, partition);
    }
    gauge!(FETCH_QUEUE_RECORDS).set(records as f64);
    gauge!(FETCH_QUEUE_BYTES).set(bytes as f64);
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

fn take_lags(shared: &Shared, partition: &Partition) {
    let Some(next) = shared.windows.next(partition.partition) else { return };
    let end = partition.ls_offset.max(0).unsigned_abs();
    let label = partition.partition.to_string();
    gauge!(POSITION_LAG, "partition" => label.clone()).set(end.saturating_sub(next) as f64);
    if let Ok(committed) = u64::try_from(partition.committed_offset) {
        gauge!(COMMITTED_LAG, "partition" => label.clone()).set(end.saturating_sub(committed) as f64);
    }
    let oldest_ms = shared.unstored_ms(partition.partition);
    let age_ms = oldest_ms.map_or(0, |oldest_ms| (unix_ms() - oldest_ms).max(0));
    gauge!(LAG_SECONDS, "partition" => label).set(age_ms as f64 / 1_000.0);
}

/// The next owner tells a partition's lags; ours would be added to those.
pub fn forget(partition: i32) {
    for lag in [POSITION_LAG, COMMITTED_LAG, LAG_SECONDS] {
        gauge!(lag, "partition" => partition.to_string()).set(0.0);
    }
}

/// Looks at the deduplication windows every minute until `stop`.
pub async fn watch_headroom(client: Client, stop: CancellationToken) {
    loop {
        match dedup::windows(&client).await {
            Ok(windows) => windows.into_iter().for_each(|window| {
                gauge!(DEDUP_HEADROOM, "table" => window.table.clone()).set(window.headroom_s() as f64);
            }),
            Err(error) => tracing::debug!("the deduplication windows are not known: {error}"),
        }
        tokio::select! {
            () = tokio::time::sleep(HEADROOM_INTERVAL) => {}
            () = stop.cancelled() => return,
        }
    }
}
