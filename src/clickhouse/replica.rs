//! A server whose tables are replicated: the names of its own tables, and the sync before its rows are believed.
//!
//! A replica shows a part only after it has fetched it. It acknowledges a repeated insert at once, because the token is in Keeper.
//! So a replica that lags acknowledges an insert and does not show its rows. Another token would then double them. `SYSTEM SYNC
//! REPLICA … LIGHTWEIGHT` waits until the replica has fetched everything that Keeper knew when it began.
//!
//! Must never read rows through a Distributed table: it asks any replica. A sync that fails proves nothing, and its caller waits.

use super::client::Client;
use super::error::ClickHouseError;
use clickhouse::Row;
use serde::Deserialize;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tallyhouse_core::source::Table;
use tokio::sync::Mutex;

/// The facts about a server as a replica that its client keeps.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// Time at which the last sync began, and its result.
    last: Mutex<Option<(Instant, Result<(), ClickHouseError>)>>,
    /// Paths of the tables in Keeper, as they were seen first.
    paths: OnceLock<Vec<String>>,
}

/// A row of `system.replicas`: the state of one table on one replica.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct TableState {
    /// Name of the local table.
    pub table: String,
    /// Path in Keeper, which all replicas of the table have in common.
    pub path: String,
    /// Name of the replica, which no other replica of the table has.
    pub replica: String,
    /// 1 if the table takes no inserts, for instance while Keeper is away.
    pub is_readonly: u8,
    /// Seconds by which the replica lags.
    pub delay_s: u64,
    /// Number of parts that were lost with the only replica that had them.
    pub lost_parts: u64,
    /// Number of seconds for which a token of the table is remembered.
    pub token_life_s: u64,
}

/// Returns the name of the local table of a table of the schema.
pub(super) fn local_name(table: &str) -> String {
    format!("{table}_local")
}

/// Returns a statement of this program with the local tables in place of the Distributed ones. Values are bound to it later.
pub(super) fn local(sql: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in sql.split(' ') {
        let name = word.trim_end_matches(')');
        let is_table = words.last().is_some_and(|last| last == "FROM") && Table::ALL.iter().any(|t| t.name() == name);
        words.push(if is_table { word.replacen(name, &local_name(name), 1) } else { word.to_owned() });
    }
    words.join(" ")
}

/// Life of tokens in seconds where the table does not say it, since ClickHouse 25.10.
const TOKEN_LIFE_DEFAULT_S: u64 = 3_600;

impl Client {
    /// Returns the state of the three tables on this replica, sorted by name. It asks Keeper for nothing.
    ///
    /// # Errors
    /// [`ClickHouseError::UnknownTable`] if one of them is not replicated or not there, or any other of [`ClickHouseError`].
    pub async fn table_states(&self) -> Result<Vec<TableState>, ClickHouseError> {
        let sql = format!(
            "SELECT r.table AS table, zookeeper_path AS path, replica_name AS replica, is_readonly, absolute_delay AS delay_s, \
             toUInt64(lost_part_count) AS lost_parts, toUInt64OrDefault(extract(t.engine_full, \
             'replicated_deduplication_window_seconds = ([0-9]+)'), toUInt64({TOKEN_LIFE_DEFAULT_S})) AS token_life_s \
             FROM system.replicas AS r INNER JOIN system.tables AS t ON t.database = r.database AND t.name = r.table \
             WHERE r.database = ? AND r.table IN ? ORDER BY table"
        );
        let tables = Table::ALL.map(|table| local_name(table.name()));
        let states: Vec<TableState> = self.query(&sql).bind(self.database()).bind(&tables).rows().await?;
        if states.len() < tables.len() {
            let message = format!("system.replicas on {} does not have all of {}", self.url(), tables.join(", "));
            return Err(ClickHouseError::UnknownTable { message });
        }
        if let Some(replica) = self.replica() {
            replica.paths.get_or_init(|| states.iter().map(|state| state.path.clone()).collect());
        }
        Ok(states)
    }

    /// Returns the paths of the tables in Keeper, if they were seen.
    pub(super) fn paths(&self) -> Option<&[String]> {
        self.replica()?.paths.get().map(Vec::as_slice)
    }

    /// Waits until this server shows all rows that Keeper knew of at the call. It does nothing where tables are not replicated.
    ///
    /// Calls that wait for the same server share one sync, which begins after each of them.
    ///
    /// # Errors
    /// [`ClickHouseError::NotSynced`] if the replica lags for longer than a query may take, or any other of [`ClickHouseError`].
    pub async fn sync(&self) -> Result<(), ClickHouseError> {
        let Some(replica) = self.replica() else { return Ok(()) };
        let asked = Instant::now();
        let mut last = replica.last.lock().await;
        if let Some((begun, result)) = &*last
            && *begun >= asked
        {
            return result.clone();
        }
        let begun = Instant::now();
        let [raw, rejected, daily] = [Table::Raw, Table::Rejected, Table::Daily].map(|table| self.sync_table(table));
        let result = tokio::try_join!(raw, rejected, daily).map(|_| ());
        *last = Some((begun, result.clone()));
        result
    }

    async fn sync_table(&self, table: Table) -> Result<(), ClickHouseError> {
        let table = format!("{}.{}", self.database(), local_name(table.name()));
        // The server ends first, so that its error arrives.
        let limit_s = self.query_timeout().saturating_sub(Duration::from_secs(1)).as_secs().max(1).to_string();
        let sql = format!("SYSTEM SYNC REPLICA {table} LIGHTWEIGHT");
        self.execute_here(&sql, ("receive_timeout", &limit_s)).await.map_err(|error| match error {
            ClickHouseError::ServerBusy { code, name, message }
            | ClickHouseError::NoKeeper { code, name, message, .. }
            | ClickHouseError::Server { code, name, message } => {
                let message = format!("{code} {name}: {message}");
                ClickHouseError::NotSynced { server: self.described(), table, message }
            }
            other => other,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_reads_the_local_tables() {
        for (sql, wanted) in [
            ("SELECT count() FROM daily", "SELECT count() FROM daily_local"),
            ("SELECT a FROM (SELECT daily FROM email_events)", "SELECT a FROM (SELECT daily FROM email_events_local)"),
            ("SELECT 'x' FROM rejected_events WHERE s = ?", "SELECT 'x' FROM rejected_events_local WHERE s = ?"),
            ("SELECT 1 FROM schema_migrations", "SELECT 1 FROM schema_migrations"),
            ("SELECT 1 FROM daily_local", "SELECT 1 FROM daily_local"),
        ] {
            assert_eq!(local(sql), wanted);
        }
    }
}
