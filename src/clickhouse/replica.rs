//! A server whose tables are replicated: the names of its own tables, and the sync before its rows are believed. They are tables of a
//! cluster or of a Replicated database.
//!
//! A replica shows a part only after it has fetched it. It acknowledges a repeated insert at once, because the token is in Keeper.
//! So a replica that lags acknowledges an insert and does not show its rows. Another token would then double them. `SYSTEM SYNC
//! REPLICA … LIGHTWEIGHT` waits until the replica has fetched everything that Keeper knew when it began.
//!
//! Must never read rows through a Distributed table: it asks any replica. A sync that fails proves nothing, and its caller waits.

use super::client::Client;
use super::error::ClickHouseError;
use crate::platform::advice::Advice;
use clickhouse::Row;
use serde::Deserialize;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tallyhouse_core::tables;
use tokio::sync::Mutex;

/// The facts about a server as a replica that its client keeps.
#[derive(Debug, Default)]
pub(super) struct Replica {
    /// Ending of the names of the tables that have the rows. Where it is not empty, Distributed tables have the names without it.
    suffix: &'static str,
    /// Time at which the last sync began, and its result.
    last: Mutex<Option<(Instant, Result<u64, ClickHouseError>)>>,
    /// Paths of the tables in Keeper with the names of the replicas, as they were seen first.
    names: OnceLock<Vec<(String, String)>>,
}

/// A row of `system.replicas`: the state of one table on one replica.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct TableState {
    /// Name of the table that has the rows.
    pub table: String,
    /// Path in Keeper, which all replicas of the table have in common.
    pub path: String,
    /// Name of the replica, which no other replica of the table has.
    pub replica: String,
    /// 1 if the table takes no inserts, for instance while Keeper is away.
    pub is_readonly: u8,
    /// Seconds by which the replica lags.
    pub delay_s: u64,
    /// Number of parts that were lost with the only replica that had them. Keeper has it.
    pub lost_parts: u64,
    /// Error of the question to Keeper; empty if it was answered.
    pub keeper_error: String,
    /// Number of seconds for which a token of the table is remembered.
    pub token_life_s: u64,
}

/// Ending of the names of the local tables on a cluster.
const LOCAL: &str = "_local";

impl Replica {
    /// Returns a replica of a cluster, on which Distributed tables have the names of the schema.
    pub(super) fn with_local_tables() -> Replica {
        Replica { suffix: LOCAL, ..Replica::default() }
    }

    /// True if other tables than those with the names of the schema have the rows.
    pub(super) fn has_local_tables(&self) -> bool {
        !self.suffix.is_empty()
    }

    /// Returns the name of the table that has the rows of a table of the schema.
    pub(super) fn stored(&self, table: &str) -> String {
        format!("{table}{}", self.suffix)
    }
}

/// Returns a statement of this program with the local tables in place of the Distributed ones. Values are bound to it later.
pub(super) fn local(sql: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    for word in sql.split(' ') {
        let name = word.trim_end_matches(')');
        let is_table = words.last().is_some_and(|last| last == "FROM")
            && tables::NAMES.iter().chain([&tables::RECIPIENT_KEY_NAME]).any(|table| *table == name);
        words.push(if is_table { word.replacen(name, &format!("{name}{LOCAL}"), 1) } else { word.to_owned() });
    }
    words.join(" ")
}

impl TableState {
    /// True if the table takes no inserts now.
    pub fn is_cut_off(&self) -> bool {
        self.is_readonly > 0 || !self.keeper_error.is_empty()
    }
}

/// Lag of a replica in seconds from which people should know of it. It is ClickHouse's own bound for reads.
const DELAY_MAX_S: u64 = 300;

/// Least life of tokens in seconds without a warning: a day.
const TOKEN_LIFE_LEAST_S: u64 = 86_400;

/// Returns what is wrong with a replica, with the remedy.
pub fn problem(states: &[TableState]) -> Option<Advice> {
    let wrong = |is_wrong: &dyn Fn(&TableState) -> bool| {
        let names: Vec<&str> =
            states.iter().filter(|state| is_wrong(state)).map(|state| state.table.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    if let Some(names) = wrong(&TableState::is_cut_off) {
        let fix = "Look at Keeper, and at system.replicas on that server. Members wait meanwhile";
        return Some(Advice::new(
            format!("{names} cannot be written to: the replica is read-only, or does not reach Keeper"),
            fix,
        ));
    }
    if let Some(names) = wrong(&|state| state.delay_s > DELAY_MAX_S) {
        let fix = "Look at system.replication_queue on that server. Members that use it wait wherever they need marks";
        return Some(Advice::new(format!("the replica lags by more than {DELAY_MAX_S} s: {names}"), fix));
    }
    // Recipients are written without tokens.
    let has_tokens = |state: &TableState| !state.table.starts_with(tables::RECIPIENTS_NAME);
    wrong(&|state| has_tokens(state) && state.token_life_s < TOKEN_LIFE_LEAST_S).map(|names| {
        let fix = "ALTER TABLE … MODIFY SETTING replicated_deduplication_window_seconds = 604800";
        Advice::new(format!("tokens of inserts are forgotten within a day: {names}"), fix)
    })
}

/// Life of tokens in seconds where the table does not say it, since ClickHouse 25.10.
const TOKEN_LIFE_DEFAULT_S: u64 = 3_600;

impl Client {
    /// Returns the state of the tables that members write to on this replica, sorted by name.
    ///
    /// # Errors
    /// [`ClickHouseError::UnknownTable`] if one of them is not replicated or not there, or any other of [`ClickHouseError`].
    pub async fn table_states(&self) -> Result<Vec<TableState>, ClickHouseError> {
        let sql = format!(
            "SELECT r.table AS table, zookeeper_path AS path, replica_name AS replica, is_readonly, absolute_delay AS delay_s, \
             toUInt64(lost_part_count) AS lost_parts, zookeeper_exception AS keeper_error, toUInt64OrDefault(extract(t.engine_full, \
             'replicated_deduplication_window_seconds = ([0-9]+)'), toUInt64({TOKEN_LIFE_DEFAULT_S})) AS token_life_s \
             FROM system.replicas AS r INNER JOIN system.tables AS t ON t.database = r.database AND t.name = r.table \
             WHERE r.database = ? AND r.table IN ? ORDER BY table"
        );
        let tables = tables::NAMES.map(|table| self.stored(table));
        let states: Vec<TableState> = self.query(&sql).bind(self.database()).bind(&tables).rows().await?;
        if states.len() < tables.len() {
            let message = format!("system.replicas on {} does not have all of {}", self.url(), tables.join(", "));
            return Err(ClickHouseError::UnknownTable { message });
        }
        if let Some(replica) = self.replica() {
            let name = |state: &TableState| (state.path.clone(), state.replica.clone());
            replica.names.get_or_init(|| states.iter().map(name).collect());
        }
        Ok(states)
    }

    /// True if the tables of this server are other replicas of those of the other server, as far as both were seen.
    pub(super) fn is_other_replica_of(&self, other: &Client) -> bool {
        let names = |client: &Client| client.replica().and_then(|replica| replica.names.get().cloned());
        let (Some(ours), Some(theirs)) = (names(self), names(other)) else { return false };
        ours.len() == theirs.len() && ours.iter().zip(&theirs).all(|(our, their)| our.0 == their.0 && our.1 != their.1)
    }

    /// Waits until this server shows all rows that Keeper knew of at the call. Returns the number of parts that were lost so far with
    /// the only replica that had them. It does nothing where tables are not replicated.
    ///
    /// Calls that wait for the same server share one sync, which begins after each of them.
    ///
    /// # Errors
    /// [`ClickHouseError::NotSynced`] if the replica lags for longer than a query may take, or any other of [`ClickHouseError`].
    pub async fn sync(&self) -> Result<u64, ClickHouseError> {
        let Some(replica) = self.replica() else { return Ok(0) };
        let asked = Instant::now();
        let mut last = replica.last.lock().await;
        if let Some((begun, result)) = &*last
            && *begun >= asked
        {
            return result.clone();
        }
        let begun = Instant::now();
        let result = self.sync_tables().await;
        *last = Some((begun, result.clone()));
        result
    }

    /// The lost parts are counted last, so that none is lost between the count and the sync.
    async fn sync_tables(&self) -> Result<u64, ClickHouseError> {
        let [raw, rejected, daily, recipients, lifecycle] = tables::NAMES.map(|table| self.sync_table(table));
        tokio::try_join!(raw, rejected, daily, recipients, lifecycle)?;
        let states = self.table_states().await?;
        match states.iter().find(|state| !state.keeper_error.is_empty()) {
            Some(TableState { table, keeper_error, .. }) => Err(ClickHouseError::NotSynced {
                server: self.described(),
                table: table.clone(),
                message: format!("Keeper: {keeper_error}"),
            }),
            None => Ok(states.iter().map(|state| state.lost_parts).sum()),
        }
    }

    /// Waits until this server shows all rows of one table that Keeper knew of at the call. Tables must be replicated.
    pub(super) async fn sync_table(&self, table: &str) -> Result<(), ClickHouseError> {
        let table = format!("{}.{}", self.database(), self.stored(table));
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
    fn what_is_wrong_with_a_replica_is_named() {
        let fine = TableState {
            table: "daily_local".into(),
            path: "/p".into(),
            replica: "a".into(),
            is_readonly: 0,
            delay_s: 0,
            lost_parts: 0,
            keeper_error: String::new(),
            token_life_s: 604_800,
        };
        let says = |state: TableState| problem(&[fine.clone(), state]).map(|advice| advice.problem);
        assert_eq!(says(fine.clone()), None);
        assert!(says(TableState { is_readonly: 1, ..fine.clone() }).unwrap().contains("read-only"));
        assert!(says(TableState { delay_s: 301, ..fine.clone() }).unwrap().contains("lags"));
        let short = TableState { token_life_s: 3_600, ..fine.clone() };
        assert!(says(short.clone()).unwrap().contains("tokens"));
        assert_eq!(says(TableState { table: "recipients_local".into(), ..short }), None);
    }

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
