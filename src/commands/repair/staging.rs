//! The table into which a month is counted before it replaces the old counters.

use super::error::RepairError;
use super::shard::Shard;
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use clickhouse::Row;
use serde::Deserialize;
use tallyhouse_core::days::Month;
use tallyhouse_core::source::Table;
use tallyhouse_core::tables::Definition;

/// A month being counted.
pub(super) struct Staging<'a> {
    client: &'a Client,
    month: Month,
    id: String,
    table: String,
}

/// A source that has rows or counters in the month.
#[derive(Clone, Debug, Row, Deserialize)]
pub(super) struct Found {
    pub(super) source: String,
    /// Its mark in the month, 0 without one.
    pub(super) mark: u64,
    /// One past its last row in the month, 0 without one.
    pub(super) rows_end: u64,
}

/// The offset up to which each source is counted, exclusive.
#[derive(Clone, Debug)]
pub(super) struct Borders {
    sources: Vec<String>,
    ends: Vec<u64>,
    /// Sources whose mark is ahead of the committed offset: a member may still ask for the mark.
    needed: Vec<String>,
}

impl Borders {
    /// Makes the borders from pairs of source and end, and from the sources whose mark a member may still ask for.
    pub(super) fn new(ends: Vec<(String, u64)>, needed: Vec<String>) -> Borders {
        let (sources, ends) = ends.into_iter().unzip();
        Borders { sources, ends, needed }
    }

    fn end(&self, source: &str) -> u64 {
        self.sources.iter().position(|name| name == source).map_or(0, |at| self.ends[at])
    }

    /// Refuses a border that has moved back: somebody has reset a committed offset in the meantime.
    pub(super) fn check_not_before(&self, earlier: &Borders) -> Result<(), RepairError> {
        match earlier.sources.iter().find(|source| self.end(source) < earlier.end(source)) {
            None => Ok(()),
            Some(source) => {
                Err(RepairError::Refused(format!("the committed offset of {source} was moved back meanwhile")))
            }
        }
    }
}

impl<'a> Staging<'a> {
    /// Names a staging table of its own. It is not created yet.
    pub(super) fn new(client: &'a Client, month: Month) -> Staging<'a> {
        let id = format!("{:016x}", rand::random::<u64>());
        let table = format!("daily_repair_{id}");
        Staging { client, month, id, table }
    }

    pub(super) fn client(&self) -> &Client {
        self.client
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn month(&self) -> u32 {
        self.month.number()
    }

    /// Returns the statements, in order, without the fence.
    pub(super) fn statements(&self) -> [String; 4] {
        [self.create_table(), self.insert(), self.replace(), self.drop_table()]
    }

    pub(super) fn drop_table(&self) -> String {
        format!("DROP TABLE IF EXISTS {} SYNC", self.table)
    }

    fn create_table(&self) -> String {
        let daily = self.client.stored("daily");
        // On replicas its rows are on this server alone. The other replicas fetch what is swapped in.
        let engine = match self.client.is_replica() {
            true => {
                let Definition { engine, partition_key, sorting_key, .. } = Table::Daily.definition();
                format!(" ENGINE = {engine} PARTITION BY {partition_key} ORDER BY ({sorting_key})")
            }
            false => String::new(),
        };
        format!("CREATE TABLE {} AS {daily}{engine}", self.table)
    }

    fn replace(&self) -> String {
        let daily = self.client.stored("daily");
        format!("ALTER TABLE {daily} REPLACE PARTITION {} FROM {}", self.month(), self.table)
    }

    /// Counts as a member does: one counter of each source has its name and its mark, all others are summed over the sources.
    fn insert(&self) -> String {
        format!(
            "INSERT INTO {} ({}) SELECT day, event_type, campaign_id, workspace_id, if(place = 1, source, '') AS named, sum(rows), \
             max(if(place = 1, toUInt64(transform(toString(source), ?, ?, 0)), 0)) FROM (\
             SELECT toDate(event_time) AS day, event_type, campaign_id, workspace_id, source, count() AS rows, row_number() \
             OVER (PARTITION BY source ORDER BY day, campaign_id, workspace_id, event_type) AS place FROM email_events \
             WHERE {} AND source IN ? AND source_offset >= toUInt64(transform(toString(source), ?, ?, 0)) \
             AND source_offset < toUInt64(transform(toString(source), ?, ?, 0)) \
             GROUP BY day, event_type, campaign_id, workspace_id, source) \
             GROUP BY day, event_type, campaign_id, workspace_id, named",
            self.table,
            Table::Daily.definition().column_list(),
            self.month.span().of_rows()
        )
    }

    /// Makes the table. This comes before the fence, as the table copies the constraints of `daily`.
    pub(super) async fn create(&self) -> Result<(), ClickHouseError> {
        self.client.query(&self.create_table()).execute().await
    }

    /// Returns every source with rows or counters in the month.
    pub(super) async fn sources(&self) -> Result<Vec<Found>, ClickHouseError> {
        let span = self.month.span();
        let sql = format!(
            "SELECT toString(source) AS source, max(mark) AS mark, max(rows_end) AS rows_end FROM (\
             SELECT source, max(end_offset) AS mark, toUInt64(0) AS rows_end FROM daily WHERE {} AND source != '' GROUP BY source \
             UNION ALL \
             SELECT source, toUInt64(0), max(source_offset) + 1 FROM email_events WHERE {} GROUP BY source) \
             GROUP BY source ORDER BY source",
            span.of_counters(),
            span.of_rows()
        );
        self.client.query(&sql).rows().await
    }

    /// Counts the rows from `after` (the beginning without one) up to `until`.
    pub(super) async fn count(&self, after: Option<&Borders>, until: &Borders) -> Result<(), ClickHouseError> {
        let starts: Vec<u64> =
            until.sources.iter().map(|source| after.map_or(0, |borders| borders.end(source))).collect();
        let Borders { sources, ends, .. } = until;
        if sources.is_empty() {
            return Ok(());
        }
        let query = self.client.query(&self.insert()).inserting().await?;
        let query = query.bind(sources).bind(ends).bind(sources).bind(sources).bind(&starts).bind(sources).bind(ends);
        query.execute().await
    }

    /// Refuses a mark that falls, which would make a member count the same rows again. Where rows are to be trusted,
    /// only the marks matter that a member may still ask for.
    pub(super) async fn refuse_lower_marks(&self, borders: &Borders, trust_rows: bool) -> Result<(), RepairError> {
        let sql = format!(
            "SELECT toString(d.source) FROM (SELECT source, max(end_offset) AS mark FROM daily WHERE {} GROUP BY source) AS d \
             LEFT JOIN (SELECT source, max(end_offset) AS mark FROM {} GROUP BY source) AS s USING (source) \
             WHERE s.mark < d.mark ORDER BY 1",
            self.month.span().of_counters(),
            self.table
        );
        let mut lower: Vec<String> = self.client.query(&sql).rows().await?;
        lower.retain(|source| !trust_rows || borders.needed.contains(source));
        if lower.is_empty() {
            return Ok(());
        }
        let why = format!(
            "counted again from the rows, these sources would have a lower mark in {} than they have, so rows are missing: {}. \
             `tallyhouse audit` names them. --trust-rows counts what is left, once no batch of these sources is open",
            self.month(),
            lower.join(", ")
        );
        Err(RepairError::Refused(why))
    }

    /// Replaces the old month with the counted one, in one step.
    pub(super) async fn swap(&self, shard: &Shard) -> Result<(), ClickHouseError> {
        shard.here(self.client.query(&self.replace())).execute().await
    }

    /// Checks that the month is now what was counted.
    pub(super) async fn verify(&self) -> Result<(), RepairError> {
        let of = |table: &str, filter: &str| {
            format!(
                "SELECT toString(source) AS source, sum(total) AS total, max(end_offset) AS mark \
                 FROM {table} WHERE {filter} GROUP BY source ORDER BY source"
            )
        };
        let found = self.client.query(&of("daily", &self.month.span().of_counters()));
        let found: Vec<(String, u64, u64)> = found.rows().await?;
        let counted: Vec<(String, u64, u64)> = self.client.query(&of(&self.table, "1")).rows().await?;
        if found == counted {
            return Ok(());
        }
        let differs = counted.iter().zip(&found).find(|(counted, found)| counted != found);
        Err(RepairError::NotVerified(match differs {
            Some((counted, found)) => format!("counted {counted:?}, found {found:?}"),
            None => format!("{} sources were counted, {} are there", counted.len(), found.len()),
        }))
    }
}

/// Refuses a month of which `daily` knows days or sources that have no row any more.
pub(super) async fn refuse_fewer(client: &Client, month: Month) -> Result<(), RepairError> {
    let (counters, rows) = (month.span().of_counters(), month.span().of_rows());
    for (what, of_counter, of_row) in [
        ("the days", "toString(day)", "toString(toDate(event_time))"),
        ("the sources", "toString(source)", "toString(source)"),
    ] {
        let sql = format!(
            "SELECT {of_counter} AS name FROM daily WHERE {counters} GROUP BY name HAVING sum(total) > 0 \
             AND name != '' AND name NOT IN (SELECT DISTINCT {of_row} FROM email_events WHERE {rows}) ORDER BY name LIMIT 40"
        );
        let gone: Vec<String> = client.query(&sql).rows().await?;
        if !gone.is_empty() {
            let why = format!(
                "in {}, daily has counters of {what} {}, of which email_events has no row any more: counting again would lose \
                 them. If that is wanted: --trust-rows",
                month.number(),
                gone.join(", ")
            );
            return Err(RepairError::Refused(why));
        }
    }
    Ok(())
}
