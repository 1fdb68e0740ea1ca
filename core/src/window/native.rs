//! Columns in ClickHouse's Native format, built row by row.
//!
//! A column keeps its bytes exactly in the wire format, so freezing a batch copies nothing. They live in chunks. So growth moves
//! no data, and memory stays close to the counted bytes. Must never hold a partial value at a chunk's end of [`Column::finish`]:
//! a block is whole or it is not sent.
//!
//! The `clickhouse` crate has `insert_native` since 0.15.2. In 0.15.3 it neither writes `LowCardinality` nor compresses, and it takes
//! rows where a window already has columns.

use bytes::{BufMut, Bytes, BytesMut};

/// First chunk's capacity in bytes; each next one is twice as large, up to [`CHUNK_BYTES_MAX`].
const CHUNK_BYTES_MIN: usize = 1 << 10;
const CHUNK_BYTES_MAX: usize = 1 << 18;

/// Finished chunks of one column. A clone copies handles and no bytes.
pub type Chunks = Vec<Bytes>;

/// The bytes of one column.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Column {
    full: Vec<Bytes>,
    open: BytesMut,
}

impl Column {
    /// Appends bytes that may lie across chunks.
    pub fn put(&mut self, bytes: &[u8]) {
        let room = self.open.capacity() - self.open.len();
        if room < bytes.len() {
            return self.put_across(bytes, room);
        }
        self.open.put_slice(bytes);
    }

    /// Appends a `String` value: its length as LEB128, then its bytes.
    pub fn put_string(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.put(bytes);
    }

    /// Appends an unsigned LEB128 number.
    pub fn put_varint(&mut self, mut number: u64) {
        let mut encoded = [0u8; 10];
        let mut length = 0;
        loop {
            encoded[length] = (number & 0x7f) as u8;
            number >>= 7;
            if number == 0 {
                break;
            }
            encoded[length] |= 0x80;
            length += 1;
        }
        self.put(&encoded[..=length]);
    }

    /// Appends a `UUID`, as [`uuid_bytes`] has it.
    pub fn put_uuid(&mut self, uuid: &[u8; 16]) {
        self.put(&uuid_bytes(uuid));
    }

    /// Returns the finished chunks.
    pub fn finish(mut self) -> Vec<Bytes> {
        self.full.push(self.open.freeze());
        self.full
    }

    /// Fills the open chunk before it makes the next one. A large value for which there was no room would leave up to half of
    /// each chunk unused.
    #[cold]
    fn put_across(&mut self, bytes: &[u8], room: usize) {
        let (first, rest) = bytes.split_at(room);
        self.open.put_slice(first);
        let capacity = (self.open.capacity() * 2).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX).max(rest.len());
        let full = std::mem::replace(&mut self.open, BytesMut::with_capacity(capacity));
        if !full.is_empty() {
            self.full.push(full.freeze());
        }
        self.open.put_slice(rest);
    }
}

/// Reads a finished column's values in order and in place. It copies only values that lie across chunks.
#[derive(Debug)]
pub struct Reader<'a> {
    left: std::slice::Iter<'a, Bytes>,
    open: &'a [u8],
    across: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// Returns the reader of these chunks.
    pub fn of(chunks: &'a [Bytes]) -> Reader<'a> {
        Reader { left: chunks.iter(), open: &[], across: Vec::new() }
    }

    /// Returns the next `length` bytes, or `None` if fewer remain.
    fn take(&mut self, length: usize) -> Option<&[u8]> {
        if let Some(value) = self.open.split_off(..length) {
            return Some(value);
        }
        self.across.clear();
        while self.across.len() < length {
            if self.open.is_empty() {
                self.open = self.left.next()?;
            }
            let more = self.open.len().min(length - self.across.len());
            self.across.extend_from_slice(self.open.split_off(..more)?);
        }
        Some(&self.across)
    }

    /// Returns the next value of a fixed width.
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// Returns the next `String` value.
    pub fn string(&mut self) -> Option<&[u8]> {
        let mut length = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let [byte] = self.array()?;
            length |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return self.take(length);
            }
        }
        None
    }
}

/// Reads a finished column's values again, in order, as parts of its chunks that outlive it.
#[derive(Debug)]
pub struct Values {
    left: std::vec::IntoIter<Bytes>,
    open: Bytes,
}

impl Values {
    /// Returns the values of these chunks. It copies only values that lie across two chunks.
    pub fn of(chunks: Vec<Bytes>) -> Values {
        Values { left: chunks.into_iter(), open: Bytes::new() }
    }

    /// Returns the next `length` bytes, or `None` if fewer remain.
    pub fn take(&mut self, length: usize) -> Option<Bytes> {
        while self.open.is_empty() && length > 0 {
            self.open = self.left.next()?;
        }
        if self.open.len() >= length {
            return Some(self.open.split_to(length));
        }
        let mut taken = BytesMut::from(std::mem::take(&mut self.open));
        while taken.len() < length {
            let mut next = self.left.next()?;
            taken.put(next.split_to(next.len().min(length - taken.len())));
            self.open = next;
        }
        Some(taken.freeze())
    }

    /// Returns the next 64-bit number.
    pub fn number(&mut self) -> Option<[u8; 8]> {
        self.take(8)?.as_ref().try_into().ok()
    }

    /// Returns the next `String` value.
    pub fn string(&mut self) -> Option<Bytes> {
        let mut length = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let byte = self.take(1)?[0];
            length |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return self.take(length);
            }
        }
        None
    }
}

/// Returns the bytes of a `UUID` in a column: two little-endian 64-bit halves, the high one first.
pub fn uuid_bytes(uuid: &[u8; 16]) -> [u8; 16] {
    let mut bytes = *uuid;
    bytes[..8].reverse();
    bytes[8..].reverse();
    bytes
}

/// Returns one block in Native format: `columns` are (name, type, chunks), each with `rows` values.
///
/// Format: <https://clickhouse.com/docs/interfaces/formats/Native>, as sent over HTTP (no block info).
pub fn native_block(rows: u64, columns: Vec<(&str, &str, Vec<Bytes>)>) -> Vec<Bytes> {
    let mut block = Vec::new();
    let mut head = Column::default();
    head.put_varint(columns.len() as u64);
    head.put_varint(rows);
    for (name, data_type, chunks) in columns {
        head.put_string(name.as_bytes());
        head.put_string(data_type.as_bytes());
        block.append(&mut std::mem::take(&mut head).finish());
        block.extend(chunks);
    }
    block.retain(|chunk| !chunk.is_empty());
    block
}

/// Returns a `LowCardinality(String)` column with each value in a number of rows that follow each other.
pub fn low_cardinality_runs(runs: &[(&str, u64)]) -> Vec<Bytes> {
    let keys: Vec<&[u8]> = runs.iter().map(|(value, _)| value.as_bytes()).collect();
    let rows = runs.iter().map(|(_, rows)| rows).sum();
    let wide = keys.len() > 256;
    let mut column = low_cardinality_head(&keys, rows, wide);
    for (index, (_, rows)) in runs.iter().enumerate() {
        let rows = *rows as usize;
        match wide {
            true => column.put(&(index as u16).to_le_bytes().repeat(rows)),
            false => column.put(&vec![index as u8; rows]),
        }
    }
    column.finish()
}

/// Returns a `LowCardinality(String)` column from a dictionary of at most 256 keys and one-byte indexes.
pub fn low_cardinality(keys: &[&[u8]], indexes: &[u8]) -> Vec<Bytes> {
    let mut column = low_cardinality_head(keys, indexes.len() as u64, false);
    column.put(indexes);
    column.finish()
}

/// Returns the part of a column before its indexes. `wide`: they have two bytes, for at most 65,536 keys.
fn low_cardinality_head(keys: &[&[u8]], rows: u64, wide: bool) -> Column {
    // ClickHouse, SerializationLowCardinality: version 1 means shared dictionaries with additional keys. The index type is 0
    // (UInt8) or 1 (UInt16), with the flags "has additional keys" and "needs a new dictionary".
    const VERSION: u64 = 1;
    const FLAGS: u64 = (1 << 9) | (1 << 10);
    let mut column = Column::default();
    column.put(&VERSION.to_le_bytes());
    column.put(&(FLAGS | u64::from(wide)).to_le_bytes());
    column.put(&(keys.len() as u64).to_le_bytes());
    for key in keys {
        column.put_string(key);
    }
    column.put(&rows.to_le_bytes());
    column
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_hold_what_was_put_in_order(values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..40)) {
            let mut column = Column::default();
            values.iter().for_each(|v| column.put(v));
            prop_assert_eq!(column.finish().concat(), values.concat());
        }

        #[test]
        fn values_are_read_as_they_were_put(strings in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..40), cut in 1usize..5000) {
            let mut column = Column::default();
            strings.iter().for_each(|string| {
                column.put_string(string);
                column.put(&7u64.to_le_bytes());
            });
            // The chunks are cut again as well: the reader must not depend on the place at which a value lies across chunks.
            let chunks = column.finish();
            let whole = Bytes::from(chunks.concat());
            let copied: Vec<Bytes> = whole.chunks(cut).map(Bytes::copy_from_slice).collect();
            for chunks in [chunks.clone(), copied.clone()] {
                let mut values = Values::of(chunks);
                for string in &strings {
                    prop_assert_eq!(values.string().unwrap(), Bytes::from(string.clone()));
                    prop_assert_eq!(u64::from_le_bytes(values.number().unwrap()), 7);
                }
                prop_assert!(values.take(1).is_none() && values.take(0).is_some());
            }
            for chunks in [&chunks, &copied] {
                let mut values = Reader::of(chunks);
                for string in &strings {
                    prop_assert_eq!(values.string().unwrap(), string.as_slice());
                    prop_assert_eq!(u64::from_le_bytes(values.array().unwrap()), 7);
                }
                prop_assert!(values.take(1).is_none() && values.take(0).is_some());
            }
        }
    }

    /// The values are a little more than half of a chunk. Two thirds of them would find no room in the rest of one.
    #[test]
    fn large_values_leave_no_chunk_unused() {
        let (mut column, value) = (Column::default(), vec![7; CHUNK_BYTES_MAX / 2 + 1]);
        (0..100).for_each(|_| column.put_string(&value));
        let (chunks, bytes) = (column.full.len() + 1, 100 * value.len());
        assert!(chunks * CHUNK_BYTES_MAX < bytes + 10 * CHUNK_BYTES_MAX, "{chunks} chunks for {bytes} bytes");
    }

    #[test]
    fn wire_forms() {
        let mut column = Column::default();
        column.put_varint(300);
        column.put_string(b"ab");
        column.put_uuid(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(
            column.finish().concat(),
            [172, 2, 2, b'a', b'b', 7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8]
        );
        let block = native_block(1, vec![("n", "UInt8", vec![Bytes::from_static(&[9])])]).concat();
        assert_eq!(block, [1, 1, 1, b'n', 5, b'U', b'I', b'n', b't', b'8', 9]);
    }
}
