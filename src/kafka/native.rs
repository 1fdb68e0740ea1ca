//! The parts of librdkafka's C API that a few modules need: objects that are freed when they are dropped, and admin requests.

use rdkafka::bindings as c;
use rdkafka::types::{RDKafka, RDKafkaErrorCode, RDKafkaRespErr};
use std::time::Duration;

/// A C object with the function that frees it.
pub struct Owned<T>(pub *mut T, pub unsafe extern "C" fn(*mut T));

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: the pointer came from the constructor that goes with this destructor, and is freed once.
            unsafe { self.1(self.0) }
        }
    }
}

/// Time after which librdkafka itself gives up an admin request to a group's coordinator, in ms. It is the greatest that
/// librdkafka allows, because no such request may time out in it. With 2.12.1 the process aborts when the coordinator comes back
/// after a timeout. `rd_kafka_coord_req_fsm` sends the request, learns that it is over, and answers it a second time
/// (`rd_kafka_enq_once_del_source_return: Assertion refcnt > 0`). The same happens when the client is destroyed in between.
const COORDINATOR_TIMEOUT_MS: i32 = 3_600_000;

/// Sends an admin request over a client's own connections and reads the answer. Blocks.
///
/// # Errors
/// No answer came in time, the answer was an error, or `read` returned an error.
///
/// # Safety
/// `client` lives until this returns. `send` makes the request of `operation` with these options and this queue. `read` keeps
/// nothing of the event, which is not null.
pub unsafe fn ask<T>(
    client: *mut RDKafka,
    operation: c::rd_kafka_admin_op_t,
    within: Duration,
    send: impl FnOnce(*const c::rd_kafka_AdminOptions_t, *mut c::rd_kafka_queue_t),
    read: impl FnOnce(*mut c::rd_kafka_event_t) -> Result<T, RDKafkaErrorCode>,
) -> Result<T, RDKafkaErrorCode> {
    let timeout_ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: every object made here is owned by an `Owned`, and the event is freed before the objects that it came from.
    unsafe {
        let queue = Owned(c::rd_kafka_queue_new(client), c::rd_kafka_queue_destroy);
        let options = Owned(c::rd_kafka_AdminOptions_new(client, operation), c::rd_kafka_AdminOptions_destroy);
        let given_up_ms = match operation {
            c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS => COORDINATOR_TIMEOUT_MS,
            // Several brokers are asked. The answers of the others come once the one that gives none is given up.
            c::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS => timeout_ms / 2,
            _ => timeout_ms,
        };
        c::rd_kafka_AdminOptions_set_request_timeout(options.0, given_up_ms, std::ptr::null_mut(), 0);
        send(options.0, queue.0);
        let event = Owned(c::rd_kafka_queue_poll(queue.0, timeout_ms), c::rd_kafka_event_destroy);
        if event.0.is_null() {
            return Err(RDKafkaErrorCode::OperationTimedOut);
        }
        check(c::rd_kafka_event_error(event.0))?;
        read(event.0)
    }
}

/// Converts an error code of librdkafka to a result.
///
/// # Errors
/// The code, unless it means that there was none.
pub fn check(code: RDKafkaRespErr) -> Result<(), RDKafkaErrorCode> {
    if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR { Ok(()) } else { Err(code.into()) }
}

/// Asks the broker to report also the rights of this client on the described object.
///
/// # Safety
/// `options` are those of a request that is not sent yet, made for an operation that describes.
pub unsafe fn ask_for_rights(options: *const c::rd_kafka_AdminOptions_t) {
    // SAFETY: `ask` has made the options and nobody else uses them; this function has to free an error. With one, nothing is
    // reported.
    unsafe {
        let error = c::rd_kafka_AdminOptions_set_include_authorized_operations(options.cast_mut(), 1);
        drop(Owned(error, c::rd_kafka_error_destroy));
    }
}

/// True if an operation is among those that the broker allows; `None` if it has reported none.
///
/// # Safety
/// `operations` has `count` elements, or is null.
pub unsafe fn may(
    operations: *const c::rd_kafka_AclOperation_t,
    count: usize,
    wanted: c::rd_kafka_AclOperation_t,
) -> Option<bool> {
    if operations.is_null() || count == 0 {
        return None;
    }
    // SAFETY: the caller guarantees it.
    Some(unsafe { std::slice::from_raw_parts(operations, count) }.contains(&wanted))
}
