//! Reads the TTLs of all tables, and sets them on `email_events` and `rejected_events`.
//!
//! Raw rows expire by whole UTC days: `TTL toDate(event_time) + INTERVAL n DAY` with `ttl_only_drop_parts`. So the rows of a
//! batch in a ClickHouse partition expire together. If a TTL is one of `event_time`, `OPTIMIZE … FINAL` removes row by row even
//! with `ttl_only_drop_parts`. Then a batch to be completed could be found half applied, and its partition would stop.
//!
//! Must never set one on `daily`: counters are kept permanently, and they are the marks.

use super::client::Client;
use super::error::ClickHouseError;
use super::schema::Schema;
use clickhouse::Row;
use serde::Deserialize;
use std::str::FromStr;
use tallyhouse_core::days::Day;

/// Time before its expiry at which a day counts as expired, in seconds. A day must not expire between two questions.
const EARLY_S: u32 = 3_600;

/// Longest time to keep rows, in days: a century.
const DAYS_MAX: u32 = 36_500;

/// The time for which a table keeps its rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Rows are kept permanently.
    None,
    /// Rows are kept for this number of days.
    Days(u32),
    /// Expression that somebody else wrote.
    Other(String),
}

/// The time for which the tables keep their rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// TTL of `email_events`, from the beginning of the event's UTC day.
    pub raw: Ttl,
    /// TTL of `rejected_events`, from the time when the row was written.
    pub rejected: Ttl,
    /// TTL of `daily`; Tallyhouse sets none.
    pub daily: Ttl,
    /// Tables with a column that has a TTL of its own.
    pub of_columns: Vec<String>,
    /// True if raw rows expire by whole days.
    pub by_whole_days: bool,
    /// The current day in UTC, an hour early.
    today: Day,
}

/// The wanted TTL of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Rows are kept permanently.
    Forever,
    /// Number of days for which rows are kept.
    Days(u32),
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Keep, String> {
        if text == "off" {
            return Ok(Keep::Forever);
        }
        let days = text.parse().ok().filter(|days| (1..=DAYS_MAX).contains(days));
        days.map(Keep::Days).ok_or_else(|| format!("give a number of days from 1 to {DAYS_MAX}, or off"))
    }
}

/// A row of `system.tables`.
#[derive(Row, Deserialize)]
struct Found {
    name: String,
    engine_full: String,
    of_columns: bool,
    now_s: u32,
}

/// Query for the TTLs of tables.
const QUESTION: &str = "SELECT name, engine_full, position(splitByString(' ENGINE = ', create_table_query)[1], ' TTL ') > 0 AS of_columns, \
                        toUnixTimestamp(now()) AS now_s FROM system.tables WHERE database = ? AND name IN ?";

/// Returns the names of the tables that have the rows: raw rows, rejects, counters.
fn tables(schema: &Schema) -> [String; 3] {
    ["email_events", "rejected_events", "daily"].map(|table| schema.insert_target(table))
}

impl Retention {
    /// Reads the TTLs of the tables that have the rows. A table that does not exist has none.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn read(client: &Client, schema: &Schema) -> Result<Retention, ClickHouseError> {
        let found = client.query(QUESTION).bind(client.database()).bind(tables(schema)).rows().await?;
        Ok(Retention::of(found, schema))
    }

    /// Reads the TTLs as [`Self::read`] does, for a decision about inserts or commits.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn deciding(client: &Client, schema: &Schema) -> Result<Retention, ClickHouseError> {
        let found = client.deciding(QUESTION).bind(client.database()).bind(tables(schema)).rows().await?;
        let row = |(name, engine_full, of_columns, now_s)| Found { name, engine_full, of_columns, now_s };
        Ok(Retention::of(found.into_iter().map(row).collect(), schema))
    }

    fn of(found: Vec<Found>, schema: &Schema) -> Retention {
        let [raw, rejected, daily] = tables(schema);
        let engine = |name: &str| found.iter().find(|row| row.name == name).map_or("", |row| row.engine_full.as_str());
        let now_s = found.first().map_or(0, |row| row.now_s);
        let of_raw = engine(&raw);
        Retention {
            raw: ttl(of_raw, "event_time"),
            rejected: ttl(engine(&rejected), "rejected_at"),
            daily: ttl(engine(&daily), "day"),
            of_columns: found.iter().filter(|row| row.of_columns).map(|row| row.name.clone()).collect(),
            by_whole_days: of_raw.contains(" TTL toDate(event_time) +") && of_raw.contains("ttl_only_drop_parts = 1"),
            today: Day::of(now_s.saturating_add(EARLY_S)),
        }
    }

    /// Returns the retention of the rows of lifecycle topics and of their rejects: those rows are kept permanently.
    #[must_use]
    pub fn of_lifecycle(&self) -> Retention {
        Retention { raw: Ttl::None, ..self.clone() }
    }

    /// Returns the first UTC day of which `email_events` has every row; `None` if rows are kept permanently, or nobody can know.
    pub fn first_kept_day(&self) -> Option<Day> {
        match self.raw {
            Ttl::Days(days) => Some(Day((u32::from(self.today.0) + 1).saturating_sub(days) as u16)),
            Ttl::None | Ttl::Other(_) => None,
        }
    }
}

/// Returns the statements that make a table of the schema keep raw rows (`rejected`: rejected ones) for this time, if it does not
/// yet.
pub fn statements(schema: &Schema, database: &str, rejected: bool, keep: Keep, now: Option<&Retention>) -> Vec<String> {
    let (name, from) =
        if rejected { ("rejected_events", "rejected_at") } else { ("email_events", "toDate(event_time)") };
    let table = schema.alter_target(database, name);
    let is = now.map(|now| if rejected { &now.rejected } else { &now.raw });
    let is_right = rejected || now.is_some_and(|now| now.by_whole_days);
    match (keep, is) {
        (Keep::Forever, Some(Ttl::None)) => Vec::new(),
        (Keep::Forever, _) => vec![format!("ALTER TABLE {table} REMOVE TTL")],
        (Keep::Days(days), Some(Ttl::Days(is))) if days == *is && is_right => Vec::new(),
        (Keep::Days(days), _) => {
            let settings = if rejected { "" } else { "ttl_only_drop_parts = 1, " };
            vec![
                // Parts get their new time without being rewritten.
                format!("ALTER TABLE {table} MODIFY SETTING {settings}materialize_ttl_recalculate_only = 1"),
                format!("ALTER TABLE {table} MODIFY TTL {from} + INTERVAL {days} DAY"),
            ]
        }
    }
}

/// Returns the TTL in `system.tables.engine_full`. `of` is the column from which it counts.
fn ttl(engine_full: &str, of: &str) -> Ttl {
    let Some((_, rest)) = engine_full.split_once(" TTL ") else { return Ttl::None };
    let expression = rest.split(" SETTINGS ").next().unwrap_or(rest);
    let days = expression
        .strip_prefix(&format!("toDate({of})"))
        .or_else(|| expression.strip_prefix(of))
        .and_then(|rest| rest.strip_prefix(" + toIntervalDay(")?.strip_suffix(')')?.parse().ok());
    days.map_or_else(|| Ttl::Other(expression.to_owned()), Ttl::Days)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_read_as_days_or_as_it_stands() {
        let of = |ttl_text: &str| {
            ttl(&format!("MergeTree ORDER BY (a, b){ttl_text} SETTINGS index_granularity = 8192"), "event_time")
        };
        assert_eq!(of(""), Ttl::None);
        assert_eq!(of(" TTL toDate(event_time) + toIntervalDay(90)"), Ttl::Days(90));
        assert_eq!(of(" TTL event_time + toIntervalDay(7)"), Ttl::Days(7));
        for other in ["event_time + toIntervalMonth(3)", "event_time + toIntervalDay(3) TO DISK 'cold'"] {
            assert_eq!(of(&format!(" TTL {other}")), Ttl::Other(other.to_owned()));
        }
    }

    fn kept(today: u16) -> Retention {
        let (raw, rejected, daily) = (Ttl::None, Ttl::None, Ttl::None);
        Retention { raw, rejected, daily, of_columns: Vec::new(), by_whole_days: true, today: Day(today) }
    }

    #[test]
    fn a_day_is_kept_until_it_is_as_many_days_back() {
        let first =
            |raw, today| Retention { raw, rejected: Ttl::None, by_whole_days: true, ..kept(today) }.first_kept_day();
        assert_eq!(first(Ttl::Days(1), 100), Some(Day(100)));
        assert_eq!(first(Ttl::Days(10), 100), Some(Day(91)));
        assert_eq!(first(Ttl::Days(DAYS_MAX), 100), Some(Day(0)));
        assert_eq!((first(Ttl::None, 100), first(Ttl::Other("?".into()), 100)), (None, None));
    }

    #[test]
    fn statements_are_sent_only_where_they_change_something() {
        let schema = Schema::single();
        let now = |raw, by_whole_days| Retention { raw, rejected: Ttl::Days(30), by_whole_days, ..kept(100) };
        let raw = |keep, now: &Retention| statements(&schema, "d", false, keep, Some(now)).len();
        assert_eq!(raw(Keep::Days(90), &now(Ttl::None, false)), 2);
        assert_eq!(raw(Keep::Days(90), &now(Ttl::Days(90), true)), 0);
        assert_eq!(raw(Keep::Days(90), &now(Ttl::Days(90), false)), 2);
        assert_eq!(raw(Keep::Forever, &now(Ttl::None, false)), 0);
        assert_eq!(raw(Keep::Forever, &now(Ttl::Days(90), true)), 1);
        let rejected = |keep| statements(&schema, "d", true, keep, Some(&now(Ttl::None, false))).len();
        assert_eq!((rejected(Keep::Days(30)), rejected(Keep::Days(7)), rejected(Keep::Forever)), (0, 2, 1));
        let cluster = statements(&Schema::cluster("c").unwrap(), "d", false, Keep::Days(9), None);
        assert!(
            cluster[1].starts_with("ALTER TABLE d.email_events_local ON CLUSTER `c` MODIFY TTL toDate(event_time) + ")
        );
    }

    #[test]
    fn how_long_to_keep_is_a_number_of_days_or_off() {
        assert_eq!(("off".parse(), "90".parse()), (Ok(Keep::Forever), Ok(Keep::Days(90))));
        for text in ["0", "-1", "36501", "90d", "never", ""] {
            assert!(text.parse::<Keep>().is_err(), "{text}");
        }
    }
}
