//! Finds row policies and users' own materialized views. Row policies can keep this user from seeing rows that it inserts. Views
//! on Tallyhouse's tables take part in its inserts.
//!
//! `system.row_policies` is closed to most users. But ClickHouse counts a table from its metadata alone only if no filter is on
//! it. `EXPLAIN` shows which way it takes, so this module asks for that first.

use super::client::Client;
use super::error::ClickHouseError;
use crate::platform::advice::Advice;
use tallyhouse_core::source::Table;

/// The rows of a table that this user sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The user sees every row.
    Whole,
    /// Row policies hide rows. The list has their names, if the user may see them.
    Filtered(Vec<String>),
    /// The table is empty, and its plan cannot show a policy.
    Unknown,
}

/// Returns the visibility of each table's rows for this user.
///
/// # Errors
/// Returns any [`ClickHouseError`].
pub async fn of_tables(client: &Client) -> Result<Vec<(Table, Sight)>, ClickHouseError> {
    let mut seen = Vec::new();
    for table in Table::ALL {
        let sql = format!("EXPLAIN actions = 1 SELECT count() FROM {}", table.name());
        let plan = client.query(&sql).rows::<String>().await?.join("\n");
        let policies = match plan.contains("trivial count") {
            true => Vec::new(),
            false => policies(client, table).await,
        };
        seen.push((table, judge(&plan, policies)));
    }
    Ok(seen)
}

/// A plan that reads the table may have other reasons than a policy: rows that were deleted and still exist.
fn judge(plan: &str, policies: Vec<String>) -> Sight {
    match plan.contains("trivial count") {
        true => Sight::Whole,
        false if !policies.is_empty() || plan.contains("Row level filter") => Sight::Filtered(policies),
        // The table has no rows, and its plan does not count it from metadata.
        false if plan.contains("NullSource") => Sight::Unknown,
        false => Sight::Whole,
    }
}

/// Returns the names of the policies on a table for this user; none if it may not see them.
async fn policies(client: &Client, table: Table) -> Vec<String> {
    let sql = "SELECT name FROM system.row_policies WHERE database = ? AND table IN (?, '', '*') \
               AND ((apply_to_all AND NOT has(apply_to_except, currentUser())) OR has(apply_to_list, currentUser()) \
               OR hasAny(apply_to_list, enabledRoles()))";
    client.query(sql).bind(client.database()).bind(client.stored(table.name())).rows().await.unwrap_or_default()
}

/// Returns the first filter that is certain.
pub fn problem(seen: &[(Table, Sight)]) -> Option<Advice> {
    seen.iter().find_map(|(table, sight)| match sight {
        Sight::Filtered(policies) => {
            let named = if policies.is_empty() { String::new() } else { format!(" ({})", policies.join(", ")) };
            let table = table.name();
            Some(Advice::new(
                format!("a row policy{named} hides rows of {table} from this user, so what is inserted would be inserted again"),
                "DROP the policy for this user, or give Tallyhouse a user that no row policy is for",
            ))
        }
        Sight::Whole | Sight::Unknown => None,
    })
}

/// Refuses to go on where it is certain that a row policy hides rows. What cannot be asked is no such certainty.
///
/// # Errors
/// [`ClickHouseError::Unfit`].
pub async fn refuse_filters(client: &Client) -> Result<(), ClickHouseError> {
    let seen = of_tables(client).await.unwrap_or_default();
    problem(&seen).map_or(Ok(()), |problem| Err(client.unfit(problem)))
}

/// Returns the materialized views on Tallyhouse's tables, as `database.name`, each with its table.
///
/// # Errors
/// Returns any [`ClickHouseError`].
pub async fn own_views(client: &Client) -> Result<Vec<(String, String)>, ClickHouseError> {
    let tables = Table::ALL.map(|table| client.stored(table.name()));
    let sql = "SELECT arrayStringConcat([view.1, view.2], '.'), name FROM system.tables \
               ARRAY JOIN arrayZip(dependencies_database, dependencies_table) AS view WHERE database = ? AND name IN ? ORDER BY 1, 2";
    client.query(sql).bind(client.database()).bind(tables).rows().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_seen_in_the_plan() {
        let trivial = "MergingAggregated\nReadFromPreparedSource (Optimized trivial count)";
        let filtered = "Aggregating\nReadFromMergeTree (d.t)\nRow level filter column: 0";
        let deleted = "Aggregating\nReadFromMergeTree (d.t)";
        let nothing = "Aggregating\nReadNothing (Read from NullSource)";
        let policy = || vec!["p ON d.t".to_owned()];
        assert_eq!(judge(trivial, policy()), Sight::Whole);
        assert_eq!(judge(filtered, Vec::new()), Sight::Filtered(Vec::new()));
        assert_eq!(judge(deleted, Vec::new()), Sight::Whole);
        assert_eq!((judge(nothing, Vec::new()), judge(nothing, policy())), (Sight::Unknown, Sight::Filtered(policy())));
    }
}
