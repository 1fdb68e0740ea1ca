//! Prints an erasure: for people, and as JSON for machines. Pure.
//!
//! The JSON's names are stable: names are added, never changed.

use crate::commands::table;
use crate::platform::output;
use serde::Serialize;

/// The places that no erasure reaches, each with what to do about it.
pub const NOT_REACHED: [&str; 6] = [
    "records still in Kafka, until its retention removes them. Those not consumed yet, or in the members' memory, come into the \
     tables later. Run it again when `tallyhouse status` shows no lag",
    "topics that rejected records were copied to",
    "backups and snapshots of ClickHouse: run it again after each restore",
    "the parts of the tables as they were, which ClickHouse deletes from the disk about 8 minutes later (old_parts_lifetime)",
    "columns, tables and views of your own, and the logs of what produces and reads",
    "the application's own database",
];

/// The search's result, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// The person's rows of `email_events`.
    pub events: u64,
    /// Other rows of `email_events` with the address in their metadata.
    pub mentions: u64,
    /// The person's rows of `rejected_events`.
    pub rejects: u64,
    /// Rows of `campaign_lifecycle` with the address in their metadata.
    pub lifecycle: u64,
    /// Campaigns of which the person is a recipient, by the table `recipients`.
    pub recipients: u64,
    /// Distinct campaigns of the rows of `email_events`.
    pub campaigns: u64,
    /// First UTC day of these.
    pub first_day: Option<String>,
    /// Last UTC day of these.
    pub last_day: Option<String>,
}

/// The result of an erasure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The result of the first search.
    pub counts: Counts,
    /// True if the rows were blanked.
    pub carried_out: bool,
    /// Number of rows that the second search found.
    pub left: Option<u64>,
    /// The reference, as given.
    pub reference: String,
}

#[derive(Serialize)]
struct Json<'a> {
    version: u32,
    #[serde(flatten)]
    counts: &'a Counts,
    carried_out: bool,
    rows_left: Option<u64>,
    reference: &'a str,
    not_reached: [&'static str; 6],
}

impl Summary {
    /// True if rows with the address are known to be left.
    pub fn is_unfinished(&self) -> bool {
        self.left.is_some_and(|left| left > 0)
    }

    /// Returns the JSON document, with a line end.
    ///
    /// # Errors
    /// Never in practice: all keys are text.
    pub fn json(&self) -> serde_json::Result<String> {
        let Summary { counts, carried_out, left, reference } = self;
        let (carried_out, rows_left) = (*carried_out, *left);
        let json = Json { version: 1, counts, carried_out, rows_left, reference, not_reached: NOT_REACHED };
        output::json(&json)
    }

    /// Returns the plan: the rows to blank, and the places that are not reached.
    pub fn plan_text(&self) -> String {
        let Counts { events, mentions, rejects, lifecycle, recipients, campaigns, first_day, last_day } = &self.counts;
        if events + mentions + rejects + lifecycle + recipients == 0 {
            return format!("nothing was found: no row has the address\n\n{}", not_reached());
        }
        let mut table = table::new(&["table", "rows", "what is blanked"]);
        table.add_row(["email_events".to_owned(), events.to_string(), "email, metadata".to_owned()]);
        let mention = "metadata: the address is in it, the row is another recipient's";
        table.add_row(["email_events".to_owned(), mentions.to_string(), mention.to_owned()]);
        table.add_row(["rejected_events".to_owned(), rejects.to_string(), "key, payload, error".to_owned()]);
        let of_campaign = "metadata: the address is in a message about a campaign";
        table.add_row(["campaign_lifecycle".to_owned(), lifecycle.to_string(), of_campaign.to_owned()]);
        let replaced = "recipient: another number takes its place, so the person still counts";
        table.add_row(["recipients".to_owned(), recipients.to_string(), replaced.to_owned()]);
        let days = match (first_day, last_day) {
            (Some(first), Some(last)) => format!("{campaigns} campaigns, from {first} to {last}. "),
            _ => String::new(),
        };
        let stays = "Rows, their offsets and all counters stay (`tallyhouse explain privacy`).";
        format!("{table}\n{days}{stays}\n\n{}", not_reached())
    }

    /// Returns the result of the erasure in words.
    pub fn verdict(&self) -> String {
        let Counts { events, mentions, rejects, lifecycle, recipients, .. } = self.counts;
        match (self.left, events + mentions + rejects + lifecycle + recipients) {
            (None, 0) => "nothing to do\n".to_owned(),
            (None, _) => "nothing was changed; --yes carries it out\n".to_owned(),
            (Some(0), rows) => format!("{rows} rows are blanked or replaced; no row has the address any more\n"),
            (Some(left), _) => {
                format!("{left} rows have the address: they came in meanwhile. Run the same command again\n")
            }
        }
    }
}

fn not_reached() -> String {
    let lines: Vec<String> = NOT_REACHED.iter().map(|line| format!("  - {line}")).collect();
    format!("not reached:\n{}\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_for_people_and_for_machines() {
        let day = |text: &str| Some(text.to_owned());
        let counts = Counts {
            events: 120,
            mentions: 3,
            rejects: 2,
            lifecycle: 1,
            recipients: 12,
            campaigns: 12,
            first_day: day("2026-10-01"),
            last_day: day("2026-11-24"),
        };
        let summary = Summary { counts, carried_out: false, left: None, reference: "GDPR-17".to_owned() };
        insta::assert_snapshot!("erase_plan", format!("{}{}", summary.plan_text(), summary.verdict()));
        insta::assert_snapshot!("erase_json", summary.json().unwrap());
    }

    #[test]
    fn the_verdict_says_what_is_next() {
        let verdict = |events, left: Option<u64>| {
            let counts = Counts { events, ..Counts::default() };
            Summary { counts, carried_out: left.is_some(), left, reference: String::new() }.verdict()
        };
        assert_eq!(verdict(0, None), "nothing to do\n");
        assert!(verdict(5, None).contains("--yes"));
        assert!(verdict(5, Some(0)).starts_with("5 rows are blanked or replaced"));
        assert!(verdict(5, Some(1)).contains("again"));
    }
}
