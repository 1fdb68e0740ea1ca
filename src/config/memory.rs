//! The parts of `memory.limit_bytes`. Code that derives a size from that limit takes its part from here.
//!
//! ```text
//! 1/2  windows and batches          1/8  records in librdkafka's queue
//! 1/4  data that is being sent      1/8  answers of brokers, unpacked
//! ```
//!
//! Beside the limit, each lifecycle topic that exists takes a 32nd of it, with the same parts. The process takes a reserve of at most [`RESERVE_BYTES`]. It is for the program, its threads, memory that
//! the allocator has not given back, and answers that unpack to more than usual. `tests/it/memory.rs` checks both.
//!
//! A part is a bound on bytes that are counted. Must never give out more than the whole.

/// Greatest memory that the process takes beside `memory.limit_bytes`, in bytes.
pub const RESERVE_BYTES: usize = 96 << 20;

/// Greatest number of librdkafka's own bytes for each byte of a record's value. An event of 290 bytes has 384 of a queue's entry
/// beside it, and its key, headers and length in the batch. Long records have almost none.
const OVERHEAD: usize = 3;

/// Assumed ratio by which an answer unpacks. A broker's answer is packed, and librdkafka unpacks it at once. Events in JSON
/// unpack to 3 to 16 times their size. The reserve is for more.
const UNPACKED: usize = 16;

/// Number of brokers that answer at the same time, each with one answer. With more of them, the reserve is used, or
/// `fetch.max.bytes` has to be set.
const BROKERS: usize = 3;

/// Least size of an answer, in bytes. A smaller answer is mostly the work of asking for it.
const FETCH_BYTES_MIN: usize = 64 << 10;
/// Greatest size of an answer, in bytes. A larger answer saves nothing.
const FETCH_BYTES_MAX: usize = 1 << 20;

/// Returns the default of `memory.limit_bytes` in a container with this memory. The rest is for the reserve, and for memory that the
/// kernel counts beside the process. The value is in whole MiB, which people can read.
pub fn limit_within(max_bytes: i64) -> i64 {
    (max_bytes / 4 * 3).min(max_bytes - RESERVE_BYTES as i64) & !((1 << 20) - 1)
}

/// Returns the default of `flush.bytes_max` with a lowered limit: two batches fit into the part of windows and batches.
pub const fn batch(limit_bytes: i64) -> i64 {
    limit_bytes / 4
}

/// Share of the limit that the pipeline of one lifecycle topic takes in addition.
const LIFECYCLE_SHARE: usize = 32;

/// Returns the limit of the pipeline of a lifecycle topic, which has few records. The process takes it in addition to its limit.
pub const fn lifecycle(limit_bytes: usize) -> usize {
    limit_bytes / LIFECYCLE_SHARE
}

/// Returns the `memory.limit_bytes` that gives the pipeline of a lifecycle topic this limit.
pub const fn limit_for_lifecycle(limit_bytes: u64) -> u64 {
    limit_bytes.saturating_mul(LIFECYCLE_SHARE as u64)
}

/// Returns the bytes that windows and batches may hold. The oldest replay may borrow an eighth of this more (`tallyhouse_core::window::intake`),
/// from the part for sending.
pub const fn windows(limit_bytes: usize) -> usize {
    limit_bytes / 2
}

/// Returns the `memory.limit_bytes` with which a replay of `bytes` bytes fits, including its last record.
pub const fn limit_for_replay(bytes: u64) -> u64 {
    bytes.saturating_mul(2)
}

/// Returns the size of the values of records in librdkafka's queue (`queued.max.messages.kbytes`). With the bytes beside them
/// they take an eighth of the limit.
pub const fn queued_values(limit_bytes: usize) -> usize {
    limit_bytes / 8 / OVERHEAD
}

/// Returns the greatest `queued.max.messages.kbytes` that a user may set, in bytes.
pub const fn queued_values_max(limit_bytes: usize) -> usize {
    limit_bytes / 2
}

/// Returns the bytes of one answer of a broker (`fetch.max.bytes`). Unpacked, those of several brokers take an eighth of the
/// limit. A broker sends one batch of one partition whole, however large.
pub const fn fetch(limit_bytes: usize) -> usize {
    let bytes = limit_bytes / 8 / (OVERHEAD * UNPACKED * BROKERS);
    if bytes < FETCH_BYTES_MIN {
        FETCH_BYTES_MIN
    } else if bytes > FETCH_BYTES_MAX {
        FETCH_BYTES_MAX
    } else {
        bytes
    }
}

/// Returns the size of the records that a producer has taken and not delivered (`queue.buffering.max.kbytes`). It is half of the
/// quarter for data that is being sent. Counters that are encoded for an insert use the other half.
pub const fn produced(limit_bytes: usize) -> usize {
    limit_bytes / 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_not_more_than_the_whole() {
        for limit in [64 << 20, 100 << 20, 512 << 20, 1 << 34] {
            let answers = fetch(limit) * OVERHEAD * UNPACKED * BROKERS;
            let counted = windows(limit) + queued_values(limit) * OVERHEAD + produced(limit);
            // If the limit is low, the least size of an answer comes from the reserve.
            assert!(counted + answers <= limit + RESERVE_BYTES / 8, "{counted} and {answers} of {limit}");
        }
    }
}
