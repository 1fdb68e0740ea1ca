//! An erasure's queries and statements to ClickHouse.
//!
//! Must never put the pattern into a statement, nor pass on the text of an error of a query that works with it.

use super::ProgressFn;
use super::plan::{Part, Plan, What};
use super::print::Counts;
use crate::clickhouse::client::{Client, Statement};
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::schema::Schema;
use std::time::{Duration, Instant};
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

/// Replaces a server's message about a query that works with the address.
const HIDDEN: &str = "its message is not shown, as it could repeat the address; the server's log has it";

/// The tables as an erasure sees them.
pub(super) struct Tables<'a> {
    client: &'a Client,
    schema: &'a Schema,
    pattern: String,
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
    pub(super) fn new(client: &'a Client, schema: &'a Schema, pattern: String) -> Tables<'a> {
        Tables { client, schema, pattern }
    }

    /// Returns the rows of all tables in which the pattern is found.
    ///
    /// The pattern is the one value of a temporary table. The table ends with its session, and nobody else sees it.
    pub(super) async fn find(&self) -> Result<Plan, ClickHouseError> {
        let session = format!("tallyhouse-erase-{:032x}", rand::random::<u128>());
        let create = "CREATE TEMPORARY TABLE erase_pattern (pattern String)";
        self.in_session(create, &session).await?.execute().await?;
        retry_until(async || self.send_pattern(&session).await).await?;
        // An empty pattern is in every text, so a pattern that has not arrived is an error.
        let pattern = "assumeNotNull((SELECT if(throwIf(count() != 1) = 0, any(pattern), '') FROM erase_pattern))";
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
        let drop = "DROP TEMPORARY TABLE erase_pattern";
        retry_until(async || self.in_session(drop, &session).await?.execute().await).await?;
        Ok(Plan { events, rejects, lifecycle })
    }

    async fn in_session(&self, sql: &str, session: &str) -> Result<Statement<'_>, ClickHouseError> {
        let query = self.client.query(sql).setting("session_id", session);
        // The cache would print its condition, with the pattern filled in, into the server's log.
        query.optional_setting("use_query_condition_cache", "0").await
    }

    async fn send_pattern(&self, session: &str) -> Result<(), ClickHouseError> {
        let pins = self.client.pins().await?.plain_inserts();
        let insert = self.client.for_insert().insert_formatted_with("INSERT INTO erase_pattern FORMAT RawBLOB");
        let mut insert = pins
            .fold(insert, |insert, (name, value)| insert.with_setting(*name, value))
            .with_setting("session_id", session)
            .with_timeouts(Some(self.client.insert_timeout()), Some(self.client.insert_timeout()));
        let sent = async {
            insert.send(self.pattern.clone().into()).await?;
            insert.end().await
        };
        sent.await.map_err(|error| self.client.classify(&error))
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
            "INSERT INTO {} (erasure_id, state, reference, events, mentions, rejects, lifecycle, campaigns, first_day, last_day, \
             rows_left, version) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            self.schema.insert_target("erasures")
        );
        let state = match state {
            State::Begun => "begun",
            State::Done => "done",
        };
        let insert = self.client.query(&sql).bind(id.to_string()).bind(state).bind(reference);
        let insert = insert.bind(counts.events).bind(counts.mentions).bind(counts.rejects);
        let insert = insert.bind(counts.lifecycle).bind(counts.campaigns);
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
