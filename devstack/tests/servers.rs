//! Runs the real servers. It needs Java, and on the first run Maven, npm and the network.

use devstack::proxy::Trouble;
use devstack::{
    ClickHouse, ClickHouseOptions, Error, Kafka, KafkaOptions, Output, Replicas, Server, Stack, User, process, replicas,
};
use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    fmt::Debug,
    process::Command,
    thread,
    time::{Duration, Instant},
};

const WITHIN: Duration = Duration::from_secs(60);

fn main() {
    devstack::init();
    let tests: &[(&str, Test)] = &[
        ("both_servers_answer", both_servers_answer),
        ("clickhouse_keeps_an_acknowledged_row_over_kill_9", clickhouse_keeps_an_acknowledged_row_over_kill_9),
        ("a_stopped_clickhouse_answers_only_once_continued", a_stopped_clickhouse_answers_only_once_continued),
        ("clickhouse_users_have_passwords_and_grants", clickhouse_users_have_passwords_and_grants),
        ("two_shards_answer_through_a_distributed_table", two_shards_answer_through_a_distributed_table),
        ("kafka_is_healthy_again_after_kill_9", kafka_is_healthy_again_after_kill_9),
        ("a_kafka_that_cannot_start_says_why", a_kafka_that_cannot_start_says_why),
        ("external_servers_are_not_ours_to_kill", external_servers_are_not_ours_to_kill),
        ("up_ends_its_servers_on_sigterm", up_ends_its_servers_on_sigterm),
        ("up_killed_with_9_takes_its_servers_along", up_killed_with_9_takes_its_servers_along),
    ];
    let trial = |&(name, test): &(&'static str, Test)| Trial::test(name, move || test().map_err(Failed::from));
    // Where the pinned library can be made a replica, this test is never skipped.
    let has_replicas = replicas::unavailable().is_none() || Replicas::external().is_some();
    let two_replicas: (_, Test) = ("two_replicas_have_the_same_rows", two_replicas_have_the_same_rows);
    let mut trials: Vec<Trial> = tests.iter().map(trial).collect();
    trials.push(trial(&two_replicas).with_ignored_flag(!has_replicas));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

type Tested = Result<(), Box<dyn std::error::Error>>;
type Test = fn() -> Tested;

/// Waits until `probe` returns a value.
fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < WITHIN, "not within {WITHIN:?}: {what}");
        thread::yield_now();
    }
}

fn assert_not_ours<T: Debug>(result: devstack::Result<T>) {
    assert!(matches!(result, Err(Error::NotOurs { .. })), "{result:?}");
}

fn both_servers_answer() -> Tested {
    let stack = Stack::shared();
    assert_eq!(stack.clickhouse()?.query("SELECT currentUser()")?, "default");
    assert!(stack.kafka()?.bootstrap().starts_with("127.0.0.1:"));
    stack.kafka()?.node(0)?.wait_healthy(WITHIN)?;
    assert!(matches!(stack.kafka()?.node(1), Err(Error::NoSuchNode { index: 1, nodes: 1 })));
    let database = stack.fresh_database_name("both");
    stack.clickhouse()?.query(&format!("CREATE DATABASE {database}"))?;
    let refused = stack.clickhouse()?.query("SELECT 1 FROM no_such_table").expect_err("must fail").to_string();
    assert!(refused.contains("UNKNOWN_TABLE"), "{refused}");
    Ok(())
}

fn clickhouse_keeps_an_acknowledged_row_over_kill_9() -> Tested {
    let clickhouse = ClickHouse::start(ClickHouseOptions::default())?;
    let (server, url) = (clickhouse.server()?, clickhouse.url().to_owned());
    clickhouse.query("CREATE DATABASE kept")?;
    clickhouse.query("CREATE TABLE kept.rows (n UInt64) ENGINE = MergeTree ORDER BY n")?;
    clickhouse.query("INSERT INTO kept.rows VALUES (42)")?;
    let first = server.pid();
    server.kill9()?;
    assert!(!server.is_alive());
    assert!(clickhouse.query("SELECT 1").is_err());
    server.restart()?;
    server.wait_healthy(WITHIN)?;
    assert_ne!(server.pid(), first);
    assert_eq!(clickhouse.url(), url);
    assert_eq!(clickhouse.query("SELECT n FROM kept.rows")?, "42");
    assert!(server.rss_bytes()? > 10_000_000);
    assert!(server.cpu_time()? > Duration::ZERO);
    Ok(())
}

fn a_stopped_clickhouse_answers_only_once_continued() -> Tested {
    let clickhouse = ClickHouse::start(ClickHouseOptions::default())?;
    let server = clickhouse.server()?;
    server.stop()?;
    assert!(server.is_alive());
    let error = server.wait_healthy(Duration::from_millis(100)).expect_err("must fail");
    assert!(matches!(error, Error::NotHealthy { .. }), "{error}");
    server.cont()?;
    server.wait_healthy(WITHIN)?;
    Ok(())
}

fn clickhouse_users_have_passwords_and_grants() -> Tested {
    let grants = vec!["GRANT CREATE DATABASE ON *.*".to_owned()];
    let writer = User { name: "writer".into(), password: "s<cr&t".into(), grants, ..User::default() };
    let clickhouse = ClickHouse::start(ClickHouseOptions { users: vec![writer], ..ClickHouseOptions::default() })?;
    let as_user =
        |password: &str| ClickHouse::external(format!("{}/?user=writer&password={password}", clickhouse.url()));
    assert_eq!(as_user("s%3Ccr%26t").query("SELECT currentUser()")?, "writer");
    as_user("s%3Ccr%26t").query("CREATE DATABASE granted")?;
    let refused = as_user("s%3Ccr%26t").query("DROP DATABASE granted").expect_err("must fail").to_string();
    assert!(refused.contains("ACCESS_DENIED"), "{refused}");
    let refused = as_user("wrong").query("SELECT 1").expect_err("must fail").to_string();
    assert!(refused.contains("AUTHENTICATION_FAILED"), "{refused}");
    Ok(())
}

fn two_shards_answer_through_a_distributed_table() -> Tested {
    let shards = ClickHouse::start_cluster(2, &ClickHouseOptions::default())?;
    for (shard, row) in shards.iter().zip([10, 32]) {
        shard.query("CREATE DATABASE sharded")?;
        shard.query("CREATE TABLE sharded.local (n UInt64) ENGINE = MergeTree ORDER BY n")?;
        shard.query(
            "CREATE TABLE sharded.all AS sharded.local ENGINE = Distributed('tallyhouse', 'sharded', 'local')",
        )?;
        shard.query(&format!("INSERT INTO sharded.local VALUES ({row})"))?;
    }
    assert_eq!(shards[0].query("SELECT sum(n) FROM sharded.all")?, "42");
    assert_eq!(shards[1].query("SELECT getMacro('shard')")?, "2");
    Ok(())
}

fn two_replicas_have_the_same_rows() -> Tested {
    let stack = Stack::shared();
    let cluster = stack.replicas()?;
    let (a, b) = (cluster.replica(0, 0), cluster.replica(0, 1));
    let table = stack.fresh_database_name("replicated");
    let statement = format!(
        "CREATE TABLE {table} ON CLUSTER tallyhouse (n UInt64) \
         ENGINE = ReplicatedMergeTree('/clickhouse/tables/{{shard}}/{table}', '{{replica}}') ORDER BY n"
    );
    a.clickhouse().query(&statement)?;
    let insert = |n: u64| a.clickhouse().query(&format!("INSERT INTO {table} VALUES ({n})"));
    let waiting = ClickHouse::external(format!("{}/?receive_timeout=2", b.clickhouse().url()));
    let sync = || waiting.query(&format!("SYSTEM SYNC REPLICA {table} LIGHTWEIGHT"));
    let shown = || b.clickhouse().number(&format!("SELECT count() FROM {table}"));
    insert(1)?;
    eventually("the row shows on the other replica", || sync().ok());
    assert_eq!(shown()?, 1);
    if Replicas::external().is_some() {
        a.clickhouse().query(&format!("DROP TABLE {table} ON CLUSTER tallyhouse SYNC"))?;
        return Ok(());
    }

    let cut = a.fetches()?.begin(Trouble::Cut, 100);
    insert(2)?;
    let refused = sync().expect_err("nothing can be fetched").to_string();
    assert!(refused.contains("TIMEOUT_EXCEEDED"), "{refused}");
    assert_eq!(shown()?, 1);
    assert!(a.fetches()?.hits() > 0);
    a.fetches()?.end(cut);
    eventually("what was cut off is fetched", || sync().ok());
    assert_eq!(shown()?, 2);

    a.clickhouse().server()?.kill9()?;
    a.clickhouse().server()?.restart()?;
    a.clickhouse().server()?.wait_healthy(WITHIN)?;
    // ZooKeeper first has to end the session of the killed process.
    eventually("the replica that was killed takes rows", || insert(3).ok());
    eventually("its row shows on the other", || sync().ok());
    assert_eq!(shown()?, 3);

    let cut = a.keeper()?.begin(Trouble::Cut, 100);
    let refused =
        a.clickhouse().query(&format!("INSERT INTO {table} SETTINGS insert_keeper_max_retries = 1 VALUES (4)"));
    assert!(refused.is_err(), "a replica without ZooKeeper took a row");
    a.keeper()?.end(cut);
    cluster.zookeeper()?.kill9()?;
    cluster.zookeeper()?.restart()?;
    cluster.zookeeper()?.wait_healthy(WITHIN)?;
    eventually("rows are taken again", || insert(5).ok());
    eventually("the last row shows", || sync().ok());
    assert_eq!(shown()?, a.clickhouse().number(&format!("SELECT count() FROM {table}"))?);
    a.clickhouse().query(&format!("DROP TABLE {table} ON CLUSTER tallyhouse SYNC"))?;
    Ok(())
}

fn kafka_is_healthy_again_after_kill_9() -> Tested {
    let kafka = Kafka::start(KafkaOptions { nodes: 3, ..KafkaOptions::default() })?;
    assert_eq!(kafka.bootstrap().split(',').count(), 3);
    let node = kafka.node(1)?;
    node.kill9()?;
    assert!(kafka.node(0)?.is_alive());
    node.restart()?;
    node.wait_healthy(WITHIN)?;
    Ok(())
}

fn a_kafka_that_cannot_start_says_why() -> Tested {
    let properties = [("log.segment.bytes".to_owned(), "one".to_owned())].into();
    let error =
        Kafka::start(KafkaOptions { properties, ..KafkaOptions::default() }).expect_err("must fail").to_string();
    assert!(error.contains("log.segment.bytes"), "{error}");
    Ok(())
}

fn external_servers_are_not_ours_to_kill() -> Tested {
    let kafka = Kafka::external("broker:9092");
    assert_eq!(kafka.bootstrap(), "broker:9092");
    assert_not_ours(kafka.node(0));
    let clickhouse = ClickHouse::external("http://db:8123");
    assert_eq!(clickhouse.url(), "http://db:8123");
    assert_not_ours(clickhouse.server());
    assert_not_ours(clickhouse.tcp_addr());
    Ok(())
}

/// Starts `devstack up`. Returns it and the process ids it printed, once everything runs.
fn up() -> Result<(Server, Vec<u32>), Box<dyn std::error::Error>> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devstack"));
    command.arg("up");
    let up = process::spawn("devstack up", command, Output::Captured)?;
    let printed = eventually("devstack up prints its addresses", || {
        assert!(up.is_alive(), "{}", up.stderr());
        Some(up.stdout()).filter(|text| text.contains("Ctrl-C"))
    });
    let words: Vec<&str> = printed.split_whitespace().collect();
    let pids = words.windows(2).filter(|pair| pair[0] == "pid").map(|pair| pair[1].parse());
    let pids = pids.collect::<Result<Vec<u32>, _>>()?;
    assert_eq!(pids.len(), 2, "{printed}");
    Ok((up, pids))
}

fn up_ends_its_servers_on_sigterm() -> Tested {
    let (up, pids) = up()?;
    assert!(up.terminate(WITHIN)?.success());
    for pid in pids {
        assert!(process::wait_gone(pid, Duration::ZERO)?, "process {pid} is still there");
    }
    let folders = up
        .stdout()
        .lines()
        .filter(|line| line.starts_with("  /"))
        .map(|line| line.trim().to_owned())
        .collect::<Vec<_>>();
    assert_eq!(folders.len(), 2);
    assert!(folders.iter().all(|folder| !std::path::Path::new(folder).exists()), "{folders:?}");
    Ok(())
}

fn up_killed_with_9_takes_its_servers_along() -> Tested {
    let (up, pids) = up()?;
    up.kill9()?;
    for pid in pids {
        assert!(process::wait_gone(pid, WITHIN)?, "process {pid} outlived its parent");
    }
    Ok(())
}
