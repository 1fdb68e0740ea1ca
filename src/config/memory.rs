//! The parts of `memory.limit_bytes`. Whatever sizes something by that limit takes its part from here.
//!
//! ```text
//! 1/2  windows and batches          1/8  records in librdkafka's queue
//! 1/4  what is being sent           1/8  answers of brokers, unpacked
//! ```
//!
//! Beside the limit the process takes a reserve of at most [`RESERVE_BYTES`]: the program, its threads, what the allocator has not
//! given back, and answers that unpack to more than is usual. `tests/it/memory.rs` holds both to it.
//!
//! A part is a bound on bytes that are counted. Must never give out more than the whole.

/// Most that the process takes beside `memory.limit_bytes`.
pub const RESERVE_BYTES: usize = 96 << 20;

/// librdkafka's own bytes for each byte of a record's value, at most: an event of 290 bytes has 384 of a queue's entry beside it, and its key,
/// headers and length in the batch. Long records have next to nothing.
const OVERHEAD: usize = 3;

/// An answer of a broker is packed, and unpacked at once. Events in JSON unpack to 3 to 16 times their size; the reserve is for more.
const UNPACKED: usize = 16;

/// Brokers that answer at the same time, each with one answer. With more of them the reserve is used, or `fetch.max.bytes` is to be set.
const BROKERS: usize = 3;

/// An answer of less is mostly the work of asking for it.
const FETCH_BYTES_MIN: usize = 64 << 10;
/// An answer of more saves nothing.
const FETCH_BYTES_MAX: usize = 1 << 20;

/// What windows and batches may hold. The oldest replay may borrow an eighth of this more (`core/intake.rs`), of what is being sent.
pub const fn windows(limit_bytes: usize) -> usize {
    limit_bytes / 2
}

/// The `memory.limit_bytes` with which a replay of so many bytes fits, its last record included.
pub const fn limit_for_replay(bytes: u64) -> u64 {
    bytes.saturating_mul(2)
}

/// Values of records in librdkafka's queue (`queued.max.messages.kbytes`), of an eighth of the limit with what comes beside them.
pub const fn queued_values(limit_bytes: usize) -> usize {
    limit_bytes / 8 / OVERHEAD
}

/// Bytes of one answer of a broker (`fetch.max.bytes`): unpacked, those of several brokers come to an eighth of the limit. A broker sends
/// one batch of one partition whole, however large.
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

/// Records that a producer has taken and not delivered (`queue.buffering.max.kbytes`): half of the quarter for what is being sent.
/// Counters as they are encoded for an insert take of the other half.
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
            // The least size of an answer is of the reserve where the limit is low.
            assert!(counted + answers <= limit + RESERVE_BYTES / 8, "{counted} and {answers} of {limit}");
        }
    }
}
