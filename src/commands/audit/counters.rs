//! Compares `daily` with the raw rows, exactly, while members write.
//!
//! Counters are written last, so at any moment some raw rows are rightly not counted yet. A row of source s and month
//! m is to be counted if its offset is before one of these:
//!
//! - The mark of (s, m), `max(end_offset)`. The query that reads the counters reads the mark too. All reads of a
//!   table within one query use the same snapshot, so the mark fits the counters of `daily`.
//! - The offset up to which s was finished before the query began ([`Position::finished_up_to`]). A loss in `daily`
//!   may have taken the mark with it.
//!
//! Members sum the counters of a batch over its sources ([`tallyhouse_core::batch::block`]), so a difference has no
//! source. Two sources whose differences cancel each other out are not seen.
//!
//! One thing is left: ClickHouse takes the snapshots of two tables one after the other. The rows of a batch that was
//! written in between could be missing beside their counters. Such a difference is gone at a second look. So a
//! difference counts only if two looks show it for the same counter and by the same number.
//!
//! Sources of another topic may have members of their own, whose committed offsets are not known here. They are
//! compared up to their marks. Sources of the same topic under an earlier topic id are finished, and they are
//! compared whole.

use super::finding::{Code, CounterName, Finding};
use crate::clickhouse::client::{Client, Statement};
use crate::clickhouse::error::ClickHouseError;
use clickhouse::Row;
use serde::Deserialize;
use std::time::Duration;
use tallyhouse_core::days::Span;
use tallyhouse_core::protocol::outlook::Position;

/// Maximum number of looks at a difference that keeps changing.
const LOOKS_MAX: u32 = 5;
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// The offset up to which each source is to be counted, besides its marks.
#[derive(Clone, Debug)]
pub struct Bounds {
    topic: String,
    sources: Vec<String>,
    finished: Vec<u64>,
}

impl Bounds {
    /// Makes the bounds from the partitions of the topic as they were before the comparison.
    pub fn new(topic: &str, positions: &[Position]) -> Bounds {
        Bounds {
            topic: topic.to_owned(),
            sources: positions.iter().map(|position| position.source.name()).collect(),
            finished: positions.iter().map(Position::finished_up_to).collect(),
        }
    }

    /// Condition on rows that were finished before the bounds were read, for [`Bounds::bind`].
    pub const FINISHED: &str = "source_offset < multiIf(toString(source) IN ?, toUInt64(transform(toString(source), ?, ?, 0)), \
                                startsWith(toString(source), ?), 18446744073709551615, toUInt64(0))";

    /// Binds the values of the bounds to a statement.
    pub fn bind<'c>(&self, statement: Statement<'c>) -> Statement<'c> {
        let statement = statement.bind(&self.sources).bind(&self.sources).bind(&self.finished);
        statement.bind(format!("{}/", self.topic))
    }
}

/// A counter that is not the number of its rows.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct Difference {
    /// UTC day of the counter.
    pub day: String,
    /// Event type of the counter.
    pub event_type: String,
    /// Campaign of the counter.
    pub campaign_id: String,
    /// Workspace of the campaign.
    pub workspace_id: String,
    /// Number of rows in `email_events`.
    pub rows: u64,
    /// Sum of the counter in `daily`.
    pub total: u64,
    all: u64,
}

impl Difference {
    /// Returns the counter's name.
    pub fn counter(&self) -> CounterName {
        CounterName {
            day: self.day.clone(),
            event_type: self.event_type.clone(),
            campaign_id: self.campaign_id.clone(),
            workspace_id: self.workspace_id.clone(),
        }
    }

    /// Returns the difference as a finding.
    pub fn finding(&self) -> Finding {
        let Difference { day, rows, total, .. } = self;
        let month = day.replace('-', "");
        let message = format!(
            "daily says {total}, email_events has {rows}. Where no offset is missing or doubled, `tallyhouse repair daily \
             --month {}` fixes it",
            month.get(..6).unwrap_or_default()
        );
        let mut finding = Finding::new(Code::DailyDiffers, message);
        finding.counter = Some(self.counter());
        (finding.rows, finding.total) = (Some(*rows), Some(*total));
        finding
    }

    fn is_still(&self, later: &Difference) -> bool {
        self.counter() == later.counter() && self.total.wrapping_sub(self.rows) == later.total.wrapping_sub(later.rows)
    }
}

/// Looks once for counters of these days that differ; see the module. Returns the first `limit`, and their whole
/// number.
///
/// # Errors
/// Any of [`ClickHouseError`].
async fn look(
    client: &Client,
    span: &Span,
    bounds: &Bounds,
    limit: u64,
) -> Result<(Vec<Difference>, u64), ClickHouseError> {
    let key = "day, event_type, campaign_id, workspace_id";
    let sql = format!(
        "SELECT toString(day) AS day, toString(event_type) AS event_type, toString(campaign_id) AS campaign_id, \
         toString(workspace_id) AS workspace_id, rows, total, all FROM (\
         SELECT {key}, rows, total, count() OVER () AS all FROM (\
         SELECT {key}, sum(r) AS rows, sum(t) AS total FROM (\
         SELECT {key}, toUInt64(0) AS r, total AS t FROM daily WHERE {counters} \
         UNION ALL \
         SELECT {key}, toUInt64(1), toUInt64(0) FROM (\
         SELECT toDate(event_time) AS day, event_type, campaign_id, workspace_id, source, source_offset, \
         toYYYYMM(event_time) AS month FROM email_events WHERE {rows}) AS e \
         LEFT JOIN (SELECT source, toYYYYMM(day) AS month, max(end_offset) AS mark FROM daily GROUP BY source, month) AS m \
         USING (source, month) \
         WHERE source_offset < greatest(mark, multiIf(toString(source) IN ?, toUInt64(transform(toString(source), ?, ?, 0)), \
         startsWith(toString(source), ?), {everything}, toUInt64(0)))) \
         GROUP BY {key} HAVING rows != total) \
         ORDER BY {key} LIMIT {limit})",
        counters = span.of_counters(),
        rows = span.of_rows(),
        everything = u64::MAX,
    );
    let query = client.query(&sql).optional_setting("enable_shared_storage_snapshot_in_query", "1").await?;
    let found: Vec<Difference> = bounds.bind(query).rows().await?;
    let all = found.first().map_or(0, |difference| difference.all);
    Ok((found, all))
}

/// Returns the counters of these days that differ and stay different: the first `limit`, and their whole number.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn differences(
    client: &Client,
    span: &Span,
    bounds: &Bounds,
    limit: u64,
) -> Result<(Vec<Difference>, u64), ClickHouseError> {
    let mut before = look(client, span, bounds, limit).await?;
    for _ in 1..LOOKS_MAX {
        if before.0.is_empty() {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let mut after = look(client, span, bounds, limit).await?;
        let listed = after.0.len();
        after.0.retain(|later| before.0.iter().any(|earlier| earlier.is_still(later)));
        let same = after.0.len() == listed;
        after.1 -= (listed - after.0.len()) as u64;
        before = after;
        if same {
            break;
        }
    }
    Ok(before)
}
