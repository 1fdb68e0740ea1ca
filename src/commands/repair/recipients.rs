//! `tallyhouse repair recipients`: adds the recipients that raw rows show, while members go on writing.
//!
//! A row of `recipients` that is written twice changes nothing. So the repair needs no fence, may be interrupted anywhere, and may
//! run again.
//!
//! Rows expire and erasures blank addresses, so a recipient without rows may be right. A campaign is removable only if the rows of its
//! whole life are there. Then no counter of `daily` has more events than rows, and no row is without an address.
//! [`remove`] deletes all recipients of such a campaign, and then adds those of its rows. A member writes raw rows before recipients. So
//! what it writes meanwhile is added too, and a removal that is cut short is completed by adding.

use super::{RepairError, prove};
use crate::clickhouse::client::{Client, Statement};
use crate::clickhouse::recipients::{self, COLUMNS};
use crate::clickhouse::retention::{Retention, Ttl};
use crate::clickhouse::schema::Schema;
use crate::platform::failpoint;
use crate::platform::output::ProgressFn;
use clickhouse::Row;
use serde::Deserialize;
use tallyhouse_core::days::Day;
use tallyhouse_core::tables::RECIPIENTS_NAME;
use uuid::Uuid;

/// A campaign with recipients that its rows do not show.
#[derive(Debug, Row, Deserialize)]
pub struct Wrong {
    campaign_id: String,
    recipients: u64,
    /// True if the rows of the campaign's whole life are there, so that its recipients can be counted again.
    pub is_removable: bool,
}

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
    prove(client, schema).await?;
    recipients::key(client).await?;
    add_shown(client, schema, campaign.map(|id| id.to_string()).as_deref(), dry_run, say).await
}

/// Adds what the rows show, once all is proven that [`add`] needs.
async fn add_shown(
    client: &Client,
    schema: &Schema,
    campaign: Option<&str>,
    dry_run: bool,
    say: ProgressFn<'_>,
) -> Result<(), RepairError> {
    let of_campaign = of_campaign(campaign);
    let days = format!(
        "SELECT DISTINCT toYYYYMMDD(event_time) AS day FROM email_events WHERE email != '' AND {of_campaign} ORDER BY day"
    );
    let days: Vec<u32> = bind(client.query(&days), campaign, 1).rows().await?;
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
        bind(statement, campaign, 1).execute().await?;
        say(&format!("day {number} of {}: {day}", days.len()));
        failpoint::hit("repair_recipients_day");
    }
    Ok(())
}

/// Finds recipients that the rows do not show, of all campaigns or of one. Prints them by campaign.
///
/// # Errors
/// [`RepairError`].
pub async fn find_wrong(
    client: &Client,
    schema: &Schema,
    campaign: Option<Uuid>,
    say: ProgressFn<'_>,
) -> Result<Vec<Wrong>, RepairError> {
    prove(client, schema).await?;
    recipients::key(client).await?;
    let found = wrong(client, schema, campaign.map(|id| id.to_string()).as_deref()).await?;
    say(&format!("{} campaigns have recipients, types or first times that their rows do not show", found.len()));
    for Wrong { campaign_id, recipients, is_removable } in &found {
        let what = match is_removable {
            true => "its recipients would be deleted, and those of its rows added",
            false => {
                "left as it is: rows of its life have expired or are about to, or some have no address, as after an erasure"
            }
        };
        say(&format!("  campaign {campaign_id}: {recipients} recipients; {what}"));
    }
    Ok(found)
}

/// Replaces the recipients of each removable campaign by those of its rows. Returns the number of wrong recipients that are left in
/// these campaigns.
///
/// # Errors
/// [`RepairError`]. A campaign at which it happened may have too few recipients until [`add`] or the same command runs again.
pub async fn remove(
    client: &Client,
    schema: &Schema,
    found: &[Wrong],
    say: ProgressFn<'_>,
) -> Result<u64, RepairError> {
    let target = schema.alter_target(client.database(), RECIPIENTS_NAME);
    let mut left = 0;
    for Wrong { campaign_id, .. } in found.iter().filter(|wrong| wrong.is_removable) {
        say(&format!(
            "campaign {campaign_id}: deleting its recipients; its figures are too low until they are added again"
        ));
        let delete = client.query(&format!("ALTER TABLE {target} DELETE WHERE campaign_id = toUUID(?)"));
        delete.bind(campaign_id).setting("mutations_sync", "2").execute().await?;
        failpoint::hit("repair_recipients_deleted");
        client.sync().await?;
        let campaign = Some(campaign_id.as_str());
        add_shown(client, schema, campaign, false, say).await?;
        left += wrong(client, schema, campaign).await?.iter().map(|wrong| wrong.recipients).sum::<u64>();
    }
    Ok(left)
}

/// Returns the campaigns with recipients that their rows do not show.
async fn wrong(client: &Client, schema: &Schema, campaign: Option<&str>) -> Result<Vec<Wrong>, RepairError> {
    client.sync().await?;
    let retention = Retention::read(client, schema).await?;
    if let Ttl::Other(ttl) = &retention.raw {
        return Err(RepairError::Refused(format!(
            "email_events has a TTL of its own ({ttl}), so nobody can know if a campaign's rows are all there"
        )));
    }
    // A day's distance, so that no row expires during the repair.
    let first_day = retention.first_kept_day().map_or(Day(0), |day| Day(day.0 + 1));
    let of_campaign = of_campaign(campaign);
    let whole = format!(
        "SELECT campaign_id FROM (SELECT campaign_id, day, event_type, sum(counted) AS counted, sum(row) AS rows, sum(blank) AS blank \
         FROM (SELECT campaign_id, day, event_type, total AS counted, toUInt64(0) AS row, toUInt64(0) AS blank FROM daily WHERE {of_campaign} \
         UNION ALL SELECT campaign_id, toDate(event_time), event_type, 0, 1, toUInt64(email = '') FROM email_events WHERE {of_campaign}) \
         GROUP BY campaign_id, day, event_type) GROUP BY campaign_id \
         HAVING countIf(counted > rows) = 0 AND sum(blank) = 0 AND min(day) >= toDate(toUInt16({}))",
        first_day.0
    );
    let sql = format!(
        "SELECT toString(id) AS campaign_id, recipients, id IN ({whole}) AS is_removable FROM \
         (SELECT campaign_id AS id, count() AS recipients FROM ({}) GROUP BY id) ORDER BY campaign_id",
        recipients::ahead("stored", "rows", of_campaign, of_campaign)
    );
    Ok(bind(client.query(&sql), campaign, 4).rows().await?)
}

fn of_campaign(campaign: Option<&str>) -> &'static str {
    if campaign.is_some() { "campaign_id = toUUID(?)" } else { "true" }
}

/// Binds the campaign for this number of [`of_campaign`] in a statement.
fn bind<'c>(statement: Statement<'c>, campaign: Option<&str>, times: usize) -> Statement<'c> {
    std::iter::repeat_n(campaign, times).flatten().fold(statement, |statement, id| statement.bind(id))
}
