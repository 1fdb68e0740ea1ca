//! Compares `recipients` with the raw rows, while members write.
//!
//! Recipients are written before the counters of their batch, so those of each row before the committed offset are there. The
//! offsets are read before the tables. A recipient may show more than the rows: rows expire, and an erasure blanks addresses.

use super::counters::Bounds;
use super::finding::{Code, Finding};
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::recipients;
use clickhouse::Row;
use serde::Deserialize;
use tallyhouse_core::days::Span;

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
    let missing = recipients::ahead("rows", "stored", &format!("{} AND {}", span.of_rows(), Bounds::FINISHED), "true");
    let sql = format!(
        "SELECT toString(campaign_id) AS campaign_id, count() AS recipients, count() OVER () AS all FROM ({missing}) \
         GROUP BY campaign_id ORDER BY recipients DESC, campaign_id LIMIT {limit}"
    );
    let found: Vec<Missing> = bounds.bind(client.query(&sql)).rows().await?;
    let all = found.first().map_or(0, |missing| missing.all);
    Ok((found, all))
}
