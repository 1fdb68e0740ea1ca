//! The pages of `docs/`, inside the program: `tallyhouse explain CODE` prints one where no repository is at hand.
//!
//! Messages name a code and never a path, because an image has no `docs/`. Must never do I/O: every page is part of
//! the binary. `tests/docs.rs` keeps [`PAGES`] the same as the folder, and proves that each code has a page.

use std::fmt::Write as _;

/// Each page's path below `docs/`, without `.md`, and its text.
macro_rules! pages {
    ($($path:literal)+) => {
        /// Every page of `docs/`, in the order of `docs/SUMMARY.md`: its path without `.md`, and its text.
        pub const PAGES: &[(&str, &str)] =
            &[$(($path, include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/", $path, ".md")))),+];
    };
}

pages! {
    "start"
    "deploy"
    "check"
    "status"
    "runbooks/README"
    "runbooks/TallyhouseDedupHeadroomLow"
    "runbooks/TallyhouseLagGrowing"
    "runbooks/TallyhouseLagHigh"
    "runbooks/TallyhouseMemoryNearLimit"
    "runbooks/TallyhouseNoMembers"
    "runbooks/TallyhouseNotFresh"
    "runbooks/TallyhouseNotReady"
    "runbooks/TallyhouseOffsetGaps"
    "runbooks/TallyhouseOpenTransaction"
    "runbooks/TallyhousePartitionStopped"
    "runbooks/TallyhousePartitionsUnassigned"
    "runbooks/TallyhouseRebalances"
    "runbooks/TallyhouseRejects"
    "runbooks/TallyhouseReplicaTrouble"
    "runbooks/TallyhouseRetries"
    "stops/README"
    "stops/retention_gap"
    "stops/intent_gone"
    "stops/ahead_of_log"
    "stops/bad_metadata"
    "stops/topic_recreated"
    "stops/conflict"
    "stops/rebuilt_differs"
    "stops/replay_too_large"
    "stops/sink_behind"
    "stops/other_cluster"
    "stops/not_shown"
    "stops/insert_too_large"
    "audit"
    "mapping"
    "rejects"
    "replay"
    "report"
    "privacy"
    "upgrade"
    "compatibility"
    "exactness"
    "limits"
    "performance"
    "reliability"
    "librdkafka-coordinator-request"
    "librdkafka-left-behind"
    "configuration"
    "metrics"
    "commands"
    "json"
}

/// The subject that a code belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A reason why a partition stops.
    Stop,
    /// A reason why a record is rejected.
    Reject,
    /// An alert of Prometheus.
    Alert,
    /// A finding of `tallyhouse audit`.
    Finding,
    /// A check of `tallyhouse check`.
    Check,
    /// A whole page of the documentation.
    Page,
}

impl Kind {
    const ALL: [(Kind, &str); 6] = [
        (Kind::Stop, "Reasons why a partition stops"),
        (Kind::Reject, "Reasons why a record is rejected"),
        (Kind::Alert, "Alerts"),
        (Kind::Finding, "Findings of tallyhouse audit"),
        (Kind::Check, "Checks of tallyhouse check"),
        (Kind::Page, "Pages"),
    ];
}

/// A code with its line in the list and its text.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The word to ask for.
    pub code: String,
    /// The subject of the code.
    pub kind: Kind,
    /// Summary in one line.
    pub summary: String,
    text: String,
}

/// A code that no page explains.
#[derive(Debug, thiserror::Error)]
#[error("no page explains {code:?}. Did you mean {}? `tallyhouse explain` lists all codes", nearest.join(", "))]
pub struct UnknownCode {
    code: String,
    /// The codes that resemble it most, the best first.
    nearest: Vec<String>,
}

/// Number of names that the answer to an unknown code lists.
const NEAREST_COUNT: usize = 3;
/// Maximum length of a line of the list, in characters.
const LINE_CHARS_MAX: usize = 118;

/// Returns every code that [`explain`] knows.
pub fn entries() -> Vec<Entry> {
    let mut entries: Vec<Entry> = PAGES.iter().map(|&(path, text)| page(path, text)).collect();
    entries.extend(rejects());
    entries.extend(findings());
    entries.extend(checks());
    entries
}

/// Returns the text of a code: its page, its section or its row. A word that is a code and a page gets both.
///
/// # Errors
/// The code is unknown.
pub fn explain(code: &str) -> Result<String, UnknownCode> {
    let entries = entries();
    let found: Vec<&str> =
        entries.iter().filter(|entry| entry.code.eq_ignore_ascii_case(code)).map(|entry| entry.text.as_str()).collect();
    if found.is_empty() {
        return Err(unknown(code, &entries));
    }
    Ok(found.join("\n"))
}

/// Returns all codes by subject, each with one line.
pub fn list() -> String {
    let entries = entries();
    let width = entries.iter().map(|entry| entry.code.len()).max().unwrap_or_default();
    let mut text = "`tallyhouse explain CODE` prints the page of one of these.\n".to_owned();
    for (kind, title) in Kind::ALL {
        let _ = writeln!(text, "\n{title}");
        for Entry { code, summary, .. } in entries.iter().filter(|entry| entry.kind == kind) {
            let line = shortened(&format!("  {code:width$}  {summary}"));
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

fn unknown(code: &str, entries: &[Entry]) -> UnknownCode {
    let wanted = code.to_lowercase();
    let likeness = |entry: &Entry| strsim::jaro_winkler(&wanted, &entry.code.to_lowercase());
    let mut nearest: Vec<&Entry> = entries.iter().collect();
    nearest.sort_by(|one, other| likeness(other).total_cmp(&likeness(one)));
    let mut names: Vec<String> = nearest.into_iter().map(|entry| entry.code.clone()).collect();
    names.dedup();
    names.truncate(NEAREST_COUNT);
    UnknownCode { code: code.to_owned(), nearest: names }
}

fn page(path: &str, text: &str) -> Entry {
    let folder = path.split_once('/').map_or("", |(folder, _)| folder);
    let code = code_of(path);
    let kind = match folder {
        _ if path.ends_with("/README") => Kind::Page,
        "stops" => Kind::Stop,
        "runbooks" => Kind::Alert,
        _ => Kind::Page,
    };
    let heading = text.lines().next().unwrap_or_default().trim_start_matches("# ");
    let summary = match kind {
        Kind::Stop => heading.split_once(": ").map_or(heading, |(_, rest)| rest),
        Kind::Alert => text.lines().skip_while(|line| *line != "## What it means").nth(2).unwrap_or_default(),
        _ => heading,
    };
    Entry { code: code.to_owned(), kind, summary: plain(summary), text: with_codes(text, folder) }
}

/// Returns the code of a page: `conflict` for `stops/conflict`, and `stops` for `stops/README`.
fn code_of(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((folder, "README")) => folder,
        Some((_, name)) => name,
        None => path,
    }
}

fn text_of(path: &str) -> &'static str {
    PAGES.iter().find(|(name, _)| *name == path).map_or("", |(_, text)| text)
}

/// Returns the rows of the table of reasons, each as a page of its own.
fn rejects() -> Vec<Entry> {
    let rows = text_of("rejects").lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    rows.filter_map(|row| match row.split(" | ").collect::<Vec<_>>()[..] {
        [code, what, example, remedy] => {
            let code = code.trim_end_matches('`').to_owned();
            let text = format!(
                "# `{code}`: a reason why a record is rejected\n\n{}.\n\nExample: {example}\n\n## Do\n\n{}.\n\n\
                 `tallyhouse explain rejects` has all reasons, and what is read.\n",
                capitalized(what),
                capitalized(remedy)
            );
            Some(Entry { code, kind: Kind::Reject, summary: plain(what), text: with_codes(&text, "") })
        }
        _ => None,
    })
    .collect()
}

/// Returns the sections of the page on audits. One section may explain two codes.
fn findings() -> Vec<Entry> {
    let sections = text_of("audit").split("\n### ").skip(1);
    let mut entries = Vec::new();
    for section in sections {
        let section = section.split("\n## ").next().unwrap_or_default();
        let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
        let first = body.trim().lines().next().unwrap_or_default();
        for code in heading.split(", ") {
            let text = format!("# `{code}`: a finding of `tallyhouse audit`\n\n{}\n", body.trim());
            let entry = Entry {
                code: code.to_owned(),
                kind: Kind::Finding,
                summary: plain(first),
                text: with_codes(&text, ""),
            };
            entries.push(entry);
        }
    }
    entries
}

/// Returns the rows of the table of checks. One row may explain two codes.
fn checks() -> Vec<Entry> {
    let rows = text_of("check").lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    rows.filter_map(|row| row.split_once(" | "))
        .flat_map(|(codes, what)| {
            codes.split(", ").map(move |code| {
                let code = code.trim_matches('`').to_owned();
                let text = format!("# `{code}`: a check of `tallyhouse check`\n\n{}.\n", capitalized(what));
                Entry { code, kind: Kind::Check, summary: plain(what), text: with_codes(&text, "") }
            })
        })
        .collect()
}

/// Returns a page for the terminal: `[text](page.md#part)` becomes the text and the command that prints the page.
fn with_codes(page: &str, folder: &str) -> String {
    let mut text = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(at) = rest.find("](") {
        let (before, link) = rest.split_at(at);
        let Some((target, after)) = link[2..].split_once(')') else { break };
        let path = target.split('#').next().unwrap_or_default();
        let Some((opening, named)) = before.rfind('[').zip(path.strip_suffix(".md")) else {
            text.push_str(before);
            text.push_str("](");
            rest = &link[2..];
            continue;
        };
        let named = match named.trim_start_matches("../") {
            "README" => folder,
            other => code_of(other),
        };
        let _ = write!(text, "{}{} (`tallyhouse explain {named}`)", &before[..opening], &before[opening + 1..]);
        rest = after;
    }
    text + rest
}

/// Returns the text without Markdown's marks.
fn plain(text: &str) -> String {
    with_codes(text, "").replace(['`', '*'], "")
}

fn capitalized(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn shortened(line: &str) -> String {
    if line.chars().count() <= LINE_CHARS_MAX {
        return line.to_owned();
    }
    let cut: String = line.chars().take(LINE_CHARS_MAX - 1).collect();
    let end = cut.rfind(' ').unwrap_or(cut.len());
    format!("{}…", cut[..end].trim_end_matches([',', ':', ';']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_become_commands() {
        let page = "See [all](README.md#after), [limits](../limits.md#marks), ![a picture](images/a.svg), [a site](https://a.b).";
        let wanted = "See all (`tallyhouse explain stops`), limits (`tallyhouse explain limits`), ![a picture](images/a.svg), \
                      [a site](https://a.b).";
        assert_eq!(with_codes(page, "stops"), wanted);
    }

    #[test]
    fn an_unknown_code_gets_the_nearest_ones() {
        let error = explain("conflct").unwrap_err();
        assert_eq!(error.nearest[0], "conflict");
        assert!(error.to_string().contains("\"conflct\"") && error.nearest.len() == NEAREST_COUNT, "{error}");
        assert!(explain("tallyhousenotready").unwrap().starts_with("# TallyhouseNotReady"));
    }

    #[test]
    fn a_row_and_a_section_are_pages() {
        let reject = explain("bad_uuid").unwrap();
        assert!(reject.contains("is not a UUID.") && reject.contains("## Do"), "{reject}");
        let finding = explain("expired_days").unwrap();
        assert!(finding.starts_with("# `expired_days`") && finding.contains("tallyhouse explain privacy"), "{finding}");
        let both = explain("configuration").unwrap();
        assert!(both.contains("a check of `tallyhouse check`") && both.contains("| key |"), "{both}");
    }

    #[test]
    fn lines_of_the_list_are_short() {
        for line in list().lines() {
            assert!(line.chars().count() <= LINE_CHARS_MAX, "{line}");
        }
    }
}
