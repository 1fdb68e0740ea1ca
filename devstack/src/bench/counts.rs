//! Compares a database's content with the ledger of produced events.

use super::AnyError;
use crate::ClickHouse;
use crate::producer::{EVENT_TYPES, Ledger};
use std::collections::BTreeMap;

/// Returns the number of events that are both stored and counted.
///
/// # Errors
/// ClickHouse does not answer.
pub fn counted(clickhouse: &ClickHouse, database: &str) -> Result<u64, AnyError> {
    let sql = format!(
        "SELECT least((SELECT count() FROM {database}.email_events), (SELECT sum(total) FROM {database}.daily))"
    );
    Ok(clickhouse.number(&sql)?)
}

/// Compares the number of rows, and the counts by event type, with the ledger.
///
/// # Errors
/// They differ, or ClickHouse does not answer.
pub fn compare(clickhouse: &ClickHouse, database: &str, ledger: &Ledger) -> Result<(), AnyError> {
    let rows = clickhouse.number(&format!("SELECT count() FROM {database}.email_events"))?;
    let mut counts = vec![("rows".to_owned(), ledger.produced - ledger.broken, rows)];
    if ledger.broken > 0 {
        let rejected = clickhouse.number(&format!("SELECT count() FROM {database}.rejected_events"))?;
        counts.push(("rejected records".to_owned(), ledger.broken, rejected));
    }
    for (event_type, wanted) in EVENT_TYPES.iter().zip(ledger.by_type) {
        let sql = format!("SELECT sum(total) FROM {database}.daily WHERE level = '{event_type}'");
        counts.push((format!("sum(total) of {event_type}"), wanted, clickhouse.number(&sql)?));
    }
    match counts.iter().find(|(_, wanted, found)| wanted != found) {
        Some((what, wanted, found)) => Err(format!("wrong counts: {what} is {found} instead of {wanted}").into()),
        None => Ok(()),
    }
}

/// Returns the number of parts that inserts wrote into a database, by table. A table numbers its inserted blocks from
/// 1, and merged parts keep the numbers.
///
/// # Errors
/// ClickHouse does not answer.
pub fn parts_written(clickhouse: &ClickHouse, database: &str) -> Result<BTreeMap<String, u64>, AnyError> {
    let sql =
        format!("SELECT table, max(max_block_number) FROM system.parts WHERE database = '{database}' GROUP BY table");
    let answer = clickhouse.query(&sql)?;
    let parts = |line: &str| {
        let (table, parts) = line.split_once('\t').ok_or_else(|| format!("{line:?} is not a table and its parts"))?;
        Ok((table.to_owned(), parts.parse()?))
    };
    answer.lines().map(parts).collect()
}
