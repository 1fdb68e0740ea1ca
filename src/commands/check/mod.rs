//! `tallyhouse check`: looks at everything that `run` needs, before `run` is started.
//!
//! Must never change anything or join the group. Each half ends at the first failure without which the rest of it
//! cannot be asked, and reports the rest as skipped. The other half is looked at in any case.

mod clickhouse;
mod judge;
mod kafka;
mod print;
#[cfg(test)]
mod tests;

use crate::clickhouse::client::Client;
use crate::commands::table;
use crate::config::Config;
use crate::kafka::observer::Observer;
use crate::platform::advice::Advice;
use serde::Serialize;

/// The checks. A code never changes its meaning; `docs/check.md` describes each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// Settings that are allowed but should be known.
    Configuration,
    /// The brokers of `kafka.brokers` answer.
    Brokers,
    /// The event topic exists in Kafka.
    Topic,
    /// The topic may be read.
    TopicRights,
    /// The dead-letter topic exists and may be written to; only where one is configured.
    DeadLetter,
    /// The lifecycle topics that exist may be read; only where one is configured.
    LifecycleTopics,
    /// The group may be described and read.
    GroupRights,
    /// The group's members share partitions in the same way as this configuration.
    GroupProtocol,
    /// Committed offsets may be read.
    Offsets,
    /// The log still has the records that were not consumed.
    Log,
    /// The broker's session timeout is the configured one.
    SessionTimeout,
    /// The memory limit fits batches and partitions.
    Memory,
    /// ClickHouse answers and lets the user in.
    Clickhouse,
    /// ClickHouse is new enough.
    ClickhouseVersion,
    /// One server answers at the address.
    OneServer,
    /// The user can have the settings that exactness needs, and the settings that are sent arrive.
    Settings,
    /// The tables are those that this binary writes.
    Schema,
    /// The views for people exist.
    Views,
    /// The user may INSERT into the tables.
    InsertRights,
    /// The user may SELECT from the tables.
    SelectRights,
    /// The user sees every row.
    RowPolicies,
    /// Materialized views of the users' own are on the tables.
    OwnViews,
    /// Repeated inserts are recognised.
    DedupWindows,
    /// Replicas are writable, do not lag, and remember tokens.
    Replicas,
    /// The time for which rows are kept.
    Retention,
    /// ClickHouse's clock agrees with this computer's.
    Clock,
}

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Everything is as it should be.
    Ok,
    /// `run` works, and there is something to know or to fix.
    Warning,
    /// `run` does not work, or not well.
    Failed,
    /// It was not looked at, because an earlier check failed.
    Skipped,
}

/// One check with its result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The code of the check.
    pub code: Code,
    /// State that the check found.
    pub status: State,
    /// The observation, in words.
    pub seen: String,
    /// The remedy; only of warnings and failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// The results of all checks.
#[derive(Clone, Debug)]
pub struct Report {
    /// Value of the key `kafka.brokers`.
    pub brokers: String,
    /// `clickhouse.url`, which never holds credentials.
    pub url: String,
    /// Name of the ClickHouse database.
    pub database: String,
    /// Name of the event topic.
    pub topic: String,
    /// Consumer group of the members.
    pub group_id: String,
    /// One of each code, in their order.
    pub checks: Vec<Outcome>,
}

impl Outcome {
    fn ok(code: Code, seen: impl Into<String>) -> Outcome {
        Outcome { code, status: State::Ok, seen: seen.into(), fix: None }
    }

    fn warning(code: Code, seen: impl Into<String>, fix: impl Into<String>) -> Outcome {
        Outcome { code, status: State::Warning, seen: seen.into(), fix: Some(fix.into()) }
    }

    fn failed(code: Code, seen: impl Into<String>, fix: impl Into<String>) -> Outcome {
        Outcome { status: State::Failed, ..Outcome::warning(code, seen, fix) }
    }

    /// Makes a failed check of a problem. Without a remedy, it names the page about the check.
    fn failed_with(code: Code, Advice { problem, fix }: Advice) -> Outcome {
        let page = || format!("see `tallyhouse explain {}`", table::word(code));
        Outcome::failed(code, problem, fix.unwrap_or_else(page))
    }

    fn skipped(code: Code, because: Code) -> Outcome {
        let seen = format!("not looked at, as {} failed", table::word(because));
        Outcome { code, status: State::Skipped, seen, fix: None }
    }
}

impl Report {
    /// Returns the number of checks that failed.
    pub fn failed(&self) -> usize {
        self.count(State::Failed)
    }

    fn count(&self, status: State) -> usize {
        self.checks.iter().filter(|check| check.status == status).count()
    }
}

/// Makes all checks. `observer` and `clients` should have short time limits. There is a client for each server.
pub async fn run(config: &Config, observer: Observer, clients: &[Client]) -> Report {
    let (mut checks, of_clickhouse) = tokio::join!(kafka::checks(config, observer), clickhouse::checks(clients));
    checks.extend(of_clickhouse);
    checks.push(judge::configuration(&config.warnings()));
    checks.sort_by_key(|check| check.code);
    Report {
        brokers: config.kafka.brokers.clone(),
        url: config.clickhouse.url.clone(),
        database: config.clickhouse.database.clone(),
        topic: config.kafka.topics.events.clone(),
        group_id: config.kafka.group_id.clone(),
        checks,
    }
}

/// Returns the checks that were made, and the others of `all` as skipped. The last one made has failed.
fn with_skipped(mut made: Vec<Outcome>, all: &[Code]) -> Vec<Outcome> {
    let Some(because) = made.last().map(|outcome| outcome.code) else { return made };
    let missing = all.iter().filter(|code| !made.iter().any(|outcome| outcome.code == **code));
    let skipped: Vec<_> = missing.map(|&code| Outcome::skipped(code, because)).collect();
    made.extend(skipped);
    made
}
