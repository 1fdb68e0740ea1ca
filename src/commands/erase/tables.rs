//! An erasure's queries and statements to ClickHouse.
//!
//! Must never put the pattern into a statement, nor pass on the text of an error of a query that works with it.

use super::ProgressFn;
use super::plan::{Part, Plan, What};
use super::print::Counts;
use crate::clickhouse::client::{Client, Statement};
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::recipients::{COLUMNS, HASH, stored};
use crate::clickhouse::schema::Schema;
use std::time::{Duration, Instant};
use tallyhouse_core::tables::RECIPIENTS_NAME;
use uuid::Uuid;

/// Time between two reports of ClickHouse's progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// ClickHouse's code for a session that another request uses.
const SESSION_IS_LOCKED: u32 = 373;
const SESSION_WAIT: Duration = Duration::from_secs(10);
const SESSION_INTERVAL: Duration = Duration::from_millis(20);

/// ClickHouse's code for the error that a statement asks for.
const THROW_IF: u32 = 395;
const NOT_ARRIVED: &str = "the pattern did not arrive, though its INSERT was acknowledged: something in between answers in the place of ClickHouse. \
                           Set clickhouse.url to ClickHouse itself";

/// Returns the statement for the recipients with some hashes, each with the number that replaces it. That is its place among those of
/// its campaign, hashed with the erasure's id. The values to bind are the id and the hashes.
fn replacements() -> String {
    format!(
        "SELECT campaign_id, sipHash64(toUUID(?), campaign_id, row_number() OVER (PARTITION BY campaign_id ORDER BY recipient)) \
         AS replacement, {} FROM ({})",
        COLUMNS.join(", "),
        stored("recipient IN ?")
    )
}

/// Replaces a server's message about a query that works with the address.
const HIDDEN: &str = "its message is not shown, as it could repeat the address; the server's log has it";

/// The tables as an erasure sees them.
pub(super) struct Tables<'a> {
    client: &'a Client,
    schema: &'a Schema,
    words: Words,
}

/// The texts that never come into a statement.
pub(super) struct Words {
    /// The pattern that finds the addresses in any text.
    pub(super) pattern: String,
    /// The spellings by which recipients are looked for, one a line.
    pub(super) spellings: String,
}

/// The stage of an erasure: it is about to change rows, or it has looked again.
#[derive(Clone, Copy, Debug)]
pub(super) enum State {
    Begun,
    Done,
}

/// A row of `erasures`.
pub(super) struct Line<'a> {
    pub(super) id: Uuid,
    pub(super) state: State,
    pub(super) reference: &'a str,
    pub(super) counts: Counts,
    pub(super) left: u64,
}

impl<'a> Tables<'a> {
    pub(super) fn new(client: &'a Client, schema: &'a Schema, words: Words) -> Tables<'a> {
        Tables { client, schema, words }
    }

    /// Returns the rows of all tables in which the pattern is found, and the hashes of the addresses in `recipients`.
    ///
    /// The pattern is the one value of a temporary table, and the spellings are those of another one. They end with their session, and
    /// nobody else sees them.
    pub(super) async fn find(&self) -> Result<Plan, ClickHouseError> {
        let session = format!("tallyhouse-erase-{:032x}", rand::random::<u128>());
        for (table, format, text) in [
            ("erase_pattern", "RawBLOB", &self.words.pattern),
            ("erase_spellings", "LineAsString", &self.words.spellings),
        ] {
            let create = format!("CREATE TEMPORARY TABLE {table} (email String)");
            retry_until(async || self.in_session(&create, &session).await?.execute().await).await?;
            let insert = format!("INSERT INTO {table} FORMAT {format}");
            retry_until(async || self.send(&insert, text, &session).await).await?;
        }
        // An empty pattern is in every text, so a pattern that has not arrived is an error.
        let pattern = "assumeNotNull((SELECT if(throwIf(count() != 1) = 0, any(email), '') FROM erase_pattern))";
        let events = format!(
            "SELECT toString(source) AS source, source_offset AS offset, toString(campaign_id) AS campaign_id, \
             toString(toDate(event_time)) AS day, toBool(match(email, {pattern})) AS is_own \
             FROM email_events WHERE match(email, {pattern}) OR match(metadata, {pattern})"
        );
        // RE2 finds no end of a word at a byte that is not UTF-8.
        let rejects = format!(
            "SELECT toString(source), source_offset FROM rejected_events \
             WHERE match(toValidUTF8(payload), {pattern}) OR match(toValidUTF8(key), {pattern}) OR match(error, {pattern})"
        );
        let lifecycle =
            format!("SELECT toString(source), source_offset FROM campaign_lifecycle WHERE match(metadata, {pattern})");
        let events = retry_until(async || self.in_session(&events, &session).await?.rows().await).await?;
        let rejects = retry_until(async || self.in_session(&rejects, &session).await?.rows().await).await?;
        let lifecycle = retry_until(async || self.in_session(&lifecycle, &session).await?.rows().await).await?;
        let recipients = format!(
            "SELECT recipient, uniqExact(campaign_id) FROM recipients WHERE recipient GLOBAL IN (SELECT {HASH} FROM \
             (SELECT email FROM erase_spellings UNION ALL SELECT email FROM email_events WHERE match(email, {pattern}))) \
             GROUP BY recipient ORDER BY recipient"
        );
        let recipients = retry_until(async || self.in_session(&recipients, &session).await?.rows().await).await?;
        for table in ["erase_pattern", "erase_spellings"] {
            let drop = format!("DROP TEMPORARY TABLE {table}");
            retry_until(async || self.in_session(&drop, &session).await?.execute().await).await?;
        }
        Ok(Plan { events, rejects, lifecycle, recipients })
    }

    async fn in_session(&self, sql: &str, session: &str) -> Result<Statement<'_>, ClickHouseError> {
        let query = self.client.query(sql).setting("session_id", session);
        // The cache would print its condition, with the pattern filled in, into the server's log.
        query.optional_setting("use_query_condition_cache", "0").await
    }

    async fn send(&self, sql: &str, text: &str, session: &str) -> Result<(), ClickHouseError> {
        let pins = self.client.pins().await?.plain_inserts();
        let insert = self.client.for_insert().insert_formatted_with(sql);
        let mut insert = pins
            .fold(insert, |insert, (name, value)| insert.with_setting(name, value))
            .with_setting("session_id", session)
            .with_timeouts(Some(self.client.insert_timeout()), Some(self.client.insert_timeout()));
        let sent = async {
            insert.send(text.to_owned().into()).await?;
            insert.end().await
        };
        sent.await.map_err(|error| self.client.classify(&error))
    }

    /// Returns the id of an erasure that has replaced these recipients and was cut short before it deleted them, if there is one.
    pub(super) async fn id_of_unfinished(&self, hashes: &[u64]) -> Result<Option<Uuid>, ClickHouseError> {
        let sql = "SELECT toString(erasure_id) FROM erasures GROUP BY erasure_id HAVING countIf(state = 'done') = 0";
        for id in self.client.query(sql).rows::<String>().await? {
            let Ok(id) = id.parse::<Uuid>() else { continue };
            let sql = format!(
                "SELECT count() FROM recipients WHERE (campaign_id, recipient) GLOBAL IN (SELECT campaign_id, replacement FROM ({}))",
                replacements()
            );
            if self.client.query(&sql).bind(id.to_string()).bind(hashes).scalar_u64().await? > 0 {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Writes the recipients again, each under a number made of the erasure's id. A second time changes nothing.
    pub(super) async fn add_replacements(&self, id: Uuid, hashes: &[u64]) -> Result<(), ClickHouseError> {
        let columns = COLUMNS.join(", ");
        let sql = format!(
            "INSERT INTO {} (campaign_id, recipient, {columns}) SELECT campaign_id, replacement, {columns} FROM ({})",
            self.schema.insert_target(RECIPIENTS_NAME),
            replacements()
        );
        let insert = self.client.query(&sql).bind(id.to_string()).bind(hashes);
        insert.inserting().await?.execute().await
    }

    /// Deletes the recipients with these hashes, and waits until ClickHouse has done it.
    pub(super) async fn delete_recipients(&self, hashes: &[u64]) -> Result<(), ClickHouseError> {
        let target = self.schema.alter_target(self.client.database(), RECIPIENTS_NAME);
        let delete = self.client.query(&format!("ALTER TABLE {target} DELETE WHERE recipient IN ?"));
        delete.bind(hashes).setting("mutations_sync", "2").execute().await
    }

    /// Blanks rows by their offsets, and waits until ClickHouse has done it.
    pub(super) async fn blank(&self, part: &Part, say: ProgressFn<'_>) -> Result<(), ClickHouseError> {
        let blanks = match part.what {
            What::Event => "email = '', metadata = ''",
            What::Mention | What::Lifecycle => "metadata = ''",
            What::Reject => "key = '', payload = '', error = 'erased'",
        };
        let keys = vec!["(source = ? AND source_offset IN ?)"; part.keys.len()].join(" OR ");
        let target = self.schema.alter_target(self.client.database(), part.what.table());
        let sql = format!("ALTER TABLE {target} UPDATE {blanks} WHERE {keys}");
        let mut alter = self.client.query(&sql).setting("mutations_sync", "2").setting("max_query_size", "16777216");
        for (source, offsets) in &part.keys {
            alter = alter.bind(source).bind(offsets);
        }
        let blanked = alter.execute();
        tokio::pin!(blanked);
        loop {
            tokio::select! {
                done = &mut blanked => return done,
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {
                    let parts = self.parts_to_do(part.what.table()).await?;
                    say(&format!("{}: {parts} parts of the table are still to be done", part.what.table()));
                }
            }
        }
    }

    async fn parts_to_do(&self, table: &str) -> Result<u64, ClickHouseError> {
        let sql =
            "SELECT toUInt64(sum(parts_to_do)) FROM system.mutations WHERE database = ? AND table = ? AND NOT is_done";
        self.client.query(sql).bind(self.client.database()).bind(self.schema.insert_target(table)).scalar_u64().await
    }

    /// Writes a line about the erasure's stage into `erasures`. It is a statement, because the crate's typed insert would go around
    /// this client's time limit and query id.
    pub(super) async fn write(&self, line: &Line<'_>) -> Result<(), ClickHouseError> {
        let Line { id, state, reference, counts, left } = line;
        let sql = format!(
            "INSERT INTO {} (erasure_id, state, reference, events, mentions, rejects, lifecycle, recipients, campaigns, first_day, last_day, \
             rows_left, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self.schema.insert_target("erasures")
        );
        let state = match state {
            State::Begun => "begun",
            State::Done => "done",
        };
        let insert = self.client.query(&sql).bind(id.to_string()).bind(state).bind(reference);
        let insert = insert.bind(counts.events).bind(counts.mentions).bind(counts.rejects);
        let insert = insert.bind(counts.lifecycle).bind(counts.recipients).bind(counts.campaigns);
        let insert = insert.bind(&counts.first_day).bind(&counts.last_day).bind(left).bind(env!("CARGO_PKG_VERSION"));
        insert.inserting().await?.execute().await
    }
}

/// Asks again for a while where the session is in use: the server releases it a moment after its answer. Hides the
/// server's message if it fails.
async fn retry_until<T>(ask: impl AsyncFn() -> Result<T, ClickHouseError>) -> Result<T, ClickHouseError> {
    let deadline = Instant::now() + SESSION_WAIT;
    loop {
        match ask().await {
            Err(ClickHouseError::Server { code: SESSION_IS_LOCKED, .. }) if Instant::now() < deadline => {
                tokio::time::sleep(SESSION_INTERVAL).await;
            }
            answer => return answer.map_err(hide),
        }
    }
}

/// Returns the error without the server's message, which may repeat the value that the query works with.
fn hide(error: ClickHouseError) -> ClickHouseError {
    let message = match &error {
        ClickHouseError::Server { code: THROW_IF, .. } => NOT_ARRIVED.to_owned(),
        _ => HIDDEN.to_owned(),
    };
    match error {
        ClickHouseError::ServerBusy { code, name, .. } => ClickHouseError::ServerBusy { code, name, message },
        ClickHouseError::Server { code, name, .. } => ClickHouseError::Server { code, name, message },
        ClickHouseError::NotClickHouse { url, .. } => ClickHouseError::NotClickHouse { url, message },
        other => other,
    }
}
