//! An address, and the pattern that finds it in any text. Pure.
//!
//! Must never show the address: `Debug` hides it, and no error repeats the given text.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

/// Longest address, in bytes. SMTP allows at most 254.
const BYTES_MAX: usize = 320;

/// Pattern of the place before an address: the text's start, a character that no address has, or the end of an escape
/// (`%3D`, `\u003d`, `\n`).
const BEFORE: &str = r"(?:^|[^\pL\pN._+-]|%[0-9a-f]{2}|\\+u[0-9a-f]{4}|\\[bfnrt])";

/// Pattern of the place after an address: the text's end, or a character that does not continue a domain.
const AFTER: &str = r"(?:$|[^\pL\pN.-]|[.-](?:$|[^\pL\pN]))";

/// An e-mail address as somebody wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct Address(String);

/// The given text is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no address; give it as name@domain, at most {BYTES_MAX} bytes, without control characters")]
pub struct NotAnAddress;

impl Address {
    /// Maximum number of addresses in one go. The pattern of more would be too large for RE2.
    pub const COUNT_MAX: usize = 20;

    /// True if a text has the address in it, in any case.
    pub fn is_in(&self, text: &str) -> bool {
        text.to_lowercase().contains(&self.0.to_lowercase())
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Address, NotAnAddress> {
        let text = text.trim();
        let is_whole = text.split_once('@').is_some_and(|(name, domain)| !name.is_empty() && !domain.is_empty());
        let fits = text.len() <= BYTES_MAX && !text.chars().any(char::is_control);
        (is_whole && fits).then(|| Address(text.to_owned())).ok_or(NotAnAddress)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Address(<hidden>)")
    }
}

/// Returns the spellings by which recipients are looked for, one a line: as given, and in lower case.
pub fn spellings(addresses: &[Address]) -> String {
    let both = addresses.iter().flat_map(|address| [address.0.clone(), address.0.to_lowercase()]);
    both.map(|spelling| spelling + "\n").collect()
}

/// Returns a pattern of RE2 that matches every text with one of these addresses in it, in any case. Each character
/// may stand as itself, as in JSON (`\u0040`, also escaped twice), or as in a URL (`%40`). An address that is only
/// part of a longer one does not match.
pub fn pattern(addresses: &[Address]) -> String {
    let spelled: Vec<String> = addresses.iter().map(|address| address.0.chars().map(any_spelling).collect()).collect();
    format!("(?i){BEFORE}(?:{}){AFTER}", spelled.join("|"))
}

/// Returns the pattern of one character in every spelling.
fn any_spelling(c: char) -> String {
    let mut spellings = if c.is_alphanumeric() { String::from("(?:") } else { String::from(r"(?:\\*") };
    // Punctuation after a backslash stands for itself. A letter would not, and needs no backslash.
    if c.is_ascii() && !c.is_ascii_alphanumeric() {
        spellings.push('\\');
    }
    spellings.push(c);
    let mut cases: Vec<String> = vec![c.to_string(), c.to_lowercase().collect(), c.to_uppercase().collect()];
    cases.sort();
    cases.dedup();
    for text in cases {
        spellings.push('|');
        text.encode_utf16().for_each(|unit| {
            let _ = write!(spellings, r"\\+u{unit:04x}");
        });
        spellings.push('|');
        text.bytes().for_each(|byte| {
            let _ = write!(spellings, "%{byte:02x}");
        });
    }
    spellings + ")"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for text in ["", "person", "@example.com", "person@", "per\nson@example.com", &format!("{}@x", "a".repeat(320))]
        {
            let error = text.parse::<Address>().unwrap_err().to_string();
            assert!(text.is_empty() || !error.contains(text), "{error}");
        }
        let address: Address = " person@example.com ".parse().unwrap();
        assert_eq!(address.0, "person@example.com");
        assert!(!format!("{address:?}").contains("person"));
    }

    #[test]
    fn every_character_stands_for_itself_in_any_spelling() {
        assert_eq!(any_spelling('@'), r"(?:\\*\@|\\+u0040|%40)");
        assert_eq!(any_spelling('a'), r"(?:a|\\+u0041|%41|\\+u0061|%61)");
        assert_eq!(any_spelling('*'), r"(?:\\*\*|\\+u002a|%2a)");
        assert_eq!(any_spelling('ü'), r"(?:ü|\\+u00dc|%c3%9c|\\+u00fc|%c3%bc)");
        assert_eq!(any_spelling('😀'), r"(?:\\*😀|\\+ud83d\\+ude00|%f0%9f%98%80)");
    }
}
