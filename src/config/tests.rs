//! The configuration as its users meet it: precedence, refusals, secrets.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use super::*;

const SECRET: &str = "hunter2-d41d8";

/// Sources with an (empty) file, so that no file of the working directory is looked for.
struct Given {
    folder: tempfile::TempDir,
    sources: Sources,
}

fn given(toml: &str) -> Given {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tallyhouse.toml");
    fs::write(&file, toml).unwrap();
    Given { folder, sources: Sources { file: Some(file), ..Sources::default() } }
}

impl Given {
    fn env(mut self, name: &str, value: &str) -> Self {
        self.sources.env.insert(name.into(), value.into());
        self
    }

    fn set(mut self, pair: &str) -> Self {
        self.sources.flags.push(pair.parse().unwrap());
        self
    }

    /// Writes a file next to the configuration file and returns its path.
    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        self.stable(path.to_str().unwrap()).replace("DIR", self.folder.path().to_str().unwrap())
    }

    /// `text` without what differs from run to run.
    fn stable(&self, text: &str) -> String {
        text.replace(self.folder.path().to_str().unwrap(), "DIR")
    }

    fn load(&self) -> Resolved {
        load(&self.sources).unwrap_or_else(|error| panic!("{error}"))
    }

    fn error(&self) -> String {
        self.stable(&load(&self.sources).expect_err("refused").to_string())
    }
}

fn property(resolved: &Resolved, name: &str) -> Option<String> {
    resolved.config.kafka_properties().into_iter().find(|(n, _)| n == name).map(|(_, value)| value)
}

#[test]
fn defaults_are_valid_and_typed() {
    let config = given("").load().config;
    assert_eq!(config.kafka.topics.events, "campaign.event_tracking");
    assert_eq!(config.kafka.assignment, Assignment::CooperativeSticky);
    assert_eq!(config.kafka.group_instance_id, None);
    assert_eq!(config.clickhouse.compression, Compression::Lz4);
    assert_eq!(config.flush.bytes_max, 128 << 20);
    assert_eq!(config.memory.limit_bytes, 512 << 20);
    assert_eq!(config.admin.listen.port(), 9464);
    assert!(config.clickhouse.password.is_empty() && config.warnings().is_empty());
}

#[test]
fn later_layers_win_and_are_named() {
    let age = |given: &Given| {
        let resolved = given.load();
        let line = resolved.explain().lines().find(|l| l.starts_with("flush.age_ms")).unwrap().to_owned();
        let origin = line.splitn(3, "  ").last().unwrap().trim_start_matches(|c: char| c == ' ' || c.is_numeric());
        (resolved.config.flush.age_ms, given.stable(origin.trim()))
    };
    let g = given("");
    assert_eq!(age(&g), (5000, "default".into()));
    let g = given("[flush]\nage_ms = 100");
    assert_eq!(age(&g), (100, "file DIR/tallyhouse.toml".into()));
    let g = g.env("TALLYHOUSE__FLUSH__AGE_MS", "200");
    assert_eq!(age(&g), (200, "environment TALLYHOUSE__FLUSH__AGE_MS".into()));
    let g = g.set("flush.age_ms=300").set("flush.age_ms=400");
    assert_eq!(age(&g), (400, "flag --set".into()));
}

#[test]
fn the_file_may_be_named_by_the_environment() {
    let mut g = given("flush.rows_max = 7");
    let file = g.sources.file.take().unwrap();
    let g = g.env("TALLYHOUSE_CONFIG", file.to_str().unwrap());
    assert_eq!(g.load().config.flush.rows_max, 7);
    let g = g.env("TALLYHOUSE_CONFIG", "DIR/none.toml");
    insta::assert_snapshot!(g.error(), @"
    the configuration has 1 problem:
      file DIR/none.toml (environment TALLYHOUSE_CONFIG): cannot be read: No such file or directory (os error 2)
    ");
}

#[test]
fn an_empty_text_unsets_an_optional_key() {
    let g = given("kafka.group_instance_id = 'writer-1'");
    assert_eq!(g.load().config.kafka.group_instance_id.as_deref(), Some("writer-1"));
    let g = g.env("TALLYHOUSE__KAFKA__GROUP_INSTANCE_ID", "");
    assert_eq!(g.load().config.kafka.group_instance_id, None);
    assert!(g.set("kafka.brokers=").error().contains("must be text, not empty"));
}

#[test]
fn all_problems_are_listed_at_once() {
    let g = given(
        "[kafka]\nbroker = 'x:1'\nsession_timeout_ms = 5\nproperties.'enable.auto.commit' = true\n\
         properties.'bootstrap.servers' = 'x'\nproperties.list = [1]\n\
         [kafka.tls]\nkey_file = 'k.pem'\nverify = false\n[flush]\nage_ms = 'soon'\nbytes_max = '400MiB'\n\
         [clickhouse]\ndatabase = 'a;b'\nurl = 'http://me:secret@h'\nca_file = 'ca.pem'\n[kafka.sasl]\nusername = 'u'",
    )
    .env("TALLYHOUSE__KAFKA__TOPICS__EVENT", "x")
    .env("TALLYHOUSE__NONSENSE", "x")
    .env("TALLYHOUSE__KAFKA__ASSIGNMENT", "fast")
    .env("TALLYHOUSE__ADMIN__LISTEN", "localhost")
    .set("retry.backoff_min_ms=20000")
    .set("flush.batches_per_second_max=0")
    .set("log.level=a=b=c");
    insta::assert_snapshot!(g.error());
}

#[test]
fn a_refused_value_causes_no_second_problem() {
    let g = given("memory.limit_bytes = '1MiB'\nflush.bytes_max = '1GiB'");
    insta::assert_snapshot!(g.error(), @"
    the configuration has 1 problem:
      memory.limit_bytes = \"1MiB\" (file DIR/tallyhouse.toml): must be a number of bytes from 64MiB to 1024GiB, such as 1048576, 512MiB or 1GB
    ");
}

#[test]
fn a_wrong_file_is_told_by_place_without_quoting_it() {
    let error = given(&format!("[clickhouse]\npassword = \"{SECRET}\n")).error();
    assert!(error.contains("DIR/tallyhouse.toml (flag --config): cannot be read: line 2"), "{error}");
    assert!(!error.contains(SECRET), "{error}");
}

#[test]
fn secrets_come_from_files() {
    let g = given("");
    let path = g.write("password", &format!("{SECRET}\n"));
    let g = g.env("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", &path);
    let resolved = g.load();
    assert_eq!(resolved.config.clickhouse.password.expose(), SECRET);
    let origin = "environment TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE, from DIR/password";
    assert!(g.stable(&resolved.explain()).contains(origin));

    let g = given("");
    let path = g.write("password", SECRET);
    fs::write(g.sources.file.as_ref().unwrap(), format!("clickhouse.password_file = '{path}'")).unwrap();
    assert_eq!(g.load().config.clickhouse.password.expose(), SECRET);
    let g = g.env("TALLYHOUSE__CLICKHOUSE__PASSWORD", "");
    assert!(g.load().config.clickhouse.password.is_empty(), "a later layer wins in either form");
}

#[test]
fn a_secret_given_twice_or_unreadable_is_refused() {
    let g = given("clickhouse.password_file = 3")
        .env("TALLYHOUSE__CLICKHOUSE__PASSWORD", SECRET)
        .env("TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE", "p")
        .set("kafka.sasl.password_file=DIR/none");
    insta::assert_snapshot!(g.error(), @r#"
    the configuration has 3 problems:
      clickhouse.password_file = 3 (file DIR/tallyhouse.toml): must be the path of a file
      clickhouse.password_file = "p" (environment TALLYHOUSE__CLICKHOUSE__PASSWORD_FILE): give either clickhouse.password (environment TALLYHOUSE__CLICKHOUSE__PASSWORD) or clickhouse.password_file, not both
      kafka.sasl.password_file = "DIR/none" (flag --set): cannot be read: No such file or directory (os error 2)
    "#);
}

/// A configuration with a secret in every place that can hold one.
fn full_of_secrets() -> Given {
    given(&format!(
        "[kafka.tls]\nenabled = true\ncert_file = 'c.pem'\nkey_file = 'k.pem'\nkey_password = '{SECRET}'\n\
         [kafka.sasl]\nmechanism = 'SCRAM-SHA-512'\nusername = 'u'\npassword = '{SECRET}'\n\
         [clickhouse]\npassword = '{SECRET}'\n[kafka.properties]\n'ssl.key.pem' = '{SECRET}'\n\
         'ssl.keystore.password' = '{SECRET}'\nSASL.PASSWORD = '{SECRET}'\n"
    ))
    .env("TALLYHOUSE__KAFKA__PROPERTIES__SASL_OAUTHBEARER_CLIENT_SECRET", SECRET)
}

#[test]
fn secrets_are_used_but_never_shown() {
    let resolved = full_of_secrets().load();
    assert_eq!(property(&resolved, "sasl.password").as_deref(), Some(SECRET));
    assert_eq!(property(&resolved, "ssl.key.password").as_deref(), Some(SECRET));
    for shown in [resolved.explain(), format!("{resolved:?}"), format!("{:#?}", resolved.config)] {
        assert!(!shown.contains(SECRET), "{shown}");
    }
}

#[test]
fn errors_do_not_show_secrets() {
    let wrong = full_of_secrets()
        .env("TALLYHOUSE__CLICKHOUSE__PASSWRD", SECRET)
        .env("TALLYHOUSE__KAFKA__PROPERTIES", SECRET)
        .env("TALLYHOUSE__KAFKA__PROPERTIES__SSL_KEY_PASSWORD", SECRET)
        .env("TALLYHOUSE__KAFKA__SASL__MECHANISM", "")
        .env("TALLYHOUSE__KAFKA__TLS__KEY_FILE", "")
        .set(&format!("clickhouse.url=http://u:{SECRET}@h"))
        .set(&format!("clickhouse.password=\0{SECRET}"));
    let error = load(&wrong.sources).unwrap_err();
    assert_eq!(error.problems.len(), 9, "{error}");
    assert!(!format!("{error}{error:?}").contains(SECRET), "{error}");
    let listed = given(&format!("clickhouse.password = ['{SECRET}']\nclickhouse.user = 3")).error();
    assert!(!listed.contains(SECRET), "{listed}");
}

#[test]
fn tls_and_sasl_make_the_security_protocol() {
    let protocol = |g: Given| property(&g.load(), "security.protocol").unwrap();
    let sasl = |g: Given| g.set("kafka.sasl.mechanism=PLAIN").set("kafka.sasl.username=u").set("kafka.sasl.password=p");
    let tls = |g: Given| g.set("kafka.tls.enabled=true");
    assert_eq!(protocol(given("")), "plaintext");
    assert_eq!(protocol(tls(given(""))), "ssl");
    assert_eq!(protocol(sasl(given(""))), "sasl_plaintext");
    assert_eq!(protocol(tls(sasl(given("")))), "sasl_ssl");
    assert_eq!(sasl(given("")).load().config.warnings().len(), 1);
}

#[test]
fn unverified_tls_must_be_asked_for_twice() {
    let once = given("").set("kafka.tls.enabled=true").set("kafka.tls.verify=false");
    assert!(once.error().contains("security.allow_insecure_tls = true"));
    let twice = once.set("security.allow_insecure_tls=true").load();
    assert_eq!(property(&twice, "enable.ssl.certificate.verification").as_deref(), Some("false"));
    assert_eq!(twice.config.warnings().len(), 1);
}

#[test]
fn exposed_addresses_are_warned_of() {
    let g =
        given("").set("admin.listen=0.0.0.0:9464").set("clickhouse.url=http://ch:8123").set("clickhouse.password=p");
    insta::assert_snapshot!(g.load().config.warnings().join("\n"), @"
    admin.listen = 0.0.0.0:9464 is reachable from other hosts, and the endpoint has no authentication
    clickhouse.password travels in clear: clickhouse.url is http to another host
    ");
}

#[test]
fn properties_pass_through_from_every_layer() {
    let g = given(
        "[kafka.properties]\n'fetch.wait.max.ms' = 10\nqueued.min.messages = 5\n'socket.keepalive.enable' = true",
    )
    .env("TALLYHOUSE__KAFKA__PROPERTIES__FETCH_MIN_BYTES", "7")
    .set("kafka.properties.client.rack=a");
    let resolved = g.load();
    let expected = [
        ("fetch.wait.max.ms", "10"),
        ("queued.min.messages", "5"),
        ("socket.keepalive.enable", "true"),
        ("fetch.min.bytes", "7"),
        ("client.rack", "a"),
    ];
    for (name, value) in expected {
        assert_eq!(property(&resolved, name).as_deref(), Some(value), "{name}");
    }
    let too_much = g.set("kafka.properties.queued.max.messages.kbytes=262145").error();
    assert!(too_much.contains("must be at most 262144, half of memory.limit_bytes"), "{too_much}");
}

#[test]
fn owned_properties_are_refused_each_with_a_reason() {
    let names = kafka_properties::PROTOCOL.iter().map(|p| p.0).chain(kafka_properties::KEYED.iter().map(|p| p.0));
    for name in names {
        let error = given("").set(&format!("kafka.properties.{name}=x")).error();
        assert!(error.contains("is always ") || error.contains("set "), "{error}");
    }
    let all = full_of_secrets().load().config.kafka_properties();
    for (name, _) in &all {
        let tunable = ["ssl.key.pem", "ssl.keystore.password", "SASL.PASSWORD", "sasl.oauthbearer.client.secret"];
        let owned = kafka_properties::refusal(name).is_some();
        let tuning = given("").load().config.kafka_properties().iter().any(|(n, _)| n == name) && !owned;
        assert!(owned || tuning || tunable.contains(&name.as_str()), "{name} could be overridden");
    }
}

#[test]
fn session_and_poll_intervals_fit_each_other() {
    let with = |session: &str| given("").set(&format!("kafka.session_timeout_ms={session}")).load();
    assert_eq!(property(&with("1000"), "heartbeat.interval.ms").as_deref(), Some("333"));
    assert_eq!(property(&with("45000"), "heartbeat.interval.ms").as_deref(), Some("3000"));
    assert_eq!(property(&with("1800000"), "max.poll.interval.ms").as_deref(), Some("1800000"));
}

#[test]
fn librdkafka_accepts_the_properties() {
    let g = given("").set("kafka.group_instance_id=one").set("kafka.tls.enabled=true");
    let g = g.set("kafka.sasl.mechanism=PLAIN").set("kafka.sasl.username=u").set("kafka.sasl.password=p");
    for assignment in ["eager", "cooperative-sticky"] {
        let mut client = rdkafka::ClientConfig::new();
        let resolved = load(&Sources { flags: g.sources.flags.clone(), ..given("").sources });
        drop(resolved);
        let g = given("").set(&format!("kafka.assignment={assignment}"));
        client.extend(g.load().config.kafka_properties());
        client.create_native_config().unwrap();
    }
    let mut client = rdkafka::ClientConfig::new();
    client.extend(g.load().config.kafka_properties());
    client.create_native_config().unwrap();
}

#[test]
fn explain_shows_keys_values_and_origins() {
    let g = full_of_secrets().env("TALLYHOUSE__MEMORY__LIMIT_BYTES", "1GiB").set("log.format=json");
    insta::assert_snapshot!(g.stable(&g.load().explain()));
}

/// The example file: every key, commented out, under its section.
fn example() -> String {
    let mut text = String::from(
        "# Tallyhouse: every key with its default. Later layers win over this file: the environment\n\
         # (TALLYHOUSE__SECTION__KEY, such as TALLYHOUSE__KAFKA__BROKERS), then flags (--set kafka.brokers=host:9092).\n\
         # A password may be kept in a file of its own: password_file = \"/run/secrets/password\".\n",
    );
    let mut section = "";
    for key in keys() {
        let (in_section, field) = key.name.rsplit_once('.').unwrap();
        if in_section != section {
            section = in_section;
            write!(text, "\n[{section}]\n").unwrap();
        }
        let default = match key.kind {
            Kind::Bool | Kind::Integer(_) | Kind::Float(_) => key.default.to_owned(),
            Kind::Properties => "{}".to_owned(),
            _ => format!("{:?}", key.default),
        };
        let optional = if key.is_unset(&"".into()) { ", or \"\" for not set" } else { "" };
        write!(text, "# {}\n# Must be {}{optional}.\n#{field} = {default}\n", key.help, key.kind.allowed()).unwrap();
    }
    text
}

/// `UPDATE=1 cargo test -p tallyhouse --lib config` writes the file anew.
#[test]
fn the_example_file_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tallyhouse.example.toml");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, example()).unwrap();
    }
    let example = fs::read_to_string(&path).unwrap();
    assert_eq!(example, self::example(), "run again with UPDATE=1");

    let uncommented = example.lines().map(|line| match line.strip_prefix('#') {
        Some(assignment) if !assignment.starts_with(' ') => assignment,
        _ => line,
    });
    let uncommented = given(&uncommented.collect::<Vec<_>>().join("\n")).load();
    assert_eq!(format!("{:?}", uncommented.config), format!("{:?}", given(&example).load().config));
    assert_eq!(uncommented.explain().matches(" default\n").count(), 1, "only the table of properties");
}
