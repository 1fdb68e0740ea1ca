//! Compares the tables in the database with those that this binary writes and reads.
//!
//! Must never change anything. Additional columns are the operator's own and are no mismatch.

use clickhouse::Row;
use serde::Deserialize;

use super::{Form, Schema, SchemaProblem};
use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use tallyhouse_core::source::Table;
use tallyhouse_core::tables::{self, DEDUPLICATION_WINDOW, Definition, RECIPIENT_KEY_NAME, RECIPIENTS_NAME};

/// Objects that the service neither writes nor reads: the views for people and the notes of `tallyhouse erase`. `tallyhouse
/// report` reads one of the views.
const VIEWS: [&str; 7] = [
    "campaign_daily",
    "campaign_report",
    "workspace_daily",
    "campaign_recipients",
    "campaign_recipients_daily",
    "campaign_timeline",
    "erasures",
];

/// A row of `system.tables`.
#[derive(Row, Deserialize)]
struct FoundTable {
    name: String,
    engine: String,
    engine_full: String,
    partition_key: String,
    sorting_key: String,
}

/// A row of `system.columns`.
#[derive(Row, Deserialize)]
struct FoundColumn {
    table: String,
    name: String,
    r#type: String,
}

pub(super) async fn database_exists(client: &Client) -> Result<bool, ClickHouseError> {
    let count = client
        .server_query("SELECT count() FROM system.databases WHERE name = ?")
        .bind(client.database())
        .scalar_u64()
        .await?;
    Ok(count > 0)
}

/// Returns the names of expected tables that do not exist.
pub(super) async fn missing_tables(client: &Client, schema: &Schema) -> Result<Vec<String>, ClickHouseError> {
    let found = found_tables(client).await?;
    let mut wanted = vec!["schema_migrations".to_owned()];
    for name in tables::NAMES.into_iter().chain([RECIPIENT_KEY_NAME]) {
        wanted.push(name.to_owned());
        wanted.push(schema.insert_target(name));
    }
    wanted.dedup();
    wanted.retain(|name| !found.iter().any(|table| &table.name == name));
    Ok(wanted)
}

/// Returns the names of expected views that do not exist.
pub(super) async fn missing_views(client: &Client) -> Result<Vec<String>, ClickHouseError> {
    let found = found_tables(client).await?;
    let is_missing = |name: &&str| !found.iter().any(|table| table.name == *name);
    Ok(VIEWS.iter().copied().filter(is_missing).map(str::to_owned).collect())
}

/// Compares the tables that INSERTs go to.
pub(super) async fn tables_fit(client: &Client, schema: &Schema) -> Result<(), SchemaProblem> {
    let found = found_tables(client).await?;
    let columns: Vec<FoundColumn> = client
        .query("SELECT table, name, type FROM system.columns WHERE database = ?")
        .bind(client.database())
        .rows()
        .await?;
    let definitions = Table::ALL.map(|table| (table.name(), table.definition()));
    for (name, expected) in definitions.into_iter().chain([(RECIPIENTS_NAME, tables::RECIPIENTS)]) {
        let name = schema.insert_target(name);
        let mut differences = Vec::new();
        if let Some(found) = found.iter().find(|table| table.name == name) {
            differences.extend(engine_differences(&expected, found, &schema.form));
        }
        differences.extend(column_differences(&expected, &name, &columns));
        if !differences.is_empty() {
            let table = format!("{}.{name}", client.database());
            return Err(SchemaProblem::Mismatch { table, differences });
        }
    }
    Ok(())
}

async fn found_tables(client: &Client) -> Result<Vec<FoundTable>, ClickHouseError> {
    client
        .server_query(
            "SELECT name, engine, engine_full, partition_key, sorting_key FROM system.tables WHERE database = ?",
        )
        .bind(client.database())
        .rows()
        .await
}

fn engine_differences(expected: &Definition, found: &FoundTable, form: &Form) -> Vec<String> {
    let prefix = match form {
        Form::Single => "",
        Form::Cluster(_) | Form::ReplicatedDatabase => "Replicated",
        Form::Shared => "Shared",
    };
    let mut differences = Vec::new();
    let mut compare = |what: &str, found: &str, expected: &str| {
        if found != expected {
            differences.push(format!("{what} is {found:?} instead of {expected:?}"));
        }
    };
    compare("ENGINE", &found.engine, &format!("{prefix}{}", expected.engine));
    compare("PARTITION BY", &found.partition_key, expected.partition_key);
    compare("ORDER BY", &found.sorting_key, expected.sorting_key);
    if has_column_list(&found.engine_full) {
        differences.push("ENGINE has a list of columns, which keeps max from merging end_offset".to_owned());
    }
    if expected.has_tokens {
        differences.extend(window_difference(&found.engine_full, *form != Form::Single));
    }
    differences
}

fn column_differences(expected: &Definition, table: &str, found: &[FoundColumn]) -> Vec<String> {
    let of_table = |name: &str| found.iter().find(|column| column.table == table && column.name == name);
    let difference = |(name, expected): (&str, &str)| match of_table(name) {
        None => Some(format!("column {name} is missing")),
        Some(column) if !type_fits(&column.r#type, expected) => {
            let found = &column.r#type;
            Some(format!("column {name} is {found} instead of {expected}"))
        }
        Some(_) => None,
    };
    let inserted = expected.columns.iter().map(|column| (column.name, column.table_type));
    inserted.chain(expected.computed).filter_map(difference).collect()
}

/// True if a column has the expected type. An enumeration may have more words, which a later migration adds.
fn type_fits(found: &str, expected: &str) -> bool {
    let words = |text: &str| text.strip_prefix("Enum8(").and_then(|rest| rest.strip_suffix(')')).map(str::to_owned);
    match (words(found), words(expected)) {
        (Some(found), Some(expected)) => {
            let found: Vec<&str> = found.split(", ").collect();
            expected.split(", ").all(|word| found.contains(&word))
        }
        _ => found == expected,
    }
}

/// True if a SummingMergeTree names the columns to sum: `SummingMergeTree(total)`, or a third argument of the replicated engine.
/// The first two of the replicated and of the shared engine are quoted.
fn has_column_list(engine_full: &str) -> bool {
    let head = engine_full.split(" PARTITION BY").next().unwrap_or_default();
    head.contains("SummingMergeTree(") && !head.ends_with("')")
}

/// The window is off by default if tables are not replicated. Replicated tables have a default of their own.
fn window_difference(engine_full: &str, replicated: bool) -> Option<String> {
    let name = if replicated { "replicated_deduplication_window" } else { "non_replicated_deduplication_window" };
    let value = engine_full
        .split_once(&format!(" {name} = "))
        .and_then(|(_, rest)| rest.split(',').next()?.trim().parse::<u64>().ok());
    let enough = value.map_or(replicated, |value| value >= DEDUPLICATION_WINDOW);
    (!enough).then(|| {
        let found = value.map_or("not set".to_owned(), |value| value.to_string());
        format!("{name} is {found}; set it with ALTER TABLE … MODIFY SETTING {name} = {DEDUPLICATION_WINDOW}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tallyhouse_core::tables::EVENT_TYPE;

    #[test]
    fn a_list_of_columns_is_told_from_the_arguments_of_a_replica() {
        for list in [
            "SummingMergeTree(total) PARTITION BY toYYYYMM(day)",
            "ReplicatedSummingMergeTree('/t/total', '{replica}', (total)) PARTITION BY toYYYYMM(day)",
        ] {
            assert!(has_column_list(list), "{list}");
        }
        for none in [
            "SummingMergeTree PARTITION BY toYYYYMM(day)",
            "ReplicatedSummingMergeTree('/t/total', '{replica}') PARTITION BY toYYYYMM(day)",
            "ReplicatedSummingMergeTree PARTITION BY toYYYYMM(day)",
            "SharedSummingMergeTree('/t/total', '{replica}') PARTITION BY toYYYYMM(day)",
        ] {
            assert!(!has_column_list(none), "{none}");
        }
    }

    #[test]
    fn an_enumeration_may_have_more_words() {
        let more = EVENT_TYPE.replace(')', ", 'read' = 9)");
        assert!(type_fits(EVENT_TYPE, EVENT_TYPE) && type_fits(&more, EVENT_TYPE) && type_fits("UUID", "UUID"));
        let fewer = EVENT_TYPE.replace(", 'deferred' = 8", "");
        let other = EVENT_TYPE.replace("'open' = 2", "'open' = 9");
        assert!(!type_fits(&fewer, EVENT_TYPE) && !type_fits(&other, EVENT_TYPE) && !type_fits("String", EVENT_TYPE));
    }

    #[test]
    fn a_window_that_is_off_or_small_is_a_difference() {
        let single = |value: &str| {
            window_difference(&format!("MergeTree ORDER BY x SETTINGS {value}index_granularity = 8192"), false)
        };
        assert_eq!(single("non_replicated_deduplication_window = 10000, "), None);
        assert!(single("non_replicated_deduplication_window = 100, ").is_some());
        assert!(single("").is_some());
        assert_eq!(window_difference("ReplicatedMergeTree ORDER BY x", true), None);
    }
}
