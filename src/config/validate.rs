//! Turns settings into a [`Config`]: it judges each value by its key, then the values that must fit each other.
//!
//! All problems are found in one pass. A value that is already refused must not cause a second problem elsewhere. Its default
//! replaces it, and checks that look at it are left out.

use toml::{Table, Value};
use url::{Host, Url};

use super::error::Problem;
use super::explain::shown;
use super::kafka_properties::refusal;
use super::keys::{format_bytes, property};
use super::layers::{PROPERTY_PREFIX, Setting, Settings};
use super::memory;
use super::schema::{Assignment, ClickHouse, Config, GroupProtocol, Mechanism, find, keys};

/// Converts every setting to its type, in place, and builds the configuration.
pub(super) fn config(
    settings: &mut Settings,
    memory_max_bytes: Option<u64>,
    problems: &mut Vec<Problem>,
) -> Option<Config> {
    let all_read = problems.is_empty();
    let refused = judge_each(settings, problems);
    // Each kind parses to the type of its field, and the tests check that. So this does not fail.
    let unfit = |error: toml::de::Error| Problem {
        key: "configuration".into(),
        value: None,
        origin: "all layers".into(),
        reason: error.message().into(),
    };
    let typed = nest(settings).try_into::<Config>();
    let config = typed.map_err(|error| problems.push(unfit(error))).ok()?;
    let is_reported = |name: &str| refused.iter().any(|refused| refused == name);
    // If a file could not be read, an apparent conflict may not be one.
    let conflicts = if all_read { conflicts(&config) } else { Vec::new() };
    for ([key, other], reason) in conflicts {
        if let (Some(setting), Some(against)) = (settings.get(key), settings.get(other))
            && !is_reported(key)
            && !is_reported(other)
        {
            let now = format!("{other} = {} ({})", shown(other, &against.value), against.origin);
            problems.push(problem(key, setting, format!("{reason}; now {now}")));
        }
    }
    let faults = if all_read { config.mapping.faults() } else { Vec::new() };
    for fault in faults {
        let key = format!("mapping.{}", fault.field);
        if let Some(setting) = settings.get(&key).filter(|_| !is_reported(&key)) {
            problems.push(problem(&key, setting, fault.reason));
        }
    }
    let memory = settings.get("memory.limit_bytes").filter(|_| !is_reported("memory.limit_bytes"));
    if let (Some(setting), Some(max_bytes)) = (memory, memory_max_bytes.and_then(|bytes| i64::try_from(bytes).ok()))
        && setting.value.as_integer().is_some_and(|bytes| bytes > max_bytes)
    {
        let reason = format!(
            "must be below the {} of memory that this process may have (cgroup), or the kernel kills it at its limit",
            format_bytes(max_bytes)
        );
        problems.push(problem("memory.limit_bytes", setting, reason));
    }
    Some(config)
}

/// Judges every setting by itself, and returns the names of the refused ones. Their defaults, if any, replace them.
fn judge_each(settings: &mut Settings, problems: &mut Vec<Problem>) -> Vec<String> {
    let mut refused = Vec::new();
    settings.retain(|name, setting| {
        let value = judge(name, &setting.value).or_else(|reason| {
            problems.push(problem(name, setting, reason));
            refused.push(name.clone());
            find(name).and_then(|key| key.kind.parse(&key.default.into())).ok_or(())
        });
        value.map(|value| setting.value = value).is_ok()
    });
    refused
}

fn problem(name: &str, setting: &Setting, reason: String) -> Problem {
    // The value of an unknown key is not shown: it may be a misspelt password.
    let known = find(name).is_some() || name.starts_with(PROPERTY_PREFIX);
    let value = known.then(|| shown(name, &setting.value));
    Problem { key: name.into(), value, origin: setting.origin.clone(), reason }
}

fn judge(name: &str, value: &Value) -> Result<Value, String> {
    if let Some(passed) = name.strip_prefix(PROPERTY_PREFIX) {
        return match refusal(passed) {
            Some(reason) => Err(reason),
            None => property(value).ok_or_else(|| "must be text, a number, true or false".into()),
        };
    }
    let key = find(name).ok_or_else(|| unknown(name))?;
    if key.is_unset(value) {
        return Ok(value.clone());
    }
    key.kind.parse(value).ok_or_else(|| format!("must be {}", key.allowed()))
}

fn unknown(name: &str) -> String {
    let likeness = |key: &str| strsim::normalized_damerau_levenshtein(name, key);
    let nearest = keys().map(|key| (likeness(key.name), key.name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, key)) if likeness >= 0.5 => format!("no such key; did you mean {key}?"),
        _ => "no such key".to_owned(),
    }
}

/// Turns dotted keys into nested tables. Keys that are not set are left out.
fn nest(settings: &Settings) -> Table {
    let mut root = Table::new();
    for key in keys() {
        let Some(setting) = settings.get(key.name).filter(|setting| !key.is_unset(&setting.value)) else {
            continue;
        };
        insert(&mut root, key.name, setting.value.clone());
    }
    let properties = settings
        .iter()
        .filter_map(|(name, setting)| Some((name.strip_prefix(PROPERTY_PREFIX)?.to_owned(), setting.value.clone())));
    insert(&mut root, "kafka.properties", Value::Table(properties.collect()));
    root
}

fn insert(table: &mut Table, path: &str, value: Value) {
    match path.split_once('.') {
        Some((section, rest)) => {
            if let Value::Table(inner) = table.entry(section).or_insert_with(|| Value::Table(Table::new())) {
                insert(inner, rest, value);
            }
        }
        None => {
            table.insert(path.to_owned(), value);
        }
    }
}

/// A faulty key, the key that it does not fit, and the reason.
type Conflict = ([&'static str; 2], String);

fn conflicts(config: &Config) -> Vec<Conflict> {
    let mut found = security_conflicts(config);
    found.extend(topic_conflicts(config));
    let (limit_bytes, retry) = (config.memory.limit_bytes, &config.retry);
    if memory::windows(limit_bytes) < config.flush.bytes_max {
        let reason = "must be at least twice flush.bytes_max".into();
        found.push((["memory.limit_bytes", "flush.bytes_max"], reason));
    }
    if retry.backoff_min_ms > retry.backoff_max_ms {
        let reason = "must be at most retry.backoff_max_ms".into();
        found.push((["retry.backoff_min_ms", "retry.backoff_max_ms"], reason));
    }
    if config.kafka.group_protocol == GroupProtocol::Consumer && config.kafka.assignment == Assignment::Eager {
        let reason =
            "must be cooperative-sticky, as nothing is revoked eagerly with kafka.group_protocol = consumer".into();
        found.push((["kafka.assignment", "kafka.group_protocol"], reason));
    }
    let moved_in_steps = config.kafka.assignment == Assignment::CooperativeSticky;
    if config.kafka.group_protocol == GroupProtocol::Classic
        && moved_in_steps
        && config.kafka.group_instance_id.is_some()
    {
        let reason = "must be eager with kafka.group_instance_id, or kafka.group_protocol consumer. A static member that \
                      restarts between the two steps of a cooperative rebalance would leave a partition without an owner"
            .into();
        found.push((["kafka.assignment", "kafka.group_instance_id"], reason));
    }
    let queue_kbytes = config.kafka.properties.get("queued.max.messages.kbytes");
    let queue_kbytes_max = memory::queued_values_max(limit_bytes) / 1024;
    let queue_kbytes = queue_kbytes.and_then(|text| text.expose().parse::<usize>().ok());
    if queue_kbytes.is_some_and(|kbytes| kbytes > queue_kbytes_max) {
        let reason = format!("must be at most {queue_kbytes_max}, half of memory.limit_bytes, which it is part of");
        found.push((["kafka.properties.queued.max.messages.kbytes", "memory.limit_bytes"], reason));
    }
    found
}

fn topic_conflicts(config: &Config) -> Vec<Conflict> {
    const DEAD_LETTER: &str = "kafka.topics.dead_letter";
    const REPLAYS: &str = "kafka.topics.replays";
    let topics = &config.kafka.topics;
    let (events, dead_letter, replays) = (&topics.events, topics.dead_letter.as_ref(), &topics.replays());
    let same = [
        (
            dead_letter == Some(events),
            [DEAD_LETTER, "kafka.topics.events"],
            "each rejected record would be consumed again",
        ),
        (replays == events, [REPLAYS, "kafka.topics.events"], "the notes would be consumed as events"),
        (dead_letter == Some(replays), [DEAD_LETTER, REPLAYS], "what was replayed could not be read from it"),
    ];
    const LIFECYCLE: [&str; 2] = ["kafka.topics.audience_ready", "kafka.topics.template_ready"];
    let names = [topics.audience_ready.as_str(), topics.template_ready.as_str()];
    let mut same = same.to_vec();
    for (key, name) in LIFECYCLE.into_iter().zip(names).filter(|(_, name)| !name.is_empty()) {
        let why = "its messages would be read in two ways";
        same.push((name == events, [key, "kafka.topics.events"], why));
        same.push((name == names[1], [key, LIFECYCLE[1]], why));
        let why = "the member would consume what it writes";
        same.push((dead_letter.is_some_and(|topic| topic == name), [DEAD_LETTER, key], why));
        same.push((replays == name, [REPLAYS, key], why));
    }
    let same = same.into_iter().filter(|(same, keys, _)| *same && keys[0] != keys[1]);
    same.map(|(_, keys, why)| (keys, format!("must not be the topic of {}: {why}", keys[1]))).collect()
}

fn security_conflicts(config: &Config) -> Vec<Conflict> {
    const TLS: [&str; 2] = ["kafka.tls.enabled", "kafka.tls.enabled = true"];
    const HTTPS: [&str; 2] = ["clickhouse.url", "clickhouse.url to begin with https://"];
    const REPLICAS: [&str; 2] = ["clickhouse.url", "clickhouse.url to name a second replica"];
    const CLEARTEXT: &str = "security.allow_cleartext_passwords";
    const ENCRYPTED_SASL: [&str; 2] = [
        CLEARTEXT,
        "kafka.tls.enabled = true (or security.allow_cleartext_passwords = true), since anyone on the network can read the \
         password, or another mechanism",
    ];
    const ENCRYPTED_HTTP: [&str; 2] = [
        CLEARTEXT,
        "clickhouse.url to begin with https:// (or security.allow_cleartext_passwords = true), since anyone on the network can \
         read it",
    ];
    const MEANT: [&str; 2] = [
        "security.allow_insecure_tls",
        "security.allow_insecure_tls = true, since anyone on the network can then pose as the brokers",
    ];
    let (tls, sasl, clickhouse) = (&config.kafka.tls, &config.kafka.sasl, &config.clickhouse);
    let cleartext = config.security.allow_cleartext_passwords;
    let plain = sasl.mechanism == Some(Mechanism::Plain);
    let (client_cert, client_key) = (clickhouse.cert_file.is_some(), clickhouse.key_file.is_some());
    let cert_file = tls.cert_file.is_some();
    let key_file = tls.key_file.is_some();
    let mechanism = sasl.mechanism.is_some();
    let username = sasl.username.is_some();
    let password = !sasl.password.is_empty();
    // Columns: a key, true if it is used, its need (a key, and in words), and true if the need is met.
    let needs = [
        ("kafka.tls.ca_file", tls.ca_file.is_some(), TLS, tls.enabled),
        ("kafka.tls.cert_file", cert_file, TLS, tls.enabled),
        ("kafka.tls.cert_file", cert_file, ["kafka.tls.key_file"; 2], key_file),
        ("kafka.tls.key_file", key_file, ["kafka.tls.cert_file"; 2], cert_file),
        ("kafka.tls.key_password", !tls.key_password.is_empty(), ["kafka.tls.key_file"; 2], key_file),
        ("kafka.tls.verify", !tls.verify, MEANT, config.security.allow_insecure_tls),
        ("kafka.sasl.mechanism", mechanism, ["kafka.sasl.username"; 2], username),
        ("kafka.sasl.mechanism", mechanism, ["kafka.sasl.password"; 2], password),
        ("kafka.sasl.username", username, ["kafka.sasl.mechanism"; 2], mechanism),
        ("kafka.sasl.password", password, ["kafka.sasl.mechanism"; 2], mechanism),
        ("kafka.sasl.mechanism", plain, ENCRYPTED_SASL, tls.enabled || cleartext),
        ("clickhouse.ca_file", clickhouse.ca_file.is_some(), HTTPS, clickhouse.is_https()),
        ("clickhouse.cert_file", client_cert, HTTPS, clickhouse.is_https()),
        ("clickhouse.cert_file", client_cert, ["clickhouse.key_file"; 2], client_key),
        ("clickhouse.key_file", client_key, ["clickhouse.cert_file"; 2], client_cert),
        ("clickhouse.replicas_confirmed", clickhouse.replicas_confirmed > 1, REPLICAS, clickhouse.urls().count() > 1),
        ("clickhouse.password", clickhouse.sends_password_in_clear(), ENCRYPTED_HTTP, cleartext),
    ];
    let missing = needs.into_iter().filter(|(_, used, _, there)| *used && !there);
    missing.map(|(key, _, [other, need], _)| ([key, other], format!("needs {need}"))).collect()
}

impl ClickHouse {
    /// Returns the addresses in `url`.
    fn urls(&self) -> impl Iterator<Item = Url> {
        self.url.split(',').filter_map(|url| Url::parse(url).ok())
    }

    fn is_https(&self) -> bool {
        self.urls().all(|url| url.scheme() == "https")
    }

    /// True if the password travels unencrypted to another host.
    fn sends_password_in_clear(&self) -> bool {
        !self.password.is_empty() && self.urls().any(|url| url.scheme() != "https" && !is_local(&url))
    }
}

fn is_local(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

impl Config {
    /// Returns one sentence for each setting that is allowed and risky.
    pub fn warnings(&self) -> Vec<String> {
        let (tls, clickhouse) = (&self.kafka.tls, &self.clickhouse);
        let open_admin = format!(
            "admin.listen = {} is reachable from other hosts, and the endpoint has no authentication",
            self.admin.listen
        );
        [
            (!self.admin.listen.ip().is_loopback(), open_admin.as_str()),
            (
                self.kafka.sasl.mechanism.is_some() && !tls.enabled,
                "kafka.sasl is used without TLS: the exchange, and with PLAIN the password, can be read on the network",
            ),
            (tls.enabled && !tls.verify, "kafka.tls.verify = false: anyone on the network can pose as the brokers"),
            (
                clickhouse.sends_password_in_clear(),
                "clickhouse.password travels in clear: clickhouse.url is http to another host",
            ),
        ]
        .into_iter()
        .filter(|(applies, _)| *applies)
        .map(|(_, warning)| warning.to_owned())
        .collect()
    }
}
