//! Tests TLS, client certificates, passwords and rights on a real Kafka with all of them, and on a real ClickHouse.
//!
//! A proxy in front of ClickHouse ends TLS, as the library form of ClickHouse has no HTTPS listener of its own.
//!
//! Correct settings work end to end. Wrong ones end the start with one message that names the key and what to do.

use crate::belief::other_user;
use crate::operate::{NO_HTTP, answering, check, json, states};
use crate::service::{Bench, await_http, end};
use devstack::kafka::secure::{PASSWORD, SecureKafka, USER};
use devstack::producer::{Events, create_topic};
use devstack::tls::{Terminator, TerminatorOptions};
use devstack::{ClickHouse, ClickHouseOptions, Server, Stack, User, kafka as broker};
use std::fs;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// Settings as environment variables.
pub type Settings = Vec<(&'static str, String)>;

pub fn secure() -> &'static SecureKafka {
    Stack::shared().secure_kafka().unwrap()
}

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// Starts TLS in front of the ClickHouse at `url`, perhaps only for clients with a certificate.
pub fn terminator(url: &str, mutual: bool, expired: bool) -> Terminator {
    let address = url.trim_start_matches("http://").trim_end_matches('/').to_socket_addrs().unwrap().next().unwrap();
    let client_authority = mutual.then(|| secure().authority());
    Terminator::start(&TerminatorOptions { identity: secure().server(expired), client_authority }, address).unwrap()
}

/// Returns the settings for Kafka's TLS listener at `brokers`, with the authority to trust.
fn kafka_tls(brokers: String, authority: &Path) -> Settings {
    vec![
        ("TALLYHOUSE__KAFKA__BROKERS", brokers),
        ("TALLYHOUSE__KAFKA__TLS__ENABLED", "true".to_owned()),
        ("TALLYHOUSE__KAFKA__TLS__CA_FILE", text(authority)),
    ]
}

fn kafka_client([cert, key]: &[std::path::PathBuf; 2]) -> Settings {
    vec![("TALLYHOUSE__KAFKA__TLS__CERT_FILE", text(cert)), ("TALLYHOUSE__KAFKA__TLS__KEY_FILE", text(key))]
}

pub fn sasl(mechanism: &str, password: &str) -> Settings {
    let mut settings = kafka_tls(secure().sasl(), &secure().authority());
    settings.extend([
        ("TALLYHOUSE__KAFKA__SASL__MECHANISM", mechanism.to_owned()),
        ("TALLYHOUSE__KAFKA__SASL__USERNAME", USER.to_owned()),
        ("TALLYHOUSE__KAFKA__SASL__PASSWORD", password.to_owned()),
    ]);
    settings
}

fn https(url: String, authority: &Path) -> Settings {
    vec![("TALLYHOUSE__CLICKHOUSE__URL", url), ("TALLYHOUSE__CLICKHOUSE__CA_FILE", text(authority))]
}

fn https_client([cert, key]: &[std::path::PathBuf; 2]) -> Settings {
    vec![("TALLYHOUSE__CLICKHOUSE__CERT_FILE", text(cert)), ("TALLYHOUSE__CLICKHOUSE__KEY_FILE", text(key))]
}

pub fn borrowed<'a>(settings: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// Runs a member until all produced events are counted, each once.
async fn counts(bench: &Bench, settings: &Settings) {
    let ledger = bench.produce(3_000);
    let member = bench.start(&borrowed(settings));
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "secured").await;
}

/// Returns the message that the start ended with: there is one, and it comes last.
fn last_words(member: &Server, status: i32, case: &str) -> String {
    let ended = member.wait(DEADLINE);
    let log = member.stderr();
    let ended = ended.unwrap_or_else(|error| panic!("{case}: {error}"));
    assert_eq!(ended.code(), Some(status), "{case}: {log}");
    let said: Vec<&str> = log.lines().filter(|line| line.starts_with("tallyhouse: ")).collect();
    let [one] = said[..] else { panic!("{case}: not one message but {said:?}\n{log}") };
    assert!(log.trim_end().ends_with(one), "{case}: something follows the message: {log}");
    one.to_owned()
}

/// Both servers are encrypted, with certificates of an authority that only the configuration names. `check` and
/// `status` get through too.
pub async fn tls_with_an_own_authority_is_exact(url: &str, database: &str) {
    let bench = Bench::at(secure().plain(), url, database).await;
    let (front, authority) = (terminator(url, false, false), secure().authority());
    let settings = [kafka_tls(secure().tls(), &authority), https(front.url(), &authority)].concat();
    counts(&bench, &settings).await;
    let (status, report) = json(&bench, "check", &borrowed(&settings));
    assert_eq!((status, &report["failed"], &report["warnings"]), (Some(0), &0.into(), &0.into()), "{report:#}");
    assert_eq!(json(&bench, "status", &borrowed(&settings)).0, Some(0));
}

/// The test uses client certificates to both servers. Then it uses a password for Kafka, by SCRAM-SHA-512 and by
/// PLAIN, with only the rights that docs name.
pub async fn client_certificates_and_a_password_are_exact(url: &str, database: &str) {
    let (front, authority) = (terminator(url, true, false), secure().authority());
    let clickhouse = [https(front.url(), &authority), https_client(&secure().client())].concat();
    let bench = Bench::at(secure().plain(), url, database).await;
    let certificate = [kafka_tls(secure().mutual(), &authority), kafka_client(&secure().client())].concat();
    counts(&bench, &[certificate, clickhouse.clone()].concat()).await;
    for mechanism in ["SCRAM-SHA-512", "PLAIN"] {
        let bench = Bench::at(secure().plain(), url, &format!("{database}_{}", mechanism.len())).await;
        acls(&["--add", "--operation", "Read", "--topic", &bench.topic, "--group", &bench.topic]);
        counts(&bench, &[sasl(mechanism, PASSWORD), clickhouse.clone()].concat()).await;
    }
}

/// An authority, a name, a date or a client certificate is wrong. Every start ends with status 1 (64 where a file
/// cannot be used), and with one message with the key.
pub async fn tls_that_cannot_be_trusted_ends_the_start(url: &str, database: &str) {
    let kafka = secure();
    let bench = Bench::at(kafka.plain(), url, database).await;
    let (authority, other, client, stranger) =
        (kafka.authority(), kafka.other_authority(), kafka.client(), kafka.stranger());
    let fronts = [terminator(url, false, false), terminator(url, true, false), terminator(url, false, true)];
    let [front, mutual, expired] = &fronts;
    let by_number = kafka.tls().replace("localhost", "127.0.0.1");
    let encrypted = [client[0].clone(), kafka.encrypted_key()];
    let missing = [client[0].clone(), "/no/such/key.pem".into()];
    let bare_http = vec![("TALLYHOUSE__CLICKHOUSE__URL", format!("https://{}", answering(NO_HTTP)))];
    let mixed = [client[0].clone(), stranger[1].clone()];
    let cases: Vec<(&str, Settings, i32, &[&str])> = vec![
        ("kafka, wrong authority", kafka_tls(kafka.tls(), &other), 1, &["UnknownIssuer", "kafka.tls.ca_file"]),
        ("kafka, wrong name", kafka_tls(by_number, &authority), 1, &["127.0.0.1", "localhost", "kafka.brokers"]),
        ("kafka, expired", kafka_tls(kafka.expired(), &authority), 1, &["expired", "Renew"]),
        (
            "kafka, no certificate",
            kafka_tls(kafka.mutual(), &authority),
            1,
            &["wants a client certificate", "kafka.tls.cert_file"],
        ),
        (
            "kafka, a stranger's certificate",
            [kafka_tls(kafka.mutual(), &authority), kafka_client(&stranger)].concat(),
            1,
            &["refuses the client certificate in", "kafka.tls.cert_file"],
        ),
        (
            "kafka, an encrypted key without its password",
            [kafka_tls(kafka.mutual(), &authority), kafka_client(&encrypted)].concat(),
            64,
            &["kafka.tls.key_file", "kafka.tls.key_password"],
        ),
        (
            "kafka, no such file",
            [kafka_tls(kafka.mutual(), &authority), kafka_client(&missing)].concat(),
            64,
            &["kafka.tls.key_file", "No such file"],
        ),
        ("clickhouse, wrong authority", https(front.url(), &other), 1, &["UnknownIssuer", "clickhouse.ca_file"]),
        ("clickhouse, wrong name", https(front.url_by_number(), &authority), 1, &["127.0.0.1", "clickhouse.url"]),
        ("clickhouse, expired", https(expired.url(), &authority), 1, &["expired", "Renew"]),
        (
            "clickhouse, no certificate",
            https(mutual.url(), &authority),
            1,
            &["CertificateRequired", "clickhouse.cert_file"],
        ),
        (
            "clickhouse, a stranger's certificate",
            [https(mutual.url(), &authority), https_client(&stranger)].concat(),
            1,
            &["clickhouse.cert_file"],
        ),
        (
            "clickhouse, another certificate's key",
            [https(mutual.url(), &authority), https_client(&mixed)].concat(),
            64,
            &["clickhouse.cert_file, clickhouse.key_file"],
        ),
        ("clickhouse, no TLS there", bare_http, 1, &["clickhouse.url"]),
    ];
    let started: Vec<Server> = cases.iter().map(|(_, settings, ..)| bench.start(&borrowed(settings))).collect();
    for ((case, _, status, said), member) in cases.iter().zip(&started) {
        let message = last_words(member, *status, case);
        println!("{case}: {message}");
        for word in *said {
            assert!(message.contains(word), "{case}: {word:?} is not in {message}");
        }
    }
    // `check` says the same in its table, and still looks at the other server.
    let (_, report) = json(&bench, "check", &borrowed(&kafka_tls(kafka.tls(), &other)));
    assert!(check(&report, "brokers").1.contains("kafka.tls.ca_file"), "{report:#}");
    assert_eq!(
        states(&report, &["brokers", "topic", "clickhouse", "schema"]),
        ["failed", "skipped", "ok", "ok"],
        "{report:#}"
    );
    let (_, report) = json(&bench, "check", &borrowed(&https(front.url(), &other)));
    assert!(check(&report, "clickhouse").1.contains("clickhouse.ca_file"), "{report:#}");
}

/// A wrong password ends the start with one message: the user and the key, never the password.
pub async fn a_wrong_password_ends_the_start(url: &str, database: &str) {
    let bench = Bench::at(secure().plain(), url, database).await;
    let wrong = "wrong-password-52e1";
    let started: Vec<(&str, Server)> =
        ["SCRAM-SHA-512", "PLAIN"].map(|mechanism| (mechanism, bench.start(&borrowed(&sasl(mechanism, wrong))))).into();
    for (mechanism, member) in &started {
        let message = last_words(member, 1, mechanism);
        println!("{message}");
        for word in [USER, mechanism, "kafka.sasl.password"] {
            assert!(message.contains(word), "{message}");
        }
        assert!(!member.stderr().contains(wrong), "{}", member.stderr());
    }
    let (status, report) = json(&bench, "check", &borrowed(&sasl("SCRAM-SHA-512", wrong)));
    assert_eq!(status, Some(1));
    assert!(check(&report, "brokers").1.contains("kafka.sasl.password"), "{report:#}");
}

/// A password that is changed at ClickHouse, then in its file: the member ends by itself, names the key, and goes on when a supervisor starts it again
/// (tried 17).
pub async fn a_changed_password_is_taken_up(_url: &str, database: &str) {
    let [old, new] = ["old-password-7c1d", "new-password-93fa"];
    let user = |name: &str, password: &str| User { name: name.into(), password: password.into(), ..User::default() };
    let users = vec![user("own", old), user("other", new)];
    let clickhouse = ClickHouse::start(ClickHouseOptions { users, ..ClickHouseOptions::default() }).unwrap();
    let bench = Bench::new(clickhouse.url(), database).await;
    let is_changed = Arc::new(AtomicBool::new(false));
    let proxy = other_user(clickhouse.url(), &is_changed).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, old).unwrap();
    let settings = [
        ("TALLYHOUSE__CLICKHOUSE__URL", proxy.as_str()),
        ("TALLYHOUSE__CLICKHOUSE__USER", "own"),
        ("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", file.to_str().unwrap()),
    ];
    let mut producer = bench.producer();
    producer.send_events(&Events::default(), 0..1_000).unwrap();
    let member = bench.start(&settings);
    bench.await_stored(1_000, &[&member]).await;
    is_changed.store(true, Ordering::Relaxed);
    producer.send_events(&Events::default(), 1_000..2_000).unwrap();
    let ledger = producer.finish().unwrap();
    await_http(&member, "/readyz", "clickhouse.password").await;
    fs::write(&file, new).unwrap();
    let message = last_words(&member, 1, "a changed password");
    assert!(message.contains("were changed since it started: clickhouse.password"), "{message}");
    let log = member.stderr();
    assert!(!log.contains(old) && !log.contains(new), "{log}");
    bench.consume_with(2_000, &settings).await;
    bench.assert_exact(&ledger, "after the password was changed").await;
}

/// Runs `kafka-acls.sh` for the user of these tests.
fn acls(arguments: &[&str]) {
    let principal = format!("User:{USER}");
    let known = ["--bootstrap-server", secure().plain(), "--allow-principal", &principal, "--force"];
    broker::tool("org.apache.kafka.tools.AclCommand", &[&known, arguments].concat()).unwrap();
}

/// Runs the command at the end of a message, as an administrator who comes in by the listener for administrators.
fn carry_out(message: &str) {
    let command = message.split("kafka-acls.sh ").nth(1).unwrap_or_else(|| panic!("no command in {message}"));
    let words: Vec<&str> = command.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "--bootstrap-server").unwrap();
    assert_eq!(words[at + 1], secure().sasl(), "{message}");
    let words = [&words[..at], &["--bootstrap-server", secure().plain()], &words[at + 2..]].concat();
    broker::tool("org.apache.kafka.tools.AclCommand", &words).unwrap();
}

/// Without a right on the topic or the group, and with the right to describe alone, `run` and `check` print the
/// command that fixes it. The test runs that command, and it does fix it.
///
/// A right that is taken away from a running member shows at `/readyz`, and the member goes on once it is back.
pub async fn rights_that_miss_are_named_with_their_command(url: &str, database: &str) {
    let bench = Bench::at(secure().plain(), url, database).await;
    let ledger = bench.produce(2_000);
    let settings = sasl("SCRAM-SHA-512", PASSWORD);
    let start = || bench.start(&borrowed(&settings));
    let assert_checked = |code: &str, needed: &str| {
        let (status, report) = json(&bench, "check", &borrowed(&settings));
        assert_eq!(status, Some(1), "{report:#}");
        let (state, fix) = check(&report, code);
        assert!(state == "failed" && fix.contains(needed), "{code} does not name {needed}: {report:#}");
    };
    let topic = format!("--operation Read --topic {}", bench.topic);
    let group = format!("--operation Read --group {}", bench.topic);

    assert_checked("topic", &topic);
    let message = last_words(&start(), 1, "no right on the topic");
    assert!(message.contains(&topic) && message.contains(USER), "{message}");

    acls(&["--add", "--operation", "Describe", "--topic", &bench.topic, "--group", &bench.topic]);
    assert_checked("topic_rights", &topic);
    let message = last_words(&start(), 1, "the topic may only be described");
    assert!(message.contains(&topic), "{message}");
    carry_out(&message);

    assert_checked("group_rights", &group);
    let message = last_words(&start(), 1, "the group may only be described");
    assert!(message.contains(&group), "{message}");
    acls(&["--remove", "--operation", "Describe", "--group", &bench.topic]);
    assert_checked("group_rights", &group);
    let message = last_words(&start(), 1, "no right on the group");
    carry_out(&message);

    let member = start();
    bench.await_stored(ledger.produced, &[&member]).await;
    acls(&["--remove", "--operation", "Read", "--topic", &bench.topic]);
    let ledger = ledger.plus(&bench.produce(2_000));
    await_http(&member, "/readyz", &topic).await;
    acls(&["--add", "--operation", "Read", "--topic", &bench.topic]);
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    end(&member);
    bench.assert_exact(&ledger, "after rights came and went").await;
}

/// Dead letters, and a replay of rejected records, work for users that have the rights that `SECURITY.md` names and
/// no others.
pub async fn rejects_come_back_with_the_rights_that_are_named(url: &str, database: &str) {
    let bench = Bench::at(secure().plain(), url, database).await;
    let (letters, notes) = (format!("{}.dead", bench.topic), format!("{}.replays", bench.topic));
    create_topic(secure().plain(), &letters, 1).unwrap();
    let mut settings = sasl("SCRAM-SHA-512", PASSWORD);
    settings.extend([
        ("TALLYHOUSE__KAFKA__TOPICS__DEAD_LETTER", letters.clone()),
        ("TALLYHOUSE__KAFKA__TOPICS__REPLAYS", notes.clone()),
    ]);
    let tight = [&settings[..], &[("TALLYHOUSE__DECODE__PAST_DAYS_MAX", "0".to_owned())]].concat();
    let consume = async |settings: &Settings, records: u64| {
        let member = bench.start(&borrowed(settings));
        bench.await_stored(records, &[&member]).await;
        await_http(&member, "/readyz", "\"ready\":true").await;
        end(&member);
    };

    acls(&["--add", "--operation", "Read", "--topic", &bench.topic, "--group", &bench.topic]);
    let (status, report) = json(&bench, "check", &borrowed(&settings));
    let (state, fix) = check(&report, "dead_letter");
    assert_eq!((status, state.as_str()), (Some(1), "failed"), "{report:#}");
    assert!(fix.contains("Write"), "{fix}");
    acls(&["--add", "--operation", "Write", "--topic", &letters]);
    let mut ledger = bench.produce(2_000);
    consume(&tight, ledger.produced).await;
    let late = bench.count("SELECT count() FROM rejected_events WHERE reason = 'time_implausible'").await;
    assert!(late > 500, "{late}");

    let replay = || bench.run(&["rejects", "replay", "--json"], &borrowed(&settings));
    let (status, output, error) = replay();
    assert!(status == Some(1) && error.contains("DescribeConfigs"), "{output}{error}");
    acls(&["--add", "--operation", "Write", "--operation", "DescribeConfigs", "--topic", &bench.topic]);
    let ledgers = ["Read", "Write", "Create", "DescribeConfigs"].map(|operation| ["--operation", operation]).concat();
    acls(&[&["--add"], &ledgers[..], &["--topic", &notes]].concat());
    let id = format!("tallyhouse-replay-{}", bench.topic);
    acls(&["--add", "--operation", "Describe", "--operation", "Write", "--transactional-id", &id]);
    let (status, output, error) = replay();
    assert!(status == Some(0) && output.contains(&format!("\"replayed\":{late},")), "{output}{error}");
    consume(&settings, ledger.produced + late).await;
    (ledger.produced, ledger.broken) = (ledger.produced + late, ledger.broken + late);
    bench.assert_exact(&ledger, "replayed by a user with few rights").await;
}

/// The grants of `sql/writer_user.sql` are enough for `run`, `check`, `status`, `audit` and `report`, where even the
/// system tables need grants. `check` misses any one of them that is not there.
pub async fn the_least_clickhouse_rights_are_enough(_url: &str, database: &str) {
    let script = include_str!("../../sql/writer_user.sql").replace("campaigns.", &format!("{database}."));
    let grants: Vec<String> = script
        .lines()
        .filter(|line| line.starts_with("GRANT "))
        .map(|line| line.strip_suffix(" TO tallyhouse;").unwrap().to_owned())
        .collect();
    let without = |left_out: usize| {
        let kept = grants.iter().enumerate().filter(|(index, _)| *index != left_out);
        let grants = kept.map(|(_, grant)| grant.clone()).collect();
        User { name: format!("without_{left_out}"), password: "p".to_owned(), grants, ..User::default() }
    };
    let mut users: Vec<User> = (0..grants.len()).map(without).collect();
    users.push(User {
        name: "tallyhouse".to_owned(),
        password: "p".to_owned(),
        grants: grants.clone(),
        ..User::default()
    });
    let strict = "<access_control_improvements><select_from_system_db_requires_grant>true\
                  </select_from_system_db_requires_grant></access_control_improvements>";
    let options = ClickHouseOptions { users, config: strict.to_owned(), ..ClickHouseOptions::default() };
    let clickhouse = ClickHouse::start(options).unwrap();
    let bench = Bench::new(clickhouse.url(), database).await;
    let user = |name: &str| {
        vec![("TALLYHOUSE__CLICKHOUSE__USER", name.to_owned()), ("TALLYHOUSE__CLICKHOUSE__PASSWORD", "p".to_owned())]
    };
    let writer = user("tallyhouse");
    counts(&bench, &writer).await;
    let (status, report) = json(&bench, "check", &borrowed(&writer));
    assert_eq!((status, &report["failed"], &report["warnings"]), (Some(0), &0.into(), &0.into()), "{report:#}");
    for command in [&["status"][..], &["audit"], &["report"]] {
        let output = bench.command(command).envs(borrowed(&writer)).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let is_missed = |index: usize| {
        let (_, report) = json(&bench, "check", &borrowed(&user(&format!("without_{index}"))));
        report["failed"] != 0 || report["warnings"] != 0
    };
    let unneeded: Vec<&String> =
        (0..).zip(&grants).filter(|(index, _)| !is_missed(*index)).map(|(_, grant)| grant).collect();
    assert!(unneeded.is_empty(), "check does not miss {unneeded:?}");
}

/// Every test that `SECURITY.md` names is there.
pub async fn the_threat_model_names_tests_that_exist(_url: &str, _database: &str) {
    let units = [include_str!("../../src/config/tests/mod.rs"), include_str!("../../src/platform/metrics.rs")];
    let mut named = 0;
    for name in include_str!("../../SECURITY.md").split('`').filter(|word| word.contains("::")) {
        let function = format!("fn {}()", name.rsplit("::").next().unwrap());
        let there = include_str!("main.rs").contains(&format!("        {name},\n"))
            || units.iter().any(|source| source.contains(&function));
        assert!(there, "{name}");
        named += 1;
    }
    assert!(named > 10, "only {named}");
}
