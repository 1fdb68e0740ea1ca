//! The intent is the text in a commit's metadata about the batch that starts at the committed offset.
//!
//! Before a batch is inserted, its owner commits `offset = start` with metadata that names the batch. The next owner of the
//! partition then re-reads exactly those offsets and rebuilds the same batch. The text is ASCII and stays far below Kafka's limit
//! (`offset.metadata.max.bytes`, 4,096). It must never be guessed at: a text that is not Tallyhouse's, or of an unknown version,
//! is an error, not an empty intent.
//!
//! ```text
//! tallyhouse/2 topic=6Qm1BxsOTtuMW2AoMKb6XQ cluster=5L6g3nShT-eMCtK--X86sw marked=1200 end=1300 rows=95 rejects=5
//! ```
//!
//! `group=ID` names the group of the batch, if one insert writes it together with batches of other partitions. `left=TABLE` says that the
//! batch has left the group at this table ([`OfGroup`]).
//!
//! Two more words are rare. `source=plain`: rows carry a `source` without the topic's id, because the brokers reported no id when
//! the first row was stored. `again=N`: records before offset N may have been stored before, and their rows or their offset were
//! lost.
//!
//! Format 2 can grow. A program may ignore an unknown word whose name begins with `x-`. Any other unknown word is an error,
//! because it changes the meaning of the commit. Format 1 has no `cluster`, `marked`, `again`, `group` and no further words. This
//! build reads it and does not write it.

use crate::guard::{self, Guard};
use crate::protocol::group::{GroupId, OfGroup};
use crate::source::{OffsetRange, Table};
use std::fmt::Write as _;

/// Version of the metadata format that this build writes. This build reads version 1 as well.
pub const FORMAT_VERSION: u32 = 2;
/// Prefix of the names of words that a reader may ignore.
const IGNORABLE: &str = "x-";

/// Facts about a batch that are known before it is inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Intent {
    /// Offsets that the batch covers; `start` is the committed offset itself.
    pub range: OffsetRange,
    /// Numbers of rows for the stream's own table and for `rejected_events`. `None` if the intent was deduced from the marks after the
    /// committed offset was lost.
    pub counts: Option<Counts>,
    /// The group of the batch. Its inserts may have used the group's token.
    pub group: Option<OfGroup>,
}

impl Intent {
    /// Returns the id of the batch's group.
    pub fn group_id(&self) -> Option<GroupId> {
        self.group.map(|group| group.id)
    }
}

/// Numbers of rows of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Number of rows for `email_events`, or for `campaign_lifecycle`.
    pub rows: u64,
    /// Number of rows for `rejected_events`.
    pub rejects: u64,
}

impl Counts {
    /// Returns the number of records of the log from which the batch was built. Another decoder moves records between rows and
    /// rejects, and never changes this number.
    pub fn records(&self) -> u64 {
        self.rows + self.rejects
    }
}

/// Metadata of one commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Metadata {
    /// Id of the topic that the offset belongs to; empty if the broker reports none.
    pub topic_id: String,
    /// True if rows carry a `source` without the topic id: the brokers reported no id when the first of them was stored. It is
    /// never set without a topic id, where it would have no meaning.
    pub is_plain: bool,
    /// Id of the Kafka cluster that the offset belongs to; empty if it is not known.
    pub cluster_id: String,
    /// Greatest `end_offset` of the source that `daily` has certainly shown.
    pub marked: Option<u64>,
    /// Records before this offset may have been stored before. Then the tokens of their batches may be used.
    pub again: Option<u64>,
    /// Batch that is about to be inserted, if there is one: its end and its counts.
    pub next: Option<(u64, Counts)>,
    /// Group of that batch, if it is inserted together with batches of other partitions.
    pub group: Option<OfGroup>,
}

/// Reasons why a commit's metadata cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MetadataError {
    /// Tallyhouse did not write the text.
    #[error("the metadata was not written by Tallyhouse: {0}")]
    Foreign(String),
    /// Another version wrote the text.
    #[error("the metadata has format version {0}, this build reads versions 1 and {FORMAT_VERSION}")]
    Version(u32),
    /// The text has a word of a newer build that the reader must understand.
    #[error("the metadata has the word {0}, which a newer Tallyhouse wrote and this build does not know")]
    Word(String),
    /// The text begins as Tallyhouse's and continues incorrectly.
    #[error("the metadata is damaged: {0}")]
    Corrupt(String),
}

impl Metadata {
    /// Returns the text to commit.
    pub fn encode(&self) -> String {
        self.encode_as(FORMAT_VERSION)
    }

    fn encode_as(&self, version: u32) -> String {
        let mut text = format!("tallyhouse/{version}");
        if !self.topic_id.is_empty() {
            let _ = write!(text, " topic={}", self.topic_id);
            if self.is_plain {
                text.push_str(" source=plain");
            }
        }
        // The operator chooses the cluster's id. An id that is not a single word could not be read back.
        if !self.cluster_id.is_empty()
            && self.cluster_id.len() < 100
            && self.cluster_id.bytes().all(|b| b.is_ascii_graphic())
        {
            let _ = write!(text, " cluster={}", self.cluster_id);
        }
        if let Some(marked) = self.marked {
            let _ = write!(text, " marked={marked}");
        }
        if let Some(again) = self.again {
            let _ = write!(text, " again={again}");
        }
        if let Some((end, counts)) = self.next {
            let _ = write!(text, " end={end} rows={} rejects={}", counts.rows, counts.rejects);
            if let Some(group) = self.group {
                let _ = write!(text, " group={}", group.id.simple());
                if let Some(table) = group.left_at {
                    let _ = write!(text, " left={}", table.name());
                }
            }
        }
        text
    }

    /// True if the offset belongs to the topic with the id that the brokers report now. If one side has no id, it is the same
    /// topic: brokers begin to report ids after an upgrade.
    pub fn is_of(&self, reported: &str) -> bool {
        let has_both = !self.topic_id.is_empty() && !reported.is_empty();
        self.topic_id == reported || !has_both && guard::is_on(Guard::Identity)
    }

    /// Returns the topic id in the `source` of the rows; empty if it has none.
    pub fn id_of_rows(&self) -> &str {
        if self.is_plain { "" } else { &self.topic_id }
    }

    /// Reads a commit's metadata. Returns `None` for empty metadata (a plain offset, as other tools and resets write it).
    ///
    /// # Errors
    /// Returns an error for anything that is not exactly what [`Metadata::encode`] writes, except for words that may be ignored.
    pub fn decode(bytes: &[u8]) -> Result<Option<Metadata>, MetadataError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let text = std::str::from_utf8(bytes).map_err(|_| MetadataError::Foreign(shown()))?;
        let rest = text.strip_prefix("tallyhouse/").ok_or_else(|| MetadataError::Foreign(shown()))?;
        let mut words = rest.split(' ');
        let version = words.next().and_then(|v| v.parse().ok()).ok_or_else(|| MetadataError::Corrupt(shown()))?;
        if ![1, FORMAT_VERSION].contains(&version) {
            return Err(MetadataError::Version(version));
        }
        let is_known = |word: &&str| version == 1 || !word.starts_with(IGNORABLE) || !word.contains('=');
        let words: Vec<&str> = words.filter(is_known).collect();
        let metadata = Self::decode_words(&words)?.ok_or_else(|| MetadataError::Corrupt(shown()))?;
        let known = [vec![format!("tallyhouse/{version}").as_str()], words].concat().join(" ");
        let has_new = metadata.marked.max(metadata.again).is_some() || metadata.is_plain || metadata.group.is_some();
        let grown = version == 1 && (has_new || !metadata.cluster_id.is_empty());
        match grown || metadata.encode_as(version) != known {
            true => Err(MetadataError::Corrupt(shown())),
            false => Ok(Some(metadata)),
        }
    }

    /// Returns `None` if a value cannot be read.
    fn decode_words(words: &[&str]) -> Result<Option<Metadata>, MetadataError> {
        let mut metadata = Metadata::default();
        let (mut end, mut rows, mut rejects) = (None, None, None);
        for word in words {
            let Some((name, value)) = word.split_once('=') else { return Ok(None) };
            let number = value.parse::<u64>().ok();
            match name {
                "topic" => value.clone_into(&mut metadata.topic_id),
                "cluster" => value.clone_into(&mut metadata.cluster_id),
                "source" => metadata.is_plain = value == "plain",
                "marked" => metadata.marked = number,
                "again" => metadata.again = number,
                "end" => end = number,
                "rows" => rows = number,
                "rejects" => rejects = number,
                "group" => metadata.group = value.parse().ok().map(OfGroup::whole),
                "left" => {
                    let Some(group) = &mut metadata.group else { return Ok(None) };
                    group.left_at = Table::of_name(value);
                }
                _ => return Err(MetadataError::Word((*word).to_owned())),
            }
        }
        metadata.next = match (end, rows, rejects) {
            (None, None, None) => None,
            (Some(end), Some(rows), Some(rejects)) => Some((end, Counts { rows, rejects })),
            _ => return Ok(None),
        };
        Ok(Some(metadata))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn metadata() -> impl Strategy<Value = Metadata> {
        let next = proptest::option::of(any::<(u64, u64, u64)>());
        let offsets = proptest::option::of(any::<u64>());
        ("[A-Za-z0-9_-]{0,22}", "[A-Za-z0-9_-]{0,22}", (any::<bool>(), offsets.clone(), offsets), next).prop_map(
            |(topic_id, cluster_id, (is_plain, marked, again), next)| Metadata {
                is_plain: is_plain && !topic_id.is_empty(),
                group: next.filter(|(_, rows, _)| rows % 2 == 1).map(|(end, _, rejects)| OfGroup {
                    id: GroupId::from_u128(end.into()),
                    left_at: Table::ALL.get((rejects % 8) as usize).copied(),
                }),
                topic_id,
                cluster_id,
                marked,
                again,
                next: next.map(|(end, rows, rejects)| (end, Counts { rows, rejects })),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(metadata in metadata()) {
            let text = metadata.encode();
            prop_assert!(text.is_ascii() && text.len() < 300);
            prop_assert_eq!(Metadata::decode(text.as_bytes()), Ok(Some(metadata)));
        }

        #[test]
        fn the_first_format_is_read(metadata in metadata()) {
            let Metadata { topic_id, next, .. } = metadata;
            let metadata = Metadata { topic_id, next, ..Metadata::default() };
            prop_assert_eq!(Metadata::decode(metadata.encode_as(1).as_bytes()), Ok(Some(metadata)));
        }

        /// A later build may add words. A word that the reader must understand stops the partition.
        #[test]
        fn a_new_word_is_ignored_or_refused_as_its_name_says(metadata in metadata(), value in "[a-z0-9]{0,9}", place in 0usize..7) {
            let text = metadata.encode();
            let with = |word: String| {
                let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
                words.insert(1 + place % words.len(), word);
                Metadata::decode(words.join(" ").as_bytes())
            };
            prop_assert_eq!(with(format!("x-new={value}")), Ok(Some(metadata)));
            let word = format!("new={value}");
            prop_assert_eq!(with(word.clone()), Err(MetadataError::Word(word)));
        }

        #[test]
        fn no_bytes_panic_and_none_are_taken_for_an_empty_intent(bytes in proptest::collection::vec(any::<u8>(), 1..80)) {
            prop_assert!(Metadata::decode(&bytes).is_err());
        }

        #[test]
        fn one_changed_byte_is_never_read_as_the_same_intent(at in 0usize..90, byte in any::<u8>()) {
            let next = Some((1_000, Counts { rows: 9, rejects: 1 }));
            let metadata = Metadata { topic_id: "q".repeat(22), cluster_id: "c".into(), marked: Some(7), next, ..Metadata::default() };
            let mut bytes = metadata.encode().into_bytes();
            let at = at % bytes.len();
            prop_assume!(bytes[at] != byte);
            bytes[at] = byte;
            prop_assert_ne!(Metadata::decode(&bytes), Ok(Some(metadata)));
        }
    }

    #[test]
    fn what_is_not_ours_is_named() {
        assert_eq!(Metadata::decode(b""), Ok(None));
        assert_eq!(Metadata::decode(b"flink:7"), Err(MetadataError::Foreign("flink:7".into())));
        assert_eq!(Metadata::decode(b"\xff\x00"), Err(MetadataError::Foreign("\u{fffd}\0".into())));
        assert_eq!(Metadata::decode(b"tallyhouse/3 end=5"), Err(MetadataError::Version(3)));
        for damaged in [
            "tallyhouse/",
            "tallyhouse/1 ",
            "tallyhouse/1 end=5",
            "tallyhouse/1 end=05 rows=1 rejects=0",
            "tallyhouse/1 marked=5",
            "tallyhouse/2 marked=05",
            "tallyhouse/2 marked=5 topic=a",
            "tallyhouse/2 source=plain",
            "tallyhouse/2 topic=a source=other",
            "tallyhouse/1 topic=a source=plain",
            "tallyhouse/2 group=00000000000000000000000000000007",
            "tallyhouse/2 end=5 rows=1 rejects=0 group=7",
            "tallyhouse/2 end=5 rows=1 rejects=0 left=daily",
            "tallyhouse/2 x-new",
        ] {
            assert_eq!(Metadata::decode(damaged.as_bytes()), Err(MetadataError::Corrupt(damaged.into())));
        }
        let of_no_table = "tallyhouse/2 end=5 rows=1 rejects=0 group=00000000000000000000000000000007 left=other";
        assert!(matches!(Metadata::decode(of_no_table.as_bytes()), Err(MetadataError::Corrupt(_))));
    }
}
