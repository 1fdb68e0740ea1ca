//! The tables, as SQL in `sql/` embedded in this binary. This module applies them and checks them.
//!
//! Must never change or drop a table that it did not write itself, and never run a statement that is not idempotent. An
//! interrupted migration is completed by a second run.

mod check;
mod form;

use std::collections::BTreeSet;
use std::fmt;

use clickhouse::Row;
use serde::Deserialize;
use thiserror::Error;

use super::client::{Client, identifier};
use super::error::ClickHouseError;
use super::recipients;
use crate::platform::advice::Advice;
pub use form::Form;

/// A file of `sql/`.
#[derive(Debug, Clone, Copy)]
struct Migration {
    version: u32,
    name: &'static str,
    sql: &'static str,
    /// A binary may run on the schema if it knows the migrations up to this number, or more. That allows the way back after an
    /// upgrade.
    oldest_binary: u32,
}

/// Takes the number, the path below `sql/` with the text of that file, and the oldest binary that may run on it.
macro_rules! migration {
    ($version:literal, $name:literal, $oldest_binary:literal) => {
        Migration {
            version: $version,
            name: $name,
            sql: include_str!(concat!("../../../sql/", $name, ".sql")),
            oldest_binary: $oldest_binary,
        }
    };
}

/// Creates the database and `schema_migrations`. It is not recorded there.
const SINGLE_BOOKKEEPING: Migration = migration!(0, "single/0000_bookkeeping", 0);
const SINGLE: &[Migration] = &[
    migration!(1, "single/0001_tables", 1),
    migration!(2, "single/0002_views", 1),
    migration!(3, "single/0003_erasures", 1),
    migration!(4, "single/0004_marks", 1),
    migration!(5, "single/0005_event_types", 5),
    migration!(6, "single/0006_recipients", 5),
    migration!(7, "single/0007_lifecycle", 5),
];
const CLUSTER_BOOKKEEPING: Migration = migration!(0, "cluster/0000_bookkeeping", 0);
const CLUSTER: &[Migration] = &[
    migration!(1, "cluster/0001_tables", 1),
    migration!(2, "cluster/0002_views", 1),
    migration!(3, "cluster/0003_erasures", 1),
    migration!(4, "cluster/0004_marks", 1),
    migration!(5, "cluster/0005_event_types", 5),
    migration!(6, "cluster/0006_recipients", 5),
    migration!(7, "cluster/0007_lifecycle", 5),
];

/// The schema in one of its forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    form: Form,
}

/// The result of [`Schema::migrate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Files applied now, in order.
    pub applied: Vec<&'static str>,
    /// Files that had been applied before.
    pub already_applied: Vec<&'static str>,
}

/// Reasons why the schema in the database cannot be used. The text ends with the command to run.
///
/// `found` is the newest version recorded in `schema_migrations`. A version is the number of a file in `sql/`. A binary knows the
/// versions whose files it carries.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", self.advice())]
#[expect(missing_docs, reason = "the fields are described above, once for all variants")]
pub enum SchemaProblem {
    /// The question could not be asked.
    ClickHouse(#[from] ClickHouseError),
    /// The database does not exist.
    NoDatabase { database: String },
    /// The tables have another form than this command works with.
    Form { database: String, found: Form, wanted: Form },
    /// No command that reads or writes batches works with tables of this form.
    Unsupported { database: String, found: String },
    /// Tables do not exist.
    NoTables { database: String, tables: Vec<String> },
    /// The newest applied migration is older than this binary's.
    Older { found: u32, needed: u32 },
    /// A newer binary has migrated the database, to a schema on which this one must not run.
    Newer { found: u32, oldest: u32, known: u32 },
    /// A file differs from the file that was applied under its number.
    Changed { version: u32, applied: String, embedded: String },
    /// The key of the hashes of recipients is missing, or there are several.
    RecipientKey { database: String, keys: u64 },
    /// A table is not the one that this binary writes to.
    Mismatch { table: String, differences: Vec<String> },
}

impl SchemaProblem {
    /// Returns the problem and the command to run.
    pub fn advice(&self) -> Advice {
        match self {
            Self::ClickHouse(error) => error.advice(),
            Self::Form { database, found, wanted } => Advice::new(
                format!("the database {database} has {found}, but this command works with {wanted} only"),
                "Set clickhouse.database to another one and run: tallyhouse migrate",
            ),
            Self::Unsupported { database, found } => Advice::new(
                format!("the database {database} has {found}, but this binary works with tables of one shard only"),
                "Set clickhouse.database to another one and run: tallyhouse migrate",
            ),
            Self::NoDatabase { database } => {
                Advice::new(format!("the database {database} does not exist"), "Run: tallyhouse migrate")
            }
            Self::NoTables { database, tables } => {
                Advice::new(format!("the database {database} lacks {}", tables.join(", ")), "Run: tallyhouse migrate")
            }
            Self::Older { found, needed } => Advice::new(
                format!("the schema is at version {found}, this binary needs {needed}"),
                "Run: tallyhouse migrate",
            ),
            Self::Newer { found, oldest, known } => Advice::new(
                format!(
                    "the schema is at version {found}, on which only binaries run that know version {oldest}; this one knows {known}"
                ),
                "Upgrade this binary",
            ),
            Self::Changed { version, applied, embedded } => Advice::new(
                format!(
                    "migration {version} was applied as {applied}, but this binary has {embedded}. Released files never change, so this \
                     binary, or its choice of single server or cluster, does not belong to this database"
                ),
                "Compare with: tallyhouse migrate --dry-run",
            ),
            Self::RecipientKey { database, keys: 0 } => Advice::new(
                format!("{database}.recipient_key is empty, so recipients cannot be hashed"),
                "Run: tallyhouse migrate",
            ),
            Self::RecipientKey { database, keys } => Advice::new(
                format!(
                    "{database}.recipient_key has {keys} rows instead of one, so hashes of recipients would differ"
                ),
                "Remove all but the key with which recipients was written, or set clickhouse.recipients = false",
            ),
            Self::Mismatch { table, differences } => Advice::new(
                format!("the table {table} does not fit: {}", differences.join("; ")),
                "Make it so, or rename it and run: tallyhouse migrate",
            ),
        }
    }
}

/// A row of `schema_migrations`.
#[derive(Row, Deserialize)]
struct Applied {
    version: u32,
    name: String,
    checksum: String,
}

impl Schema {
    /// Returns the schema with MergeTree tables on one server.
    pub fn single() -> Self {
        Self { form: Form::Single }
    }

    /// Returns the schema with replicated tables written on one shard, and Distributed tables to read them. They are on the
    /// servers of the cluster `name`, as in `system.clusters`.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] if `name` is not an [`identifier`].
    pub fn cluster(name: &str) -> Result<Self, ClickHouseError> {
        let name = identifier("clickhouse.cluster", name)?.to_owned();
        Ok(Self { form: Form::Cluster(name) })
    }

    /// Returns the table that INSERTs go to. On a cluster, rows are written to the local table of a shard.
    pub fn insert_target(&self, table: &str) -> String {
        match self.form {
            Form::Cluster(_) => format!("{table}_local"),
            Form::Single | Form::ReplicatedDatabase | Form::Shared => table.to_owned(),
        }
    }

    /// Returns the target of an ALTER of a table of the schema: the table that has the rows, on every server.
    pub fn alter_target(&self, database: &str, table: &str) -> String {
        format!("{database}.{}{}", self.insert_target(table), self.on_cluster())
    }

    /// Returns the words behind a table's name that make DDL run on every server, where servers do not do so by themselves.
    pub fn on_cluster(&self) -> String {
        match &self.form {
            Form::Cluster(cluster) => format!(" ON CLUSTER `{cluster}`"),
            Form::Single | Form::ReplicatedDatabase | Form::Shared => String::new(),
        }
    }

    /// Returns all SQL that [`Self::migrate`] would run in an empty server, for people to read and review.
    ///
    /// # Errors
    /// [`ClickHouseError::Config`] if `database` is not an [`identifier`].
    pub fn plan(&self, database: &str) -> Result<String, ClickHouseError> {
        let database = identifier("clickhouse.database", database)?;
        let files = [self.bookkeeping()].into_iter().chain(self.migrations());
        let plan: Vec<_> =
            files.map(|file| format!("-- sql/{}.sql\n{}", file.name, self.fill(file, database))).collect();
        Ok(plan.join("\n"))
    }

    /// Creates the database and migrates its tables to this binary's version. A second run, or two at once, are harmless. If a
    /// table or view is missing, it runs all files again.
    ///
    /// On the database, the user needs the grants CREATE DATABASE, CREATE TABLE, CREATE VIEW, DROP VIEW, SELECT and INSERT. It also needs
    /// ALTER INDEX, ALTER ADD COLUMN, ALTER MODIFY COLUMN and ALTER COMMENT COLUMN. On a cluster, it needs CLUSTER as well.
    ///
    /// # Errors
    /// [`SchemaProblem::Newer`] and [`SchemaProblem::Changed`], before any table is touched;
    /// [`SchemaProblem::ClickHouse`] if a statement fails: then run it again.
    pub async fn migrate(&self, client: &Client) -> Result<Report, SchemaProblem> {
        self.run(client, self.bookkeeping()).await?;
        let applied = self.applied(client).await?;
        let repair =
            !check::missing_tables(client, self).await?.is_empty() || !check::missing_views(client).await?.is_empty();
        let mut report = Report { applied: Vec::new(), already_applied: Vec::new() };
        for migration in self.migrations() {
            let recorded = applied.contains(&migration.version);
            if recorded && !repair {
                report.already_applied.push(migration.name);
                continue;
            }
            self.run(client, migration).await?;
            if !recorded {
                self.record(client, migration).await?;
            }
            report.applied.push(migration.name);
        }
        recipients::make_key(client, self).await?;
        Ok(report)
    }

    /// Returns the names of missing objects that only people read: the views and `erasures`. Those that the user has no right to
    /// see are included.
    ///
    /// # Errors
    /// Returns any [`ClickHouseError`].
    pub async fn missing_views(&self, client: &Client) -> Result<Vec<String>, ClickHouseError> {
        check::missing_views(client).await
    }

    /// Checks that this binary can write to the tables in the database. It leaves views out: the service does not read them, and
    /// its user may not even see them.
    ///
    /// # Errors
    /// Returns the first [`SchemaProblem`] found.
    pub async fn check(&self, client: &Client) -> Result<(), SchemaProblem> {
        let database = client.database();
        if !check::database_exists(client).await? {
            let database = database.to_owned();
            return Err(SchemaProblem::NoDatabase { database });
        }
        let found = Form::found(client).await?;
        if found != self.form {
            let (database, wanted) = (database.to_owned(), self.form.clone());
            return Err(SchemaProblem::Form { database, found, wanted });
        }
        let tables = check::missing_tables(client, self).await?;
        if !tables.is_empty() {
            let database = database.to_owned();
            return Err(SchemaProblem::NoTables { database, tables });
        }
        let found = self.applied(client).await?.last().copied().unwrap_or(0);
        let needed = self.version();
        if found < needed {
            return Err(SchemaProblem::Older { found, needed });
        }
        check::tables_fit(client, self).await
    }

    /// Returns the recorded versions. This binary's are unchanged, and newer ones allow it to run.
    async fn applied(&self, client: &Client) -> Result<BTreeSet<u32>, SchemaProblem> {
        let rows: Vec<Applied> =
            client.query("SELECT DISTINCT version, name, checksum FROM schema_migrations").rows().await?;
        let mut found = None;
        for row in &rows {
            let Some(embedded) = self.migrations().find(|file| file.version == row.version) else {
                found = found.max(Some(row.version));
                continue;
            };
            if (row.name.as_str(), &row.checksum) != (embedded.name, &embedded.checksum()) {
                return Err(SchemaProblem::Changed {
                    version: row.version,
                    applied: format!("{} ({})", row.name, row.checksum),
                    embedded: format!("{} ({})", embedded.name, embedded.checksum()),
                });
            }
        }
        if let Some(found) = found {
            self.may_run_on(client, found).await?;
        }
        Ok(rows.into_iter().map(|row| row.version).collect())
    }

    /// Checks that this binary may run on a schema that a newer one has made. If a table lacks the column, the binary that
    /// migrated it knew no such rule.
    async fn may_run_on(&self, client: &Client, found: u32) -> Result<(), SchemaProblem> {
        let known = self.version();
        let has_column = "SELECT count() FROM system.columns \
                          WHERE database = ? AND table = 'schema_migrations' AND name = 'oldest_binary'";
        let oldest = match client.query(has_column).bind(client.database()).scalar_u64().await? {
            0 => found,
            _ => {
                let sql = "SELECT toUInt64(max(oldest_binary)) FROM schema_migrations";
                u32::try_from(client.query(sql).scalar_u64().await?).unwrap_or(found)
            }
        };
        if oldest > known {
            return Err(SchemaProblem::Newer { found, oldest, known });
        }
        tracing::warn!(found, known, "the schema is newer than this binary, and allows it to run");
        Ok(())
    }

    async fn run(&self, client: &Client, file: &Migration) -> Result<(), ClickHouseError> {
        for statement in statements(&self.fill(file, client.database())) {
            client.execute(&statement).await?;
        }
        Ok(())
    }

    /// Notes a migration. It is a statement, because the crate's typed insert would go around this client's time limit and query id.
    async fn record(&self, client: &Client, file: &Migration) -> Result<(), ClickHouseError> {
        let table = self.insert_target("schema_migrations");
        let sql = format!("INSERT INTO {table} (version, name, checksum, oldest_binary) VALUES (?, ?, ?, ?)");
        client
            .query(&sql)
            .bind(file.version)
            .bind(file.name)
            .bind(file.checksum())
            .bind(file.oldest_binary)
            .setting("async_insert", "0")
            .execute()
            .await
    }

    /// Returns the text of a file in this form, with its placeholders filled in. Both values are identifiers.
    fn fill(&self, file: &Migration, database: &str) -> String {
        let sql = file.sql.replace("{database}", database);
        match &self.form {
            Form::Cluster(cluster) => sql.replace("{cluster}", cluster),
            Form::ReplicatedDatabase | Form::Shared => form::replicated(&sql),
            Form::Single => sql,
        }
    }

    fn bookkeeping(&self) -> &'static Migration {
        match self.form {
            Form::Cluster(_) => &CLUSTER_BOOKKEEPING,
            Form::Single | Form::ReplicatedDatabase | Form::Shared => &SINGLE_BOOKKEEPING,
        }
    }

    fn migrations(&self) -> std::slice::Iter<'static, Migration> {
        match self.form {
            Form::Cluster(_) => CLUSTER.iter(),
            Form::Single | Form::ReplicatedDatabase | Form::Shared => SINGLE.iter(),
        }
    }

    fn version(&self) -> u32 {
        self.migrations().map(|file| file.version).max().unwrap_or(0)
    }
}

impl Migration {
    /// Returns the FNV-1a hash, 64 bits, of the file as embedded. It detects an edited file and is no protection against malice.
    fn checksum(&self) -> String {
        let hash = self
            .sql
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        format!("{hash:016x}")
    }
}

/// Returns the statements of a file. Each ends with `;` at the end of a line. Lines that start with `--` are left out.
fn statements(sql: &str) -> Vec<String> {
    let code: Vec<_> = sql.lines().filter(|line| !line.starts_with("--")).collect();
    code.join("\n")
        .split(";\n")
        .map(|statement| statement.trim().trim_end_matches(';').to_owned())
        .filter(|statement| !statement.is_empty())
        .collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.already_applied {
            writeln!(f, "already there  {name}")?;
        }
        for name in &self.applied {
            writeln!(f, "applied        {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use tallyhouse_core::source::Table;
    use tallyhouse_core::tables::{DEDUPLICATION_WINDOW, RECIPIENTS, RECIPIENTS_NAME};

    #[test]
    fn the_plan_is_the_sql_of_each_form() {
        insta::assert_snapshot!("single", Schema::single().plan("campaigns").unwrap());
        let cluster = Schema::cluster("main").unwrap();
        insta::assert_snapshot!("cluster", cluster.plan("campaigns").unwrap());
    }

    /// A table that `sql/` makes: its columns with their types, and the clauses that follow them.
    #[derive(Clone, Debug, Default)]
    struct Made {
        columns: Vec<(String, String)>,
        clauses: Vec<String>,
    }

    impl Made {
        /// Takes `name type [DEFAULT … | ALIAS …] COMMENT …`.
        fn add_column(&mut self, text: &str) {
            let (name, rest) = text.trim().split_once(' ').unwrap();
            let end = [" DEFAULT ", " ALIAS ", " COMMENT "].iter().filter_map(|word| rest.find(word)).min().unwrap();
            self.columns.push((name.to_owned(), rest[..end].to_owned()));
        }

        fn clause(&self, begin: &str) -> &str {
            self.clauses.iter().find_map(|line| line.strip_prefix(begin)).unwrap_or_default()
        }
    }

    /// Returns the tables as all files of `sql/` leave them, by name.
    fn made(schema: &Schema) -> BTreeMap<String, Made> {
        let mut tables: BTreeMap<String, Made> = BTreeMap::new();
        for statement in statements(&schema.plan("campaigns").unwrap()) {
            let statement = statement.replace(" ON CLUSTER `main`", "");
            if let Some(create) = statement.strip_prefix("CREATE TABLE IF NOT EXISTS campaigns.") {
                let (name, text) = create.split_once('\n').unwrap();
                let mut table = match text.strip_prefix("AS campaigns.") {
                    Some(original) => Made { clauses: Vec::new(), ..tables[original.lines().next().unwrap()].clone() },
                    None => Made::default(),
                };
                let columns = text.lines().filter(|line| line.starts_with("    ") && !line.starts_with("    INDEX "));
                columns.for_each(|line| table.add_column(line));
                table.clauses = text.lines().filter(|line| !line.starts_with(' ')).map(str::to_owned).collect();
                tables.insert(name.to_owned(), table);
            } else if let Some(alter) = statement.strip_prefix("ALTER TABLE campaigns.") {
                let (name, change) = alter.split_once(' ').unwrap();
                if let Some(column) = change.strip_prefix("MODIFY COLUMN ") {
                    let mut modified = Made::default();
                    modified.add_column(&column.split_whitespace().collect::<Vec<_>>().join(" "));
                    let (column, data_type) = modified.columns.remove(0);
                    let table = tables.get_mut(name).unwrap();
                    table.columns.iter_mut().find(|(known, _)| *known == column).unwrap().1 = data_type;
                    continue;
                }
                match change.strip_prefix("ADD COLUMN IF NOT EXISTS ") {
                    Some(column) => {
                        let table = tables.get_mut(name).unwrap();
                        if !table.columns.iter().any(|(known, _)| column.starts_with(&format!("{known} "))) {
                            table.add_column(column);
                        }
                    }
                    // This test has to learn any other change of a table.
                    None => assert!(change.contains(" INDEX "), "{statement}"),
                }
            }
        }
        tables
    }

    #[test]
    fn the_sql_makes_the_tables_of_the_core() {
        for schema in [Schema::single(), Schema::cluster("main").unwrap()] {
            let replicated = schema.form != Form::Single;
            let made = made(&schema);
            let tables = Table::ALL.map(|table| (table.name(), table.definition()));
            for (name, definition) in tables.into_iter().chain([(RECIPIENTS_NAME, RECIPIENTS)]) {
                let inserted = definition.columns.iter().map(|column| (column.name, column.table_type));
                let expected: Vec<(&str, &str)> = inserted.chain(definition.computed).collect();
                for name in [name.to_owned(), schema.insert_target(name)] {
                    let found: Vec<(&str, &str)> = made[&name]
                        .columns
                        .iter()
                        .map(|(name, data_type)| (name.as_str(), data_type.as_str()))
                        .collect();
                    assert_eq!(found, expected, "{name}");
                }
                let found = &made[&schema.insert_target(name)];
                let (engine, window) = match replicated {
                    true => (format!("Replicated{}(", definition.engine), "replicated_deduplication_window"),
                    false => (definition.engine.to_owned(), "non_replicated_deduplication_window"),
                };
                assert!(found.clause("ENGINE = ").starts_with(&engine), "{found:?}");
                assert_eq!(found.clause("PARTITION BY "), definition.partition_key);
                assert_eq!(found.clause("ORDER BY "), format!("({})", definition.sorting_key));
                let window = format!("{window} = {DEDUPLICATION_WINDOW}");
                let has_window = found.clause("SETTINGS ").split(", ").any(|setting| setting == window);
                assert_eq!(has_window, definition.has_tokens, "{found:?}");
            }
        }
    }

    /// The forms without ON CLUSTER differ from the one for one server in engines and windows alone.
    #[test]
    fn a_replicated_database_has_the_same_tables() {
        let plan = |form: Form| Schema { form }.plan("campaigns").unwrap();
        let (single, replicated) = (plan(Form::Single), plan(Form::ReplicatedDatabase));
        assert_eq!(plan(Form::Shared), replicated);
        let changed: Vec<(&str, &str)> = single.lines().zip(replicated.lines()).filter(|(a, b)| a != b).collect();
        let engines = changed.iter().filter(|(line, _)| line.starts_with("ENGINE = "));
        assert!(engines.clone().all(|(a, b)| *b == a.replace("ENGINE = ", "ENGINE = Replicated")));
        assert_eq!(engines.count(), single.matches("\nENGINE = ").count());
        let window =
            "SETTINGS replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800";
        let windows = changed.iter().filter(|(line, _)| !line.starts_with("ENGINE = "));
        assert!(windows.clone().all(|(_, b)| *b == window) && windows.count() == 5);
        assert_eq!(single.lines().count(), replicated.lines().count());
    }

    #[test]
    fn names_that_are_not_identifiers_never_reach_sql() {
        for name in ["", "a-b", "a`b", "a b", "1a", "a;DROP TABLE b", "ä"] {
            assert!(Schema::single().plan(name).is_err(), "{name}");
            assert!(Schema::cluster(name).is_err(), "{name}");
        }
    }

    #[test]
    fn every_statement_is_idempotent_and_complete() {
        for schema in [Schema::single(), Schema::cluster("main").unwrap()] {
            for statement in statements(&schema.plan("campaigns").unwrap()) {
                let idempotent = [
                    " IF NOT EXISTS campaigns",
                    " ADD COLUMN IF NOT EXISTS ",
                    " ADD INDEX IF NOT EXISTS ",
                    " MATERIALIZE INDEX ",
                    " MODIFY COLUMN ",
                    "CREATE OR REPLACE VIEW ",
                ];
                assert!(idempotent.iter().any(|words| statement.contains(words)), "{statement}");
                assert!(!statement.contains("{database}"), "{statement}");
                assert!(!statement.contains("{cluster}"), "{statement}");
                let on_cluster = statement.contains(" ON CLUSTER `main`");
                assert_eq!(on_cluster, matches!(schema.form, Form::Cluster(_)), "{statement}");
            }
        }
    }

    #[test]
    fn statements_end_at_a_semicolon_that_ends_a_line() {
        let sql = "-- a; comment\nSELECT 'a;b';\n\n-- more\nSELECT\n  2;\n";
        assert_eq!(statements(sql), ["SELECT 'a;b'", "SELECT\n  2"]);
    }

    #[test]
    fn versions_count_up_without_gaps() {
        for migrations in [SINGLE, CLUSTER] {
            let versions: Vec<_> = migrations.iter().map(|file| file.version).collect();
            assert_eq!(versions, (1..=migrations.len() as u32).collect::<Vec<_>>());
            assert!(migrations.iter().all(|file| file.name.contains(&format!("/{:04}_", file.version))));
            assert!(migrations.iter().all(|file| (1..=file.version).contains(&file.oldest_binary)));
        }
    }
}
