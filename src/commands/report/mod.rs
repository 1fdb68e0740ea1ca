//! `tallyhouse report`: prints the results of the campaigns, numbers of recipients first and numbers of events second.
//!
//! Must never put a value into SQL but by binding it. Must count as the view `campaign_report` does: a rate
//! without a denominator is none, not 0.

pub mod depth;
mod print;
pub mod recipients;
pub mod zone;

use crate::clickhouse::client::Client;
use crate::clickhouse::condition::Condition;
use crate::clickhouse::error::ClickHouseError;
use clickhouse::Row;
use recipients::{FirstEvents, RecipientRates, Recipients};
use serde::{Deserialize, Serialize};
use tallyhouse_core::days::Day;
use uuid::Uuid;

/// The definitions of the rates, for `--help` and below the table. [`Rates::of`] and `sql/*/0005_event_types.sql` count so.
pub const DENOMINATORS: &str = "\
Open rate = opens / delivered. Click rate = clicks / delivered. Click-to-open rate = clicks / opens.
Bounce rate = bounces / (delivered + bounces). Unsubscribe rate = unsubscribes / delivered.
Opens and clicks are all opens and clicks, not distinct recipients: their rates can be above 100 %.";

/// The way to unique figures, where there are none.
pub const NO_RECIPIENTS: &str = "\
There are no unique figures. Set clickhouse.recipients = true for all members, and then run `tallyhouse repair recipients` once.";

/// The definitions of the rates of recipients, below their table.
pub const RECIPIENT_RATES: &str = "\
Each recipient counts once in a campaign. Open rate, click rate, open-or-click, unsubscribe and complaint rates are shares of delivered.
Click of opened is a share of opened. Bounce rate is a share of delivered or bounced. A rate counts only recipients that are in its
denominator, so none is above 100 %. Events without an address take no part.";

/// The subject of a report's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// One row per campaign and workspace, the most delivered first.
    #[default]
    Campaign,
    /// One row per UTC day, the earliest first.
    Day,
}

/// The condition on the events; all events count where nothing is given.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only events of this workspace.
    pub workspace: Option<Uuid>,
    /// Only events of this campaign.
    pub campaign: Option<Uuid>,
    /// Only events from this UTC day on.
    pub since: Option<Day>,
    /// Only events up to this UTC day, inclusive.
    pub until: Option<Day>,
}

impl Filter {
    /// True if only some days count.
    fn has_days(&self) -> bool {
        self.since.is_some() || self.until.is_some()
    }

    /// True if this day counts.
    fn has(&self, day: Day) -> bool {
        self.since.is_none_or(|since| since <= day) && self.until.is_none_or(|until| until >= day)
    }
}

/// Numbers of events by type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// E-mails that were delivered.
    pub delivered: u64,
    /// Number of open events.
    pub opens: u64,
    /// Number of click events.
    pub clicks: u64,
    /// E-mails that came back.
    pub bounces: u64,
    /// Number of unsubscribe events.
    pub unsubscribes: u64,
    /// E-mails that were handed over for delivery; absent in JSON if there are none, as the two below.
    #[serde(skip_serializing_if = "is_zero")]
    pub sent: u64,
    /// Reports of an e-mail as spam.
    #[serde(skip_serializing_if = "is_zero")]
    pub complaints: u64,
    /// Attempts that the recipients' servers put off.
    #[serde(skip_serializing_if = "is_zero")]
    pub deferred: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Shares of events, see [`DENOMINATORS`]; `None` where the denominator is 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are the documentation's own")]
pub struct Rates {
    pub open_rate: Option<f64>,
    pub click_rate: Option<f64>,
    pub click_to_open_rate: Option<f64>,
    pub bounce_rate: Option<f64>,
    pub unsubscribe_rate: Option<f64>,
}

/// One row of a report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The campaign; present only by campaign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub campaign_id: Option<String>,
    /// The campaign's workspace; present only by campaign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workspace_id: Option<String>,
    /// First day with an event; by day, the day.
    pub first_day: String,
    /// Last day with an event; by day, the day.
    pub last_day: String,
    /// Its numbers of events.
    #[serde(flatten)]
    pub counts: Counts,
    /// Rates made of these numbers.
    #[serde(flatten)]
    pub rates: Rates,
    /// Its distinct recipients: by campaign over its life, by day those with a first event on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipients: Option<LineRecipients>,
}

/// The recipients of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum LineRecipients {
    /// Those of a campaign.
    Campaign {
        /// Numbers of these recipients.
        #[serde(flatten)]
        numbers: Recipients,
        /// Rates of these recipients.
        #[serde(flatten)]
        rates: RecipientRates,
    },
    /// Those of a day.
    Day(FirstEvents),
}

/// The content of a report.
#[derive(Clone, Debug)]
pub struct Report {
    /// Name of the ClickHouse database.
    pub database: String,
    /// The condition on the events that were counted.
    pub filter: Filter,
    /// The subject of a row.
    pub by: By,
    /// The rows of the report.
    pub lines: Vec<Line>,
    /// The sum of recipients over campaigns, if they were counted.
    pub recipients: Option<Recipients>,
}

#[derive(Row, Deserialize)]
struct Found {
    campaign: String,
    workspace: String,
    first: String,
    last: String,
    delivered: u64,
    opens: u64,
    clicks: u64,
    bounces: u64,
    unsubscribes: u64,
    sent: u64,
    complaints: u64,
    deferred: u64,
}

impl Counts {
    fn plus(self, other: Counts) -> Counts {
        Counts {
            delivered: self.delivered + other.delivered,
            opens: self.opens + other.opens,
            clicks: self.clicks + other.clicks,
            bounces: self.bounces + other.bounces,
            unsubscribes: self.unsubscribes + other.unsubscribes,
            sent: self.sent + other.sent,
            complaints: self.complaints + other.complaints,
            deferred: self.deferred + other.deferred,
        }
    }
}

impl Rates {
    /// Returns the shares of these counts.
    pub fn of(counts: &Counts) -> Rates {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let &Counts { delivered, opens, clicks, bounces, unsubscribes, .. } = counts;
        Rates {
            open_rate: share(opens, delivered),
            click_rate: share(clicks, delivered),
            click_to_open_rate: share(clicks, opens),
            bounce_rate: share(bounces, delivered + bounces),
            unsubscribe_rate: share(unsubscribes, delivered),
        }
    }
}

/// A count that most producers do not send, with its name.
type Further = (&'static str, fn(&Counts) -> u64);

/// Returns the further counts that are in a total, each with its name. Most producers send none of them.
fn further(total: &Counts) -> Vec<Further> {
    let all: [Further; 3] = [("sent", |c| c.sent), ("complaints", |c| c.complaints), ("deferred", |c| c.deferred)];
    all.into_iter().filter(|(_, count)| count(total) > 0).collect()
}

impl Report {
    /// Returns the sum of all rows.
    pub fn total(&self) -> Counts {
        self.lines.iter().fold(Counts::default(), |sum, line| sum.plus(line.counts))
    }
}

/// Reads the report from ClickHouse. It holds all rows in memory: one per campaign or day.
///
/// # Errors
/// Any of [`ClickHouseError`]; `UnknownTable` where the views are not made yet.
pub async fn read(client: &Client, filter: Filter, by: By) -> Result<Report, ClickHouseError> {
    let (keys, group, order) = match by {
        By::Campaign => (
            "toString(campaign_id) AS campaign, toString(workspace_id) AS workspace",
            "campaign_id, workspace_id",
            "delivered DESC, campaign_id, workspace_id",
        ),
        By::Day => ("'' AS campaign, '' AS workspace", "day", "day"),
    };
    let condition = condition(&filter);
    let sql = format!(
        "SELECT {keys}, toString(min(day)) AS first, toString(max(day)) AS last, sum(f.delivered) AS delivered, \
         sum(f.opens) AS opens, sum(f.clicks) AS clicks, sum(f.bounces) AS bounces, sum(f.unsubscribes) AS unsubscribes, \
         sum(f.sent) AS sent, sum(f.complaints) AS complaints, sum(f.deferred) AS deferred \
         FROM campaign_daily AS f WHERE {} GROUP BY {group} ORDER BY {order}",
        condition.sql()
    );
    let mut lines: Vec<Line> =
        condition.bind(client.query(&sql)).rows::<Found>().await?.into_iter().map(|found| line(found, by)).collect();
    let total = match by {
        By::Campaign => add_recipients(client, &filter, &mut lines).await?,
        By::Day => {
            add_first_events(client, &filter, &mut lines).await?;
            None
        }
    };
    Ok(Report { database: client.database().to_owned(), filter, by, lines, recipients: total })
}

/// Adds the recipients of each campaign, and returns their sum. They are counted over a campaign's life, so not for some of its days.
async fn add_recipients(
    client: &Client,
    filter: &Filter,
    lines: &mut [Line],
) -> Result<Option<Recipients>, ClickHouseError> {
    if filter.has_days() {
        return Ok(None);
    }
    let of = recipients::by_campaign(client, filter).await?;
    for line in lines {
        let found = line.campaign_id.as_ref().and_then(|id| of.get(id)).copied();
        line.recipients = found.map(|numbers| LineRecipients::Campaign { numbers, rates: numbers.rates() });
    }
    Ok((!of.is_empty()).then(|| recipients::total(&of)))
}

async fn add_first_events(client: &Client, filter: &Filter, lines: &mut [Line]) -> Result<(), ClickHouseError> {
    let of = recipients::by_day(client, filter, "UTC").await?;
    for line in lines {
        let found = line.first_day.parse().ok().and_then(|day| of.get(&day)).copied();
        line.recipients = found.map(LineRecipients::Day);
    }
    Ok(())
}

fn condition(filter: &Filter) -> Condition {
    Condition::default()
        .and_text("day >= toDate(?)", filter.since.map(|day| day.to_string()))
        .and_text("day <= toDate(?)", filter.until.map(|day| day.to_string()))
        .and_text("workspace_id = toUUID(?)", filter.workspace.map(|id| id.to_string()))
        .and_text("campaign_id = toUUID(?)", filter.campaign.map(|id| id.to_string()))
}

fn line(found: Found, by: By) -> Line {
    let Found { campaign, workspace, first, last, delivered, opens, clicks, bounces, unsubscribes, .. } = found;
    let Found { sent, complaints, deferred, .. } = found;
    let counts = Counts { delivered, opens, clicks, bounces, unsubscribes, sent, complaints, deferred };
    let of_campaign = |id: String| (by == By::Campaign).then_some(id);
    Line {
        campaign_id: of_campaign(campaign),
        workspace_id: of_campaign(workspace),
        first_day: first,
        last_day: last,
        counts,
        rates: Rates::of(&counts),
        recipients: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clickhouse::condition::Value;

    #[test]
    fn a_rate_without_a_denominator_is_none() {
        let rates = Rates::of(&Counts { unsubscribes: 3, clicks: 2, ..Counts::default() });
        let none = Rates {
            open_rate: None,
            click_rate: None,
            click_to_open_rate: None,
            bounce_rate: None,
            unsubscribe_rate: None,
        };
        assert_eq!(rates, none);
        let all_bounced = Rates::of(&Counts { bounces: 2, ..Counts::default() });
        assert_eq!((all_bounced.bounce_rate, all_bounced.open_rate), (Some(1.0), None));
    }

    #[test]
    fn values_are_bound_and_never_in_the_sql() {
        let filter = Filter {
            workspace: Some(Uuid::from_u128(1)),
            campaign: None,
            since: Some("2026-11-01".parse().unwrap()),
            until: Some("2026-11-30".parse().unwrap()),
        };
        let found = condition(&filter);
        assert_eq!(found.sql(), "day >= toDate(?) AND day <= toDate(?) AND workspace_id = toUUID(?)");
        let values = ["2026-11-01", "2026-11-30", "00000000-0000-0000-0000-000000000001"];
        assert_eq!(found.values(), values.map(|text| Value::Text(text.to_owned())));
        assert_eq!(condition(&Filter::default()).sql(), "true");
    }
}
