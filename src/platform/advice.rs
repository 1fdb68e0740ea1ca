//! A problem with its remedy, kept apart so that `check` can show both in their own columns.

use std::fmt;

/// A problem and its remedy. Its text is the problem, then the remedy as a sentence of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The problem, without a full stop.
    pub problem: String,
    /// The next step, if the text knows one.
    pub fix: Option<String>,
}

impl Advice {
    /// Returns the advice for a problem.
    pub fn new(problem: impl Into<String>, fix: impl Into<String>) -> Advice {
        Advice { problem: problem.into(), fix: Some(fix.into()) }
    }

    /// Returns a problem for which no remedy is known.
    pub fn without_fix(problem: impl Into<String>) -> Advice {
        Advice { problem: problem.into(), fix: None }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.fix {
            Some(fix) => write!(f, "{}. {fix}", self.problem),
            None => f.write_str(&self.problem),
        }
    }
}
