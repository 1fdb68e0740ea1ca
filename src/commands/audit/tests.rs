//! Tests the pure part: positions, gaps, and the text of the reports.

use super::finding::{Check, Code, CounterName, Finding};
use super::judge::{self, BUCKET, Runs, Suspect};
use super::report::{Outcome, Report};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use tallyhouse_core::protocol::intent::{Counts, Metadata};
use tallyhouse_core::protocol::marks::{Marks, Progress};
use tallyhouse_core::protocol::outlook::{Before, Outlook, Position};
use tallyhouse_core::protocol::{Committed, LogView};
use tallyhouse_core::source::{OffsetRange, Source};

const ID: &str = "QQQQQQQQQQQQQQQQQQQQQQ";

fn metadata(next: Option<(u64, Counts)>) -> Vec<u8> {
    Metadata { topic_id: ID.to_owned(), next, ..Metadata::default() }.encode().into_bytes()
}

fn position(committed: Option<(u64, Vec<u8>)>, counted_end: Option<u64>, stored_end: Option<u64>) -> Position {
    let source = Source { cluster: String::new(), topic: "t".into(), topic_id: ID.into(), partition: 3 };
    let committed = committed.map(|(offset, metadata)| Committed { offset, metadata });
    let log =
        LogView { committed, topic_id: ID.into(), ids_of_rows: vec![], cluster_id: String::new(), low: 0, high: 1_000 };
    Position {
        source,
        progress: Progress { counted_end, stored_end, ..Progress::default() },
        log,
        first_stored: Some(0),
        marks: None,
        before: Before::default(),
    }
}

fn codes(position: &Position) -> Vec<Code> {
    judge::offsets(position, "g").iter().map(|finding| finding.code).collect()
}

const COUNTS: Counts = Counts { rows: 90, rejects: 10 };

#[test]
fn a_healthy_partition_has_no_finding_at_any_step_of_a_batch() {
    let intent = || Some((200, metadata(Some((300, COUNTS)))));
    for healthy in [
        position(None, None, None),
        position(Some((200, metadata(None))), Some(200), None),
        // The last records were no events, so the mark stays behind the committed offset.
        position(Some((200, metadata(None))), Some(150), Some(200)),
        position(intent(), Some(200), None),
        position(intent(), Some(200), Some(300)),
        position(intent(), Some(300), None),
    ] {
        assert_eq!(codes(&healthy), [], "{healthy:?}");
    }
}

#[test]
fn what_does_not_fit_is_named_with_what_run_does() {
    let says = |position: &Position| judge::offsets(position, "g").remove(0).message;
    let lost = position(None, Some(200), Some(300));
    assert_eq!(codes(&lost), [Code::LostOffset]);
    assert!(says(&lost).contains("completes [200, 300) first and reads on from offset 300"), "{}", says(&lost));
    let behind = position(Some((100, metadata(None))), Some(200), None);
    assert_eq!(codes(&behind), [Code::OffsetBehindMarks]);
    assert!(says(&behind).contains("commits offset 200"), "{}", says(&behind));
    let restored = position(Some((100, metadata(Some((150, COUNTS))))), Some(200), None);
    assert_eq!(codes(&restored), [Code::OffsetBehindMarks]);
    assert!(says(&restored).contains("commits offset 200"), "{}", says(&restored));
    let unannounced = position(Some((200, metadata(None))), Some(200), Some(250));
    assert_eq!(codes(&unannounced), [Code::UnannouncedRows]);
    let beyond = position(Some((2_000, metadata(None))), Some(200), None);
    assert_eq!(codes(&beyond), [Code::Stops]);
    let foreign = position(Some((200, b"flink".to_vec())), Some(200), None);
    assert_eq!(codes(&foreign), [Code::Stops]);
    assert!(matches!(foreign.outlook(), Outlook::Stops(reason) if reason.code() == "bad_metadata"));
}

#[test]
fn an_intent_says_how_far_its_batch_is() {
    let mut open = position(Some((200, metadata(Some((300, COUNTS))))), Some(200), None);
    let state = |open: &Position| judge::intent(open).unwrap().message.split(": ").last().unwrap().to_owned();
    open.marks = Some(Marks { daily: [(202611, 200)].into(), ..Marks::default() });
    assert_eq!(state(&open), "not applied yet");
    open.marks =
        Some(Marks { raw: [(20261101, 90)].into(), daily: [(202611, 200)].into(), rejected: 10, ..Marks::default() });
    assert!(state(&open).starts_with("partly applied"));
    open.marks =
        Some(Marks { raw: [(20261101, 90)].into(), daily: [(202611, 300)].into(), rejected: 10, ..Marks::default() });
    assert!(state(&open).starts_with("applied"));
    assert_eq!(judge::intent(&position(Some((200, metadata(None))), None, None)), None);
}

/// A repair has a border: everything before it is in the month's counters or was lost from them, and the rest will be
/// counted.
#[test]
fn a_month_is_counted_up_to_what_is_finished_in_it() {
    let committed = |next| position(Some((200, metadata(next))), Some(200), None);
    assert_eq!(committed(None).counted_up_to(Some(200)), Ok(200));
    assert_eq!(committed(None).counted_up_to(None), Ok(200), "the month's counters are lost");
    let open = Some((300, COUNTS));
    assert_eq!(committed(open).counted_up_to(Some(150)), Ok(200), "the open batch is not in this month yet");
    assert_eq!(committed(open).counted_up_to(Some(300)), Ok(300), "the open batch is in this month");
    assert_eq!(committed(open).counted_up_to(Some(250)), Err(OffsetRange { start: 200, end: 300 }));
    // It was applied in another month only. That must not pass for this one.
    let mut half = committed(open);
    half.progress.counted_end = Some(300);
    assert_eq!(half.counted_up_to(Some(200)), Ok(200));
    // Without a committed offset a member starts from the marks of all months.
    assert_eq!(position(None, Some(300), None).counted_up_to(Some(200)), Ok(300));
    // A committed offset of a deleted topic says nothing about this topic.
    let old = Metadata { topic_id: "R".repeat(22), ..Metadata::default() }.encode().into_bytes();
    assert_eq!(position(Some((900, old)), Some(300), None).counted_up_to(Some(300)), Ok(300));
}

proptest! {
    /// Whatever is stored, the suspects are exactly the pieces that lack offsets, and cover all that is missing.
    #[test]
    fn suspects_cover_what_is_missing_and_no_more(
        (start, end) in (0u64..3 * BUCKET, 1u64..3 * BUCKET).prop_map(|(start, length)| (start, start + length)),
        gone in proptest::collection::vec((0u64..6 * BUCKET, 1u64..2 * BUCKET), 0..4),
    ) {
        let gone: Vec<(u64, u64)> =
            gone.into_iter().map(|(at, length)| (at.clamp(start, end), (at + length).clamp(start, end))).collect();
        let lost_in = |from: u64, to: u64| -> u64 {
            let edges: BTreeSet<u64> =
                gone.iter().flat_map(|&(a, b)| [a, b]).chain([from, to]).map(|edge| edge.clamp(from, to)).collect();
            let edges: Vec<u64> = edges.into_iter().collect();
            edges.windows(2).filter(|w| gone.iter().any(|&(a, b)| a <= w[0] && w[1] <= b)).map(|w| w[1] - w[0]).sum()
        };
        let mut stored = BTreeMap::new();
        for bucket in start / BUCKET..=end / BUCKET {
            let (from, to) = ((bucket * BUCKET).max(start), ((bucket + 1) * BUCKET).min(end));
            if from < to && to - from > lost_in(from, to) {
                stored.insert(bucket, to - from - lost_in(from, to));
            }
        }
        let suspects = judge::suspects(OffsetRange { start, end }, &stored);
        let mut lost = 0;
        for (index, Suspect { range, empty }) in suspects.iter().enumerate() {
            let lost_here = lost_in(range.start, range.end);
            prop_assert!(lost_here > 0 && *empty == (lost_here == range.end - range.start), "{suspects:?}");
            prop_assert!(*empty || range.start / BUCKET == (range.end - 1) / BUCKET);
            prop_assert!(index == 0 || suspects[index - 1].range.end <= range.start);
            lost += lost_here;
        }
        prop_assert_eq!(lost, lost_in(start, end));
    }

    #[test]
    fn runs_and_spans_keep_every_offset(offsets in proptest::collection::btree_set(0u64..50_000, 0..200)) {
        let mut runs = Runs::default();
        offsets.iter().for_each(|&offset| runs.push(offset));
        let kept: BTreeSet<u64> = runs.ranges.iter().flat_map(|range| range.start..range.end).collect();
        prop_assert_eq!((&kept, runs.offsets), (&offsets, offsets.len() as u64));
        let spans = judge::spans(&runs.ranges);
        for offset in (0..50_000).step_by(37).chain(offsets.iter().copied()) {
            prop_assert_eq!(judge::contains(&runs.ranges, offset), offsets.contains(&offset));
            prop_assert!(!offsets.contains(&offset) || judge::contains(&spans, offset));
        }
    }
}

fn report() -> Report {
    let source = format!("campaign.event_tracking/3@{ID}");
    let mut checks: Vec<Outcome> = Check::ALL.map(|check| Outcome::new(check, "3 partitions".to_owned())).into();
    let mut differs = Finding::new(Code::DailyDiffers, "daily says 4, email_events has 2 open rows");
    differs.counter = Some(CounterName {
        day: "2026-11-24".into(),
        event_type: "open".into(),
        campaign_id: "0190a1b2-0000-4000-8000-000000000001".into(),
        workspace_id: "0190a1b2-0000-4000-8000-000000000002".into(),
    });
    (differs.rows, differs.total) = (Some(2), Some(4));
    let missing =
        |at| Finding::new(Code::Missing, "Kafka has a record, the tables have none").of(&source).at(at, at + 1);
    checks[1].add(missing(17), 2);
    checks[1].add(missing(40), 2);
    checks[1].add(missing(60), 2);
    checks[2].add(differs, 2);
    let mut headroom = Finding::new(Code::TokenHeadroom, "a window of 10000 blocks");
    headroom.table = Some("daily".into());
    checks[5].add(headroom, 2);
    Report {
        database: "campaigns".into(),
        topic: "campaign.event_tracking".into(),
        topic_id: ID.into(),
        group_id: "clickhouse-writer".into(),
        since: Some("2026-11-01".into()),
        until: None,
        checks,
    }
}

#[test]
fn the_table_for_people() {
    insta::assert_snapshot!(report().table());
}

#[test]
fn the_json_for_machines() {
    insta::assert_snapshot!(report().json().unwrap());
}

#[test]
fn a_clean_report_says_so() {
    let checks = Check::ALL.map(|check| Outcome::new(check, "3 partitions".to_owned())).into();
    let clean = Report { checks, ..report() };
    assert!(clean.table().ends_with("clean\n") && clean.json().unwrap().contains("\"clean\": true"));
}
