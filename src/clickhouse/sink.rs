//! The sink inserts one batch's blocks with their token, and reads the marks.
//!
//! Must never retry an insert by itself, cancel one to learn its result, or report "inserted" without the server's confirmation.
//! The protocol decides about the step after an unknown outcome ([`tallyhouse_core::protocol`]).

use super::client::{Client, Deciding};
use super::error::ClickHouseError;
use super::retention::Retention;
use super::schema::{Schema, SchemaProblem};
use super::servers::Servers;
use crate::platform::failpoint;
use crate::platform::lock::locked;
use crate::platform::metrics::{FLUSHED_ROWS, INSERT_SECONDS};
use metrics::{counter, histogram};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tallyhouse_core::batch::{Part, block};
use tallyhouse_core::days::Day;
use tallyhouse_core::protocol::group::GroupId;
use tallyhouse_core::protocol::marks::{Marks, PartitionId, Progress};
use tallyhouse_core::recipients::{RecipientKey, Recipients};
use tallyhouse_core::source::{OffsetRange, Source, Table};
use tallyhouse_core::stream::Stream;
use tallyhouse_core::tables::{Definition, RECIPIENTS, RECIPIENTS_NAME};

/// Interval at which `system.processes` is checked for the end of an insert.
const ENDED_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// ClickHouse's default of `http_receive_timeout`: it gives up a sender that sends nothing for this time.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(30);

/// Returns the time after which ClickHouse gives up a sender that sends nothing.
pub fn receive_timeout() -> Duration {
    failpoint::receive_timeout(RECEIVE_TIMEOUT)
}

/// Greatest number of rows of a batch. A batch is one block, which has at most `max_insert_block_size` rows.
const BATCH_ROWS_MAX: u64 = 1_048_449;

/// Greatest number of sources of one statement. Names of 250 characters, three times each, stay below `max_query_size`.
const SOURCES_MAX: usize = 200;

/// An announced batch whose marks are asked.
#[derive(Clone, Debug)]
pub struct OpenBatch {
    /// Offsets of the batch.
    pub range: OffsetRange,
    /// Group of the batch, if it is in one.
    pub group: Option<GroupId>,
    /// Partition of the batch.
    pub source: Source,
    /// The only months of interest in `daily`, if they are known.
    pub months: Option<Vec<PartitionId>>,
}

/// Writes batches of one consumer group into one database.
#[derive(Clone, Debug)]
pub struct Sink {
    client: Client,
    schema: Schema,
    /// Content of the sources, which decides about the tables that it asks.
    stream: Stream,
    /// The servers of which one is in use at a time, if there are several.
    servers: Option<Arc<Servers>>,
    /// Time for which nothing is inserted after parts were lost: an insert that was sent before may arrive for that long.
    quarantine: Duration,
    /// True if a second replica confirms what is committed.
    confirms: bool,
    /// The key of the hashes of recipients; `None` if recipients are left out.
    recipient_key: Option<RecipientKey>,
    /// Batches whose counters are not written yet and whose recipients are, by source. They are confirmed if that is configured. The number
    /// is that of lost parts then.
    with_recipients: Arc<Mutex<HashMap<String, (OffsetRange, u64)>>>,
}

impl Sink {
    /// Returns the longest time of an insert.
    pub fn insert_timeout(&self) -> Duration {
        self.client.insert_timeout()
    }

    /// Returns a sink for a database that has this form of the schema. It is for events.
    pub fn new(client: Client, schema: Schema) -> Sink {
        Sink {
            client,
            schema,
            stream: Stream::Events,
            servers: None,
            quarantine: Duration::ZERO,
            confirms: false,
            recipient_key: None,
            with_recipients: Arc::default(),
        }
    }

    /// Returns the same sink for the sources of a stream.
    pub fn for_stream(self, stream: Stream) -> Sink {
        Sink { stream, ..self }
    }

    /// Returns a sink that uses one of these servers at a time. `sends`: the time for which a member may begin to send an insert after
    /// its last commit. `replicas_confirmed`: see [`Sink::confirm`].
    pub fn of_servers(servers: Arc<Servers>, schema: Schema, sends: Duration, replicas_confirmed: u64) -> Sink {
        let client = servers.in_use().clone();
        let quarantine = sends + receive_timeout() + client.insert_timeout();
        let confirms = replicas_confirmed > 1;
        Sink { servers: Some(servers), quarantine, confirms, ..Sink::new(client, schema) }
    }

    /// Lets the sink write recipients.
    pub fn with_recipients(self, key: Option<RecipientKey>) -> Sink {
        Sink { recipient_key: key, ..self }
    }

    /// Waits until a second replica has all rows of the shard, if that is configured. Returns the number of lost parts that is known
    /// then. If it has changed since an insert, the rows of that insert may be lost.
    ///
    /// # Errors
    /// Any [`SchemaProblem`].
    pub async fn confirm(&self) -> Result<u64, SchemaProblem> {
        match self.servers.as_ref().filter(|_| self.confirms) {
            Some(servers) => servers.confirm().await,
            None => Ok(0),
        }
    }

    /// Returns the number of lost parts that is known, as [`Sink::confirm`] does.
    pub fn lost(&self) -> u64 {
        self.servers.as_ref().filter(|_| self.confirms).map_or(0, |servers| servers.lost())
    }

    fn in_use(&self) -> &Client {
        self.servers.as_ref().map_or(&self.client, |servers| servers.in_use())
    }

    /// Returns a sink on the server in use now, which stays on it.
    fn here(&self) -> Sink {
        Sink::new(self.in_use().clone(), self.schema.clone()).for_stream(self.stream)
    }

    /// Returns a sink that stays on the server in use now, which shows all rows that the shard has. So a sync and the reads after it
    /// are on one server.
    async fn synced(&self) -> Result<Sink, ClickHouseError> {
        let here = self.here();
        let lost = here.client.sync().await?;
        self.servers.iter().for_each(|servers| servers.note_lost(lost));
        Ok(here)
    }

    /// Sends the rows of one or several batches as one block and waits for ClickHouse's own answer. Returns the number of rows.
    ///
    /// The token is the same for every attempt at the same batch or group (`insert_deduplication_token`, checked per ClickHouse
    /// partition). So ClickHouse drops the rows that it has already. The query id names the batch or the group. So a second
    /// attempt cannot run beside the first, and the next owner can wait for its end ([`Sink::await_ended`]). The lease is checked once
    /// more before the end of the data, on the open connection.
    ///
    /// The recipients of the same batches are written before counters. So the mark of the counters vouches for them as well.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`]. The outcome is unknown unless certainly nothing was sent: then read [`Sink::marks`].
    pub async fn insert(
        &self,
        table: Table,
        parts: &[Part<'_>],
        token: &str,
        id: &str,
        lease_holds: impl Fn() -> bool,
    ) -> Result<u64, ClickHouseError> {
        self.servers.as_ref().map_or(Ok(()), |servers| servers.refuse_after_loss(self.quarantine))?;
        if let (Table::Daily, Some(key)) = (table, self.recipient_key) {
            self.insert_recipients(parts, key, id).await?;
        }
        let (rows, chunks) = block(table, parts);
        let sql = self.insert_statement(table.name(), &table.definition());
        self.in_use().insert(&sql, &self.query_id(id), token, chunks, lease_holds).await?;
        if table == Table::Daily {
            let mut with_recipients = locked(&self.with_recipients);
            for part in parts {
                with_recipients.remove(part.source);
            }
        }
        Ok(rows)
    }

    fn insert_statement(&self, table: &str, definition: &Definition) -> String {
        format!("INSERT INTO {} ({}) FORMAT Native", self.schema.insert_target(table), definition.column_list())
    }

    /// Writes the recipients of batches. Where a second replica confirms what is committed, it confirms them before the counters vouch for
    /// them. A lost disk could otherwise take them and leave the counters.
    ///
    /// If the insert of the counters fails, this is not done again for the same batches. A confirmation may take longer than a lease, and
    /// the counters would never have their turn.
    async fn insert_recipients(&self, parts: &[Part<'_>], key: RecipientKey, id: &str) -> Result<(), ClickHouseError> {
        let (started, lost) = (Instant::now(), self.lost());
        let is_open =
            |part: &&Part<'_>| locked(&self.with_recipients).get(part.source) != Some(&(part.batch.range(), lost));
        let open: Vec<&Part<'_>> = parts.iter().filter(is_open).collect();
        let mut recipients = Recipients::of(open.iter().map(|part| part.batch), key);
        if recipients.is_empty() {
            return Ok(());
        }
        let mut all_rows = 0;
        let blocks = std::iter::from_fn(|| {
            let (rows, block) = recipients.next_block()?;
            all_rows += rows;
            Some(block)
        });
        let sql = self.insert_statement(RECIPIENTS_NAME, &RECIPIENTS);
        let query_id = self.query_id(&format!("{id}:{RECIPIENTS_NAME}"));
        self.in_use().insert_idempotent(&sql, &query_id, blocks.flatten()).await?;
        counter!(FLUSHED_ROWS, "table" => RECIPIENTS_NAME).increment(all_rows);
        histogram!(INSERT_SECONDS, "table" => RECIPIENTS_NAME).record(started.elapsed());
        match self.confirm().await {
            Ok(parts) if parts == lost => {
                let done = open.iter().map(|part| (part.source.to_owned(), (part.batch.range(), lost)));
                locked(&self.with_recipients).extend(done);
                Ok(())
            }
            Ok(_) => {
                Err(ClickHouseError::Unconfirmed { message: "parts of the tables were lost meanwhile".to_owned() })
            }
            Err(problem) => Err(ClickHouseError::Unconfirmed { message: problem.to_string() }),
        }
    }

    /// Waits until no insert of the batch, by any member, runs on the server any more. That includes inserts of its group. It
    /// waits for as long as an insert may take.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn await_ended(
        &self,
        range: OffsetRange,
        group: Option<GroupId>,
        source: &Source,
    ) -> Result<(), ClickHouseError> {
        let (begins, here) = (begins(range, group, source), self.here());
        let begun = Instant::now();
        while here.running().await?.iter().any(|id| is_of(id, &begins)) {
            if begun.elapsed() > self.insert_timeout() {
                return Err(ClickHouseError::StillRunning { query_id: format!("{}%{}", begins[0], self.query_id("")) });
            }
            tokio::time::sleep(ENDED_POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Returns the query ids of all inserts of batches that run now.
    async fn running(&self) -> Result<Vec<String>, ClickHouseError> {
        let sql = "SELECT query_id FROM system.processes WHERE endsWith(query_id, ?)";
        let ids = self.client.deciding(sql).bind(self.query_id("")).rows::<(String,)>().await?;
        Ok(ids.into_iter().map(|(id,)| id).collect())
    }

    /// Returns the query id of an insert. Tokens are kept per table, query ids per server. Two deployments may write the same
    /// topic into two databases of one server. Without the database, they would refuse each other's inserts (seen: code 216).
    fn query_id(&self, id: &str) -> String {
        format!("{id}:{}", self.client.database())
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
        let months = months.map(<[PartitionId]>::to_vec);
        let batch = OpenBatch { range, group: None, source: source.clone(), months };
        let here = self.synced().await?;
        Ok(here.marks_of_some(&[&batch]).await?.remove(&batch.source.name()).unwrap_or_default())
    }

    /// As [`Sink::marks`], by a few statements for these batches, in order. Returns `None` for a batch of which an insert still runs, and
    /// for a second batch of one source.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn marks_of(&self, asked: &[OpenBatch]) -> Result<Vec<Option<Marks>>, ClickHouseError> {
        let here = self.synced().await?;
        let running = here.running().await?;
        let runs = |batch: &OpenBatch| {
            let begins = begins(batch.range, batch.group, &batch.source);
            running.iter().any(|id| is_of(id, &begins))
        };
        let mut names = BTreeSet::new();
        let settled: Vec<bool> = asked.iter().map(|batch| !runs(batch) && names.insert(batch.source.name())).collect();
        let ended: Vec<&OpenBatch> =
            asked.iter().zip(&settled).filter(|(_, settled)| **settled).map(|(batch, _)| batch).collect();
        let mut marks = BTreeMap::new();
        for some in ended.chunks(SOURCES_MAX) {
            marks.extend(here.marks_of_some(some).await?);
        }
        let answer = |(batch, settled): (&OpenBatch, bool)| marks.remove(&batch.source.name()).filter(|_| settled);
        Ok(asked.iter().zip(settled).map(answer).collect())
    }

    /// Returns the marks by the name of the source. Each source is there once.
    async fn marks_of_some(&self, asked: &[&OpenBatch]) -> Result<BTreeMap<String, Marks>, ClickHouseError> {
        let starts: Vec<(String, u64)> = asked.iter().map(|batch| (batch.source.name(), batch.range.start)).collect();
        let (names, ends): (Vec<&String>, Vec<u64>) =
            starts.iter().zip(asked).map(|((name, _), batch)| (name, batch.range.end)).unzip();
        let within = format!("{} AND source_offset < transform(source, ?, ?, toUInt64(0))", at_least("source_offset"));
        let of_table = |table: Table| {
            format!("SELECT toString(source) AS name, count() FROM {} WHERE {within} GROUP BY name", table.name())
        };
        let rejected = of_table(Table::Rejected);
        let rejected = bind_at_least(self.client.deciding(&rejected), &starts).bind(&names).bind(&ends);
        if self.stream != Stream::Events {
            let mut marks: BTreeMap<String, Marks> =
                starts.iter().map(|(name, _)| (name.clone(), Marks::default())).collect();
            let rows = of_table(self.stream.row_table());
            let rows = bind_at_least(self.client.deciding(&rows), &starts).bind(&names).bind(&ends);
            for (name, rows) in rows.rows::<(String, u64)>().await? {
                marks.entry(name).or_default().lifecycle = rows;
            }
            for (name, rows) in rejected.rows::<(String, u64)>().await? {
                marks.entry(name).or_default().rejected = rows;
            }
            return Ok(marks);
        }
        let raw = format!(
            "SELECT toString(source) AS name, toYYYYMMDD(event_time) AS day, count(), max(source_offset) FROM email_events \
             WHERE {within} GROUP BY name, day"
        );
        let raw = bind_at_least(self.client.deciding(&raw), &starts).bind(&names).bind(&ends);
        let months: Option<Vec<&[PartitionId]>> = asked.iter().map(|batch| batch.months.as_deref()).collect();
        let months = months.map(|all| BTreeSet::from_iter(all.concat()).into_iter().collect::<Vec<_>>());
        let expired_before =
            Retention::deciding(&self.client, &self.schema).await?.first_kept_day().map_or(0, Day::yyyymmdd);
        let of_none = Marks { expired_before, ..Marks::default() };
        let mut marks: BTreeMap<String, Marks> =
            starts.iter().map(|(name, _)| (name.clone(), of_none.clone())).collect();
        for (name, day, rows, last) in raw.rows::<(String, u32, u64, u64)>().await? {
            let marks = marks.entry(name).or_default();
            marks.raw.insert(day, rows);
            marks.last_rows.insert(day, last);
        }
        for (name, rows) in rejected.rows::<(String, u64)>().await? {
            marks.entry(name).or_default().rejected = rows;
        }
        let mut ends = self.counted_ends(&starts, months.as_deref()).await?;
        for (batch, (name, _)) in asked.iter().zip(&starts) {
            let is_asked = |month: &PartitionId| batch.months.as_ref().is_none_or(|months| months.contains(month));
            let ends = ends.remove(name).unwrap_or_default().into_iter().filter(|(month, _)| is_asked(month)).collect();
            marks.entry(name.clone()).or_default().daily = ends;
        }
        Ok(marks)
    }

    /// Returns the topic ids in the `source` of the partition's rows, empty for a plain one, independent of the id that the
    /// brokers report.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn topic_ids(&self, source: &Source) -> Result<Vec<String>, ClickHouseError> {
        Ok(self.topic_ids_of(&source.topic, &[source.partition]).await?.into_iter().flatten().collect())
    }

    /// As [`Sink::topic_ids`], by one statement for these partitions of a topic, in order.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn topic_ids_of(&self, topic: &str, partitions: &[i32]) -> Result<Vec<Vec<String>>, ClickHouseError> {
        let here = self.synced().await?;
        let begin = format!("{topic}/");
        let tables = self.stream.tables();
        let of = |table: &Table| format!("SELECT DISTINCT source FROM {} WHERE startsWith(source, ?)", table.name());
        let all = tables.iter().map(of).collect::<Vec<_>>().join(" UNION ALL ");
        let sql = format!("SELECT DISTINCT toString(source) AS name FROM ({all}) ORDER BY name");
        let query = tables.iter().fold(here.client.deciding(&sql), |query, _| query.bind(&begin));
        let mut found: BTreeMap<i32, Vec<String>> = BTreeMap::new();
        for (name,) in query.rows::<(String,)>().await? {
            let rest = name.strip_prefix(&begin).unwrap_or_default();
            let (number, id) = rest.split_once('@').unwrap_or((rest, ""));
            if let Ok(partition) = number.parse() {
                found.entry(partition).or_default().push(id.to_owned());
            }
        }
        Ok(partitions.iter().map(|partition| found.get(partition).cloned().unwrap_or_default()).collect())
    }

    /// Returns the position of the source in the tables, with rows at `from` and later.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn progress(&self, from: u64, source: &Source) -> Result<Progress, ClickHouseError> {
        let progress = self.progress_of(&[(source.name(), from)]).await?;
        Ok(progress.into_iter().next().unwrap_or_default())
    }

    /// As [`Sink::progress`], by a few statements for the named sources, each with rows at its offset and later. Answers in order.
    /// Each source is there once.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn progress_of(&self, asked: &[(String, u64)]) -> Result<Vec<Progress>, ClickHouseError> {
        let here = self.synced().await?;
        let mut progress = Vec::with_capacity(asked.len());
        for some in asked.chunks(SOURCES_MAX) {
            progress.extend(here.progress_of_some(some).await?);
        }
        Ok(progress)
    }

    async fn progress_of_some(&self, asked: &[(String, u64)]) -> Result<Vec<Progress>, ClickHouseError> {
        if self.stream != Stream::Events {
            return self.lifecycle_progress_of_some(asked).await;
        }
        let ends = self.counted_ends(asked, None).await?;
        let counted_end = |name: &String| ends.get(name)?.iter().map(|(_, end)| *end).max();
        let range = |(name, from): &(String, u64)| {
            let end = counted_end(name).filter(|end| end > from)?;
            Some((name.clone(), OffsetRange { start: *from, end }))
        };
        let uncounted = self.uncounted_of(asked.iter().filter_map(range).collect(), &ends).await?;
        let beyond: Vec<(String, u64)> =
            asked.iter().map(|(name, from)| (name.clone(), counted_end(name).unwrap_or(0).max(*from))).collect();
        // The code here adds one to offsets: ClickHouse rewrites `max(x + 1)` to `max(x) + 1`, which is 1 if there is no row.
        let sql = format!(
            "SELECT toString(source) AS name, min(source_offset), max(source_offset) FROM email_events WHERE {} GROUP BY name",
            at_least("source_offset")
        );
        let raw = bind_at_least(self.client.deciding(&sql), &beyond).rows::<(String, u64, u64)>().await?;
        let raw: BTreeMap<String, (u64, u64)> =
            raw.into_iter().map(|(name, first, last)| (name, (first, last))).collect();
        let first_row = |name: &String| raw.get(name).map_or(u64::MAX, |(first, _)| *first);
        let (names, first_rows): (Vec<&String>, Vec<u64>) =
            asked.iter().map(|(name, _)| (name, first_row(name))).unzip();
        let sql = format!(
            "WITH source_offset < transform(source, ?, ?, toUInt64(0)) AS before \
             SELECT toString(source) AS name, countIf(before), maxIf(source_offset, before), max(source_offset) \
             FROM rejected_events WHERE {} GROUP BY name",
            at_least("source_offset")
        );
        let query = self.client.deciding(&sql).bind(&names).bind(&first_rows);
        let rejected = bind_at_least(query, &beyond).rows::<(String, u64, u64, u64)>().await?;
        let rejected: BTreeMap<String, _> =
            rejected.into_iter().map(|(name, before, last_before, last)| (name, (before, last_before, last))).collect();
        let progress = |name: &String| {
            let (raw, rejected) = (raw.get(name), rejected.get(name));
            Progress {
                counted_end: counted_end(name),
                uncounted: uncounted.get(name).copied(),
                rejected_end: rejected.filter(|(before, ..)| *before > 0).map(|(_, last_before, _)| last_before + 1),
                stored_end: raw.map(|(_, last)| last + 1).max(rejected.map(|(.., last)| last + 1)),
            }
        };
        Ok(asked.iter().map(|(name, _)| progress(name)).collect())
    }

    /// Returns the position of sources of a lifecycle topic. Their rows are the marks. Rejects are written before the rows between
    /// them, so they prove no `rejected_end`.
    async fn lifecycle_progress_of_some(&self, asked: &[(String, u64)]) -> Result<Vec<Progress>, ClickHouseError> {
        let sql = format!(
            "SELECT toString(source) AS name, max(end_offset) FROM {} WHERE {} GROUP BY name",
            self.stream.row_table().name(),
            at_least("end_offset")
        );
        let after: Vec<(String, u64)> =
            asked.iter().map(|(name, from)| (name.clone(), from.saturating_add(1))).collect();
        let ends = bind_at_least(self.client.deciding(&sql), &after).rows::<(String, u64)>().await?;
        let ends: BTreeMap<String, u64> = ends.into_iter().collect();
        let counted_end = |name: &String| ends.get(name).copied();
        let beyond: Vec<(String, u64)> =
            asked.iter().map(|(name, from)| (name.clone(), counted_end(name).unwrap_or(0).max(*from))).collect();
        let sql = format!(
            "SELECT toString(source) AS name, max(source_offset) FROM rejected_events WHERE {} GROUP BY name",
            at_least("source_offset")
        );
        let last = bind_at_least(self.client.deciding(&sql), &beyond).rows::<(String, u64)>().await?;
        let last: BTreeMap<String, u64> = last.into_iter().collect();
        let progress = |name: &String| Progress {
            counted_end: counted_end(name),
            stored_end: last.get(name).map(|last| last + 1),
            ..Progress::default()
        };
        Ok(asked.iter().map(|(name, _)| progress(name)).collect())
    }

    /// Returns the greatest `end_offset` of each source by month, for the months in which it lies after the source's offset.
    ///
    /// `daily` is sorted by day, so a query by source alone would read all of it. The months leave out ClickHouse partitions, and
    /// the offset leaves out granules, by an index (`sql/single/0004_marks.sql`).
    async fn counted_ends(
        &self,
        after: &[(String, u64)],
        months: Option<&[PartitionId]>,
    ) -> Result<BTreeMap<String, Vec<(PartitionId, u64)>>, ClickHouseError> {
        let of_months = match months {
            Some([]) => return Ok(BTreeMap::new()),
            Some(_) => "AND toYYYYMM(day) IN ?",
            None => "",
        };
        let from: Vec<(String, u64)> =
            after.iter().map(|(name, after)| (name.clone(), after.saturating_add(1))).collect();
        let sql = format!(
            "SELECT toString(source) AS name, toYYYYMM(day) AS month, max(end_offset) FROM daily WHERE {} {of_months} \
             GROUP BY name, month",
            at_least("end_offset")
        );
        let query = bind_at_least(self.client.deciding(&sql), &from);
        let rows = match months {
            Some(months) => query.bind(months).rows::<(String, PartitionId, u64)>().await?,
            None => query.rows().await?,
        };
        let mut ends: BTreeMap<String, Vec<(PartitionId, u64)>> = BTreeMap::new();
        rows.into_iter().for_each(|(name, month, end)| ends.entry(name).or_default().push((month, end)));
        Ok(ends)
    }

    /// Returns what [`Sink::uncounted`] does, of the sources that have such a row.
    ///
    /// One statement finds the last row of each month among the last offsets of all sources. It settles a source if two things hold. Each
    /// of these rows is counted, and the offsets have as many rows as a batch or are the whole range.
    async fn uncounted_of(
        &self,
        ranges: Vec<(String, OffsetRange)>,
        ends: &BTreeMap<String, Vec<(PartitionId, u64)>>,
    ) -> Result<BTreeMap<String, u64>, ClickHouseError> {
        let mut found = BTreeMap::new();
        if ranges.is_empty() {
            return Ok(found);
        }
        let start = |range: &OffsetRange| range.start.max(range.end.saturating_sub(2 * BATCH_ROWS_MAX));
        let starts: Vec<(String, u64)> = ranges.iter().map(|(name, range)| (name.clone(), start(range))).collect();
        let (names, range_ends): (Vec<&String>, Vec<u64>) =
            ranges.iter().map(|(name, range)| (name, range.end)).unzip();
        let sql = format!(
            "SELECT toString(source) AS name, toYYYYMM(event_time) AS month, count(), max(source_offset) FROM email_events \
             WHERE {} AND source_offset < transform(source, ?, ?, toUInt64(0)) GROUP BY name, month",
            at_least("source_offset")
        );
        let query = bind_at_least(self.client.deciding(&sql), &starts).bind(&names).bind(&range_ends);
        let mut rows: BTreeMap<String, u64> = BTreeMap::new();
        let mut suspects = BTreeSet::new();
        for (name, month, count, last) in query.rows::<(String, PartitionId, u64, u64)>().await? {
            let counted = ends.get(&name).and_then(|ends| ends.iter().find(|(counted, _)| *counted == month));
            if last >= counted.map_or(0, |(_, end)| *end) {
                suspects.insert(name.clone());
            }
            *rows.entry(name).or_default() += count;
        }
        for (name, range) in &ranges {
            let is_whole = start(range) == range.start || rows.get(name).is_some_and(|&rows| rows >= BATCH_ROWS_MAX);
            if is_whole && !suspects.contains(name) {
                continue;
            }
            let ends = ends.get(name).map_or(&[][..], Vec::as_slice);
            if let Some(first) = self.uncounted(name, *range, ends).await? {
                found.insert(name.clone(), first);
            }
        }
        Ok(found)
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

/// Returns the beginnings of the query ids of a batch's inserts, and of its group's.
fn begins(range: OffsetRange, group: Option<GroupId>, source: &Source) -> Vec<String> {
    let own = Table::ALL.iter().map(|&table| source.own_id(range, group, table, 0));
    let joint = group.into_iter().flat_map(|group| Table::ALL.map(|table| source.joint_id(group, table)));
    own.chain(joint).map(|id| id + ":").collect()
}

fn is_of(query_id: &str, begins: &[String]) -> bool {
    begins.iter().any(|begin| query_id.starts_with(begin))
}

/// Returns the condition that an offset of a source is at least the source's own. The least of them is there for the index.
fn at_least(column: &str) -> String {
    format!("source IN ? AND {column} >= ? AND {column} >= transform(source, ?, ?, toUInt64(0))")
}

/// Adds the values for [`at_least`].
fn bind_at_least<'c>(query: Deciding<'c>, offsets: &[(String, u64)]) -> Deciding<'c> {
    let (names, offsets): (Vec<&String>, Vec<u64>) = offsets.iter().map(|(name, offset)| (name, *offset)).unzip();
    let least = offsets.iter().min().copied().unwrap_or(0);
    query.bind(&names).bind(least).bind(&names).bind(&offsets)
}
