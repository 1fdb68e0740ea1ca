//! The audit's queries to ClickHouse. Must never change anything: there are only SELECTs here.
//!
//! ClickHouse aggregates everything, and its GROUP BY spills to disk. A LIMIT bounds each answer.

use super::judge::{BUCKET, Runs};
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use clickhouse::Row;
use serde::Deserialize;
use std::collections::BTreeMap;
use tallyhouse_core::days::Span;
use tallyhouse_core::source::{OffsetRange, Table};

/// The tables of which each row has the offset of its record. A record is in one of them.
const WITH_OFFSETS: [Table; 3] = [Table::Raw, Table::Rejected, Table::Lifecycle];

/// One offset with more than one row.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct Duplicate {
    /// The source of the rows.
    pub source: String,
    /// Offset that has more than one row.
    pub offset: u64,
    /// Number of its rows in `email_events` or `campaign_lifecycle`.
    pub raw: u64,
    /// Number of its rows in `rejected_events`.
    pub rejected: u64,
    all: u64,
}

/// Returns the offsets with more than one row: the first `limit`, and their whole number. It looks at `email_events` and
/// `campaign_lifecycle` of these days, and at all of `rejected_events`, as rejected records have no day.
///
/// It first counts distinct offsets with bitmaps per [`BUCKET`], which take one bit an offset. Only buckets with a
/// surplus are looked at row by row.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn duplicates(client: &Client, span: &Span, limit: u64) -> Result<(Vec<Duplicate>, u64), ClickHouseError> {
    let stored = format!(
        "(SELECT source, source_offset, 1 AS is_raw FROM email_events WHERE {} \
         UNION ALL SELECT source, source_offset, 1 FROM campaign_lifecycle WHERE {} \
         UNION ALL SELECT source, source_offset, 0 FROM rejected_events)",
        span.of_rows(),
        span.of_rows()
    );
    let buckets = format!(
        "SELECT source, intDiv(source_offset, {BUCKET}) FROM {stored} GROUP BY ALL HAVING count() > groupBitmap(source_offset)"
    );
    if client.query(&format!("SELECT count() FROM ({buckets})")).scalar_u64().await? == 0 {
        return Ok((Vec::new(), 0));
    }
    let sql = format!(
        "SELECT toString(source) AS source, source_offset AS offset, countIf(is_raw = 1) AS raw, countIf(is_raw = 0) AS rejected, \
         count() OVER () AS all \
         FROM {stored} WHERE (source, intDiv(source_offset, {BUCKET})) IN ({buckets}) \
         GROUP BY source, source_offset HAVING count() > 1 ORDER BY source, source_offset LIMIT {limit}"
    );
    let rows = client.query(&sql).rows::<Duplicate>().await?;
    let all = rows.first().map_or(0, |row| row.all);
    Ok((rows, all))
}

/// Returns the first offset of each source in the tables with offsets.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn first_offsets(client: &Client, sources: &[String]) -> Result<BTreeMap<String, u64>, ClickHouseError> {
    let sql = "SELECT toString(source), min(first) FROM (\
               SELECT source, min(source_offset) AS first FROM email_events WHERE source IN ? GROUP BY source \
               UNION ALL \
               SELECT source, min(source_offset) FROM campaign_lifecycle WHERE source IN ? GROUP BY source \
               UNION ALL \
               SELECT source, min(source_offset) FROM rejected_events WHERE source IN ? GROUP BY source) GROUP BY source";
    let rows = client.query(sql).bind(sources).bind(sources).bind(sources).rows::<(String, u64)>().await?;
    Ok(rows.into_iter().collect())
}

/// Returns the number of distinct stored offsets of a source in a range, by bucket.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn stored_by_bucket(
    client: &Client,
    ranges: &[(String, OffsetRange)],
) -> Result<BTreeMap<String, BTreeMap<u64, u64>>, ClickHouseError> {
    let names: Vec<&String> = ranges.iter().map(|(name, _)| name).collect();
    let starts: Vec<u64> = ranges.iter().map(|(_, range)| range.start).collect();
    let ends: Vec<u64> = ranges.iter().map(|(_, range)| range.end).collect();
    let of = |table: &str| {
        format!(
            "SELECT source, source_offset FROM {table} WHERE source IN ? \
             AND source_offset >= toUInt64(transform(toString(source), ?, ?, 0)) \
             AND source_offset < toUInt64(transform(toString(source), ?, ?, 0))"
        )
    };
    let sql = format!(
        "SELECT toString(source), intDiv(source_offset, {BUCKET}) AS bucket, groupBitmap(source_offset) \
         FROM ({}) GROUP BY source, bucket",
        WITH_OFFSETS.map(|table| of(table.name())).join(" UNION ALL ")
    );
    let mut query = client.query(&sql);
    for _ in WITH_OFFSETS {
        query = query.bind(&names).bind(&names).bind(&starts).bind(&names).bind(&ends);
    }
    let mut stored: BTreeMap<String, BTreeMap<u64, u64>> = BTreeMap::new();
    for (source, bucket, offsets) in query.rows::<(String, u64, u64)>().await? {
        stored.entry(source).or_default().insert(bucket, offsets);
    }
    Ok(stored)
}

/// Returns the offsets of `range` (within one bucket) that no row has, as ranges.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn missing(client: &Client, source: &str, range: OffsetRange) -> Result<Vec<OffsetRange>, ClickHouseError> {
    let OffsetRange { start, end } = range;
    let of = |table: &str| {
        format!(
            "SELECT toInt64(source_offset) AS o FROM {table} \
             WHERE source = ? AND source_offset >= {start} AND source_offset < {end}"
        )
    };
    let sql = format!(
        "SELECT toUInt64(o + 1), toUInt64(next) FROM (\
         SELECT o, leadInFrame(o, 1, toInt64({end})) OVER (ORDER BY o ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS next \
         FROM ({} UNION ALL SELECT toInt64({start}) - 1)) \
         WHERE next > o + 1 ORDER BY o LIMIT {}",
        WITH_OFFSETS.map(|table| of(table.name())).join(" UNION ALL "),
        Runs::RANGES_MAX
    );
    let query = WITH_OFFSETS.iter().fold(client.query(&sql), |query, _| query.bind(source));
    let rows = query.rows::<(u64, u64)>().await?;
    Ok(rows.into_iter().map(|(start, end)| OffsetRange { start, end }).collect())
}

/// Returns the number of events of these days that are counted, and the last such day.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn counted(client: &Client, span: &Span) -> Result<(u64, String), ClickHouseError> {
    let sql = format!("SELECT sum(total), toString(max(day)) FROM daily WHERE {}", span.of_counters());
    Ok(client.query(&sql).rows().await?.into_iter().next().unwrap_or_default())
}

/// Returns the names of what repairs have left: constraints on `daily` and staging tables. `tables` is `system.tables`, of one server or
/// of all.
///
/// # Errors
/// Any of [`ClickHouseError`].
pub async fn leftovers(client: &Client, tables: &str) -> Result<(Vec<String>, Vec<String>), ClickHouseError> {
    let fences = format!(
        "SELECT DISTINCT arrayJoin(extractAll(create_table_query, 'CONSTRAINT (tallyhouse_repair_[0-9a-f]+) CHECK')) \
         FROM {tables} WHERE database = ? AND name = ?"
    );
    let stagings =
        format!("SELECT DISTINCT name FROM {tables} WHERE database = ? AND match(name, '^daily_repair_[0-9a-f]+$')");
    let fences = client.query(&fences).bind(client.database()).bind(client.stored("daily")).rows().await?;
    let stagings = client.query(&stagings).bind(client.database()).rows().await?;
    Ok((fences, stagings))
}
