//! The intent: what a commit's metadata says about the batch that starts at the committed offset.
//!
//! Before a batch is inserted its owner commits `offset = start` with metadata that names the batch, so that whoever
//! owns the partition next re-reads exactly those offsets and rebuilds the same batch. The text is ASCII and stays far
//! below Kafka's limit (`offset.metadata.max.bytes`, 4,096). It must never be guessed at: a text that is not ours, or of
//! a version we do not know, is an error, not an empty intent.

use super::source::OffsetRange;
use std::fmt::Write as _;

/// The version of the metadata format that this build writes and the only one it reads.
pub const FORMAT_VERSION: u32 = 1;

/// What is known of a batch before it is inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Intent {
    /// The offsets the batch covers; `start` is the committed offset itself.
    pub range: OffsetRange,
    /// Rows for `email_events`, and rows for `rejected_events`; `None` when the intent was deduced from the marks
    /// after the committed offset was lost.
    pub counts: Option<Counts>,
}

/// How many rows a batch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counts {
    /// Rows for `email_events`.
    pub rows: u64,
    /// Rows for `rejected_events`.
    pub rejects: u64,
}

impl Counts {
    /// Records of the log that the batch was built from. Another decoder moves records between rows and rejects, and never changes
    /// this number.
    pub fn records(&self) -> u64 {
        self.rows + self.rejects
    }
}

/// The metadata of one commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Metadata {
    /// The topic id the offset belongs to; empty where the broker tells none.
    pub topic_id: String,
    /// The batch about to be inserted, if one is: its end and its counts.
    pub next: Option<(u64, Counts)>,
}

/// Why a commit's metadata cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum MetadataError {
    /// The text was not written by Tallyhouse.
    #[error("the metadata was not written by Tallyhouse: {0}")]
    Foreign(String),
    /// The text was written by another version.
    #[error("the metadata has format version {0}, this build reads version {FORMAT_VERSION}")]
    Version(u32),
    /// The text starts as ours and goes on wrongly.
    #[error("the metadata is damaged: {0}")]
    Corrupt(String),
}

impl Metadata {
    /// The text to commit.
    pub fn encode(&self) -> String {
        let mut text = format!("tallyhouse/{FORMAT_VERSION}");
        if !self.topic_id.is_empty() {
            let _ = write!(text, " topic={}", self.topic_id);
        }
        if let Some((end, counts)) = self.next {
            let _ = write!(text, " end={end} rows={} rejects={}", counts.rows, counts.rejects);
        }
        text
    }

    /// Reads a commit's metadata; `None` for empty metadata (a plain offset, as other tools and resets write it).
    ///
    /// # Errors
    /// Anything that is not exactly what [`Metadata::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<Option<Metadata>, MetadataError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned();
        let text = std::str::from_utf8(bytes).map_err(|_| MetadataError::Foreign(shown()))?;
        let rest = text.strip_prefix("tallyhouse/").ok_or_else(|| MetadataError::Foreign(shown()))?;
        let mut words = rest.split(' ');
        let version = words.next().and_then(|v| v.parse().ok()).ok_or_else(|| MetadataError::Corrupt(shown()))?;
        if version != FORMAT_VERSION {
            return Err(MetadataError::Version(version));
        }
        let metadata = Self::decode_words(words).ok_or_else(|| MetadataError::Corrupt(shown()))?;
        if metadata.encode() != text {
            return Err(MetadataError::Corrupt(shown()));
        }
        Ok(Some(metadata))
    }

    fn decode_words<'a>(words: impl Iterator<Item = &'a str>) -> Option<Metadata> {
        let (mut topic_id, mut end, mut rows, mut rejects) = (String::new(), None, None, None);
        for word in words {
            match word.split_once('=')? {
                ("topic", id) => topic_id = id.to_owned(),
                ("end", n) => end = Some(n.parse().ok()?),
                ("rows", n) => rows = Some(n.parse().ok()?),
                ("rejects", n) => rejects = Some(n.parse().ok()?),
                _ => return None,
            }
        }
        let next = match (end, rows, rejects) {
            (None, None, None) => None,
            (Some(end), Some(rows), Some(rejects)) => Some((end, Counts { rows, rejects })),
            _ => return None,
        };
        Some(Metadata { topic_id, next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(id in "[A-Za-z0-9_-]{0,22}", next in proptest::option::of(any::<(u64, u64, u64)>())) {
            let next = next.map(|(end, rows, rejects)| (end, Counts { rows, rejects }));
            let metadata = Metadata { topic_id: id, next };
            let text = metadata.encode();
            prop_assert!(text.is_ascii() && text.len() < 200);
            prop_assert_eq!(Metadata::decode(text.as_bytes()), Ok(Some(metadata)));
        }

        #[test]
        fn no_bytes_panic_and_none_are_taken_for_an_empty_intent(bytes in proptest::collection::vec(any::<u8>(), 1..80)) {
            prop_assert!(Metadata::decode(&bytes).is_err());
        }

        #[test]
        fn one_changed_byte_is_never_read_as_the_same_intent(at in 0usize..60, byte in any::<u8>()) {
            let metadata = Metadata { topic_id: "q".repeat(22), next: Some((1_000, Counts { rows: 9, rejects: 1 })) };
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
        assert_eq!(Metadata::decode(b"tallyhouse/2 end=5"), Err(MetadataError::Version(2)));
        for damaged in ["tallyhouse/", "tallyhouse/1 ", "tallyhouse/1 end=5", "tallyhouse/1 end=05 rows=1 rejects=0"] {
            assert_eq!(Metadata::decode(damaged.as_bytes()), Err(MetadataError::Corrupt(damaged.into())));
        }
    }
}
