//! `tallyhouse repair recipients`: adds the recipients that raw rows show, while members go on writing.
//!
//! A row of `recipients` that is written twice changes nothing. So the repair needs no fence, may be interrupted anywhere, and may
//! run again. It removes nothing: rows expire and erasures blank addresses, so a recipient without rows may be right.

use super::RepairError;
use crate::clickhouse::client::Client;
use crate::clickhouse::recipients::{self, COLUMNS};
use crate::clickhouse::schema::Schema;
use crate::clickhouse::sight;
use crate::platform::failpoint;
use crate::platform::output::ProgressFn;
use tallyhouse_core::tables::RECIPIENTS_NAME;
use uuid::Uuid;

/// Adds the recipients of all raw rows, or of those of one campaign, day by day.
///
/// # Errors
/// [`RepairError`]. What was added before stays.
pub async fn add(
    client: &Client,
    schema: &Schema,
    campaign: Option<Uuid>,
    dry_run: bool,
    say: ProgressFn<'_>,
) -> Result<(), RepairError> {
    // Rows that a profile or a row policy hides would not be added.
    client.prove().await?;
    schema.check(client).await?;
    sight::refuse_filters(client).await?;
    recipients::key(client).await?;
    let campaign = campaign.map(|id| id.to_string());
    let of_campaign = if campaign.is_some() { "campaign_id = toUUID(?)" } else { "true" };
    let days = format!(
        "SELECT DISTINCT toYYYYMMDD(event_time) AS day FROM email_events WHERE email != '' AND {of_campaign} ORDER BY day"
    );
    let question = client.query(&days);
    let question = campaign.iter().fold(question, |question, id| question.bind(id));
    let days: Vec<u32> = question.rows().await?;
    say(&format!("raw rows with an address are there for {} UTC days", days.len()));
    let rows = recipients::recount(&format!("toYYYYMMDD(event_time) = ? AND {of_campaign}"));
    let columns = COLUMNS.join(", ");
    let insert =
        format!("INSERT INTO {} (campaign_id, recipient, {columns}) {rows}", schema.insert_target(RECIPIENTS_NAME));
    if dry_run {
        say(&format!("would run for each of these days:\n  {insert};"));
        return Ok(());
    }
    for (number, day) in (1..).zip(&days) {
        let statement = client.query(&insert).inserting().await?.bind(day);
        campaign.iter().fold(statement, |statement, id| statement.bind(id)).execute().await?;
        say(&format!("day {number} of {}: {day}", days.len()));
        failpoint::hit("repair_recipients_day");
    }
    Ok(())
}
