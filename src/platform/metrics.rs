//! The metrics: every name, unit and help text in one place, and the exporter that renders them.
//!
//! Labels must never come from outside: reasons, tables and partitions are bounded, and topics are the configured ones. A
//! name here is a promise to dashboards and alerts: `docs/metrics.md` and `deploy/prometheus/` are checked against it.

#![allow(missing_docs, reason = "the help texts in the table below document the names")]

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use metrics_process::Collector;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

// The table below has the meaning of each.
pub const CONSUMED: &str = "tallyhouse_consumed_records_total";
pub const DECODED: &str = "tallyhouse_decoded_events_total";
pub const REJECTED: &str = "tallyhouse_rejected_records_total";
pub const UNKNOWN_FIELDS: &str = "tallyhouse_unknown_fields_total";
pub const FLUSHED_ROWS: &str = "tallyhouse_flushed_rows_total";
pub const FLUSHED_BATCHES: &str = "tallyhouse_flushed_batches_total";
pub const DEAD_LETTERS: &str = "tallyhouse_dead_letters_total";
pub const FLUSH_SECONDS: &str = "tallyhouse_flush_duration_seconds";
pub const INSERT_SECONDS: &str = "tallyhouse_insert_duration_seconds";
pub const COMMIT_SECONDS: &str = "tallyhouse_commit_duration_seconds";
pub const QUERYABLE_SECONDS: &str = "tallyhouse_event_to_queryable_seconds";
pub const POSITION_LAG: &str = "tallyhouse_position_lag_records";
pub const COMMITTED_LAG: &str = "tallyhouse_committed_lag_records";
pub const OPEN_TRANSACTION_RECORDS: &str = "tallyhouse_open_transaction_records";
pub const OPEN_TRANSACTION_SECONDS: &str = "tallyhouse_open_transaction_seconds";
pub const MEMORY_USED: &str = "tallyhouse_memory_used_bytes";
pub const MEMORY_LIMIT: &str = "tallyhouse_memory_limit_bytes";
pub const PAUSES: &str = "tallyhouse_pauses_total";
pub const PAUSED: &str = "tallyhouse_paused";
pub const REBALANCES: &str = "tallyhouse_rebalances_total";
pub const RETRIES: &str = "tallyhouse_retries_total";
pub const REPLAYS: &str = "tallyhouse_replays_total";
pub const ASSIGNED: &str = "tallyhouse_assigned_partitions";
pub const STOPPED: &str = "tallyhouse_stopped_partitions";
pub const OFFSET_GAPS: &str = "tallyhouse_offset_gaps_total";
pub const INFO: &str = "tallyhouse_info";
pub const PARTITIONS: &str = "tallyhouse_topic_partitions";
pub const READY: &str = "tallyhouse_ready";
pub const LAG_SECONDS: &str = "tallyhouse_lag_seconds";
pub const READER_BUSY: &str = "tallyhouse_reader_busy_seconds_total";
pub const WINDOW_SECONDS: &str = "tallyhouse_window_age_seconds";
pub const DEDUP_HEADROOM: &str = "tallyhouse_dedup_headroom_seconds";
pub const FETCH_QUEUE_RECORDS: &str = "tallyhouse_fetch_queue_records";
pub const FETCH_QUEUE_BYTES: &str = "tallyhouse_fetch_queue_bytes";
pub const RECEIVED_BYTES: &str = "tallyhouse_kafka_received_bytes_total";
pub const BROKER_CONNECTED: &str = "tallyhouse_kafka_broker_connected";
pub const BROKER_RTT: &str = "tallyhouse_kafka_broker_rtt_seconds";
pub const BROKER_ERRORS: &str = "tallyhouse_kafka_broker_errors_total";
pub const RUNTIME_TASKS: &str = "tallyhouse_runtime_tasks";
pub const RUNTIME_QUEUE: &str = "tallyhouse_runtime_queue_tasks";
pub const RUNTIME_BUSY: &str = "tallyhouse_runtime_busy_seconds_total";
pub const SERVER_IN_USE: &str = "tallyhouse_clickhouse_server_in_use";
pub const REPLICA_DELAY: &str = "tallyhouse_clickhouse_replica_delay_seconds";
pub const REPLICA_READ_ONLY: &str = "tallyhouse_clickhouse_replica_read_only";
pub const TOKEN_LIFE: &str = "tallyhouse_clickhouse_token_life_seconds";
pub const FLUSH_AGE: &str = "tallyhouse_flush_age_seconds";

/// The kinds of [`OFFSET_GAPS`].
pub const GAP_KINDS: [&str; 4] = ["marker", "aborted", "lost", "unchecked"];

const QUERYABLE_HELP: &str = "Time from a record's Kafka timestamp to its batch being in ClickHouse";

/// The behaviour of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only rises, and starts at 0 with the process.
    Counter,
    /// It shows the present value.
    Gauge,
    /// It shows values in buckets, with their sum and number.
    Histogram,
}

/// One metric of the contract. `docs/metrics.md` is generated from these.
#[derive(Debug)]
pub struct Metric {
    /// Name, with Prometheus' usual endings.
    pub name: &'static str,
    /// Behaviour of the metric.
    pub kind: Kind,
    /// Unit of its values.
    pub unit: Unit,
    /// Labels; each has few values.
    pub labels: &'static [&'static str],
    /// Meaning of the metric.
    pub help: &'static str,
}

const fn metric(
    kind: Kind,
    name: &'static str,
    unit: Unit,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, unit, labels, help }
}

/// All metrics of the process. `docs/metrics.md` lists them.
pub const METRICS: &[Metric] = &[
    metric(Kind::Counter, CONSUMED, Unit::Count, &[], "Records taken from Kafka"),
    metric(Kind::Counter, DECODED, Unit::Count, &[], "Records that were valid"),
    metric(Kind::Counter, REJECTED, Unit::Count, &["reason"], "Records that were not valid, by reason"),
    metric(Kind::Counter, UNKNOWN_FIELDS, Unit::Count, &[], "Ignored fields of records"),
    metric(Kind::Counter, FLUSHED_ROWS, Unit::Count, &["table"], "Rows that ClickHouse acknowledged, by table"),
    metric(Kind::Counter, FLUSHED_BATCHES, Unit::Count, &[], "Batches whose end is committed"),
    metric(Kind::Counter, DEAD_LETTERS, Unit::Count, &[], "Rejected records that the dead-letter topic acknowledged"),
    metric(Kind::Counter, PAUSES, Unit::Count, &[], "Times that the memory limit began to pause partitions"),
    metric(Kind::Counter, REBALANCES, Unit::Count, &["kind", "topic"], "Rebalances, by kind (assigned, revoked, lost)"),
    metric(Kind::Counter, RETRIES, Unit::Count, &["step"], "Repeated steps after a failure, by step"),
    metric(
        Kind::Counter,
        REPLAYS,
        Unit::Count,
        &[],
        "Announced batches of an earlier owner that this member read again",
    ),
    metric(
        Kind::Counter,
        OFFSET_GAPS,
        Unit::Count,
        &["kind"],
        "Offsets that a member passed over between two records, by kind: marker (of a transaction; or compacted away), aborted, lost, unchecked",
    ),
    metric(Kind::Gauge, INFO, Unit::Count, &["version", "topic"], "Always 1: the running version and its event topic"),
    metric(
        Kind::Gauge,
        READY,
        Unit::Count,
        &[],
        "1 while nothing keeps the member from counting; otherwise 0, and /readyz names the cause",
    ),
    metric(
        Kind::Gauge,
        LAG_SECONDS,
        Unit::Seconds,
        &["partition", "topic"],
        "Age of the oldest consumed record that is not stored, by partition; 0 while the window is empty",
    ),
    metric(
        Kind::Gauge,
        POSITION_LAG,
        Unit::Count,
        &["partition", "topic"],
        "Records in the log that are not consumed yet, by partition",
    ),
    metric(
        Kind::Gauge,
        COMMITTED_LAG,
        Unit::Count,
        &["partition", "topic"],
        "Records in the log that are not committed yet, by partition",
    ),
    metric(
        Kind::Gauge,
        OPEN_TRANSACTION_RECORDS,
        Unit::Count,
        &["partition", "topic"],
        "Records in the log that consumers cannot read because of a producer's open transaction, by partition; no lag counts them",
    ),
    metric(
        Kind::Gauge,
        OPEN_TRANSACTION_SECONDS,
        Unit::Seconds,
        &["partition", "topic"],
        "Time for which the same open transaction has blocked the partition, as this member has seen it",
    ),
    metric(Kind::Gauge, MEMORY_USED, Unit::Bytes, &[], "Memory that windows and batches hold"),
    metric(Kind::Gauge, MEMORY_LIMIT, Unit::Bytes, &[], "Maximum memory of windows and batches"),
    metric(
        Kind::Gauge,
        PAUSED,
        Unit::Count,
        &[],
        "Partitions that are paused, because they hold as much memory as is free",
    ),
    metric(Kind::Gauge, ASSIGNED, Unit::Count, &["topic"], "Partitions of this member, by topic"),
    metric(
        Kind::Gauge,
        PARTITIONS,
        Unit::Count,
        &["topic"],
        "Partitions of the topic; the assigned partitions of all members together make this number",
    ),
    metric(
        Kind::Gauge,
        STOPPED,
        Unit::Count,
        &["reason", "topic"],
        "Stopped partitions of this member, by reason and topic; `tallyhouse explain REASON` prints the remedy",
    ),
    metric(
        Kind::Gauge,
        FLUSH_AGE,
        Unit::Seconds,
        &[],
        "Age at which the member flushes a window; above flush.age_ms while it slows its pace",
    ),
    metric(
        Kind::Gauge,
        SERVER_IN_USE,
        Unit::Count,
        &["server"],
        "1 for the ClickHouse server to which the member sends its statements, 0 for the others of clickhouse.url",
    ),
    metric(
        Kind::Gauge,
        REPLICA_DELAY,
        Unit::Seconds,
        &["server"],
        "Time by which a replica lags, of its table that lags most; only where tables are replicated",
    ),
    metric(
        Kind::Gauge,
        REPLICA_READ_ONLY,
        Unit::Count,
        &["server"],
        "Number of tables of a replica that take no inserts, for instance while Keeper is away; only where tables are replicated",
    ),
    metric(
        Kind::Gauge,
        TOKEN_LIFE,
        Unit::Seconds,
        &["server"],
        "Time for which a replicated table remembers the token of an insert, of the table with the least; only where tables are replicated",
    ),
    metric(
        Kind::Gauge,
        DEDUP_HEADROOM,
        Unit::Seconds,
        &["table"],
        "Time for which ClickHouse still knows the token of an insert, at the pace of the last five minutes, by table",
    ),
    metric(
        Kind::Counter,
        READER_BUSY,
        Unit::Seconds,
        &[],
        "Time that the reader thread took records and did not wait for them; its rate is a share of one core",
    ),
    metric(
        Kind::Gauge,
        FETCH_QUEUE_RECORDS,
        Unit::Count,
        &[],
        "Records that librdkafka has fetched and the reader has not taken",
    ),
    metric(
        Kind::Gauge,
        FETCH_QUEUE_BYTES,
        Unit::Bytes,
        &[],
        "Bytes that librdkafka has fetched and the reader has not taken",
    ),
    metric(Kind::Counter, RECEIVED_BYTES, Unit::Bytes, &[], "Bytes received from Kafka, still compressed"),
    metric(Kind::Gauge, BROKER_CONNECTED, Unit::Count, &["broker"], "1 while the broker of this id is connected"),
    metric(Kind::Gauge, BROKER_RTT, Unit::Seconds, &["broker"], "99th percentile of the time until a broker answers"),
    metric(Kind::Counter, BROKER_ERRORS, Unit::Count, &["broker"], "Requests that failed or timed out, by broker"),
    metric(Kind::Gauge, RUNTIME_TASKS, Unit::Count, &[], "Tasks of the tokio runtime that are alive"),
    metric(Kind::Gauge, RUNTIME_QUEUE, Unit::Count, &[], "Tasks that wait for a thread of the tokio runtime"),
    metric(
        Kind::Counter,
        RUNTIME_BUSY,
        Unit::Seconds,
        &[],
        "Time that the threads of the tokio runtime were not idle; its rate is in cores",
    ),
    metric(
        Kind::Histogram,
        WINDOW_SECONDS,
        Unit::Seconds,
        &[],
        "Age of a window when it is closed: how long its first record waited for the flush",
    ),
    metric(Kind::Histogram, FLUSH_SECONDS, Unit::Seconds, &[], "Time from freezing a batch to committing its end"),
    metric(Kind::Histogram, INSERT_SECONDS, Unit::Seconds, &["table"], "Time of one insert, by table"),
    metric(Kind::Histogram, COMMIT_SECONDS, Unit::Seconds, &[], "Time of one commit with its comparison"),
    metric(Kind::Histogram, QUERYABLE_SECONDS, Unit::Seconds, &[], QUERYABLE_HELP),
];

const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Upper bounds of the buckets of [`QUERYABLE`], in milliseconds.
const DELAY_MS: [u64; 17] = [
    100, 250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 30_000, 60_000, 300_000, 900_000, 3_600_000,
    21_600_000, 86_400_000,
];

/// Delays of all events, as [`QUERYABLE_SECONDS`].
pub static QUERYABLE: Delays = Delays::new();

/// A histogram that takes many equal values at once. The exporter's own keeps one sample for each event until it is asked.
pub struct Delays {
    /// Number of values in each bucket of [`DELAY_MS`], and above the last. Each value is counted once.
    buckets: [AtomicU64; DELAY_MS.len() + 1],
    sum_ms: AtomicU64,
}

impl Delays {
    const fn new() -> Delays {
        Delays { buckets: [const { AtomicU64::new(0) }; DELAY_MS.len() + 1], sum_ms: AtomicU64::new(0) }
    }

    /// Records `events` delays of `delay_ms` milliseconds.
    pub fn record(&self, delay_ms: u64, events: u64) {
        let bucket = DELAY_MS.partition_point(|&bound_ms| bound_ms < delay_ms);
        self.buckets[bucket].fetch_add(events, Ordering::Relaxed);
        self.sum_ms.fetch_add(delay_ms.saturating_mul(events), Ordering::Relaxed);
    }

    /// Returns the histogram in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = format!(
            "# HELP {QUERYABLE_SECONDS} {QUERYABLE_HELP}\n\
             # TYPE {QUERYABLE_SECONDS} histogram\n"
        );
        let bounds = DELAY_MS.iter().map(|&ms| (ms as f64 / 1_000.0).to_string()).chain(["+Inf".to_owned()]);
        let mut count = 0;
        for (bound, bucket) in bounds.zip(&self.buckets) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(text, "{QUERYABLE_SECONDS}_bucket{{le=\"{bound}\"}} {count}");
        }
        let sum = self.sum_ms.load(Ordering::Relaxed) as f64 / 1_000.0;
        let _ = writeln!(text, "{QUERYABLE_SECONDS}_sum {sum}\n{QUERYABLE_SECONDS}_count {count}");
        text
    }
}

/// Installs the exporter and describes every metric. The returned handle renders them.
///
/// # Errors
/// An exporter is installed already.
pub fn install(topic: &str) -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().set_buckets(SECONDS)?.install_recorder()?;
    for &Metric { name, kind, unit, help, .. } in METRICS.iter().filter(|metric| metric.name != QUERYABLE_SECONDS) {
        match kind {
            Kind::Counter => describe_counter!(name, unit, help),
            Kind::Gauge => describe_gauge!(name, unit, help),
            Kind::Histogram => describe_histogram!(name, unit, help),
        }
    }
    gauge!(INFO, "version" => env!("CARGO_PKG_VERSION"), "topic" => topic.to_owned()).set(1);
    // Otherwise these would appear with the first incident. For Prometheus an increase from nothing to one is no increase.
    [PAUSES, REPLAYS].into_iter().for_each(|name| counter!(name).absolute(0));
    GAP_KINDS.into_iter().for_each(|kind| counter!(OFFSET_GAPS, "kind" => kind).absolute(0));
    Ok(handle)
}

/// Sets the metrics of the process and of the runtime, at the moment of the request.
pub fn sample_process(process: &Collector, ready: bool) {
    process.collect();
    let runtime = tokio::runtime::Handle::current().metrics();
    let busy: Duration = (0..runtime.num_workers()).map(|worker| runtime.worker_total_busy_duration(worker)).sum();
    gauge!(READY).set(f64::from(u8::from(ready)));
    gauge!(RUNTIME_TASKS).set(runtime.num_alive_tasks() as f64);
    gauge!(RUNTIME_QUEUE).set(runtime.global_queue_depth() as f64);
    counter!(RUNTIME_BUSY).absolute(busy.as_secs());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// `UPDATE=1 cargo test -p tallyhouse --lib metrics` writes the page again.
    #[test]
    fn the_page_is_true() {
        let mut page = String::from(
            "# Metrics\n\nServed at `/metrics` of `admin.listen`. A metric with labels appears with its first value. \
             The usual `process_*` metrics show CPU, memory, open files and threads of the process.\n\n\
             | metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n",
        );
        for Metric { name, kind, unit, labels, help } in METRICS {
            let kind = format!("{kind:?}").to_lowercase();
            let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            let _ = writeln!(page, "| `{name}` | {kind} | {} | {labels} | {help} |", unit.as_str());
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), page, "run again with UPDATE=1");
    }

    /// A label with any value from outside (a campaign, a user, an address) would grow without bound. Servers are those of
    /// `clickhouse.url`.
    #[test]
    fn labels_have_few_values() {
        let few = ["reason", "table", "kind", "step", "partition", "broker", "version", "topic", "server"];
        for metric in METRICS {
            assert!(metric.labels.iter().all(|label| few.contains(label)), "{}: {:?}", metric.name, metric.labels);
        }
    }

    /// A constant that is not in the table would be served without a help text and would be missing on the page.
    #[test]
    fn every_name_is_in_the_table_once() {
        let named = include_str!("metrics.rs").lines().filter_map(|line| line.strip_prefix("pub const "));
        let mut named: Vec<&str> =
            named.filter(|line| line.contains(": &str = ")).filter_map(|line| line.split('"').nth(1)).collect();
        let mut listed: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        named.sort_unstable();
        listed.sort_unstable();
        assert_eq!(named, listed);
    }

    #[test]
    fn delays_are_cumulative_in_the_text() {
        let delays = Delays::new();
        delays.record(100, 3);
        delays.record(101, 2);
        delays.record(90_000_000, 1);
        let text = delays.render();
        for (bound, count) in [("0.1", 3), ("0.25", 5), ("86400", 5), ("+Inf", 6)] {
            let line = format!("{QUERYABLE_SECONDS}_bucket{{le=\"{bound}\"}} {count}\n");
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with(&format!("_sum 90000.502\n{QUERYABLE_SECONDS}_count 6\n")), "{text}");
    }
}
