//! The settings on which the exactness of reads and inserts depends, and a check that this user can have them.
//!
//! A user's profile can make a read return less than there is (`timeout_overflow_mode = 'break'`, a query cache, a filter). It
//! can split, delay or drop the rows of an insert. So each statement carries the values that it needs. Tallyhouse asks the server
//! once which of them it knows, their present values, and which this user may change. [`judge`] is the one place that decides
//! from that.
//!
//! A value is sent even if it is right at the moment: a profile can be changed under a running member. A setting that the server
//! does not know is not sent: it cannot falsify anything. A value that the server does not let the user change is not sent
//! either.

use crate::platform::advice::Advice;
use clickhouse::Row;
use serde::Deserialize;
use std::time::Duration;

/// The statements that need a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statements {
    /// Only reads need the setting.
    Reads,
    /// Only inserts need the setting.
    Inserts,
    /// Reads and inserts need the setting.
    Both,
}

/// The kind of need for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Another value falsifies. If a server does not know the setting, this danger does not exist there.
    Right,
    /// On a server that does not know [`DEDUPLICATE`] as `Right`, and the server has to know the setting as well. Other servers
    /// do not look at it.
    Before26_2,
    /// Each statement gives its own value, so the user must be allowed to change it.
    Free,
    /// It cannot be sent, so the user has to have it already.
    Had,
    /// As `Right`, for inserts into Replicated and Shared tables alone. Other servers do not look at it.
    OnReplicas,
    /// As `Right`, for Shared tables of ClickHouse Cloud alone, and the server has to know it.
    OnShared,
}

/// A setting, its value, the statements that need it, the kind of need, and the effect of another value.
type Wanted = (&'static str, &'static str, Statements, Need, &'static str);

const LIMIT: &str = "an answer or insert cut by a limit would be taken for a whole one";
const FEWER: &str = "reads would miss rows that are there, and they would be inserted again";
const OLD: &str = "reads would be answered with what was true a while ago";
const EMPTY: &str = "reads would give another answer where there are no rows";
const WITHDRAWN: &str = "rows could be taken away after they were shown";
const SPLIT: &str = "the rows of a batch would not be taken whole or not at all";

#[rustfmt::skip]
const WANTED: [Wanted; 39] = [
    ("readonly", "0", Statements::Inserts, Need::Had, "nothing may be written"),
    ("timeout_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("timeout_overflow_mode_leaf", "throw", Statements::Both, Need::Right, LIMIT),
    ("read_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("read_overflow_mode_leaf", "throw", Statements::Both, Need::Right, LIMIT),
    ("group_by_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("sort_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("result_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("distinct_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("set_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("join_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("transfer_overflow_mode", "throw", Statements::Both, Need::Right, LIMIT),
    ("partial_result_on_first_cancel", "0", Statements::Reads, Need::Right, LIMIT),
    ("limit", "0", Statements::Reads, Need::Right, LIMIT),
    ("offset", "0", Statements::Reads, Need::Right, LIMIT),
    ("use_query_cache", "0", Statements::Reads, Need::Right, OLD),
    ("implicit_transaction", "0", Statements::Both, Need::Right, OLD),
    ("additional_table_filters", "{}", Statements::Reads, Need::Right, FEWER),
    ("additional_result_filter", "", Statements::Reads, Need::Right, FEWER),
    ("skip_unavailable_shards", "0", Statements::Reads, Need::Right, FEWER),
    ("enable_parallel_replicas", "0", Statements::Reads, Need::Right, FEWER),
    ("final", "0", Statements::Reads, Need::Right, FEWER),
    ("empty_result_for_aggregation_by_empty_set", "0", Statements::Reads, Need::Right, EMPTY),
    ("aggregate_functions_null_for_empty", "0", Statements::Reads, Need::Right, EMPTY),
    ("enable_named_columns_in_function_tuple", "0", Statements::Reads, Need::Right, "answers could not be read"),
    ("select_sequential_consistency", "1", Statements::Reads, Need::OnShared, FEWER),
    ("force_primary_key", "0", Statements::Reads, Need::Right, "reads would be refused"),
    ("force_index_by_date", "0", Statements::Reads, Need::Right, "reads would be refused"),
    ("async_insert", "0", Statements::Inserts, Need::Right, "an insert would be acknowledged before its token is looked at"),
    ("insert_deduplication_token", "", Statements::Inserts, Need::Free, "a repeated insert would be counted again"),
    (DEDUPLICATE, "enable", Statements::Inserts, Need::Right, "a repeated insert would be counted again"),
    (INSERT_DEDUPLICATE, "1", Statements::Inserts, Need::Before26_2, "a repeated insert would be counted again"),
    ("use_strict_insert_block_limits", "0", Statements::Inserts, Need::Right, SPLIT),
    ("max_partitions_per_insert_block", "0", Statements::Inserts, Need::Right, "a batch with many days would be refused for ever"),
    ("insert_quorum", "0", Statements::Inserts, Need::Right, WITHDRAWN),
    ("insert_keeper_max_retries", "1000000", Statements::Inserts, Need::OnReplicas, WITHDRAWN),
    ("insert_keeper_retry_max_backoff_ms", "1000", Statements::Inserts, Need::OnReplicas, "an insert would outlast its time"),
    ("materialized_views_ignore_errors", "0", Statements::Inserts, Need::Right, "a view of your own would miss rows in silence"),
    ("deduplicate_blocks_in_dependent_materialized_views", "1", Statements::Inserts, Need::Right, "a view of your own would miss the rows of an insert that was cut and repeated"),
];

/// The server's answer about a setting, for this user.
#[derive(Clone, Debug, Default, PartialEq, Eq, Row, Deserialize)]
pub struct Found {
    /// Name of the setting.
    pub name: String,
    /// Its value for a statement that does not change it.
    pub value: String,
    /// Not 0 if the user may not change it.
    pub readonly: u8,
    /// Least value that the user may set; empty without one.
    pub min: String,
    /// Greatest value that the user may set; empty without one.
    pub max: String,
    /// The user's settings profiles.
    pub profiles: String,
}

/// The setting that merges the rows of an insert with equal keys.
const OPTIMIZE_ON_INSERT: &str = "optimize_on_insert";
/// The setting that compares tokens and contents of inserts. Only the inserts of batches need it.
const DEDUPLICATE: &str = "deduplicate_insert";
/// The same for `INSERT … SELECT`.
const DEDUPLICATE_SELECT: &str = "deduplicate_insert_select";
/// The same in ClickHouse before 26.2.
const INSERT_DEDUPLICATE: &str = "insert_deduplicate";

/// Settings of single statements that are right without them. They are sent if the server knows them.
const OPTIONAL: [&str; 4] =
    ["enable_shared_storage_snapshot_in_query", "use_query_condition_cache", DEDUPLICATE_SELECT, OPTIMIZE_ON_INSERT];

/// Query for every setting that matters.
pub(super) const QUESTION: &str = "SELECT name, value, readonly, ifNull(min, '') AS min, ifNull(max, '') AS max, \
                                   arrayStringConcat(enabledProfiles(), ', ') AS profiles FROM system.settings WHERE name IN ?";

/// Settings that could falsify the answer to [`QUESTION`].
pub(super) const OF_THE_QUESTION: [(&str, &str); 5] = [
    ("use_query_cache", "0"),
    ("limit", "0"),
    ("offset", "0"),
    ("additional_table_filters", "{}"),
    ("additional_result_filter", ""),
];

/// Returns the names of the settings that matter.
pub(super) fn names() -> Vec<&'static str> {
    WANTED.iter().map(|(name, ..)| *name).chain(OPTIONAL).chain([LOG_COMMENT, MAX_EXECUTION_TIME]).collect()
}

/// Setting that only identifies whose statement it is.
const LOG_COMMENT: &str = "log_comment";
/// A server that ends a statement sooner reports that by an error.
const MAX_EXECUTION_TIME: &str = "max_execution_time";

/// A name and the value to send with it.
pub type Pin = (&'static str, String);

/// The settings that statements carry, and the problems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pins {
    /// Sent with each statement that is not an insert of a batch.
    pub reads: Vec<Pin>,
    /// Sent with each insert of a batch.
    pub inserts: Vec<Pin>,
    /// Settings of single statements that the server knows.
    pub optional: Vec<&'static str>,
    /// Settings that are needed and cannot be had, in words; empty if all is well.
    pub problems: Vec<String>,
}

impl Pins {
    /// Returns the settings for an INSERT of no batch: those of a batch's insert, but the server compares it with no other one.
    pub fn plain_inserts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let of_selects = self.optional.iter().find(|name| **name == DEDUPLICATE_SELECT);
        let of_inserts = self.inserts.iter().map(|(name, value)| match *name {
            DEDUPLICATE => (*name, "disable"),
            INSERT_DEDUPLICATE => (*name, "0"),
            name => (name, value.as_str()),
        });
        of_inserts.chain(of_selects.map(|name| (*name, "disable")))
    }

    /// Returns the setting for an INSERT of which no two rows have the same key. ClickHouse would look for such rows once more.
    pub fn distinct_rows(&self) -> Option<(&'static str, &'static str)> {
        self.optional.contains(&OPTIMIZE_ON_INSERT).then_some((OPTIMIZE_ON_INSERT, "0"))
    }

    /// Returns everything that prevents exactness, with the remedy.
    pub fn problem(&self) -> Option<Advice> {
        let fix = "Change the profile, or give Tallyhouse a user with a profile of its own";
        (!self.problems.is_empty()).then(|| Advice::new(self.problems.join("; "), fix))
    }
}

/// The longest times of statements, their comment, and the kind of tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own<'a> {
    /// True if inserts go into Replicated or Shared tables. Such an insert must end by its time. If it ended by its number of attempts at
    /// Keeper, its rows could be shown and be taken away minutes later.
    pub(super) replicated: bool,
    /// True if the tables are Shared ones of ClickHouse Cloud. Another server than the one that answers may have inserted.
    pub(super) shared: bool,
    pub(super) query_timeout: Duration,
    pub(super) insert_timeout: Duration,
    pub(super) log_comment: &'a str,
}

/// Decides which settings are sent, and which problems there are.
pub(super) fn judge(found: &[Found], own: Own<'_>) -> Pins {
    let of = |name: &str| found.iter().find(|found| found.name == name);
    let optional = OPTIONAL.into_iter().filter(|name| of(name).is_some_and(|found| found.readonly == 0)).collect();
    let mut pins = Pins { optional, ..Pins::default() };
    for &(name, value, statements, need, why) in &WANTED {
        let profiles = |found: &Found| format!("the settings profile {} of the ClickHouse user", found.profiles);
        match of(name) {
            _ if need == Need::Before26_2 && of(DEDUPLICATE).is_some() => {}
            _ if need == Need::OnReplicas && !own.replicated => {}
            _ if need == Need::OnShared && !own.shared => {}
            None if matches!(need, Need::Before26_2 | Need::Free | Need::OnShared) => {
                pins.problems.push(format!(
                    "this ClickHouse does not know the setting {name}, so {why}: upgrade ClickHouse to 25.3 or later"
                ));
            }
            None => {}
            Some(found) if need == Need::Free => {
                let problem = || format!("{} fixes {name}, so {why}: let the user set it", profiles(found));
                pins.problems.extend((found.readonly != 0).then(problem));
            }
            Some(found) if same(&found.value, value) || (need != Need::Had && found.allows(value)) => {
                // Nobody refuses a value that is right already: ClickHouse looks at changes only.
                let pin = (name, value.to_owned());
                if need != Need::Had && statements != Statements::Inserts {
                    pins.reads.push(pin.clone());
                }
                if need != Need::Had && statements != Statements::Reads {
                    pins.inserts.push(pin);
                }
            }
            Some(found) => {
                let wanted = if value.is_empty() { "nothing" } else { value };
                pins.problems.push(format!(
                    "{} has {name} = {} and does not let it be {wanted}, so {why}: set it to {wanted} there, or drop its constraint",
                    profiles(found),
                    found.value
                ));
            }
        }
    }
    let own_pin = |name: &'static str, value: String| {
        Some((name, value)).filter(|(name, value)| of(name).is_some_and(|found| found.allows(value)))
    };
    let seconds = |limit: Duration| format!("{:.3}", limit.as_secs_f64());
    let comment = own_pin(LOG_COMMENT, own.log_comment.to_owned());
    pins.reads.extend(comment.clone().into_iter().chain(own_pin(MAX_EXECUTION_TIME, seconds(own.query_timeout))));
    let limit = own_pin(MAX_EXECUTION_TIME, seconds(own.insert_timeout));
    // A shorter limit that a profile fixes ends an insert by its time as well.
    let is_limited = limit.is_some()
        || of(MAX_EXECUTION_TIME).and_then(|found| found.value.parse::<f64>().ok()).is_some_and(|limit| limit > 0.0);
    if own.replicated && !is_limited {
        pins.problems.push(format!(
            "the settings profile of the ClickHouse user does not let {MAX_EXECUTION_TIME} be {}. An insert into replicated tables \
             would not end. Let it be set",
            seconds(own.insert_timeout)
        ));
    }
    pins.inserts.extend(comment.into_iter().chain(limit));
    pins
}

/// Returns the sent settings that did not arrive as they were sent.
pub(super) fn lost<'p>(sent: &'p [Pin], arrived: &[Found]) -> Vec<&'p str> {
    let is_there = |(name, value): &&Pin| arrived.iter().any(|found| found.name == *name && same(&found.value, value));
    sent.iter().filter(|pin| !is_there(pin)).map(|(name, _)| *name).collect()
}

impl Found {
    fn allows(&self, value: &str) -> bool {
        let number = |text: &str| text.parse::<f64>().ok();
        let beyond = |bound: &str, is_beyond: fn(&f64, &f64) -> bool| {
            number(bound).zip(number(value)).is_some_and(|(bound, value)| is_beyond(&value, &bound))
        };
        self.readonly == 0 && !beyond(&self.min, f64::lt) && !beyond(&self.max, f64::gt)
    }
}

/// ClickHouse may write a number in another form than the sent one.
fn same(a: &str, b: &str) -> bool {
    let number = |text: &str| text.parse::<f64>().ok();
    a == b || number(a).zip(number(b)).is_some_and(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Own<'_> = Own {
        replicated: false,
        shared: false,
        query_timeout: Duration::from_secs(30),
        insert_timeout: Duration::from_secs(60),
        log_comment: "tallyhouse",
    };

    /// Returns the answers of a server that knows everything, forbids nothing and has other values.
    fn server() -> Vec<Found> {
        let other = |name: &str| if name == "readonly" { "0" } else { "7" }.to_owned();
        let found =
            |name: &str| Found { name: name.to_owned(), value: other(name), profiles: "th".into(), ..Found::default() };
        names().into_iter().map(found).collect()
    }

    fn with(name: &str, change: impl Fn(&mut Found)) -> Pins {
        let mut server = server();
        server.iter_mut().filter(|found| found.name == name).for_each(change);
        judge(&server, OWN)
    }

    #[test]
    fn all_that_the_server_knows_is_sent() {
        let pins = judge(&server(), OWN);
        assert_eq!(pins.problem(), None);
        let sends = |pins: &[Pin], name: &str, value: &str| {
            pins.contains(&(names().into_iter().find(|n| *n == name).unwrap(), value.to_owned()))
        };
        assert!(sends(&pins.reads, "use_query_cache", "0") && !sends(&pins.inserts, "use_query_cache", "0"));
        assert!(sends(&pins.inserts, "async_insert", "0") && !sends(&pins.reads, "async_insert", "0"));
        assert!(
            sends(&pins.reads, "max_execution_time", "30.000") && sends(&pins.inserts, "max_execution_time", "60.000")
        );
        // Each insert has a token of its own, and nobody can send this one.
        assert!(pins.inserts.iter().all(|(name, _)| !["insert_deduplication_token", "readonly"].contains(name)));
    }

    /// A table that lost rows may remember their inserts, so a repair must not be compared with them.
    #[test]
    fn an_insert_that_is_no_batch_is_compared_with_none() {
        let pins = judge(&server(), OWN);
        let plain: Vec<_> = pins.plain_inserts().collect();
        assert!(plain.contains(&(DEDUPLICATE, "disable")) && plain.contains(&(DEDUPLICATE_SELECT, "disable")));
        assert!(plain.contains(&("async_insert", "0")) && plain.len() == pins.inserts.len() + 1);
        let older: Vec<Found> =
            server().into_iter().filter(|found| !found.name.starts_with("deduplicate_insert")).collect();
        let pins = judge(&older, OWN);
        assert!(pins.plain_inserts().any(|pin| pin == (INSERT_DEDUPLICATE, "0")));
    }

    #[test]
    fn what_is_fixed_to_a_wrong_value_is_named_with_its_profile() {
        let of_others = [INSERT_DEDUPLICATE, "readonly"];
        let of_form = |need: &Need| matches!(need, Need::OnReplicas | Need::OnShared);
        for (name, ..) in WANTED.iter().filter(|(name, _, _, need, _)| !of_form(need) && !of_others.contains(name)) {
            let problem = with(name, |found| found.readonly = 1).problem().unwrap().problem;
            assert!(problem.contains(name) && problem.contains("profile th"), "{problem}");
        }
        assert!(with("readonly", |found| found.value = "2".into()).problem().unwrap().problem.contains("readonly = 2"));
        let bounded = with("max_partitions_per_insert_block", |found| found.min = "1".into());
        assert!(bounded.problem().unwrap().problem.contains("does not let it be 0"));
    }

    #[test]
    fn an_insert_into_replicated_tables_ends_by_its_time() {
        let of = |replicated, change: &dyn Fn(&mut Found)| {
            let mut server = server();
            server.iter_mut().for_each(change);
            judge(&server, Own { replicated, ..OWN })
        };
        let keeper = |pins: &Pins| pins.inserts.iter().filter(|(name, _)| name.contains("keeper")).count();
        let (plain, replicated) = (of(false, &|_| {}), of(true, &|_| {}));
        assert_eq!((keeper(&plain), keeper(&replicated)), (0, 2));
        assert!(replicated.problem().is_none() && replicated.reads.iter().all(|(name, _)| !name.contains("keeper")));
        for name in ["insert_keeper_max_retries", "insert_keeper_retry_max_backoff_ms", "max_execution_time"] {
            let fixed = |found: &mut Found| {
                if found.name == name {
                    (found.readonly, found.value) = (1, "0".into());
                }
            };
            assert_eq!(of(false, &fixed).problem(), None, "{name}");
            assert!(of(true, &fixed).problem().unwrap().problem.contains(name), "{name}");
        }
        let shorter = |found: &mut Found| {
            if found.name == "max_execution_time" {
                (found.readonly, found.value) = (1, "10".into());
            }
        };
        assert_eq!(of(true, &shorter).problem(), None);
    }

    #[test]
    fn reads_of_shared_tables_show_what_other_servers_inserted() {
        let sent = ("select_sequential_consistency", "1".to_owned());
        let shared = Own { replicated: true, shared: true, ..OWN };
        let pins = judge(&server(), shared);
        assert!(pins.problem().is_none() && pins.reads.contains(&sent) && !pins.inserts.contains(&sent));
        assert!(!judge(&server(), Own { replicated: true, ..OWN }).reads.contains(&sent));
        let mut fixed = server();
        fixed.iter_mut().filter(|found| found.name == sent.0).for_each(|found| found.readonly = 1);
        assert!(judge(&fixed, shared).problem().unwrap().problem.contains(sent.0));
        fixed.retain(|found| found.name != sent.0);
        assert!(judge(&fixed, shared).problem().unwrap().problem.contains("does not know"));
    }

    #[test]
    fn what_is_fixed_to_the_right_value_is_no_problem() {
        let pins = with("async_insert", |found| (found.readonly, found.value) = (1, "0".into()));
        assert_eq!(pins.problem(), None);
    }

    #[test]
    fn a_bound_on_what_is_ours_alone_is_kept() {
        let pins = with("max_execution_time", |found| found.max = "10".into());
        assert_eq!(pins.problem(), None);
        assert!(pins.reads.iter().chain(&pins.inserts).all(|(name, _)| *name != "max_execution_time"));
        let pins = with("log_comment", |found| found.readonly = 1);
        assert!(pins.problem().is_none() && pins.reads.iter().all(|(name, _)| *name != "log_comment"));
    }

    #[test]
    fn an_older_server_is_asked_for_nothing_that_it_does_not_know() {
        let old: Vec<Found> =
            server().into_iter().filter(|found| found.name != "use_strict_insert_block_limits").collect();
        let pins = judge(&old, OWN);
        assert!(
            pins.problem().is_none() && pins.inserts.iter().all(|(name, _)| *name != "use_strict_insert_block_limits")
        );
        // Before 26.2 another setting compares inserts, and it goes with no insert of a later server.
        let sends = |pins: &Pins| pins.inserts.contains(&("insert_deduplicate", "1".to_owned()));
        assert!(!sends(&pins));
        let without = |names: &[&str]| -> Vec<Found> {
            server().into_iter().filter(|found| !names.contains(&found.name.as_str())).collect()
        };
        let pins = judge(&without(&["deduplicate_insert"]), OWN);
        assert!(pins.problem().is_none() && sends(&pins));
        let pins = judge(&without(&["deduplicate_insert", "insert_deduplicate"]), OWN);
        assert!(pins.problem().unwrap().problem.contains("does not know the setting insert_deduplicate"));
    }

    #[test]
    fn a_setting_of_one_statement_is_sent_where_it_is_known() {
        assert_eq!(judge(&server(), OWN).optional, OPTIONAL);
        assert!(judge(&[], OWN).optional.is_empty());
    }

    #[test]
    fn what_a_proxy_drops_is_found() {
        let sent = vec![("async_insert", "0".to_owned()), ("max_execution_time", "30.000".to_owned())];
        let found = |name: &str, value: &str| Found { name: name.into(), value: value.into(), ..Found::default() };
        assert!(lost(&sent, &[found("async_insert", "0"), found("max_execution_time", "30")]).is_empty());
        assert_eq!(lost(&sent, &[found("async_insert", "1"), found("max_execution_time", "30")]), ["async_insert"]);
        assert_eq!(lost(&sent, &[]).len(), 2);
    }
}
