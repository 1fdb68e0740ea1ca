//! Tests the lifecycle topics beside the event topic, on real servers.

use crate::operate::{check, json};
use crate::service::{Bench, await_http, end, http, kafka};
use devstack::producer::{Events, Producer, create_topic, uuid};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
/// The producer sends a broken message after each number of good ones.
const BROKEN_EACH: u64 = 10;

/// Sends one message for each campaign, and broken ones in between. Returns the number of broken ones.
fn announce(topic: &str, campaigns: std::ops::Range<u64>) -> u64 {
    let mut producer = Producer::new(kafka(), topic, 2).unwrap();
    let mut broken = 0;
    for campaign in campaigns {
        let (campaign_id, workspace_id) = (uuid(campaign), uuid(7));
        let metadata = format!(r#"{{"size": {}, "name": "Autumn"}}"#, campaign + 1);
        let message = format!(
            r#"{{"campaign_id": "{campaign_id}", "workspace_id": "{workspace_id}", "event_time": "2026-11-24T06:30:00.123456", "metadata": {metadata}}}"#
        );
        producer.send(Some(message.as_bytes())).unwrap();
        if campaign % BROKEN_EACH == 0 {
            producer.send(Some(br#"{"campaign_id": "no"}"#)).unwrap();
            broken += 1;
        }
    }
    producer.finish().unwrap();
    broken
}

/// Events are counted while the lifecycle topics do not exist. Once they do, each message is a row once, over kills after each
/// insert and with the committed offsets lost.
pub async fn campaigns_are_counted_beside_their_events(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let [audience, template] = ["audience", "template"].map(|stage| format!("{}.{stage}", bench.topic));
    let other_group = format!("{}-other", bench.topic);
    let topics = [
        ("TALLYHOUSE__KAFKA__TOPICS__AUDIENCE_READY", audience.as_str()),
        ("TALLYHOUSE__KAFKA__TOPICS__TEMPLATE_READY", &template),
    ];
    let with = |more: &[(&'static str, &'static str)]| [&topics[..], more].concat();
    let rows = async |stage: &str| {
        bench.count(&format!("SELECT count() FROM campaign_lifecycle WHERE stage = '{stage}'")).await
    };
    let rejects = async |topic: &str| {
        bench.count(&format!("SELECT count() FROM rejected_events WHERE startsWith(source, '{topic}/')")).await
    };
    let await_rows = async |stage: &str, wanted: u64, log: &dyn Fn() -> String| {
        let deadline = Instant::now() + DEADLINE;
        while rows(stage).await < wanted {
            assert!(Instant::now() < deadline, "{} of {wanted} rows of {stage}\n{}", rows(stage).await, log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };

    let mut events = bench.producer();
    events.send_events(&Events::default(), 0..3_000).unwrap();
    let member = bench.start(&topics);
    bench.await_stored(3_000, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    let (_, checked) = json(&bench, "check", &topics);
    assert_eq!(check(&checked, "lifecycle_topics").0, "ok", "{checked:#}");
    let waits = |log: &str| log.matches("the lifecycle topic is waited for: it does not exist").count();
    assert_eq!(waits(&member.stderr()), 2, "{}", member.stderr());

    create_topic(kafka(), &audience, 2).unwrap();
    let mut broken = announce(&audience, 0..100);
    await_rows("audience_ready", 100, &|| member.stderr()).await;
    let lag = format!("tallyhouse_committed_lag_records{{partition=\"1\",topic=\"{audience}\"}} 0");
    await_http(&member, "/metrics", &lag).await;
    assert!(!http(&member, "/metrics").await.contains(&template));
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);

    create_topic(kafka(), &template, 2).unwrap();
    let mut templates = 0;
    for (number, point) in (1..).zip(["rejected_inserted:1", "lifecycle_inserted:1"]) {
        broken += announce(&audience, number * 100..(number + 1) * 100);
        templates += announce(&template, (number - 1) * 100..number * 100);
        bench.die(&with(&[("TALLYHOUSE_FAILPOINT", point)]));
        for stage in ["audience_ready", "template_ready"] {
            devstack::kafka::remove_members(kafka(), &format!("{}-{stage}", bench.topic)).unwrap();
        }
    }
    events.send_events(&Events::default(), 3_000..6_000).unwrap();
    let ledger = events.finish().unwrap();
    let member = bench.start(&topics);
    await_rows("audience_ready", 300, &|| member.stderr()).await;
    await_rows("template_ready", 200, &|| member.stderr()).await;
    bench.await_stored(ledger.produced + broken + templates, &[&member]).await;
    end(&member);

    // The next group has no committed offset, and goes on from the marks.
    broken += announce(&audience, 300..350);
    let mut settings = topics.to_vec();
    settings.push(("TALLYHOUSE__KAFKA__GROUP_ID", &other_group));
    let member = bench.start(&settings);
    await_rows("audience_ready", 350, &|| member.stderr()).await;
    bench.await_stored(ledger.produced + broken + templates, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);

    bench.assert_consistent("beside the lifecycle topics").await;
    assert_eq!(bench.count("SELECT count() FROM email_events").await, ledger.produced - ledger.broken);
    assert_eq!((rejects(&audience).await, rejects(&template).await), (broken, templates));
    let found: Vec<(String, u64, u64, u64, u64)> = bench
        .rows(
            "SELECT toString(stage) AS name, count(), uniqExact(source, source_offset), uniqExact(campaign_id), sum(audience_size) \
             FROM campaign_lifecycle GROUP BY name ORDER BY name",
        )
        .await;
    let size = (1..=350).sum();
    assert_eq!(
        found,
        [("audience_ready".to_owned(), 350, 350, 350, size), ("template_ready".to_owned(), 200, 200, 200, 0)]
    );
    let ends =
        "SELECT count() FROM campaign_lifecycle WHERE end_offset <= source_offset OR metadata NOT LIKE '{\"size\": %'";
    assert_eq!(bench.count(ends).await, 0);

    // The commands see the topics, and the audit a row that is gone.
    let (_, status) = json(&bench, "status", &settings);
    let lags: Vec<_> = status["lifecycle_topics"].as_array().unwrap().iter().map(|one| &one["lag_records"]).collect();
    assert_eq!(lags, [0, 0], "{status:#}");
    assert_eq!(json(&bench, "audit", &settings).0, Some(0));
    bench.execute("DELETE FROM campaign_lifecycle WHERE stage = 'template_ready' AND source_offset = 3").await;
    let (found, audit) = json(&bench, "audit", &settings);
    let missing: Vec<&str> = audit["checks"][1]["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["code"] == "missing")
        .map(|finding| finding["source"].as_str().unwrap())
        .collect();
    assert!(
        found == Some(2) && !missing.is_empty() && missing.iter().all(|source| source.starts_with(&template)),
        "{audit:#}"
    );
}
