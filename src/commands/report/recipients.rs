//! Numbers of distinct recipients, from the table `recipients`.
//!
//! A campaign's recipients are counted over its life, with rates. By day, each recipient counts on the day of the first event of a type.
//! So days add up to the campaign, and they have no rates: an open is often of another day than its delivery.

use super::Filter;
use crate::clickhouse::client::Client;
use crate::clickhouse::condition::Condition;
use crate::clickhouse::error::ClickHouseError;
use clickhouse::Row;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tallyhouse_core::days::Day;
use tallyhouse_core::recipients::NEVER;

/// Numbers of recipients of one campaign, or the sum of several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Recipients {
    /// Recipients with any event.
    pub recipients: u64,
    /// Recipients with a delivered event.
    pub delivered: u64,
    /// Recipients with an open.
    pub opened: u64,
    /// Recipients with a click.
    pub clicked: u64,
    /// Recipients with an open or a click: who clicks has read, even if images are blocked.
    pub opened_or_clicked: u64,
    /// Recipients with a bounce.
    pub bounced: u64,
    /// Recipients with an unsubscription.
    pub unsubscribed: u64,
    /// Recipients with a report as spam.
    pub complained: u64,
    /// Of `opened_or_clicked`: those without a delivered event. They are in no rate.
    pub opened_or_clicked_undelivered: u64,
    #[serde(skip)]
    parts: Parts,
}

/// The recipients that rates count: each has the flag of the rate's denominator too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Parts {
    opened_of_delivered: u64,
    clicked_of_delivered: u64,
    opened_or_clicked_of_delivered: u64,
    clicked_of_opened: u64,
    unsubscribed_of_delivered: u64,
    complained_of_delivered: u64,
    delivered_or_bounced: u64,
}

/// Shares of recipients; `None` where the denominator is 0. None is above 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names are the documentation's own")]
pub struct RecipientRates {
    pub open_rate_of_delivered: Option<f64>,
    pub click_rate_of_delivered: Option<f64>,
    pub open_or_click_rate_of_delivered: Option<f64>,
    pub click_rate_of_opened: Option<f64>,
    pub unsubscribe_rate_of_delivered: Option<f64>,
    pub complaint_rate_of_delivered: Option<f64>,
    pub bounce_rate_of_delivered_or_bounced: Option<f64>,
}

/// The conditions on a recipient's flags, in the order of the fields of [`Recipients`] and [`Parts`] after the first one.
const CONDITIONS: [&str; 15] = [
    "bitTest(bits, 0)",
    "bitTest(bits, 1)",
    "bitTest(bits, 2)",
    "bitAnd(bits, 6) != 0",
    "bitTest(bits, 3)",
    "bitTest(bits, 4)",
    "bitTest(bits, 6)",
    "bitAnd(bits, 6) != 0 AND NOT bitTest(bits, 0)",
    "bitAnd(bits, 3) = 3",
    "bitAnd(bits, 5) = 5",
    "bitAnd(bits, 6) != 0 AND bitTest(bits, 0)",
    "bitAnd(bits, 6) = 6",
    "bitAnd(bits, 17) = 17",
    "bitAnd(bits, 65) = 65",
    "bitAnd(bits, 9) != 0",
];

impl Recipients {
    /// Names of the numbers, as in JSON.
    pub const NAMES: [&str; 9] = [
        "recipients",
        "delivered",
        "opened",
        "clicked",
        "opened_or_clicked",
        "bounced",
        "unsubscribed",
        "complained",
        "opened_or_clicked_undelivered",
    ];

    fn of(all: u64, counts: [u64; CONDITIONS.len()]) -> Recipients {
        let [delivered, opened, clicked, opened_or_clicked, bounced, unsubscribed, complained, undelivered, parts @ ..] =
            counts;
        let [opened_of, clicked_of, either_of, clicked_of_opened, unsubscribed_of, complained_of, attempted] = parts;
        Recipients {
            recipients: all,
            delivered,
            opened,
            clicked,
            opened_or_clicked,
            bounced,
            unsubscribed,
            complained,
            opened_or_clicked_undelivered: undelivered,
            parts: Parts {
                opened_of_delivered: opened_of,
                clicked_of_delivered: clicked_of,
                opened_or_clicked_of_delivered: either_of,
                clicked_of_opened,
                unsubscribed_of_delivered: unsubscribed_of,
                complained_of_delivered: complained_of,
                delivered_or_bounced: attempted,
            },
        }
    }

    /// Returns the numbers in the order of [`Recipients::NAMES`].
    pub fn numbers(&self) -> [u64; 9] {
        let Recipients { recipients, delivered, opened, clicked, opened_or_clicked, .. } = *self;
        let Recipients { bounced, unsubscribed, complained, opened_or_clicked_undelivered, .. } = *self;
        [
            recipients,
            delivered,
            opened,
            clicked,
            opened_or_clicked,
            bounced,
            unsubscribed,
            complained,
            opened_or_clicked_undelivered,
        ]
    }

    fn plus(self, other: &Recipients) -> Recipients {
        let Recipients { parts: a, .. } = self;
        let Recipients { parts: b, .. } = *other;
        let numbers = self.numbers();
        let sum: [u64; 9] = std::array::from_fn(|n| numbers[n] + other.numbers()[n]);
        Recipients {
            recipients: sum[0],
            delivered: sum[1],
            opened: sum[2],
            clicked: sum[3],
            opened_or_clicked: sum[4],
            bounced: sum[5],
            unsubscribed: sum[6],
            complained: sum[7],
            opened_or_clicked_undelivered: sum[8],
            parts: Parts {
                opened_of_delivered: a.opened_of_delivered + b.opened_of_delivered,
                clicked_of_delivered: a.clicked_of_delivered + b.clicked_of_delivered,
                opened_or_clicked_of_delivered: a.opened_or_clicked_of_delivered + b.opened_or_clicked_of_delivered,
                clicked_of_opened: a.clicked_of_opened + b.clicked_of_opened,
                unsubscribed_of_delivered: a.unsubscribed_of_delivered + b.unsubscribed_of_delivered,
                complained_of_delivered: a.complained_of_delivered + b.complained_of_delivered,
                delivered_or_bounced: a.delivered_or_bounced + b.delivered_or_bounced,
            },
        }
    }

    /// Returns the rates of these recipients.
    pub fn rates(&self) -> RecipientRates {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let Recipients { delivered, opened, bounced, parts, .. } = *self;
        RecipientRates {
            open_rate_of_delivered: share(parts.opened_of_delivered, delivered),
            click_rate_of_delivered: share(parts.clicked_of_delivered, delivered),
            open_or_click_rate_of_delivered: share(parts.opened_or_clicked_of_delivered, delivered),
            click_rate_of_opened: share(parts.clicked_of_opened, opened),
            unsubscribe_rate_of_delivered: share(parts.unsubscribed_of_delivered, delivered),
            complaint_rate_of_delivered: share(parts.complained_of_delivered, delivered),
            bounce_rate_of_delivered_or_bounced: share(bounced, parts.delivered_or_bounced),
        }
    }
}

impl RecipientRates {
    /// Names of the rates, as in JSON.
    pub const NAMES: [&str; 7] = [
        "open_rate_of_delivered",
        "click_rate_of_delivered",
        "open_or_click_rate_of_delivered",
        "click_rate_of_opened",
        "unsubscribe_rate_of_delivered",
        "complaint_rate_of_delivered",
        "bounce_rate_of_delivered_or_bounced",
    ];

    /// Returns the rates in the order of [`RecipientRates::NAMES`].
    pub fn shares(&self) -> [Option<f64>; 7] {
        [
            self.open_rate_of_delivered,
            self.click_rate_of_delivered,
            self.open_or_click_rate_of_delivered,
            self.click_rate_of_opened,
            self.unsubscribe_rate_of_delivered,
            self.complaint_rate_of_delivered,
            self.bounce_rate_of_delivered_or_bounced,
        ]
    }
}

/// The recipients of each campaign, by its id.
pub type ByCampaign = BTreeMap<String, Recipients>;

/// Returns the sum over campaigns. A person in two campaigns counts in both.
pub fn total(of: &ByCampaign) -> Recipients {
    of.values().fold(Recipients::default(), Recipients::plus)
}

/// Numbers of recipients by the day of their first event of each type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FirstEvents {
    /// Recipients with the first delivered event on the day.
    pub delivered: u64,
    /// Recipients with the first open on the day.
    pub opened: u64,
    /// Recipients with the first click on the day.
    pub clicked: u64,
    /// Recipients with the first bounce on the day.
    pub bounced: u64,
    /// Recipients with the first unsubscription on the day.
    pub unsubscribed: u64,
}

impl FirstEvents {
    /// Names of the numbers, as in JSON.
    pub const NAMES: [&str; 5] = ["delivered", "opened", "clicked", "bounced", "unsubscribed"];

    /// Returns the numbers in the order of [`FirstEvents::NAMES`].
    pub fn numbers(&self) -> [u64; 5] {
        [self.delivered, self.opened, self.clicked, self.bounced, self.unsubscribed]
    }
}

/// The recipients of each day that has any.
pub type ByDay = BTreeMap<Day, FirstEvents>;

#[derive(Row, Deserialize)]
struct OfCampaign {
    campaign: String,
    recipients: u64,
    counts: [u64; CONDITIONS.len()],
}

#[derive(Row, Deserialize)]
struct OfDay {
    day: u16,
    counts: [u64; 5],
}

fn condition(filter: &Filter) -> Condition {
    Condition::default()
        .and_text("campaign_id = toUUID(?)", filter.campaign.map(|id| id.to_string()))
        // Recipients have no workspace. GLOBAL lets the question be asked of Distributed tables too.
        .and_text(
            "campaign_id GLOBAL IN (SELECT campaign_id FROM daily WHERE workspace_id = toUUID(?))",
            filter.workspace.map(|id| id.to_string()),
        )
}

/// Reads the recipients of each campaign over its life. It holds one row per campaign in memory.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn by_campaign(client: &Client, filter: &Filter) -> Result<ByCampaign, ClickHouseError> {
    let condition = condition(filter);
    let counts = CONDITIONS.map(|condition| format!("countIf({condition})")).join(", ");
    let sql = format!(
        "SELECT toString(campaign_id) AS campaign, count() AS recipients, tuple({counts}) AS counts FROM \
         (SELECT campaign_id, recipient, groupBitOr(flags) AS bits FROM recipients WHERE {} GROUP BY campaign_id, recipient) \
         GROUP BY campaign_id",
        condition.sql()
    );
    let rows = condition.bind(client.query(&sql)).rows::<OfCampaign>().await?;
    Ok(rows.into_iter().map(|row| (row.campaign, Recipients::of(row.recipients, row.counts))).collect())
}

/// Reads the recipients by the days of a zone on which they had their first event of each type.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn by_day(client: &Client, filter: &Filter, zone: &str) -> Result<ByDay, ClickHouseError> {
    let condition = condition(filter);
    let firsts = ["first_delivered", "first_open", "first_click", "first_bounce", "first_unsubscribe"];
    let firsts: Vec<String> = (1..).zip(firsts).map(|(n, first)| format!("({n}, min({first}))")).collect();
    let counts: Vec<String> = (1..=5).map(|n| format!("countIf(first.1 = {n})")).collect();
    let sql = format!(
        "SELECT toUInt16(toDate(first.2, ?)) AS day, tuple({}) AS counts FROM \
         (SELECT campaign_id, recipient, arrayJoin([{}]) AS first FROM recipients WHERE {} GROUP BY campaign_id, recipient) \
         WHERE toUInt32(first.2) != {NEVER} GROUP BY day",
        counts.join(", "),
        firsts.join(", "),
        condition.sql()
    );
    let rows = condition.bind(client.query(&sql).bind(zone)).rows::<OfDay>().await?;
    let asked_for = |day: &Day| filter.since.is_none_or(|s| s <= *day) && filter.until.is_none_or(|u| u >= *day);
    let days = rows.into_iter().map(|OfDay { day, counts: [delivered, opened, clicked, bounced, unsubscribed] }| {
        (Day(day), FirstEvents { delivered, opened, clicked, bounced, unsubscribed })
    });
    Ok(days.filter(|(day, _)| asked_for(day)).collect())
}
