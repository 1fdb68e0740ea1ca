//! A text that must not be seen: a password, or anything else that may be a credential.
//!
//! It must never print, serialise or compare its way out: the only way to the text is [`Secret::expose`].
//!
//! The `secrecy` crate also clears the memory. Here librdkafka and the HTTP clients keep copies that nobody clears.

use std::fmt;

use serde::Deserialize;

/// A secret text. `Debug` is masked; there is no `Display` and no `Serialize`.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Returns the text itself, only for the call that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True if no secret was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(mask(&self.0))
    }
}

/// Returns the text that is shown in place of a secret one.
pub(super) fn mask(text: &str) -> &'static str {
    if text.is_empty() { "(empty)" } else { "***" }
}
