//! The metrics: every name, unit and help text in one place, and the exporter that renders them.
//!
//! Labels must never come from outside: reasons, tables and partitions are bounded, topics and campaigns are not here.

#![allow(missing_docs, reason = "the help texts in the tables below document the names")]

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

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
    (QUERYABLE_SECONDS, Unit::Seconds, "Time from a record's Kafka timestamp to its batch being in ClickHouse"),
];

const SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];
const DELAY_SECONDS: &[f64] =
    &[0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 300.0, 900.0, 3_600.0, 21_600.0, 86_400.0];

/// Installs the exporter and describes every metric; the handle renders them.
///
/// # Errors
/// An exporter is installed already.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets(SECONDS)?
        .set_buckets_for_metric(Matcher::Full(QUERYABLE_SECONDS.to_owned()), DELAY_SECONDS)?
        .install_recorder()?;
    COUNTERS.iter().for_each(|&(name, unit, help)| describe_counter!(name, unit, help));
    GAUGES.iter().for_each(|&(name, unit, help)| describe_gauge!(name, unit, help));
    HISTOGRAMS.iter().for_each(|&(name, unit, help)| describe_histogram!(name, unit, help));
    Ok(handle)
}
