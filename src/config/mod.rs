//! Turns four layers of text into one typed, valid [`Config`], with the origin of every value.
//!
//! ```text
//! defaults  ->  TOML file  ->  environment TALLYHOUSE__SECTION__KEY  ->  flags      (later wins)
//! ```
//!
//! [`load`] reads the configuration file and the secret files that it names. Everything else is a pure function of [`Sources`].
//! It must never read the process's environment or arguments itself. It must never show a secret in an error, a `Debug` or
//! [`Resolved::explain`]. It must never let a value through that the rest of the program would have to check.
//!
//! A library such as `figment` merges layers too. It ends at the first error, and [`load`] names all problems at once. It has no
//! place for a key's help, from which the pages and the example are written.

mod error;
mod explain;
mod kafka_properties;
mod keys;
mod layers;
mod lifecycle;
mod mapping;
pub mod memory;
pub mod pace;
mod schema;
mod secret;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use tallyhouse_core::days::SECONDS_PER_DAY;
use tallyhouse_core::decode::TimeBounds;

pub use error::{ConfigError, Problem};
pub use kafka_properties::{SYSTEM_AUTHORITIES, keys_named_in};
pub use keys::{Key, Kind};
pub use schema::{
    Admin, Assignment, ClickHouse, Compression, Config, Decode, Flush, GroupProtocol, Kafka, Log, LogFormat, Mapping,
    Mechanism, Memory, OtherIds, Preset, Rebalance, Retry, Sasl, Security, Shutdown, Tls, Topics, keys,
};
pub use secret::Secret;

/// The sources of a configuration.
#[derive(Default)]
pub struct Sources {
    /// File named by `--config`. Without it: `TALLYHOUSE_CONFIG`, otherwise `tallyhouse.toml` in the working directory if it
    /// exists.
    pub file: Option<PathBuf>,
    /// Environment variables. Only `TALLYHOUSE_CONFIG` and names that begin with `TALLYHOUSE__` are read.
    pub env: BTreeMap<String, String>,
    /// Values given on the command line, in order; the last one wins.
    pub flags: Vec<FlagValue>,
    /// Memory in bytes that this process may have before the kernel ends it, if a limit is known.
    pub memory_max_bytes: Option<u64>,
}

/// A value given on the command line. It can be parsed from the `KEY=VALUE` of `--set`.
#[derive(Clone)]
pub struct FlagValue {
    /// Dotted key, such as `kafka.brokers`.
    pub key: String,
    /// Value as text, not yet parsed.
    pub value: String,
    /// Flag that gave it, such as `--set`; named as the origin.
    pub flag: String,
}

impl FromStr for FlagValue {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
        Ok(FlagValue { key: key.trim().into(), value: value.into(), flag: "--set".into() })
    }
}

/// A valid configuration, with the origin of each of its values.
#[derive(Debug)]
pub struct Resolved {
    /// Values of the configuration.
    pub config: Config,
    rows: Vec<explain::Row>,
}

impl Config {
    /// Returns the bounds for the times of events, in seconds around the Kafka record's own timestamp.
    pub fn time_bounds(&self) -> TimeBounds {
        let seconds = |days: u32| i64::from(days) * i64::from(SECONDS_PER_DAY);
        TimeBounds {
            past_seconds_max: seconds(self.decode.past_days_max),
            future_seconds_max: seconds(self.decode.future_days_max),
        }
    }
}

/// Merges, checks and types the configuration. It reports all problems at once.
pub fn load(sources: &Sources) -> Result<Resolved, ConfigError> {
    let mut problems = Vec::new();
    let mut settings = layers::merge(sources, &mut problems);
    let config = validate::config(&mut settings, sources.memory_max_bytes, &mut problems);
    match config {
        Some(config) if problems.is_empty() => Ok(Resolved { config, rows: explain::rows(&settings) }),
        _ => Err(ConfigError { problems }),
    }
}
