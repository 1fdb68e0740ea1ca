//! Connections to the HTTP endpoint, each bounded in every way. A client that reaches the port may try to hurt the service with
//! it.
//!
//! | action of a client | limit |
//! |---|---|
//! | sends its headers slowly, or nothing | [`HEADER_TIMEOUT`] |
//! | sends large headers | [`HEADERS_BYTES_MAX`] |
//! | sends a body | the service does not read it, and the connection ends with the answer |
//! | reads the answer slowly | [`CONNECTION_TIME_MAX`] |
//! | opens many connections | the oldest is closed for the newest at [`CONNECTIONS_MAX`] |
//!
//! Each connection gets one answer. A scrape every few seconds does not need more, and the service keeps nothing for a quiet
//! client. Must never wait for a client anywhere but in that client's own task.

use axum::Router;
use hyper::server::conn::http1::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Longest wait for a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for a connection from its first byte to its last.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest request line and headers, in bytes.
const HEADERS_BYTES_MAX: usize = 16 << 10;
/// Greatest number of connections at the same time. The oldest has nearly always sent no request: an answer takes milliseconds.
const CONNECTIONS_MAX: usize = 128;
/// Pause after the system has refused a connection, for instance because there are no free file descriptors.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Serves until the process ends.
pub async fn serve(listener: TcpListener, router: Router) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!("a connection to the HTTP endpoint was refused: {error}");
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS_MAX
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(answer(stream, router.clone())).abort_handle());
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADERS_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(CONNECTION_TIME_MAX, connection).await {
        Ok(Err(error)) => tracing::debug!("a connection to the HTTP endpoint failed: {error}"),
        Err(_) => tracing::debug!("a connection to the HTTP endpoint took too long"),
        Ok(Ok(())) => {}
    }
}
