//! Tests the service with a mapping: SendGrid's events as its webhook sends them, on a real Kafka and a real ClickHouse.

use crate::service::Bench;
use std::fs;

/// Every event is a row under its type and has its whole record as metadata. Unknown words and an array are rejects.
pub async fn sendgrids_events_are_counted_by_the_preset(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let text = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/payloads/sendgrid.ndjson")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let array = format!("[{}]", lines[..2].join(","));
    let mut producer = bench.producer();
    lines.iter().for_each(|line| producer.send(Some(line.as_bytes())).unwrap());
    producer.send(Some(array.as_bytes())).unwrap();
    producer.finish().unwrap();
    // The events are of a fixed day, which may lie before or after their Kafka timestamp.
    let settings = [
        ("TALLYHOUSE__MAPPING__PRESET", "sendgrid"),
        ("TALLYHOUSE__DECODE__PAST_DAYS_MAX", "36500"),
        ("TALLYHOUSE__DECODE__FUTURE_DAYS_MAX", "36500"),
    ];
    bench.consume_with(12, &settings).await;
    let counted: Vec<(String, u64)> =
        bench.rows("SELECT level, sum(total) AS total_count FROM daily GROUP BY level ORDER BY level").await;
    let wanted = [
        ("bounce", 1),
        ("click", 1),
        ("complaint", 1),
        ("deferred", 1),
        ("delivered", 1),
        ("open", 1),
        ("sent", 1),
        ("unsubscribe", 2),
    ];
    assert_eq!(counted, wanted.map(|(level, total)| (level.to_owned(), total)));
    let reasons: Vec<(String, u64)> =
        bench.rows("SELECT toString(reason) AS why, count() FROM rejected_events GROUP BY why ORDER BY why").await;
    assert_eq!(reasons, [("array".to_owned(), 1), ("unknown_event_type".to_owned(), 2)]);
    let opened: Vec<(String, u32)> = bench
        .rows(
            "SELECT email, event_time FROM email_events \
             WHERE campaign_id = '6f9619ff-8b86-d011-b42d-00cf4fc964ff' AND event_type = 'open' ORDER BY event_time DESC",
        )
        .await;
    assert_eq!(opened, [("ada@example.com".to_owned(), 1_795_501_800)]);
    let whole: Vec<String> = bench.rows("SELECT metadata FROM email_events WHERE event_type = 'click'").await;
    assert_eq!(whole, [lines[4]]);
}

/// A mapping that cannot work ends `run` before it connects, with status 64 and the key.
pub async fn a_mapping_that_cannot_work_ends_run(_url: &str, _database: &str) {
    let mut command = std::process::Command::new(crate::program());
    command.env_clear().args(["run", "--set", "mapping.words=opened=read"]).current_dir(std::env::temp_dir());
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{error}");
    assert!(error.contains("mapping.words") && error.contains("none of delivered"), "{error}");
}
