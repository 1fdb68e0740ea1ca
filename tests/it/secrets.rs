//! Tests every secret there is, given in every way it can be given, with everything logged that can be: none of them
//! is ever shown.

use crate::security::{Settings, borrowed, secure};
use crate::service::{Bench, await_http, end, http};
use devstack::kafka::secure::{KEY_PASSWORD, PASSWORD, USER};
use devstack::{ClickHouse, ClickHouseOptions, User};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);
const CLICKHOUSE_PASSWORD: &str = "marked-clickhouse-password-c04e";
const WRONG_PASSWORD: &str = "marked-wrong-password-6b2d";
/// Bytes of context in a failure's report: more than any line of a log that is worth reading there.
const CONTEXT_BYTES: usize = 200;

/// Everything that was seen, with its place.
#[derive(Default)]
struct Seen(Vec<(String, String)>);

impl Seen {
    fn add(&mut self, place: impl Into<String>, text: impl Into<String>) {
        self.0.push((place.into(), text.into()));
    }

    fn command(&mut self, bench: &Bench, arguments: &[&str], settings: &Settings) -> Option<i32> {
        let output = bench.command(arguments).envs(borrowed(settings)).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        self.add(format!("{arguments:?}"), String::from_utf8_lossy(&text));
        output.status.code()
    }

    fn assert_without(&self, secret: &str) {
        for (place, text) in &self.0 {
            if let Some(at) = text.find(secret) {
                let from = (at.saturating_sub(CONTEXT_BYTES)..=at).find(|&from| text.is_char_boundary(from)).unwrap();
                panic!("{place} shows {secret}: …{}", &text[from..at + secret.len()]);
            }
        }
    }
}

/// Kafka's password is in the environment, the key's in the configuration file, ClickHouse's in a file of its own.
/// SASL and a client certificate go over TLS. The log is at its most talkative, and librdkafka's own debugging is on.
/// Then come wrong passwords.
pub async fn no_secret_is_ever_shown(_url: &str, database: &str) {
    let user = User { name: "marked".into(), password: CLICKHOUSE_PASSWORD.into(), ..User::default() };
    let clickhouse =
        ClickHouse::start(ClickHouseOptions { users: vec![user], ..ClickHouseOptions::default() }).unwrap();
    let bench = Bench::at(secure().plain(), clickhouse.url(), database).await;
    devstack::kafka::tool(
        "org.apache.kafka.tools.AclCommand",
        &[
            &["--bootstrap-server", secure().plain(), "--add", "--allow-principal", &format!("User:{USER}")][..],
            &["--operation", "Read", "--topic", &bench.topic, "--group", &bench.topic],
        ]
        .concat(),
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let [certificate, _] = secure().client();
    let file = write(
        "tallyhouse.toml",
        &format!(
            "[kafka.tls]\nenabled = true\nca_file = '{}'\ncert_file = '{}'\nkey_file = '{}'\nkey_password = '{KEY_PASSWORD}'\n\
             [kafka.properties]\ndebug = 'all'\n",
            secure().authority().display(),
            certificate.display(),
            secure().encrypted_key().display(),
        ),
    );
    let settings: Settings = vec![
        ("TALLYHOUSE_CONFIG", file),
        ("TALLYHOUSE__KAFKA__BROKERS", secure().sasl()),
        ("TALLYHOUSE__KAFKA__SASL__MECHANISM", "PLAIN".to_owned()),
        ("TALLYHOUSE__KAFKA__SASL__USERNAME", USER.to_owned()),
        ("TALLYHOUSE__KAFKA__SASL__PASSWORD", PASSWORD.to_owned()),
        ("TALLYHOUSE__CLICKHOUSE__USER", "marked".to_owned()),
        ("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", write("password", CLICKHOUSE_PASSWORD)),
        ("TALLYHOUSE__LOG__LEVEL", "trace".to_owned()),
    ];
    let with = |name: &'static str, value: &str| [&settings[..], &[(name, value.to_owned())]].concat();
    let scram = with("TALLYHOUSE__KAFKA__SASL__MECHANISM", "SCRAM-SHA-512");
    let mut seen = Seen::default();

    // Everything works with them, so they were used.
    let mut ledger = bench.produce(300);
    for (mechanism, settings) in [("PLAIN", &settings), ("SCRAM", &scram)] {
        let member = bench.start(&borrowed(settings));
        bench.await_stored(ledger.produced, &[&member]).await;
        await_http(&member, "/readyz", "\"ready\":true").await;
        for path in ["/", "/livez", "/readyz", "/windows", "/metrics"] {
            seen.add(path, http(&member, path).await);
        }
        seen.add(
            "command line",
            String::from_utf8_lossy(&std::fs::read(format!("/proc/{}/cmdline", member.pid())).unwrap()),
        );
        let said = end(&member) + &member.stderr();
        assert!(said.contains("[thrd:"), "librdkafka debugs nothing: {said}");
        seen.add(format!("run with {mechanism}"), said);
        ledger = ledger.plus(&bench.produce(300));
    }
    let member = bench.start(&borrowed(&with("TALLYHOUSE__LOG__FORMAT", "json")));
    bench.await_stored(ledger.produced, &[&member]).await;
    await_http(&member, "/readyz", "\"ready\":true").await;
    seen.add("run with json", end(&member) + &member.stderr());
    for command in [
        &["config", "explain"][..],
        &["check"],
        &["check", "--json"],
        &["status"],
        &["status", "--json"],
        &["audit"],
        &["report"],
        &["rejects", "count"],
    ] {
        assert_eq!(seen.command(&bench, command, &settings), Some(0), "{command:?}: {}", seen.0.last().unwrap().1);
    }
    seen.command(&bench, &["migrate", "--dry-run"], &settings);
    // Kafka refuses this for want of rights, and the error is made with the client's whole configuration at hand.
    seen.command(&bench, &["rejects", "replay"], &settings);

    // The messages name the error without them as well.
    let wrong_file = write("wrong", WRONG_PASSWORD);
    let wrong = [
        with("TALLYHOUSE__KAFKA__SASL__PASSWORD", WRONG_PASSWORD),
        with("TALLYHOUSE__KAFKA__TLS__KEY_PASSWORD", WRONG_PASSWORD),
        with("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", &wrong_file),
        with("TALLYHOUSE__KAFKA__PROPERTIES__SASL_PASWORD", WRONG_PASSWORD),
        with("TALLYHOUSE__KAFKA__PROPERTIES__SSL_KEY_PEM", WRONG_PASSWORD),
        with("TALLYHOUSE__CLICKHOUSE__PASWORD", WRONG_PASSWORD),
        with("TALLYHOUSE__CLICKHOUSE__URL", &format!("http://marked:{WRONG_PASSWORD}@localhost:8123")),
    ];
    for settings in &wrong {
        let member = bench.start(&borrowed(settings));
        for command in
            [&["check"][..], &["status", "--json"], &["audit"], &["rejects", "replay"], &["config", "explain"]]
        {
            seen.command(&bench, command, settings);
        }
        let changed = &settings.last().unwrap().0;
        let status = member.wait(DEADLINE).unwrap_or_else(|error| panic!("{changed}: {error}"));
        assert!(matches!(status.code(), Some(1 | 64)), "{changed}: {status} {}", member.stderr());
        seen.add(format!("run with another {changed}"), member.stdout() + &member.stderr());
    }
    let refused = format!("clickhouse.password={WRONG_PASSWORD}");
    assert_eq!(seen.command(&bench, &["config", "explain", "--set", &refused], &settings), Some(64));
    // The place names the arguments, which hold it. The program's own output must not.
    seen.0.last_mut().unwrap().0 = "--set with a password".to_owned();

    // A log must not show a recipient's address either.
    for secret in [PASSWORD, KEY_PASSWORD, CLICKHOUSE_PASSWORD, WRONG_PASSWORD, "@example.com"] {
        seen.assert_without(secret);
    }
    bench.assert_exact(&ledger, "with secrets").await;
    assert_labels_are_bounded(&seen);
}

/// Checks that in `/metrics` no label has a value from outside: not one of a record, a campaign, a user or an
/// address.
fn assert_labels_are_bounded(seen: &Seen) {
    // `server` is an address of the configuration without user and password.
    let labels =
        ["reason", "table", "kind", "step", "partition", "broker", "server", "version", "topic", "le", "quantile"];
    let pages: Vec<&String> = seen.0.iter().filter(|(place, _)| place == "/metrics").map(|(_, text)| text).collect();
    assert!(!pages.is_empty());
    for line in pages.iter().flat_map(|page| page.lines()).filter(|line| line.starts_with("tallyhouse_")) {
        let Some((_, rest)) = line.split_once('{') else { continue };
        for label in rest.split_once('}').unwrap().0.split("\",") {
            let (name, value) = label.split_once("=\"").unwrap();
            assert!(labels.contains(&name), "{line}");
            let bounded = value.trim_end_matches('"').len() <= 80 && !value.contains('@');
            assert!(bounded, "{line}");
        }
    }
}
