//! The constraint that keeps members from counting one month while it is swapped, and its removal.

use super::Say;
use super::error::RepairError;
use super::staging::Staging;
use crate::audit::tables;
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How much longer than `clickhouse.insert_timeout_ms` an insert is waited for.
const DRAIN_MARGIN: Duration = Duration::from_secs(30);

/// The constraint of one repair.
pub(super) struct Fence {
    name: String,
    month: u32,
}

impl Fence {
    /// The fence that goes with a staging table.
    pub(super) fn new(staging: &Staging<'_>) -> Fence {
        Fence { name: format!("tallyhouse_repair_{}", staging.id()), month: staging.month() }
    }

    /// The statements, in order.
    pub(super) fn statements(&self) -> [String; 2] {
        [self.add(), drop_constraint(&self.name)]
    }

    fn add(&self) -> String {
        format!("ALTER TABLE daily ADD CONSTRAINT {} CHECK toYYYYMM(day) NOT IN ({})", self.name, self.month)
    }

    /// From the return of this on, no insert into the month begins any more.
    pub(super) async fn put_up(&self, client: &Client) -> Result<(), ClickHouseError> {
        client.query(&self.add()).execute().await
    }

    /// Waits for the inserts that began before the fence was up. Whichever begins later is refused, so it does no harm to wait
    /// for too many.
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

/// Takes down what a repair has put up, and passes its result on.
///
/// The fence goes first here, as our own swap has ended: otherwise the answer to it was lost, and it is waited for.
pub(super) async fn take_down(
    staging: &Staging<'_>,
    fence: &Fence,
    result: Result<(), RepairError>,
    say: Say<'_>,
) -> Result<(), RepairError> {
    let client = staging.client();
    let down = async {
        await_unused(client, staging.id()).await?;
        client.query(&drop_constraint(&fence.name)).execute().await
    };
    if let Err(error) = down.await {
        let first = result.err().map(Box::new);
        return Err(RepairError::FenceStands { fence: fence.name.clone(), error, first });
    }
    say("members go on");
    // A staging table that stays is only in the way; the next repair drops it.
    let dropped = client.query(&staging.drop_table()).execute().await;
    result.and(dropped.map_err(RepairError::from))
}

/// Takes down what interrupted repairs have left. One that still runs fails at its next step, without harm.
///
/// # Errors
/// Any of [`ClickHouseError`]; then run it again.
pub async fn clean(client: &Client, say: Say<'_>) -> Result<(), RepairError> {
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

/// Waits until no statement of the repair with this number runs, be it the swap or the making of the fence.
async fn await_unused(client: &Client, id: &str) -> Result<(), ClickHouseError> {
    let sql =
        "SELECT count() FROM system.processes WHERE position(query, ?) > 0 AND position(query, 'system.processes') = 0";
    while client.query(sql).bind(id).scalar_u64().await? > 0 {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn drop_constraint(name: &str) -> String {
    format!("ALTER TABLE daily DROP CONSTRAINT IF EXISTS {name}")
}
