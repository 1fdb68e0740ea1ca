//! The constraint that keeps members from counting one month during its swap, and the removal of the constraint.

use super::error::RepairError;
use super::shard::Shard;
use super::staging::Staging;
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use crate::commands::audit::tables;
use crate::platform::output::ProgressFn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Beginning of a fence's name. The repair's number follows.
const FENCE: &str = "tallyhouse_repair_";

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Time, beyond `clickhouse.insert_timeout_ms`, for which the repair waits for an insert.
const DRAIN_MARGIN: Duration = Duration::from_secs(30);

/// Time limit for taking the fence down, attempts and pauses together.
const DOWN_MAX: Duration = Duration::from_secs(60);
const DOWN_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Longest wait until the staging table is gone. The table does no harm.
const DROP_MAX: Duration = Duration::from_secs(30);

/// The name of the fence that stands at the moment, for the code that ends the process.
#[derive(Clone, Debug, Default)]
pub struct Standing(watch::Sender<Option<String>>);

impl Standing {
    /// Returns the constraint that may stand on `daily`.
    pub fn fence(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Waits until no constraint stands.
    pub async fn is_down(&self) {
        // The sender lives as long as this value.
        let _ = self.0.subscribe().wait_for(Option::is_none).await;
    }
}

/// The constraint of one repair.
pub(super) struct Fence<'a> {
    name: String,
    month: u32,
    /// Name of the table that has the counters.
    daily: String,
    shard: &'a Shard,
    standing: Standing,
    /// True if the swap was sent.
    swaps: AtomicBool,
}

impl<'a> Fence<'a> {
    /// Makes the fence that belongs to a staging table.
    pub(super) fn new(staging: &Staging<'_>, shard: &'a Shard, standing: &Standing) -> Fence<'a> {
        let name = format!("{FENCE}{}", staging.id());
        let (month, daily) = (staging.month(), staging.client().stored("daily"));
        Fence { name, month, daily, shard, standing: standing.clone(), swaps: AtomicBool::new(false) }
    }

    /// Swaps the counted month in.
    pub(super) async fn swap(&self, staging: &Staging<'_>) -> Result<(), ClickHouseError> {
        // This comes before the statement: the swap may succeed although the answer is lost.
        self.swaps.store(true, Ordering::Relaxed);
        staging.swap(self.shard).await
    }

    /// Returns the statements, in order.
    pub(super) fn statements(&self) -> [String; 2] {
        [self.add(), drop_constraint(&self.daily, &self.name)]
    }

    fn add(&self) -> String {
        let Fence { name, month, daily, .. } = self;
        format!("ALTER TABLE {daily} ADD CONSTRAINT {name} CHECK toYYYYMM(day) NOT IN ({month})")
    }

    /// Puts the fence up. After its return no insert into the month begins any more, on any server.
    pub(super) async fn put_up(&self, client: &Client) -> Result<(), RepairError> {
        // This comes before the statement: the fence may go up although the answer is lost.
        self.standing.0.send_replace(Some(self.name.clone()));
        self.shard.here(client.query(&self.add())).execute().await?;
        self.shard.await_seen(client, &self.name).await
    }

    /// Waits for the inserts that began before the fence was up. A later insert is refused, so it does no harm to
    /// wait for too many.
    pub(super) async fn drain(&self, client: &Client) -> Result<(), RepairError> {
        let processes = self.shard.system("processes");
        let running = format!(
            "SELECT query_id FROM {processes} WHERE query_kind != 'Select' AND query_kind != 'Alter' \
             AND position(query, 'daily') > 0 AND position(query, 'daily_repair_') = 0"
        );
        let begun: Vec<String> = client.query(&running).rows().await?;
        let deadline = Instant::now() + client.insert_timeout() + DRAIN_MARGIN;
        let sql = format!("SELECT count() FROM {processes} WHERE query_id IN ?");
        while !begun.is_empty() && client.query(&sql).bind(&begun).scalar_u64().await? > 0 {
            if Instant::now() > deadline {
                let why = format!("inserts into daily do not end: {}", begun.join(", "));
                return Err(RepairError::Refused(why));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }
}

/// Takes down the fence and the staging table, and passes the repair's result on.
///
/// The fence goes first here, as the repair's own swap has ended. Otherwise the answer to the swap was lost, and the
/// repair waits for it.
pub(super) async fn take_down(
    staging: &Staging<'_>,
    fence: &Fence<'_>,
    result: Result<(), RepairError>,
    say: ProgressFn<'_>,
) -> Result<(), RepairError> {
    let client = staging.client();
    if fence.standing.fence().is_some() {
        if fence.swaps.load(Ordering::Relaxed) {
            fence.shard.await_late_inserts(say).await;
        }
        if let Err(error) = unfence(client, staging.id(), fence).await {
            let first = result.err().map(Box::new);
            return Err(RepairError::FenceStands { fence: fence.name.clone(), error, first });
        }
        fence.standing.0.send_replace(None);
        say("members go on");
    }
    // A count that was interrupted may still use the table. ClickHouse then drops it after that.
    let statement = staging.drop_table();
    let dropped = tokio::time::timeout(DROP_MAX, client.query(&statement).execute()).await;
    if dropped.is_err() {
        say("ClickHouse still drops the table of this repair; if it stays: `tallyhouse repair clean`");
    }
    result.and(dropped.unwrap_or(Ok(())).map_err(RepairError::from))
}

/// Takes the fence down within [`DOWN_MAX`], or gives the reason why it stands.
async fn unfence(client: &Client, id: &str, fence: &Fence<'_>) -> Result<(), String> {
    let mut reason = format!("the swap has not ended within {} s", DOWN_MAX.as_secs());
    let down = async {
        loop {
            let attempt = async {
                // All statements of this repair are on this server.
                await_unused(client, "system.processes", id).await?;
                client.query(&drop_constraint(&fence.daily, &fence.name)).execute().await
            };
            match attempt.await {
                Ok(()) => return true,
                Err(error) => {
                    let lasts = !error.is_retryable();
                    reason = error.to_string();
                    if lasts {
                        return false;
                    }
                }
            }
            tokio::time::sleep(DOWN_RETRY_INTERVAL).await;
        }
    };
    let is_down = tokio::time::timeout(DOWN_MAX, down).await.unwrap_or(false);
    if is_down { Ok(()) } else { Err(reason) }
}

/// Takes down the fences and tables of interrupted repairs. A repair that still runs fails at its next step, without
/// harm.
///
/// # Errors
/// Any of [`ClickHouseError`], or a repair's statements that do not end; then run it again.
pub async fn clean(client: &Client, shard: &Shard, say: ProgressFn<'_>) -> Result<(), RepairError> {
    shard.refuse_absent(client).await?;
    let (fences, stagings) = tables::leftovers(client, &shard.system("tables")).await?;
    for table in stagings {
        shard.drop_everywhere(client, &table).execute().await?;
        await_ended(client, shard, table.trim_start_matches("daily_repair_")).await?;
        say(&format!("dropped the table {table}"));
    }
    if !fences.is_empty() {
        // Nobody knows how far that repair came.
        shard.await_late_inserts(say).await;
    }
    for fence in fences {
        // A swap that had begun when its table was dropped still goes through: the fence must stand until then.
        await_ended(client, shard, fence.trim_start_matches(FENCE)).await?;
        client.query(&drop_constraint(&client.stored("daily"), &fence)).execute().await?;
        say(&format!("dropped the constraint {fence}"));
    }
    Ok(())
}

/// Waits on all servers of the shard, at most [`DOWN_MAX`], until the repair with this number does not change `daily` any more.
async fn await_ended(client: &Client, shard: &Shard, id: &str) -> Result<(), RepairError> {
    let processes = shard.system("processes");
    let Ok(ended) = tokio::time::timeout(DOWN_MAX, await_unused(client, &processes, id)).await else {
        let error = format!("the statements of its repair have not ended within {} s", DOWN_MAX.as_secs());
        return Err(RepairError::FenceStands { fence: format!("{FENCE}{id}"), error, first: None });
    };
    Ok(ended?)
}

/// Waits until neither the swap nor the making of the fence of the repair with this number runs any more. The
/// repair's other statements touch only its own table. `processes` is `system.processes`, of one server or of all.
async fn await_unused(client: &Client, processes: &str, id: &str) -> Result<(), ClickHouseError> {
    let sql = format!("SELECT count() FROM {processes} WHERE query_kind = 'Alter' AND position(query, ?) > 0");
    while client.query(&sql).bind(id).scalar_u64().await? > 0 {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn drop_constraint(daily: &str, name: &str) -> String {
    format!("ALTER TABLE {daily} DROP CONSTRAINT IF EXISTS {name}")
}
