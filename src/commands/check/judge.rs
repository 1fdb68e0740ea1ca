//! Judges what the checks have seen. Pure.

use super::{Code, Outcome};
use crate::clickhouse::dedup::Window;
use crate::clickhouse::identity::NAME_HEADER;
use crate::clickhouse::replica::{self, TableState};
use crate::clickhouse::retention::{Retention, Ttl};
use crate::clickhouse::sight::{self, Sight};
use crate::config::{self, Config, GroupProtocol};
use crate::kafka::held_back::HeldBack;
use crate::kafka::members::Group;
use crate::kafka::refusal;
use crate::platform::advice::Advice;
use std::collections::{BTreeMap, BTreeSet};
use tallyhouse_core::protocol::LogView;
use tallyhouse_core::protocol::intent::Metadata;
use tallyhouse_core::protocol::outlook::Position;
use tallyhouse_core::source::Table;
use tallyhouse_core::tables::DEDUPLICATION_WINDOW;

/// The oldest ClickHouse version that is tested: the oldest line with long-term support.
pub const CLICKHOUSE_VERSION_MIN: (u32, u32) = (25, 3);

/// Difference of the clocks, in ms, beyond which the times in the log and in the tables are hard to compare.
const SKEW_WARNING_MS: u64 = 2_000;
/// Difference of the clocks, in ms, beyond which nothing seems to set ClickHouse's clock.
const SKEW_FAILED_MS: u64 = 60_000;

/// Least room for each partition in bytes while they all catch up. With less, consumption pauses more than it runs.
const PARTITION_BYTES_MIN: usize = 1 << 20;

pub fn configuration(warnings: &[String]) -> Outcome {
    match warnings {
        [] => Outcome::ok(Code::Configuration, "valid"),
        warnings => Outcome::warning(
            Code::Configuration,
            warnings.join("; "),
            "change these settings, or know why; `tallyhouse config explain` shows where they come from",
        ),
    }
}

pub fn topic_rights(may_read: Option<bool>, config: &Config) -> Outcome {
    rights(Code::TopicRights, may_read, "topic", &config.kafka.topics.events, config)
}

pub fn group_rights(may_read: Option<bool>, config: &Config) -> Outcome {
    rights(Code::GroupRights, may_read, "group", &config.kafka.group_id, config)
}

pub fn group_protocol(group: &Group, config: &Config) -> Outcome {
    match group.keeps_out(config) {
        Some(problem) => Outcome::failed_with(Code::GroupProtocol, problem),
        None if group.members.is_empty() => Outcome::ok(Code::GroupProtocol, "nobody is in the group"),
        None => Outcome::ok(Code::GroupProtocol, "a member of this configuration may join"),
    }
}

fn rights(code: Code, may_read: Option<bool>, kind: &str, name: &str, config: &Config) -> Outcome {
    let grant = || format!("as an administrator run: {}", refusal::grant(config, kind, name));
    match may_read {
        Some(true) => Outcome::ok(code, format!("the {kind} may be read")),
        Some(false) => Outcome::failed(code, format!("the {kind} may be described, not read"), grant()),
        None => Outcome::warning(code, format!("the broker does not tell whether the {kind} may be read"), grant()),
    }
}

/// Compares the log of each partition with the committed offset.
pub fn log(logs: &[(i32, LogView)], held_back: &BTreeMap<i32, HeldBack>) -> Outcome {
    for (partition, view) in logs {
        if let Some(reason) = Position::stops_by_log(view) {
            let seen = format!("partition {partition} stops: {reason}");
            return Outcome::failed(Code::Log, seen, format!("do what `{}` says", reason.page()));
        }
    }
    let kept: u64 = logs.iter().map(|(_, view)| view.high.saturating_sub(view.low)).sum();
    let lag = |view: &LogView| view.high.saturating_sub(view.committed_offset().unwrap_or(0).max(view.low));
    let waiting: u64 = logs.iter().map(|(_, view)| lag(view)).sum();
    let mut seen = format!("{kept} offsets kept, {waiting} of them not committed");
    let held: u64 = held_back.values().map(|held_back| held_back.offsets).sum();
    if held > 0 {
        seen += &format!("; {held} more behind open transactions");
    }
    let unnamed = logs.iter().filter(|(_, view)| has_unnamed_cluster(view)).count();
    let long = held_back.iter().find_map(|(partition, held)| Some((partition, held.open_too_long()?)));
    let gone = logs.iter().find(|(_, view)| view.committed_offset().is_some_and(|offset| offset < view.low));
    match gone {
        // This check does not ask if the tables have these offsets.
        Some((partition, view)) => Outcome::warning(
            Code::Log,
            format!("partition {partition} begins at {}, after the committed offset; {seen}", view.low),
            "`tallyhouse status` says whether the partition stops; if so, do what `tallyhouse explain retention_gap` says, and keep \
             records longer (retention.ms) than members are ever away",
        ),
        None => match long {
            Some((partition, open_for)) => Outcome::warning(
                Code::Log,
                format!("{seen}; the one of partition {partition} has been open for {} s", open_for.as_secs()),
                "nothing behind it can be counted before it ends: do what `tallyhouse explain TallyhouseOpenTransaction` says",
            ),
            None if unnamed > 0 => Outcome::warning(
                Code::Log,
                format!(
                    "{seen}; the commits of {unnamed} partitions do not name their cluster, as builds before format 2 left them"
                ),
                "before a move to another cluster let this build commit each of them once, or the move is not noticed: `tallyhouse explain upgrade`",
            ),
            None => Outcome::ok(Code::Log, seen),
        },
    }
}

/// True if a commit of Tallyhouse does not name its cluster, although the cluster has an id.
fn has_unnamed_cluster(view: &LogView) -> bool {
    let metadata = view.committed.as_ref().and_then(|committed| Metadata::decode(&committed.metadata).ok().flatten());
    metadata.is_some_and(|metadata| metadata.cluster_id.is_empty()) && !view.cluster_id.is_empty()
}

/// Judges the session timeout. `answer` is the broker's own session timeout, or why it is not known. The classic
/// protocol does not ask for it.
pub fn session_timeout(config: &Config, answer: Option<Result<Option<u64>, String>>) -> Outcome {
    let configured_ms = config.kafka.session_timeout_ms;
    if config.kafka.group_protocol == GroupProtocol::Classic {
        // The default of group.min.session.timeout.ms. A broker refuses the member below it.
        return match configured_ms {
            0..6_000 => Outcome::warning(
                Code::SessionTimeout,
                format!("{configured_ms} ms, less than brokers accept by default (6000 ms)"),
                "raise kafka.session_timeout_ms, or lower group.min.session.timeout.ms of the brokers",
            ),
            _ => Outcome::ok(Code::SessionTimeout, format!("{configured_ms} ms, which the member decides")),
        };
    }
    let fix = "set kafka.session_timeout_ms to the group's consumer.session.timeout.ms";
    match answer.unwrap_or(Ok(None)) {
        Ok(Some(broker_ms)) if broker_ms < configured_ms => {
            let seen =
                format!("the broker has {broker_ms} ms, the configuration {configured_ms} ms; the shorter counts");
            Outcome::warning(Code::SessionTimeout, seen, fix)
        }
        Ok(Some(broker_ms)) => Outcome::ok(
            Code::SessionTimeout,
            format!("the broker has {broker_ms} ms, configured are {configured_ms} ms"),
        ),
        Ok(None) => Outcome::warning(Code::SessionTimeout, "the broker tells none (before Kafka 4.0)", fix),
        Err(error) => Outcome::warning(Code::SessionTimeout, format!("not known: {error}"), fix),
    }
}

/// Judges the memory limit. The configuration already holds that one batch fits; this is about what pauses
/// consumption all the time.
pub fn memory(limit_bytes: usize, batch_bytes_max: usize, partitions: usize) -> Outcome {
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    // A partition may hold as much as is free (`tallyhouse_core::window::intake`). With n partitions that take all they can, each gets
    // an (n + 1)th of the share.
    let share = config::memory::windows(limit_bytes);
    let each = share / (partitions + 1);
    let fix = "raise memory.limit_bytes, lower flush.bytes_max, or share the partitions out to more members";
    if batch_bytes_max.saturating_mul(2) > share {
        let seen = format!(
            "a full batch ({}) is more than one partition may hold of {}: batches are cut before, and each pauses its partition",
            mib(batch_bytes_max),
            mib(share)
        );
        return Outcome::warning(Code::Memory, seen, fix);
    }
    let seen = format!(
        "{} for windows and batches; a member with all {partitions} partitions has {} for each while it catches up",
        mib(share),
        mib(each)
    );
    match each < PARTITION_BYTES_MIN {
        true => Outcome::warning(Code::Memory, format!("{seen}, so that batches are small and pauses many"), fix),
        false => Outcome::ok(Code::Memory, seen),
    }
}

/// Judges the version. The check of the settings judges the settings that a server lacks.
pub fn version(version: &str) -> Outcome {
    let (major, minor) = CLICKHOUSE_VERSION_MIN;
    let fix = format!("upgrade ClickHouse to {major}.{minor} or later");
    let mut numbers = version.split('.').map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(a), Some(b)) if (a, b) >= CLICKHOUSE_VERSION_MIN => Outcome::ok(Code::ClickhouseVersion, version),
        (Some(_), Some(_)) => Outcome::failed(Code::ClickhouseVersion, format!("{version} is too old"), fix),
        _ => Outcome::warning(Code::ClickhouseVersion, format!("{version:?} is no version that can be read"), fix),
    }
}

/// Judges the rights. `answers` holds for each table the server's yes or no, or why it gives none.
pub fn grants(code: Code, right: &str, answers: &[(&str, Result<bool, String>)]) -> Outcome {
    let refused: Vec<&str> =
        answers.iter().filter(|(_, answer)| *answer == Ok(false)).map(|(table, _)| *table).collect();
    let grant = |tables: &[&str]| {
        let of = |table: &&str| format!("GRANT {right} ON {table} TO the user of clickhouse.user");
        tables.iter().map(of).collect::<Vec<_>>().join("; ")
    };
    if !refused.is_empty() {
        return Outcome::failed(code, format!("the user may not {right} on {}", refused.join(", ")), grant(&refused));
    }
    match answers.iter().find_map(|(_, answer)| answer.as_ref().err()) {
        Some(error) => {
            let seen = format!("it is not known whether the user may {right}: {error}");
            Outcome::warning(
                code,
                seen,
                "see what SHOW GRANTS says as this user; `tallyhouse run` shows it at the first batch",
            )
        }
        None => Outcome::ok(code, format!("the user may {right} on {} tables", answers.len())),
    }
}

pub fn views(missing: &[String]) -> Outcome {
    match missing {
        [] => Outcome::ok(Code::Views, "the views for people, and what `erase` notes, are there"),
        missing => Outcome::warning(
            Code::Views,
            format!("missing, or this user may not see them: {}", missing.join(", ")),
            "run: tallyhouse migrate. `run` does not need them, `report`, `erase` and Grafana do",
        ),
    }
}

pub fn dedup_windows(windows: &[Window]) -> Outcome {
    let off: Vec<&str> =
        windows.iter().filter(|window| window.blocks == 0).map(|window| window.table.as_str()).collect();
    if windows.is_empty() {
        let fix = "GRANT SELECT ON the tables TO the user of clickhouse.user, see select_rights";
        return Outcome::warning(Code::DedupWindows, "the user may not see the tables' settings", fix);
    }
    if !off.is_empty() {
        let alter = |table: &&str| {
            format!("ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}")
        };
        let seen = format!("{} has no window: a repeated insert is recognised by its marks only", off.join(", "));
        return Outcome::warning(Code::DedupWindows, seen, off.iter().map(alter).collect::<Vec<_>>().join("; "));
    }
    let described = windows.iter().map(|window| format!("{} {} blocks", window.table, window.blocks));
    Outcome::ok(Code::DedupWindows, described.collect::<Vec<_>>().join(", "))
}

/// Judges the tables of one replica.
pub fn replicas(states: &[TableState]) -> Outcome {
    if let Some(Advice { problem, fix }) = replica::problem(states) {
        return Outcome::warning(Code::Replicas, problem, fix.unwrap_or_default());
    }
    let names: BTreeSet<&str> = states.iter().map(|state| state.replica.as_str()).collect();
    let life_s = states.iter().map(|state| state.token_life_s).min().unwrap_or_default();
    let delay_s = states.iter().map(|state| state.delay_s).max().unwrap_or_default();
    let names = names.into_iter().collect::<Vec<_>>().join(", ");
    Outcome::ok(
        Code::Replicas,
        format!("replica {names}: writable, {delay_s} s behind, remembers tokens for {life_s} s"),
    )
}

/// Judges the answers of one server. `is_named`: acknowledgements of inserts have its name.
pub fn one_server(is_named: bool) -> Outcome {
    let seen = "one server answers over several connections";
    match is_named {
        true => Outcome::ok(Code::OneServer, seen),
        false => Outcome::warning(
            Code::OneServer,
            format!("{seen}, and acknowledgements of inserts do not name it"),
            format!("let the proxy pass the header {NAME_HEADER} of answers: `tallyhouse explain limits`"),
        ),
    }
}

/// Judges the rows and views of the tables that this user sees.
pub fn sight(seen: &[(Table, Sight)]) -> Outcome {
    if let Some(problem) = sight::problem(seen) {
        return Outcome::failed_with(Code::RowPolicies, problem);
    }
    let unknown: Vec<&str> =
        seen.iter().filter(|(_, sight)| *sight == Sight::Unknown).map(|(table, _)| table.name()).collect();
    match unknown.is_empty() {
        true => Outcome::ok(Code::RowPolicies, "this user sees every row of the tables"),
        false => Outcome::warning(
            Code::RowPolicies,
            format!("it is not known whether this user sees every row of {}", unknown.join(", ")),
            "as an administrator run: SELECT name, select_filter, apply_to_list FROM system.row_policies. A row policy for this user would stop \
             partitions (`tallyhouse explain not_shown`)",
        ),
    }
}

/// Judges materialized views of the users' own. They belong to the users, but a failing one refuses inserts.
pub fn own_views(views: &[(String, String)]) -> Outcome {
    let named = views.iter().map(|(view, table)| format!("{view} on {table}"));
    match views.is_empty() {
        true => Outcome::ok(Code::OwnViews, "no materialized view of your own is on the tables"),
        false => Outcome::ok(
            Code::OwnViews,
            format!(
                "materialized views of your own: {}. `tallyhouse explain limits` says what they get",
                named.collect::<Vec<_>>().join(", ")
            ),
        ),
    }
}

/// Judges the time for which rows are kept. A TTL of raw rows is to be of whole days, see
/// [`crate::clickhouse::retention`].
pub fn retention(retention: &Retention) -> Outcome {
    let words = |ttl: &Ttl| match ttl {
        Ttl::None => "permanently".to_owned(),
        Ttl::Days(days) => format!("{days} days"),
        Ttl::Other(expression) => format!("by TTL {expression}"),
    };
    let (raw, rejected) = (words(&retention.raw), words(&retention.rejected));
    let daily = words(&retention.daily);
    let seen = format!("email_events keeps rows {raw}, rejected_events {rejected}; daily keeps its counters {daily}");
    if !retention.of_columns.is_empty() {
        let seen = format!("{seen}; columns of {} have a TTL of their own", retention.of_columns.join(", "));
        let fix = "ALTER TABLE … MODIFY COLUMN … REMOVE TTL. Values that are reset count as changed by hand, and a mark that is reset is none";
        return Outcome::warning(Code::Retention, seen, fix);
    }
    if retention.daily != Ttl::None {
        let fix = "ALTER TABLE daily REMOVE TTL. Counters are also the marks: an event older than the TTL is counted and goes at once, and its \
                   partition stops (`tallyhouse explain not_shown`)";
        return Outcome::warning(Code::Retention, seen, fix);
    }
    if let Ttl::Other(_) = retention.rejected {
        let fix = "run: tallyhouse migrate --rejected-ttl-days with the number of days. A reject that this TTL removes at once stops its partition";
        return Outcome::warning(Code::Retention, seen, fix);
    }
    let fix = "run: tallyhouse migrate --raw-ttl-days with the number of days. By this TTL rows of one batch may go at different \
               times, which can stop a partition, and the audit calls them lost";
    match retention.raw {
        Ttl::None => Outcome::ok(Code::Retention, seen),
        Ttl::Days(_) if retention.by_whole_days => Outcome::ok(Code::Retention, seen),
        Ttl::Days(_) | Ttl::Other(_) => Outcome::warning(Code::Retention, seen, fix),
    }
}

/// Judges the clock. `skew_ms` is the time by which ClickHouse's clock is ahead of this computer's, half of the round
/// trip subtracted.
pub fn clock(skew_ms: i64, round_trip_ms: u64) -> Outcome {
    let direction = if skew_ms < 0 { "behind" } else { "ahead of" };
    let off_ms = skew_ms.unsigned_abs();
    let seen = format!(
        "ClickHouse's clock is {off_ms} ms {direction} this machine's (give or take {} ms)",
        round_trip_ms.div_ceil(2)
    );
    let fix = "let NTP keep both clocks. Counts stay exact: event times are judged by the record's timestamp, and leases by one \
               machine's clock alone. Delays in metrics and ages in audits are off";
    match off_ms {
        0..=SKEW_WARNING_MS => Outcome::ok(Code::Clock, seen),
        _ if off_ms <= SKEW_FAILED_MS => Outcome::warning(Code::Clock, seen, fix),
        _ => Outcome::failed(Code::Clock, seen, fix),
    }
}
