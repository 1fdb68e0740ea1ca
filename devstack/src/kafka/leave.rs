//! Takes the members of a group out of it, as a member itself does when it ends in order.
//!
//! A member that was killed cannot do that, and Kafka keeps its partitions until its session ends. A test of what the
//! next member does need not wait for that.
//!
//! It sends LeaveGroup requests (version 1) of Kafka's binary protocol, whose integers are big-endian:
//!
//! - A request is `length i32 | api_key i16 | api_version i16 | correlation_id i32 | client_id i16-string |
//!   group i16-string | member i16-string`.
//! - The answer is `length i32 | correlation_id i32 | throttle_ms i32 | error i16`.

use crate::error::{Error, Result};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);
const LEAVE_GROUP_KEY: i16 = 13;
const LEAVE_GROUP_VERSION: i16 = 1;
const NO_STRING: i16 = -1;
const ANSWER_BYTES: usize = 14;
const NO_ERROR: i16 = 0;
/// The broker is not the coordinator of the group.
const NOT_COORDINATOR: i16 = 16;
/// The member's session has ended meanwhile.
const UNKNOWN_MEMBER: i16 = 25;

/// Takes every member out of a group of the classic protocol.
///
/// # Errors
/// Kafka does not answer, or refuses.
pub fn remove_members(bootstrap: &str, group: &str) -> Result<()> {
    let failed = |cause: &dyn std::fmt::Display| Error::Io {
        action: format!("take the members out of the group {group}"),
        cause: io::Error::other(cause.to_string()),
    };
    let client: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", bootstrap).create().map_err(|error| failed(&error))?;
    let groups = client.fetch_group_list(Some(group), TIMEOUT).map_err(|error| failed(&error))?;
    let members = groups.groups().iter().flat_map(|group| group.members()).map(|member| member.id().to_owned());
    let metadata = client.fetch_metadata(Some(group), TIMEOUT).map_err(|error| failed(&error))?;
    let brokers: Vec<String> =
        metadata.brokers().iter().map(|broker| format!("{}:{}", broker.host(), broker.port())).collect();
    for member in members.collect::<Vec<_>>() {
        let mut error = NOT_COORDINATOR;
        for broker in &brokers {
            error = leave(broker, group, &member).map_err(|error| failed(&error))?;
            if error != NOT_COORDINATOR {
                break;
            }
        }
        if error != NO_ERROR && error != UNKNOWN_MEMBER {
            return Err(failed(&format!("Kafka's error {error} for the member {member}")));
        }
    }
    Ok(())
}

/// Returns the error code of the answer.
fn leave(broker: &str, group: &str, member: &str) -> io::Result<i16> {
    let mut stream = TcpStream::connect(broker)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&request(group, member))?;
    let mut answer = [0; ANSWER_BYTES];
    stream.read_exact(&mut answer)?;
    let [.., high, low] = answer;
    Ok(i16::from_be_bytes([high, low]))
}

fn request(group: &str, member: &str) -> Vec<u8> {
    let correlation_id = 0_i32;
    let mut body = Vec::new();
    body.extend(LEAVE_GROUP_KEY.to_be_bytes());
    body.extend(LEAVE_GROUP_VERSION.to_be_bytes());
    body.extend(correlation_id.to_be_bytes());
    body.extend(NO_STRING.to_be_bytes());
    for text in [group, member] {
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    }
    let mut request = (body.len() as u32).to_be_bytes().to_vec();
    request.extend(body);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_group_and_member() {
        let head = [0, 0, 0, 17, 0, 13, 0, 1, 0, 0, 0, 0, 0xff, 0xff];
        assert_eq!(request("g", "mm"), [&head[..], &[0, 1, b'g', 0, 2, b'm', b'm']].concat());
    }
}
