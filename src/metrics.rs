//! The metrics: every name, unit and help text in one place, and the exporter that renders them.
//!
//! Labels must never come from outside: reasons, tables and partitions are bounded, topics and campaigns are not here.

#![allow(missing_docs, reason = "the help texts in the tables below document the names")]

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

// What each counts stands in the tables below.
pub const CONSUMED: &str = "tallyhouse_consumed_records_total";
pub const DECODED: &str = "tallyhouse_decoded_events_total";
pub const REJECTED: &str = "tallyhouse_rejected_records_total";
pub const UNKNOWN_FIELDS: &str = "tallyhouse_unknown_fields_total";
pub const FLUSHED_ROWS: &str = "tallyhouse_flushed_rows_total";
pub const FLUSHED_BATCHES: &str = "tallyhouse_flushed_batches_total";
pub const FLUSH_SECONDS: &str = "tallyhouse_flush_duration_seconds";
pub const INSERT_SECONDS: &str = "tallyhouse_insert_duration_seconds";
pub const COMMIT_SECONDS: &str = "tallyhouse_commit_duration_seconds";
pub const QUERYABLE_SECONDS: &str = "tallyhouse_event_to_queryable_seconds";
pub const POSITION_LAG: &str = "tallyhouse_position_lag_records";
pub const COMMITTED_LAG: &str = "tallyhouse_committed_lag_records";
pub const MEMORY_USED: &str = "tallyhouse_memory_used_bytes";
pub const MEMORY_LIMIT: &str = "tallyhouse_memory_limit_bytes";
pub const PAUSES: &str = "tallyhouse_pauses_total";
pub const PAUSED: &str = "tallyhouse_paused";
pub const REBALANCES: &str = "tallyhouse_rebalances_total";
pub const RETRIES: &str = "tallyhouse_retries_total";
pub const REPLAYS: &str = "tallyhouse_replays_total";
pub const ASSIGNED: &str = "tallyhouse_assigned_partitions";
pub const STOPPED: &str = "tallyhouse_stopped_partitions";
pub const FLUSH_AGE: &str = "tallyhouse_flush_age_seconds";

const COUNTERS: &[(&str, Unit, &str)] = &[
    (CONSUMED, Unit::Count, "Records taken from Kafka"),
    (DECODED, Unit::Count, "Records that were events"),
    (REJECTED, Unit::Count, "Records that were no events, by reason"),
    (UNKNOWN_FIELDS, Unit::Count, "Fields of events that are none of the six and were ignored"),
    (FLUSHED_ROWS, Unit::Count, "Rows that ClickHouse acknowledged, by table"),
    (FLUSHED_BATCHES, Unit::Count, "Batches whose end is committed"),
    (PAUSES, Unit::Count, "Times that the memory limit paused consumption"),
    (REBALANCES, Unit::Count, "Rebalances, by kind (assigned, revoked, lost)"),
    (RETRIES, Unit::Count, "Steps done again after a failure, by step"),
    (REPLAYS, Unit::Count, "Announced batches of an earlier owner that were read again"),
];

const GAUGES: &[(&str, Unit, &str)] = &[
    (POSITION_LAG, Unit::Count, "Records in the log that are not consumed yet, by partition"),
    (COMMITTED_LAG, Unit::Count, "Records in the log that are not committed yet, by partition"),
    (MEMORY_USED, Unit::Bytes, "Memory that windows and batches hold"),
    (MEMORY_LIMIT, Unit::Bytes, "Memory that windows and batches may hold before consumption pauses"),
    (PAUSED, Unit::Count, "1 while the memory limit pauses consumption"),
    (ASSIGNED, Unit::Count, "Partitions that are ours"),
    (STOPPED, Unit::Count, "Partitions that are ours and stopped, by reason: docs/stops/<reason>.md says what to do"),
    (FLUSH_AGE, Unit::Seconds, "Age at which a window is flushed; above flush.age_ms while the pace is slowed"),
];

const HISTOGRAMS: &[(&str, Unit, &str)] = &[
    (FLUSH_SECONDS, Unit::Seconds, "Time from freezing a batch to committing its end"),
    (INSERT_SECONDS, Unit::Seconds, "Time of one insert, by table"),
    (COMMIT_SECONDS, Unit::Seconds, "Time of one commit with its comparison"),
];

const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
/// Upper bounds of the buckets of [`QUERYABLE`], in milliseconds.
const DELAY_MS: [u64; 17] = [
    100, 250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 30_000, 60_000, 300_000, 900_000, 3_600_000,
    21_600_000, 86_400_000,
];

/// The delays of all events, as [`QUERYABLE_SECONDS`].
pub static QUERYABLE: Delays = Delays::new();

/// A histogram that takes many equal values at once: the exporter's own keeps one sample for each event until it is asked.
pub struct Delays {
    /// Values in each bucket of [`DELAY_MS`], and above the last, each counted once.
    buckets: [AtomicU64; DELAY_MS.len() + 1],
    sum_ms: AtomicU64,
}

impl Delays {
    const fn new() -> Delays {
        Delays { buckets: [const { AtomicU64::new(0) }; DELAY_MS.len() + 1], sum_ms: AtomicU64::new(0) }
    }

    /// Takes `events` delays of `delay_ms` milliseconds.
    pub fn record(&self, delay_ms: u64, events: u64) {
        let bucket = DELAY_MS.partition_point(|&bound_ms| bound_ms < delay_ms);
        self.buckets[bucket].fetch_add(events, Ordering::Relaxed);
        self.sum_ms.fetch_add(delay_ms.saturating_mul(events), Ordering::Relaxed);
    }

    /// The histogram in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = format!(
            "# HELP {QUERYABLE_SECONDS} Time from a record's Kafka timestamp to its batch being in ClickHouse\n\
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

/// Installs the exporter and describes every metric; the handle renders them.
///
/// # Errors
/// An exporter is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new().set_buckets(SECONDS)?.install_recorder()?;
    COUNTERS.iter().for_each(|&(name, unit, help)| describe_counter!(name, unit, help));
    GAUGES.iter().for_each(|&(name, unit, help)| describe_gauge!(name, unit, help));
    HISTOGRAMS.iter().for_each(|&(name, unit, help)| describe_histogram!(name, unit, help));
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

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
