//! ClickHouse's half of the checks. There are only questions here, and only identifiers that the client has seen.

use super::{Code, Outcome, State, judge, with_skipped};
use crate::clickhouse::client::Client;
use crate::clickhouse::dedup;
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::identity;
use crate::clickhouse::retention::Retention;
use crate::clickhouse::schema::Schema;
use crate::clickhouse::sight;
use crate::platform::clock::unix_ms;
use std::time::Instant;
use tallyhouse_core::source::Table;

pub(super) const CODES: [Code; 14] = [
    Code::Clickhouse,
    Code::ClickhouseVersion,
    Code::OneServer,
    Code::Settings,
    Code::Clock,
    Code::Schema,
    Code::Views,
    Code::InsertRights,
    Code::SelectRights,
    Code::RowPolicies,
    Code::OwnViews,
    Code::DedupWindows,
    Code::Replicas,
    Code::Retention,
];

/// Number of looks at the clock. The first question pays for the connection. The quickest answer gives the best time.
const CLOCK_LOOKS: usize = 4;

/// Makes all checks about ClickHouse. With several servers, the first outcome of a code that is not ok is taken, with its server.
pub async fn checks(clients: &[Client]) -> Vec<Outcome> {
    let mut checks: Vec<Outcome> = Vec::new();
    for client in clients {
        for mut outcome in with_skipped(made(client).await, &CODES) {
            if clients.len() > 1 && outcome.status != State::Ok {
                outcome.seen = format!("{}: {}", client.described(), outcome.seen);
            }
            match checks.iter_mut().find(|known| known.code == outcome.code) {
                Some(known) if known.status == State::Ok => *known = outcome,
                Some(_) => {}
                None => checks.push(outcome),
            }
        }
    }
    checks
}

/// Returns the checks up to the first failure without which the others cannot be made.
async fn made(client: &Client) -> Vec<Outcome> {
    let mut made = Vec::new();
    let version = match client.server_query("SELECT version()").rows::<String>().await {
        Ok(rows) => rows.into_iter().next().unwrap_or_default(),
        Err(error) => return vec![Outcome::failed_with(Code::Clickhouse, error.advice())],
    };
    made.push(Outcome::ok(Code::Clickhouse, "answers, and lets the user in"));
    let fails = |code, error: ClickHouseError| Outcome::failed_with(code, error.advice());
    made.push(judge::version(&version));
    let found = Schema::found(client).await;
    // The form of the tables decides which servers may answer, and which settings are needed.
    let client = found.as_ref().map_or(client, |(client, _)| client);
    made.push(match client.prove_one_server(identity::LOOKS_OF_CHECK).await {
        Ok(_) if client.is_shared() => Outcome::ok(Code::OneServer, "servers with the same shared tables answer"),
        Ok(is_named) => judge::one_server(is_named),
        Err(error) => fails(Code::OneServer, error),
    });
    made.push(match client.prove_settings().await {
        Ok(()) => Outcome::ok(Code::Settings, "what exactness needs can be set, and arrives"),
        Err(error) => fails(Code::Settings, error),
    });
    made.push(match clock(client).await {
        Ok((skew_ms, round_trip_ms)) => judge::clock(skew_ms, round_trip_ms),
        Err(error) => fails(Code::Clock, error),
    });
    let schema = match &found {
        Ok((_, schema)) => schema.check(client).await.map(|()| schema),
        Err(problem) => Err(problem.clone()),
    };
    let schema = match schema {
        Ok(schema) => schema,
        Err(problem) => {
            made.push(Outcome::failed_with(Code::Schema, problem.advice()));
            return made;
        }
    };
    made.push(Outcome::ok(Code::Schema, format!("the tables are this binary's: {}", schema.form())));
    made.push(match schema.missing_views(client).await {
        Ok(missing) => judge::views(&missing),
        Err(error) => fails(Code::Views, error),
    });
    let tables = Table::ALL.map(|table| format!("{}.{}", client.database(), client.stored(table.name())));
    // A member looks in `system.processes` for the end of an insert whose result is unknown.
    let read = [&tables[..], &["system.processes".to_owned()]].concat();
    for (code, right, tables) in
        [(Code::InsertRights, "INSERT", &tables[..]), (Code::SelectRights, "SELECT", &read[..])]
    {
        let mut answers = Vec::new();
        for table in tables {
            let answer = has_grant(client, right, table).await;
            answers.push((table.as_str(), answer.map_err(|error| error.to_string())));
        }
        made.push(judge::grants(code, right, &answers));
    }
    made.push(match sight::of_tables(client).await {
        Ok(seen) => judge::sight(&seen),
        Err(error) => fails(Code::RowPolicies, error),
    });
    made.push(match sight::own_views(client).await {
        Ok(views) => judge::own_views(&views),
        Err(error) => fails(Code::OwnViews, error),
    });
    made.push(match dedup::windows(client).await {
        Ok(windows) => judge::dedup_windows(&windows),
        Err(error) => fails(Code::DedupWindows, error),
    });
    made.push(match client.is_replica() {
        false if client.is_shared() => Outcome::ok(Code::Replicas, "ClickHouse Cloud replicates the tables"),
        false => Outcome::ok(Code::Replicas, "the tables are not replicated"),
        true => match client.table_states().await {
            Ok(states) => judge::replicas(&states),
            Err(error) => fails(Code::Replicas, error),
        },
    });
    made.push(match Retention::read(client, schema).await {
        Ok(retention) => judge::retention(&retention),
        Err(error) => fails(Code::Retention, error),
    });
    made
}

/// True if the user has the right. `right` and `table` are Tallyhouse's names, with a database that is an identifier.
async fn has_grant(client: &Client, right: &str, table: &str) -> Result<bool, ClickHouseError> {
    let sql = format!("CHECK GRANT {right} ON {table}");
    let rows: Vec<u8> = client.server_query(&sql).rows().await?;
    Ok(rows.first() == Some(&1))
}

/// Returns how far ClickHouse's clock is ahead of this computer's, in milliseconds, and the round trip of that
/// answer.
async fn clock(client: &Client) -> Result<(i64, u64), ClickHouseError> {
    let mut best: Option<(i64, u64)> = None;
    for _ in 0..CLOCK_LOOKS {
        let (sent_ms, sent) = (unix_ms(), Instant::now());
        let sql = "SELECT toUInt64(toUnixTimestamp64Milli(now64(3)))";
        let server_ms = i64::try_from(client.server_query(sql).scalar_u64().await?).unwrap_or(i64::MAX);
        let round_trip_ms = u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX);
        if best.is_none_or(|(_, least_ms)| round_trip_ms < least_ms) {
            let half_ms = i64::try_from(round_trip_ms / 2).unwrap_or(i64::MAX);
            best = Some((server_ms.saturating_sub(sent_ms.saturating_add(half_ms)), round_trip_ms));
        }
    }
    Ok(best.unwrap_or_default())
}
