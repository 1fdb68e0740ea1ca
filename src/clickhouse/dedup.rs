//! Reads the contents of the deduplication windows of the tables.
//!
//! ClickHouse does not show them, so this module estimates them from the existing parts. Must never be a basis of exactly once:
//! the marks make up for a token that is forgotten.

use super::client::Client;
use super::error::ClickHouseError;
use clickhouse::Row;
use serde::Deserialize;
use tallyhouse_core::source::Table;

/// Time span that [`Window::recent`] counts, in seconds.
const RECENT_S: u64 = 300;

/// The known facts about one table's deduplication window.
#[derive(Clone, Debug, PartialEq, Eq, Row, Deserialize)]
pub struct Window {
    /// Name of the table.
    pub table: String,
    /// Number of insert blocks that the window remembers.
    pub blocks: u64,
    /// Number of blocks inserted in the last five minutes. They are parts of level 0, which ClickHouse keeps for eight minutes
    /// after a merge.
    pub recent: u64,
    /// Least time that the window covers, in seconds. A part with a block of the window is known to be that old.
    pub at_least_s: u64,
}

/// Returns the deduplication windows, and the speed at which they fill.
///
/// # Errors
/// Returns any [`ClickHouseError`].
pub async fn windows(client: &Client) -> Result<Vec<Window>, ClickHouseError> {
    let database = client.database();
    let tables = Table::ALL.map(|table| format!("'{}'", client.stored(table.name()))).join(", ");
    let sql = format!(
        "SELECT t.name AS table, t.blocks AS blocks, \
         countIf(p.newest > 0 AND p.level = 0 AND p.modification_time > now() - {RECENT_S}) AS recent, \
         toUInt64(greatest(0, maxIf(dateDiff('second', p.modification_time, now()), p.newest > 0 AND \
         p.max_block_number + toInt64(t.blocks) > p.newest))) AS at_least_s \
         FROM (SELECT name, toUInt64OrZero(extract(engine_full, 'deduplication_window = ([0-9]+)')) AS blocks \
         FROM system.tables WHERE database = '{database}' AND name IN ({tables})) AS t \
         LEFT JOIN (SELECT table, level, modification_time, max_block_number, max(max_block_number) OVER (PARTITION BY table) \
         AS newest FROM system.parts WHERE database = '{database}') AS p ON p.table = t.name GROUP BY ALL ORDER BY t.name"
    );
    client.query(&sql).rows().await
}

impl Window {
    /// Returns the seconds until a token is forgotten, at the pace of the last five minutes. If there was no block, the pace is
    /// one block.
    pub fn headroom_s(&self) -> u64 {
        self.blocks * RECENT_S / self.recent.max(1)
    }
}
