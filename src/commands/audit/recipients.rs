//! Compares `recipients` with the raw rows, while members write.
//!
//! Recipients are written before the counters of their batch, so those of each row before the committed offset are there. The
//! offsets are read before the tables. A recipient may show more than the rows: rows expire, and an erasure blanks addresses.

use super::counters::Bounds;
use super::finding::{Code, Finding};
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::recipients::{COLUMNS, FIRSTS, recount, stored};
use clickhouse::Row;
use serde::Deserialize;
use tallyhouse_core::days::Span;
use tallyhouse_core::recipients::NEVER;

/// A campaign of which recipients are missing, or show less than the rows.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct Missing {
    /// Campaign of the recipients.
    pub campaign_id: String,
    /// Number of its recipients that are missing or show less.
    pub recipients: u64,
    all: u64,
}

impl Missing {
    /// Returns the finding about the campaign.
    pub fn finding(&self) -> Finding {
        let Missing { campaign_id, recipients, .. } = self;
        let message = format!(
            "{recipients} recipients of campaign {campaign_id} are missing in recipients, or show fewer events than their rows. \
             `tallyhouse repair recipients --campaign {campaign_id}` adds them"
        );
        let mut finding = Finding::new(Code::RecipientsMissing, message);
        (finding.rows, finding.table) = (Some(*recipients), Some("recipients".to_owned()));
        finding
    }
}

/// Returns the campaigns of which recipients are missing, by the rows of these days: the first `limit`, and their whole number.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn missing(
    client: &Client,
    span: &Span,
    bounds: &Bounds,
    limit: u64,
) -> Result<(Vec<Missing>, u64), ClickHouseError> {
    // A recipient is one row here for its raw rows, and one for its rows of `recipients`. The first figure is the flags.
    let later = (2..).zip(FIRSTS).map(|(place, _)| format!("row.{place} < stored.{place}"));
    let fewer: Vec<String> = std::iter::once("bitAnd(row.1, bitNot(stored.1)) != 0".to_owned()).chain(later).collect();
    let figures = format!("tuple({})", COLUMNS.join(", "));
    let none = format!("tuple(toUInt16(0){})", format!(", toDateTime({NEVER}, 'UTC')").repeat(FIRSTS.len()));
    let sql = format!(
        "SELECT toString(campaign_id) AS campaign_id, count() AS recipients, count() OVER () AS all FROM \
         (SELECT campaign_id, recipient, anyIf(figures, is_row) AS row, if(countIf(NOT is_row) = 0, {none}, anyIf(figures, NOT is_row)) AS stored \
         FROM (SELECT campaign_id, recipient, true AS is_row, {figures} AS figures FROM ({rows}) \
         UNION ALL SELECT campaign_id, recipient, false, {figures} FROM ({stored})) \
         GROUP BY campaign_id, recipient HAVING countIf(is_row) > 0 AND ({fewer})) \
         GROUP BY campaign_id ORDER BY recipients DESC, campaign_id LIMIT {limit}",
        rows = recount(&format!("{} AND {}", span.of_rows(), Bounds::FINISHED)),
        stored = stored("true"),
        fewer = fewer.join(" OR "),
    );
    let found: Vec<Missing> = bounds.bind(client.query(&sql)).rows().await?;
    let all = found.first().map_or(0, |missing| missing.all);
    Ok((found, all))
}
