//! The faults of a configuration, described for the person who wrote it.
//!
//! A problem must never carry the text of a secret: values are masked before they come here.

use std::fmt;

/// All faults of a configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// The problems, in the order they were found.
    pub problems: Vec<Problem>,
}

/// One fault of a configuration.
#[derive(Debug)]
pub struct Problem {
    /// Name of the key, as it was given.
    pub key: String,
    /// Value, if it may be shown and is informative.
    pub value: Option<String>,
    /// Origin of the value.
    pub origin: String,
    /// Reason for the refusal, and the allowed values.
    pub reason: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "the configuration has {count} problem{}:", if count == 1 { "" } else { "s" })?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, " ({}): {}", self.origin, self.reason)
    }
}
