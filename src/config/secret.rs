//! A text that must not be seen: passwords and whatever else may be a credential.
//!
//! It must never print, serialise or compare its way out: the only way to the text is [`Secret::expose`].

use std::fmt;

use serde::Deserialize;

/// A secret text. `Debug` is masked; there is no `Display` and no `Serialize`.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the call that needs it and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether no secret was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(mask(&self.0))
    }
}

/// What is shown in the place of a secret text.
pub(super) fn mask(text: &str) -> &'static str {
    if text.is_empty() { "(empty)" } else { "***" }
}
