//! A TCP proxy that can be told to hurt what passes through it: the network between the service and a server.
//!
//! ```text
//! client ──chunk──► [ delay │ cut │ half │ hold │ answer │ remember ] ──► server
//! client ◄───────── [ delay │ cut │ lost ] ◄──chunk── server
//! ```
//!
//! One thread for each direction of each connection. A trouble counts only when it hits a chunk of bytes on its way.
//!
//! Must never change a byte that it delivers: that is what was sent, or the beginning of it. Only the troubles that stand for an HTTP proxy
//! answer by themselves. Must never listen on anything but 127.0.0.1.

use crate::dice::{Dice, mix};
use crate::error::{Context, Result};
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Small against a batch's insert, so that a body passes in several chunks and can be cut anywhere.
const CHUNK_BYTES: usize = 8 << 10;
/// Longest wait for the rest of what one side says, where the proxy answers or asks by itself.
const REST_TIMEOUT: Duration = Duration::from_secs(5);
/// Answers that are remembered.
const ANSWERS_MAX: usize = 64;
/// Every read on which members decide asks for its own query id.
const DECIDING: &[u8] = b"queryID()";

/// What can happen to a chunk of bytes.
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
    /// An HTTP request does not reach the server. The proxy answers with status 200, and `Ok.` or nothing, as a maintenance page does.
    Answer,
    /// A read of tables gets the answer that the same one got before, if that is no older than this. Another query id makes no other read.
    Remember(Duration),
    /// All that comes of an INSERT in this time is held, and reaches the server after it, also when the sender has gone meanwhile.
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
    upstream: OnceLock<SocketAddr>,
    /// What happens at the moment: its number, what, and to how many of a hundred chunks.
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
            upstream: OnceLock::new(),
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

    /// Names the server, once.
    pub fn lead_to(&self, server: SocketAddr) {
        let _ = self.shared.upstream.set(server);
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this happens to so many of a hundred chunks; gives the number to [`Proxy::end`] it with.
    pub fn begin(&self, trouble: Trouble, percent: u64) -> u64 {
        let number = self.shared.begun.fetch_add(1, Ordering::Relaxed);
        self.shared.troubles().push((number, trouble, percent));
        number
    }

    /// It happens no more.
    pub fn end(&self, number: u64) {
        self.shared.troubles().retain(|(other, ..)| *other != number);
    }

    /// How many chunks were hit by any trouble so far.
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        // Wakes the accepting thread, which then ends; if it cannot be woken the process is ending anyway.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn troubles(&self) -> MutexGuard<'_, Vec<(u64, Trouble, u64)>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to the next chunk in this direction.
    fn draw(&self, to_server: bool, bytes: &[u8], dice: &mut Dice) -> Option<Trouble> {
        let applies = |trouble: Trouble| match trouble {
            Trouble::Cut | Trouble::Delay(_) => true,
            Trouble::Half => to_server,
            Trouble::LoseAnswer => !to_server,
            Trouble::Answer => to_server && is_request(bytes),
            Trouble::Remember(_) => to_server && is_read(bytes),
            Trouble::Hold(_) => to_server && is_request(bytes) && contains(bytes, b"query=INSERT"),
        };
        let troubles = self.troubles();
        let drawn = troubles.iter().find(|(_, trouble, percent)| applies(*trouble) && dice.percent(*percent));
        drawn.map(|(_, trouble, _)| {
            // An answer from memory counts once it is given.
            if !matches!(trouble, Trouble::Remember(_)) {
                self.hits.fetch_add(1, Ordering::Relaxed);
            }
            *trouble
        })
    }

    /// The answer to a read: from memory if it is young enough, else the server's.
    fn recall(&self, request: &[u8], age: Duration) -> Option<Vec<u8>> {
        let key = without_query_id(request);
        let answers = || self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = answers().iter().find(|(known, at, _)| *known == key && at.elapsed() <= age).cloned();
        if let Some((.., answer)) = known {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Some(answer);
        }
        let answer = ask(*self.upstream.get()?, request).ok()?;
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

/// An HTTP request begins here: a client begins each one in a write of its own.
fn is_request(bytes: &[u8]) -> bool {
    bytes.starts_with(b"POST ") || bytes.starts_with(b"GET ")
}

/// A whole request for a read of tables on which a member decides.
fn is_read(bytes: &[u8]) -> bool {
    is_request(bytes) && is_whole(bytes) && contains(bytes, DECIDING) && !contains(bytes, b"system.")
}

/// The bytes have all of a request's body.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(head) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    length == Some(bytes.len() - head - 4)
}

/// A request without the value of its query id, which is another one each time.
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

/// Answers a request in the server's place, and reads the rest of it: closed before, the answer would be lost with the connection.
fn answer(client: &mut TcpStream, body: &str) {
    let length = body.len();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    if client.write_all(head.as_bytes()).is_ok() {
        gather(client, REST_TIMEOUT);
    }
}

/// All that comes within a time, or until the sender ends.
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
        let (Ok(client), Some(&upstream)) = (client, shared.upstream.get()) else { continue };
        let (shared, seed) = (Arc::clone(shared), mix(shared.seed ^ mix(number)));
        thread::spawn(move || {
            // A server that is away: the client's connection closes, as that of a host without a listener.
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
                // The other direction may still have something to say.
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

    /// A server that tells what it received on each connection and answers every chunk with "answer".
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

    /// Sends "question" through a proxy with this trouble; gives what the server got, the client got, and the hits.
    fn ask(trouble: Option<Trouble>) -> (Vec<u8>, Vec<u8>, u64) {
        let (address, inbox) = server();
        let proxy = Proxy::new(1).unwrap();
        proxy.lead_to(address);
        trouble.into_iter().for_each(|trouble| {
            proxy.begin(trouble, 100);
        });
        let mut client = TcpStream::connect(proxy.address()).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        (inbox.recv_timeout(Duration::from_secs(60)).unwrap(), answer, proxy.hits())
    }

    #[test]
    fn each_trouble_does_what_it_says() {
        assert_eq!(ask(None), (b"question".to_vec(), b"answer".to_vec(), 0));
        assert_eq!(ask(Some(Trouble::Cut)), (vec![], vec![], 1));
        assert_eq!(ask(Some(Trouble::Half)), (b"ques".to_vec(), vec![], 1));
        assert_eq!(ask(Some(Trouble::LoseAnswer)), (b"question".to_vec(), vec![], 1));
        let late = Trouble::Delay(Duration::from_millis(1));
        assert_eq!(ask(Some(late)), (b"question".to_vec(), b"answer".to_vec(), 2));
    }

    /// A server that answers with the number of the connection and ends it.
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
        // The first one is the server's, the second is not, and neither is one that is no read of tables remembered.
        let first = request(&proxy, &read_of("daily", 1));
        assert_eq!((request(&proxy, &read_of("daily", 2)), proxy.hits()), (first.clone(), 1));
        assert_ne!(request(&proxy, &read_of("email_events", 3)), first);
        assert_ne!(request(&proxy, &read_of("system.processes", 4)), request(&proxy, &read_of("system.processes", 5)));
        assert_eq!(proxy.hits(), 1);
    }

    #[test]
    fn a_request_is_answered_without_the_server_and_other_bytes_are_not() {
        let (address, inbox) = server();
        let proxy = Proxy::new(1).unwrap();
        proxy.lead_to(address);
        proxy.begin(Trouble::Answer, 100);
        assert!(request(&proxy, &read_of("daily", 1)).starts_with("HTTP/1.1 200 OK"));
        assert_eq!((inbox.recv_timeout(Duration::from_secs(60)).unwrap(), proxy.hits()), (Vec::new(), 1));
        assert_eq!((request(&proxy, "question"), proxy.hits()), ("answer".to_owned(), 1));
    }

    #[test]
    fn an_insert_is_held_whole_and_arrives_without_its_sender() {
        let (address, inbox) = server();
        let proxy = Proxy::new(1).unwrap();
        proxy.lead_to(address);
        proxy.begin(Trouble::Hold(Duration::from_millis(300)), 100);
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
