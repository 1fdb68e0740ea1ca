//! `tallyhouse erase`: blanks a person's data in raw and rejected rows, and leaves the counters as they are.
//!
//! ```text
//!  find (the plan) ─► note "begun" ─► replace recipients ─► blank by offsets ─► find again ─► note "done"
//! ```
//!
//! **Rows are blanked, not deleted.** `(source, source_offset)` of each row proves that nothing is lost or doubled.
//! The marks, `audit` and `repair daily` count rows. Deleted rows would look like losses, and a repair would take
//! them from the counters. The rest of a row (campaign, type, second, offset) names nobody.
//!
//! **A recipient is replaced, not deleted**, so the person still counts. It is written again under a number that is made of the
//! erasure's id, and then the old one is deleted. That number finds an erasure that was cut short in between. The next one uses the
//! same id, so nobody counts twice. Recipients come first, as the rows show all spellings of the address.
//!
//! **The address goes to ClickHouse as data of a temporary table and never in a statement.** The server writes
//! statements and their parameters into its log, `system.query_log` and `system.processes`. It keeps a mutation in
//! `system.mutations`, on disk and in ZooKeeper, with its literals. So a SELECT against that table finds the rows,
//! and their offsets serve to blank them.
//!
//! An erasure may be cut short anywhere and run again. It does not find blanked rows again, and a mutation that was
//! sent goes on by itself. Must never print, log or store an address, nor anything made of one.

mod address;
mod plan;
mod print;
mod tables;

pub use address::{Address, NotAnAddress};
pub use print::Summary;

use crate::clickhouse::client::Client;
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::schema::{Schema, SchemaProblem};
use crate::clickhouse::sight;
use crate::platform::failpoint;
use crate::platform::output::ProgressFn;
use plan::Plan;
use tables::{Line, State, Tables, Words};
use uuid::Uuid;

/// The options of an erasure.
#[derive(Debug)]
pub struct Options {
    /// The person's addresses; each spelling is searched.
    pub addresses: Vec<Address>,
    /// True if the erasure is to be carried out. Otherwise nothing is changed.
    pub carry_out: bool,
    /// Reference for the audit line, such as a ticket.
    pub reference: String,
}

/// The reason why an erasure was not done, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The tables are not those of this binary.
    #[error(transparent)]
    Schema(#[from] SchemaProblem),
    /// Nothing was changed yet.
    #[error("{0}. Nothing was changed")]
    Looking(ClickHouseError),
    /// Rows may have been blanked.
    #[error(
        "{0}. Rows may be blanked already, and what was sent to ClickHouse goes on by itself (system.mutations). Run the same \
         command again: it finds what is left"
    )]
    Blanking(ClickHouseError),
}

/// Finds a person's rows and, if asked to, blanks them.
///
/// # Errors
/// Any of [`EraseError`]. Rows that were blanked before it stay blanked.
pub async fn run(
    client: &Client,
    schema: &Schema,
    options: &Options,
    say: ProgressFn<'_>,
) -> Result<Summary, EraseError> {
    // Rows that a profile or a row policy hides would stay.
    client.prove().await.map_err(EraseError::Looking)?;
    schema.check(client).await?;
    sight::refuse_filters(client).await.map_err(EraseError::Looking)?;
    let words =
        Words { pattern: address::pattern(&options.addresses), spellings: address::spellings(&options.addresses) };
    let tables = Tables::new(client, schema, words);
    client.sync().await.map_err(EraseError::Looking)?;
    say("looking for rows; ClickHouse reads the texts of the tables");
    let plan = tables.find().await.map_err(EraseError::Looking)?;
    let counts = plan.counts();
    let mut summary = Summary { counts, carried_out: false, left: None, reference: options.reference.clone() };
    say(&summary.plan_text());
    if !options.carry_out {
        return Ok(summary);
    }
    let id = uuid::Builder::from_random_bytes(rand::random()).into_uuid();
    let note = |state, left| Line { id, state, reference: &options.reference, counts: summary.counts.clone(), left };
    if !plan.is_empty() {
        tables.write(&note(State::Begun, 0)).await.map_err(EraseError::Looking)?;
        failpoint::hit("erase_begun");
        replace(&tables, id, &plan, say).await.map_err(EraseError::Blanking)?;
        blank(&tables, &plan, say).await.map_err(EraseError::Blanking)?;
    }
    say("looking again");
    let left = tables.find().await.map_err(EraseError::Blanking)?.rows();
    tables.write(&note(State::Done, left)).await.map_err(EraseError::Blanking)?;
    (summary.carried_out, summary.left) = (true, Some(left));
    let print::Counts { events, mentions, rejects, lifecycle, recipients, .. } = summary.counts;
    let reference = &options.reference;
    tracing::info!(erasure_id = %id, reference, events, mentions, rejects, lifecycle, recipients, rows_left = left, "erased");
    Ok(summary)
}

/// Replaces the person's recipients.
async fn replace(tables: &Tables<'_>, id: Uuid, plan: &Plan, say: ProgressFn<'_>) -> Result<(), ClickHouseError> {
    let hashes: Vec<u64> = plan.recipients.iter().map(|(hash, _)| *hash).collect();
    if hashes.is_empty() {
        return Ok(());
    }
    say("replacing the person in recipients");
    let id = tables.id_of_unfinished(&hashes).await?.unwrap_or(id);
    tables.add_replacements(id, &hashes).await?;
    failpoint::hit("erase_recipients_added");
    tables.delete_recipients(&hashes).await
}

async fn blank(tables: &Tables<'_>, plan: &Plan, say: ProgressFn<'_>) -> Result<(), ClickHouseError> {
    for part in plan.parts() {
        say(&format!("blanking {} rows of {}", part.rows(), part.what.table()));
        tables.blank(&part, say).await?;
        failpoint::hit("erase_part_blanked");
    }
    Ok(())
}
