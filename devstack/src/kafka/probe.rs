//! Asks a broker which brokers it knows. The answer proves that it serves clients, which an open port does not.
//!
//! It sends one Metadata request (version 1, no topics) of Kafka's binary protocol, whose integers are big-endian:
//!
//! - A request is
//!   `length i32 | api_key i16 | api_version i16 | correlation_id i32 | client_id i16-string | topic count i32`.
//! - The answer is `length i32 | correlation_id i32 | broker count i32 | brokers…`.
//! - A broker is `node_id i32 | host i16-string | port i32 | rack nullable i16-string`.
//!
//! Must never grow into a client.

use std::{
    io::{Error, ErrorKind, Read, Result, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(2);
const METADATA_KEY: i16 = 3;
const METADATA_VERSION: i16 = 1;
const NO_STRING: i16 = -1;
const LONGEST_ANSWER: usize = 1 << 20;

/// Returns the ports of the brokers that the broker at `port` on 127.0.0.1 knows to be alive.
pub(super) fn broker_ports(port: u16) -> Result<Vec<i32>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(&request())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST_ANSWER {
        return Err(malformed());
    }
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer)?;
    parse(&answer).ok_or_else(malformed)
}

fn request() -> Vec<u8> {
    let (correlation_id, topic_count) = (0_i32, 0_i32);
    let mut body = Vec::new();
    body.extend(METADATA_KEY.to_be_bytes());
    body.extend(METADATA_VERSION.to_be_bytes());
    body.extend(correlation_id.to_be_bytes());
    body.extend(NO_STRING.to_be_bytes());
    body.extend(topic_count.to_be_bytes());
    let mut request = (body.len() as u32).to_be_bytes().to_vec();
    request.extend(body);
    request
}

fn parse(mut answer: &[u8]) -> Option<Vec<i32>> {
    let _correlation_id = take_i32(&mut answer)?;
    let count = take_i32(&mut answer)?;
    (0..count)
        .map(|_| {
            let _node_id = take_i32(&mut answer)?;
            skip_string(&mut answer)?;
            let port = take_i32(&mut answer)?;
            skip_string(&mut answer)?;
            Some(port)
        })
        .collect()
}

fn take_i32(bytes: &mut &[u8]) -> Option<i32> {
    Some(i32::from_be_bytes(*bytes.split_off(..4)?.first_chunk()?))
}

/// Skips a string. A negative length stands for no string.
fn skip_string(bytes: &mut &[u8]) -> Option<()> {
    let length = i16::from_be_bytes(*bytes.split_off(..2)?.first_chunk()?);
    bytes.split_off(..usize::try_from(length).unwrap_or(0)).map(drop)
}

fn malformed() -> Error {
    Error::new(ErrorKind::InvalidData, "the answer is not Kafka's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_an_answer_and_refuses_a_short_one() {
        let mut answer = vec![0, 0, 0, 0, 0, 0, 0, 2];
        answer.extend([0, 0, 0, 1, 0, 1, b'h', 0, 0, 0x23, 0x84, 0xff, 0xff]);
        answer.extend([0, 0, 0, 2, 0, 1, b'h', 0, 0, 0x23, 0x85, 0, 1, b'r']);
        assert_eq!(parse(&answer), Some(vec![9092, 9093]));
        assert_eq!(parse(&answer[..answer.len() - 1]), None);
    }
}
