//! Counts by day in a time zone.
//!
//! Counters are of UTC days. So the days of another zone are counted from raw rows, and a day of which raw rows are missing has no counts.

use super::recipients::{self, FirstEvents};
use super::{Counts, Filter, condition};
use crate::clickhouse::client::Client;
use crate::clickhouse::condition::Condition;
use crate::clickhouse::error::ClickHouseError;
use clickhouse::Row;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use tallyhouse_core::days::{Day, Span};

/// Names of UTC. Its days are those of the counters.
const UTC: [&str; 2] = ["UTC", "Etc/UTC"];

/// One day of a zone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ZoneDay {
    /// The day in the zone's own calendar.
    pub day: Day,
    /// Its numbers of events; `None` if raw rows of the day are missing.
    pub counts: Option<Counts>,
    /// Recipients with a first event on the day. They are kept permanently.
    pub recipients: Option<FirstEvents>,
}

/// The content of a report by the days of a zone.
#[derive(Clone, Debug)]
pub struct ZoneReport {
    /// Name of the ClickHouse database.
    pub database: String,
    /// The condition on the events that were counted. Its days are days of the zone.
    pub filter: Filter,
    /// Name of the zone.
    pub zone: String,
    /// The days that have events, the earliest first.
    pub days: Vec<ZoneDay>,
}

/// The events of a UTC day by the counters, and the days of the zone that it is a part of.
#[derive(Row, Deserialize)]
struct Counted {
    utc_day: u16,
    events: u64,
    first: u16,
    last: u16,
}

/// The counts of what is of one UTC day and of one day of the zone.
#[derive(Row, Deserialize)]
struct Found {
    utc_day: u16,
    zone_day: u16,
    /// Number of raw rows.
    rows: u64,
    counts: [u64; 8],
}

impl Counts {
    fn of(counts: [u64; 8]) -> Counts {
        let [delivered, opens, clicks, bounces, unsubscribes, sent, complaints, deferred] = counts;
        Counts { delivered, opens, clicks, bounces, unsubscribes, sent, complaints, deferred }
    }
}

impl ZoneReport {
    /// Returns the sum of the days that have counts.
    pub fn total(&self) -> Counts {
        self.days.iter().filter_map(|of| of.counts).fold(Counts::default(), Counts::plus)
    }

    /// True if any day has recipients.
    pub fn has_recipients(&self) -> bool {
        self.days.iter().any(|of| of.recipients.is_some())
    }

    /// Returns the number of days without counts.
    pub fn days_not_kept(&self) -> usize {
        self.days.iter().filter(|of| of.counts.is_none()).count()
    }
}

/// True if ClickHouse knows a time zone of this name.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn is_known(client: &Client, zone: &str) -> Result<bool, ClickHouseError> {
    let known = client.query("SELECT count() FROM system.time_zones WHERE time_zone = ?").bind(zone);
    Ok(known.scalar_u64().await? > 0)
}

/// Reads the counts of a zone's days from ClickHouse. It holds one row per day in memory.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn read(client: &Client, filter: Filter, zone: String) -> Result<ZoneReport, ClickHouseError> {
    let mut days = if UTC.contains(&zone.as_str()) {
        days(&filter, &[], &from_counters(client, &filter).await?)
    } else {
        // Rows are inserted before their counters. Asked for in this order, only rows that are gone can be missing.
        let counted = counted(client, &filter, &zone).await?;
        let found = found(client, &filter, &zone).await?;
        days(&filter, &counted, &found)
    };
    let mut recipients = recipients::by_day(client, &filter, &zone).await?;
    days.iter_mut().for_each(|of| of.recipients = recipients.remove(&of.day));
    Ok(ZoneReport { database: client.database().to_owned(), filter, zone, days })
}

async fn from_counters(client: &Client, filter: &Filter) -> Result<Vec<Found>, ClickHouseError> {
    let condition = condition(filter);
    let sql = format!(
        "SELECT toUInt16(day) AS utc_day, utc_day AS zone_day, toUInt64(0) AS rows, \
         tuple(sum(delivered), sum(opens), sum(clicks), sum(bounces), sum(unsubscribes), sum(sent), sum(complaints), sum(deferred)) \
         AS counts FROM campaign_daily WHERE {} GROUP BY utc_day",
        condition.sql()
    );
    condition.bind(client.query(&sql)).rows().await
}

async fn counted(client: &Client, filter: &Filter, zone: &str) -> Result<Vec<Counted>, ClickHouseError> {
    let condition = condition(&with_neighbours(filter));
    let sql = format!(
        "SELECT toUInt16(day) AS utc_day, sum(total) AS events, toUInt16(toDate(toDateTime(day, 'UTC'), ?)) AS first, \
         toUInt16(toDate(toDateTime(day, 'UTC') + 86399, ?)) AS last FROM daily WHERE {} GROUP BY day ORDER BY day",
        condition.sql()
    );
    condition.bind(client.query(&sql).bind(zone).bind(zone)).rows().await
}

async fn found(client: &Client, filter: &Filter, zone: &str) -> Result<Vec<Found>, ClickHouseError> {
    let neighbours = with_neighbours(filter);
    // The primary key begins with the campaign and the partitions are UTC days, so both narrow the search.
    let span = Span::new(neighbours.since, neighbours.until).of_rows();
    let condition = Condition::default()
        .and_text("workspace_id = toUUID(?)", filter.workspace.map(|id| id.to_string()))
        .and_text("campaign_id = toUUID(?)", filter.campaign.map(|id| id.to_string()));
    let types = ["delivered", "open", "click", "bounce", "unsubscribe", "sent", "complaint", "deferred"];
    let counts = types.map(|event_type| format!("countIf(event_type = '{event_type}')")).join(", ");
    let sql = format!(
        "SELECT toUInt16(toDate(event_time)) AS utc_day, toUInt16(toDate(event_time, ?)) AS zone_day, count() AS rows, tuple({counts}) AS counts \
         FROM email_events WHERE {span} AND {} GROUP BY utc_day, zone_day",
        condition.sql()
    );
    condition.bind(client.query(&sql).bind(zone)).rows().await
}

/// Returns the filter with one more UTC day at each end. A zone's day begins up to 14 hours before the UTC day, or 12 after it.
fn with_neighbours(filter: &Filter) -> Filter {
    Filter {
        since: filter.since.map(|day| Day(day.0.saturating_sub(1))),
        until: filter.until.map(|day| Day(day.0.saturating_add(1))),
        ..filter.clone()
    }
}

/// Sums the rows of each day of the zone. A day has no counts if it has a part of a UTC day with fewer rows than counted events.
fn days(filter: &Filter, counted: &[Counted], found: &[Found]) -> Vec<ZoneDay> {
    let mut rows: BTreeMap<u16, u64> = BTreeMap::new();
    let mut sums: BTreeMap<u16, Counts> = BTreeMap::new();
    for of in found {
        *rows.entry(of.utc_day).or_default() += of.rows;
        let sum = sums.entry(of.zone_day).or_default();
        *sum = sum.plus(Counts::of(of.counts));
    }
    let missing = counted.iter().filter(|of| of.events > rows.get(&of.utc_day).copied().unwrap_or(0));
    let not_kept: BTreeSet<u16> = missing.flat_map(|of| of.first..=of.last).collect();
    let all: BTreeSet<u16> = sums.keys().chain(&not_kept).copied().filter(|&day| filter.has(Day(day))).collect();
    let counts = |day: u16| sums.get(&day).copied().filter(|_| !not_kept.contains(&day));
    all.into_iter().map(|day| ZoneDay { day: Day(day), counts: counts(day), recipients: None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(utc_day: u16, zone_day: u16, opens: u64) -> Found {
        Found { utc_day, zone_day, rows: opens, counts: [0, opens, 0, 0, 0, 0, 0, 0] }
    }

    fn opens(filter: &Filter, counted: &[Counted], found: &[Found]) -> Vec<(u16, Option<u64>)> {
        days(filter, counted, found).into_iter().map(|of| (of.day.0, of.counts.map(|counts| counts.opens))).collect()
    }

    #[test]
    fn a_day_with_a_part_of_an_expired_day_has_no_counts() {
        let counted = [(10, 5), (11, 7), (12, 3)].map(|(utc_day, events)| Counted {
            utc_day,
            events,
            first: utc_day,
            last: utc_day + 1,
        });
        let kept =
            [rows(10, 10, 4), rows(10, 11, 1), rows(11, 11, 6), rows(11, 12, 1), rows(12, 12, 2), rows(12, 13, 1)];
        let all = Filter::default();
        assert_eq!(opens(&all, &counted, &kept), [(10, Some(4)), (11, Some(7)), (12, Some(3)), (13, Some(1))]);
        assert_eq!(opens(&all, &counted, &kept[2..]), [(10, None), (11, None), (12, Some(3)), (13, Some(1))]);
        let one = Filter { since: Some(Day(11)), until: Some(Day(12)), ..Filter::default() };
        assert_eq!(opens(&one, &counted, &kept[1..]), [(11, None), (12, Some(3))]);
        // A batch whose counters are not inserted yet has more rows than counted events.
        assert_eq!(opens(&one, &[], &kept), [(11, Some(7)), (12, Some(3))]);
    }
}
