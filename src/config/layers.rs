//! Flattens the four layers to dotted keys and merges them. Each value keeps its origin.
//!
//! Reading files is the only I/O. This module must never judge a value, only find it: `validate` decides if a value is allowed.
//! Settings hold secrets in clear, so they have no `Debug`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::Problem;
use super::kafka_properties::is_secret;
use super::keys::{Kind, format_bytes, show};
use super::memory;
use super::schema::{find, keys};
use super::{FlagValue, Sources};

const ENV_PREFIX: &str = "TALLYHOUSE__";
const ENV_FILE: &str = "TALLYHOUSE_CONFIG";
const DEFAULT_FILE: &str = "tallyhouse.toml";

/// Prefix of each librdkafka property among the keys.
pub(super) const PROPERTY_PREFIX: &str = "kafka.properties.";

/// A value as it was given, with its origin.
pub(super) struct Setting {
    pub value: Value,
    pub origin: String,
}

/// Settings by dotted key.
pub(super) type Settings = BTreeMap<String, Setting>;

/// Merges all layers into one. The result has every key of `schema`, and everything else that was given.
pub(super) fn merge(sources: &Sources, problems: &mut Vec<Problem>) -> Settings {
    let mut merged = Settings::new();
    let file = from_file(sources, problems);
    let flags = from_flags(&sources.flags, problems);
    misspelt_variables(&sources.env, problems);
    for mut layer in [defaults(sources.memory_max_bytes), file, from_environment(&sources.env), flags] {
        read_secret_files(&mut layer, problems);
        merged.append(&mut layer);
    }
    merged
}

fn defaults(memory_max_bytes: Option<u64>) -> Settings {
    let setting = |text: &str| Setting { value: text.into(), origin: "default".into() };
    let mut layer: Settings = keys().map(|key| (key.name.to_owned(), setting(key.default))).collect();
    fit_into(memory_max_bytes, &mut layer);
    layer
}

/// Lowers the two defaults for the use of memory to the memory that a container has. The rest is for the reserve and for the
/// memory that the kernel counts beside the process.
fn fit_into(memory_max_bytes: Option<u64>, layer: &mut Settings) {
    let bytes_of = |layer: &Settings, key: &str| {
        layer.get(key).and_then(|setting| find(key)?.kind.parse(&setting.value)?.as_integer())
    };
    let Some(max_bytes) = memory_max_bytes.and_then(|bytes| i64::try_from(bytes).ok()) else { return };
    let at_least = |key: &str, bytes: i64| find(key).map_or(bytes, |key| key.kind.at_least(bytes));
    let mut lower = |key: &str, bytes: i64| {
        if bytes_of(layer, key).is_some_and(|default_bytes| bytes < default_bytes) {
            let origin = format!("default in {} of memory (cgroup)", format_bytes(max_bytes));
            layer.insert(key.to_owned(), Setting { value: bytes.to_string().into(), origin });
        }
    };
    let limit_bytes = at_least("memory.limit_bytes", memory::limit_within(max_bytes));
    lower("memory.limit_bytes", limit_bytes);
    lower("flush.bytes_max", memory::batch(limit_bytes));
}

fn from_file(sources: &Sources, problems: &mut Vec<Problem>) -> Settings {
    let mut layer = Settings::new();
    let Some((path, named_by)) = file_path(sources) else {
        return layer;
    };
    match fs::read_to_string(&path).map_err(|e| e.to_string()).and_then(|text| parse_toml(&text)) {
        Ok(table) => flatten("", table, &format!("file {}", path.display()), &mut layer),
        Err(reason) => problems.push(Problem {
            key: format!("file {}", path.display()),
            value: None,
            origin: named_by.into(),
            reason: format!("cannot be read: {reason}"),
        }),
    }
    layer
}

fn file_path(sources: &Sources) -> Option<(PathBuf, &'static str)> {
    if let Some(path) = &sources.file {
        return Some((path.clone(), "flag --config"));
    }
    if let Some(path) = sources.env.get(ENV_FILE).filter(|path| !path.is_empty()) {
        return Some((path.into(), "environment TALLYHOUSE_CONFIG"));
    }
    let path = Path::new(DEFAULT_FILE);
    path.exists().then(|| (path.to_owned(), "found in the working directory"))
}

/// The parser's own message quotes the faulty line, which may hold a password. So the error names only the place.
fn parse_toml(text: &str) -> Result<Table, String> {
    text.parse::<Table>().map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(0, |before| before.matches('\n').count() + 1);
        format!("line {line}: {}", error.message())
    })
}

fn flatten(prefix: &str, table: Table, origin: &str, layer: &mut Settings) {
    for (name, value) in table {
        let key = format!("{prefix}{name}");
        match value {
            Value::Table(inner) => flatten(&format!("{key}."), inner, origin, layer),
            value => {
                layer.insert(key, Setting { value, origin: origin.to_owned() });
            }
        }
    }
}

fn from_environment(env: &BTreeMap<String, String>) -> Settings {
    let ours = env.iter().filter_map(|(name, text)| Some((name, name.strip_prefix(ENV_PREFIX)?, text)));
    ours.map(|(name, rest, text)| {
        let key = rest.to_ascii_lowercase().replace("__", ".");
        let key = match key.strip_prefix(PROPERTY_PREFIX) {
            Some(property) => format!("{PROPERTY_PREFIX}{}", property.replace('_', ".")),
            None => key,
        };
        (key, Setting { value: text.as_str().into(), origin: format!("environment {name}") })
    })
    .collect()
}

/// Reports variables that would be a key if their underscores were doubled. It ignores names that could be another program's,
/// such as `TALLYHOUSE_SERVICE_HOST` of Kubernetes.
fn misspelt_variables(env: &BTreeMap<String, String>, problems: &mut Vec<Problem>) {
    let ours = |name: &str| name.strip_prefix(ENV_PREFIX).is_none().then(|| meant(name)).flatten();
    for (name, meant) in env.keys().filter_map(|name| Some((name, ours(name)?))) {
        // If both are set, the right one counts.
        if !env.contains_key(&meant) {
            problems.push(Problem {
                key: name.clone(),
                value: None,
                origin: "environment".into(),
                reason: format!("is not read: the name is {meant}, with two underscores before and between its parts"),
            });
        }
    }
}

/// Returns the variable of the key that a name with single underscores means.
fn meant(name: &str) -> Option<String> {
    let name = name.strip_prefix("TALLYHOUSE_")?.to_ascii_uppercase();
    if let Some(property) = name.replace("__", "_").strip_prefix("KAFKA_PROPERTIES_") {
        return Some(format!("{ENV_PREFIX}KAFKA__PROPERTIES__{property}"));
    }
    let key = keys().find_map(|key| {
        let variable = key.name.to_ascii_uppercase().replace('.', "__");
        let file = matches!(key.kind, Kind::Secret).then(|| format!("{variable}_FILE"));
        [Some(variable), file]
            .into_iter()
            .flatten()
            .find(|variable| variable.replace("__", "_") == name.replace("__", "_"))
    });
    key.map(|key| format!("{ENV_PREFIX}{key}"))
}

/// Reads the flags. It refuses a secret among them: everybody who may list processes has read it.
fn from_flags(flags: &[FlagValue], problems: &mut Vec<Problem>) -> Settings {
    let mut layer = Settings::new();
    for FlagValue { key, value, flag } in flags {
        let origin = format!("flag {flag}");
        if holds_secret(key) && !value.is_empty() {
            let named = find(key).map_or(String::new(), |key| {
                let variable = key.name.to_ascii_uppercase().replace('.', "__");
                format!(" as {ENV_PREFIX}{variable}, or the path of its file as {}_file", key.name)
            });
            let reason = format!(
                "a command line shows in the process list: give it in the environment{named}, or in the configuration file"
            );
            problems.push(Problem { key: key.clone(), value: None, origin, reason });
            continue;
        }
        layer.insert(key.clone(), Setting { value: value.as_str().into(), origin });
    }
    layer
}

fn holds_secret(key: &str) -> bool {
    match key.strip_prefix(PROPERTY_PREFIX) {
        Some(property) => is_secret(property),
        None => find(key).is_some_and(|key| matches!(key.kind, Kind::Secret)),
    }
}

/// Replaces `<secret>_file = "path"` by the secret in that file.
fn read_secret_files(layer: &mut Settings, problems: &mut Vec<Problem>) {
    for key in keys().filter(|key| matches!(key.kind, Kind::Secret)) {
        let file_key = format!("{}_file", key.name);
        let Some(Setting { value, origin }) = layer.remove(&file_key) else {
            continue;
        };
        if value.as_str() == Some("") {
            continue; // not set, as for any optional key
        }
        let read = match (layer.get(key.name), value.as_str()) {
            (Some(direct), _) => {
                let direct = format!("{} ({})", key.name, direct.origin);
                Err(format!("give either {direct} or {file_key}, not both"))
            }
            (None, None) => Err("must be the path of a file".into()),
            (None, Some(path)) => fs::read_to_string(path)
                .map(|text| (text.trim_end_matches(['\r', '\n']).into(), format!("{origin}, from {path}")))
                .map_err(|error| format!("cannot be read: {error}")),
        };
        match read {
            Ok((value, origin)) => {
                layer.insert(key.name.to_owned(), Setting { value, origin });
            }
            Err(reason) => problems.push(Problem { key: file_key, value: Some(show(&value)), origin, reason }),
        }
    }
}
