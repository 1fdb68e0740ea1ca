//! A condition of a WHERE clause, made of parts that all have to hold. Values are bound, and never part of the text.

use super::client::Statement;
use serde::Serialize;

/// A value of a condition.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// A text that a column equals.
    Text(String),
    /// A list of texts for `IN`.
    Texts(Vec<&'static str>),
    /// A time in milliseconds.
    Time(i64),
    /// One Kafka offset for a comparison.
    Offset(u64),
    /// A list of offsets for `IN`.
    Offsets(Vec<u64>),
}

/// A condition with a `?` for each of its values. Every row meets the empty one.
#[derive(Default)]
pub struct Condition {
    parts: Vec<&'static str>,
    values: Vec<Value>,
}

impl Condition {
    /// Adds a part that has to hold too, with its values.
    pub fn and<const N: usize>(mut self, part: &'static str, values: [Value; N]) -> Condition {
        self.parts.push(part);
        self.values.extend(values);
        self
    }

    /// Adds a part with one text, if there is one.
    pub fn and_text(self, part: &'static str, text: Option<String>) -> Condition {
        match text {
            Some(text) => self.and(part, [Value::Text(text)]),
            None => self,
        }
    }

    /// Returns the text of the condition.
    pub fn sql(&self) -> String {
        if self.parts.is_empty() { "true".to_owned() } else { self.parts.join(" AND ") }
    }

    /// Returns the values, in the order of their `?`.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Binds the values to a statement with this condition. No other `?` may stand before it.
    pub fn bind(self, statement: Statement<'_>) -> Statement<'_> {
        self.values.into_iter().fold(statement, |statement, value| statement.bind(value))
    }
}
