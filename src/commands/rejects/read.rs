//! Reads rows of `rejected_events`. Must never hold more than a page of them. A page is limited by the memory that it
//! takes.

use super::{Count, Filter, Origin, Rejected, RejectsError, SourceName};
use crate::clickhouse::client::Client;
use crate::clickhouse::condition::{Condition, Value};
use crate::clickhouse::error::ClickHouseError;
use bytes::Bytes;
use clickhouse::Row;
use serde::Deserialize;
use tallyhouse_core::decode::reject::Reason;

const COLUMNS: &str = "toString(source) AS source_name, source_offset, toUnixTimestamp64Milli(kafka_timestamp) AS timestamp_ms, \
                       toString(reason) AS reason_code, error, key, payload, length(payload) AS whole_bytes";
const ORDER: &str = "source, source_offset";

/// Intended size of a page of rows, in bytes.
const PAGE_BYTES: u64 = 16 << 20;
const PAGE_ROWS_MIN: u64 = 16;
const PAGE_ROWS_MAX: u64 = 10_000;
const PAGE_ROWS_FIRST: u64 = 256;

/// Number of bytes of the payload that a listing shows.
const EXCERPT_BYTES: u32 = 200;

#[derive(Row, Deserialize)]
struct Found {
    source_name: String,
    source_offset: u64,
    timestamp_ms: i64,
    reason_code: String,
    error: String,
    key: Bytes,
    payload: Bytes,
    /// Length of the payload in bytes, also where only its beginning was asked for.
    whole_bytes: u64,
}

impl From<Found> for Rejected {
    fn from(found: Found) -> Rejected {
        Rejected {
            origin: Origin { source: found.source_name, offset: found.source_offset },
            // The table can only say with 0 that there was none.
            timestamp_ms: Some(found.timestamp_ms).filter(|&time| time != 0),
            payload: Some(found.payload).filter(|_| found.reason_code != Reason::Tombstone.code()),
            reason: found.reason_code,
            error: found.error,
            key: found.key,
        }
    }
}

fn condition(filter: &Filter) -> Condition {
    let mut condition = Condition::default();
    if !filter.reasons.is_empty() {
        let codes = filter.reasons.iter().map(|reason| reason.code()).collect();
        condition = condition.and("reason IN ?", [Value::Texts(codes)]);
    }
    if let Some(SourceName(name)) = &filter.source {
        let name = Value::Text(name.clone());
        condition = condition.and("(source = ? OR startsWith(source, concat(?, '@')))", [name.clone(), name]);
    }
    if let Some(since) = filter.since {
        condition = condition.and("kafka_timestamp >= fromUnixTimestamp64Milli(toInt64(?))", [Value::Time(since.0)]);
    }
    if let Some(until) = filter.until {
        condition = condition.and("kafka_timestamp < fromUnixTimestamp64Milli(toInt64(?))", [Value::Time(until.0)]);
    }
    condition
}

/// Leaves out the rows up to and including one.
fn after(condition: Condition, origin: &Origin) -> Condition {
    let source = Value::Text(origin.source.clone());
    let values = [source.clone(), source, Value::Offset(origin.offset)];
    condition.and("(source > ? OR source = ? AND source_offset > ?)", values)
}

fn among(condition: Condition, source: &str, offsets: Vec<u64>) -> Condition {
    condition.and("source = ? AND source_offset IN ?", [Value::Text(source.to_owned()), Value::Offsets(offsets)])
}

/// All rows of a filter in the order of their origins, page by page.
pub struct Pages<'c> {
    client: &'c Client,
    filter: Filter,
    left: u64,
    rows: u64,
    last: Option<Origin>,
}

impl Pages<'_> {
    /// Starts before the first page.
    pub fn new(client: &Client, filter: Filter) -> Pages<'_> {
        let left = filter.limit.unwrap_or(u64::MAX);
        Pages { client, filter, left, rows: PAGE_ROWS_FIRST, last: None }
    }

    /// Returns the next page; it is empty after the last.
    ///
    /// # Errors
    /// Any of [`ClickHouseError`].
    pub async fn next(&mut self) -> Result<Vec<Rejected>, ClickHouseError> {
        let limit = self.rows.min(self.left);
        if limit == 0 {
            return Ok(Vec::new());
        }
        let condition = condition(&self.filter);
        let condition = match &self.last {
            Some(last) => after(condition, last),
            None => condition,
        };
        let sql =
            format!("SELECT {COLUMNS} FROM rejected_events WHERE {} ORDER BY {ORDER} LIMIT {limit}", condition.sql());
        let found: Vec<Found> = condition.bind(self.client.query(&sql)).rows().await?;
        let page: Vec<Rejected> = found.into_iter().map(Rejected::from).collect();
        self.left -= page.len() as u64;
        let bytes: u64 = page.iter().map(bytes_of).sum();
        self.rows = (PAGE_BYTES * page.len() as u64 / bytes.max(1)).clamp(PAGE_ROWS_MIN, PAGE_ROWS_MAX);
        self.last = page.last().map(|row| row.origin.clone());
        Ok(page)
    }
}

fn bytes_of(row: &Rejected) -> u64 {
    let payload = row.payload.as_ref().map_or(0, Bytes::len);
    (row.origin.source.len() + row.reason.len() + row.error.len() + row.key.len() + payload) as u64
}

/// Returns the rows with the newest Kafka timestamps. Each has only the beginning of its payload, and the payload's
/// whole length.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn newest(client: &Client, filter: &Filter) -> Result<Vec<(Rejected, u64)>, ClickHouseError> {
    let columns = COLUMNS.replace(" payload", &format!(" substring(payload, 1, {EXCERPT_BYTES}) AS payload_begin"));
    let condition = condition(filter);
    let limit = filter.limit.unwrap_or(u64::MAX);
    let sql = format!(
        "SELECT source_name, source_offset, timestamp_ms, reason_code, error, key, payload_begin AS payload, whole_bytes FROM \
         (SELECT {columns}, kafka_timestamp, source FROM rejected_events WHERE {} \
         ORDER BY kafka_timestamp DESC, {ORDER} LIMIT {limit}) ORDER BY kafka_timestamp DESC, {ORDER}",
        condition.sql()
    );
    let found: Vec<Found> = condition.bind(client.query(&sql)).rows().await?;
    let row = |found: Found| {
        let whole_bytes = found.whole_bytes;
        (found.into(), whole_bytes)
    };
    Ok(found.into_iter().map(row).collect())
}

/// Returns one row, whole.
///
/// # Errors
/// Any of [`ClickHouseError`]; [`RejectsError::NoRow`]; [`RejectsError::Several`] where the source is named without a
/// topic id.
pub async fn one(client: &Client, source: SourceName, offset: u64) -> Result<Rejected, RejectsError> {
    let origin = Origin { source: source.0.clone(), offset };
    let condition = condition(&Filter { source: Some(source), ..Filter::default() })
        .and("source_offset = ?", [Value::Offset(offset)]);
    let sql = format!("SELECT {COLUMNS} FROM rejected_events WHERE {} ORDER BY {ORDER}", condition.sql());
    let mut found: Vec<Found> = condition.bind(client.query(&sql)).rows().await?;
    match found.len() {
        0 => Err(RejectsError::NoRow(origin)),
        1 => Ok(found.remove(0).into()),
        _ => Err(RejectsError::Several(found.into_iter().map(|row| row.source_name).collect())),
    }
}

/// Returns the rows of these origins that exist.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub(super) async fn of_origins(client: &Client, origins: &[Origin]) -> Result<Vec<Rejected>, ClickHouseError> {
    let mut rows = Vec::with_capacity(origins.len());
    for (source, offsets) in by_source(origins.iter().map(|origin| (origin.source.as_str(), origin.offset))) {
        let condition = among(Condition::default(), source, offsets);
        let sql = format!("SELECT {COLUMNS} FROM rejected_events WHERE {}", condition.sql());
        let found: Vec<Found> = condition.bind(client.query(&sql)).rows().await?;
        rows.extend(found.into_iter().map(Rejected::from));
    }
    Ok(rows)
}

fn by_source<'a>(origins: impl Iterator<Item = (&'a str, u64)>) -> Vec<(&'a str, Vec<u64>)> {
    let mut sources = std::collections::BTreeMap::<&str, Vec<u64>>::new();
    origins.for_each(|(source, offset)| sources.entry(source).or_default().push(offset));
    sources.into_iter().collect()
}

/// Returns the number of rows of each reason, the most frequent first.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn counts(client: &Client, filter: &Filter) -> Result<Vec<Count>, ClickHouseError> {
    #[derive(Row, Deserialize)]
    struct Group {
        reason_code: String,
        rows: u64,
        sources: u64,
        first_ms: i64,
        last_ms: i64,
    }
    let condition = condition(filter);
    let sql = format!(
        "SELECT toString(reason) AS reason_code, count() AS rows, uniqExact(source) AS sources, \
         toUnixTimestamp64Milli(min(kafka_timestamp)) AS first_ms, toUnixTimestamp64Milli(max(kafka_timestamp)) AS last_ms \
         FROM rejected_events WHERE {} GROUP BY reason ORDER BY rows DESC, reason_code",
        condition.sql()
    );
    let found: Vec<Group> = condition.bind(client.query(&sql)).rows().await?;
    let count = |group: Group| Count {
        reason: group.reason_code,
        rows: group.rows,
        sources: group.sources,
        first_ms: group.first_ms,
        last_ms: group.last_ms,
        replayed: None,
    };
    Ok(found.into_iter().map(count).collect())
}

/// Returns the number of these rows of each reason.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub(super) async fn counts_among(
    client: &Client,
    filter: &Filter,
    source: &str,
    offsets: Vec<u64>,
) -> Result<Vec<(String, u64)>, ClickHouseError> {
    let condition = among(condition(filter), source, offsets);
    let sql =
        format!("SELECT toString(reason), count() FROM rejected_events WHERE {} GROUP BY reason", condition.sql());
    condition.bind(client.query(&sql)).rows().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_bound_and_never_in_the_sql() {
        let filter = Filter {
            reasons: vec![Reason::BadUuid, Reason::Empty],
            source: Some("t/0".parse().unwrap()),
            since: Some("1970-01-02".parse().unwrap()),
            until: None,
            limit: Some(5),
        };
        let found = after(condition(&filter), &Origin { source: "t/0@x".into(), offset: 7 });
        assert_eq!(found.sql().matches('?').count(), found.values().len());
        assert!(!found.sql().contains("t/0") && !found.sql().contains("bad_uuid"), "{}", found.sql());
        assert_eq!(found.values()[0], Value::Texts(vec!["bad_uuid", "empty"]));
        assert_eq!(condition(&Filter::default()).sql(), "true");
    }
}
