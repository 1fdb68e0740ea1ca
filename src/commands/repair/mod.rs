//! `tallyhouse repair daily`: counts whole months again from the raw rows, while members go on writing.
//!
//! ```text
//!  create staging ─► count rows [0, x0) ─► FENCE ─► drain ─► count rows [x0, x1) ─► compare marks ─► swap ─► verify ─► unfence
//!                    (long, nobody waits)  └────────────── short: members cannot count this month ──────────┘
//! ```
//!
//! **Why a fence.** The swap (`REPLACE PARTITION`) is atomic, but it replaces everything in the partition. A member
//! may insert counters between the repair's count and its swap. They would be gone although ClickHouse confirmed them
//! to the member. ClickHouse has no conditional swap. Once counters are merged into rows of `daily`, they cannot be
//! taken out of these again.
//!
//! So for the short end of the work a constraint on `daily` (`CHECK toYYYYMM(day) NOT IN (month)`) refuses inserts
//! into this month. Tried on ClickHouse 26.7:
//!
//! - The constraint takes effect for every insert that begins after the ALTER has returned.
//! - A block with several months is refused whole, before anything of it is written.
//! - An insert that was under way keeps the metadata it began with and still goes in.
//!
//! Hence the drain: the repair waits for the inserts that `system.processes` shows after the ALTER. A member handles
//! a refused insert as any other. It asks the marks, finds its counters missing, and tries again with backoff until
//! the fence is gone.
//!
//! **The rows that are counted.** Under the fence every batch of a source either is in this month's counters, or a
//! member will put it there later. The border x is an offset from Kafka and the marks
//! ([`counted_up_to`](tallyhouse_core::protocol::outlook::Position::counted_up_to)). Rows before x are complete (raw
//! rows are written before counters), so counting them is exact. `end_offset = x` then has its usual meaning for
//! them. Before the swap the repair checks that no mark falls: a lower mark would make a member count twice.
//!
//! **An interrupted repair.** Constraint and staging table have a number of their own in their names. `clean` (also
//! the first step of each repair) drops the staging table first. A repair that used it cannot swap any more, even if
//! it was only stopped and wakes up. Only then does `clean` drop the constraint.
//!
//! **On replicas** the fence stands on all of them before the drain, which asks all of them. The repair counts on one named server,
//! after a sync. The fence stays for a while after the swap ([`shard`]).
//!
//! It must never swap without its fence standing, nor leave a fence behind without saying so.

mod error;
mod fence;
pub mod recipients;
mod shard;
mod staging;

pub use error::RepairError;
pub use fence::{Standing, clean};
pub use shard::Shard;

use crate::clickhouse::client::Client;
use crate::clickhouse::retention::Retention;
use crate::clickhouse::schema::Schema;
use crate::clickhouse::sight;
use crate::commands::audit::counters::{self, Bounds, Difference};
use crate::commands::audit::finding::Severity;
use crate::commands::audit::{self, Reader, tables};
use crate::config::Config;
use crate::platform::failpoint;
use crate::platform::output::ProgressFn;
use fence::Fence;
use staging::{Borders, Staging};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;
use tallyhouse_core::days::{Day, Month, Span};
use tokio_util::sync::CancellationToken;

/// Maximum number of differences that are printed per month.
const SHOWN_MAX: u64 = 20;

/// The options of a repair.
#[derive(Clone, Debug)]
pub struct Options {
    /// The months to count again.
    pub months: Vec<Month>,
    /// True if the repair only prints its plan, and changes nothing.
    pub dry_run: bool,
    /// True if the repair goes on although rows are gone or doubled. `daily` then gets the counts of `email_events`.
    pub trust_rows: bool,
    /// True if nobody writes sources of other topics or topic ids any more. Their rows are then counted to the last.
    pub others_closed: bool,
}

/// Asks a repair to end early, and knows the fence that would stand if its process ended now.
#[derive(Clone, Debug, Default)]
pub struct Interrupts {
    /// Token that asks for an end in order.
    pub stop: CancellationToken,
    /// The fence that stands.
    pub standing: Standing,
}

/// Counts the months again. Returns the number of counters that differ afterwards (with `dry_run`: now).
///
/// # Errors
/// [`RepairError`]. Unless the error says otherwise, the month at which it happened is unchanged.
pub async fn daily(
    config: &Config,
    reader: &Reader,
    options: &Options,
    interrupts: &Interrupts,
    say: ProgressFn<'_>,
) -> Result<u64, RepairError> {
    prove(reader.client(), reader.schema()).await?;
    let shard = Shard::of(config, reader.client(), reader.schema())?;
    shard.refuse_absent(reader.client()).await?;
    let leftovers = tables::leftovers(reader.client(), &shard.system("tables")).await?;
    if leftovers != Default::default() {
        say(
            "an earlier repair was interrupted (or another one runs, and will fail): its constraint and table go first",
        );
        if !options.dry_run {
            clean(reader.client(), &shard, say).await?;
        }
    }
    let mut left = 0;
    for &month in &options.months {
        left += repair_month(config, reader, &shard, month, options, interrupts, say).await?;
    }
    Ok(left)
}

/// Checks the tables, and that no profile or row policy hides rows. These would not be counted.
async fn prove(client: &Client, schema: &Schema) -> Result<(), RepairError> {
    client.prove().await?;
    schema.check(client).await?;
    Ok(sight::refuse_filters(client).await?)
}

async fn repair_month(
    config: &Config,
    reader: &Reader,
    shard: &Shard,
    month: Month,
    options: &Options,
    interrupts: &Interrupts,
    say: ProgressFn<'_>,
) -> Result<u64, RepairError> {
    let stop = &interrupts.stop;
    let number = month.number();
    let retention = Retention::read(reader.client(), reader.schema()).await?;
    let (kept, expired) = month.span().split_at(retention.first_kept_day().unwrap_or(Day(0)));
    let (gone, last_day) = tables::counted(reader.client(), &expired).await?;
    let span = if options.trust_rows { month.span() } else { kept };
    if gone > 0 {
        say(&format!("month {number}: the rows of its days up to {last_day} have expired ({gone} events are counted)"));
    }
    let (differences, all) = unless(stop, differences(config, reader, &span)).await?;
    say(&format!("month {number}: {all} counters differ from the raw rows"));
    show(&differences, all, say);
    if all == 0 {
        return Ok(0);
    }
    if !options.trust_rows {
        if gone > 0 {
            return Err(RepairError::Refused(format!(
                "the rows of {number} up to {last_day} have expired (migrate --raw-ttl-days): counting the month again would lose \
                 {gone} events. If that is wanted: --trust-rows"
            )));
        }
        unless(stop, staging::refuse_fewer(reader.client(), month)).await?;
        unless(stop, refuse_damaged_rows(reader, month)).await?;
    }
    let staging = Staging::new(reader.client(), month);
    let fence = Fence::new(&staging, shard, &interrupts.standing);
    if options.dry_run {
        say("would run, with the offsets of that moment:");
        let [create, insert, replace, drop_table] = staging.statements();
        let [add, drop] = fence.statements();
        let statements = [&create, &insert, &add, &insert, &replace, &drop, &drop_table];
        statements.iter().for_each(|sql| say(&format!("  {sql};")));
        return Ok(all);
    }
    let rebuilt = caught(rebuild(reader, &staging, &fence, options, stop, say)).await;
    fence::take_down(&staging, &fence, rebuilt, say).await?;
    let (differences, left) = self::differences(config, reader, &span).await?;
    say(&format!("month {number}: {left} counters differ now"));
    show(&differences, left, say);
    if left > 0 && !options.others_closed {
        say("what is left may belong to earlier topics: --others-closed counts them to their last row");
    }
    Ok(left)
}

/// Does work that a signal may interrupt, as the work begins nothing that must be ended.
async fn unless<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, RepairError>>,
) -> Result<T, RepairError> {
    tokio::select! {
        done = work => done,
        () = stop.cancelled() => Err(RepairError::Interrupted),
    }
}

/// Returns a panic of `work` as an error, so that the fence and the table are taken down.
async fn caught<T>(work: impl Future<Output = Result<T, RepairError>>) -> Result<T, RepairError> {
    let mut work = pin!(work);
    poll_fn(|context| {
        let polled = catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context)));
        polled.unwrap_or(Poll::Ready(Err(RepairError::Panicked)))
    })
    .await
}

/// Refuses a month with missing or doubled rows. They would be carried into `daily`, where the right count may still
/// stand.
async fn refuse_damaged_rows(reader: &Reader, month: Month) -> Result<(), RepairError> {
    let damaged = audit::rows(reader, &month.span(), 1).await?;
    let first = damaged.iter().flat_map(|outcome| &outcome.findings).find(|f| f.severity == Severity::Violation);
    match first {
        None => Ok(()),
        Some(finding) => Err(RepairError::Refused(format!(
            "the rows to count from are not right themselves: {}: {}. `tallyhouse audit` lists all; fix the rows first, or count \
             what is there with --trust-rows",
            finding.source.as_deref().unwrap_or_default(),
            finding.message
        ))),
    }
}

async fn differences(config: &Config, reader: &Reader, span: &Span) -> Result<(Vec<Difference>, u64), RepairError> {
    let positions = reader.positions().await?;
    let bounds = Bounds::new(&config.kafka.topics.events, &positions);
    Ok(counters::differences(reader.client(), span, &bounds, SHOWN_MAX).await?)
}

fn show(differences: &[Difference], all: u64, say: ProgressFn<'_>) {
    for difference in differences {
        let Difference { day, event_type, campaign_id, rows, total, .. } = difference;
        say(&format!("  {day} {event_type} campaign {campaign_id}: daily {total}, rows {rows}"));
    }
    if all > differences.len() as u64 {
        say(&format!("  … and {} more", all - differences.len() as u64));
    }
}

/// Does all steps for the month, except taking fence and staging table down.
async fn rebuild(
    reader: &Reader,
    staging: &Staging<'_>,
    fence: &Fence<'_>,
    options: &Options,
    stop: &CancellationToken,
    say: ProgressFn<'_>,
) -> Result<(), RepairError> {
    let before = borders(reader, staging, options).await?;
    staging.create().await?;
    say("counting the raw rows; members are not disturbed");
    unless(stop, async { Ok(staging.count(None, &before).await?) }).await?;
    failpoint::hit("repair_counted");
    say("members wait from here on");
    let fenced_at = Instant::now();
    // No signal may interrupt this. An abandoned request could still put the fence up after it was taken down.
    fence.put_up(reader.client()).await?;
    let counted = async {
        fence.drain(reader.client()).await?;
        failpoint::hit("repair_fenced");
        let after = borders(reader, staging, options).await?;
        after.check_not_before(&before)?;
        staging.count(Some(&before), &after).await?;
        staging.refuse_lower_marks(&after, options.trust_rows).await
    };
    unless(stop, counted).await?;
    if stop.is_cancelled() {
        return Err(RepairError::Interrupted);
    }
    fence.swap(staging).await?;
    failpoint::hit("repair_swapped");
    staging.verify().await?;
    say(&format!("swapped and verified; members have waited {:.1} s", fenced_at.elapsed().as_secs_f64()));
    Ok(())
}

/// Returns the offset up to which each source is counted in the month, from one reading of tables and Kafka.
async fn borders(reader: &Reader, staging: &Staging<'_>, options: &Options) -> Result<Borders, RepairError> {
    let positions = reader.positions().await?;
    if let Some(position) = positions.iter().find(|position| position.metadata().is_err()) {
        let source = position.source.name();
        let why = format!("the committed offset of {source} cannot be read: `tallyhouse audit` says what to do");
        return Err(RepairError::Refused(why));
    }
    let (mut ends, mut needed) = (Vec::new(), Vec::new());
    for found in staging.sources().await? {
        let mark = Some(found.mark).filter(|&mark| mark > 0);
        let position = positions.iter().find(|position| position.source.name() == found.source);
        if position.is_some_and(|position| position.committed().is_none_or(|committed| committed < found.mark)) {
            needed.push(found.source.clone());
        }
        let end = match position {
            Some(position) => position.counted_up_to(mark).map_err(|range| {
                let (source, mark) = (&found.source, found.mark);
                RepairError::Refused(format!("the mark {mark} of {source} lies inside its open batch {range}"))
            })?,
            None if options.others_closed => found.mark.max(found.rows_end),
            None => found.mark,
        };
        ends.push((found.source, end));
    }
    // A member may have stored rows before these borders on another replica.
    reader.client().sync().await?;
    Ok(Borders::new(ends, needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error() {
        let panicking = async {
            tokio::task::yield_now().await;
            if Instant::now().elapsed().as_secs() < 60 {
                panic!("on purpose");
            }
            Ok(())
        };
        assert!(matches!(caught(panicking).await, Err(RepairError::Panicked)));
        assert!(caught(async { Ok(1) }).await.is_ok_and(|one| one == 1));
    }
}
