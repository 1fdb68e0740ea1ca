//! The four layers, flattened to dotted keys and merged, each value with its origin.
//!
//! Reading files is all the I/O there is. It must never judge a value, only find it: whether a value is allowed is the
//! business of `validate`. Settings hold secrets in clear, so they have no `Debug`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::error::Problem;
use super::keys::{Kind, show};
use super::schema::keys;
use super::{FlagValue, Sources};

const ENV_PREFIX: &str = "TALLYHOUSE__";
const ENV_FILE: &str = "TALLYHOUSE_CONFIG";
const DEFAULT_FILE: &str = "tallyhouse.toml";

/// Before each librdkafka property among the keys.
pub(super) const PROPERTY_PREFIX: &str = "kafka.properties.";

/// A value as it was given, and by what.
pub(super) struct Setting {
    pub value: Value,
    pub origin: String,
}

/// Settings by dotted key.
pub(super) type Settings = BTreeMap<String, Setting>;

/// All layers in one: every key of `schema` is there, and whatever else was given.
pub(super) fn merge(sources: &Sources, problems: &mut Vec<Problem>) -> Settings {
    let mut merged = Settings::new();
    let file = from_file(sources, problems);
    for mut layer in [defaults(), file, from_environment(&sources.env), from_flags(&sources.flags)] {
        read_secret_files(&mut layer, problems);
        merged.append(&mut layer);
    }
    merged
}

fn defaults() -> Settings {
    let setting = |text: &str| Setting { value: text.into(), origin: "default".into() };
    keys().map(|key| (key.name.to_owned(), setting(key.default))).collect()
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

/// The parser's own display quotes the line at fault, which may hold a password: only the place is told.
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

fn from_flags(flags: &[FlagValue]) -> Settings {
    let setting = |f: &FlagValue| Setting { value: f.value.as_str().into(), origin: format!("flag {}", f.flag) };
    flags.iter().map(|flag| (flag.key.clone(), setting(flag))).collect()
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
