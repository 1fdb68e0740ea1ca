//! One campaign in depth, from its raw rows: hours, links, mailbox providers, machine opens, bounces and the time to open.
//!
//! Must never put a value into SQL but by binding it, and must never show an address. A figure of recipients counts addresses, with
//! the domain in lower case; rows without an address take no part in it. A rate counts only recipients that have the denominator's
//! event too, so that no rate is above 1.

mod html;
mod print;
pub mod rules;

use self::rules::{Expression, OTHER, Rules};
use crate::clickhouse::client::{Client, Statement};
use crate::clickhouse::error::ClickHouseError;
use clickhouse::{Row, RowOwned, RowRead};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// Hours that are shown one by one; later events are summed in the last.
pub const HOURS_MAX: i32 = 720;
/// Links that are shown, those with the most clicks.
pub const LINKS_MAX: usize = 100;
/// Limits of the time to open, in seconds, with their names.
pub const TIME_LIMITS: [(u64, &str); 7] = [
    (60, "1 minute"),
    (600, "10 minutes"),
    (3_600, "1 hour"),
    (6 * 3_600, "6 hours"),
    (86_400, "1 day"),
    (3 * 86_400, "3 days"),
    (7 * 86_400, "7 days"),
];

/// The figures of one campaign. The names in JSON are stable: names are added, never changed.
#[derive(Debug, Serialize)]
pub struct Depth {
    version: u32,
    database: String,
    /// Id of the campaign.
    pub campaign_id: String,
    /// Time of the first event of the type delivered, in epoch seconds. Without one it is the first event of any type.
    pub first_delivery: Option<u32>,
    /// True if the campaign has an event of the type delivered.
    pub has_delivered: bool,
    /// Time of the last event, in epoch seconds.
    pub last_event: Option<u32>,
    /// Times of the campaign's stages.
    pub timeline: Timeline,
    /// Number of recipients by the lifecycle topic; `None` if no message has it.
    pub audience_size: Option<u64>,
    /// Unique delivered as a share of the audience. `None` without an audience, or if more recipients than it has were reached.
    pub delivered_of_audience: Option<f64>,
    /// Rows that `email_events` has of the campaign. The figures are of these.
    pub rows: u64,
    /// Events that `daily` counts. More than `rows`: rows have expired, or a batch is half written.
    pub counted: u64,
    /// Events and recipients by type.
    pub events: Vec<OfType>,
    /// Recipients over the campaign's whole life.
    pub recipients: Recipients,
    /// Opens and clicks by the hour since the first delivery.
    pub hours: Vec<Hour>,
    /// Clicks by link, the most clicked first.
    pub links: Vec<Link>,
    /// True if there are more links.
    pub has_more_links: bool,
    /// Recipients by mailbox provider.
    pub providers: Vec<Provider>,
    /// Opens by the machine rule that fits; the empty name is that of opens that no rule names.
    pub opens_by_machine: Vec<Machine>,
    /// Bounces and their recipients by kind.
    pub bounces: Vec<Bounces>,
    /// Time from the first delivery to the first open of each recipient: of all opens, then of those that no rule names.
    pub time_to_open: [TimeToOpen; 2],
}

/// Times of a campaign's stages, in epoch seconds; `None` where nothing shows the stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Timeline {
    /// First message that the audience is ready.
    pub audience_ready: Option<u32>,
    /// First message that the template is ready.
    pub template_ready: Option<u32>,
    /// First event of the type delivered.
    pub first_delivery: Option<u32>,
    /// Time at which half of the opens had happened, of those that have a row.
    pub half_of_opens: Option<u32>,
}

/// Events of one type.
#[derive(Debug, Serialize)]
pub struct OfType {
    /// Type of the events.
    pub event_type: String,
    /// Number of events of this type.
    pub events: u64,
    /// Number of recipients with such an event.
    pub recipients: u64,
}

/// Numbers of recipients by the type of their events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(
    missing_docs,
    reason = "the names say it: recipients with such an event, and of those also with a delivered one"
)]
pub struct Reached {
    pub delivered: u64,
    pub opened: u64,
    /// Recipients with an open that no machine rule names.
    pub opened_unnamed: u64,
    pub clicked: u64,
    pub bounced: u64,
    pub unsubscribed: u64,
    pub complained: u64,
    pub delivered_and_opened: u64,
    pub delivered_and_opened_unnamed: u64,
    pub delivered_and_clicked: u64,
    pub delivered_and_unsubscribed: u64,
    pub delivered_and_complained: u64,
}

/// Recipients with their rates, which are shares of the recipients with a delivered event.
#[derive(Clone, Copy, Debug, Serialize)]
#[expect(missing_docs, reason = "the names are the documentation's own")]
pub struct Recipients {
    #[serde(flatten)]
    pub reached: Reached,
    pub unique_open_rate: Option<f64>,
    /// The same without opens that a machine rule names.
    pub unique_open_rate_unnamed: Option<f64>,
    pub unique_click_rate: Option<f64>,
    pub unique_unsubscribe_rate: Option<f64>,
    pub unique_complaint_rate: Option<f64>,
}

/// One hour since the first delivery. -1 has the events before it, and [`HOURS_MAX`] all later ones.
#[derive(Debug, Row, Serialize, Deserialize)]
pub struct Hour {
    /// Number of the hour, from 0.
    pub hour: i32,
    /// Number of opens in this hour.
    pub opens: u64,
    /// Opens that a machine rule names; part of `opens`.
    pub machine_opens: u64,
    /// Number of clicks in this hour.
    pub clicks: u64,
}

/// Clicks on one link.
#[derive(Debug, Row, Serialize, Deserialize)]
pub struct Link {
    /// The link; empty if the metadata has none.
    pub link: String,
    /// Number of clicks on the link.
    pub clicks: u64,
    /// Recipients who clicked on it.
    pub recipients: u64,
}

/// Recipients of one mailbox provider.
#[derive(Debug, Serialize)]
pub struct Provider {
    /// Name of the provider, or `other`.
    pub provider: String,
    /// Recipients whose mailboxes this provider has.
    #[serde(flatten)]
    pub recipients: Recipients,
}

/// Opens that one machine rule names.
#[derive(Debug, Serialize)]
pub struct Machine {
    /// Name of the rule; empty for opens that no rule names.
    pub rule: String,
    /// Origin of the rule.
    pub source: String,
    /// Number of opens that the rule names.
    pub opens: u64,
    /// Recipients with such an open.
    pub recipients: u64,
}

/// Bounces of one kind.
#[derive(Debug, Row, Serialize, Deserialize)]
pub struct Bounces {
    /// `hard`, `soft`, or `other` if the metadata does not say.
    pub kind: String,
    /// Number of bounces of this kind.
    pub bounces: u64,
    /// Recipients with such a bounce.
    pub recipients: u64,
}

/// Times from delivery to the first open.
#[derive(Debug, Serialize)]
pub struct TimeToOpen {
    /// `all`, or `unnamed` for opens that no machine rule names.
    pub opens: &'static str,
    /// Recipients with both events.
    pub recipients: u64,
    /// Half of them opened within this number of seconds.
    pub median_s: Option<u64>,
    /// Nine in ten of them opened within this number of seconds.
    pub nine_in_ten_s: Option<u64>,
    /// Recipients who opened within each of [`TIME_LIMITS`], in that order.
    pub within: [u64; TIME_LIMITS.len()],
}

impl Recipients {
    fn of(reached: Reached) -> Recipients {
        let rate = |part: u64| (reached.delivered > 0).then(|| part as f64 / reached.delivered as f64);
        Recipients {
            reached,
            unique_open_rate: rate(reached.delivered_and_opened),
            unique_open_rate_unnamed: rate(reached.delivered_and_opened_unnamed),
            unique_click_rate: rate(reached.delivered_and_clicked),
            unique_unsubscribe_rate: rate(reached.delivered_and_unsubscribed),
            unique_complaint_rate: rate(reached.delivered_and_complained),
        }
    }
}

impl Reached {
    fn plus(self, other: Reached) -> Reached {
        Reached {
            delivered: self.delivered + other.delivered,
            opened: self.opened + other.opened,
            opened_unnamed: self.opened_unnamed + other.opened_unnamed,
            clicked: self.clicked + other.clicked,
            bounced: self.bounced + other.bounced,
            unsubscribed: self.unsubscribed + other.unsubscribed,
            complained: self.complained + other.complained,
            delivered_and_opened: self.delivered_and_opened + other.delivered_and_opened,
            delivered_and_opened_unnamed: self.delivered_and_opened_unnamed + other.delivered_and_opened_unnamed,
            delivered_and_clicked: self.delivered_and_clicked + other.delivered_and_clicked,
            delivered_and_unsubscribed: self.delivered_and_unsubscribed + other.delivered_and_unsubscribed,
            delivered_and_complained: self.delivered_and_complained + other.delivered_and_complained,
        }
    }
}

#[derive(Default, Row, Deserialize)]
struct Bounds {
    rows: u64,
    first: u32,
    first_delivered: u32,
    last: u32,
    half_of_opens: u32,
}

/// The messages about a campaign; 0 stands for none.
#[derive(Default, Row, Deserialize)]
struct Announced {
    audience_ready: u32,
    template_ready: u32,
    audience_size: u64,
}

impl Announced {
    async fn read(client: &Client, campaign: &str) -> Result<Announced, ClickHouseError> {
        let sql = "SELECT toUInt32(minIf(event_time, stage = 'audience_ready')) AS audience_ready, \
                   toUInt32(minIf(event_time, stage = 'template_ready')) AS template_ready, \
                   argMaxIf(audience_size, event_time, audience_size > 0) AS audience_size \
                   FROM campaign_lifecycle WHERE campaign_id = toUUID(?)";
        let found: Vec<Announced> = client.query(sql).bind(campaign).rows().await?;
        Ok(found.into_iter().next().unwrap_or_default())
    }
}

#[derive(Row, Deserialize)]
struct FoundProvider {
    provider: String,
    reached: [u64; 12],
}

#[derive(Row, Deserialize)]
struct FoundMachine {
    machine: String,
    opens: u64,
    recipients: u64,
}

#[derive(Row, Deserialize)]
struct FoundTimes {
    recipients: u64,
    median_s: u32,
    nine_in_ten_s: u32,
    within: [u64; TIME_LIMITS.len()],
}

/// Asks about the rows of one campaign.
struct Questions<'c> {
    client: &'c Client,
    campaign: String,
    machine: Expression,
}

impl Questions<'_> {
    /// Runs a query that reads from `rows`: the campaign's rows with the columns `has_address`, `domain`, `recipient`, and with a
    /// column for each of the expressions. The text before it has no placeholder.
    async fn ask<T: RowOwned + RowRead>(
        &self,
        select: &str,
        columns: &[(&str, &Expression)],
        rest: &str,
    ) -> Result<Vec<T>, ClickHouseError> {
        let more: String = columns.iter().map(|(name, value)| format!(", {} AS {name}", value.sql)).collect();
        let sql = format!(
            "SELECT {select} FROM (SELECT event_type, event_time, email != '' AS has_address, \
             splitByChar('@', email)[-1] AS tail, lowerUTF8(tail) AS domain, \
             concat(substring(email, 1, length(email) - length(tail)), domain) AS recipient{more} \
             FROM email_events WHERE campaign_id = toUUID(?)) {rest}"
        );
        let texts = columns.iter().flat_map(|(_, value)| &value.texts);
        let statement = texts.fold(self.client.query(&sql), Statement::bind);
        statement.bind(&self.campaign).rows().await
    }

    async fn providers(&self, rules: &Rules) -> Result<Vec<Provider>, ClickHouseError> {
        // A recipient belongs to one provider, so that sums over providers are numbers of recipients.
        let bits = "groupBitOr(bitOr(bitShiftLeft(toUInt16(1), toUInt8(toInt8(event_type))), \
                    toUInt16(event_type = 'open' AND machine = ''))) AS flags";
        let has = |bits: &[u8]| {
            let tests: Vec<String> = bits.iter().map(|bit| format!("bitTest(flags, {bit})")).collect();
            format!("countIf({})", tests.join(" AND "))
        };
        // Bit 0 is an open that no rule names; the others are the numbers of the types.
        let figures: [&[u8]; 12] =
            [&[1], &[2], &[0], &[3], &[4], &[5], &[7], &[1, 2], &[1, 0], &[1, 3], &[1, 5], &[1, 7]];
        let figures: Vec<String> = figures.into_iter().map(has).collect();
        let select = format!("provider, tuple({}) AS reached FROM (SELECT provider, {bits}", figures.join(", "));
        let rest = "WHERE has_address GROUP BY provider, recipient) GROUP BY provider ORDER BY count() DESC, provider";
        let columns = [("provider", &rules.provider()), ("machine", &self.machine)];
        let found: Vec<FoundProvider> = self.ask(&select, &columns, rest).await?;
        let provider = |FoundProvider { provider, reached }: FoundProvider| {
            let [delivered, opened, opened_unnamed, clicked, bounced, unsubscribed, complained, ..] = reached;
            let [.., and_opened, and_opened_unnamed, and_clicked, and_unsubscribed, and_complained] = reached;
            let reached = Reached {
                delivered,
                opened,
                opened_unnamed,
                clicked,
                bounced,
                unsubscribed,
                complained,
                delivered_and_opened: and_opened,
                delivered_and_opened_unnamed: and_opened_unnamed,
                delivered_and_clicked: and_clicked,
                delivered_and_unsubscribed: and_unsubscribed,
                delivered_and_complained: and_complained,
            };
            Provider { provider, recipients: Recipients::of(reached) }
        };
        Ok(found.into_iter().map(provider).collect())
    }

    /// Returns the times to the first open. An open before the delivery counts as one at once.
    async fn time_to_open(&self, opens: &'static str) -> Result<TimeToOpen, ClickHouseError> {
        let is_open = if opens == "all" { "event_type = 'open'" } else { "event_type = 'open' AND machine = ''" };
        let within: Vec<String> = TIME_LIMITS.iter().map(|(limit, _)| format!("countIf(s <= {limit})")).collect();
        let select = format!(
            "count() AS recipients, toUInt32(quantileExact(0.5)(s)) AS median_s, toUInt32(quantileExact(0.9)(s)) AS nine_in_ten_s, \
             tuple({}) AS within FROM (SELECT toUInt32(minIf(event_time, event_type = 'delivered')) AS delivered, \
             toUInt32(minIf(event_time, {is_open})) AS opened, if(opened > delivered, toUInt32(opened - delivered), 0)::UInt32 AS s",
            within.join(", ")
        );
        let rest = format!(
            "WHERE has_address AND event_type IN ('delivered', 'open') GROUP BY recipient \
             HAVING countIf(event_type = 'delivered') > 0 AND countIf({is_open}) > 0)"
        );
        let found: Vec<FoundTimes> = self.ask(&select, &[("machine", &self.machine)], &rest).await?;
        let none = FoundTimes { recipients: 0, median_s: 0, nine_in_ten_s: 0, within: [0; TIME_LIMITS.len()] };
        let FoundTimes { recipients, median_s, nine_in_ten_s, within } = found.into_iter().next().unwrap_or(none);
        let known = |seconds: u32| (recipients > 0).then_some(u64::from(seconds));
        Ok(TimeToOpen { opens, recipients, median_s: known(median_s), nine_in_ten_s: known(nine_in_ten_s), within })
    }
}

/// Reads the figures of a campaign. Rows that arrive meanwhile can be in one figure and not yet in another.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn read(client: &Client, campaign: Uuid, rules: &Rules) -> Result<Depth, ClickHouseError> {
    // Only opens have a machine. For other rows the metadata is not read.
    let Expression { sql, texts } = rules.machine();
    let machine = Expression { sql: format!("if(event_type = 'open', {sql}, '')"), texts };
    let questions = Questions { client, campaign: campaign.to_string(), machine };
    let bounds: Vec<Bounds> = questions
        .ask(
            "count() AS rows, min(event_time) AS first, minIf(event_time, event_type = 'delivered') AS first_delivered, \
             max(event_time) AS last, \
             toUInt32(quantileExactLowIf(0.5)(event_time, event_type = 'open')) AS half_of_opens",
            &[],
            "",
        )
        .await?;
    let Bounds { rows, first, first_delivered, last, half_of_opens } = bounds.into_iter().next().unwrap_or_default();
    let announced = Announced::read(client, &questions.campaign).await?;
    let has_delivered = first_delivered > 0;
    let start = if has_delivered { first_delivered } else { first };
    let counted = client.query("SELECT toUInt64(sum(total)) FROM daily WHERE campaign_id = toUUID(?)");
    let counted = counted.bind(&questions.campaign).scalar_u64().await?;
    let uniques = "uniqExactIf(recipient, has_address)";
    let select = format!("toString(event_type) AS name, count() AS events, {uniques} AS recipients");
    let events: Vec<(String, u64, u64)> =
        questions.ask(&select, &[], "GROUP BY event_type ORDER BY event_type").await?;
    let of_type = |(event_type, events, recipients)| OfType { event_type, events, recipients };
    let select = format!(
        "toInt32(if(toUInt32(event_time) < {start}, -1, least(intDiv(toUInt32(event_time) - {start}, 3600), {HOURS_MAX}))) AS hour, \
         countIf(event_type = 'open') AS opens, countIf(event_type = 'open' AND machine != '') AS machine_opens, \
         countIf(event_type = 'click') AS clicks"
    );
    let rest = "WHERE event_type IN ('open', 'click') GROUP BY hour ORDER BY hour";
    let hours = questions.ask(&select, &[("machine", &questions.machine)], rest).await?;
    let select = format!("link, count() AS clicks, {uniques} AS recipients");
    let rest = format!(
        "WHERE event_type = 'click' GROUP BY link ORDER BY clicks DESC, link LIMIT {}",
        LINKS_MAX.saturating_add(1)
    );
    let mut links: Vec<Link> = questions.ask(&select, &[("link", &rules.link())], &rest).await?;
    let has_more_links = links.len() > LINKS_MAX;
    links.truncate(LINKS_MAX);
    let select = format!("machine, count() AS opens, {uniques} AS recipients");
    let rest = "WHERE event_type = 'open' GROUP BY machine ORDER BY machine = '' DESC, opens DESC, machine";
    let machines: Vec<FoundMachine> = questions.ask(&select, &[("machine", &questions.machine)], rest).await?;
    let sources: BTreeMap<&str, &str> =
        rules.machine.iter().map(|rule| (rule.name.as_str(), rule.source.as_str())).collect();
    let opens_by_machine = machines.into_iter().map(|FoundMachine { machine, opens, recipients }| Machine {
        source: sources.get(machine.as_str()).map_or(String::new(), |source| (*source).to_owned()),
        rule: machine,
        opens,
        recipients,
    });
    let select = format!("kind, count() AS bounces, {uniques} AS recipients");
    let rest = format!("WHERE event_type = 'bounce' GROUP BY kind ORDER BY kind = '{OTHER}', kind");
    let bounces = questions.ask(&select, &[("kind", &rules.bounce())], &rest).await?;
    let providers = questions.providers(rules).await?;
    let reached = providers.iter().map(|provider| provider.recipients.reached).fold(Reached::default(), Reached::plus);
    let known = |time: u32| (time > 0).then_some(time);
    let timeline = Timeline {
        audience_ready: known(announced.audience_ready),
        template_ready: known(announced.template_ready),
        first_delivery: known(first_delivered),
        half_of_opens: known(half_of_opens),
    };
    let audience_size = Some(announced.audience_size).filter(|&size| size > 0);
    let of_audience = audience_size.filter(|&size| reached.delivered <= size);
    Ok(Depth {
        version: 1,
        database: client.database().to_owned(),
        campaign_id: questions.campaign.clone(),
        first_delivery: (rows > 0).then_some(start),
        has_delivered,
        last_event: (rows > 0).then_some(last),
        timeline,
        audience_size,
        delivered_of_audience: of_audience.map(|size| reached.delivered as f64 / size as f64),
        rows,
        counted,
        events: events.into_iter().map(of_type).collect(),
        recipients: Recipients::of(reached),
        hours,
        links,
        has_more_links,
        providers,
        opens_by_machine: opens_by_machine.collect(),
        bounces,
        time_to_open: [questions.time_to_open("all").await?, questions.time_to_open("unnamed").await?],
    })
}
