//! What the broker has fixed for a consumer group (KIP-848), where the client no longer decides.
//!
//! librdkafka can ask (`rd_kafka_DescribeConfigs`) with the consumer's own connection; rust-rdkafka only with a client of its own.

use super::consumer::Consumer;
use super::native::Owned;
use rdkafka::bindings as c;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use std::ffi::{CStr, CString};
use std::time::Duration;

const SESSION_TIMEOUT: &CStr = c"consumer.session.timeout.ms";

/// The group's session timeout in milliseconds, as the broker has it; `None` where it tells none (before Kafka 4.0). Blocks.
///
/// # Errors
/// Kafka does not answer in time, or answers with an error; the right to describe the group's configuration may be missing.
pub fn session_timeout_ms(consumer: &Consumer, group: &str, within: Duration) -> KafkaResult<Option<u64>> {
    let failed = |code: RDKafkaErrorCode| KafkaError::AdminOp(code);
    let name = CString::new(group).map_err(|_| failed(RDKafkaErrorCode::InvalidGroupId))?;
    let timeout_ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    let client = consumer.client().native_ptr();
    // SAFETY: `client` lives as long as `consumer`. Every object made here is owned by an `Owned` and outlives its use: what
    // `DescribeConfigs_result_resources` gives belongs to `event`, the strings inside too; a value may be null.
    unsafe {
        let queue = Owned(c::rd_kafka_queue_new(client), c::rd_kafka_queue_destroy);
        let kind = c::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_GROUP;
        let resource = Owned(c::rd_kafka_ConfigResource_new(kind, name.as_ptr()), c::rd_kafka_ConfigResource_destroy);
        let operation = c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS;
        let options = Owned(c::rd_kafka_AdminOptions_new(client, operation), c::rd_kafka_AdminOptions_destroy);
        c::rd_kafka_AdminOptions_set_request_timeout(options.0, timeout_ms, std::ptr::null_mut(), 0);
        let mut resources = [resource.0];
        c::rd_kafka_DescribeConfigs(client, resources.as_mut_ptr(), 1, options.0, queue.0);
        let event = Owned(c::rd_kafka_queue_poll(queue.0, timeout_ms), c::rd_kafka_event_destroy);
        if event.0.is_null() {
            return Err(failed(RDKafkaErrorCode::OperationTimedOut));
        }
        let error = c::rd_kafka_event_error(event.0);
        if error != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed(error.into()));
        }
        let mut count = 0;
        let result = c::rd_kafka_event_DescribeConfigs_result(event.0);
        let described = c::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
        if count != 1 {
            return Ok(None);
        }
        let code = c::rd_kafka_ConfigResource_error(*described);
        if code != RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(failed(code.into()));
        }
        let entries = c::rd_kafka_ConfigResource_configs(*described, &raw mut count);
        for index in 0..count {
            let entry = *entries.add(index);
            let value = c::rd_kafka_ConfigEntry_value(entry);
            if CStr::from_ptr(c::rd_kafka_ConfigEntry_name(entry)) == SESSION_TIMEOUT && !value.is_null() {
                return Ok(CStr::from_ptr(value).to_str().ok().and_then(|text| text.parse().ok()));
            }
        }
        Ok(None)
    }
}
