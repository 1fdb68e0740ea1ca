//! Tests the schema on a real ClickHouse. Each function needs a database of its own that does not exist yet.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use crate::operate::{NO_HTTP, answering};
use clickhouse::Row;
use serde::Deserialize;
use tallyhouse::clickhouse::client::{ClickHouseOptions, Client, Compression};
use tallyhouse::clickhouse::error::ClickHouseError;
use tallyhouse::clickhouse::schema::{Schema, SchemaProblem};

/// Every migration, in order.
const ALL: [&str; 7] = [
    "single/0001_tables",
    "single/0002_views",
    "single/0003_erasures",
    "single/0004_marks",
    "single/0005_event_types",
    "single/0006_recipients",
    "single/0007_lifecycle",
];

fn options(url: &str, database: &str) -> ClickHouseOptions {
    ClickHouseOptions {
        url: url.to_owned(),
        user: "default".to_owned(),
        password: String::new(),
        database: database.to_owned(),
        ca_file: None,
        identity: None,
        compression: Compression::Lz4,
        query_timeout_ms: 30_000,
        insert_timeout_ms: 30_000,
    }
}

pub fn client(url: &str, database: &str) -> Client {
    Client::new(&options(url, database)).unwrap()
}

pub async fn migrated(url: &str, database: &str) -> Client {
    let client = client(url, database);
    Schema::single().migrate(&client).await.unwrap();
    client
}

async fn run(client: &Client, sql: &str) {
    client.query(sql).execute().await.unwrap();
}

/// The second run applies nothing, records nothing, and the check passes.
pub async fn migrate_is_idempotent(url: &str, database: &str) {
    let client = client(url, database);
    let schema = Schema::single();
    let first = schema.migrate(&client).await.unwrap();
    assert_eq!(first.applied, ALL);
    let second = schema.migrate(&client).await.unwrap();
    assert!(second.applied.is_empty());
    assert_eq!(second.already_applied, first.applied);
    assert_eq!(count(&client, "schema_migrations").await, ALL.len() as u64);
    schema.check(&client).await.unwrap();
}

/// A migration that died after its first table, or lost a table later, is completed by the next run.
pub async fn migrate_completes_what_was_interrupted(url: &str, database: &str) {
    let client = migrated(url, database).await;
    let schema = Schema::single();
    for sabotage in ["TRUNCATE TABLE schema_migrations", "DROP TABLE daily", "DROP TABLE schema_migrations"] {
        run(&client, sabotage).await;
        assert!(schema.check(&client).await.is_err(), "{sabotage}");
        let report = schema.migrate(&client).await.unwrap();
        assert_eq!(report.applied, ALL, "{sabotage}");
        schema.check(&client).await.unwrap();
    }
    // The service goes on without the views that only people read.
    run(&client, "DROP VIEW campaign_report").await;
    schema.check(&client).await.unwrap();
    assert_eq!(schema.missing_views(&client).await.unwrap(), ["campaign_report"]);
    assert_eq!(schema.migrate(&client).await.unwrap().applied, ALL);
    assert!(schema.missing_views(&client).await.unwrap().is_empty());
}

/// A schema of version 4 with rows gets the new types. The published query counts them, and the view has its new columns.
pub async fn types_are_added_to_tables_with_rows(url: &str, database: &str) {
    let (client, schema) = (client(url, database), Schema::single());
    let plan = schema.plan(database).unwrap();
    let before = plan.split("-- sql/single/0005_event_types.sql").next().unwrap();
    let code: Vec<&str> = before.lines().filter(|line| !line.starts_with("--")).collect();
    for statement in code.join("\n").split(";\n").filter(|statement| !statement.trim().is_empty()) {
        client.server_query(statement).execute().await.unwrap();
    }
    let insert = async |event_type: &str, total: u64| {
        let sql = format!(
            "INSERT INTO daily (day, event_type, campaign_id, workspace_id, source, total, end_offset) SETTINGS async_insert = 0 \
             VALUES ('2026-11-24', '{event_type}', toUUID('{0}'), toUUID('{0}'), 't/0@id', {total}, 1)",
            "00000000-0000-0000-0000-000000000001"
        );
        client.query(&sql).execute().await
    };
    insert("open", 5).await.unwrap();
    assert!(insert("complaint", 1).await.is_err());
    assert!(schema.check(&client).await.is_err());
    schema.migrate(&client).await.unwrap();
    schema.check(&client).await.unwrap();
    insert("complaint", 2).await.unwrap();
    run(&client, "OPTIMIZE TABLE daily FINAL").await;
    let levels: Vec<Level> = client
        .query("SELECT level, sum(total) AS total_count FROM daily GROUP BY level ORDER BY level")
        .rows()
        .await
        .unwrap();
    let level = |level: &str, total_count| Level { level: level.to_owned(), total_count };
    assert_eq!(levels, [level("complaint", 2), level("open", 5)]);
    let viewed: Vec<(u64, u64)> = client.query("SELECT opens, complaints FROM campaign_daily").rows().await.unwrap();
    assert_eq!(viewed, [(5, 2)]);
}

/// Eight run at once: all succeed, and the schema is right.
pub async fn migrators_at_once_are_harmless(url: &str, database: &str) {
    let client = client(url, database);
    let schema = Schema::single();
    let all = (0..8).map(|_| schema.migrate(&client));
    for report in futures::future::join_all(all).await {
        report.unwrap();
    }
    schema.check(&client).await.unwrap();
    assert_eq!(count(&client, "recipient_key").await, 1, "each migrator had a key of its own");
}

/// A binary runs on a newer schema that allows it: the way back after an upgrade. It changes nothing on any other.
pub async fn foreign_migrations_are_refused(url: &str, database: &str) {
    let client = migrated(url, database).await;
    let (schema, known) = (Schema::single(), ALL.len() as u32);
    let newer = |oldest| format!("INSERT INTO schema_migrations VALUES (98, 'single/0098', '0', now(), {oldest})");
    run(&client, &newer(known)).await;
    schema.check(&client).await.unwrap();
    assert_eq!(schema.migrate(&client).await.unwrap().applied, Vec::<&str>::new());
    run(&client, &newer(known + 1)).await;
    for result in [schema.migrate(&client).await.err(), schema.check(&client).await.err()] {
        assert_eq!(result, Some(SchemaProblem::Newer { found: 98, oldest: known + 1, known }));
    }
    // A binary without that rule leaves the table so.
    run(&client, "ALTER TABLE schema_migrations DROP COLUMN oldest_binary").await;
    assert_eq!(schema.check(&client).await.err(), Some(SchemaProblem::Newer { found: 98, oldest: 98, known }));
    run(&client, "TRUNCATE TABLE schema_migrations").await;
    run(&client, "INSERT INTO schema_migrations (version, name, checksum) VALUES (1, 'single/0001_tables', '0')").await;
    for result in [schema.migrate(&client).await.err(), schema.check(&client).await.err()] {
        assert!(matches!(result, Some(SchemaProblem::Changed { version: 1, .. })), "{result:?}");
    }
}

/// The check names the missing parts and the command to run.
pub async fn check_names_what_is_missing(url: &str, database: &str) {
    let client = client(url, database);
    let schema = Schema::single();
    let problem = schema.check(&client).await.unwrap_err();
    assert!(matches!(problem, SchemaProblem::NoDatabase { .. }), "{problem}");
    assert!(problem.to_string().ends_with("tallyhouse migrate"), "{problem}");

    schema.migrate(&client).await.unwrap();
    run(&client, "DROP TABLE daily").await;
    let problem = schema.check(&client).await.unwrap_err();
    let text = problem.to_string();
    assert!(text.contains("lacks daily.") && text.ends_with("tallyhouse migrate"), "{text}");
}

/// For tables that somebody else made and that do not fit, the check names each difference.
pub async fn check_names_what_differs(url: &str, database: &str) {
    let client = migrated(url, database).await;
    run(&client, "DROP TABLE daily").await;
    run(
        &client,
        "CREATE TABLE daily (day Date, event_type String, campaign_id UUID, workspace_id UUID, \
         source LowCardinality(String), total UInt64, level String ALIAS toString(event_type)) \
         ENGINE = SummingMergeTree(total) PARTITION BY day ORDER BY (day, campaign_id)",
    )
    .await;
    let text = Schema::single().check(&client).await.unwrap_err().to_string();
    for difference in [
        "PARTITION BY is \"day\"",
        "ORDER BY is \"day, campaign_id\"",
        "list of columns",
        "non_replicated_deduplication_window is not set",
        "column event_type is String",
        "column end_offset is missing",
    ] {
        assert!(text.contains(difference), "{difference} in {text}");
    }
}

#[derive(Row, Deserialize, Debug, PartialEq)]
struct Level {
    level: String,
    total_count: u64,
}

/// Merges add up `total` and keep the greatest `end_offset`; the published query runs verbatim.
pub async fn merges_of_daily_sum_totals_and_keep_the_last_offset(url: &str, database: &str) {
    let client = migrated(url, database).await;
    for (total, end_offset) in [(5, 10), (7, 30), (1, 20)] {
        let sql = format!(
            "INSERT INTO daily (day, event_type, campaign_id, workspace_id, source, total, end_offset) \
             SETTINGS async_insert = 0 VALUES ('2026-11-24', 'open', toUUID('{0}'), toUUID('{0}'), 't/0@id', {total}, {end_offset})",
            "00000000-0000-0000-0000-000000000001"
        );
        run(&client, &sql).await;
    }
    run(&client, "OPTIMIZE TABLE daily FINAL").await;
    assert_eq!(count(&client, "daily").await, 1);
    let sum = client.query("SELECT total FROM daily").scalar_u64().await.unwrap();
    let end = client.query("SELECT end_offset FROM daily").scalar_u64().await.unwrap();
    assert_eq!((sum, end), (13, 30));

    let levels: Vec<Level> =
        client.query("SELECT level, sum(total) AS total_count FROM daily GROUP BY level").rows().await.unwrap();
    let open = Level { level: "open".to_owned(), total_count: 13 };
    assert_eq!(levels, [open]);
}

/// The published query runs verbatim, and every table drops a repeated token.
pub async fn a_repeated_token_is_dropped(url: &str, database: &str) {
    let client = migrated(url, database).await;
    let campaign = "00000000-0000-0000-0000-000000000001";
    for _ in 0..2 {
        let sql = format!(
            "INSERT INTO email_events (campaign_id, workspace_id, email, event_type, event_time, source, source_offset) \
             SETTINGS async_insert = 0, insert_deduplication_token = 'a' \
             VALUES ('{campaign}', '{campaign}', 'a@b.c', 'open', now(), 't/0@id', 1)"
        );
        run(&client, &sql).await;
        let sql = "INSERT INTO rejected_events (source, source_offset, kafka_timestamp, reason, error, key, payload) \
             SETTINGS async_insert = 0, insert_deduplication_token = 'a' VALUES ('t/0@id', 1, now(), 'json', '', '', '')";
        run(&client, sql).await;
    }
    assert_eq!(count(&client, "email_events").await, 1);
    assert_eq!(count(&client, "rejected_events").await, 1);
    let sql = format!(
        "SELECT email, event_time FROM email_events WHERE campaign_id = '{campaign}' AND event_type = 'open' \
         ORDER BY event_time DESC"
    );
    let rows: Vec<(String, u32)> = client.query(&sql).rows().await.unwrap();
    assert_eq!(rows.len(), 1);
}

/// Each kind of failure comes out as its own error, and none prints the password.
pub async fn failures_are_told_apart(url: &str, database: &str) {
    let ask = async |options: &ClickHouseOptions, sql: &str| {
        let client = Client::new(options).unwrap();
        let error = client.query(sql).scalar_u64().await.unwrap_err();
        assert!(!error.to_string().contains("s3cret"), "{error}");
        error
    };
    let good = options(url, database);
    let error = ask(&good, "SELECT toUInt64(1)").await;
    assert!(matches!(error, ClickHouseError::UnknownDatabase { .. }), "{error}");

    let system = ClickHouseOptions { database: "system".to_owned(), ..good };
    let error = ask(&system, "SELECT count() FROM no_such_table").await;
    assert!(matches!(error, ClickHouseError::UnknownTable { .. }), "{error}");
    let error = ask(&system, "SELECT").await;
    assert!(matches!(&error, ClickHouseError::Server { code: 62, name, .. } if name == "SYNTAX_ERROR"), "{error}");
    let error = ask(&system, "SELECT 'a'").await;
    assert!(matches!(error, ClickHouseError::Decode(_)), "{error}");

    let password = "s3cret".to_owned();
    let error = ask(&ClickHouseOptions { password, ..system.clone() }, "SELECT toUInt64(1)").await;
    assert!(matches!(error, ClickHouseError::Unauthorized { .. }), "{error}");

    let nowhere = "http://127.0.0.1:1".to_owned();
    let error = ask(&ClickHouseOptions { url: nowhere, ..system.clone() }, "SELECT toUInt64(1)").await;
    assert!(matches!(error, ClickHouseError::Unreachable { .. }), "{error}");
    // ClickHouse itself is not asked by TLS in plain HTTP: 26.7 ends by an uncaught "Broken pipe" if its client has gone meanwhile.
    let https = format!("https://{}", answering(NO_HTTP));
    let error = ask(&ClickHouseOptions { url: https, ..system.clone() }, "SELECT toUInt64(1)").await;
    assert!(matches!(error, ClickHouseError::Tls { .. }), "{error}");

    let hasty = ClickHouseOptions { query_timeout_ms: 300, ..system };
    let error = ask(&hasty, "SELECT toUInt64(sleep(2))").await;
    assert!(matches!(error, ClickHouseError::Unreachable { .. }), "{error}");
}

async fn count(client: &Client, table: &str) -> u64 {
    let sql = format!("SELECT count() FROM {table}");
    client.query(&sql).scalar_u64().await.unwrap()
}
