//! The key of the hashes of recipients, and the same hash in SQL.
//!
//! `migrate` makes the key once, and it stays with the tables: a backup or a replica has it too. Must never let the key into a
//! statement, as ClickHouse keeps the text of statements in its logs. It is sent as data, and statements read it where it lies.

use super::client::Client;
use super::error::ClickHouseError;
use super::schema::{Schema, SchemaProblem};
use bytes::Bytes;
use tallyhouse_core::recipients::{NEVER, RecipientKey};
use tallyhouse_core::tables::RECIPIENT_KEY_NAME;
use tallyhouse_core::window::native::native_block;

/// The hash of `email`, as [`RecipientKey::hash`] computes it: upper and lower case are the same after the last `@`.
pub const HASH: &str = "sipHash64Keyed((SELECT (any(k0), any(k1)) FROM recipient_key), \
                        concat(substring(email, 1, length(email) - length(splitByChar('@', email)[-1])), lower(splitByChar('@', email)[-1])))";

/// Columns of `recipients` beside its key.
pub const COLUMNS: [&str; 6] = ["flags", FIRSTS[0], FIRSTS[1], FIRSTS[2], FIRSTS[3], FIRSTS[4]];

/// Columns with the first time of a type.
pub const FIRSTS: [&str; 5] = ["first_delivered", "first_open", "first_click", "first_bounce", "first_unsubscribe"];

/// Returns the statement that counts the recipients of raw rows again, in the form of the rows of `recipients`. `condition` chooses the
/// raw rows, and its values are bound later.
pub fn recount(condition: &str) -> String {
    let first = |name: &str| {
        let kind = name.trim_start_matches("first_");
        format!("min(if(event_type = '{kind}', event_time, toDateTime({NEVER}, 'UTC'))) AS {name}")
    };
    format!(
        "SELECT campaign_id, {HASH} AS recipient, groupBitOr(bitShiftLeft(toUInt16(1), toUInt8(event_type) - 1)) AS flags, {} \
         FROM email_events WHERE email != '' AND {condition} GROUP BY campaign_id, recipient",
        FIRSTS.map(first).join(", ")
    )
}

/// Returns the statement for the rows of `recipients`, each campaign and recipient once.
pub fn stored(condition: &str) -> String {
    let firsts = FIRSTS.map(|name| format!("min({name}) AS {name}")).join(", ");
    format!(
        "SELECT campaign_id, recipient, groupBitOr(flags) AS flags, {firsts} FROM recipients WHERE {condition} GROUP BY campaign_id, recipient"
    )
}

/// Returns the statement for the campaign and hash of each recipient that has a type or an earlier first time in `more` than in `less`.
/// One of them is `rows`, which are the raw rows with this condition, and the other is `stored`.
pub fn ahead(more: &str, less: &str, of_rows: &str, of_stored: &str) -> String {
    // A recipient is one row here for its raw rows, and one for its rows of `recipients`. The first figure is the flags.
    let earlier = (2..).zip(FIRSTS).map(|(place, _)| format!("{more}.{place} < {less}.{place}"));
    let differs: Vec<String> =
        std::iter::once(format!("bitAnd({more}.1, bitNot({less}.1)) != 0")).chain(earlier).collect();
    let figures = format!("tuple({})", COLUMNS.join(", "));
    let none = format!("tuple(toUInt16(0){})", format!(", toDateTime({NEVER}, 'UTC')").repeat(FIRSTS.len()));
    let side = |is_row: &str| format!("if(countIf({is_row}) = 0, {none}, anyIf(figures, {is_row}))");
    format!(
        "SELECT campaign_id, recipient FROM \
         (SELECT campaign_id, recipient, {row} AS rows, {other} AS stored \
         FROM (SELECT campaign_id, recipient, true AS is_row, {figures} AS figures FROM ({recount}) \
         UNION ALL SELECT campaign_id, recipient, false, {figures} FROM ({stored})) \
         GROUP BY campaign_id, recipient HAVING {differs})",
        row = side("is_row"),
        other = side("NOT is_row"),
        recount = recount(of_rows),
        stored = stored(of_stored),
        differs = differs.join(" OR "),
    )
}

/// Makes the key if there is none. Of several attempts at the same time, the first one counts: all have the same token.
pub(super) async fn make_key(client: &Client, schema: &Schema) -> Result<(), ClickHouseError> {
    if client.query("SELECT count() FROM recipient_key").scalar_u64().await? > 0 {
        return Ok(());
    }
    let halves: [Bytes; 2] = rand::random::<[[u8; 8]; 2]>().map(|half| Bytes::copy_from_slice(&half));
    let [k0, k1] = halves.map(|half| vec![half]);
    let block = native_block(1, vec![("k0", "UInt64", k0), ("k1", "UInt64", k1)]);
    let sql = format!("INSERT INTO {} (k0, k1) FORMAT Native", schema.insert_target(RECIPIENT_KEY_NAME));
    let token = format!("tallyhouse:{}", RECIPIENT_KEY_NAME);
    client.insert(&sql, &super::client::new_query_id(), &token, block, || true).await
}

/// Reads the key.
///
/// # Errors
/// [`SchemaProblem::RecipientKey`] if there is not exactly one, or any [`ClickHouseError`].
pub async fn key(client: &Client) -> Result<RecipientKey, SchemaProblem> {
    // A replica that lags does not show the key yet.
    if client.is_replica() {
        client.sync_table(RECIPIENT_KEY_NAME).await?;
    }
    let keys = client.deciding("SELECT k0, k1 FROM recipient_key").rows::<(u64, u64)>().await?;
    match keys[..] {
        [(k0, k1)] => Ok(RecipientKey { k0, k1 }),
        _ => Err(SchemaProblem::RecipientKey { database: client.database().to_owned(), keys: keys.len() as u64 }),
    }
}
