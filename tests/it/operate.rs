//! Tests `tallyhouse check` and `tallyhouse status` on real servers, with each of them away, and the pages made of
//! the command line.

use crate::operator::{ANNOUNCED, admin};
use crate::service::{Bench, address, await_http, end};
use devstack::{Output, Server, process};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const PARTITIONS: i32 = 3;
/// An address at which nothing listens.
const CLOSED: &str = "http://127.0.0.1:1";

/// Returns the exit status and the JSON of a command with `--json`. `status` looks once.
pub fn json(bench: &Bench, command: &str, settings: &[(&str, &str)]) -> (Option<i32>, Value) {
    let once: &[&str] = if command == "status" { &["--interval-s", "0"] } else { &[] };
    json_of(bench, &[&[command], once].concat(), settings)
}

/// Returns the same as [`json`], with arguments.
pub fn json_of(bench: &Bench, arguments: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, Value) {
    let mut command = bench.command(&[arguments, &["--json"]].concat());
    let output = command.envs(settings.iter().copied()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let json = serde_json::from_str(&text);
    (output.status.code(), json.unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))))
}

fn table(bench: &Bench, command: &str, settings: &[(&str, &str)]) -> String {
    let once: &[&str] = if command == "status" { &["--interval-s", "0"] } else { &[] };
    let output = bench.command(&[&[command], once].concat()).envs(settings.iter().copied()).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Returns status and fix of one check.
pub fn check(report: &Value, code: &str) -> (String, String) {
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["code"] == code).unwrap_or_else(|| panic!("{code}: {report}"));
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    (text("status"), text("fix"))
}

pub fn states(report: &Value, codes: &[&str]) -> Vec<String> {
    codes.iter().map(|code| check(report, code).0).collect()
}

/// On a good stack every check is ok, before and after a member ran, and the looks made nothing.
pub async fn a_good_stack_is_all_ok(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    for _ in 0..2 {
        let (status, report) = json(&bench, "check", &[]);
        let checks = report["checks"].as_array().unwrap();
        assert!(checks.len() == 25 && checks.iter().all(|check| check["status"] == "ok"), "{report:#}");
        assert_eq!((status, &report["version"], &report["ok"]), (Some(0), &1.into(), &true.into()));
        if bench.committed(0).is_none() {
            bench.produce(2_000);
            bench.consume(2_000).await;
        }
    }
    assert!(table(&bench, "check", &[]).contains("all is ready for `tallyhouse run`"));
}

/// A server that is away fails its own check with the fix. The other server's checks are made in any case.
pub async fn a_check_names_the_server_that_is_away(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let started = Instant::now();
    let (status, report) = json(&bench, "check", &[("TALLYHOUSE__CLICKHOUSE__URL", CLOSED)]);
    assert_eq!((status, &report["failed"]), (Some(1), &1.into()), "{report:#}");
    assert!(check(&report, "clickhouse").1.contains("clickhouse.url"), "{report:#}");
    let codes = ["schema", "clock", "insert_rights", "log", "brokers", "group_rights"];
    assert_eq!(states(&report, &codes), ["skipped", "skipped", "skipped", "ok", "ok", "ok"], "{report:#}");

    let (status, report) = json(&bench, "check", &[("TALLYHOUSE__KAFKA__BROKERS", "127.0.0.1:1")]);
    assert_eq!((status, &report["failed"]), (Some(1), &1.into()), "{report:#}");
    assert!(check(&report, "brokers").1.contains("kafka.brokers"), "{report:#}");
    assert_eq!(states(&report, &["topic", "log", "schema"]), ["skipped", "skipped", "ok"], "{report:#}");
    assert!(started.elapsed() < DEADLINE, "it waited for {:?}", started.elapsed());
}

/// A wrong topic, a missing schema and a missing view each get a finding of their own that says what to do.
pub async fn a_check_says_how_to_mend(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let (status, report) = json(&bench, "check", &[("TALLYHOUSE__KAFKA__TOPICS__EVENTS", "no-such-topic")]);
    let (topic, fix) = check(&report, "topic");
    assert_eq!((status, topic.as_str()), (Some(1), "failed"), "{report:#}");
    assert!(fix.contains("kafka.topics.events"), "{report:#}");
    assert_eq!(states(&report, &["brokers", "log", "schema"]), ["ok", "skipped", "ok"], "{report:#}");

    bench.execute("DROP VIEW campaign_report").await;
    let (status, report) = json(&bench, "check", &[]);
    let (views, fix) = check(&report, "views");
    assert_eq!((status, views.as_str()), (Some(0), "warning"), "{report:#}");
    assert!(fix.contains("tallyhouse migrate"), "{report:#}");

    bench.execute("DROP TABLE daily").await;
    let (status, report) = json(&bench, "check", &[]);
    let (schema, fix) = check(&report, "schema");
    assert_eq!((status, schema.as_str()), (Some(1), "failed"), "{report:#}");
    assert!(fix.contains("tallyhouse migrate"), "{report:#}");
    assert_eq!(states(&report, &["insert_rights", "log", "clock"]), ["skipped", "ok", "ok"], "{report:#}");
}

/// With a running member all is well, and the member has every partition. Without one, nothing is wrong until records
/// wait.
pub async fn a_status_tells_who_counts(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.produce(3_000);
    let member = bench.start(&[]);
    bench.await_stored(3_000, &[&member]).await;
    let deadline = Instant::now() + DEADLINE;
    let seen = loop {
        let (status, seen) = json(&bench, "status", &[]);
        if status == Some(0) && seen["lag_records"] == 0 && seen["group_state"] == "stable" {
            break seen;
        }
        assert!(Instant::now() < deadline, "{seen:#}");
        tokio::time::sleep(POLL_INTERVAL).await;
    };
    assert_eq!(seen["members"][0]["partitions"], serde_json::json!([0, 1, 2]), "{seen:#}");
    let partitions = seen["partitions"].as_array().unwrap();
    assert_eq!(partitions.len(), PARTITIONS as usize);
    assert!(partitions.iter().all(|partition| partition["progress"] == "idle"), "{seen:#}");
    let sum = |name: &str| partitions.iter().map(|partition| partition[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("log_end"), sum("committed"), sum("member")), (3_000, 3_000, 0), "{seen:#}");
    assert!(partitions.iter().all(|partition| partition["outlook"] == "goes_on"), "{seen:#}");
    assert!(table(&bench, "status", &[]).starts_with("nothing is wrong"));

    end(&member);
    let (status, seen) = json(&bench, "status", &[]);
    assert_eq!((status, seen["members"].as_array().map(Vec::len)), (Some(0), Some(0)), "{seen:#}");
    bench.produce(500);
    let (status, seen) = json(&bench, "status", &[]);
    assert_eq!((status, &seen["problems"][0]["code"]), (Some(1), &"no_members".into()), "{seen:#}");
    assert_eq!(seen["lag_records"], 500);
    assert!(table(&bench, "status", &[]).starts_with("WRONG: no members: nothing is counted, 500 records wait"));
}

/// Records wait for a member that is held, and one look cannot judge that. Once it goes on, two looks see them
/// counted, and the member reports the same.
pub async fn a_status_sees_records_counted(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let member = bench.start(&[]);
    await_http(&member, "/readyz", "\"ready\":true").await;
    let asking = format!("http://{}", address(&member));
    member.stop().unwrap();
    bench.produce(300);
    let (status, seen) = json(&bench, "status", &[]);
    assert_eq!((status, &seen["partitions"][0]["progress"]), (Some(0), &"not_judged".into()), "{seen:#}");
    let text = table(&bench, "status", &[]);
    assert!(
        text.starts_with("not judged: partitions 0, 1, 2, where records wait.") && !text.contains("nothing is"),
        "{text}"
    );
    member.cont().unwrap();
    let (status, seen) = json_of(&bench, &["status", "--member", &asking], &[]);
    let asked = &seen["members_asked"][0];
    assert_eq!((status, &asked["url"], &asked["ready"]), (Some(0), &asking.clone().into(), &true.into()), "{seen:#}");
    assert_eq!(seen["partitions"][0]["unmoved_s"], 0.0, "{seen:#}");
    end(&member);
    let (status, seen) = json_of(&bench, &["status", "--member", &asking], &[]);
    assert_eq!((status, &seen["problems"][0]["code"]), (Some(1), &"member_unknown".into()), "{seen:#}");
}

/// Waits for a look after the first `seen` of `status --watch --json` in which all is as wanted. Returns the number
/// of looks.
async fn await_look(watch: &Server, seen: usize, wanted: impl Fn(&Value) -> bool) -> usize {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let text = watch.stdout();
        let complete = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
        let looks: Vec<Value> = complete.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        if looks.iter().skip(seen).any(&wanted) {
            return looks.len();
        }
        assert!(Instant::now() < deadline, "{text}{}", watch.stderr());
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// A watch sees each change, and Ctrl-C ends it with the last look.
pub async fn a_watch_follows_until_ctrl_c(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let watching = || {
        let command = bench.command(&["status", "--watch", "1", "--json"]);
        process::spawn("tallyhouse status", command, Output::Captured).unwrap()
    };
    let ctrl_c = |watch: &Server| {
        kill_process(Pid::from_raw(watch.pid().cast_signed()).unwrap(), Signal::INT).unwrap();
        watch.wait(DEADLINE).unwrap().code()
    };
    let well = |look: &Value| look["problems"].as_array().is_some_and(Vec::is_empty);
    let watch = watching();
    let looks = await_look(&watch, 0, |look| well(look) && look["lag_records"] == 0).await;
    bench.produce(500);
    let looks = await_look(&watch, looks, |look| look["lag_records"] == 500).await;
    let member = bench.start(&[]);
    await_look(&watch, looks, |look| well(look) && look["lag_records"] == 0 && look["rates"].is_object()).await;
    assert_eq!(ctrl_c(&watch), Some(0), "{}", watch.stderr());
    end(&member);

    let wrong = watching();
    bench.produce(1);
    await_look(&wrong, 0, |look| look["lag_records"] == 1).await;
    assert_eq!(ctrl_c(&wrong), Some(1), "{}", wrong.stderr());
}

/// With ClickHouse away Kafka's half is there and the cause is named first. With Kafka away, it is the other way
/// round.
pub async fn a_status_names_the_server_that_is_away(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.produce(1_000);
    bench.consume(1_000).await;
    let away = [("TALLYHOUSE__CLICKHOUSE__URL", CLOSED)];
    let (status, seen) = json(&bench, "status", &away);
    assert_eq!((status, &seen["problems"][0]["code"]), (Some(1), &"clickhouse".into()), "{seen:#}");
    let partitions = seen["partitions"].as_array().unwrap();
    let committed: u64 = partitions.iter().map(|partition| partition["committed"].as_u64().unwrap()).sum();
    assert_eq!((committed, &partitions[0]["outlook"]), (1_000, &"unknown".into()), "{seen:#}");
    let text = table(&bench, "status", &away);
    assert!(text.starts_with("WRONG: ClickHouse at http://127.0.0.1:1/ does not answer"), "{text}");

    let text = table(&bench, "status", &[("TALLYHOUSE__KAFKA__BROKERS", "127.0.0.1:1")]);
    assert!(text.starts_with("WRONG: Kafka at 127.0.0.1:1 does not answer"), "{text}");
}

/// The answer of an HTTP server to bytes that are no HTTP, such as the first ones of TLS.
pub const NO_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";

/// Answers each connection with these bytes, or closes it, until the test ends.
pub fn answering(bytes: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for mut connection in listener.incoming().map_while(Result::ok) {
            let _ = connection.read(&mut [0; 1_024]);
            let _ = connection.write_all(bytes);
        }
    });
    address
}

/// A port of another program is named, also by `run`, which ends where waiting does not help.
pub async fn a_check_names_what_answers_in_the_place_of_kafka(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let http = answering(NO_HTTP);
    let named = format!("an HTTP server answers where Kafka should: {http}");
    for command in [&["check", "--json"][..], &["run"]] {
        let (status, out, error) = bench.run(command, &[("TALLYHOUSE__KAFKA__BROKERS", &http)]);
        assert!(status == Some(1) && (out.contains(&named) || error.contains(&named)), "{out}{error}");
    }
    // A listener with TLS does not understand the bytes, and closes.
    let (_, out, _) = bench.run(&["check", "--json"], &[("TALLYHOUSE__KAFKA__BROKERS", &answering(b""))]);
    assert!(out.contains("Set kafka.tls.enabled = true if it is one"), "{out}");
}

/// An announced batch shows as open. Once its records are gone, the partition stops, with its reason and page.
pub async fn a_status_tells_what_stops(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    bench.produce(3_000);
    let batch = bench.die_at("intent_committed", ANNOUNCED, PARTITIONS).await;
    let of = |seen: &Value| seen["partitions"][usize::try_from(batch.partition).unwrap()].clone();
    let (_, seen) = json(&bench, "status", &[]);
    let open = of(&seen);
    assert_eq!((&open["intent_end"], &open["outlook"]), (&batch.end.into(), &"goes_on".into()), "{seen:#}");
    bench.delete_records(batch.partition, batch.start + 1).await;
    let (status, seen) = json(&bench, "status", &[]);
    let stopped = of(&seen);
    assert_eq!((status, &stopped["stop_reason"]), (Some(1), &"intent_gone".into()), "{seen:#}");
    let text = table(&bench, "status", &[]);
    let line = format!("WRONG: partition {} stops: ", batch.partition);
    assert!(text.contains(&line) && text.contains("tallyhouse explain intent_gone"), "{text}");
}

/// Neither command leaves anything in Kafka. The group is still unknown after them, and a missing topic is still
/// missing.
pub async fn looking_leaves_no_trace(url: &str, database: &str) {
    let bench = Bench::new(url, database).await;
    let missing = format!("{}-missing", bench.topic);
    for command in ["check", "status"] {
        json(&bench, command, &[]);
        json(&bench, command, &[("TALLYHOUSE__KAFKA__TOPICS__EVENTS", &missing)]);
    }
    let (_, seen) = json(&bench, "status", &[]);
    assert_eq!(seen["group_state"], "unknown", "{seen:#}");
    let metadata = admin().inner().fetch_metadata(None, DEADLINE).unwrap();
    assert!(metadata.topics().iter().all(|topic| topic.name() != missing));
}

/// Completions and manual pages are made without a configuration, even beside a broken one, and name every command.
pub async fn pages_need_no_configuration(_url: &str, _database: &str) {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(crate::program());
        command
            .env_clear()
            .current_dir(std::env::temp_dir())
            .env("TALLYHOUSE__KAFKA__NO_SUCH_KEY", "x")
            .args(arguments);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&["config", "explain"]).0, Some(64));
    for arguments in [&["completions", "bash"][..], &["completions", "zsh"], &["completions", "fish"], &["man"]] {
        let (status, text) = run(arguments);
        assert_eq!(status, Some(0), "{arguments:?}");
        for command in ["run", "check", "status", "report", "audit"] {
            assert!(text.contains(command), "{arguments:?} lacks {command}");
        }
    }
    assert_eq!(run(&["completions", "cmd.exe"]).0, Some(64));
    let folder = tempfile::tempdir().unwrap();
    let (status, _) = run(&["man", "--folder", folder.path().to_str().unwrap()]);
    let daily = std::fs::read_to_string(folder.path().join("tallyhouse-repair-daily.1")).unwrap();
    assert!(status == Some(0) && daily.contains("YYYYMM"), "{daily}");
}
