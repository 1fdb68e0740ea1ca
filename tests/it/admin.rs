//! Tests the HTTP endpoint under hostile clients, on raw sockets: the service goes on, and people still get answers.

use crate::service::{Bench, address, await_http, end};
use devstack::Server;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
/// Time limit for four answers on a busy machine. It is less than any limit of the endpoint, which would otherwise
/// pass for an answer.
const PROMPT: Duration = Duration::from_secs(4);
const IDLE_CONNECTIONS: usize = 1_000;
/// Maximum number of open files of a member with all these clients: 128 connections, Kafka, ClickHouse and its own.
const FILES_MAX: usize = 250;

fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Reads everything until the other side closes, which it must.
fn rest_of(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        // Bytes that were sent and not read make the closing a reset.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
        Err(error) => panic!("the connection was not closed: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status_of(answer: &str) -> &str {
    answer.split_whitespace().nth(1).unwrap_or_default()
}

fn assert_prompt(address: &str, what: &str) {
    let asked = Instant::now();
    for path in ["/livez", "/readyz", "/metrics", "/windows"] {
        let answer = devstack::http::get(address, path, DEADLINE).unwrap();
        assert_eq!(status_of(&answer), "200", "{what}: {path}: {answer}");
    }
    assert!(asked.elapsed() < PROMPT, "{what}: {:?}", asked.elapsed());
}

fn open_files(member: &Server) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", member.pid())).unwrap().count()
}

/// Slow headers, large headers, large bodies, answers that nobody reads and a thousand idle connections: the endpoint
/// ends each. None keeps others from their answers, and all events produced meanwhile are counted.
pub async fn clients_that_mean_harm_hurt_nobody(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let member = bench.start(&[]);
    await_http(&member, "/readyz", "\"ready\":true").await;
    let address = address(&member);

    let slow: Vec<TcpStream> = (0..50).map(|_| connect(&address)).collect();
    let unread: Vec<TcpStream> = (0..50).map(|_| connect(&address)).collect();
    for mut stream in &unread {
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    }
    let begun = Instant::now();
    let trickle = std::thread::spawn(move || {
        let mut slow = slow;
        // One byte is sent at a time: the data never ends, and the connections must.
        while !slow.is_empty() {
            assert!(begun.elapsed() < DEADLINE, "{} slow connections are still open", slow.len());
            slow.retain_mut(|stream| stream.write_all(b"G").is_ok());
            std::thread::sleep(Duration::from_millis(200));
        }
        begun.elapsed()
    });
    assert_prompt(&address, "slow clients");

    let mut large = connect(&address);
    large.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let line = format!("X-Large: {}\r\n", "x".repeat(1_000));
    while large.write_all(line.as_bytes()).is_ok() {
        assert!(begun.elapsed() < DEADLINE, "headers without end are read");
    }
    let answer =
        rest_of(&mut connect_and_send(&address, &format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000))));
    assert!(["431", ""].contains(&status_of(&answer)), "{answer}");

    let mut body =
        connect_and_send(&address, "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n");
    let chunk = [0; 64 << 10];
    let mut sent = 0_usize;
    while body.write_all(&chunk).is_ok() {
        sent += chunk.len();
        assert!(sent < 64 << 20, "a body without end is read");
    }
    let answer = rest_of(&mut connect_and_send(&address, "POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"));
    assert_eq!(status_of(&answer), "405", "{answer}");
    for request in [
        "\u{0}\u{1}\u{2}\r\n\r\n",
        "GET /metrics HTTP/9.9\r\n\r\n",
        "BREW / HTTP/1.1\r\n\r\n",
        "GET /../../etc/passwd HTTP/1.1\r\n\r\n",
    ] {
        let answer = rest_of(&mut connect_and_send(&address, request));
        assert!(["400", "404", "405", ""].contains(&status_of(&answer)), "{request:?}: {answer}");
    }
    assert_prompt(&address, "broken clients");

    let idle: Vec<TcpStream> = (0..IDLE_CONNECTIONS).map(|_| connect(&address)).collect();
    let ledger = bench.produce(5_000);
    assert_prompt(&address, "idle clients");
    let files = open_files(&member);
    assert!(files < FILES_MAX, "{files} files are open");
    bench.await_stored(ledger.produced, &[&member]).await;
    for mut stream in idle {
        assert_eq!(rest_of(&mut stream), "", "an idle connection got an answer");
    }
    let slowest = trickle.join().unwrap();
    assert!(slowest < Duration::from_secs(15), "a slow connection lived for {slowest:?}");
    assert_prompt(&address, "afterwards");
    end(&member);
    bench.assert_exact(&ledger, "beside clients that mean harm").await;
}

fn connect_and_send(address: &str, request: &str) -> TcpStream {
    let mut stream = connect(address);
    // A server that has seen enough may have closed already.
    let _ = stream.write_all(request.as_bytes());
    stream
}
