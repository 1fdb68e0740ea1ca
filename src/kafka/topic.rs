//! The topic's id (KIP-516), which distinguishes a re-created topic from its predecessor, and this client's rights on the topic.
//!
//! librdkafka knows them (`rd_kafka_DescribeTopics`). rust-rdkafka does not pass them on, so this module calls the C API.

use super::consumer::Consumer;
use super::native::{self, Owned};
use rdkafka::bindings as c;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// Kafka's text for "no topic id", which old brokers return.
const NO_TOPIC_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// Returns the topic's id in its 22-character text form; empty if the broker has none. Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; `UnknownTopicOrPartition` when the topic does not exist.
pub fn topic_id(consumer: &Consumer, topic: &str, within: Duration) -> KafkaResult<String> {
    let id = describe(consumer, topic, within, false, |described| {
        // SAFETY: `described` lives until this returns, the strings inside too.
        let id =
            unsafe { CStr::from_ptr(c::rd_kafka_Uuid_base64str(c::rd_kafka_TopicDescription_topic_id(described))) };
        // librdkafka writes base64 with + and /, Kafka's tools with - and _. People compare the two, and `source` has a /.
        id.to_string_lossy().replace('+', "-").replace('/', "_")
    })?;
    Ok(if id == NO_TOPIC_ID { String::new() } else { id })
}

/// True if this client may read the topic; `None` if the broker does not report it. Blocks.
///
/// # Errors
/// Returns those of [`topic_id`].
pub fn may_read(consumer: &Consumer, topic: &str, within: Duration) -> KafkaResult<Option<bool>> {
    may(consumer, topic, c::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ, within)
}

/// True if this client may write to the topic; `None` if the broker does not report it. Blocks.
///
/// # Errors
/// Returns those of [`topic_id`].
pub fn may_write(consumer: &Consumer, topic: &str, within: Duration) -> KafkaResult<Option<bool>> {
    may(consumer, topic, c::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE, within)
}

fn may(
    consumer: &Consumer,
    topic: &str,
    operation: c::rd_kafka_AclOperation_t,
    within: Duration,
) -> KafkaResult<Option<bool>> {
    describe(consumer, topic, within, true, |described| {
        let mut count = 0;
        // SAFETY: `described` lives until this returns; the operations belong to it.
        unsafe {
            let operations = c::rd_kafka_TopicDescription_authorized_operations(described, &raw mut count);
            native::may(operations, count, operation)
        }
    })
}

/// Requests a description of the topic. `read` gets one that lives until it returns.
fn describe<T>(
    consumer: &Consumer,
    topic: &str,
    within: Duration,
    rights: bool,
    read: impl FnOnce(*const c::rd_kafka_TopicDescription_t) -> T,
) -> KafkaResult<T> {
    let name = CString::new(topic).map_err(|_| KafkaError::AdminOp(RDKafkaErrorCode::InvalidTopic))?;
    let client = consumer.client().native_ptr();
    let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: `client` lives as long as `consumer`, `topics` and `name` until the answer is read. What
    // `DescribeTopics_result_topics` gives belongs to the event.
    let answer = unsafe {
        let mut names = [name.as_ptr()];
        let topics = Owned(
            c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1),
            c::rd_kafka_TopicCollection_destroy,
        );
        let send = |options, queue| {
            if rights {
                native::ask_for_rights(options);
            }
            c::rd_kafka_DescribeTopics(client, topics.0, options, queue);
        };
        native::ask(client, operation, within, send, |event| {
            let mut count = 0;
            let result = c::rd_kafka_event_DescribeTopics_result(event);
            let described = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            if count != 1 {
                return Err(RDKafkaErrorCode::UnknownTopic);
            }
            native::check(c::rd_kafka_error_code(c::rd_kafka_TopicDescription_error(*described)))?;
            Ok(read(*described))
        })
    };
    answer.map_err(KafkaError::AdminOp)
}
