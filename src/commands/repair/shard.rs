//! The replicas that a repair has to consider.
//!
//! On replicas a member may insert through any server, so the constraint must stand on all of them before the month is counted.
//! Another difference: `REPLACE PARTITION` of a replicated table withdraws the tokens of the month. A late repeat of an insert would
//! then count again. So the constraint stays until none can arrive any more.
//!
//! Must never take the answer of some replicas for that of all.

use super::error::RepairError;
use crate::clickhouse::client::{Client, Statement};
use crate::clickhouse::schema::{Form, Schema};
use crate::clickhouse::sink;
use crate::config::Config;
use crate::platform::output::ProgressFn;
use std::time::Duration;
use tokio::time::timeout;

/// Time for which ClickHouse waits for a statement on every server, in seconds.
const DDL_MAX_S: &str = "60";

/// Longest wait until every replica has the constraint.
const SEEN_MAX: Duration = Duration::from_secs(30);
const SEEN_INTERVAL: Duration = Duration::from_millis(100);

/// The servers that have `daily`.
#[derive(Debug)]
pub struct Shard {
    database: String,
    /// Name in `system.clusters` of the replicas; `None` if there is one server.
    cluster: Option<String>,
    /// The words that make a statement run on every server.
    on_cluster: String,
    /// Time after which no insert arrives that was sent before.
    quarantine: Duration,
}

impl Shard {
    /// Returns the servers of these tables.
    ///
    /// # Errors
    /// [`RepairError::Refused`] for tables whose servers cannot all be asked.
    pub fn of(config: &Config, client: &Client, schema: &Schema) -> Result<Shard, RepairError> {
        let database = client.database().to_owned();
        if *schema.form() == Form::Shared {
            return Err(RepairError::Refused(format!(
                "the database {database} has {}. The repair cannot see there that every server refuses inserts into the month, so counts \
                 could be lost",
                schema.form()
            )));
        }
        let cluster = schema.form().cluster(&database).map(str::to_owned);
        let sends = Duration::from_millis(config.kafka.session_timeout_ms);
        let quarantine = sends + sink::receive_timeout() + client.insert_timeout();
        Ok(Shard { database, cluster, on_cluster: schema.on_cluster(), quarantine })
    }

    /// Returns the name of a system table with the rows of all servers.
    pub(super) fn system(&self, table: &str) -> String {
        match &self.cluster {
            Some(cluster) => format!("clusterAllReplicas('{cluster}', system.{table})"),
            None => format!("system.{table}"),
        }
    }

    /// Returns the statement that drops a table on every server.
    pub(super) fn drop_everywhere<'c>(&self, client: &'c Client, table: &str) -> Statement<'c> {
        let sql = format!("DROP TABLE IF EXISTS {}.{table}{} SYNC", self.database, self.on_cluster);
        client.query(&sql).setting("distributed_ddl_task_timeout", DDL_MAX_S)
    }

    /// Adds the settings with which a change of a replicated table waits for this server, and not longer for others.
    pub(super) fn here<'c>(&self, statement: Statement<'c>) -> Statement<'c> {
        match self.cluster {
            Some(_) => statement.setting("alter_sync", "1").setting("distributed_ddl_task_timeout", DDL_MAX_S),
            None => statement,
        }
    }

    /// Refuses to go on while a replica of `daily` is away, or is not in the cluster. A member could insert through it.
    pub(super) async fn refuse_absent(&self, client: &Client) -> Result<(), RepairError> {
        let Some(cluster) = &self.cluster else { return Ok(()) };
        let (all, active) = self.replicas(client).await?;
        if active < all || all == 0 {
            let why = format!("{active} of the {all} replicas of daily are active, and the repair needs all");
            return Err(RepairError::Refused(why));
        }
        let servers = client.query(&format!("SELECT count() FROM {}", self.system("one"))).scalar_u64().await?;
        if servers != all {
            let why = format!("daily has {all} replicas, and the cluster {cluster} in system.clusters has {servers}");
            return Err(RepairError::Refused(why));
        }
        Ok(())
    }

    /// Waits until every replica has the constraint and the change is no longer in its queue. An insert that begins then is refused.
    pub(super) async fn await_seen(&self, client: &Client, constraint: &str) -> Result<(), RepairError> {
        if self.cluster.is_none() {
            return Ok(());
        }
        let seen = format!(
            "SELECT count() FROM {} WHERE database = ? AND name = ? AND position(create_table_query, ?) > 0",
            self.system("tables")
        );
        let queued = format!(
            "SELECT count() FROM {} WHERE database = ? AND table = ? AND type = 'ALTER_METADATA'",
            self.system("replication_queue")
        );
        let is_everywhere = async {
            loop {
                let (all, _) = self.replicas(client).await?;
                let daily = client.stored("daily");
                let seen = client.query(&seen).bind(&self.database).bind(&daily).bind(constraint).scalar_u64().await?;
                let queued = client.query(&queued).bind(&self.database).bind(&daily).scalar_u64().await?;
                if seen == all && queued == 0 {
                    return Ok(());
                }
                tokio::time::sleep(SEEN_INTERVAL).await;
            }
        };
        // A server that is stopped answers nothing.
        timeout(SEEN_MAX, is_everywhere).await.unwrap_or_else(|_| {
            let why = format!("not every replica of daily has the constraint after {} s", SEEN_MAX.as_secs());
            Err(RepairError::Refused(why))
        })
    }

    /// Waits until no insert arrives any more that was sent before the constraint stood.
    pub(super) async fn await_late_inserts(&self, say: ProgressFn<'_>) {
        if self.cluster.is_some() {
            let seconds = self.quarantine.as_secs();
            say(&format!("the constraint stands for another {seconds} s, until no insert from before can arrive"));
            tokio::time::sleep(self.quarantine).await;
        }
    }

    /// Returns the number of replicas of `daily`, and of those that are active.
    async fn replicas(&self, client: &Client) -> Result<(u64, u64), RepairError> {
        let sql = "SELECT toUInt64(total_replicas), toUInt64(active_replicas) FROM system.replicas WHERE database = ? AND table = ?";
        let found = client.query(sql).bind(&self.database).bind(client.stored("daily"));
        let found: Option<(u64, u64)> = found.rows().await?.into_iter().next();
        found.ok_or_else(|| RepairError::Refused("system.replicas does not have daily".to_owned()))
    }
}
