//! Tests the changes of an operator, a broker or a clean-up to the log and to the committed offset, on real servers.

use crate::service::{Bench, await_http, end};
use devstack::producer::Events;
use std::time::Duration;

/// A group without a committed offset goes on from the marks, not from the beginning.
pub async fn a_lost_committed_offset_is_found_in_the_marks(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..10_000).unwrap();
    bench.consume(10_000).await;
    producer.send_events(&Events::default(), 10_000..15_000).unwrap();
    let ledger = producer.finish().unwrap();
    let member = bench.start(&[("TALLYHOUSE__KAFKA__GROUP_ID", &format!("{}-other", bench.topic))]);
    bench.await_stored(15_000, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "with another group").await;
}

/// The committed offset is lost while batches are half applied. The next member completes their stored part, and
/// doubles nothing.
pub async fn a_lost_intent_is_completed_from_the_marks(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(10_000);
    for (number, point) in
        ["raw_inserted:2", "rejected_inserted:2", "daily_inserted:2", "end_committed:2"].into_iter().enumerate()
    {
        let group = format!("{}-{number}", bench.topic);
        let member = bench.start(&[("TALLYHOUSE_FAILPOINT", point), ("TALLYHOUSE__KAFKA__GROUP_ID", &group)]);
        member.wait(Duration::from_secs(60)).unwrap();
    }
    let member = bench.start(&[("TALLYHOUSE__KAFKA__GROUP_ID", &format!("{}-last", bench.topic))]);
    bench.await_stored(ledger.produced, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "with the intents lost").await;
}

/// A member that is ended while it completes another's batch leaves the rest to the next one.
pub async fn a_member_ended_in_a_replay_leaves_it_to_the_next(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let ledger = bench.produce(1_500);
    let member = bench.start(&[("TALLYHOUSE_FAILPOINT", "raw_inserted:3")]);
    member.wait(Duration::from_secs(60)).unwrap();
    for _ in 0..3 {
        let member = bench.start(&[]);
        await_http(&member, "/livez", "alive").await;
        end(&member);
    }
    let member = bench.start(&[]);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after members that ended early").await;
}

/// A topic that is deleted and made again is another source: everything of both is counted once.
pub async fn a_recreated_topic_is_another_source(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let first = bench.produce(6_000);
    bench.consume(first.produced).await;
    bench.recreate_topic(3).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 6_000..18_000).unwrap();
    let second = producer.finish().unwrap();
    let member = bench.start(&[]);
    let both = first.plus(&second);
    bench.await_stored(both.produced, &[&member]).await;
    end(&member);
    bench.assert_exact(&both, "over both topics").await;
    assert_eq!(bench.count("SELECT uniqExact(source) FROM email_events").await, 6);
}

/// A topic is deleted and made again under a running member. The offsets are deleted with it, so the comparison
/// before the next commit fails, and the partitions start over with the new topic.
pub async fn a_topic_recreated_under_a_running_member(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let settings = [("TALLYHOUSE__KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "1000")];
    let first = bench.produce(6_000);
    let member = bench.start(&settings);
    bench.await_stored(first.produced, &[&member]).await;
    bench.recreate_topic(3).await;
    let second = bench.produce(18_000);
    let both = first.plus(&second);
    bench.await_stored(both.produced, &[&member]).await;
    end(&member);
    bench.assert_exact(&both, "over both topics").await;
    assert_eq!(bench.count("SELECT uniqExact(source) FROM email_events").await, 6);
}
