//! Tests the judgements on what was seen, and the text of a check.

use super::{Code, Outcome, Report, State, clickhouse, judge, kafka, with_skipped};
use crate::commands::table;
use crate::config::{self, Sources};
use crate::kafka::held_back::HeldBack;
use crate::platform::advice::Advice;
use std::collections::BTreeMap;
use std::time::Duration;
use tallyhouse_core::protocol::intent::Metadata;
use tallyhouse_core::protocol::{Committed, LogView};

fn view(committed: Option<&str>, offset: u64, low: u64, high: u64) -> LogView {
    let committed = committed.map(|metadata| Committed { offset, metadata: metadata.as_bytes().to_vec() });
    LogView { committed, topic_id: "id".into(), ids_of_rows: vec![], cluster_id: String::new(), low, high }
}

#[test]
fn a_version_is_compared_by_numbers() {
    let status = |version: &str| judge::version(version).status;
    assert_eq!(
        ["25.3.1.1", "25.10.1", "26.1", "25.2.9", "9.9", "x"].map(status),
        [State::Ok, State::Ok, State::Ok, State::Failed, State::Failed, State::Warning]
    );
}

#[test]
fn a_clock_warns_above_two_seconds_and_fails_above_a_minute() {
    let status = |skew_ms| judge::clock(skew_ms, 3).status;
    assert_eq!([0, 2_000, -2_000].map(status), [State::Ok; 3]);
    assert_eq!([2_001, -60_000].map(status), [State::Warning; 2]);
    assert_eq!([60_001, -60_001, i64::MIN].map(status), [State::Failed; 3]);
}

#[test]
fn memory_warns_where_batches_or_partitions_pause_consumption() {
    let mib = |count: usize| count << 20;
    let status = |limit, batch, partitions| judge::memory(mib(limit), mib(batch), partitions).status;
    // These are the defaults, with many partitions and with too many.
    assert_eq!([status(512, 128, 4), status(512, 128, 255)], [State::Ok; 2]);
    assert_eq!([status(512, 128, 256), status(512, 129, 4)], [State::Warning; 2]);
    assert_eq!(status(64, 16, 0), State::Ok);
}

#[test]
fn the_log_fails_where_run_stops_whatever_the_tables_have() {
    let ours = Metadata { topic_id: "id".into(), ..Metadata::default() }.encode();
    let of = |committed, offset, low, high| judge::log(&[(3, view(committed, offset, low, high))], &BTreeMap::new());
    let fine = of(Some(&ours), 40, 10, 100);
    assert_eq!((fine.status, fine.seen.as_str()), (State::Ok, "90 offsets kept, 60 of them not committed"));
    assert_eq!(of(None, 0, 10, 100).status, State::Ok);
    let ahead = of(Some(&ours), 101, 10, 100);
    assert!(ahead.fix.as_ref().is_some_and(|fix| fix.contains("tallyhouse explain ahead_of_log")), "{ahead:?}");
    let foreign = of(Some("somebody else's"), 40, 10, 100);
    assert!(foreign.status == State::Failed && foreign.seen.starts_with("partition 3 stops"), "{foreign:?}");
    // The tables may have records that the log has lost.
    assert_eq!(of(Some(&ours), 5, 10, 100).status, State::Warning);
    let open = |seconds| {
        let held_back = HeldBack { offsets: 7, open_for: Some(Duration::from_secs(seconds)) };
        judge::log(&[(3, view(Some(&ours), 40, 10, 100))], &[(3, held_back)].into())
    };
    assert_eq!((open(59).status, open(60).status), (State::Ok, State::Warning));
    assert!(open(59).seen.ends_with("; 7 more behind open transactions"), "{:?}", open(59));
}

/// The cluster's id in the commit shows a move to another cluster. Format 1 does not have the id.
#[test]
fn a_commit_that_does_not_name_its_cluster_is_warned_of() {
    let of = |committed: &str, cluster_id: &str| {
        let view = LogView { cluster_id: cluster_id.to_owned(), ..view(Some(committed), 40, 10, 100) };
        judge::log(&[(3, view)], &BTreeMap::new())
    };
    let warned = of("tallyhouse/1 topic=id", "c");
    assert!(warned.status == State::Warning && warned.seen.contains("1 partitions do not name"), "{warned:?}");
    assert_eq!(of("tallyhouse/2 topic=id cluster=c", "c").status, State::Ok);
    assert_eq!(of("tallyhouse/1 topic=id", "").status, State::Ok);
}

#[test]
fn a_right_that_is_refused_is_granted_by_name() {
    let of = |answers: &[_]| judge::grants(Code::InsertRights, "INSERT", answers);
    assert_eq!(of(&[("daily", Ok(true))]).status, State::Ok);
    let refused =
        of(&[("email_events", Ok(true)), ("campaigns.daily", Ok(false)), ("rejected_events", Err("?".into()))]);
    assert_eq!(refused.status, State::Failed);
    assert_eq!(refused.fix.unwrap(), "GRANT INSERT ON campaigns.daily TO the user of clickhouse.user");
    assert_eq!(of(&[("daily", Err("old".into()))]).status, State::Warning);
    let config =
        config::load(&Sources { flags: vec!["kafka.group_id=writers".parse().unwrap()], ..Sources::default() });
    let config = config.unwrap().config;
    let rights = |may_read| judge::group_rights(may_read, &config).status;
    assert_eq!([Some(true), Some(false), None].map(rights), [State::Ok, State::Failed, State::Warning]);
    let fix = judge::group_rights(Some(false), &config).fix.unwrap();
    assert!(fix.contains("kafka-acls.sh") && fix.ends_with("--operation Read --group writers"), "{fix}");
}

#[test]
fn what_comes_after_a_failure_is_skipped_and_says_so() {
    let made = vec![
        Outcome::ok(Code::Brokers, "1"),
        Outcome::failed_with(Code::Topic, Advice::new("it is not there", "Create it")),
    ];
    let all = with_skipped(made, &[Code::Brokers, Code::Topic, Code::Log]);
    assert_eq!(all[1].fix.as_deref(), Some("Create it"));
    assert_eq!((all.len(), &all[2]), (3, &Outcome::skipped(Code::Log, Code::Topic)));
    assert_eq!(all[2].seen, "not looked at, as topic failed");
}

#[test]
fn each_code_has_its_place_in_the_documents() {
    let page = include_str!("../../../docs/check.md");
    let rows: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next()).collect();
    let codes = [&[Code::Configuration][..], &kafka::CODES, &clickhouse::CODES].concat();
    for code in codes {
        let word = format!("`{}`", table::word(code));
        assert!(rows.iter().any(|row| row.split(", ").any(|cell| cell == word)), "docs/check.md lacks {word}");
        let untold = Outcome::failed_with(code, Advice::without_fix("no end"));
        assert_eq!(untold.fix.unwrap(), format!("see `tallyhouse explain {}`", word.trim_matches('`')));
    }
}

fn report() -> Report {
    Report {
        brokers: "kafka:9092".into(),
        url: "http://clickhouse:8123".into(),
        database: "campaigns".into(),
        topic: "events".into(),
        group_id: "writers".into(),
        checks: vec![
            Outcome::ok(Code::Brokers, "3 brokers, cluster id x"),
            judge::views(&["campaign_daily".to_owned()]),
            judge::version("24.8.1"),
            Outcome::skipped(Code::Clock, Code::Clickhouse),
        ],
    }
}

#[test]
fn the_table_for_people() {
    insta::assert_snapshot!("check_table", report().table());
}

#[test]
fn the_json_for_machines() {
    insta::assert_snapshot!("check_json", report().json().unwrap());
}
