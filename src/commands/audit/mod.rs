//! `tallyhouse audit`: checks that the tables hold Kafka's records once, and that the counters are the sums of the
//! rows.
//!
//! Must never change anything, neither in ClickHouse nor in Kafka, and never join the group. It may run while members
//! write. The order of its reads separates rows that are still on their way from errors:
//!
//! - Tables first, then the committed offset: an intent or the committed offset then covers each row that was seen,
//!   or nothing covers it.
//! - Committed offset first, then the rows before it: they are then all there, or something is missing.
//! - `daily` against the rows: see [`counters`].
//!
//! ClickHouse does the work, and its GROUP BY spills to disk. The answer is limited per check; beyond the limit
//! findings are only counted.
//!
//! `--since` and `--until` are days of `event_time` for duplicates and counters. A missing record has no
//! `event_time`. So the audit looks for gaps among the offsets whose Kafka timestamp lies in these days. Rejected
//! records have no day either. They are few and sorted by offset, so the search for duplicates looks at all of them.

pub mod counters;
mod error;
pub mod finding;
mod gaps;
pub mod judge;
mod read;
pub mod recipients;
pub mod report;
#[cfg(test)]
mod tests;

pub use error::AuditError;
pub use read::Reader;

/// The audit's queries to ClickHouse.
pub mod tables;

use crate::clickhouse::dedup;
use crate::clickhouse::retention::Retention;
use crate::config::Config;
use crate::platform::output::ProgressFn;
use finding::{Check, Code, Finding};
use report::{Outcome, Report};
use tallyhouse_core::days::{Day, Span};
use tallyhouse_core::protocol::outlook::Position;
use tallyhouse_core::tables::DEDUPLICATION_WINDOW;

/// The days of an audit, and the limit of its lists.
#[derive(Clone, Debug)]
pub struct Options {
    /// First UTC day to look at, if there is a limit.
    pub since: Option<Day>,
    /// Last UTC day to look at, inclusive, if there is a limit.
    pub until: Option<Day>,
    /// Maximum number of findings listed per check.
    pub limit: usize,
}

/// Runs all checks. `lifecycle` has a reader for each lifecycle topic that exists, with the configuration of its pipeline.
///
/// # Errors
/// [`AuditError`] if a check could not be made; there is then no report.
pub async fn run(
    config: &Config,
    reader: &Reader,
    lifecycle: &[(Config, Reader)],
    options: &Options,
    progress: ProgressFn<'_>,
) -> Result<Report, AuditError> {
    let span = Span::new(options.since, options.until);
    let limit = options.limit;
    progress("where each partition stands");
    let positions = reader.positions().await?;
    let group = &config.kafka.group_id;
    let mut offsets = Outcome::new(Check::Offsets, format!("{} partitions", positions.len()));
    let mut intents = Outcome::new(Check::Intents, format!("{} partitions", positions.len()));
    for position in &positions {
        judge::offsets(position, group).into_iter().for_each(|finding| offsets.add(finding, limit));
        judge::intent(position).into_iter().for_each(|finding| intents.add(finding, limit));
    }
    progress("duplicates");
    let duplicates = duplicates(reader, &span, limit).await?;
    progress("gaps");
    let retention = Retention::read(reader.client(), reader.schema()).await?;
    let mut gaps = gaps::check(reader, &positions, &span, &retention, limit).await?;
    for (config, reader) in lifecycle {
        let (topic, group) = (&config.kafka.topics.events, &config.kafka.group_id);
        progress(topic);
        let positions = reader.positions().await?;
        let scope = || format!("{} partitions", positions.len());
        let (mut of_offsets, mut of_intents) =
            (Outcome::new(Check::Offsets, scope()), Outcome::new(Check::Intents, scope()));
        for position in &positions {
            judge::offsets(position, group).into_iter().for_each(|finding| of_offsets.add(finding, limit));
            judge::intent(position).into_iter().for_each(|finding| of_intents.add(finding, limit));
        }
        let of_gaps = gaps::check(reader, &positions, &span, &retention.of_lifecycle(), limit).await?;
        for (outcome, of) in [(&mut offsets, of_offsets), (&mut intents, of_intents), (&mut gaps, of_gaps)] {
            outcome.absorb(of, topic, limit);
        }
    }
    progress("daily against email_events");
    let daily = daily(config, reader, &positions, &span, &retention, limit).await?;
    progress("recipients against email_events");
    let recipients = recipients(config, reader, &positions, &span, &retention, limit).await?;
    progress("deduplication windows");
    let tokens = tokens(reader, limit).await?;
    Ok(Report {
        database: config.clickhouse.database.clone(),
        topic: config.kafka.topics.events.clone(),
        topic_id: positions.first().map_or(String::new(), |position| position.log.topic_id.clone()),
        group_id: group.clone(),
        since: options.since.map(|day| day.to_string()),
        until: options.until.map(|day| day.to_string()),
        checks: vec![duplicates, gaps, daily, recipients, intents, offsets, tokens],
    })
}

/// Checks that the rows themselves are complete and single, before `daily` is counted from those of `span`.
///
/// # Errors
/// Any of [`AuditError`].
pub async fn rows(reader: &Reader, span: &Span, limit: usize) -> Result<[Outcome; 2], AuditError> {
    let positions = reader.positions().await?;
    let retention = Retention::read(reader.client(), reader.schema()).await?;
    let gaps = gaps::check(reader, &positions, &Span::new(None, None), &retention, limit).await?;
    Ok([duplicates(reader, span, limit).await?, gaps])
}

async fn duplicates(reader: &Reader, span: &Span, limit: usize) -> Result<Outcome, AuditError> {
    let mut outcome = Outcome::new(Check::Duplicates, "the tables with offsets".to_owned());
    let (found, all) = tables::duplicates(reader.client(), span, limit as u64).await?;
    let finding = |duplicate: tables::Duplicate| {
        let message = format!(
            "offset {} has {} rows in the table of its stream and {} in rejected_events instead of one",
            duplicate.offset, duplicate.raw, duplicate.rejected
        );
        let mut finding = Finding::new(Code::Duplicate, message).of(duplicate.source);
        finding.rows = Some(duplicate.raw + duplicate.rejected);
        finding.at(duplicate.offset, duplicate.offset + 1)
    };
    outcome.add_first(found.into_iter().map(finding), all, limit);
    Ok(outcome)
}

async fn daily(
    config: &Config,
    reader: &Reader,
    positions: &[Position],
    span: &Span,
    retention: &Retention,
    limit: usize,
) -> Result<Outcome, AuditError> {
    let mut outcome = Outcome::new(Check::Daily, "per day, type, campaign, workspace and source".to_owned());
    let (fences, stagings) = tables::leftovers(reader.client(), "system.tables").await?;
    for name in fences {
        let message = format!(
            "daily has the constraint {name}: a repair runs now, or was interrupted, and until it is gone members cannot count \
             the month it names. If none runs: `tallyhouse repair clean`"
        );
        let mut finding = Finding::new(Code::RepairLeftover, message);
        finding.table = Some("daily".to_owned());
        outcome.add(finding, limit);
    }
    for name in stagings {
        let message = "a repair runs now, or was interrupted. If none runs: `tallyhouse repair clean`";
        let mut finding = Finding::new(Code::RepairLeftover, message);
        finding.table = Some(name);
        outcome.add(finding, limit);
    }
    let (span, expired) = span.split_at(retention.first_kept_day().unwrap_or(Day(0)));
    let (events, last_day) = tables::counted(reader.client(), &expired).await?;
    if events > 0 {
        let message = format!(
            "not checked, expired: {events} events of days up to {last_day} are counted, and email_events no longer keeps their \
             rows (migrate --raw-ttl-days)"
        );
        let mut finding = Finding::new(Code::ExpiredDays, message);
        finding.total = Some(events);
        outcome.add(finding, limit);
    }
    let bounds = counters::Bounds::new(&config.kafka.topics.events, positions);
    let (found, all) = counters::differences(reader.client(), &span, &bounds, limit as u64).await?;
    outcome.add_first(found.iter().map(counters::Difference::finding), all, limit);
    Ok(outcome)
}

async fn recipients(
    config: &Config,
    reader: &Reader,
    positions: &[Position],
    span: &Span,
    retention: &Retention,
    limit: usize,
) -> Result<Outcome, AuditError> {
    if !config.clickhouse.recipients {
        return Ok(Outcome::new(Check::Recipients, "not written: clickhouse.recipients = false".to_owned()));
    }
    let mut outcome = Outcome::new(Check::Recipients, "per campaign, by the rows that are kept".to_owned());
    let (span, _) = span.split_at(retention.first_kept_day().unwrap_or(Day(0)));
    let bounds = counters::Bounds::new(&config.kafka.topics.events, positions);
    let (found, all) = recipients::missing(reader.client(), &span, &bounds, limit as u64).await?;
    outcome.add_first(found.iter().map(recipients::Missing::finding), all, limit);
    Ok(outcome)
}

async fn tokens(reader: &Reader, limit: usize) -> Result<Outcome, AuditError> {
    let mut outcome = Outcome::new(Check::Tokens, "the deduplication windows of the tables".to_owned());
    for window in dedup::windows(reader.client()).await? {
        let headroom_s = window.headroom_s();
        let dedup::Window { table, blocks, recent, at_least_s } = window;
        let code = if blocks == 0 { Code::TokenWindowOff } else { Code::TokenHeadroom };
        let message = match (blocks, recent) {
            (0, _) => format!(
                "no window: a repeated insert is recognised by its marks only. ALTER TABLE {table} MODIFY SETTING \
                 non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}"
            ),
            (_, 0) => format!(
                "a window of {blocks} blocks, none inserted in the last 5 minutes; it covers at least the last {at_least_s} s"
            ),
            _ => format!(
                "a window of {blocks} blocks, {recent} inserted in the last 5 minutes; at that pace it covers {headroom_s} s, and \
                 it covers at least the last {at_least_s} s"
            ),
        };
        let mut finding = Finding::new(code, message);
        finding.rows = Some(recent);
        finding.table = Some(table);
        outcome.add(finding, limit);
    }
    Ok(outcome)
}
