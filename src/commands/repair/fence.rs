//! The constraint that keeps members from counting one month during its swap, and the removal of the constraint.

use super::error::RepairError;
use super::staging::Staging;
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use crate::commands::audit::tables;
use crate::platform::output::ProgressFn;
use std::time::{Duration, Instant};
use tokio::sync::watch;

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
pub(super) struct Fence {
    name: String,
    month: u32,
    standing: Standing,
}

impl Fence {
    /// Makes the fence that belongs to a staging table.
    pub(super) fn new(staging: &Staging<'_>, standing: &Standing) -> Fence {
        let name = format!("tallyhouse_repair_{}", staging.id());
        Fence { name, month: staging.month(), standing: standing.clone() }
    }

    /// Returns the statements, in order.
    pub(super) fn statements(&self) -> [String; 2] {
        [self.add(), drop_constraint(&self.name)]
    }

    fn add(&self) -> String {
        format!("ALTER TABLE daily ADD CONSTRAINT {} CHECK toYYYYMM(day) NOT IN ({})", self.name, self.month)
    }

    /// Puts the fence up. After its return no insert into the month begins any more.
    pub(super) async fn put_up(&self, client: &Client) -> Result<(), ClickHouseError> {
        // This comes before the statement: the fence may go up although the answer is lost.
        self.standing.0.send_replace(Some(self.name.clone()));
        client.query(&self.add()).execute().await
    }

    /// Waits for the inserts that began before the fence was up. A later insert is refused, so it does no harm to
    /// wait for too many.
    pub(super) async fn drain(&self, client: &Client) -> Result<(), RepairError> {
        let running = "SELECT query_id FROM system.processes WHERE query_kind != 'Select' AND query_kind != 'Alter' \
                       AND position(query, 'daily') > 0 AND position(query, 'daily_repair_') = 0";
        let begun: Vec<String> = client.query(running).rows().await?;
        let deadline = Instant::now() + client.insert_timeout() + DRAIN_MARGIN;
        let sql = "SELECT count() FROM system.processes WHERE query_id IN ?";
        while !begun.is_empty() && client.query(sql).bind(&begun).scalar_u64().await? > 0 {
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
    fence: &Fence,
    result: Result<(), RepairError>,
    say: ProgressFn<'_>,
) -> Result<(), RepairError> {
    let client = staging.client();
    if fence.standing.fence().is_some() {
        if let Err(error) = unfence(client, staging.id(), &fence.name).await {
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
async fn unfence(client: &Client, id: &str, name: &str) -> Result<(), String> {
    let mut reason = format!("the swap has not ended within {} s", DOWN_MAX.as_secs());
    let down = async {
        loop {
            let attempt = async {
                await_unused(client, id).await?;
                client.query(&drop_constraint(name)).execute().await
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
/// Any of [`ClickHouseError`]; then run it again.
pub async fn clean(client: &Client, say: ProgressFn<'_>) -> Result<(), RepairError> {
    let (fences, stagings) = tables::leftovers(client).await?;
    for table in stagings {
        client.query(&format!("DROP TABLE IF EXISTS {table} SYNC")).execute().await?;
        // A swap that had begun when the table was dropped still goes through: the fence must stand until then.
        await_unused(client, table.trim_start_matches("daily_repair_")).await?;
        say(&format!("dropped the table {table}"));
    }
    for fence in fences {
        client.query(&drop_constraint(&fence)).execute().await?;
        say(&format!("dropped the constraint {fence}"));
    }
    Ok(())
}

/// Waits until neither the swap nor the making of the fence of the repair with this number runs any more. The
/// repair's other statements touch only its own table.
async fn await_unused(client: &Client, id: &str) -> Result<(), ClickHouseError> {
    let sql = "SELECT count() FROM system.processes WHERE query_kind = 'Alter' AND position(query, ?) > 0";
    while client.query(sql).bind(id).scalar_u64().await? > 0 {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn drop_constraint(name: &str) -> String {
    format!("ALTER TABLE daily DROP CONSTRAINT IF EXISTS {name}")
}
