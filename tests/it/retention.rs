//! Tests raw rows that a TTL removes, on real servers. Counters stay, nothing calls the rows lost, and nothing counts
//! without them.

use crate::service::Bench;
use chrono::{Datelike, Days, NaiveDate, Utc};
use devstack::producer::Events;
use serde_json::Value;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

fn json(bench: &Bench, command: &str) -> Value {
    let (_, output, error) = bench.run(&[command, "--json"], &[]);
    serde_json::from_str(&output).unwrap_or_else(|_| panic!("{error}"))
}

fn migrate(bench: &Bench, arguments: &[&str]) -> String {
    let (status, output, error) = bench.run(&[&["migrate"], arguments].concat(), &[]);
    assert_eq!(status, Some(0), "{error}");
    output
}

/// Returns the findings of an audit: the number of its violations, and the codes of all.
fn audit(bench: &Bench) -> (u64, Vec<String>) {
    let report = json(bench, "audit");
    let findings = report["checks"].as_array().unwrap().iter().flat_map(|check| check["findings"].as_array().unwrap());
    let codes = findings.map(|finding| finding["code"].as_str().unwrap().to_owned()).collect();
    (report["violations"].as_u64().unwrap(), codes)
}

/// Returns status and text of the check of retention.
fn check(bench: &Bench) -> (String, String) {
    let report = json(bench, "check");
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["code"] == "retention").unwrap();
    (found["status"].as_str().unwrap().to_owned(), found["seen"].as_str().unwrap().to_owned())
}

async fn await_no_row_before(bench: &Bench, day: NaiveDate) {
    let sql = format!("SELECT count() FROM email_events WHERE toDate(event_time) < '{day}'");
    let deadline = Instant::now() + DEADLINE;
    while bench.count(&sql).await > 0 {
        assert!(Instant::now() < deadline, "rows before {day} stay");
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

async fn total(bench: &Bench) -> u64 {
    bench.count("SELECT sum(total) FROM daily").await
}

/// Rows go and counters stay. The audit says "expired" and still finds errors in days that are kept, and a repair
/// refuses.
pub async fn expired_days_are_no_violations(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events { days: 20, ..Events::default() }, 0..6_000).unwrap();
    let ledger = producer.finish().unwrap();
    bench.consume(ledger.produced).await;
    let before = total(&bench).await;
    assert_eq!(audit(&bench), (0, vec!["token_headroom".to_owned(); 4]));
    assert_eq!(check(&bench).0, "ok");
    // With this number of days, the first day kept and the last one expired are of one month.
    let today = Utc::now().date_naive();
    let first_kept = |days: u64| today - Days::new(days - 1);
    let days = (5..8).find(|&days| first_kept(days).day() > 1).unwrap();
    let kept_from = first_kept(days);
    let days = days.to_string();

    let plan = migrate(&bench, &["--raw-ttl-days", &days, "--dry-run"]);
    assert!(plan.contains(&format!("MODIFY TTL toDate(event_time) + INTERVAL {days} DAY")), "{plan}");
    assert_eq!(check(&bench).1.matches("permanently").count(), 2, "a dry run changes nothing");
    let said = migrate(&bench, &["--raw-ttl-days", &days, "--rejected-ttl-days", "7"]);
    assert_eq!(said.matches("MODIFY TTL").count(), 2, "{said}");
    assert!(
        !migrate(&bench, &["--raw-ttl-days", &days, "--rejected-ttl-days", "7"]).contains("MODIFY"),
        "done already"
    );
    let (status, seen) = check(&bench);
    assert!(status == "ok" && seen.contains(&format!("rows {days} days, rejected_events 7 days")), "{seen}");
    await_no_row_before(&bench, kept_from).await;
    let kept = bench.count("SELECT count() FROM email_events").await;
    assert!(kept > 1_000 && kept < before, "{kept} of {before}");

    // They still are in the log, and daily counts them.
    for step in ["after the TTL", "after a merge of everything"] {
        assert_eq!(total(&bench).await, before, "{step}");
        let (violations, codes) = audit(&bench);
        assert_eq!(violations, 0, "{step}: {codes:?}");
        for code in ["expired_days", "expired_rows"] {
            assert!(codes.iter().any(|found| found == code), "{step}: no {code} in {codes:?}");
        }
        assert!(!codes.iter().any(|found| found == "missing" || found == "daily_differs"), "{step}: {codes:?}");
        bench.execute("OPTIMIZE TABLE email_events FINAL").await;
        assert_eq!(bench.count("SELECT count() FROM email_events").await, kept, "{step}");
    }

    // Nothing differs where it can be compared, so there is nothing to repair. Where something does differ, the month
    // is not whole.
    let month = kept_from.format("%Y%m").to_string();
    let (status, said, error) = bench.run(&["repair", "daily", "--month", &month], &[]);
    assert!(status == Some(0) && said.contains("have expired") && said.contains("0 counters differ"), "{said}{error}");
    let columns = "day, event_type, campaign_id, workspace_id, source";
    bench
        .execute(&format!(
            "INSERT INTO daily ({columns}, total, end_offset) SELECT {columns}, sum(total), max(end_offset) FROM daily \
             WHERE day = '{kept_from}' GROUP BY ALL ORDER BY ALL LIMIT 1"
        ))
        .await;
    let (violations, codes) = audit(&bench);
    assert!(violations == 1 && codes.iter().any(|found| found == "daily_differs"), "{codes:?}");
    let changed = total(&bench).await;
    let (status, said, error) = bench.run(&["repair", "daily", "--month", &month], &[]);
    assert!(
        status == Some(1) && error.contains("nothing was changed") && error.contains("have expired"),
        "{said}{error}"
    );
    assert_eq!(total(&bench).await, changed);

    migrate(&bench, &["--raw-ttl-days", "off", "--rejected-ttl-days", "off"]);
    assert_eq!(check(&bench).1.matches("permanently").count(), 3);
    assert!(!migrate(&bench, &["--raw-ttl-days", "off"]).contains("REMOVE"));
    bench.execute("ALTER TABLE email_events MODIFY TTL event_time + INTERVAL 4000 DAY").await;
    assert_eq!(check(&bench).0, "warning", "a TTL of single rows can cut a batch in two");
    let (status, _, error) = bench.run(&["migrate", "--raw-ttl-days", "90d"], &[]);
    assert!(status == Some(64) && error.contains("from 1 to 36500"), "{error}");
}

/// Events older than the TTL are counted although their rows are gone at once. Neither a first batch, which asks the
/// marks, nor a restart inserts them without end.
pub async fn events_older_than_the_ttl_are_counted(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    migrate(&bench, &["--raw-ttl-days", "5"]);
    let mut producer = bench.producer();
    producer.send_events(&Events { days: 20, ..Events::default() }, 0..6_000).unwrap();
    let ledger = producer.finish().unwrap();
    for point in ["raw_inserted:1", "daily_inserted:2", "raw_inserted:3"] {
        bench.die(&[("TALLYHOUSE_FAILPOINT", point)]);
    }
    bench.consume(ledger.produced).await;
    assert_eq!(total(&bench).await, ledger.produced - ledger.broken);
    assert_eq!(bench.count("SELECT count() FROM rejected_events").await, ledger.broken);
    await_no_row_before(&bench, Utc::now().date_naive() - Days::new(4)).await;
    let (violations, codes) = audit(&bench);
    assert_eq!(violations, 0, "{codes:?}");
}
