//! A TCP proxy that can be told to hurt what passes through it: the network between the service and a server.
//!
//! ```text
//! client ──chunk──► [ delay │ cut │ half ] ──► server
//! client ◄───────── [ delay │ cut │ lost ] ◄──chunk── server
//! ```
//!
//! One thread for each direction of each connection. A trouble counts only when it hits a chunk of bytes on its way.
//!
//! Must never change a byte: what it delivers is what was sent, or the beginning of it. Must never listen on anything but
//! 127.0.0.1.

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
    time::Duration,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Small against a batch's insert, so that a body passes in several chunks and can be cut anywhere.
const CHUNK_BYTES: usize = 8 << 10;

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
}

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
    fn draw(&self, to_server: bool, dice: &mut Dice) -> Option<Trouble> {
        let applies = |trouble: Trouble| match trouble {
            Trouble::Cut | Trouble::Delay(_) => true,
            Trouble::Half => to_server,
            Trouble::LoseAnswer => !to_server,
        };
        let troubles = self.troubles();
        let drawn = troubles.iter().find(|(_, trouble, percent)| applies(*trouble) && dice.percent(*percent));
        drawn.map(|(_, trouble, _)| {
            self.hits.fetch_add(1, Ordering::Relaxed);
            *trouble
        })
    }
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
                let passed = match shared.draw(to_server, &mut dice) {
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
