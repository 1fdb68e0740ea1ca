//! The tables of batches, the table of recipients, and their columns. `sql/` makes the tables; a test compares both.
//!
//! The blocks of a batch, the column list of its INSERTs and the check of the schema read this definition.

use crate::source::Table;

/// Number of recent inserts that a table must remember by their tokens.
pub const DEDUPLICATION_WINDOW: u64 = 10_000;

/// Types of the column `event_type`.
pub const EVENT_TYPE: &str = "Enum8('delivered' = 1, 'open' = 2, 'click' = 3, 'bounce' = 4, 'unsubscribe' = 5, \
                          'sent' = 6, 'complaint' = 7, 'deferred' = 8)";
/// Types of the column `stage`.
pub const STAGE: &str = "Enum8('audience_ready' = 1, 'template_ready' = 2)";
const LOW_CARDINALITY: &str = "LowCardinality(String)";

/// A column that each insert fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name of the column.
    pub name: &'static str,
    /// Type in the table, as `system.columns` shows it.
    pub table_type: &'static str,
    /// Type in a Native block.
    pub block_type: &'static str,
}

/// The expected form of a table. The texts are those of `system.tables` and `system.columns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Table engine, without the prefix `Replicated`.
    pub engine: &'static str,
    /// Partition key; empty if there is none.
    pub partition_key: &'static str,
    /// Sorting key of the table.
    pub sorting_key: &'static str,
    /// True if the table must remember the tokens of inserts.
    pub has_tokens: bool,
    /// Columns of an insert, in the order of its block.
    pub columns: &'static [Column],
    /// Name and type of the column that ClickHouse fills itself, if there is one.
    pub computed: Option<(&'static str, &'static str)>,
}

/// Columns of an insert into `email_events`.
pub const RAW: [Column; 8] = [
    column("campaign_id", "UUID"),
    column("workspace_id", "UUID"),
    column("email", "String"),
    column("event_type", EVENT_TYPE),
    column("event_time", "DateTime('UTC')"),
    column("metadata", "String"),
    column("source", LOW_CARDINALITY),
    column("source_offset", "UInt64"),
];

/// Columns of an insert into `daily`.
pub const DAILY: [Column; 7] = [
    column("day", "Date"),
    column("event_type", EVENT_TYPE),
    column("campaign_id", "UUID"),
    column("workspace_id", "UUID"),
    column("source", LOW_CARDINALITY),
    column("total", "UInt64"),
    Column { name: "end_offset", table_type: "SimpleAggregateFunction(max, UInt64)", block_type: "UInt64" },
];

/// Columns of an insert into `rejected_events`.
pub const REJECTED: [Column; 7] = [
    column("source", LOW_CARDINALITY),
    column("source_offset", "UInt64"),
    column("kafka_timestamp", "DateTime64(3, 'UTC')"),
    column("reason", LOW_CARDINALITY),
    column("error", "String"),
    column("key", "String"),
    column("payload", "String"),
];

/// Columns of an insert into `campaign_lifecycle`.
pub const LIFECYCLE: [Column; 9] = [
    column("campaign_id", "UUID"),
    column("workspace_id", "UUID"),
    column("stage", STAGE),
    column("event_time", "DateTime('UTC')"),
    column("audience_size", "UInt64"),
    column("metadata", "String"),
    column("source", LOW_CARDINALITY),
    column("source_offset", "UInt64"),
    column("end_offset", "UInt64"),
];
/// The form of `recipients`, which is written by other rules than the tables of a batch ([`crate::recipients`]).
pub const RECIPIENTS: Definition = Definition {
    engine: "AggregatingMergeTree",
    partition_key: "",
    sorting_key: "campaign_id, recipient",
    has_tokens: false,
    columns: &[
        column("campaign_id", "UUID"),
        column("recipient", "UInt64"),
        Column { name: "flags", table_type: "SimpleAggregateFunction(groupBitOr, UInt16)", block_type: "UInt16" },
        first("first_delivered"),
        first("first_open"),
        first("first_click"),
        first("first_bounce"),
        first("first_unsubscribe"),
    ],
    computed: None,
};

/// Name of the table of recipients.
pub const RECIPIENTS_NAME: &str = "recipients";
/// The tables that members write to.
pub const NAMES: [&str; 5] =
    [Table::Raw.name(), Table::Rejected.name(), Table::Daily.name(), RECIPIENTS_NAME, Table::Lifecycle.name()];
/// Name of the table with the key of their hashes.
pub const RECIPIENT_KEY_NAME: &str = "recipient_key";

const fn first(name: &'static str) -> Column {
    Column { name, table_type: "SimpleAggregateFunction(min, DateTime('UTC'))", block_type: "DateTime('UTC')" }
}

const fn column(name: &'static str, data_type: &'static str) -> Column {
    Column { name, table_type: data_type, block_type: data_type }
}

impl Table {
    /// Returns the expected form of the table.
    pub fn definition(self) -> Definition {
        match self {
            Table::Raw => Definition {
                engine: "MergeTree",
                partition_key: "toYYYYMMDD(event_time)",
                sorting_key: "campaign_id, event_time",
                has_tokens: true,
                columns: &RAW,
                computed: None,
            },
            Table::Lifecycle => Definition {
                engine: "MergeTree",
                partition_key: "",
                sorting_key: "campaign_id, event_time",
                has_tokens: true,
                columns: &LIFECYCLE,
                computed: None,
            },
            Table::Daily => Definition {
                engine: "SummingMergeTree",
                partition_key: "toYYYYMM(day)",
                sorting_key: "day, event_type, campaign_id, workspace_id, source",
                has_tokens: true,
                columns: &DAILY,
                computed: Some(("level", "String")),
            },
            Table::Rejected => Definition {
                engine: "MergeTree",
                partition_key: "",
                sorting_key: "source, source_offset",
                has_tokens: true,
                columns: &REJECTED,
                computed: Some(("rejected_at", "DateTime('UTC')")),
            },
        }
    }
}

impl Definition {
    /// Returns the columns of one insert, as its INSERT statement lists them.
    pub fn column_list(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|column| column.name).collect();
        names.join(", ")
    }
}
