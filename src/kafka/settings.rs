//! Reads settings of topics and groups as the brokers have them, and creates a compacted topic.
//!
//! librdkafka can read them (`rd_kafka_DescribeConfigs`) with the consumer's own connection. rust-rdkafka can only do so with a
//! client of its own, and it drops the error of an object that cannot be described. Must never change existing settings.

use super::consumer::Consumer;
use super::native::{self, Owned};
use super::producer;
use crate::config::Config;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::bindings as c;
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::time::Duration;

/// An object that has settings.
#[derive(Clone, Copy, Debug)]
pub enum ConfigResource<'a> {
    /// A topic, by its name.
    Topic(&'a str),
    /// A consumer group, by its id.
    Group(&'a str),
}

/// Returns every setting with its value. Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error: `UnknownTopicOrPartition` for a topic that does not exist. The right
/// to describe the configuration may be missing.
pub fn read(consumer: &Consumer, of: ConfigResource<'_>, within: Duration) -> KafkaResult<HashMap<String, String>> {
    let (kind, name) = match of {
        ConfigResource::Topic(name) => (c::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name),
        ConfigResource::Group(name) => (c::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_GROUP, name),
    };
    let name = CString::new(name).map_err(|_| KafkaError::AdminOp(RDKafkaErrorCode::InvalidArgument))?;
    let client = consumer.client().native_ptr();
    let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
    // SAFETY: `client` lives as long as `consumer`, `resource` and `name` until the answer is read. What
    // `DescribeConfigs_result_resources` gives belongs to the event, the strings inside too; a value may be null.
    let settings = unsafe {
        let resource = Owned(c::rd_kafka_ConfigResource_new(kind, name.as_ptr()), c::rd_kafka_ConfigResource_destroy);
        let mut resources = [resource.0];
        let send = |options, queue| c::rd_kafka_DescribeConfigs(client, resources.as_mut_ptr(), 1, options, queue);
        native::ask(client, operation, within, send, |event| {
            let mut count = 0;
            let result = c::rd_kafka_event_DescribeConfigs_result(event);
            let described = c::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
            if count != 1 {
                return Ok(HashMap::new());
            }
            native::check(c::rd_kafka_ConfigResource_error(*described))?;
            let entries = c::rd_kafka_ConfigResource_configs(*described, &raw mut count);
            let text = |text: *const _| CStr::from_ptr(text).to_string_lossy().into_owned();
            let setting = |index| {
                let entry = *entries.add(index);
                let value = c::rd_kafka_ConfigEntry_value(entry);
                (!value.is_null()).then(|| (text(c::rd_kafka_ConfigEntry_name(entry)), text(value)))
            };
            Ok((0..count).filter_map(setting).collect())
        })
    };
    settings.map_err(KafkaError::AdminOp)
}

/// Creates a compacted topic of one partition, unless somebody else has just created it.
///
/// # Errors
/// Kafka does not answer in time, or refuses; the right to create topics may be missing.
pub async fn create_compacted(config: &Config, topic: &str, replicas: i32, within: Duration) -> KafkaResult<()> {
    let admin: AdminClient<DefaultClientContext> =
        producer::client_config(config).create().map_err(super::without_value)?;
    let options = AdminOptions::new().request_timeout(Some(within)).operation_timeout(Some(within));
    let wanted = NewTopic::new(topic, 1, TopicReplication::Fixed(replicas)).set("cleanup.policy", "compact");
    match admin.create_topics(&[wanted], &options).await?.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) | Some(Ok(_)) | None => Ok(()),
        Some(Err((_, code))) => Err(KafkaError::AdminOp(code)),
    }
}
