//! Looks up in Kafka the offsets that the tables lack, before the audit calls them missing.
//!
//! Kafka's offsets have gaps of their own (transaction markers, aborted records, compaction). So only a committed
//! record at the offset makes a gap a loss. The time for reading Kafka is limited. An offset that could not be looked
//! up is reported as unchecked.

use super::error::AuditError;
use super::finding::{Check, Code, Finding};
use super::judge::{self, Runs};
use super::read::Reader;
use super::report::Outcome;
use super::tables;
use crate::clickhouse::retention::{Retention, Ttl};
use crate::kafka::observer::ScanEnd;
use crate::platform::clock::unix_ms;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tallyhouse_core::days::{Day, Span};
use tallyhouse_core::protocol::outlook::Position;
use tallyhouse_core::source::OffsetRange;

/// Longest time for reading Kafka's log, over all partitions.
const LOOK_UP_TIME: Duration = Duration::from_secs(120);

/// Kafka's records at offsets that the tables lack.
#[derive(Default)]
struct LookedUp {
    missing: Runs,
    expired_rejects: Runs,
    expired_rows: Runs,
    /// Ranges that were not looked up, each with the reason.
    unchecked: Vec<(OffsetRange, &'static str)>,
}

/// Looks for offsets between the first stored one and the committed one that are in neither table.
///
/// # Errors
/// Any of [`AuditError`].
pub(super) async fn check(
    reader: &Reader,
    positions: &[Position],
    span: &Span,
    retention: &Retention,
    limit: usize,
) -> Result<Outcome, AuditError> {
    let mut ranges = Vec::new();
    let mut before_first = Vec::new();
    for position in positions {
        let Some((range, first)) = range_to_check(reader, position, span).await? else { continue };
        if first > range.start {
            before_first.push((position.source.name(), range.start, first.min(range.end)));
        }
        if first < range.end {
            let range = OffsetRange { start: range.start.max(first), ..range };
            ranges.push((position.source.partition, position.source.name(), range));
        }
    }
    let offsets: u64 = ranges.iter().map(|(_, _, range)| range.end - range.start).sum();
    let mut outcome = Outcome::new(Check::Gaps, format!("{offsets} offsets"));
    for (name, start, first) in before_first {
        let message = format!(
            "the log has offsets {start} up to {first}, and the first stored one comes after them. The group began there, or somebody \
             removed them from the tables"
        );
        outcome.add(Finding::new(Code::BeforeFirst, message).of(name).at(start, first), limit);
    }
    if ranges.is_empty() {
        return Ok(outcome);
    }
    let named: Vec<_> = ranges.iter().map(|(_, name, range)| (name.clone(), *range)).collect();
    let stored = tables::stored_by_bucket(reader.client(), &named).await?;
    let deadline = Instant::now() + LOOK_UP_TIME;
    let nothing = BTreeMap::new();
    for (partition, name, range) in ranges {
        let suspects = judge::suspects(range, stored.get(&name).unwrap_or(&nothing));
        let looked_up = look_up(reader, partition, &name, suspects, retention, deadline).await?;
        report(&mut outcome, &name, looked_up, limit);
    }
    Ok(outcome)
}

/// Returns the offsets that are in the log, committed and of the days in question, and the first stored offset.
async fn range_to_check(
    reader: &Reader,
    position: &Position,
    span: &Span,
) -> Result<Option<(OffsetRange, u64)>, AuditError> {
    let Some(committed) = position.committed() else { return Ok(None) };
    let first = position.first_stored.unwrap_or(u64::MAX);
    let partition = position.source.partition;
    let (first_ms, end_ms) = (span.first_ms(), span.end_ms());
    let (since, until) = reader
        .kafka(move |observer| {
            let at = |time: Option<i64>| time.map(|time| observer.offset_at(partition, time)).transpose();
            Ok((at(first_ms)?, at(end_ms)?))
        })
        .await?;
    // No record is that young, so the log holds nothing of these days.
    let start = since.map_or(Some(position.log.low), |since| since.map(|since| since.max(position.log.low)));
    let end = until.flatten().map_or(committed, |until| until.min(committed));
    Ok(start.filter(|&start| start < end).map(|start| (OffsetRange { start, end }, first)))
}

async fn look_up(
    reader: &Reader,
    partition: i32,
    name: &str,
    suspects: Vec<judge::Suspect>,
    retention: &Retention,
    deadline: Instant,
) -> Result<LookedUp, AuditError> {
    let mut gaps: Vec<OffsetRange> = Vec::new();
    let mut unchecked = Vec::new();
    for suspect in suspects {
        if gaps.len() >= Runs::RANGES_MAX {
            unchecked.push((suspect.range, "there are too many gaps before it"));
        } else if suspect.empty {
            gaps.push(suspect.range);
        } else {
            gaps.extend(tables::missing(reader.client(), name, suspect.range).await?);
        }
    }
    if gaps.is_empty() {
        return Ok(LookedUp { unchecked, ..LookedUp::default() });
    }
    let decoder = reader.decoder();
    let rejects_from_ms = match retention.rejected {
        Ttl::Days(days) => unix_ms() - i64::from(days) * 86_400_000,
        Ttl::None | Ttl::Other(_) => i64::MIN,
    };
    let first_kept_day = retention.first_kept_day().unwrap_or(Day(0));
    let found = reader.kafka(move |observer| {
        let mut found = LookedUp { unchecked: unchecked.clone(), ..LookedUp::default() };
        for span in judge::spans(&gaps) {
            let LookedUp { missing, expired_rejects, expired_rows, .. } = &mut found;
            let look = observer.look(partition, span, deadline, &mut |record| {
                if !judge::contains(&gaps, record.offset) {
                    return;
                }
                let runs = match decoder.decode(record.payload, record.timestamp_ms) {
                    Ok(event) if Day::of(event.event_time) < first_kept_day => &mut *expired_rows,
                    Err(_) if record.timestamp_ms.is_some_and(|time| time < rejects_from_ms) => &mut *expired_rejects,
                    _ => &mut *missing,
                };
                runs.push(record.offset);
            })?;
            match look {
                ScanEnd::Done => {}
                ScanEnd::Gone => found.unchecked.push((span, "they are gone from the log")),
                ScanEnd::TimeUp(next) => {
                    found.unchecked.push((OffsetRange { start: next, ..span }, "reading the log took too long"));
                }
            }
        }
        Ok(found)
    });
    found.await
}

fn report(outcome: &mut Outcome, name: &str, looked_up: LookedUp, limit: usize) {
    let LookedUp { missing, expired_rejects, expired_rows, unchecked } = looked_up;
    let listed: u64 = missing.ranges.iter().map(|range| range.end - range.start).sum();
    for range in missing.ranges {
        let records = range.end - range.start;
        let message = format!(
            "Kafka has records at the offsets {range}, which are committed, but neither the table of their stream nor rejected_events has them"
        );
        let mut finding = Finding::new(Code::Missing, message).of(name).at(range.start, range.end);
        finding.rows = Some(records);
        outcome.add(finding, limit);
    }
    if missing.offsets > listed {
        outcome.violations += 1;
    }
    for (code, runs, what) in [
        (Code::ExpiredRejects, expired_rejects, "no events and older than rejected_events keeps them"),
        (Code::ExpiredRows, expired_rows, "events of days that email_events no longer keeps"),
    ] {
        if let (Some(first), Some(last)) = (runs.ranges.first(), runs.ranges.last()) {
            let (start, end) = (first.start, last.end);
            let message = format!("{} records between offsets {start} and {end} are {what}", runs.offsets);
            let mut finding = Finding::new(code, message).of(name).at(start, end);
            finding.rows = Some(runs.offsets);
            outcome.add(finding, limit);
        }
    }
    for (range, why) in unchecked {
        let message =
            format!("the tables have gaps within offsets {range}, which could not be looked up in Kafka: {why}");
        outcome.add(Finding::new(Code::Unchecked, message).of(name).at(range.start, range.end), limit);
    }
}
