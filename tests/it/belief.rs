//! Tests that Tallyhouse believes ClickHouse, or a server in its place, only with a reason, and repeats nothing
//! without a bound.

use crate::audit::double_a_counter;
use crate::operate::{check, json};
use crate::operator::await_stop;
use crate::service::{Bench, await_http, end};
use chrono::{Days, Utc};
use devstack::producer::Events;
use devstack::proxy::{Proxy, Trouble};
use devstack::{ClickHouse, ClickHouseOptions, User};
use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nOk.";
const URL: &str = "TALLYHOUSE__CLICKHOUSE__URL";

/// The commands that write.
const COMMANDS: [&[&str]; 3] =
    [&["run"], &["repair", "daily", "--month", "202611"], &["erase", "--email", "nobody@example.com"]];

fn server(url: &str) -> SocketAddr {
    url.trim_start_matches("http://").trim_end_matches('/').to_socket_addrs().unwrap().next().unwrap()
}

/// Starts an HTTP proxy that sees the first line and the headers of each request. It passes on the result of `change`, or answers
/// `200 Ok.` itself.
async fn http_proxy(url: &str, change: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (here, there, change) = (listener.local_addr().unwrap(), server(url), Arc::new(change));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let change = Arc::clone(&change);
            tokio::spawn(async move { pass_one(client, there, &*change).await });
        }
    });
    format!("http://{here}")
}

/// Starts a proxy that sends requests of the user `own` as the user `other` once `is_other` is set. The users of this ClickHouse
/// cannot change while it runs.
pub async fn other_user(url: &str, is_other: &Arc<AtomicBool>) -> String {
    let is_other = Arc::clone(is_other);
    let change = move |head: &str| match is_other.load(Ordering::Relaxed) {
        true => Some(head.replace("x-clickhouse-user: own\r\n", "x-clickhouse-user: other\r\n")),
        false => Some(head.to_owned()),
    };
    http_proxy(url, change).await
}

/// Passes one request for each connection, so that each one is seen.
async fn pass_one(mut client: TcpStream, there: SocketAddr, change: &(dyn Fn(&str) -> Option<String> + Send + Sync)) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = client.read_u8().await else { return };
        head.push(byte);
    }
    let Some(head) = change(&String::from_utf8(head).unwrap()) else {
        let _ = client.write_all(OK.as_bytes()).await;
        // The rest is read until the client has enough of it. If the connection closed before, the answer would be
        // lost with it.
        let mut rest = vec![0; 1 << 16];
        while client.read(&mut rest).await.is_ok_and(|bytes| bytes > 0) {}
        return;
    };
    let Ok(mut server) = TcpStream::connect(there).await else { return };
    let head = head.replacen("\r\n\r\n", "\r\nConnection: close\r\n\r\n", 1);
    if server.write_all(head.as_bytes()).await.is_ok() {
        let _ = copy_bidirectional(&mut client, &mut server).await;
    }
}

/// A load balancer that answers `200 Ok.` for ClickHouse is not believed (tried 19): it lost 1,000 of 2,350 events.
pub async fn an_answer_of_somebody_else_is_no_acknowledgement(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let answers = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&answers);
    let proxy = http_proxy(url, move |line| {
        let is_answered = flag.load(Ordering::Relaxed) && line.contains("INSERT");
        (!is_answered).then(|| line.to_owned())
    });
    let proxy = proxy.await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = bench.start(&[(URL, &proxy)]);
    bench.await_stored(1_000, &[&member]).await;
    answers.store(true, Ordering::Relaxed);
    producer.send_events(&Events::default(), 1_000..2_000).unwrap();
    let ledger = producer.finish().unwrap();
    await_http(&member, "/readyz", "has not the query id that was sent").await;
    answers.store(false, Ordering::Relaxed);
    bench.await_stored(2_000, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "behind somebody who answers").await;
    // A pattern that never arrived would be found in every row.
    let answers = http_proxy(url, |line| (!line.contains("erase_pattern")).then(|| line.to_owned())).await;
    let erase = ["erase", "--email", "nobody@example.com", "--yes"];
    let (status, said, error) = bench.run(&erase, &[(URL, &answers)]);
    assert!(status == Some(1) && error.contains("the pattern did not arrive"), "{status:?} {said}{error}");
    assert_eq!(bench.count("SELECT count() FROM email_events WHERE email = ''").await, 0);
}

/// A proxy that replaces query ids, or drops what it does not know, ends each command that writes with one message (field 12).
pub async fn a_proxy_that_changes_requests_ends_the_start(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let replaces = http_proxy(url, |line| Some(line.replace("query_id=tallyhouse", "query_id=proxy"))).await;
    let drops = http_proxy(url, |line| {
        let kept = |pair: &&str| !pair.starts_with("async_insert=") && !pair.starts_with("insert_deduplication_token=");
        Some(line.split('&').filter(kept).collect::<Vec<_>>().join("&"))
    });
    for (proxy, why) in [(replaces, "the query id that was sent does not come back"), (drops.await, "async_insert")] {
        for command in COMMANDS {
            let (status, said, log) = bench.run(command, &[(URL, &proxy)]);
            assert!(status == Some(1) && log.contains(why), "{command:?}: {status:?} {said}{log}");
        }
        let (status, report) = json(&bench, "check", &[(URL, &proxy)]);
        assert_eq!((status, check(&report, "settings").0.as_str()), (Some(1), "failed"), "{report:#}");
    }
}

/// A profile or a row policy that makes exactness impossible ends the start and fails the check (tried 4 and 11). Neither `repair` nor
/// `erase` works with it. Other settings are pinned (tried 3).
pub async fn a_profile_or_policy_that_falsifies_ends_the_start(_url: &str, database: &str) {
    let user = |name: &str, profile: &str| User { name: name.into(), profile: profile.into(), ..User::default() };
    let constant = "<async_insert>1</async_insert><constraints><async_insert><const/></async_insert></constraints>";
    let bounded = "<constraints><max_partitions_per_insert_block><min>1</min><max>100</max></max_partitions_per_insert_block>\
                   <max_execution_time><max>10</max></max_execution_time></constraints>";
    let pinned = "<use_query_cache>1</use_query_cache><timeout_overflow_mode>break</timeout_overflow_mode><limit>1</limit>\
                  <empty_result_for_aggregation_by_empty_set>1</empty_result_for_aggregation_by_empty_set>\
                  <use_strict_insert_block_limits>1</use_strict_insert_block_limits><max_insert_block_size>10</max_insert_block_size>\
                  <async_insert>1</async_insert><constraints><max_execution_time><max>10</max></max_execution_time></constraints>";
    let cut = "<max_rows_to_group_by>1</max_rows_to_group_by><group_by_overflow_mode>any</group_by_overflow_mode>\
               <constraints><group_by_overflow_mode><const/></group_by_overflow_mode></constraints>";
    let filters = vec![(database.to_owned(), "daily".to_owned(), "0".to_owned())];
    let policy = User { name: "policy".into(), filters, ..User::default() };
    let users =
        vec![user("constant", constant), user("bounded", bounded), user("pinned", pinned), user("cut", cut), policy];
    let clickhouse = ClickHouse::start(ClickHouseOptions { users, ..ClickHouseOptions::default() }).unwrap();
    let bench = Bench::new(clickhouse.url(), database).await;
    const USER: &str = "TALLYHOUSE__CLICKHOUSE__USER";
    let ledger = bench.produce(2_000);
    let member = bench.start(&[(USER, "pinned")]);
    bench.await_stored(ledger.produced, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "with settings pinned").await;
    let month = bench.count("SELECT toUInt64(max(toYYYYMM(day))) FROM daily").await as u32;
    let text = month.to_string();
    let (repair, erase) = (["repair", "daily", "--month", &text], ["erase", "--json", "--email"]);
    let email = bench.rows::<String>("SELECT any(email) FROM email_events").await.remove(0);
    let erase = [&erase[..], &[&email]].concat();
    double_a_counter(&bench, month).await;
    let (status, said, error) = bench.run(&repair, &[(USER, "pinned")]);
    assert!(status == Some(0) && said.contains("0 counters differ now"), "{status:?} {said}{error}");
    bench.assert_exact(&ledger, "after a repair with settings pinned").await;
    let (status, plan, error) = bench.run(&erase, &[(USER, "pinned")]);
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap_or_else(|_| panic!("{plan}{error}"));
    let rows = bench.count(&format!("SELECT count() FROM email_events WHERE email = '{email}'")).await;
    assert_eq!((status, plan["events"].as_u64()), (Some(0), Some(rows)), "{plan:#}");
    for (name, code, why) in [
        ("constant", "settings", "the settings profile default, constant of the ClickHouse user has async_insert = 1"),
        ("bounded", "settings", "max_partitions_per_insert_block"),
        ("cut", "settings", "group_by_overflow_mode = any"),
        ("policy", "row_policies", "hides rows of daily from this user"),
    ] {
        let (status, _, log) = bench.run(&["run"], &[(USER, name)]);
        assert!(status == Some(1) && log.contains(why), "{name}: {status:?} {log}");
        let (status, report) = json(&bench, "check", &[(USER, name)]);
        assert_eq!((status, check(&report, code).0.as_str()), (Some(1), "failed"), "{name}: {report:#}");
        for command in [&repair[..], &erase[..]] {
            let (status, said, error) = bench.run(command, &[(USER, name)]);
            assert!(status == Some(1) && error.contains(why), "{name}: {command:?}: {status:?} {said}{error}");
        }
    }
    bench.assert_exact(&ledger, "nothing was inserted by the others").await;
}

/// A TTL that takes rows away as soon as they are written stops the partition after one repeat (tried 5). The proxy delays answers, so
/// that ClickHouse has time to take the rows before each look.
pub async fn rows_that_are_never_shown_stop_their_partition(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.execute("ALTER TABLE daily MODIFY TTL day + INTERVAL 1 YEAR").await;
    let (status, report) = json(&bench, "check", &[]);
    assert_eq!((status, check(&report, "retention").0.as_str()), (Some(0), "warning"), "{report:#}");
    let last_day = Utc::now().date_naive() - Days::new(500);
    let mut producer = bench.producer();
    producer.send_events(&Events { last_day, ..Events::default() }, 0..300).unwrap();
    let ledger = producer.finish().unwrap();
    let proxy = Proxy::new(1).unwrap();
    proxy.lead_to(server(url));
    proxy.begin(Trouble::Delay(Duration::from_millis(100)), 100);
    let member = bench.start(&[(URL, &format!("http://{}", proxy.address()))]);
    await_stop(&member, "not_shown", "acknowledged 2 times").await;
    end(&member);

    bench.execute("ALTER TABLE daily REMOVE TTL").await;
    for window in [0, 10_000] {
        bench
            .execute(&format!("ALTER TABLE daily MODIFY SETTING non_replicated_deduplication_window = {window}"))
            .await;
    }
    bench.consume(300).await;
    bench.assert_exact(&ledger, "after the TTL was removed").await;
}

/// A materialized view of the users' own gets each row once. A failing one is named as the users' own, and holds the
/// rows that it refuses (tried 9).
pub async fn a_view_of_ones_own_gets_each_row_once(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.execute("CREATE TABLE people (email String) ENGINE = MergeTree ORDER BY email").await;
    bench.execute("CREATE MATERIALIZED VIEW own TO people AS SELECT email FROM email_events").await;
    let (_, report) = json(&bench, "check", &[]);
    assert!(report.to_string().contains(&format!("{database}.own on email_events")), "{report:#}");
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = bench.start(&[]);
    bench.await_stored(1_000, &[&member]).await;
    bench.execute("DROP TABLE people SYNC").await;
    producer.send_events(&Events::default(), 1_000..2_000).unwrap();
    let ledger = producer.finish().unwrap();
    await_http(&member, "/readyz", "a materialized view of your own").await;
    assert!(!member.stderr().contains("Run: tallyhouse migrate"), "{}", member.stderr());
    bench.execute("CREATE TABLE people (email String) ENGINE = MergeTree ORDER BY email").await;
    bench.await_stored(2_000, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "beside a view").await;
    let rows = bench.count("SELECT count() FROM email_events").await;
    let before = bench.count("SELECT count() FROM email_events WHERE source_offset < 334").await;
    let seen = bench.count("SELECT count() FROM people").await;
    assert!(seen <= rows && seen >= rows - before, "{seen} of {rows}, {before} of them before the table was dropped");
}

/// A view of the users' own that fails in the middle of an insert is named as the users' own, and Tallyhouse's tables
/// stay exact. The view may miss rows of the inserts that it failed in, and no other rows.
pub async fn a_view_that_fails_within_an_insert_is_named(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.execute("CREATE TABLE broken (why String) ENGINE = Memory").await;
    bench
        .execute("CREATE TABLE people (source String, source_offset UInt64) ENGINE = MergeTree ORDER BY source_offset")
        .await;
    bench
        .execute(
            "CREATE MATERIALIZED VIEW own TO people AS SELECT source, source_offset FROM email_events \
             WHERE throwIf((SELECT count() FROM broken) > 0, 'broken on purpose') = 0",
        )
        .await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = bench.start(&[]);
    bench.await_stored(1_000, &[&member]).await;
    let before = bench.count("SELECT count() FROM email_events").await;
    assert_eq!(bench.count("SELECT count() FROM people").await, before);
    bench.execute("INSERT INTO broken VALUES ('yes')").await;
    producer.send_events(&Events::default(), 1_000..2_000).unwrap();
    let ledger = producer.finish().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !member.stderr().contains("a materialized view of your own") {
        assert!(Instant::now() < deadline, "{}", member.stderr());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.execute("TRUNCATE TABLE broken").await;
    bench.await_stored(2_000, &[&member]).await;
    end(&member);
    bench.assert_exact(&ledger, "beside a view that fails").await;
    let of_view = "SELECT uniqExact(source, source_offset) FROM people";
    let shared = "SELECT uniqExact(source, source_offset) FROM email_events WHERE (source, source_offset) IN (SELECT source, source_offset FROM people)";
    assert_eq!(bench.count(of_view).await, bench.count(shared).await, "rows that we do not have");
    assert!(bench.count(of_view).await >= before, "rows of inserts that did not fail");
}

/// A row policy that comes while a member runs: an insert of unknown outcome is repeated under a second token and no more, and its partition stops. The
/// remedy of the page makes the tables exact.
pub async fn a_row_policy_that_comes_later_stops_the_partition(_url: &str, database: &str) {
    let filters = vec![(database.to_owned(), "email_events".to_owned(), "0".to_owned())];
    let own = User { name: "own".into(), ..User::default() };
    let other = User { name: "other".into(), filters, ..User::default() };
    let clickhouse =
        ClickHouse::start(ClickHouseOptions { users: vec![own, other], ..ClickHouseOptions::default() }).unwrap();
    let bench = Bench::new(clickhouse.url(), database).await;
    let (is_other, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (answered, tokens) = (Arc::clone(&answers), Arc::new(Mutex::new(Vec::new())));
    let (policy, passed) = (other_user(clickhouse.url(), &is_other).await, Arc::clone(&tokens));
    let proxy = http_proxy(&policy, move |head| {
        let token = head.split(['&', ' ']).find(|pair| pair.starts_with("insert_deduplication_token="));
        match head.contains("INSERT") {
            true if answered.load(Ordering::Relaxed) => return None,
            true => passed.lock().unwrap().extend(token.map(str::to_owned)),
            false => {}
        }
        Some(head.to_owned())
    });
    let proxy = proxy.await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = bench.start(&[("TALLYHOUSE__CLICKHOUSE__USER", "own"), (URL, &proxy)]);
    bench.await_stored(1_000, &[&member]).await;
    // A first batch is looked for after its last insert too.
    bench.await_committed(0..3, 1_000, &member).await;
    is_other.store(true, Ordering::Relaxed);
    answers.store(true, Ordering::Relaxed);
    producer.send_events(&Events::default(), 1_000..2_000).unwrap();
    let ledger = producer.finish().unwrap();
    await_http(&member, "/readyz", "has not the query id that was sent").await;
    answers.store(false, Ordering::Relaxed);
    await_stop(&member, "not_shown", "acknowledged 2 times").await;
    end(&member);
    let most = "SELECT max(times) FROM (SELECT count() AS times FROM email_events GROUP BY source, source_offset)";
    assert_eq!(bench.count(most).await, 2, "one repeat and no more");
    let mut tokens = std::mem::take(&mut *tokens.lock().unwrap());
    tokens.sort_unstable();
    let repeated = tokens.chunk_by(|a, b| a == b).find(|same| same.len() > 1);
    assert!(repeated.is_none() && !tokens.is_empty(), "{repeated:?} was used more than once");

    let twice = "SELECT DISTINCT toYYYYMMDD(event_time) FROM email_events GROUP BY event_time, source, source_offset HAVING count() > 1";
    for day in bench.rows::<u32>(twice).await {
        let columns = "campaign_id, event_time, source, source_offset";
        bench.execute(&format!("OPTIMIZE TABLE email_events PARTITION {day} FINAL DEDUPLICATE BY {columns}")).await;
    }
    bench.consume(2_000).await;
    bench.assert_exact(&ledger, "after the row policy was dropped").await;
}

/// Two servers behind one address end the start of each command that writes. They end a running member before a commit rests on
/// the second one (field 23). The first one then has everything.
pub async fn two_servers_behind_one_address_end_the_member(_url: &str, database: &str) {
    const MESSAGE: &str = "different ClickHouse servers answer";
    let (first, second) = (named_server("alpha"), named_server("beta"));
    let bench = Bench::new(first.url(), database).await;
    crate::schema::migrated(second.url(), database).await;
    let both = [server(first.url()), server(second.url())];
    let proxy = Proxy::new(1).unwrap();
    let address = format!("http://{}", proxy.address());
    proxy.lead_to_each(&both);
    for command in COMMANDS {
        let (status, said, error) = bench.run(command, &[(URL, &address)]);
        assert!(status == Some(1) && error.contains(MESSAGE), "{command:?}: {status:?} {said}{error}");
    }
    let (status, report) = json(&bench, "check", &[(URL, &address)]);
    assert_eq!((status, check(&report, "one_server").0.as_str()), (Some(1), "failed"), "{report:#}");

    proxy.lead_to(both[0]);
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = bench.start(&[(URL, &address)]);
    bench.await_stored(1_000, &[&member]).await;
    proxy.lead_to(both[1]);
    producer.send_events(&Events::default(), 1_000..3_000).unwrap();
    let status = member.wait(Duration::from_secs(60)).unwrap();
    let log = member.stderr();
    assert!(status.code() == Some(1) && log.contains(MESSAGE) && log.contains("beta"), "{status} {log}");
    let ledger = producer.finish().unwrap();
    bench.consume(3_000).await;
    bench.assert_exact(&ledger, "on the first server").await;
}

/// A server that starts again under another name has the same tables, so its member goes on.
pub async fn a_server_that_is_renamed_is_the_same(_url: &str, database: &str) {
    let clickhouse = named_server("before");
    let bench = Bench::new(clickhouse.url(), database).await;
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = bench.start(&[]);
    bench.await_stored(1_000, &[&member]).await;
    let config = clickhouse.directory().unwrap().join("devstack-config.xml");
    let renamed = fs::read_to_string(&config).unwrap().replace("before", "after");
    fs::write(&config, renamed).unwrap();
    let process = clickhouse.server().unwrap();
    process.restart().unwrap();
    process.wait_healthy(Duration::from_secs(60)).unwrap();
    producer.send_events(&Events::default(), 1_000..2_000).unwrap();
    let ledger = producer.finish().unwrap();
    bench.await_stored(2_000, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    assert!(member.stderr().contains("has started under the name"), "{}", member.stderr());
    end(&member);
    bench.assert_exact(&ledger, "under two names").await;
}

fn named_server(name: &str) -> ClickHouse {
    let config = format!("<display_name>{name}</display_name>");
    ClickHouse::start(ClickHouseOptions { config, ..ClickHouseOptions::default() }).unwrap()
}
