//! Plans the rows to blank, and the statements for them. Pure; holds offsets, never a text of a row.

use super::print::Counts;
use std::collections::BTreeSet;

/// Number of offsets in one statement. They are few enough for ClickHouse to read their text as a query. They are not
/// fewer, as ClickHouse clones every part of the table for each statement (also with IN PARTITION, on a single
/// server).
const PART_ROWS_MAX: usize = 10_000;

/// The part of a row that is blanked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum What {
    /// E-mail and metadata of the person's own row.
    Event,
    /// Metadata of somebody else's row that has the address in it.
    Mention,
    /// Key, payload and error of a rejected record.
    Reject,
    /// Metadata of a message of a lifecycle topic.
    Lifecycle,
}

impl What {
    /// Returns the table of the rows.
    pub fn table(self) -> &'static str {
        match self {
            What::Event | What::Mention => "email_events",
            What::Reject => "rejected_events",
            What::Lifecycle => "campaign_lifecycle",
        }
    }
}

/// A row of `email_events` that the search found.
#[derive(Clone, Debug, PartialEq, Eq, clickhouse::Row, serde::Deserialize)]
pub struct FoundEvent {
    pub source: String,
    pub offset: u64,
    pub campaign_id: String,
    /// UTC day as text, such as `2026-11-24`.
    pub day: String,
    /// True if it is the person's own row, and false if it is a mention.
    pub is_own: bool,
}

/// All rows that the search found.
#[derive(Debug, Default)]
pub struct Plan {
    pub events: Vec<FoundEvent>,
    /// Source and offset of each row of `rejected_events`.
    pub rejects: Vec<(String, u64)>,
    /// Source and offset of rows of `campaign_lifecycle`.
    pub lifecycle: Vec<(String, u64)>,
    /// Hashes of the person, each with the number of campaigns of which it is a recipient.
    pub recipients: Vec<(u64, u64)>,
}

/// The rows of one statement.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    pub what: What,
    /// Each source with its offsets.
    pub keys: Vec<(String, Vec<u64>)>,
}

impl Part {
    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.keys.iter().map(|(_, offsets)| offsets.len()).sum()
    }
}

impl Plan {
    /// True if nothing was found.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// Returns the number of rows of all tables.
    pub fn rows(&self) -> u64 {
        (self.events.len() + self.rejects.len() + self.lifecycle.len()) as u64 + self.recipient_rows()
    }

    fn recipient_rows(&self) -> u64 {
        self.recipients.iter().map(|(_, campaigns)| campaigns).sum()
    }

    /// Returns the plan in numbers.
    pub fn counts(&self) -> Counts {
        let events = self.events.iter().filter(|event| event.is_own).count();
        let campaigns: BTreeSet<&str> = self.events.iter().map(|event| event.campaign_id.as_str()).collect();
        Counts {
            events: events as u64,
            mentions: (self.events.len() - events) as u64,
            rejects: self.rejects.len() as u64,
            lifecycle: self.lifecycle.len() as u64,
            recipients: self.recipient_rows(),
            campaigns: campaigns.len() as u64,
            first_day: self.events.iter().map(|event| event.day.clone()).min(),
            last_day: self.events.iter().map(|event| event.day.clone()).max(),
        }
    }

    /// Returns the statements to send.
    pub fn parts(&self) -> Vec<Part> {
        let event = |event: &FoundEvent| {
            let what = if event.is_own { What::Event } else { What::Mention };
            (what, event.source.clone(), event.offset)
        };
        let of = |what: What| move |(source, offset): &(String, u64)| (what, source.clone(), *offset);
        let others = self.rejects.iter().map(of(What::Reject)).chain(self.lifecycle.iter().map(of(What::Lifecycle)));
        let mut all: Vec<(What, String, u64)> = self.events.iter().map(event).chain(others).collect();
        all.sort_unstable();
        let mut parts: Vec<Part> = Vec::new();
        for (what, source, offset) in all {
            if parts.last().is_none_or(|part| part.what != what || part.rows() >= PART_ROWS_MAX) {
                parts.push(Part { what, keys: Vec::new() });
            }
            let Some(part) = parts.last_mut() else { continue };
            match part.keys.last_mut().filter(|(name, _)| *name == source) {
                Some((_, offsets)) => offsets.push(offset),
                None => part.keys.push((source, vec![offset])),
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(source: &str, offset: u64, day: &str, is_own: bool) -> FoundEvent {
        FoundEvent { source: source.into(), offset, campaign_id: format!("c{}", offset % 2), day: day.into(), is_own }
    }

    #[test]
    fn parts_hold_each_row_once_by_what_is_blanked() {
        let plan = Plan {
            events: vec![
                event("t/1@i", 7, "2026-11-02", true),
                event("t/0@i", 9, "2026-10-31", true),
                event("t/0@i", 4, "2026-11-01", false),
                event("t/0@i", 3, "2026-11-01", true),
            ],
            rejects: vec![("t/0@i".into(), 5)],
            lifecycle: vec![("a/0@i".into(), 8)],
            recipients: vec![(7, 2), (9, 1)],
        };
        let of = |source: &str, offsets: &[u64]| (source.to_owned(), offsets.to_vec());
        assert_eq!(
            plan.parts(),
            [
                Part { what: What::Event, keys: vec![of("t/0@i", &[3, 9]), of("t/1@i", &[7])] },
                Part { what: What::Mention, keys: vec![of("t/0@i", &[4])] },
                Part { what: What::Reject, keys: vec![of("t/0@i", &[5])] },
                Part { what: What::Lifecycle, keys: vec![of("a/0@i", &[8])] },
            ]
        );
        let counts = plan.counts();
        assert_eq!((counts.events, counts.mentions, counts.rejects, counts.campaigns), (3, 1, 1, 2));
        assert_eq!((counts.recipients, plan.rows()), (3, 9));
        assert_eq!((counts.first_day.as_deref(), counts.last_day.as_deref()), (Some("2026-10-31"), Some("2026-11-02")));
    }

    #[test]
    fn a_part_has_a_greatest_size() {
        let events = (0..25_000).map(|offset| event("t/0@i", offset, "2026-11-01", true)).collect();
        let parts = Plan { events, ..Plan::default() }.parts();
        assert_eq!(parts.iter().map(Part::rows).collect::<Vec<_>>(), [10_000, 10_000, 5_000]);
        assert!(Plan::default().parts().is_empty());
    }
}
