//! Numbers of distinct recipients, from the table `recipients`.
//!
//! A campaign's recipients are counted over its life, with rates. By day, each recipient counts on the day of the first event of a type.
//! So days add up to the campaign, and they have no rates: an open is often of another day than its delivery.

use super::Filter;
use crate::clickhouse::client::Client;
use crate::clickhouse::condition::Condition;
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::recipients::FIRSTS;
use clickhouse::Row;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use tallyhouse_core::days::Day;
use tallyhouse_core::recipients::NEVER;

/// Numbers of recipients of one campaign, or the sum of several: those of [`Recipients::NAMES`], and then those that only rates need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recipients([u64; 1 + CONDITIONS.len()]);

/// Shares of recipients in the order of [`RecipientRates::NAMES`]; `None` where the denominator is 0. None is above 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecipientRates([Option<f64>; RecipientRates::NAMES.len()]);

/// The conditions on a recipient's flags, in the order of the numbers of [`Recipients`] after the first one.
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
    /// Names of the numbers, as in JSON. `opened_or_clicked_undelivered` are in no rate.
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

    /// Returns the numbers in the order of [`Recipients::NAMES`].
    pub fn numbers(&self) -> &[u64] {
        &self.0[..Recipients::NAMES.len()]
    }

    fn plus(self, other: &Recipients) -> Recipients {
        Recipients(std::array::from_fn(|n| self.0[n] + other.0[n]))
    }

    /// Returns the rates. What they count has the flag of the rate's denominator too.
    pub fn rates(&self) -> RecipientRates {
        let share = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let [_, delivered, opened, _, _, bounced, _, _, _, of_delivered @ ..] = self.0;
        let [opens, clicks, either, clicks_of_opened, unsubscribed, complained, delivered_or_bounced] = of_delivered;
        RecipientRates([
            share(opens, delivered),
            share(clicks, delivered),
            share(either, delivered),
            share(clicks_of_opened, opened),
            share(unsubscribed, delivered),
            share(complained, delivered),
            share(bounced, delivered_or_bounced),
        ])
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
    pub fn shares(&self) -> &[Option<f64>] {
        &self.0
    }
}

impl Serialize for Recipients {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Recipients::NAMES.iter().zip(self.numbers()))
    }
}

impl Serialize for RecipientRates {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(RecipientRates::NAMES.iter().zip(self.shares()))
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
    counts: [u64; 1 + CONDITIONS.len()],
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
        "SELECT toString(campaign_id) AS campaign, tuple(count(), {counts}) AS counts FROM \
         (SELECT campaign_id, recipient, groupBitOr(flags) AS bits FROM recipients WHERE {} GROUP BY campaign_id, recipient) \
         GROUP BY campaign_id",
        condition.sql()
    );
    let rows = condition.bind(client.query(&sql)).rows::<OfCampaign>().await?;
    Ok(rows.into_iter().map(|row| (row.campaign, Recipients(row.counts))).collect())
}

/// Reads the recipients by the days of a zone on which they had their first event of each type.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn by_day(client: &Client, filter: &Filter, zone: &str) -> Result<ByDay, ClickHouseError> {
    let condition = condition(filter);
    let firsts: Vec<String> = (1..).zip(FIRSTS).map(|(n, first)| format!("({n}, min({first}))")).collect();
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
    let days = rows.into_iter().map(|OfDay { day, counts: [delivered, opened, clicked, bounced, unsubscribed] }| {
        (Day(day), FirstEvents { delivered, opened, clicked, bounced, unsubscribed })
    });
    Ok(days.filter(|(day, _)| filter.has(*day)).collect())
}
