//! What is wrong, the rates, and what a status looks like.

use super::{Code, Partition, Problem, Rates, Standing, Status};
use crate::audit::position::Outlook;
use crate::core::source::OffsetRange;
use crate::core::stop::StopReason;
use crate::kafka::members::{Group, GroupState, Member};
use std::time::Duration;

fn member(client_id: &str, partitions: Option<Vec<i32>>) -> Member {
    Member { id: String::new(), client_id: client_id.into(), host: "/10.0.0.7".into(), instance_id: None, partitions }
}

fn group(members: Vec<Member>) -> Group {
    let state = if members.is_empty() { GroupState::Empty } else { GroupState::Stable };
    Group { state, members, may_read: Some(true) }
}

fn standing(end: u64, committed: Option<u64>) -> Standing {
    let outlook = Some(Outlook::GoesOn("reads on from where it was".into()));
    Standing { start: 10, end, committed, intent: None, outlook }
}

fn status(members: Vec<Member>, standings: Vec<Standing>) -> Status {
    let partition = |(number, standing)| Partition { number, seen: Ok(standing) };
    Status {
        brokers: "kafka:9092".into(),
        url: "http://clickhouse:8123".into(),
        database: "campaigns".into(),
        topic: "events".into(),
        group_id: "writers".into(),
        dead_letter: Ok(()),
        clickhouse: Ok(()),
        group: Ok(group(members)),
        partitions: Ok((0..).zip(standings).map(partition).collect()),
    }
}

fn healthy() -> Status {
    let members = vec![member("tallyhouse-a", Some(vec![0])), member("tallyhouse-b", Some(vec![1]))];
    let open = Standing { intent: Some(OffsetRange { start: 900, end: 950 }), ..standing(1_000, Some(900)) };
    status(members, vec![open, standing(500, Some(500))])
}

fn broken() -> Status {
    let stopped = Outlook::Stops(StopReason::RetentionGap { next: 5, low: 10 });
    let standings = vec![
        Standing { outlook: Some(stopped), ..standing(1_000, Some(5)) },
        Standing { outlook: None, ..standing(500, None) },
    ];
    let away = "ClickHouse at http://clickhouse:8123/ does not answer: connection refused".to_owned();
    Status { clickhouse: Err(away), ..status(Vec::new(), standings) }
}

fn codes(status: &Status) -> Vec<Code> {
    status.problems().into_iter().map(|problem| problem.code).collect()
}

#[test]
fn lag_is_counted_from_the_committed_offset_or_from_what_the_log_has() {
    let lag = |end, committed| standing(end, committed).lag();
    assert_eq!([lag(100, Some(40)), lag(100, Some(100)), lag(100, None), lag(100, Some(5))], [60, 0, 90, 90]);
    // An offset beyond the log's end is a stop, not a lag.
    assert_eq!(lag(100, Some(140)), 0);
}

#[test]
fn a_healthy_status_has_no_problem() {
    assert_eq!(codes(&healthy()), []);
}

#[test]
fn what_is_wrong_comes_in_order() {
    assert_eq!(codes(&broken()), [Code::Clickhouse, Code::NoMembers, Code::PartitionStops]);
    let away = Status { partitions: Err("Kafka is away".into()), group: Err("Kafka is away".into()), ..broken() };
    // Said once, not for the group again.
    assert_eq!(codes(&away), [Code::Kafka, Code::Clickhouse]);
}

#[test]
fn no_members_is_wrong_only_while_records_wait() {
    assert_eq!(codes(&status(Vec::new(), vec![standing(500, Some(500))])), []);
    assert_eq!(codes(&status(Vec::new(), vec![standing(501, Some(500))])), [Code::NoMembers]);
}

#[test]
fn a_partition_without_a_member_is_told_only_where_it_is_known() {
    let lagging = || vec![standing(500, Some(500)), standing(500, Some(400))];
    let of = |partitions| status(vec![member("a", partitions)], lagging());
    let wanted = Problem {
        code: Code::PartitionWithoutMember,
        partition: Some(1),
        message: "partition 1: no member has it. If that stays, restart a member: `tallyhouse run`".into(),
    };
    assert_eq!(of(Some(vec![0])).problems(), [wanted]);
    assert_eq!(codes(&of(Some(vec![0, 1]))), []);
    assert_eq!(codes(&of(None)), []);
    let mut moving = of(Some(vec![0]));
    moving.group.as_mut().unwrap().state = GroupState::Rebalancing;
    assert_eq!(codes(&moving), []);
}

#[test]
fn rates_are_of_the_partitions_that_both_looks_have() {
    let earlier = status(Vec::new(), vec![standing(1_000, Some(500)), standing(100, None)]);
    let later = status(Vec::new(), vec![standing(1_100, Some(800)), standing(100, Some(30)), standing(9_000, None)]);
    let rates = Rates::between(&earlier, &later, Duration::from_secs(2)).unwrap();
    // 320 committed: without an offset, the second partition stood at the log's start, 10.
    assert_eq!((rates.produced_per_s, rates.committed_per_s), (50.0, 160.0));
    assert_eq!(rates.catch_up_s, Some((300 + 70 + 8_990) as f64 / 110.0));
    let back = Rates::between(&later, &earlier, Duration::from_secs(2)).unwrap();
    assert_eq!((back.produced_per_s, back.committed_per_s, back.catch_up_s), (0.0, 0.0, None));
    assert_eq!(Rates::between(&earlier, &later, Duration::ZERO), None);
    assert_eq!(Rates::between(&earlier, &status(Vec::new(), Vec::new()), Duration::from_secs(2)), None);
}

#[test]
fn the_table_for_people() {
    let rates = Rates { produced_per_s: 1_000.4, committed_per_s: 1_500.0, catch_up_s: Some(290.0) };
    insta::assert_snapshot!("status_well", healthy().table(Some(rates)));
    insta::assert_snapshot!("status_wrong", broken().table(None));
    let untold = status(vec![member("tallyhouse", None)], vec![standing(20, Some(20))]);
    insta::assert_snapshot!("status_untold", untold.table(None));
}

#[test]
fn the_json_for_machines() {
    insta::assert_snapshot!("status_json", broken().json(None, false).unwrap());
    let line = healthy().json(None, true).unwrap();
    assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
}

#[test]
fn nothing_from_outside_moves_the_cursor() {
    let text = status(vec![member("\x1b[2Jevil\r", Some(vec![0]))], vec![standing(20, Some(20))]).table(None);
    assert!(text.contains("evil") && !text.contains(['\x1b', '\r']), "{text}");
}
