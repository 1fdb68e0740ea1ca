//! The sink inserts one batch's blocks with their token, and reads the marks.
//!
//! Must never retry an insert by itself, cancel one to learn its result, or report "inserted" without the server's confirmation.
//! The protocol decides about the step after an unknown outcome ([`tallyhouse_core::protocol`]).

use super::client::Client;
use super::error::ClickHouseError;
use super::retention::Retention;
use super::schema::Schema;
use std::time::{Duration, Instant};
use tallyhouse_core::batch::{Batch, column_list};
use tallyhouse_core::decode::event::Day;
use tallyhouse_core::protocol::marks::{Insert, Marks, PartitionId, Progress};
use tallyhouse_core::source::{OffsetRange, Source, Table};

/// Interval at which `system.processes` is checked for the end of an insert.
const ENDED_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Greatest number of rows of a batch. A batch is one block, which has at most `max_insert_block_size` rows.
const BATCH_ROWS_MAX: u64 = 1_048_449;

/// Writes batches of one consumer group into one database.
#[derive(Clone, Debug)]
pub struct Sink {
    client: Client,
    schema: Schema,
}

impl Sink {
    /// Returns the longest time of an insert.
    pub fn insert_timeout(&self) -> Duration {
        self.client.insert_timeout()
    }

    /// Returns a sink for a database that has this form of the schema.
    pub fn new(client: Client, schema: Schema) -> Sink {
        Sink { client, schema }
    }

    /// Sends one insert of a batch as one block and waits for ClickHouse's own answer. Returns the number of rows.
    ///
    /// The token is the same for every attempt at the same batch (`insert_deduplication_token`, checked per ClickHouse
    /// partition). So ClickHouse drops the rows that it has already. The query id is made of the token. So a second attempt
    /// cannot run beside the first, and the next owner can wait for its end ([`Sink::await_ended`]).
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`]. The outcome is unknown unless certainly nothing was sent: then read [`Sink::marks`].
    pub async fn insert(
        &self,
        batch: &Batch,
        insert: &Insert,
        source: &Source,
        attempt: u32,
    ) -> Result<u64, ClickHouseError> {
        let (rows, chunks) = batch.block(insert, &source.name());
        let token = source.token(batch.range(), insert.table, attempt);
        let table = self.schema.insert_target(insert.table.name());
        let sql = format!("INSERT INTO {table} ({}) FORMAT Native", column_list(insert.table));
        self.client.insert(&sql, &self.query_id(&token), &token, chunks).await?;
        Ok(rows)
    }

    /// Waits until no insert of the batch, by any member, runs on the server any more. It waits for as long as an insert may
    /// take.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn await_ended(&self, range: OffsetRange, source: &Source) -> Result<(), ClickHouseError> {
        let begins: Vec<String> = Table::ALL.iter().map(|&table| source.token(range, table, 0) + ":").collect();
        let sql = "SELECT count() FROM system.processes \
                   WHERE endsWith(query_id, ?) AND arrayExists(begin -> startsWith(query_id, begin), ?)";
        let begun = Instant::now();
        while self.client.deciding(sql).bind(self.query_id("")).bind(&begins).number().await? > 0 {
            if begun.elapsed() > self.insert_timeout() {
                return Err(ClickHouseError::StillRunning { query_id: format!("{}%{}", begins[0], self.query_id("")) });
            }
            tokio::time::sleep(ENDED_POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Tokens are kept per table, query ids per server. Two deployments may write the same topic into two databases of one
    /// server. Without the database, they would refuse each other's inserts (seen: code 216).
    fn query_id(&self, token: &str) -> String {
        format!("{token}:{}", self.client.database())
    }

    /// Returns the batch's rows and marks in the tables. `months`: the only ones of interest in `daily`, if they are known.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn marks(
        &self,
        range: OffsetRange,
        source: &Source,
        months: Option<&[PartitionId]>,
    ) -> Result<Marks, ClickHouseError> {
        let name = source.name();
        let raw = self
            .client
            .deciding(
                "SELECT toYYYYMMDD(event_time) AS day, count() FROM email_events \
                 WHERE source = ? AND source_offset >= ? AND source_offset < ? GROUP BY day",
            )
            .bind(&name)
            .bind(range.start)
            .bind(range.end);
        let rejected = self
            .client
            .deciding(
                "SELECT count() FROM rejected_events WHERE source = ? AND source_offset >= ? AND source_offset < ?",
            )
            .bind(&name)
            .bind(range.start)
            .bind(range.end);
        let retention = Retention::deciding(&self.client, &self.schema).await?;
        Ok(Marks {
            expired_before: retention.first_kept_day().map_or(0, Day::yyyymmdd),
            raw: raw.rows::<(u32, u64)>().await?.into_iter().collect(),
            daily: self.counted_ends(&name, range.start, months).await?.into_iter().collect(),
            rejected: rejected.number().await?,
        })
    }

    /// Returns the topic ids in the `source` of the partition's rows, empty for a plain one, independent of the id that the
    /// brokers report.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn topic_ids(&self, source: &Source) -> Result<Vec<String>, ClickHouseError> {
        let plain = Source { topic_id: String::new(), ..source.clone() }.name();
        let of = |table: Table| {
            format!("SELECT DISTINCT source FROM {} WHERE source = ? OR startsWith(source, ?)", table.name())
        };
        let all = Table::ALL.map(of).join(" UNION ALL ");
        let sql = format!("SELECT DISTINCT toString(source) AS name FROM ({all}) ORDER BY name");
        let with_id = format!("{plain}@");
        let query = Table::ALL.iter().fold(self.client.deciding(&sql), |query, _| query.bind(&plain).bind(&with_id));
        let names = query.rows::<(String,)>().await?;
        Ok(names.into_iter().map(|(name,)| name.strip_prefix(&with_id).unwrap_or_default().to_owned()).collect())
    }

    /// Returns the position of the source in the tables, with rows at `from` and later.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn progress(&self, from: u64, source: &Source) -> Result<Progress, ClickHouseError> {
        let name = source.name();
        let ends = self.counted_ends(&name, from, None).await?;
        let counted_end = ends.iter().map(|(_, end)| *end).max();
        let uncounted = match counted_end.filter(|&end| end > from) {
            Some(end) => self.uncounted(&name, OffsetRange { start: from, end }, &ends).await?,
            None => None,
        };
        let from = from.max(counted_end.unwrap_or(0));
        // The code here adds one to offsets: ClickHouse rewrites `max(x + 1)` to `max(x) + 1`, which is 1 if there is no row.
        let raw = self
            .client
            .deciding(
                "SELECT count(), min(source_offset), max(source_offset) FROM email_events \
                 WHERE source = ? AND source_offset >= ?",
            )
            .bind(&name)
            .bind(from);
        let raw = raw.rows::<(u64, u64, u64)>().await?.into_iter().find(|(rows, ..)| *rows > 0);
        let first_row = raw.map_or(u64::MAX, |(_, first, _)| first);
        let rejected = self
            .client
            .deciding(
                "SELECT countIf(source_offset < ?), maxIf(source_offset, source_offset < ?), count(), max(source_offset) \
                 FROM rejected_events WHERE source = ? AND source_offset >= ?",
            )
            .bind(first_row)
            .bind(first_row)
            .bind(&name)
            .bind(from);
        let rejected = rejected.rows::<(u64, u64, u64, u64)>().await?.into_iter().find(|(_, _, rows, _)| *rows > 0);
        let rejected_end = rejected.filter(|(before, ..)| *before > 0).map(|(_, last, ..)| last + 1);
        let stored_end = raw.map(|(_, _, last)| last + 1).max(rejected.map(|(_, _, _, last)| last + 1));
        Ok(Progress { counted_end, uncounted, rejected_end, stored_end })
    }

    /// Returns the greatest `end_offset` of a source by month, for the months in which it lies after `after`.
    ///
    /// `daily` is sorted by day, so a query by source alone would read all of it. The months leave out ClickHouse partitions, and
    /// the offset leaves out granules, by an index (`sql/single/0004_marks.sql`).
    async fn counted_ends(
        &self,
        source: &str,
        after: u64,
        months: Option<&[PartitionId]>,
    ) -> Result<Vec<(PartitionId, u64)>, ClickHouseError> {
        let of_months = match months {
            Some([]) => return Ok(Vec::new()),
            Some(_) => "AND toYYYYMM(day) IN ?",
            None => "",
        };
        let sql = format!(
            "SELECT toYYYYMM(day) AS month, max(end_offset) FROM daily WHERE source = ? AND end_offset > ? {of_months} \
             GROUP BY month"
        );
        let query = self.client.deciding(&sql).bind(source).bind(after);
        match months {
            Some(months) => query.bind(months).rows().await,
            None => query.rows().await,
        }
    }

    /// Returns the first offset in the range of a row whose month's counters end before it. Only the last batch can have such
    /// rows: rows further back were taken away by hand.
    async fn uncounted(
        &self,
        source: &str,
        range: OffsetRange,
        ends: &[(u32, u64)],
    ) -> Result<Option<u64>, ClickHouseError> {
        let (months, ends): (Vec<u32>, Vec<u64>) = ends.iter().copied().unzip();
        let start = self.start_of_last_rows(source, range).await?;
        let sql = "SELECT count(), min(source_offset) FROM \
                   (SELECT source_offset, event_time FROM email_events \
                   WHERE source = ? AND source_offset >= ? AND source_offset < ? ORDER BY source_offset DESC LIMIT ?) \
                   WHERE source_offset >= transform(toYYYYMM(event_time), ?, ?, toUInt64(0))";
        let query = self.client.deciding(sql).bind(source).bind(start).bind(range.end).bind(BATCH_ROWS_MAX);
        let query = query.bind(months).bind(ends);
        let found = query.rows::<(u64, u64)>().await?;
        Ok(found.first().filter(|(rows, _)| *rows > 0).map(|(_, first)| *first))
    }

    /// Returns an offset from which the range has at least [`BATCH_ROWS_MAX`] rows, or all that it has. Transactions leave
    /// offsets without a record, so a batch may span any number of them. In most cases it does not, and the last offsets are
    /// found by their index.
    async fn start_of_last_rows(&self, source: &str, range: OffsetRange) -> Result<u64, ClickHouseError> {
        let mut offsets = BATCH_ROWS_MAX;
        loop {
            let start = range.start.max(range.end.saturating_sub(offsets));
            let sql = "SELECT count() FROM email_events WHERE source = ? AND source_offset >= ? AND source_offset < ?";
            let rows = self.client.deciding(sql).bind(source).bind(start).bind(range.end).number().await?;
            if rows >= BATCH_ROWS_MAX || start == range.start {
                return Ok(start);
            }
            offsets = offsets.saturating_mul(8);
        }
    }
}
