//! What the broker has fixed for a consumer group (KIP-848), where the client no longer decides.
//!
//! librdkafka can ask (`rd_kafka_DescribeConfigs`) with the consumer's own connection; rust-rdkafka only with a client of its own.

use super::consumer::Consumer;
use super::native::{self, Owned};
use rdkafka::bindings as c;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaErrorCode;
use std::ffi::{CStr, CString};
use std::time::Duration;

const SESSION_TIMEOUT: &CStr = c"consumer.session.timeout.ms";

/// The group's session timeout in milliseconds, as the broker has it; `None` where it tells none (before Kafka 4.0). Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; the right to describe the group's configuration may be missing.
pub fn session_timeout_ms(consumer: &Consumer, group: &str, within: Duration) -> KafkaResult<Option<u64>> {
    let name = CString::new(group).map_err(|_| KafkaError::AdminOp(RDKafkaErrorCode::InvalidGroupId))?;
    let client = consumer.client().native_ptr();
    let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
    // SAFETY: `client` lives as long as `consumer`, `resource` and `name` until the answer is read. What
    // `DescribeConfigs_result_resources` gives belongs to the event, the strings inside too; a value may be null.
    let timeout_ms = unsafe {
        let kind = c::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_GROUP;
        let resource = Owned(c::rd_kafka_ConfigResource_new(kind, name.as_ptr()), c::rd_kafka_ConfigResource_destroy);
        let mut resources = [resource.0];
        let send = |options, queue| c::rd_kafka_DescribeConfigs(client, resources.as_mut_ptr(), 1, options, queue);
        native::ask(client, operation, within, send, |event| {
            let mut count = 0;
            let result = c::rd_kafka_event_DescribeConfigs_result(event);
            let described = c::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
            if count != 1 {
                return Ok(None);
            }
            native::well(c::rd_kafka_ConfigResource_error(*described))?;
            let entries = c::rd_kafka_ConfigResource_configs(*described, &raw mut count);
            for index in 0..count {
                let entry = *entries.add(index);
                let value = c::rd_kafka_ConfigEntry_value(entry);
                if CStr::from_ptr(c::rd_kafka_ConfigEntry_name(entry)) == SESSION_TIMEOUT && !value.is_null() {
                    return Ok(CStr::from_ptr(value).to_str().ok().and_then(|text| text.parse().ok()));
                }
            }
            Ok(None)
        })
    };
    timeout_ms.map_err(KafkaError::AdminOp)
}
