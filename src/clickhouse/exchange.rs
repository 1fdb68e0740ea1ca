//! One INSERT over HTTP, and the proof that ClickHouse itself has answered it.
//!
//! A load balancer, a maintenance page or a proxy can answer `200 Ok.` to an INSERT that never reached ClickHouse. A member that
//! believes it loses the rows. ClickHouse repeats the query id of each request in the header `X-ClickHouse-Query-Id`. So an
//! answer counts only with the id that was sent. The row count in `X-ClickHouse-Summary` decides nothing: it includes the rows of
//! users' own views.
//!
//! The `clickhouse` crate (0.15) hides the headers of an answer, its `HttpClient` trait is sealed, and its compressed chunks are
//! private. So this module sends a batch's INSERT, on a connection pool of its own, with errors in the crate's own kinds.
//!
//! Must never take an answer without the id for a success, nor let a body that was cut look like a whole one.

use super::client::{Compression, Connector};
use super::identity::NAME_HEADER;
use bytes::{BufMut, Bytes, BytesMut};
use clickhouse::error::Error;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::CONNECTION;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client as HttpClient;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;
use url::Url;

const QUERY_ID: &str = "X-ClickHouse-Query-Id";
const EXCEPTION_CODE: &str = "X-ClickHouse-Exception-Code";

/// Limit of an answer's length in bytes, more than the text of any exception.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// A pool of connections for INSERTs.
#[derive(Clone)]
pub(super) struct Exchange {
    pub(super) pool: HttpClient<Connector, Chunks>,
    pub(super) url: Url,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) compression: Compression,
    /// True if each request ends its connection, so that the next one needs a new connection.
    pub(super) is_once: bool,
}

/// The lease of the sender expired before the end of its request.
#[derive(Debug, thiserror::Error)]
#[error("the member's lease expired while it sent an insert, so it broke the insert off")]
pub(super) struct LeaseExpired;

/// A whole answer with status 200.
pub(super) struct Answer {
    /// Query id with which ClickHouse says it answers.
    pub(super) query_id: Option<String>,
    /// Name of the server that answers.
    pub(super) server: Option<String>,
    /// Text of the answer; empty for an INSERT.
    pub(super) body: Bytes,
}

impl Exchange {
    /// Sends a statement with its parameters, and `chunks` as its data. It waits for the whole answer. Each chunk, and the
    /// answer, may take `limit`. If `may_end` is false once the data is on its way, the request is broken off with [`LeaseExpired`].
    ///
    /// ClickHouse gives up a sender that is idle for `http_receive_timeout`. So no request ends later than that after `may_end` was
    /// true, even if the process is stopped right then.
    pub(super) async fn send(
        &self,
        sql: &str,
        parameters: &[(&str, &str)],
        chunks: impl IntoIterator<Item = Bytes, IntoIter: Send>,
        limit: Duration,
        may_end: impl Fn() -> bool,
    ) -> Result<Answer, Error> {
        let mut chunks = chunks.into_iter().peekable();
        let compress = self.compression == Compression::Lz4 && chunks.peek().is_some();
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("query", sql).extend_pairs(parameters);
        if compress {
            url.query_pairs_mut().append_pair("decompress", "1");
        }
        let (sender, body) = mpsc::channel(1);
        let mut request = Request::post(url.as_str())
            .header("X-ClickHouse-User", &self.user)
            .header("X-ClickHouse-Key", &self.password);
        if self.is_once {
            request = request.header(CONNECTION, "close");
        }
        let request = request.body(Chunks(body)).map_err(|error| Error::InvalidParams(error.into()))?;
        let response = self.pool.request(request);
        let answer =
            tokio::spawn(async move { read(response.await.map_err(|error| Error::Network(error.into()))?).await });
        let framed = chunks.map(|chunk| if compress { lz4(&chunk) } else { chunk });
        for chunk in framed.map(Some).chain([None]) {
            // There is room for a chunk once the connection has taken the one before.
            match tokio::time::timeout(limit, sender.reserve()).await {
                Ok(Ok(_)) if chunk.is_none() && !may_end() => return Err(Error::Other(LeaseExpired.into())),
                Ok(Ok(room)) => room.send(chunk),
                // The server has answered before it has read everything. The answer contains the reason.
                Ok(Err(_)) => break,
                Err(_) => return Err(Error::TimedOut),
            }
        }
        match tokio::time::timeout(limit, answer).await {
            Ok(answer) => answer.unwrap_or_else(|error| Err(Error::Other(error.into()))),
            Err(_) => Err(Error::TimedOut),
        }
    }
}

async fn read(response: Response<Incoming>) -> Result<Answer, Error> {
    let (head, body) = response.into_parts();
    let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let code = header(EXCEPTION_CODE);
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(Error::Network)?.to_bytes();
    if head.status == StatusCode::OK && code.is_none() {
        return Ok(Answer { query_id: header(QUERY_ID), server: header(NAME_HEADER), body });
    }
    let text = String::from_utf8_lossy(&body).trim().to_owned();
    // The text alone may not contain the status.
    if head.status == StatusCode::PAYLOAD_TOO_LARGE && code.is_none() {
        return Err(Error::BadResponse(format!("{}: {text}", head.status)));
    }
    let otherwise = || code.map_or_else(|| head.status.to_string(), |code| format!("Code: {code}"));
    Err(Error::BadResponse(if text.is_empty() { otherwise() } else { text }))
}

/// A body in chunks, ended by `None`. A body that ends without it was cut off. Then the connection is broken off, and the server
/// discards the data that it has read.
pub(super) struct Chunks(mpsc::Receiver<Option<Bytes>>);

impl Body for Chunks {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.0.poll_recv(cx).map(|chunk| match chunk {
            Some(Some(chunk)) => Some(Ok(Frame::data(chunk))),
            Some(None) => None,
            None => Some(Err("the sender has given the insert up")),
        })
    }
}

/// Returns a frame of ClickHouse's own compression: a checksum, the method, both sizes, the data.
fn lz4(data: &[u8]) -> Bytes {
    const CHECKSUM: usize = 16;
    const HEADER: usize = 9;
    let packed = lz4_flex::block::compress(data);
    let mut frame = BytesMut::with_capacity(CHECKSUM + HEADER + packed.len());
    frame.put_bytes(0, CHECKSUM);
    frame.put_u8(0x82);
    // A chunk is some megabytes at most.
    frame.put_u32_le((HEADER + packed.len()) as u32);
    frame.put_u32_le(data.len() as u32);
    frame.put_slice(&packed);
    let checksum = cityhash_rs::cityhash_102_128(&frame[CHECKSUM..]).rotate_right(64);
    frame[..CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    frame.freeze()
}
