//! The forms in which ClickHouse keeps the tables, found out from the server.
//!
//! The database decides before there are tables: the servers of a Replicated database and of ClickHouse Cloud carry DDL out
//! everywhere by themselves. A cluster with ON CLUSTER cannot be distinguished from one server without its tables, so `migrate --cluster`
//! names it.

use std::fmt;

use clickhouse::Row;
use serde::Deserialize;

use super::{Schema, SchemaProblem};
use crate::clickhouse::client::{Client, identifier};
use crate::clickhouse::error::ClickHouseError;

/// A form of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// MergeTree tables on one server.
    Single,
    /// Replicated tables on every server of a cluster of this name, and Distributed tables to read them.
    Cluster(String),
    /// Replicated tables without arguments, in a database with the engine Replicated.
    ReplicatedDatabase,
    /// Shared tables of ClickHouse Cloud.
    Shared,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Form::Single => f.write_str("tables on one server"),
            Form::Cluster(name) => write!(f, "replicated tables on the cluster {name}"),
            Form::ReplicatedDatabase => f.write_str("replicated tables in a Replicated database"),
            Form::Shared => f.write_str("shared tables of ClickHouse Cloud"),
        }
    }
}

/// The engines by which the form is known. Each is empty if the database or the table does not exist.
#[derive(Debug, Default, PartialEq, Eq, Row, Deserialize)]
struct Engines {
    of_database: String,
    of_table: String,
    of_table_full: String,
}

impl Form {
    /// Returns the name of the cluster in `system.clusters` that has all replicas of the tables. A Replicated database is its own
    /// cluster.
    pub fn cluster<'a>(&'a self, database: &'a str) -> Option<&'a str> {
        match self {
            Form::Cluster(name) => Some(name),
            Form::ReplicatedDatabase => Some(database),
            Form::Single | Form::Shared => None,
        }
    }

    /// Returns the form of the tables in the database, or the form that `migrate` gives them there.
    ///
    /// # Errors
    /// Any of [`ClickHouseError`].
    pub async fn found(client: &Client) -> Result<Form, ClickHouseError> {
        let sql = "SELECT ifNull((SELECT any(engine) FROM system.databases WHERE name = ?), '') AS of_database, \
                   any(engine) AS of_table, any(engine_full) AS of_table_full \
                   FROM system.tables WHERE database = ? AND name = 'email_events'";
        let question = client.server_query(sql).bind(client.database()).bind(client.database());
        Ok(of(&question.rows::<Engines>().await?.into_iter().next().unwrap_or_default()))
    }
}

fn of(engines: &Engines) -> Form {
    let cluster = || {
        let name = engines.of_table_full.strip_prefix("Distributed(")?.split(',').next()?.trim_matches(['\'', '`']);
        // Another name could not have come from `migrate --cluster`, and must not reach a statement.
        identifier("clickhouse.cluster", name).ok().map(str::to_owned)
    };
    match (engines.of_database.as_str(), engines.of_table.as_str()) {
        (_, "Distributed") => cluster().map_or(Form::Single, Form::Cluster),
        (_, table) if table.starts_with("Shared") => Form::Shared,
        ("Shared", "") => Form::Shared,
        ("Replicated", _) => Form::ReplicatedDatabase,
        _ => Form::Single,
    }
}

/// Returns the text of a file of the form for one server in the form of this database. Only engines and the names of their
/// settings differ.
pub(super) fn replicated(sql: &str) -> String {
    sql.replace("ENGINE = MergeTree", "ENGINE = ReplicatedMergeTree")
        .replace("ENGINE = AggregatingMergeTree", "ENGINE = ReplicatedAggregatingMergeTree")
        .replace("ENGINE = SummingMergeTree", "ENGINE = ReplicatedSummingMergeTree")
        .replace(
            "non_replicated_deduplication_window = 10000",
            "replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800",
        )
}

impl Schema {
    /// Returns the schema in the form of the tables in the database, with a client for it.
    ///
    /// # Errors
    /// [`SchemaProblem::Unsupported`] for a form whose batches this binary cannot read or write, or any [`ClickHouseError`].
    pub async fn found(client: &Client) -> Result<(Client, Schema), SchemaProblem> {
        let form = Form::found(client).await?;
        let Some(cluster) = form.cluster(client.database()) else {
            return Ok((client.for_form(&form), Schema { form }));
        };
        let sql = "SELECT toUInt64(uniqExact(shard_num)) FROM system.clusters WHERE cluster = ?";
        match client.server_query(sql).bind(cluster).scalar_u64().await? {
            1 => Ok((client.for_form(&form), Schema { form })),
            // The server reads the replicas of such a database from Keeper.
            0 if form == Form::ReplicatedDatabase => Err(ClickHouseError::NoKeeper {
                url: client.url().to_owned(),
                code: 999,
                name: "KEEPER_EXCEPTION".to_owned(),
                message: format!("system.clusters does not have the replicas of the database {cluster}"),
            }
            .into()),
            shards => {
                let found = format!("{form} of {shards} shards");
                Err(SchemaProblem::Unsupported { database: client.database().to_owned(), found })
            }
        }
    }

    /// Returns the schema in a form. The name of a cluster is checked by [`Schema::cluster`].
    ///
    /// # Errors
    /// As [`Schema::cluster`].
    pub fn of(form: &Form) -> Result<Schema, ClickHouseError> {
        match form {
            Form::Cluster(name) => Schema::cluster(name),
            form => Ok(Schema { form: form.clone() }),
        }
    }

    /// Returns the form of the tables.
    pub fn form(&self) -> &Form {
        &self.form
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_found_from_the_engines() {
        let form = |database: &str, table: &str, table_full: &str| {
            let [of_database, of_table, of_table_full] = [database, table, table_full].map(str::to_owned);
            of(&Engines { of_database, of_table, of_table_full })
        };
        assert_eq!(form("", "", ""), Form::Single);
        assert_eq!(form("Atomic", "MergeTree", "MergeTree ORDER BY x"), Form::Single);
        for name in ["main", "'main'", "`main`"] {
            let distributed = format!("Distributed({name}, campaigns, email_events_local)");
            assert_eq!(form("Atomic", "Distributed", &distributed), Form::Cluster("main".into()));
        }
        assert_eq!(form("Atomic", "Distributed", "Distributed('a; b', 'c', 'd')"), Form::Single);
        assert_eq!(form("Replicated", "", ""), Form::ReplicatedDatabase);
        assert_eq!(
            form("Replicated", "ReplicatedMergeTree", "ReplicatedMergeTree ORDER BY x"),
            Form::ReplicatedDatabase
        );
        assert_eq!(form("Shared", "", ""), Form::Shared);
        assert_eq!(form("Replicated", "SharedMergeTree", "SharedMergeTree ORDER BY x"), Form::Shared);
    }
}
