//! The topic's id (KIP-516), which tells a re-created topic from its predecessor.
//!
//! librdkafka knows it (`rd_kafka_DescribeTopics`), rust-rdkafka does not pass it on, hence the C calls here.

use super::consumer::Consumer;
use super::native::Owned;
use rdkafka::bindings as c;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use std::ffi::{CStr, CString};
use std::time::Duration;

/// Kafka's text for "no topic id", which old brokers give.
const NO_TOPIC_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// The topic's id in its 22-character text form; empty where the broker has none. Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; `UnknownTopicOrPartition` when the topic does not exist.
pub fn topic_id(consumer: &Consumer, topic: &str, within: Duration) -> KafkaResult<String> {
    let failed = |code: RDKafkaErrorCode| KafkaError::MetadataFetch(code);
    let name = CString::new(topic).map_err(|_| failed(RDKafkaErrorCode::InvalidTopic))?;
    let timeout_ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    let client = consumer.client().native_ptr();
    // SAFETY: `client` lives as long as `consumer`. Every object made here is owned by an `Owned` and outlives its use: what
    // `DescribeTopics_result_topics` gives belongs to `event`, the strings inside too.
    unsafe {
        let queue = Owned(c::rd_kafka_queue_new(client), c::rd_kafka_queue_destroy);
        let mut names = [name.as_ptr()];
        let topics = Owned(
            c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1),
            c::rd_kafka_TopicCollection_destroy,
        );
        let kind = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let options = Owned(c::rd_kafka_AdminOptions_new(client, kind), c::rd_kafka_AdminOptions_destroy);
        c::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, std::ptr::null_mut(), 0);
        c::rd_kafka_DescribeTopics(client, topics.0, options.0, queue.0);
        let event = Owned(c::rd_kafka_queue_poll(queue.0, timeout_ms), c::rd_kafka_event_destroy);
        if event.0.is_null() {
            return Err(failed(RDKafkaErrorCode::OperationTimedOut));
        }
        let error = c::rd_kafka_event_error(event.0);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed(error.into()));
        }
        let mut count = 0;
        let result = c::rd_kafka_event_DescribeTopics_result(event.0);
        let described = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        if count != 1 {
            return Err(failed(RDKafkaErrorCode::UnknownTopic));
        }
        let code = c::rd_kafka_error_code(c::rd_kafka_TopicDescription_error(*described));
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed(code.into()));
        }
        let id = c::rd_kafka_Uuid_base64str(c::rd_kafka_TopicDescription_topic_id(*described));
        // librdkafka writes base64 with + and /, Kafka's tools with - and _: people compare the two, and `source` has a / already.
        let id = CStr::from_ptr(id).to_string_lossy().replace('+', "-").replace('/', "_");
        Ok(if id == NO_TOPIC_ID { String::new() } else { id })
    }
}
