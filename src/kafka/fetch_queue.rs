//! FetchQueue records of librdkafka, in a queue of their own. In the queue of `poll`, each record costs three readings of the clock,
//! an allocation and a histogram's lock. That is a tenth of the cost of an event in a member.
//!
//! Records of a partition come here after the partition was taken over. Everything else (rebalances, statistics, errors of the
//! client) still comes to `poll`. `poll` also shows the group that this member lives, and so the reader must continue to call it.
//!
//! Must never have records of a partition come in two ways at once: out of order, they would look known and be lost. Must never
//! use `rd_kafka_consume_batch_queue`: it takes the end of a partition for a record, and after a pause a record is missing
//! (librdkafka 2.12). Must never use `rd_kafka_consume_callback_queue`, which shows the markers of transactions as records.

use super::consumer::Consumer;
use super::native::Owned;
use rdkafka::bindings as c;
use rdkafka::client::ClientContext as _;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaRespErr;
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;
use std::time::Duration;
use tallyhouse_core::window::Record;

/// An event of a partition.
pub enum Fetch<'a> {
    /// The next record of the partition.
    Record(Record<'a>),
    /// All records before this offset have come, and the log has no more for now.
    End(u64),
    /// The partition's position is outside of the log, or was cut out of it (`auto.offset.reset=error`): nothing comes any more.
    PositionLost,
    /// Any other error. librdkafka continues by itself.
    Error(KafkaError),
}

/// The queue of all partitions that were taken over.
pub struct FetchQueue {
    // The queue is freed before the client to which it belongs.
    queue: Owned<c::rd_kafka_queue_t>,
    consumer: Arc<Consumer>,
}

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for FetchQueue {}

impl FetchQueue {
    /// Creates an empty queue. No partition is taken over yet.
    pub fn new(consumer: Arc<Consumer>) -> FetchQueue {
        // SAFETY: the client lives as long as `consumer`, which is kept beside the queue.
        let queue = unsafe { c::rd_kafka_queue_new(consumer.client().native_ptr()) };
        FetchQueue { queue: Owned(queue, c::rd_kafka_queue_destroy), consumer }
    }

    /// Redirects records of this partition to this queue, until the partition is revoked. The partition must be paused, so that
    /// no record is on its way to `poll`. The call may be repeated.
    ///
    /// # Errors
    /// librdkafka does not know the partition.
    pub fn redirect(&self, topic: &str, partition: i32) -> KafkaResult<()> {
        let topic = CString::new(topic)?;
        let client = self.consumer.client().native_ptr();
        // SAFETY: the client lives, `topic` ends with a null byte, and the partition's queue is freed once. The forwarded queue
        // keeps a hold on `queue` of its own.
        unsafe {
            let queue = c::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition);
            let queue = Owned(queue, c::rd_kafka_queue_destroy);
            if queue.0.is_null() {
                return Err(KafkaError::OffsetFetch(RDKafkaErrorCode::UnknownPartition));
            }
            c::rd_kafka_queue_forward(queue.0, self.queue.0);
        }
        Ok(())
    }

    /// Passes the next event with its partition to `visit`, -1 if librdkafka names none. Waits for it at most `within`. True if
    /// there was an event.
    pub fn take(&self, within: Duration, mut visit: impl FnMut(i32, Fetch<'_>)) -> bool {
        let timeout_ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue lives, and the event is destroyed once, after `visit`, which cannot keep what it borrows of it. A message
        // belongs to its event.
        unsafe {
            let event = Owned(c::rd_kafka_queue_poll(self.queue.0, timeout_ms), c::rd_kafka_event_destroy);
            if event.0.is_null() {
                return false;
            }
            match c::rd_kafka_event_type(event.0) {
                c::RD_KAFKA_EVENT_FETCH => {
                    while let Some(message) = c::rd_kafka_event_message_next(event.0).as_ref() {
                        visit(message.partition, self.fetch(message));
                    }
                }
                c::RD_KAFKA_EVENT_ERROR => {
                    let place = c::rd_kafka_event_topic_partition(event.0);
                    let place = Owned(place, c::rd_kafka_topic_partition_destroy);
                    let (partition, offset) =
                        place.0.as_ref().map_or((-1, -1), |place| (place.partition, place.offset));
                    let reason = c::rd_kafka_event_error_string(event.0);
                    visit(partition, self.trouble(c::rd_kafka_event_error(event.0), offset, reason));
                }
                _ => {}
            }
            true
        }
    }

    /// Safety: `message` is one of librdkafka's.
    unsafe fn fetch<'a>(&self, message: &'a c::rd_kafka_message_t) -> Fetch<'a> {
        // SAFETY: the caller guarantees the message; its lengths are those of its pointers.
        unsafe {
            if message.err != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
                return self.trouble(message.err, message.offset, c::rd_kafka_message_errstr(message));
            }
            let bytes = |start: *const c_void, length| {
                (!start.is_null()).then(|| std::slice::from_raw_parts(start.cast::<u8>(), length))
            };
            let mut kind = c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
            let timestamp_ms = c::rd_kafka_message_timestamp(message, &raw mut kind);
            let is_known = kind != c::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
            Fetch::Record(Record {
                offset: message.offset.unsigned_abs(),
                // A negative timestamp means "none" in Kafka.
                timestamp_ms: (is_known && timestamp_ms >= 0).then_some(timestamp_ms),
                key: bytes(message.key, message.key_len),
                payload: bytes(message.payload, message.len),
            })
        }
    }

    /// Reports an error to the context with librdkafka's words for it, as rust-rdkafka does for callers of `poll`.
    ///
    /// Safety: `reason` ends with a null byte.
    unsafe fn trouble(&self, code: RDKafkaRespErr, offset: i64, reason: *const std::ffi::c_char) -> Fetch<'static> {
        // SAFETY: the caller guarantees it.
        let reason = unsafe { CStr::from_ptr(reason) }.to_string_lossy();
        let code = code.into();
        self.consumer.context().error(KafkaError::Global(code), reason.trim());
        match code {
            // The offset is the next one that librdkafka would fetch, control records included.
            RDKafkaErrorCode::PartitionEOF => Fetch::End(offset.max(0).unsigned_abs()),
            RDKafkaErrorCode::AutoOffsetReset => Fetch::PositionLost,
            code => Fetch::Error(KafkaError::MessageConsumption(code)),
        }
    }
}
