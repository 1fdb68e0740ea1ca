//! One ZooKeeper server.
//!
//! Must never listen on anything but 127.0.0.1.

use crate::{
    cache::Cache,
    error::{Context, Result},
    fetch,
    ports::PortBlock,
    process::{self, Output, Server},
};
use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Duration,
};

/// Time limit for the start. Starting takes about a second; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(60);
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for which a session of ours lives, in milliseconds.
const SESSION_MS: i32 = 5_000;
/// ZooKeeper's number of the request that gives a node a value.
const SET_DATA: i32 = 5;
/// Maximum size of an answer to such a request.
const ANSWER_BYTES_MAX: u32 = 1 << 10;

/// A running ZooKeeper. Dropping it kills the server.
#[derive(Debug)]
pub(super) struct ZooKeeper {
    server: Server,
    ports: PortBlock,
}

impl ZooKeeper {
    /// Starts a server with its data and log in `folder` and waits until it answers. Fetches it first if it is not in
    /// the cache.
    pub(super) fn start(folder: &Path) -> Result<ZooKeeper> {
        let jars = fetch::zookeeper(&Cache::open()?)?;
        let ports = PortBlock::reserve()?;
        fs::create_dir_all(folder).context("make", folder)?;
        let configuration = folder.join("zoo.cfg");
        fs::write(&configuration, settings(folder, ports.port(0))).context("write", &configuration)?;
        let mut command = Command::new("java");
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:-UsePerfData", "-XX:TieredStopAtLevel=1", "-cp"]);
        command.arg(jars.join("*")).arg("org.apache.zookeeper.server.quorum.QuorumPeerMain").arg(&configuration);
        let server = process::spawn("ZooKeeper", command, Output::Log(folder.join("server.log")))?;
        let address = address(&ports);
        let server = server.with_health(move || check(address).map_err(|error| error.to_string()));
        server.wait_healthy(START_DEADLINE)?;
        Ok(ZooKeeper { server, ports })
    }

    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    pub(super) fn address(&self) -> SocketAddr {
        address(&self.ports)
    }

    /// Gives a node that exists a value.
    pub(super) fn set(&self, path: &str, value: &str) -> io::Result<()> {
        let mut stream = TcpStream::connect_timeout(&self.address(), CHECK_TIMEOUT)?;
        stream.set_read_timeout(Some(CHECK_TIMEOUT))?;
        // A session begins with version, last transaction, timeout, id and password.
        let session = [&[0; 12][..], &SESSION_MS.to_be_bytes(), &[0; 8], &text(&[0; 16])].concat();
        ask(&mut stream, &session)?;
        let (number, any_version) = (1_i32.to_be_bytes(), (-1_i32).to_be_bytes());
        let request =
            [&number, &SET_DATA.to_be_bytes()[..], &text(path.as_bytes()), &text(value.as_bytes()), &any_version];
        let answer = ask(&mut stream, &request.concat())?;
        // The request's number, a transaction's number and the error come first.
        match answer.get(12..16) {
            Some([0, 0, 0, 0]) => Ok(()),
            error => Err(io::Error::other(format!("ZooKeeper does not set {path}: {error:?}"))),
        }
    }
}

/// Returns a text of ZooKeeper's protocol: its length, then its bytes.
fn text(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
}

/// Sends one message and returns the next one.
fn ask(stream: &mut TcpStream, message: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&text(message))?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length).min(ANSWER_BYTES_MAX) as usize];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn address(ports: &PortBlock) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, ports.port(0)))
}

fn settings(folder: &Path, port: u16) -> String {
    let data = folder.join("data").display().to_string();
    // A session may be as short as two ticks.
    format!(
        "tickTime=500\ndataDir={data}\nclientPort={port}\nclientPortAddress=127.0.0.1\nadmin.enableServer=false\n\
         4lw.commands.whitelist=srvr\n"
    )
}

/// Asks for `srvr`, which only a server that accepts sessions answers with its mode.
fn check(address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, CHECK_TIMEOUT)?;
    stream.set_read_timeout(Some(CHECK_TIMEOUT))?;
    stream.write_all(b"srvr")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.contains("Mode: standalone") { Ok(()) } else { Err(io::Error::other(format!("srvr gave {answer:?}"))) }
}
