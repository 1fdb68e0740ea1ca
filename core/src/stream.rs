//! The streams of a producer: the events, and the lifecycle topics with one record per campaign.
//!
//! The stream of a source decides which tables its batches write to. The protocol is the same for all of them.

use crate::source::Table;
use serde_json::Value;

/// The stage that a campaign has reached. The numbers are those of the `Enum8` in ClickHouse and never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(i8)]
pub enum Stage {
    /// The recipients of the campaign are known.
    AudienceReady = 1,
    /// The template of the campaign is complete.
    TemplateReady = 2,
}

impl Stage {
    /// All stages, in the order of their numbers.
    pub const ALL: [Stage; 2] = [Stage::AudienceReady, Stage::TemplateReady];

    /// Returns the name of the stage in ClickHouse.
    pub fn name(self) -> &'static str {
        match self {
            Stage::AudienceReady => "audience_ready",
            Stage::TemplateReady => "template_ready",
        }
    }
}

/// The content of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Events of emails, the topic `kafka.topics.events`.
    #[default]
    Events,
    /// Campaigns that have reached this stage.
    Lifecycle(Stage),
}

impl Stream {
    /// Returns the tables of the stream's batches, in the order of writing.
    pub fn tables(self) -> &'static [Table] {
        match self {
            Stream::Events => &[Table::Raw, Table::Rejected, Table::Daily],
            Stream::Lifecycle(_) => &[Table::Rejected, Table::Lifecycle],
        }
    }

    /// Returns the table with one row for each valid record.
    pub fn row_table(self) -> Table {
        match self {
            Stream::Events => Table::Raw,
            Stream::Lifecycle(_) => Table::Lifecycle,
        }
    }
}

/// Names under which `metadata` may have the size of the audience. The first one with a whole number counts.
pub const SIZE_NAMES: [&str; 3] = ["audience_size", "size", "recipients"];

/// Returns the number of recipients in the metadata of a campaign whose audience is ready. It is 0 if the metadata has none.
pub fn audience_size(metadata: &[u8]) -> u64 {
    let fields: Value = serde_json::from_slice(metadata).unwrap_or_default();
    SIZE_NAMES.iter().find_map(|name| fields.get(name)?.as_u64()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_is_a_whole_number_under_one_of_its_names() {
        for (metadata, size) in [
            (r#"{"size": 1200}"#, 1_200),
            (r#"{"recipients": 7, "audience_size": 9}"#, 9),
            (r#"{"audience_size": "9", "recipients": 7}"#, 7),
            (r#"{"recipients": ["ada@example.com"]}"#, 0),
            (r#"{"size": -1}"#, 0),
            (r#"{"size": 1.5}"#, 0),
            ("[1]", 0),
            ("7", 0),
            ("", 0),
            ("{", 0),
        ] {
            assert_eq!(audience_size(metadata.as_bytes()), size, "{metadata}");
        }
    }

    #[test]
    fn every_table_is_one_of_a_stream_and_in_order() {
        let lifecycle = Stage::ALL.map(Stream::Lifecycle);
        let streams = [Stream::Events].into_iter().chain(lifecycle);
        let written: Vec<Table> = streams.clone().flat_map(|stream| stream.tables().to_vec()).collect();
        assert!(Table::ALL.iter().all(|table| written.contains(table)));
        for stream in streams {
            assert!(stream.tables().is_sorted() && stream.tables().contains(&stream.row_table()));
        }
    }
}
