//! What an operator, a broker or a clean-up can do to the log and to the committed offset, on real servers.

use crate::service::{Bench, await_http, end};
use devstack::producer::{Events, Ledger, create_topic};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use std::time::Duration;

fn admin() -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", crate::service::kafka()).create().unwrap()
}

fn options() -> AdminOptions {
    AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)))
}

/// A group without a committed offset goes on from the marks, not from the beginning.
pub async fn a_lost_committed_offset_is_found_in_the_marks(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..10_000).unwrap();
    let member = bench.start(&[]);
    bench.await_stored(10_000, &[&member]).await;
    end(&member);
    producer.send_events(&Events::default(), 10_000..15_000).unwrap();
    let ledger = producer.finish().unwrap();
    let member = bench.start(&[("TALLYHOUSE__KAFKA__GROUP_ID", &format!("{}-other", bench.topic))]);
    bench.await_stored(15_000, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "with another group").await;
}

/// The committed offset is lost while batches are half applied: what is there is completed, not doubled.
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

/// Records removed before they were consumed stop the partition with its reason, and the others go on.
pub async fn a_retention_gap_stops_its_partition_only(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..3_000).unwrap();
    let member = bench.start(&[]);
    bench.await_stored(3_000, &[&member]).await;
    end(&member);
    producer.send_events(&Events::default(), 3_000..6_000).unwrap();
    producer.finish().unwrap();
    let mut gone = TopicPartitionList::new();
    gone.add_partition_offset(&bench.topic, 1, Offset::Offset(1_500)).unwrap();
    admin().delete_records(&gone, &options()).await.unwrap();
    let member = bench.start(&[]);
    bench.await_stored(5_000, &[&member]).await;
    await_http(&member, "/readyz", "offsets 1000 up to 1500 were removed").await;
    await_http(&member, "/metrics", "tallyhouse_stopped_partitions{reason=\"retention_gap\"} 1").await;
    end(&member);
    assert_eq!(bench.stored().await, 5_000);
}

/// A topic that is deleted and made again is another source: everything of both is counted once.
pub async fn a_recreated_topic_is_another_source(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let first = bench.produce(6_000);
    let member = bench.start(&[]);
    bench.await_stored(first.produced, &[&member]).await;
    end(&member);
    admin().delete_topics(&[&bench.topic], &options()).await.unwrap();
    while matches!(create_topic(crate::service::kafka(), &bench.topic, 3), Err(KafkaError::AdminOp(_))) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 6_000..18_000).unwrap();
    let second = producer.finish().unwrap();
    let member = bench.start(&[]);
    let both = Ledger {
        produced: first.produced + second.produced,
        broken: first.broken + second.broken,
        by_type: std::array::from_fn(|i| first.by_type[i] + second.by_type[i]),
    };
    bench.await_stored(both.produced, &[&member]).await;
    end(&member);
    bench.assert_exact(&both, "over both topics").await;
    assert_eq!(bench.count("SELECT uniqExact(source) FROM email_events").await, 6);
}
