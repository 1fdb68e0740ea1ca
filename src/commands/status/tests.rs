//! Tests the problems, the rates, and the text of a status.

use super::asked::{Cause, MemberAnswer, read};
use super::{
    Asked, Code, History, Lifecycle, MemberUrl, Motion, Partition, Problem, Progress, Rates, Standing, Status,
};
use crate::config::pace::Pace;
use crate::kafka::held_back::HeldBack;
use crate::kafka::members::{Group, GroupState, Member};
use crate::kafka::observer::LifecycleTopic;
use std::time::Duration;
use tallyhouse_core::protocol::outlook::Outlook;
use tallyhouse_core::protocol::stop::StopReason;
use tallyhouse_core::source::OffsetRange;

fn member(client_id: &str, partitions: Option<Vec<i32>>) -> Member {
    Member { id: String::new(), client_id: client_id.into(), host: "/10.0.0.7".into(), instance_id: None, partitions }
}

fn group(members: Vec<Member>) -> Group {
    let state = if members.is_empty() { GroupState::Empty } else { GroupState::Stable };
    Group { state, protocol: None, members, may_read: Some(true) }
}

fn standing(end: u64, committed: Option<u64>) -> Standing {
    let outlook = Some(Outlook::GoesOn("reads on from where it was".into()));
    Standing { start: 10, end, committed, intent: None, outlook, held_back: None, motion: Motion::default() }
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
        lifecycle: Vec::new(),
        clickhouse: Ok(()),
        replica: None,
        group: Ok(group(members)),
        partitions: Ok((0..).zip(standings).map(partition).collect()),
        pace: Pace { flush_age: Duration::from_secs(5), batches_per_second_max: 4.0 },
        asked: Vec::new(),
    }
}

/// Makes a status with a member that has both partitions.
fn counting(standings: Vec<Standing>) -> Status {
    status(vec![member("tallyhouse", Some(vec![0, 1]))], standings)
}

/// The position of the partition in question, after this number of seconds.
type Look = (u64, Standing);

/// Returns the last of such looks, each of which took half a second. Partition 1 is idle.
fn after(looks: Vec<Look>) -> Status {
    let mut history = History::default();
    let mut last = None;
    for (second, standing) in looks {
        let mut seen = counting(vec![standing, self::standing(500, Some(500))]);
        let begun = Duration::from_secs(second);
        history.note(&mut seen, begun, begun + Duration::from_millis(500));
        last = Some(seen);
    }
    last.unwrap()
}

/// Returns the verdict on partition 0 after such looks.
fn fares(looks: Vec<Look>) -> Progress {
    let seen = after(looks);
    let (_, standing) = seen.standings().next().unwrap();
    seen.progress(standing)
}

fn open(end: u64, committed: u64, batch_end: u64) -> Standing {
    Standing { intent: Some(OffsetRange { start: committed, end: batch_end }), ..standing(end, Some(committed)) }
}

fn answered(reasons: &[(&str, &str)], stopped: &[(&str, u64)]) -> Asked {
    let reasons = reasons.iter().map(|&(name, reason)| (name.to_owned(), reason.to_owned())).collect();
    let stopped = stopped.iter().map(|&(reason, count)| (reason.to_owned(), count)).collect();
    Asked { url: "http://a:9464".into(), answer: Ok(MemberAnswer { reasons, stopped, flush_age: None }) }
}

fn healthy() -> Status {
    let members = vec![member("tallyhouse-a", Some(vec![0])), member("tallyhouse-b", Some(vec![1]))];
    let motion = Motion { was_well: true, ..Motion::default() };
    status(members, vec![Standing { motion, ..open(1_000, 900, 950) }, standing(500, Some(500))])
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
    let lags = Status { replica: Some("the replica lags".into()), ..broken() };
    assert_eq!(codes(&lags)[..2], [Code::Clickhouse, Code::Replica]);
    // It is reported once, not for the group again.
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

/// One flush is due after 5 s, so 15 s without a move are too long.
#[test]
fn a_busy_partition_moves() {
    let at = |end, committed| standing(end, Some(committed));
    assert_eq!(fares(vec![(0, at(100, 50)), (6, at(160, 110))]), Progress::Moves);
    // The offset of the first look is the end of a batch, and the next one is announced with it.
    assert_eq!(fares(vec![(0, open(100, 50, 90)), (16, open(160, 90, 150))]), Progress::Moves);
    // An announcement at the same offset: the batch was frozen in time.
    assert_eq!(fares(vec![(0, at(100, 50)), (16, open(160, 50, 150))]), Progress::Moves);
    // The last batch of a watch is as old as a batch may be.
    assert_eq!(fares(vec![(0, at(100, 50)), (2, at(160, 60)), (16, at(200, 60))]), Progress::Moves);
}

#[test]
fn an_idle_partition_is_idle() {
    let idle = || standing(100, Some(100));
    assert_eq!(fares(vec![(0, idle())]), Progress::Idle);
    assert_eq!(fares(vec![(0, idle()), (90, idle())]), Progress::Idle);
    // A record that has come since then is not as old as the look.
    assert_eq!(fares(vec![(0, idle()), (90, standing(130, Some(100)))]), Progress::Moves);
    assert_eq!(
        fares(vec![(0, idle()), (90, standing(130, Some(100))), (106, standing(150, Some(100)))]),
        Progress::StandsStill
    );
}

#[test]
fn one_look_judges_no_lag() {
    let seen = after(vec![(0, standing(100, Some(50)))]);
    assert_eq!(seen.unjudged(), [(0, Duration::from_secs(15))]);
    assert_eq!(codes(&seen), []);
    let text = seen.table(None);
    assert!(
        text.starts_with("not judged: partition 0, where records wait. Looks 15 s apart can tell: --interval-s 15\n"),
        "{text}"
    );
    assert!(!text.contains("nothing is wrong"), "{text}");
    // Nothing waits in these, or the cause is known.
    for known in [healthy_idle(), broken(), status(Vec::new(), vec![standing(100, Some(50))])] {
        assert_eq!(known.unjudged(), []);
    }
}

fn healthy_idle() -> Status {
    counting(vec![standing(500, Some(500))])
}

#[test]
fn an_unmoved_offset_is_a_problem() {
    let looks = |second| after(vec![(0, standing(100, Some(50))), (second, standing(130, Some(50)))]);
    // The first look ended at 0.5 s.
    assert_eq!((codes(&looks(15)), looks(15).unjudged().len()), (vec![], 1));
    let seen = looks(16);
    assert_eq!((codes(&seen), seen.unjudged()), (vec![Code::PartitionStandsStill], vec![]));
    assert_eq!(seen.problems()[0].partition, Some(0));
    // This group has not committed anything yet.
    assert_eq!(fares(vec![(0, standing(100, None)), (16, standing(100, None))]), Progress::StandsStill);
}

/// A refused insert leaves it so, or a partition that is stopped in the middle of a batch.
#[test]
fn a_batch_that_stays_open_is_a_problem() {
    let seen = after(vec![(0, open(100, 50, 90)), (16, open(130, 50, 90))]);
    assert_eq!(codes(&seen), [Code::PartitionStandsStill]);
    assert!(seen.problems()[0].message.contains("batch [50, 90) is announced and was not ended in 15 s"), "{seen:?}");
    assert!(!seen.table(None).contains("nothing is wrong"));
}

#[test]
fn patience_is_a_flush_and_some_seconds() {
    let seconds = |status: &Status| status.patience().as_secs_f64();
    let mut seen = counting(vec![standing(100, Some(50))]);
    assert_eq!(seconds(&seen), 15.0);
    seen.pace.flush_age = Duration::from_secs(60);
    assert_eq!(seconds(&seen), 70.0);
    // One flush in a hundred seconds, whatever the age says.
    seen.pace.batches_per_second_max = 0.01;
    assert_eq!(seconds(&seen), 110.0);
    seen.asked = vec![Asked {
        url: String::new(),
        answer: Ok(MemberAnswer { flush_age: Some(Duration::from_secs(300)), ..MemberAnswer::default() }),
    }];
    assert_eq!(seconds(&seen), 310.0);
}

#[test]
fn a_member_tells_what_it_refuses_and_what_is_stopped() {
    let mut seen = counting(vec![standing(500, Some(500)), standing(500, Some(500))]);
    assert_eq!(codes(&seen), []);
    let reasons = [
        ("partition 1", "batch [5, 9) differs. Step by step: `tallyhouse explain conflict`"),
        ("partition 0, insert", "VIOLATED_CONSTRAINT"),
        ("group", "left behind"),
    ];
    seen.asked = vec![answered(&reasons, &[("conflict", 1)])];
    let problems = seen.problems();
    let found: Vec<_> = problems.iter().map(|problem| (problem.code, problem.partition)).collect();
    let wanted = [(Code::PartitionStopped, Some(1)), (Code::MemberNotReady, None), (Code::MemberNotReady, Some(0))];
    assert_eq!(found, wanted);
    assert_eq!(problems[2].message, "partition 0, insert: VIOLATED_CONSTRAINT (reported by http://a:9464)");
    // Its metrics know of a stop before its causes do.
    seen.asked = vec![answered(&[], &[("conflict", 2)])];
    let message = "stopped partitions: 2, see `tallyhouse explain conflict` (reported by http://a:9464)";
    assert_eq!(seen.problems(), [Problem { code: Code::PartitionStopped, partition: None, message: message.into() }]);
    seen.asked = vec![Asked { url: "http://a:9464".into(), answer: Err("connection refused".into()) }];
    assert_eq!(codes(&seen), [Code::MemberUnknown]);
    assert!(
        seen.problems()[0].message.starts_with("the member at http://a:9464 cannot be asked: connection refused. ")
    );
}

/// A stop that the offsets show is reported once.
#[test]
fn a_stop_is_told_once() {
    let reason = StopReason::RetentionGap { next: 5, low: 10 };
    let outlook = Some(Outlook::Stops(reason.clone()));
    let mut seen = counting(vec![Standing { outlook, ..standing(1_000, Some(5)) }]);
    seen.asked = vec![answered(&[("partition 0", &reason.message())], &[("retention_gap", 1)])];
    assert_eq!(codes(&seen), [Code::PartitionStops]);
}

/// Records behind a transaction are reported at once. They are a problem only when it has been open for longer than
/// producers may by default.
#[test]
fn an_open_transaction_is_told() {
    let held = |offsets, seconds: Option<u64>| {
        let held_back = Some(HeldBack { offsets, open_for: seconds.map(Duration::from_secs) });
        counting(vec![Standing { held_back, ..standing(500, Some(500)) }, standing(500, Some(500))])
    };
    for young in [held(1_001, Some(59)), held(1_001, None)] {
        assert_eq!(codes(&young), []);
        assert!(young.table(None).contains("1001 records lie behind open transactions"), "{}", young.table(None));
    }
    let long = held(1_001, Some(60));
    assert_eq!(codes(&long), [Code::OpenTransaction]);
    assert!(long.problems()[0].message.contains("open for 60 s, and 1001 records behind offset 500"), "{long:?}");
    let json: serde_json::Value = serde_json::from_str(&long.json(None, true).unwrap()).unwrap();
    let first = &json["partitions"][0];
    assert_eq!((&first["open_transaction_records"], &first["open_transaction_s"]), (&1_001.into(), &60.0.into()));
    assert!(json["partitions"][1]["open_transaction_records"].is_null(), "not reported");
    let none = held(0, None);
    assert!(codes(&none).is_empty() && !none.table(None).contains("transaction"));
}

#[test]
fn what_is_not_asked_is_said() {
    let hint = |status: &Status| status.table(None).lines().nth(1).unwrap().to_owned();
    let mut seen = healthy_idle();
    assert_eq!(hint(&seen), "causes are known to the members: add --member URL");
    seen.group = Ok(group(vec![member("a", Some(vec![0])), member("b", Some(vec![1]))]));
    seen.asked = vec![answered(&[], &[])];
    assert_eq!(hint(&seen), "1 of 2 members were asked: add --member URL");
    seen.asked = vec![answered(&[], &[]), answered(&[], &[])];
    assert_eq!(hint(&seen), "");
}

#[test]
fn lifecycle_topics_have_a_line_each() {
    let mut seen = healthy_idle();
    let of = |topic: &str, seen| Lifecycle { topic: topic.to_owned(), seen };
    seen.lifecycle = vec![
        of("audience", Ok(Some(LifecycleTopic { partitions: 2, lag_records: 7 }))),
        of("template", Ok(None)),
        of("other", Err("no answer".to_owned())),
    ];
    let table = seen.table(None);
    for line in [
        "topic audience: partitions 2, records not committed 7",
        "topic template: does not exist; members wait for it",
        "topic other: cannot be asked for: no answer",
    ] {
        assert!(table.lines().any(|found| found == line), "{table}");
    }
    let json: serde_json::Value = serde_json::from_str(&seen.json(None, true).unwrap()).unwrap();
    assert_eq!(json["lifecycle_topics"][0]["lag_records"], 7);
    assert!(json["lifecycle_topics"][1]["partitions"].is_null() && json["ok"] == true);
}

#[test]
fn a_members_answers_are_read() {
    let metrics = "# TYPE tallyhouse_stopped_partitions gauge\n\
                   tallyhouse_stopped_partitions{reason=\"conflict\",topic=\"events\"} 1\n\
                   tallyhouse_stopped_partitions{reason=\"conflict\",topic=\"campaign.audience_ready\"} 1\n\
                   tallyhouse_stopped_partitions{reason=\"intent_gone\"} 0\n\
                   tallyhouse_flush_age_seconds 16\n\
                   tallyhouse_info{version=\"0.1.0\",topic=\"events\"} 1\n";
    let readiness = r#"{"ready":false,"reasons":{"partition 0":"stopped:\nlook"}}"#;
    let mut wanted = answered(&[("partition 0", "stopped: look")], &[("conflict", 2)]).answer.unwrap();
    wanted.flush_age = Some(Duration::from_secs(16));
    assert_eq!(read(readiness, metrics, "events"), Ok(wanted));
    assert_eq!(read(readiness, metrics, "other"), Err("it is a member for the topic events, not other".into()));
    let stranger = Err("something other than a member of Tallyhouse answers".into());
    assert_eq!(read("ok", metrics, "events"), stranger);
    assert_eq!(read(readiness, "up 1\n", "events"), stranger);
    let causes = ["partition 12", "partition 3, insert", "partition x", "assignment"].map(Cause::of);
    assert_eq!(causes, [Cause::Stopped(12), Cause::Step(3), Cause::Member, Cause::Member]);
}

#[test]
fn an_address_of_a_member_is_plain_http() {
    let url = |text: &str| text.parse::<MemberUrl>().ok().map(|url| url.to_string());
    assert_eq!(url("http://127.0.0.1:9464/"), Some("http://127.0.0.1:9464".into()));
    assert_eq!(url("http://proxy/pods/a:9464/proxy"), Some("http://proxy/pods/a:9464/proxy".into()));
    let not =
        ["127.0.0.1:9464", "https://a:9464", "http://u:p@a:9464", "http://a:9464/?x=1", "http://a/#b", "file:///a"];
    assert!(not.iter().all(|text| url(text).is_none()), "{:?}", not.map(url));
}

#[test]
fn the_table_for_people() {
    let rates = Rates { produced_per_s: 1_000.4, committed_per_s: 1_500.0, catch_up_s: Some(290.0) };
    insta::assert_snapshot!("status_well", healthy().table(Some(rates)));
    insta::assert_snapshot!("status_wrong", broken().table(None));
    let untold = status(vec![member("tallyhouse", None)], vec![standing(20, Some(20))]);
    insta::assert_snapshot!("status_untold", untold.table(None));
    let mut still = after(vec![(0, open(100, 50, 90)), (16, open(130, 50, 90))]);
    still.asked =
        vec![answered(&[("partition 0, insert", "ClickHouse reports an error (469 VIOLATED_CONSTRAINT)")], &[])];
    insta::assert_snapshot!("status_still", still.table(None));
}

#[test]
fn the_json_for_machines() {
    let mut seen = broken();
    seen.asked = vec![answered(&[("group", "left behind")], &[("conflict", 1)])];
    insta::assert_snapshot!("status_json", seen.json(None, false).unwrap());
    let line = healthy().json(None, true).unwrap();
    assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line}");
}

#[test]
fn nothing_from_outside_moves_the_cursor() {
    let text = status(vec![member("\x1b[2Jevil\r", Some(vec![0]))], vec![standing(20, Some(20))]).table(None);
    assert!(text.contains("evil") && !text.contains(['\x1b', '\r']), "{text}");
}
