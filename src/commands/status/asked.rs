//! Asks a member at its HTTP endpoint: `/readyz` for the causes, `/metrics` for the stopped partitions.
//!
//! Must never wait long for a member, nor take more of its answer than a member gives: another program may listen
//! there.

use crate::commands::table;
use crate::kafka::observer::ANSWER_TIMEOUT;
use crate::platform::metrics::{FLUSH_AGE, INFO, STOPPED};
use axum::body::{Body, to_bytes};
use axum::http::{StatusCode, Uri};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;
use url::Url;

/// Longest answer that is read, in bytes. Metrics of a thousand partitions are a fifth of it.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The address of a member's HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberUrl(String);

/// The reason why an address cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("give a member's admin address as http://host:port, without user, password or query")]
pub struct NotAMember;

impl FromStr for MemberUrl {
    type Err = NotAMember;

    fn from_str(text: &str) -> Result<MemberUrl, NotAMember> {
        let url = Url::parse(text).map_err(|_| NotAMember)?;
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        let usable = url.scheme() == "http" && url.has_host() && plain && url.fragment().is_none();
        usable.then(|| MemberUrl(url.as_str().trim_end_matches('/').to_owned())).ok_or(NotAMember)
    }
}

impl fmt::Display for MemberUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A member that was asked, and its answer. An `Err` is in words, for people.
#[derive(Clone, Debug)]
pub struct Asked {
    /// URL of the member's endpoint.
    pub url: String,
    /// The member's answer, or an error in words.
    pub answer: Result<MemberAnswer, String>,
}

/// The causes, the counts and the flush age that a member reports.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemberAnswer {
    /// The reasons why it is not ready, by cause, as in `/readyz`. None means ready.
    pub reasons: BTreeMap<String, String>,
    /// Number of its partitions that are stopped, by reason.
    pub stopped: BTreeMap<String, u64>,
    /// The age of a batch at which the member flushes it.
    pub flush_age: Option<Duration>,
}

#[derive(Deserialize)]
struct Readiness {
    reasons: BTreeMap<String, String>,
}

/// The subject of a cause. It may concern one partition, and that partition may be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// `partition N`: the partition is stopped.
    Stopped(i32),
    /// `partition N, step`: a step of the partition fails.
    Step(i32),
    /// The cause concerns the member as a whole.
    Member,
}

impl Cause {
    /// Sorts a cause of `/readyz` by its name.
    pub fn of(name: &str) -> Cause {
        let Some(rest) = name.strip_prefix("partition ") else { return Cause::Member };
        let (number, step) = rest.split_once(", ").map_or((rest, None), |(number, step)| (number, Some(step)));
        match (number.parse(), step) {
            (Ok(number), None) => Cause::Stopped(number),
            (Ok(number), Some(_)) => Cause::Step(number),
            (Err(_), _) => Cause::Member,
        }
    }
}

/// Asks members, and keeps connections between looks.
#[derive(Clone, Debug)]
pub struct Asker {
    client: Client<HttpConnector, Body>,
    topic: String,
}

impl Asker {
    /// Makes an asker for members that consume this topic.
    pub fn new(topic: &str) -> Asker {
        Asker { client: Client::builder(TokioExecutor::new()).build_http(), topic: topic.to_owned() }
    }

    /// Asks one member for its readiness and its metrics.
    pub async fn ask(&self, url: &MemberUrl) -> Asked {
        let answers = async {
            let (_, readiness) = self.get(&format!("{url}/readyz")).await?;
            let (status, metrics) = self.get(&format!("{url}/metrics")).await?;
            match status {
                StatusCode::OK => read(&readiness, &metrics, &self.topic),
                other => Err(format!("it answers {other} to /metrics")),
            }
        };
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, answers).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        };
        Asked { url: url.to_string(), answer }
    }

    async fn get(&self, url: &str) -> Result<(StatusCode, String), String> {
        let uri: Uri = url.parse().map_err(|error| format!("{error}"))?;
        let answer = self.client.get(uri).await.map_err(|error| describe_error(&error))?;
        let status = answer.status();
        let body =
            to_bytes(Body::new(answer.into_body()), ANSWER_BYTES_MAX).await.map_err(|error| describe_error(&error))?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// Reads both answers. `/readyz` has its body with either status.
///
/// # Errors
/// The answers are not from a member, or they are from a member of another topic.
pub fn read(readiness: &str, metrics: &str, topic: &str) -> Result<MemberAnswer, String> {
    let readiness: Readiness = serde_json::from_str(readiness)
        .map_err(|_| "something other than a member of Tallyhouse answers".to_owned())?;
    let info = samples(metrics, INFO).next();
    match info.and_then(|(labels, _)| label(labels, "topic")) {
        Some(other) if other != topic => return Err(format!("it is a member for the topic {other}, not {topic}")),
        Some(_) => {}
        None => return Err("something other than a member of Tallyhouse answers".to_owned()),
    }
    let mut stopped: BTreeMap<String, u64> = BTreeMap::new();
    for (labels, count) in samples(metrics, STOPPED).filter(|&(_, count)| count >= 1.0) {
        if let Some(reason) = label(labels, "reason") {
            *stopped.entry(reason.to_owned()).or_default() += count as u64;
        }
    }
    let flush_age = samples(metrics, FLUSH_AGE).next();
    // A problem is one line, even if a server's own text in it has several.
    let one_line = |text: String| text.replace(table::is_odd, " ");
    Ok(MemberAnswer {
        reasons: readiness.reasons.into_iter().map(|(name, reason)| (one_line(name), one_line(reason))).collect(),
        stopped,
        flush_age: flush_age.and_then(|(_, seconds)| Duration::try_from_secs_f64(seconds).ok()),
    })
}

/// Returns the samples of one metric in Prometheus' text format: labels and value.
fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
    text.lines().filter_map(move |line| {
        let rest = line.strip_prefix(name)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        let is_of_it = labels.is_empty() || labels.starts_with('{');
        is_of_it.then_some((labels, value.parse().ok()?))
    })
}

/// Returns the value of one label. The labels of a member need no escapes.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split_once(&format!("{name}=\""))?.1.split_once('"').map(|(value, _)| value)
}

/// Returns an error with its sources, which say more.
fn describe_error(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut behind = error.source();
    while let Some(source) = behind {
        text = format!("{text}: {source}");
        behind = source.source();
    }
    text
}
