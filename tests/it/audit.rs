//! Tests `tallyhouse audit` and `tallyhouse repair` on real servers: they name each error exactly, and nothing else.

use crate::operator::{admin, options};
use crate::service::{Bench, await_http, end, kafka};
use chrono::NaiveDate;
use devstack::producer::{Events, Ledger};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(60);

fn audit(bench: &Bench, arguments: &[&str]) -> (Option<i32>, Value) {
    let (status, output, error) = bench.run(&[&["audit", "--json"], arguments].concat(), &[]);
    assert!(matches!(status, Some(0 | 2)), "{status:?}: {error}");
    (status, serde_json::from_str(&output).unwrap())
}

/// Returns all findings with this severity, as code and finding.
fn findings(report: &Value, severity: &str) -> Vec<(String, Value)> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .flat_map(|check| check["findings"].as_array().unwrap().clone())
        .filter(|finding| finding["severity"] == severity)
        .map(|finding| (finding["code"].as_str().unwrap().to_owned(), finding))
        .collect()
}

/// Checks that an audit finds nothing.
pub fn assert_clean(bench: &Bench, what: &str) {
    let (status, report) = audit(bench, &[]);
    assert_eq!((status, &report["clean"]), (Some(0), &Value::Bool(true)), "{what}: {report:#}");
}

/// Returns events of three days on both sides of the turn of a month.
fn two_months() -> Events {
    Events { last_day: NaiveDate::from_ymd_opt(2026, 11, 2).unwrap(), ..Events::default() }
}

/// Returns everything that is stored and counted, to prove that nothing was changed.
async fn content(bench: &Bench) -> Vec<(String, String, u64, u64)> {
    let sql = "SELECT toString((day, event_type, campaign_id)), toString(source), sum(total), max(end_offset) FROM daily \
               GROUP BY day, event_type, campaign_id, source ORDER BY ALL";
    bench.rows(sql).await
}

/// There is no violation before, while and after members write, and every check has looked at something.
pub async fn an_ordinary_run_is_clean_at_any_moment(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    let events = two_months();
    assert_clean(&bench, "before the first event");
    let member = bench.start(&[("TALLYHOUSE__FLUSH__AGE_MS", "50")]);
    for step in 0..8 {
        producer.send_events(&events, step * 5_000..(step + 1) * 5_000).unwrap();
        bench.await_stored((step * 5_000).saturating_sub(4_000), &[&member]).await;
        assert_clean(&bench, &format!("at step {step}, while a member writes"));
    }
    let ledger = producer.finish().unwrap();
    bench.await_stored(ledger.produced, &[&member]).await;
    end(&member);
    let (status, report) = audit(&bench, &[]);
    assert_eq!(status, Some(0), "{report:#}");
    assert!(report["checks"][1]["scope"].as_str().unwrap().starts_with(&ledger.produced.to_string()), "{report:#}");
    let (status, table, _) = bench.run(&["audit", "--since", "2026-11-01", "--until", "2026-11-02"], &[]);
    assert!(status == Some(0) && table.contains("since 2026-11-01") && table.ends_with("clean\n"), "{table}");
    for (arguments, status) in [(["--since", "yesterday"], 64), (["--set", "kafka.brokers=127.0.0.1:1"], 1)] {
        let (found, _, error) = bench.run(&[&["audit"], &arguments[..]].concat(), &[]);
        assert!(found == Some(status) && error.contains(arguments[1].trim_start_matches("kafka.brokers=")), "{error}");
    }
}

/// A row is deleted, a row doubled and a counter doubled by hand. The audit names each with all it belongs to, and
/// nothing else.
pub async fn what_is_changed_by_hand_is_named_exactly(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(9_000);
    bench.consume(ledger.produced).await;
    assert_clean(&bench, "before anything is changed");
    // These are the last day of the order, the first and one in between: three rows of different counters.
    let sql = "SELECT toString(toDate(event_time)) AS day, toString(event_type), toString(campaign_id), toString(source), \
               source_offset FROM email_events WHERE source LIKE '%/1@%' AND source_offset IN (1, 1000, 2999) ORDER BY source_offset";
    type Row = (String, String, String, String, u64);
    let rows: Vec<Row> = bench.rows(sql).await;
    let [deleted, doubled, counted] = &rows[..] else { panic!("choose other offsets: {rows:?}") };
    let at = |row: &Row| format!("source = '{}' AND source_offset = {}", row.3, row.4);
    bench.execute(&format!("ALTER TABLE email_events DELETE WHERE {} SETTINGS mutations_sync = 2", at(deleted))).await;
    bench.execute(&format!("INSERT INTO email_events SELECT * FROM email_events WHERE {}", at(doubled))).await;
    let of_counter =
        |row: &Row| format!("day = '{}' AND event_type = '{}' AND campaign_id = '{}'", row.0, row.1, row.2);
    let columns = "day, event_type, campaign_id, workspace_id";
    bench
        .execute(&format!(
            "INSERT INTO daily ({columns}, total) SELECT {columns}, sum(total) FROM daily WHERE {} GROUP BY ALL",
            of_counter(counted)
        ))
        .await;

    let (status, report) = audit(&bench, &[]);
    assert_eq!((status, report["violations"].as_u64()), (Some(2), Some(5)), "{report:#}");
    let found = findings(&report, "violation");
    let named = |code: &str, row: &Row| {
        let is_this = |finding: &Value| match code {
            "daily_differs" => {
                [&finding["day"], &finding["event_type"], &finding["campaign_id"]] == [&row.0, &row.1, &row.2]
            }
            _ => {
                let offsets = (finding["first_offset"].as_u64(), finding["end_offset"].as_u64());
                finding["source"] == *row.3 && offsets == (Some(row.4), Some(row.4 + 1))
            }
        };
        let all: Vec<_> = found.iter().filter(|(c, f)| c == code && is_this(f)).collect();
        assert_eq!(all.len(), 1, "{code} {row:?} in {report:#}");
        all[0].1.clone()
    };
    named("missing", deleted);
    assert_eq!(named("duplicate", doubled)["rows"], 2);
    for (row, more_rows) in [(deleted, -1), (doubled, 1)] {
        let finding = named("daily_differs", row);
        let number = |field: &str| finding[field].as_i64().unwrap();
        assert_eq!(number("rows") - number("total"), more_rows, "{finding}");
    }
    let finding = named("daily_differs", counted);
    assert_eq!(finding["total"].as_u64().unwrap(), 2 * finding["rows"].as_u64().unwrap(), "{finding}");

    // A repair would carry the damage of the rows into daily.
    let months: BTreeSet<String> = rows.iter().map(|row| row.0.replace('-', "")[..6].to_owned()).collect();
    for month in &months {
        let (status, _, error) = bench.run(&["repair", "daily", "--month", month], &[]);
        assert_eq!(status, Some(1), "{error}");
        assert!(error.contains("offset 1000 has 2 rows") || error.contains("[1, 2)"), "{error}");
    }
    // The table for people shows the same. It lists only one finding a check, and counts all.
    let (status, table, _) = bench.run(&["audit", "--limit", "1"], &[]);
    assert!(status == Some(2) && table.contains("5 violations") && table.contains("and 2 more"), "{table}");
    // Other days do not concern it. But the gap has no day, so the audit looks for it by the record's timestamp.
    let (_, report) = audit(&bench, &["--until", "2020-01-01"]);
    assert_eq!(report["violations"], 0, "{report:#}");
    // Records that are gone from the log cannot be looked up any more, so the audit claims nothing about them.
    bench.delete_records(1, 2).await;
    let (_, report) = audit(&bench, &[]);
    assert!(findings(&report, "violation").iter().all(|(code, _)| code != "missing"), "{report:#}");
}

/// The committed offset is deleted, then set back. The audit names each for its partition, with the next action of
/// `run`.
pub async fn a_lost_committed_offset_is_named(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(6_000);
    bench.consume(ledger.produced).await;
    admin().delete_groups(&[&bench.topic], &options()).await.unwrap();
    let (status, report) = audit(&bench, &[]);
    let found = findings(&report, "violation");
    assert_eq!((status, found.len()), (Some(2), 3), "{report:#}");
    for (code, finding) in &found {
        let says = finding["message"].as_str().unwrap();
        assert!(code == "lost_offset" && says.contains("commits offset 2000, up to which all is applied"), "{finding}");
    }
    for (partition, offset) in [(0, 10), (1, 2_000), (2, 3_000)] {
        bench.commit_by_hand(partition, offset, b"").await;
    }
    let (_, report) = audit(&bench, &[]);
    let found = findings(&report, "violation");
    let codes: Vec<(&str, &Value)> = found.iter().map(|(code, finding)| (code.as_str(), finding)).collect();
    let [("offset_behind_marks", behind), ("stops", beyond)] = codes[..] else { panic!("{report:#}") };
    assert!(behind["source"].as_str().unwrap().contains("/0@") && behind["first_offset"] == 10, "{behind}");
    assert!(beyond["source"].as_str().unwrap().contains("/2@") && beyond["reason"] == "ahead_of_log", "{beyond}");
    bench.assert_exact(&ledger, "an audit changes nothing").await;
}

/// Markers and aborted records leave gaps in the offsets that are no loss. A real gap among them is still found.
pub async fn gaps_of_transactions_are_no_losses(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", kafka()).set("transactional.id", &bench.topic).create().unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    let events = Events { broken_percent: 0, ..Events::default() };
    let mut committed = 0;
    for round in 0..12 {
        producer.begin_transaction().unwrap();
        for n in 0..20 {
            let payload = events.payload(round * 20 + n).bytes;
            producer.send(BaseRecord::<(), _>::to(&bench.topic).partition(0).payload(&payload)).unwrap();
        }
        if round % 3 == 1 {
            producer.flush(TIMEOUT).unwrap();
            producer.abort_transaction(TIMEOUT).unwrap();
        } else {
            producer.commit_transaction(TIMEOUT).unwrap();
            committed += 20;
        }
    }
    bench.consume(committed).await;
    assert_eq!(bench.count("SELECT toUInt64(max(source_offset) + 1 - count()) FROM email_events").await, 4 * 20 + 11);
    assert_clean(&bench, "with gaps that Kafka made");
    bench.execute("ALTER TABLE email_events DELETE WHERE source_offset = 50 SETTINGS mutations_sync = 2").await;
    let (_, report) = audit(&bench, &[]);
    let found = findings(&report, "violation");
    let missing: Vec<_> = found.iter().filter(|(code, _)| code == "missing").collect();
    assert_eq!(missing.len(), 1, "{report:#}");
    assert_eq!(missing[0].1["first_offset"], 50, "{report:#}");
}

/// A member killed with a batch half applied leaves an open intent. The audit reports it, and not as a violation.
pub async fn a_kill_leaves_an_open_intent_that_is_told(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(6_000);
    for (point, state) in [("intent_committed:2", "not applied yet"), ("raw_inserted:2", "partly applied")] {
        bench.die(&[("TALLYHOUSE_FAILPOINT", point)]);
        let (status, report) = audit(&bench, &[]);
        let intents: Vec<_> =
            findings(&report, "notice").into_iter().filter(|(code, _)| code == "open_intent").collect();
        assert!(
            intents.iter().any(|(_, intent)| intent["message"].as_str().unwrap().contains(state)),
            "{point}: {report:#}"
        );
        assert_eq!(status, Some(0), "{point}: {report:#}");
    }
    let member = bench.start(&[]);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after audits of open intents").await;
}

/// Doubles one counter of a month, as a person might.
pub async fn double_a_counter(bench: &Bench, month: u32) {
    let columns = "day, event_type, campaign_id, workspace_id, source";
    let daily = bench.client.stored("daily");
    let sql = format!(
        "INSERT INTO {daily} ({columns}, total, end_offset) SELECT {columns}, sum(total), max(end_offset) FROM daily \
         WHERE toYYYYMM(day) = {month} GROUP BY ALL ORDER BY ALL LIMIT 1"
    );
    bench.execute(&sql).await;
}

/// Stores events of two months in the tables.
pub async fn store_two_months(bench: &Bench, events: u64) -> Ledger {
    let mut producer = bench.producer();
    producer.send_events(&two_months(), 0..events).unwrap();
    let ledger = producer.finish().unwrap();
    bench.consume(ledger.produced).await;
    ledger
}

/// `--dry-run` changes nothing. Without it the month is right again, marks included, and the other month is left
/// alone.
pub async fn repair_counts_a_month_again(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = store_two_months(&bench, 9_000).await;
    let repair = ["repair", "daily", "--month", "202611"];
    let (status, output, _) = bench.run(&repair, &[]);
    assert!(status == Some(0) && output.contains("0 counters differ"), "{output}");
    let marks = "SELECT toString(source), toYYYYMM(day) AS month, max(end_offset) FROM daily GROUP BY ALL ORDER BY ALL";
    let marks_before: Vec<(String, u32, u64)> = bench.rows(marks).await;
    double_a_counter(&bench, 202611).await;
    let changed = content(&bench).await;
    let (status, output, error) = bench.run(&[&repair[..], &["--dry-run"]].concat(), &[]);
    assert!(status == Some(2) && output.contains("1 counters differ"), "{output}{error}");
    assert!(output.contains("REPLACE PARTITION 202611") && output.contains("2026-11-0"), "{output}");
    assert_eq!(content(&bench).await, changed);
    let (status, output, error) = bench.run(&repair, &[]);
    assert!(status == Some(0) && output.contains("0 counters differ now"), "{output}{error}");
    let marks_after: Vec<(String, u32, u64)> = bench.rows(marks).await;
    assert_eq!(marks_after, marks_before);
    bench.assert_exact(&ledger, "after a repair").await;
    assert_clean(&bench, "after a repair");
    // Counters and marks of a whole month are lost. The committed offset gives the end of the count.
    bench.execute("ALTER TABLE daily DROP PARTITION 202611").await;
    let (status, output, error) = bench.run(&repair, &[]);
    assert_eq!(status, Some(0), "{output}{error}");
    bench.assert_exact(&ledger, "after a lost month").await;
    assert_clean(&bench, "after a lost month");
}

/// Where rows are gone, counting again would lose counts. The repair refuses it unless asked for.
pub async fn repair_refuses_what_would_lose_counts(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    store_two_months(&bench, 3_000).await;
    let before = content(&bench).await;
    bench.execute("ALTER TABLE email_events DROP PARTITION 20261101").await;
    let repair = ["repair", "daily", "--month", "202611"];
    let (status, _, error) = bench.run(&repair, &[]);
    assert!(status == Some(1) && error.contains("2026-11-01") && error.contains("--trust-rows"), "{error}");
    assert_eq!(content(&bench).await, before);
    bench.execute("ALTER TABLE email_events DELETE WHERE source LIKE '%/2@%' SETTINGS mutations_sync = 2").await;
    let (status, output, error) = bench.run(&[&repair[..], &["--trust-rows"]].concat(), &[]);
    assert_eq!(status, Some(0), "{output}{error}");
    let left = bench.count("SELECT sum(total) FROM daily WHERE toYYYYMM(day) = 202611").await;
    assert_eq!(left, bench.count("SELECT count() FROM email_events WHERE toYYYYMM(event_time) = 202611").await);
}

/// Months are counted again and again while members write into them. In the end everything is there once.
pub async fn repair_beside_a_member_is_exact(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let settings = [("TALLYHOUSE__FLUSH__AGE_MS", "50"), ("TALLYHOUSE__FLUSH__ROWS_MAX", "200")];
    let member = bench.start(&settings);
    let (mut producer, events) = (bench.producer(), two_months());
    producer.send_events(&events, 0..2_000).unwrap();
    bench.await_stored(1_000, &[&member]).await;
    for round in 1..7 {
        double_a_counter(&bench, 202610).await;
        double_a_counter(&bench, 202611).await;
        producer.send_events(&events, round * 2_000..(round + 1) * 2_000).unwrap();
        let (status, output, error) = bench.run(&["repair", "daily", "--month", "202611", "--month", "202610"], &[]);
        assert!(status == Some(0) && output.matches("0 counters differ now").count() == 2, "{output}{error}");
    }
    let ledger = producer.finish().unwrap();
    bench.await_stored(ledger.produced, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "after repairs beside a member").await;
    assert_clean(&bench, "after repairs beside a member");
}

/// When the fence stands, no insert is under way any more. Later inserts are refused for that month and no other.
pub async fn a_fence_waits_for_inserts_under_way_and_refuses_later_ones(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    store_two_months(&bench, 1_500).await;
    double_a_counter(&bench, 202611).await;
    let columns = "day, event_type, campaign_id, workspace_id, source";
    let insert = |day: &str, total: &str, rows: u64| {
        format!(
            "INSERT INTO daily ({columns}, total, end_offset) SELECT '{day}', 'open', generateUUIDv4(), generateUUIDv4(), \
             'elsewhere/0', {total}, 1 FROM numbers({rows}) SETTINGS max_block_size = 1"
        )
    };
    let slow = insert("2026-11-01", "1 + sleepEachRow(1)", 5);
    let inserting = bench.execute(&slow);
    let repairing = async {
        await_insert(&bench, database).await;
        let repair = ["repair", "daily", "--month", "202611", "--trust-rows"];
        let (status, said) = bench.run_beside(&repair, &[("TALLYHOUSE_FAILPOINT", "repair_fenced")]).await;
        assert_eq!(status, None, "{said}");
        bench.count("SELECT count() FROM daily WHERE source = 'elsewhere/0'").await
    };
    let ((), inserted) = tokio::join!(inserting, repairing);
    assert_eq!(inserted, 5, "the fence stood while an insert was under way");
    let refused = bench.try_execute(&insert("2026-11-01", "1", 1)).await.unwrap_err();
    assert!(refused.to_string().contains("VIOLATED_CONSTRAINT"), "{refused}");
    bench.execute(&insert("2026-10-31", "1", 1)).await;
    let (status, output, error) = bench.run(&["repair", "clean"], &[]);
    assert_eq!(status, Some(0), "{output}{error}");
    bench.execute(&insert("2026-11-01", "1", 1)).await;
}

/// Counters that a member inserts between the long count and the fence are in the month that is swapped in, with
/// their mark.
pub async fn repair_counts_what_is_inserted_meanwhile(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    store_two_months(&bench, 1_500).await;
    double_a_counter(&bench, 202611).await;
    // This does the same as a member with a batch of eight, but slowly: rows, then counters.
    let of_source = "source LIKE '%/1@%' AND toYYYYMM(event_time) = 202611";
    bench
        .execute(&format!(
            "INSERT INTO email_events SELECT * REPLACE (500 + rowNumberInAllBlocks() AS source_offset) \
             FROM (SELECT * FROM email_events WHERE {of_source} LIMIT 8)"
        ))
        .await;
    let slow = "INSERT INTO daily (day, event_type, campaign_id, workspace_id, source, total, end_offset) \
                SELECT toDate(event_time), event_type, campaign_id, workspace_id, source, 1 + sleepEachRow(1), 508 \
                FROM email_events WHERE source LIKE '%/1@%' AND source_offset >= 500 \
                SETTINGS function_sleep_max_microseconds_per_block = 60000000";
    let repairing = async {
        await_insert(&bench, database).await;
        bench.run_beside(&["repair", "daily", "--month", "202611"], &[]).await
    };
    let ((), (status, said)) = tokio::join!(bench.execute(slow), repairing);
    assert_eq!(status, Some(0), "{said}");
    let counted = bench.count("SELECT sum(total) FROM daily WHERE toYYYYMM(day) = 202611").await;
    assert_eq!(counted, bench.count("SELECT count() FROM email_events WHERE toYYYYMM(event_time) = 202611").await);
    assert_eq!(bench.count("SELECT max(end_offset) FROM daily WHERE toYYYYMM(day) = 202611").await, 508);
}

/// Waits until an insert into `daily` is under way.
pub async fn await_insert(bench: &Bench, database: &str) {
    let running = format!(
        "SELECT count() FROM system.processes WHERE query LIKE 'INSERT INTO daily%' AND current_database = '{database}'"
    );
    while bench.count(&running).await == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A repair killed at each step leaves a fence that is reported and holds members. The next repair removes it and is
/// exact.
pub async fn a_repair_that_was_killed_is_taken_over(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let member = bench.start(&[]);
    let (mut producer, events) = (bench.producer(), two_months());
    producer.send_events(&events, 0..3_000).unwrap();
    bench.await_stored(3_000, &[&member]).await;
    let repair = ["repair", "daily", "--month", "202611"];
    for (round, (point, left)) in (1..).zip([("repair_counted", 1), ("repair_fenced", 2), ("repair_swapped", 2)]) {
        double_a_counter(&bench, 202611).await;
        let (status, output, _) = bench.run(&repair, &[("TALLYHOUSE_FAILPOINT", point)]);
        assert_eq!(status, None, "{point} was not reached: {output}");
        producer.send_events(&events, round * 3_000..(round + 1) * 3_000).unwrap();
        let (status, report) = audit(&bench, &[]);
        let leftovers = findings(&report, "violation").iter().filter(|(code, _)| code == "repair_leftover").count();
        assert_eq!((status, leftovers), (Some(2), left), "{point}: {report:#}");
        if left == 2 {
            await_http(&member, "/readyz", "tallyhouse_repair_").await;
        }
        let next = if point == "repair_swapped" { &["repair", "clean"][..] } else { &repair[..] };
        let (status, output, error) = bench.run(next, &[]);
        assert_eq!(status, Some(0), "{point}: {output}{error}");
        bench.await_stored((round + 1) * 3_000, &[&member]).await;
    }
    let ledger = producer.finish().unwrap();
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after repairs that were killed").await;
    assert_clean(&bench, "after repairs that were killed");
}
