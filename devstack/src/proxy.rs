//! A TCP proxy between the service and a server. It can be made to hurt the bytes that pass through it.
//!
//! ```text
//! client ──chunk──► [ delay │ cut │ half │ hold │ answer │ remember │ lose commit ] ──► server
//! client ◄───────── [ delay │ cut │ lost ] ◄──chunk── server
//! ```
//!
//! One thread serves each direction of each connection. A trouble counts only when it hits a chunk of bytes on its
//! way.
//!
//! Must never change a byte that it delivers: it delivers the bytes that were sent, or the beginning of them. Only
//! the troubles that stand for an HTTP proxy answer by themselves. Must never listen on anything but 127.0.0.1.

use crate::dice::{Dice, mix};
use crate::error::{Context, Result};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of a chunk in bytes. It is small against a batch's insert, so a body passes in several chunks and can be cut
/// anywhere.
const CHUNK_BYTES: usize = 8 << 10;
/// Longest wait for the rest of one side's message, where the proxy answers or asks by itself.
const REST_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of answers that are remembered.
const ANSWERS_MAX: usize = 64;
/// Text of every read on which members decide: it asks for its own query id.
const DECIDING: &[u8] = b"queryID()";

/// A trouble for a chunk of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It is dropped and the connection closed, in either direction.
    Cut,
    /// It arrives this much later, in either direction, even when the sender has gone meanwhile.
    Delay(Duration),
    /// Half of it reaches the server, then the connection is closed.
    Half,
    /// The server's answer is dropped and the connection closed: the request was received whole.
    LoseAnswer,
    /// A transaction of ClickHouse with a log entry reaches ZooKeeper, and the connection closes before the answer.
    LoseCommit,
    /// An HTTP request does not reach the server. The proxy answers with status 200, and `Ok.` or nothing, as a maintenance page does.
    Answer,
    /// A read of tables gets the answer that the same read got before, if that is no older than this. A read with
    /// another query id is still the same read.
    Remember(Duration),
    /// All bytes of an INSERT in this time are held. They reach the server after it, also when the sender has gone in
    /// the meantime.
    Hold(Duration),
}

/// Answers of one proxy to reads, each with the time when it came.
type Answers = Vec<(Vec<u8>, Instant, Vec<u8>)>;

/// A proxy in front of one server; ends its connections when dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    /// Servers, which take turns in serving new connections.
    upstreams: Mutex<Vec<SocketAddr>>,
    /// The current troubles: number, trouble, and the percentage of chunks that it hits.
    troubles: Mutex<Vec<(u64, Trouble, u64)>>,
    begun: AtomicU64,
    hits: AtomicU64,
    closed: AtomicBool,
    answers: Mutex<Answers>,
}

impl Proxy {
    /// Listens on a free port; connections are refused until [`Proxy::lead_to`] names the server.
    ///
    /// # Errors
    /// No port can be had.
    pub fn new(seed: u64) -> Result<Proxy> {
        let here = Path::new("127.0.0.1");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on", here)?;
        let address = listener.local_addr().context("listen on", here)?;
        let shared = Arc::new(Shared {
            seed,
            upstreams: Mutex::default(),
            troubles: Mutex::default(),
            begun: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            answers: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &accepting));
        Ok(Proxy { shared, address })
    }

    /// Names the server for new connections.
    pub fn lead_to(&self, server: SocketAddr) {
        self.lead_to_each(&[server]);
    }

    /// Names several servers, which take turns in serving new connections, as behind a load balancer.
    pub fn lead_to_each(&self, servers: &[SocketAddr]) {
        *self.shared.upstreams() = servers.to_vec();
    }

    /// Returns the address to which clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Begins a trouble that hits this percentage of the chunks. It comes before those that began earlier. Returns the number to
    /// [`Proxy::end`] it with.
    pub fn begin(&self, trouble: Trouble, percent: u64) -> u64 {
        let number = self.shared.begun.fetch_add(1, Ordering::Relaxed);
        self.shared.troubles().push((number, trouble, percent));
        number
    }

    /// Ends the trouble with this number.
    pub fn end(&self, number: u64) {
        self.shared.troubles().retain(|(other, ..)| *other != number);
    }

    /// Ends all troubles, as a test does before the next one.
    pub fn end_all(&self) {
        self.shared.troubles().clear();
    }

    /// Returns the number of chunks that any trouble has hit so far.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // This wakes the accepting thread, which then ends. If it cannot be woken, the process is ending anyway.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn troubles(&self) -> MutexGuard<'_, Vec<(u64, Trouble, u64)>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upstreams(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the server for the connection with this number.
    fn upstream(&self, number: u64) -> Option<SocketAddr> {
        let upstreams = self.upstreams();
        let turn = number.checked_rem(upstreams.len() as u64)?;
        upstreams.get(turn as usize).copied()
    }

    /// Draws the trouble of the next chunk in this direction.
    fn draw(&self, to_server: bool, bytes: &[u8], dice: &mut Dice) -> Option<Trouble> {
        let applies = |trouble: Trouble| match trouble {
            Trouble::Cut | Trouble::Delay(_) => true,
            Trouble::Half => to_server,
            Trouble::LoseAnswer => !to_server,
            Trouble::LoseCommit => to_server && is_commit(bytes),
            Trouble::Answer => to_server && is_request(bytes),
            Trouble::Remember(_) => to_server && is_read(bytes),
            Trouble::Hold(_) => to_server && is_request(bytes) && contains(bytes, b"query=INSERT"),
        };
        let troubles = self.troubles();
        let drawn = troubles.iter().rev().find(|(_, trouble, percent)| applies(*trouble) && dice.percent(*percent));
        drawn.map(|(_, trouble, _)| {
            // An answer from memory counts only once it is given.
            if !matches!(trouble, Trouble::Remember(_)) {
                self.hits.fetch_add(1, Ordering::Relaxed);
            }
            *trouble
        })
    }

    /// Returns the answer to a read: from memory if it is young enough, else the server's.
    fn recall(&self, request: &[u8], age: Duration) -> Option<Vec<u8>> {
        let key = without_query_id(request);
        let answers = || self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers().iter().find(|(known, at, _)| *known == key && at.elapsed() <= age).cloned();
        if let Some((.., answer)) = known {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Some(answer);
        }
        let answer = ask(self.upstream(0)?, request).ok()?;
        let mut answers = answers();
        answers.retain(|(known, at, _)| *known != key && at.elapsed() <= age);
        if answers.len() < ANSWERS_MAX {
            answers.push((key, Instant::now(), answer.clone()));
        }
        Some(answer)
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// True if a request for several changes at once begins here, and one of them adds an entry to a replicated table's log. That is a
/// commit of an insert, most of the time. A request begins with its length, its number and its type.
fn is_commit(bytes: &[u8]) -> bool {
    const MULTI: [u8; 4] = 14_u32.to_be_bytes();
    bytes.get(8..12) == Some(&MULTI) && contains(bytes, b"/log/log-")
}

/// True if an HTTP request begins here: a client begins each one in a write of its own.
fn is_request(bytes: &[u8]) -> bool {
    bytes.starts_with(b"POST ") || bytes.starts_with(b"GET ")
}

/// True if it is a whole request for a read of tables on which a member decides.
fn is_read(bytes: &[u8]) -> bool {
    is_request(bytes) && is_whole(bytes) && contains(bytes, DECIDING) && !contains(bytes, b"system.")
}

/// True if the bytes have all of a request's body.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length == Some(bytes.len() - head - 4)
}

/// Returns a request without the value of its query id, which differs each time.
fn without_query_id(request: &[u8]) -> Vec<u8> {
    const NAME: &[u8] = b"query_id=";
    let Some(at) = request.windows(NAME.len()).position(|window| window == NAME) else { return request.to_vec() };
    let (before, value) = request.split_at(at + NAME.len());
    let end = value.iter().position(|byte| matches!(byte, b'&' | b' ')).unwrap_or(value.len());
    [before, &value[end..]].concat()
}

/// Asks the server on a connection of its own, which the answer ends.
fn ask(upstream: SocketAddr, request: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut server = TcpStream::connect_timeout(&upstream, CONNECT_TIMEOUT)?;
    server.set_read_timeout(Some(REST_TIMEOUT))?;
    let line = request.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    server.write_all(&[&request[..line], b"Connection: close\r\n", &request[line..]].concat())?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Answers a request in the server's place, and reads the rest of it. If the connection closed before, the answer
/// would be lost.
fn answer(client: &mut TcpStream, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    if client.write_all(head.as_bytes()).is_ok() {
        gather(client, REST_TIMEOUT);
    }
}

/// Reads all bytes that come within a time, or until the sender ends.
fn gather(from: &mut TcpStream, within: Duration) -> Vec<u8> {
    let (mut all, mut chunk, deadline) = (Vec::new(), [0; CHUNK_BYTES], Instant::now() + within);
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        let _ = from.set_read_timeout(Some(left));
        match from.read(&mut chunk) {
            Ok(length) if length > 0 => all.extend_from_slice(&chunk[..length]),
            _ => break,
        }
    }
    let _ = from.set_read_timeout(None);
    all
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut number = 0;
    for client in listener.incoming() {
        if shared.closed.load(Ordering::Relaxed) {
            return;
        }
        number += 1;
        let (Ok(client), Some(upstream)) = (client, shared.upstream(number)) else { continue };
        let (shared, seed) = (Arc::clone(shared), mix(shared.seed ^ mix(number)));
        thread::spawn(move || {
            // If the server is away, the client's connection closes, as with a host without a listener.
            if let Ok(server) = TcpStream::connect_timeout(&upstream, CONNECT_TIMEOUT) {
                connect(client, server, &shared, seed);
            }
        });
    }
}

fn connect(client: TcpStream, server: TcpStream, shared: &Arc<Shared>, seed: u64) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (Ok(client_reader), Ok(server_writer)) = (client.try_clone(), server.try_clone()) else { return };
    let answers = Arc::clone(shared);
    thread::spawn(move || pump(server, client, false, &answers, Dice::new(seed ^ 1)));
    pump(client_reader, server_writer, true, shared, Dice::new(seed));
}

/// Passes bytes on in one direction until an end or a trouble closes the connection.
fn pump(mut from: TcpStream, mut to: TcpStream, to_server: bool, shared: &Shared, mut dice: Dice) {
    let mut chunk = [0; CHUNK_BYTES];
    loop {
        match from.read(&mut chunk) {
            Ok(length) if length > 0 && !shared.closed.load(Ordering::Relaxed) => {
                let bytes = &chunk[..length];
                let passed = match shared.draw(to_server, bytes, &mut dice) {
                    None => to.write_all(bytes).is_ok(),
                    Some(Trouble::Delay(delay)) => {
                        thread::sleep(delay);
                        to.write_all(bytes).is_ok()
                    }
                    Some(Trouble::Half) => {
                        let _ = to.write_all(&bytes[..length / 2]);
                        false
                    }
                    Some(Trouble::Cut | Trouble::LoseAnswer) => false,
                    Some(Trouble::LoseCommit) => {
                        // The client is gone first, so no answer can reach it. The server reads everything before the end.
                        let _ = from.shutdown(Shutdown::Both);
                        let _ = to.write_all(bytes);
                        let _ = to.shutdown(Shutdown::Write);
                        return;
                    }
                    Some(Trouble::Answer) => {
                        answer(&mut from, if dice.percent(50) { "Ok.\n" } else { "" });
                        false
                    }
                    Some(Trouble::Remember(age)) => {
                        if let Some(answer) = shared.recall(bytes, age) {
                            let _ = from.write_all(&answer);
                        }
                        false
                    }
                    Some(Trouble::Hold(delay)) => {
                        let until = Instant::now() + delay;
                        let held = [bytes, &gather(&mut from, delay)].concat();
                        thread::sleep(until.saturating_duration_since(Instant::now()));
                        to.write_all(&held).is_ok()
                    }
                };
                if !passed {
                    break;
                }
            }
            Ok(0) => {
                // The other direction may still carry bytes.
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            _ => break,
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    /// Starts a server that sends on what it received on each connection, and answers every chunk with "answer".
    fn server() -> (SocketAddr, Receiver<Vec<u8>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (received, inbox) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, received) = (stream.unwrap(), received.clone());
                thread::spawn(move || {
                    let mut all = Vec::new();
                    let mut chunk = [0; 1024];
                    while let Ok(length @ 1..) = stream.read(&mut chunk) {
                        all.extend_from_slice(&chunk[..length]);
                        let _ = stream.write_all(b"answer");
                    }
                    let _ = received.send(all);
                });
            }
        });
        (address, inbox)
    }

    /// Returns a proxy with these troubles, the oldest first, and what its server gets.
    fn troubled(troubles: &[Trouble]) -> (Proxy, Receiver<Vec<u8>>) {
        let (address, inbox) = server();
        let proxy = Proxy::new(1).unwrap();
        proxy.lead_to(address);
        for trouble in troubles {
            proxy.begin(*trouble, 100);
        }
        (proxy, inbox)
    }

    /// Sends "question" through a proxy with these troubles, the oldest first. Returns the bytes that the server got and the client got,
    /// and the hits.
    fn ask(troubles: &[Trouble]) -> (Vec<u8>, Vec<u8>, u64) {
        let (proxy, inbox) = troubled(troubles);
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        (inbox.recv_timeout(Duration::from_secs(60)).unwrap(), answer, proxy.hits())
    }

    #[test]
    fn each_trouble_does_what_it_says() {
        assert_eq!(ask(&[]), (b"question".to_vec(), b"answer".to_vec(), 0));
        assert_eq!(ask(&[Trouble::Cut]), (vec![], vec![], 1));
        assert_eq!(ask(&[Trouble::Half]), (b"ques".to_vec(), vec![], 1));
        assert_eq!(ask(&[Trouble::LoseAnswer]), (b"question".to_vec(), vec![], 1));
        let late = Trouble::Delay(Duration::from_millis(1));
        assert_eq!(ask(&[late]), (b"question".to_vec(), b"answer".to_vec(), 2));
        assert_eq!(ask(&[late, Trouble::Cut]), (vec![], vec![], 1), "the newest trouble comes first");
    }

    /// Starts a server that answers with the number of the connection and ends it.
    fn counting_server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                thread::spawn(move || {
                    let _ = stream.read(&mut [0; 1024]);
                    let _ = stream.write_all(format!("answer {number}").as_bytes());
                });
            }
        });
        address
    }

    /// Sends a request through the proxy and reads to the end of the answer.
    fn request(proxy: &Proxy, text: &str) -> String {
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        client.write_all(text.as_bytes()).unwrap();
        let mut answer = String::new();
        let mut chunk = [0; 1024];
        while !answer.contains("answer") && !answer.contains("\r\n\r\n") {
            match client.read(&mut chunk) {
                Ok(length) if length > 0 => answer.push_str(&String::from_utf8_lossy(&chunk[..length])),
                _ => break,
            }
        }
        answer
    }

    fn read_of(table: &str, id: u32) -> String {
        let sql = format!("SELECT queryID() FROM {table}");
        format!("POST /?query_id=tallyhouse-{id}&limit=0 HTTP/1.1\r\ncontent-length: {}\r\n\r\n{sql}", sql.len())
    }

    #[test]
    fn an_answer_from_memory_is_that_of_the_same_read() {
        let proxy = Proxy::new(1).unwrap();
        proxy.lead_to(counting_server());
        proxy.begin(Trouble::Remember(Duration::from_secs(60)), 100);
        // The first answer is the server's, the second is not. A request that is no read of tables is not remembered.
        let first = request(&proxy, &read_of("daily", 1));
        assert_eq!((request(&proxy, &read_of("daily", 2)), proxy.hits()), (first.clone(), 1));
        assert_ne!(request(&proxy, &read_of("email_events", 3)), first);
        assert_ne!(request(&proxy, &read_of("system.processes", 4)), request(&proxy, &read_of("system.processes", 5)));
        assert_eq!(proxy.hits(), 1);
    }

    #[test]
    fn a_request_is_answered_without_the_server_and_other_bytes_are_not() {
        let (proxy, inbox) = troubled(&[Trouble::Answer]);
        assert!(request(&proxy, &read_of("daily", 1)).starts_with("HTTP/1.1 200 OK"));
        assert_eq!((inbox.recv_timeout(Duration::from_secs(60)).unwrap(), proxy.hits()), (Vec::new(), 1));
        assert_eq!((request(&proxy, "question"), proxy.hits()), ("answer".to_owned(), 1));
    }

    #[test]
    fn a_commit_reaches_keeper_and_its_answer_is_lost() {
        let (proxy, inbox) = troubled(&[Trouble::LoseCommit]);
        let of_type = |code: u8| format!("\0\0\0\x40\0\0\0\x07\0\0\0{}/replicas/log/log-", char::from(code));
        assert_eq!((request(&proxy, &of_type(1)), proxy.hits()), ("answer".to_owned(), 0));
        assert_eq!(inbox.recv_timeout(Duration::from_secs(60)).unwrap(), of_type(1).as_bytes());
        assert_eq!((request(&proxy, &of_type(14)), proxy.hits()), (String::new(), 1));
        assert_eq!(inbox.recv_timeout(Duration::from_secs(60)).unwrap(), of_type(14).as_bytes());
    }

    #[test]
    fn an_insert_is_held_whole_and_arrives_without_its_sender() {
        let (proxy, inbox) = troubled(&[Trouble::Hold(Duration::from_millis(300))]);
        let sent = "POST /?query=INSERT+INTO+daily HTTP/1.1\r\n\r\nrows";
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        client.write_all(sent.as_bytes()).unwrap();
        drop(client);
        assert_eq!(inbox.recv_timeout(Duration::from_secs(60)).unwrap(), sent.as_bytes());
        assert_eq!(proxy.hits(), 1);
    }

    #[test]
    fn a_trouble_that_ended_hits_nothing_and_a_missing_server_closes() {
        let proxy = Proxy::new(1).unwrap();
        proxy.end(proxy.begin(Trouble::Cut, 100));
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        proxy.lead_to(gone);
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        let _ = client.write_all(b"question");
        assert_eq!(client.read(&mut [0; 8]).unwrap_or(0), 0);
        assert_eq!(proxy.hits(), 0);
    }
}
