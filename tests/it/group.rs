//! Tests membership of the group: static membership, the consumer protocol (KIP-848), members that stop and wake up,
//! more partitions.

use crate::operator::{admin, options};
use crate::service::{Bench, await_http, end, http, kafka};
use devstack::Server;
use devstack::producer::{Events, Producer};
use devstack::proxy::{Proxy, Trouble};
use rdkafka::admin::NewPartitions;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
const CONSUMER: (&str, &str) = ("TALLYHOUSE__KAFKA__GROUP_PROTOCOL", "consumer");

/// Waits until the kernel reports the member as stopped.
pub async fn await_frozen(member: &Server) {
    let deadline = Instant::now() + DEADLINE;
    while !member.is_stopped().unwrap_or(false) {
        assert!(Instant::now() < deadline, "not stopped: {}", member.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A member is stopped right before or right after the lease check, past its session, and wakes up after another took
/// over. Its insert is either not begun or dropped by its token, and its commits are refused.
async fn a_zombie_doubles_nothing(bench: &Bench, point: &str, settings: &[(&str, &str)]) {
    let mut producer = bench.producer();
    let events = Events::default();
    producer.send_events(&events, 0..12_000).unwrap();
    let zombie = bench.start(&[settings, &[("TALLYHOUSE_FAILPOINT", point)]].concat());
    await_frozen(&zombie).await;
    let heir = bench.start(settings);
    bench.await_stored(12_000, &[&zombie, &heir]).await;
    zombie.cont().unwrap();
    producer.send_events(&events, 12_000..24_000).unwrap();
    let ledger = producer.finish().unwrap();
    await_http(&zombie, "/readyz", "ready").await;
    bench.await_stored(ledger.produced, &[&zombie, &heir]).await;
    await_http(&zombie, "/readyz", "\"ready\":true").await;
    end(&zombie);
    end(&heir);
    bench.assert_exact(&ledger, point).await;
}

/// The member is stopped between the commit of the intent and the lease check.
pub async fn a_zombie_before_the_lease_check(url: &str, database: &str) {
    a_zombie_doubles_nothing(&Bench::new(url, database).await, "intent_committed:4:stop", &[]).await;
}

/// The member is stopped between the lease check and the insert.
pub async fn a_zombie_after_the_lease_check(url: &str, database: &str) {
    a_zombie_doubles_nothing(&Bench::new(url, database).await, "lease_checked:5:stop", &[]).await;
}

/// Returns the number of a member's partitions; 0 before its endpoint answers.
async fn assigned(member: &Server) -> u32 {
    if !member.stderr().contains("http://") {
        return 0;
    }
    let metrics = http(member, "/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with("tallyhouse_assigned_partitions{"));
    let count = line.and_then(|line| line.rsplit(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// Returns the rebalances that a member has seen, of all kinds. The endpoint lists them in no order.
async fn rebalances(member: &Server) -> BTreeSet<String> {
    let metrics = http(member, "/metrics").await;
    metrics.lines().filter(|line| line.starts_with("tallyhouse_rebalances_total{")).map(str::to_owned).collect()
}

/// A static member that is killed and comes back within its session gets its partitions back, and the others see no rebalance.
pub async fn a_static_member_comes_back_without_a_rebalance(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let session = ("TALLYHOUSE__KAFKA__SESSION_TIMEOUT_MS", "60000");
    let eager = ("TALLYHOUSE__KAFKA__ASSIGNMENT", "eager");
    let named = |name| [session, eager, ("TALLYHOUSE__KAFKA__GROUP_INSTANCE_ID", name)];
    let mut producer = bench.producer();
    let events = Events::default();
    producer.send_events(&events, 0..6_000).unwrap();
    let (one, two) = (bench.start(&named("one")), bench.start(&named("two")));
    // The first assignment of the second may be empty: it is over when each has its share.
    let deadline = Instant::now() + DEADLINE;
    while (assigned(&one).await, assigned(&two).await) != (1, 2)
        && (assigned(&one).await, assigned(&two).await) != (2, 1)
    {
        assert!(Instant::now() < deadline, "{}\n{}", one.stderr(), two.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    bench.await_stored(6_000, &[&one, &two]).await;
    let before = rebalances(&two).await;
    one.kill9().unwrap();
    producer.send_events(&events, 6_000..12_000).unwrap();
    let one = bench.start(&named("one"));
    await_http(&one, "/readyz", "\"ready\":true").await;
    let ledger = producer.finish().unwrap();
    bench.await_stored(ledger.produced, &[&one, &two]).await;
    assert_eq!(rebalances(&two).await, before);
    end(&one);
    end(&two);
    bench.assert_exact(&ledger, "after a static member came back").await;
}

/// Two members have one `group_instance_id`. One of them ends with status 1 and says why, and nothing is doubled.
async fn one_of_two_with_one_name_ends(bench: &Bench, settings: &[(&str, &str)], text: &str, newcomer_ends: bool) {
    let settings = [settings, &[("TALLYHOUSE__KAFKA__GROUP_INSTANCE_ID", "same")]].concat();
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..20_000).unwrap();
    let first = bench.start(&settings);
    bench.await_stored(2_000, &[&first]).await;
    let second = bench.start(&settings);
    let (ended, stays) = if newcomer_ends { (&second, &first) } else { (&first, &second) };
    let status = ended.wait(DEADLINE).unwrap();
    let log = ended.stderr();
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("tallyhouse: kafka refuses this member permanently") && log.contains(text), "{log}");
    producer.send_events(&Events::default(), 20_000..30_000).unwrap();
    let ledger = producer.finish().unwrap();
    bench.await_stored(ledger.produced, &[stays]).await;
    end(stays);
    bench.assert_exact(&ledger, "after a member was refused").await;
}

/// In the classic protocol the newcomer fences the member that was there.
pub async fn a_fenced_static_member_ends(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    one_of_two_with_one_name_ends(&bench, &[("TALLYHOUSE__KAFKA__ASSIGNMENT", "eager")], "fenced", false).await;
}

/// In the consumer protocol the broker refuses the newcomer until the name is free.
pub async fn a_second_static_member_ends_in_the_consumer_protocol(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    one_of_two_with_one_name_ends(&bench, &[CONSUMER], "instance", true).await;
}

/// The test runs the consumer protocol end to end: members join, one is killed with -9, one leaves. The lease counts
/// on the broker's session.
pub async fn the_consumer_protocol_is_exact(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let settings = [CONSUMER, ("TALLYHOUSE__KAFKA__SESSION_TIMEOUT_MS", "45000")];
    let mut producer = bench.producer();
    let events = Events::default();
    producer.send_events(&events, 0..10_000).unwrap();
    let first = bench.start(&settings);
    bench.await_stored(2_000, &[&first]).await;
    assert!(first.stderr().contains("configured_ms=45000 broker_ms=6000"), "{}", first.stderr());
    let second = bench.start(&settings);
    await_http(&second, "/readyz", "\"ready\":true").await;
    producer.send_events(&events, 10_000..20_000).unwrap();
    bench.await_stored(12_000, &[&first, &second]).await;
    first.kill9().unwrap();
    producer.send_events(&events, 20_000..30_000).unwrap();
    bench.await_stored(30_000, &[&second]).await;
    let third = bench.start(&settings);
    await_http(&third, "/readyz", "\"ready\":true").await;
    producer.send_events(&events, 30_000..40_000).unwrap();
    end(&second);
    let ledger = producer.finish().unwrap();
    bench.await_stored(ledger.produced, &[&third]).await;
    end(&third);
    bench.assert_exact(&ledger, "in the consumer protocol").await;
}

/// The test stops and wakes a member in the consumer protocol.
pub async fn a_zombie_in_the_consumer_protocol(url: &str, database: &str) {
    a_zombie_doubles_nothing(&Bench::new(url, database).await, "lease_checked:5:stop", &[CONSUMER]).await;
}

/// Partitions that are added while members run are consumed from their beginning.
pub async fn added_partitions_are_consumed_from_their_beginning(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let settings = [("TALLYHOUSE__KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "1000")];
    let mut old = bench.producer();
    old.send_events(&Events::default(), 0..6_000).unwrap();
    let before = old.finish().unwrap();
    let (one, two) = (bench.start(&settings), bench.start(&settings));
    bench.await_stored(before.produced, &[&one, &two]).await;
    let more = NewPartitions::new(&bench.topic, 8);
    admin().create_partitions([&more], &options()).await.unwrap();
    let mut producer = Producer::new(kafka(), &bench.topic, 8).unwrap();
    producer.send_events(&Events::default(), 6_000..22_000).unwrap();
    let after = producer.finish().unwrap();
    let ledger = before.plus(&after);
    bench.await_stored(ledger.produced, &[&one, &two]).await;
    end(&one);
    end(&two);
    bench.assert_exact(&ledger, "with more partitions").await;
    assert_eq!(bench.count("SELECT uniqExact(source) FROM email_events").await, 8);
}

/// Waits until a member's log contains the text.
pub async fn await_log(member: &Server, text: &str) {
    let deadline = Instant::now() + DEADLINE;
    while !member.stderr().contains(text) {
        assert!(Instant::now() < deadline, "no {text}: {}", member.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Setting of the time for which a revocation waits for the batch in flight. The partition must be added in that
/// time.
const GRACE: (&str, &str) = ("TALLYHOUSE__REBALANCE__GRACE_MS", "10000");
/// Longest time until the member ends: the session of the bench, the grace, and 10 s.
const LEFT_BEHIND_MAX: Duration = Duration::from_secs(26);

/// A partition is added while a member is in a revocation. librdkafka joins again in the middle of it, never finishes
/// the rebalance, and ignores the next one (docs/librdkafka-left-behind.md). The member ends, and the others go on.
async fn a_member_is_left_behind(bench: &Bench, clickhouse: &str, settings: &[(&str, &str)]) {
    let proxy = Proxy::new(1).unwrap();
    proxy.lead_to(clickhouse.trim_start_matches("http://").parse().unwrap());
    let slow = format!("http://{}", proxy.address());
    let own = [
        GRACE,
        ("TALLYHOUSE__CLICKHOUSE__URL", slow.as_str()),
        ("TALLYHOUSE__KAFKA__PROPERTIES__TOPIC_METADATA_REFRESH_INTERVAL_MS", "500"),
        ("TALLYHOUSE__LOG__LEVEL", "info,tallyhouse=debug"),
    ];
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..60_000).unwrap();
    let left = bench.start(&[settings, &own].concat());
    bench.await_stored(3_000, &[&left]).await;
    let trouble = proxy.begin(Trouble::Delay(Duration::from_secs(2)), 100);
    let second = bench.start(&[settings, &[GRACE]].concat());
    await_log(&left, " revoked ").await;
    let more = NewPartitions::new(&bench.topic, 4);
    admin().create_partitions([&more], &options()).await.unwrap();
    await_log(&left, "partition count changed from 3 to 4").await;
    await_log(&second, " assigned partitions=[").await;
    proxy.end(trouble);
    await_http(&left, "/readyz", "\"ready\":true").await;

    let third = bench.start(&[settings, &[GRACE]].concat());
    await_log(&third, "consuming").await;
    let (begun, status) = (Instant::now(), left.wait(DEADLINE).unwrap());
    let (took, log) = (begun.elapsed(), left.stderr());
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("tallyhouse: librdkafka has left this member behind: the group rebalances"), "{log}");
    assert!(took < LEFT_BEHIND_MAX, "after {took:?}: {log}");
    println!("the member left behind ended {took:.1?} after the last one began to join");
    await_http(&third, "/readyz", "\"ready\":true").await;

    let before = producer.finish().unwrap();
    let mut producer = Producer::new(kafka(), &bench.topic, 4).unwrap();
    producer.send_events(&Events::default(), 60_000..70_000).unwrap();
    let ledger = before.plus(&producer.finish().unwrap());
    bench.await_stored(ledger.produced, &[&second, &third]).await;
    end(&second);
    end(&third);
    bench.assert_exact(&ledger, "after a member was left behind").await;
}

/// The test runs with the rebalance timeout that Tallyhouse sets.
pub async fn a_member_left_behind_ends(url: &str, database: &str) {
    a_member_is_left_behind(&Bench::new(url, database).await, url, &[]).await;
}

/// The test runs with a timeout that a user has raised.
pub async fn a_member_left_behind_ends_though_the_group_would_wait_for_ten_minutes(url: &str, database: &str) {
    let raised = ("TALLYHOUSE__KAFKA__PROPERTIES__MAX_POLL_INTERVAL_MS", "600000");
    a_member_is_left_behind(&Bench::new(url, database).await, url, &[raised]).await;
}

/// A member with another way of sharing partitions cannot join, says why, and joins once the others have gone.
pub async fn another_strategy_in_the_group_is_named(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let member = bench.start(&[]);
    await_http(&member, "/readyz", "\"ready\":true").await;
    let eager = ("TALLYHOUSE__KAFKA__ASSIGNMENT", "eager");
    let kept_out = bench.start(&[eager]);
    let theirs = "share partitions out in the classic protocol by the strategy cooperative-sticky";
    await_http(&kept_out, "/readyz", "this member has kafka.assignment = eager (range)").await;
    await_http(&kept_out, "/readyz", "Stop all of them").await;
    let (status, checked, _) = bench.run(&["check", "--json"], &[eager]);
    assert!(status == Some(1) && checked.contains(theirs), "{checked}");
    end(&member);
    await_http(&kept_out, "/readyz", "\"ready\":true").await;
    // The message comes before this member joins. At its join Kafka may turn the group into one of the consumer
    // protocol.
    let other = bench.start(&[CONSUMER]);
    let deadline = Instant::now() + DEADLINE;
    let told =
        |log: &str| log.contains("kafka.group_protocol = consumer, and") && log.contains("by the strategy range");
    while !told(&other.stderr()) {
        assert!(Instant::now() < deadline, "{}", other.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    end(&other);
    end(&kept_out);
}
