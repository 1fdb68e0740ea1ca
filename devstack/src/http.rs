//! Asks HTTP endpoints on this machine, such as a member's `/metrics` or a server's queries.
//!
//! [`get`] shows an answer as it was sent, and a client such as ureq takes it apart.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Returns the whole answer, status line and headers included, whatever the status.
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

/// Makes a client with a connection of its own. It gives up after `timeout`, and takes an answer of any status.
pub(crate) fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build().new_agent()
}
