//! The topic's id (KIP-516), which tells a re-created topic from its predecessor.
//!
//! librdkafka knows it (`rd_kafka_DescribeTopics`), rust-rdkafka does not pass it on, hence the C calls here.

use super::consumer::Consumer;
use super::native::{self, Owned};
use rdkafka::bindings as c;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// Kafka's text for "no topic id", which old brokers give.
const NO_TOPIC_ID: &str = "AAAAAAAAAAAAAAAAAAAAAA";

/// The topic's id in its 22-character text form; empty where the broker has none. Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; `UnknownTopicOrPartition` when the topic does not exist.
pub fn topic_id(consumer: &Consumer, topic: &str, within: Duration) -> KafkaResult<String> {
    let name = CString::new(topic).map_err(|_| KafkaError::MetadataFetch(RDKafkaErrorCode::InvalidTopic))?;
    let client = consumer.client().native_ptr();
    let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: `client` lives as long as `consumer`, `topics` and `name` until the answer is read. What
    // `DescribeTopics_result_topics` gives belongs to the event, the strings inside too.
    let id = unsafe {
        let mut names = [name.as_ptr()];
        let topics = Owned(
            c::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1),
            c::rd_kafka_TopicCollection_destroy,
        );
        let send = |options, queue| c::rd_kafka_DescribeTopics(client, topics.0, options, queue);
        native::ask(client, operation, within, send, |event| {
            let mut count = 0;
            let result = c::rd_kafka_event_DescribeTopics_result(event);
            let described = c::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            if count != 1 {
                return Err(RDKafkaErrorCode::UnknownTopic);
            }
            native::well(c::rd_kafka_error_code(c::rd_kafka_TopicDescription_error(*described)))?;
            let id = c::rd_kafka_Uuid_base64str(c::rd_kafka_TopicDescription_topic_id(*described));
            // librdkafka writes base64 with + and /, Kafka's tools with - and _: people compare the two, and `source` has a /.
            Ok(CStr::from_ptr(id).to_string_lossy().replace('+', "-").replace('/', "_"))
        })
    };
    let id = id.map_err(KafkaError::MetadataFetch)?;
    Ok(if id == NO_TOPIC_ID { String::new() } else { id })
}
