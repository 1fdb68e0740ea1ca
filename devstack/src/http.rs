//! One question to an HTTP endpoint on this machine, such as a member's `/metrics`.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The whole answer, status line and headers included, whatever the status.
///
/// Fails when nothing listens there, or no more of the answer comes `within` that time.
pub fn get(address: impl ToSocketAddrs, path: &str, within: Duration) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(within))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
