//! The ClickHouse of a run: one server, or the replicas of one shard with ZooKeeper.

use super::AnyError;
use crate::clickhouse::{CLUSTER, ClickHouse, ClickHouseOptions};
use crate::replicas::Replicas;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Number of replicas of the shard.
const REPLICAS: usize = 2;
/// Time limit for an answer: a fault or another lane may have killed ClickHouse just now.
const ASK_TIMEOUT: Duration = Duration::from_secs(120);
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// Longest time for which a replica postpones a fetch that failed. With the default of 60 s a replica takes as long to see that a part
/// is lost, and rounds are only longer.
const POSTPONE: &str = "<replicated_merge_tree><max_postpone_time_for_failed_replicated_fetches_ms>5000\
    </max_postpone_time_for_failed_replicated_fetches_ms></replicated_merge_tree>";
/// Lets each replica note in memory the inserts that it took. A replica that dies loses its notes. The library could not open a table on
/// the disk again.
const QUERY_LOG: &str = "<query_log><database>system</database><table>query_log</table>\
    <engine>ENGINE = Memory SETTINGS max_rows_to_keep = 100000</engine>\
    <flush_interval_milliseconds>1000</flush_interval_milliseconds></query_log>";
/// The tables that members write to.
const WRITTEN: [&str; 5] = ["email_events", "rejected_events", "daily", "recipients", "campaign_lifecycle"];

/// The ClickHouse of a run.
pub enum Store {
    /// One server with plain tables.
    One(ClickHouse),
    /// Replicas of one shard with replicated tables.
    Shard(Replicas),
}

impl Store {
    /// Starts the servers. Data and logs lie in the folder.
    pub fn start(is_cluster: bool, folder: &Path) -> crate::Result<Store> {
        let mut options =
            ClickHouseOptions { directory: Some(folder.join("clickhouse")), ..ClickHouseOptions::default() };
        if !is_cluster {
            return Ok(Store::One(ClickHouse::start(options)?));
        }
        options.config = format!("{POSTPONE}{QUERY_LOG}");
        Ok(Store::Shard(Replicas::start(1, REPLICAS, &options)?))
    }

    /// Returns the servers, one for each replica.
    pub fn servers(&self) -> Vec<&ClickHouse> {
        match self {
            Store::One(server) => vec![server],
            Store::Shard(replicas) => replicas.shards().iter().flatten().map(|replica| replica.clickhouse()).collect(),
        }
    }

    /// Returns the shard.
    ///
    /// # Errors
    /// The run has one server.
    pub fn replicas(&self) -> Result<&Replicas, AnyError> {
        match self {
            Store::One(_) => Err("this kind of fault needs --cluster".into()),
            Store::Shard(replicas) => Ok(replicas),
        }
    }

    /// True if it is a shard.
    pub fn is_cluster(&self) -> bool {
        matches!(self, Store::Shard(_))
    }

    /// Returns the arguments of `tallyhouse migrate`.
    pub fn migrate(&self) -> &'static [&'static str] {
        if self.is_cluster() { &["migrate", "--cluster", CLUSTER] } else { &["migrate"] }
    }

    /// Returns the statement that drops a database.
    pub fn drop_statement(&self) -> String {
        // With SYNC the paths in Keeper are gone, too.
        let on_cluster = if self.is_cluster() { format!(" ON CLUSTER {CLUSTER} SYNC") } else { String::new() };
        format!("DROP DATABASE IF EXISTS {{db}}{on_cluster}")
    }

    /// True if two replicas took inserts of batches into the database in the same second. `within`: the time, which ends now.
    ///
    /// # Errors
    /// A server does not answer.
    pub fn both_inserted(&self, database: &str, within: Duration) -> Result<bool, AnyError> {
        if !self.is_cluster() {
            return Ok(false);
        }
        let seconds: Vec<BTreeSet<u64>> =
            self.tables(database).iter().map(|tables| tables.inserted(within)).collect::<Result<_, _>>()?;
        Ok(matches!(&seconds[..], [first, second, ..] if !first.is_disjoint(second)))
    }

    /// Returns the database on each server.
    pub fn tables<'a>(&'a self, database: &'a str) -> Vec<Tables<'a>> {
        let of = |(number, server): (usize, &'a ClickHouse)| Tables {
            server,
            database,
            name: match self {
                Store::One(_) => String::new(),
                Store::Shard(replicas) => replicas.replica(0, number).name().to_owned(),
            },
        };
        self.servers().into_iter().enumerate().map(of).collect()
    }
}

/// A database on one server, which is asked directly and not through a proxy.
pub struct Tables<'a> {
    server: &'a ClickHouse,
    database: &'a str,
    /// Name of the replica; empty if there is one server.
    pub name: String,
}

impl Tables<'_> {
    /// Runs a statement, with the database as `{db}`. `{local}` after a table's name stands for the table of this server. Waits
    /// while ClickHouse is away.
    ///
    /// # Errors
    /// ClickHouse refuses the statement, or is away for too long.
    pub fn ask(&self, sql: &str) -> Result<String, AnyError> {
        self.retry_until(sql, |sql| self.server.query(sql))
    }

    /// Runs the same for an answer in bytes, which need not be text.
    ///
    /// # Errors
    /// As [`Tables::ask`].
    pub fn ask_bytes(&self, sql: &str) -> Result<Vec<u8>, AnyError> {
        self.retry_until(sql, |sql| self.server.query_bytes(sql))
    }

    fn retry_until<T>(&self, sql: &str, ask: impl Fn(&str) -> crate::Result<T>) -> Result<T, AnyError> {
        let local = if self.name.is_empty() { "" } else { "_local" };
        let sql = sql.replace("{db}", self.database).replace("{local}", local);
        let deadline = Instant::now() + ASK_TIMEOUT;
        loop {
            match ask(&sql) {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() > deadline => return Err(error.into()),
                Err(_) => std::thread::sleep(RETRY_INTERVAL),
            }
        }
    }

    /// Waits until a replica shows all rows of the shard. It does nothing where there is one server.
    ///
    /// # Errors
    /// The replica does not have them in time.
    pub fn sync(&self) -> Result<(), AnyError> {
        if self.name.is_empty() {
            return Ok(());
        }
        let sync =
            |table: &str| self.ask(&format!("SYSTEM SYNC REPLICA {{db}}.{table}{{local}} LIGHTWEIGHT")).map(drop);
        WRITTEN.into_iter().try_for_each(sync)
    }

    /// Returns the seconds of a time in which the server took inserts of batches. `within`: the time, which ends now.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn inserted(&self, within: Duration) -> Result<BTreeSet<u64>, AnyError> {
        self.ask("SYSTEM FLUSH LOGS query_log")?;
        // A server that has run no statement since its start has no table yet.
        if self.ask("SELECT count() FROM system.tables WHERE database = 'system' AND name = 'query_log'")? == "0" {
            return Ok(BTreeSet::new());
        }
        let seconds = self.ask(&format!(
            "SELECT DISTINCT toUnixTimestamp(event_time) FROM system.query_log WHERE event_time > now() - {} AND type = 'QueryFinish' \
             AND query_kind = 'Insert' AND written_rows > 0 AND has(tables, '{{db}}.email_events_local')",
            within.as_secs()
        ))?;
        seconds.lines().map(|second| Ok(second.parse()?)).collect()
    }

    /// Returns the violations with the name of the replica that has them.
    pub fn named(&self, violations: Vec<String>) -> Vec<String> {
        if self.name.is_empty() {
            return violations;
        }
        violations.into_iter().map(|violation| format!("on replica {}: {violation}", self.name)).collect()
    }
}
