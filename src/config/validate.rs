//! From settings to a [`Config`]: each value judged by its key, then those that must fit each other.
//!
//! All problems are found in one pass. A value already refused must not cause a second problem elsewhere: its default
//! stands in for it, and checks that look at it are left out.

use toml::{Table, Value};
use url::{Host, Url};

use super::error::Problem;
use super::explain::shown;
use super::kafka_properties::refusal;
use super::keys::{format_bytes, property};
use super::layers::{PROPERTY_PREFIX, Settings};
use super::schema::{ClickHouse, Config, keys};

/// Brings every setting to its type, in place, and builds the configuration.
pub(super) fn config(settings: &mut Settings, problems: &mut Vec<Problem>) -> Option<Config> {
    let mut refused = Vec::new();
    settings.retain(|name, setting| match judge(name, &setting.value) {
        Ok(value) => {
            setting.value = value;
            true
        }
        Err(reason) => {
            let key = keys().find(|key| key.name == name);
            let known = key.is_some() || name.starts_with(PROPERTY_PREFIX);
            let value = known.then(|| shown(name, &setting.value)); // an unknown key may be a misspelt password
            problems.push(Problem { key: name.clone(), value, origin: setting.origin.clone(), reason });
            refused.push(name.clone());
            key.and_then(|key| key.kind.parse(&key.default.into())).map(|value| setting.value = value).is_some()
        }
    });
    let config = match nest(settings).try_into::<Config>() {
        Ok(config) => config,
        Err(error) => {
            // Cannot happen while each kind parses to the type of its field, which the tests see to.
            let (key, origin, reason) = ("configuration".into(), "all layers".into(), error.message().into());
            problems.push(Problem { key, value: None, origin, reason });
            return None;
        }
    };
    for ([key, other], reason) in conflicts(&config) {
        if refused.iter().any(|name| name == key || name == other) {
            continue;
        }
        let Some(setting) = settings.get(key) else {
            continue;
        };
        let (value, origin) = (Some(shown(key, &setting.value)), setting.origin.clone());
        problems.push(Problem { key: key.into(), value, origin, reason });
    }
    Some(config)
}

fn judge(name: &str, value: &Value) -> Result<Value, String> {
    if let Some(passed) = name.strip_prefix(PROPERTY_PREFIX) {
        return match refusal(passed) {
            Some(reason) => Err(reason),
            None => property(value).ok_or_else(|| "must be text, a number, true or false".into()),
        };
    }
    let key = keys().find(|key| key.name == name).ok_or_else(|| unknown(name))?;
    if key.is_unset(value) {
        return Ok(value.clone());
    }
    key.kind.parse(value).ok_or_else(|| format!("must be {}", key.kind.allowed()))
}

fn unknown(name: &str) -> String {
    let likeness = |key: &str| strsim::normalized_damerau_levenshtein(name, key);
    let nearest = keys().map(|key| (likeness(key.name), key.name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((likeness, key)) if likeness >= 0.5 => format!("no such key; did you mean {key}?"),
        _ => "no such key".to_owned(),
    }
}

/// Dotted keys to nested tables. Keys that are not set are left out.
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

/// A key at fault, the key it does not fit, and why.
type Conflict = ([&'static str; 2], String);

fn conflicts(config: &Config) -> Vec<Conflict> {
    let mut found = security_conflicts(config);
    let mut refuse = |wrong: bool, keys, reason: String| {
        if wrong {
            found.push((keys, reason));
        }
    };
    let limit_bytes = config.memory.limit_bytes;
    refuse(
        limit_bytes / 2 < config.flush.bytes_max,
        ["memory.limit_bytes", "flush.bytes_max"],
        format!("must be at least twice flush.bytes_max, which is {}", format_bytes(config.flush.bytes_max as i64)),
    );
    refuse(
        config.retry.backoff_min_ms > config.retry.backoff_max_ms,
        ["retry.backoff_min_ms", "retry.backoff_max_ms"],
        format!("must be at most retry.backoff_max_ms, which is {}", config.retry.backoff_max_ms),
    );
    let queue_kbytes = config.kafka.properties.get("queued.max.messages.kbytes");
    let queue_kbytes_max = limit_bytes / 2 / 1024;
    refuse(
        queue_kbytes
            .and_then(|kbytes| kbytes.expose().parse().ok())
            .is_some_and(|kbytes: usize| kbytes > queue_kbytes_max),
        ["kafka.properties.queued.max.messages.kbytes", "memory.limit_bytes"],
        format!("must be at most {queue_kbytes_max}, half of memory.limit_bytes: the queue is inside that limit"),
    );
    found
}

fn security_conflicts(config: &Config) -> Vec<Conflict> {
    let (tls, sasl) = (&config.kafka.tls, &config.kafka.sasl);
    let ca_file = tls.ca_file.is_some();
    let cert_file = tls.cert_file.is_some();
    let key_file = tls.key_file.is_some();
    let key_password = !tls.key_password.is_empty();
    let mechanism = sasl.mechanism.is_some();
    let username = sasl.username.is_some();
    let password = !sasl.password.is_empty();
    let needs = [
        ("kafka.tls.ca_file", ca_file, "kafka.tls.enabled", tls.enabled),
        ("kafka.tls.cert_file", cert_file, "kafka.tls.enabled", tls.enabled),
        ("kafka.tls.cert_file", cert_file, "kafka.tls.key_file", key_file),
        ("kafka.tls.key_file", key_file, "kafka.tls.cert_file", cert_file),
        ("kafka.tls.key_password", key_password, "kafka.tls.key_file", key_file),
        ("kafka.tls.verify", !tls.verify, "security.allow_insecure_tls", config.security.allow_insecure_tls),
        ("kafka.sasl.mechanism", mechanism, "kafka.sasl.username", username),
        ("kafka.sasl.mechanism", mechanism, "kafka.sasl.password", password),
        ("kafka.sasl.username", username, "kafka.sasl.mechanism", mechanism),
        ("kafka.sasl.password", password, "kafka.sasl.mechanism", mechanism),
        ("clickhouse.ca_file", config.clickhouse.ca_file.is_some(), "clickhouse.url", config.clickhouse.is_https()),
    ];
    let missing = needs.into_iter().filter(|(_, given, _, there)| *given && !there);
    missing.map(|(key, _, other, _)| ([key, other], needs_reason(other))).collect()
}

fn needs_reason(other: &str) -> String {
    match other {
        "security.allow_insecure_tls" => "lets anyone on the network pose as the brokers; must be true, unless \
             security.allow_insecure_tls = true says that this is wanted"
            .into(),
        "kafka.tls.enabled" => "has no effect without TLS; set kafka.tls.enabled = true".into(),
        "clickhouse.url" => "has no effect without TLS; clickhouse.url must begin with https://".into(),
        _ => format!("needs {other} as well"),
    }
}

impl ClickHouse {
    fn is_https(&self) -> bool {
        Url::parse(&self.url).is_ok_and(|url| url.scheme() == "https")
    }

    fn is_local(&self) -> bool {
        Url::parse(&self.url).is_ok_and(|url| match url.host() {
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            Some(Host::Domain(name)) => name == "localhost",
            None => false,
        })
    }
}

impl Config {
    /// What is allowed but should be known, one sentence each.
    pub fn warnings(&self) -> Vec<String> {
        let (tls, clickhouse) = (&self.kafka.tls, &self.clickhouse);
        let password_in_clear = !clickhouse.password.is_empty() && !clickhouse.is_https() && !clickhouse.is_local();
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
            (password_in_clear, "clickhouse.password travels in clear: clickhouse.url is http to another host"),
        ]
        .into_iter()
        .filter_map(|(applies, warning)| applies.then(|| warning.to_owned()))
        .collect()
    }
}
