//! Retired words, each with its replacement, and the form of comments and sentences. CONTRIBUTING.md has the rule on prose.
//!
//! The source is searched whole: `--help`, errors and the log are texts in it.

mod files;

use files::files;
use std::fs;
use std::path::{Path, PathBuf};

/// Names that no type, function, module or constant may have again, each with the name that took its place.
const NAMES: [(&str, &str); 26] = [
    ("Seen", "Outcome"),
    ("Glance", "WindowSnapshot"),
    ("Held", "ReservedBatch; the simulation's own `Held` stays"),
    ("Turn", "PollState, FlushSlot"),
    ("Fetched", "FetchQueue"),
    ("Trouble", "ClientErrors"),
    ("Told", "MemberAnswer"),
    ("Untold", "NotReported"),
    ("Say", "ProgressFn"),
    ("Of", "ConfigResource, Statements"),
    ("told", "message, describe, answer"),
    ("in_words", "describe_error"),
    ("group_in_words", "describe_group_error"),
    ("dead_letter_in_words", "describe_dead_letter_error"),
    ("observe", "on_outcome"),
    ("obey", "handle_commands"),
    ("obey_one", "handle_command"),
    ("admitted", "clear_access_error"),
    ("tell_reader", "send_to_reader"),
    ("take_over", "redirect"),
    ("in_answer", "from_error"),
    ("hurried", "with_timeout"),
    ("patiently", "retry_until"),
    ("see_files", "check_tls_files"),
    ("read_slowly", "decode_json"),
    ("happen", "apply"),
];

/// Words that the source, help, README, runbooks and pages for operators do not use, each with a plain one.
const PROSE: [(&str, &str); 10] = [
    ("so many", "this number of"),
    ("mend", "fix, repair"),
    ("mends", "fixes"),
    ("anew", "again; the flag --count-anew stays"),
    ("alike", "the same, together"),
    ("told", "reported, sent"),
    ("whoever", "the member that"),
    ("for good", "permanently"),
    ("come to be", "appear"),
    ("comes to be", "appears"),
];

/// Comments that open with one of these words, at most.
const OPENINGS_MAX: usize = 9;

/// Most words of a sentence.
const WORDS_MAX: usize = 25;

/// Folders whose comments are checked.
const SOURCE: [&str; 4] = ["src", "core/src", "devstack", "benches"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn found(places: &[&str], ending: &str) -> Vec<(PathBuf, String)> {
    let mut paths = Vec::new();
    places.iter().for_each(|place| files(&root().join(place), ending, &mut paths));
    assert!(!paths.is_empty(), "{places:?}");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).expect("text"))).collect()
}

fn is_word(line: &str, at: usize, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let (before, after) = (&line[..at], &line[at + word.len()..]);
    !before.ends_with(is_part) && !after.starts_with(is_part)
}

#[test]
fn no_retired_name_is_defined_again() {
    let mut old = Vec::new();
    for (path, text) in found(&["src", "core/src"], "rs") {
        for (number, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let defined = words
                .windows(2)
                .filter(|pair| ["fn", "struct", "enum", "type", "trait", "mod", "const", "static"].contains(&pair[0]));
            for pair in defined.filter(|_| !line.trim_start().starts_with("//")) {
                let retired = NAMES.iter().find(|(name, _)| *name == pair[1]);
                let stays = pair[1] == "Held" && path.ends_with("simulation/world/mod.rs");
                old.extend(
                    retired
                        .filter(|_| !stays)
                        .map(|(name, new)| format!("{}:{}: {name}; say {new}", path.display(), number + 1)),
                );
            }
        }
    }
    assert!(old.is_empty(), "{}", old.join("\n"));
}

#[test]
fn no_retired_word_is_in_the_source_or_in_pages_for_operators() {
    let mut pages =
        found(&["README.md", "docs/runbooks", "docs/stops", "docs/commands.md", "docs/configuration.md"], "md");
    pages
        .extend(found(&["docs/metrics.md", "docs/check.md", "docs/status.md", "docs/audit.md", "docs/start.md"], "md"));
    pages.extend(found(&["deploy/prometheus/alerts.yml"], "yml"));
    pages.extend(found(&["src", "core/src"], "rs"));
    let mut old = Vec::new();
    for (path, text) in pages {
        for (number, line) in text.lines().map(str::to_lowercase).enumerate() {
            for (word, new) in PROSE {
                let mut uses = line.match_indices(word).filter(|(at, _)| is_word(&line, *at, word));
                old.extend(uses.next().map(|_| format!("{}:{}: {word}; say {new}", path.display(), number + 1)));
            }
        }
    }
    assert!(old.is_empty(), "{}", old.join("\n"));
}

/// A comment that opens so is a noun clause, where the reader looks for a sentence.
#[test]
fn few_comments_open_with_a_noun_clause() {
    let mut openings = Vec::new();
    for (path, text) in found(&["src", "core/src", "devstack", "tests", "benches", "examples"], "rs") {
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            let comment = ["/// ", "//! ", "// "].iter().find_map(|start| line.strip_prefix(start));
            let first = comment.and_then(|comment| comment.split(' ').next()).unwrap_or_default();
            if ["What", "Whether", "How"].contains(&first) {
                openings.push(format!("{}:{}", path.display(), number + 1));
            }
        }
    }
    assert!(openings.len() <= OPENINGS_MAX, "{}:\n{}", openings.len(), openings.join("\n"));
}

/// Returns the text of a line that is a comment, without its slashes.
fn comment(line: &str) -> Option<&str> {
    ["///", "//!", "//"].iter().find_map(|start| line.trim_start().strip_prefix(start)).map(str::trim)
}

/// Returns the paragraphs of a text with the number of their first line. `None` is a line without prose. Headings, tables, pictures
/// and blocks of code are left out.
fn paragraphs<'a>(lines: impl Iterator<Item = Option<&'a str>>) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let (mut is_open, mut is_fenced) = (false, false);
    for (number, line) in lines.enumerate() {
        let is_fence = line.is_some_and(|line| line.starts_with("```"));
        is_fenced = line.is_some() && is_fenced != is_fence;
        let prose = line.filter(|line| !is_fence && !is_fenced && !line.is_empty());
        let Some(prose) = prose.filter(|line| !line.starts_with(['|', '#', '<', '!']) && !line.contains(['─', '│']))
        else {
            is_open = false;
            continue;
        };
        let (first, rest) = prose.split_once(' ').unwrap_or((prose, ""));
        let is_item = ["-", "*"].contains(&first) || first.strip_suffix('.').is_some_and(|n| n.parse::<u32>().is_ok());
        match found.last_mut().filter(|_| is_open && !is_item) {
            Some((_, paragraph)) => *paragraph += &format!(" {prose}"),
            None => found.push((number + 1, if is_item { rest } else { prose }.to_owned())),
        }
        is_open = true;
    }
    found
}

/// Returns the numbers of words of a paragraph's sentences. A code span is one word.
fn sentence_lengths(paragraph: &str) -> Vec<usize> {
    let outside = paragraph.split('`').enumerate().map(|(part, text)| if part % 2 == 0 { text } else { "code" });
    let mut lengths = vec![0];
    for word in outside.collect::<String>().split_whitespace() {
        *lengths.last_mut().expect("one at least") += usize::from(word.contains(char::is_alphanumeric));
        if word.trim_end_matches(['"', ')', '*', '_', ']']).ends_with(['.', '!', '?']) {
            lengths.push(0);
        }
    }
    lengths
}

#[test]
fn no_doc_comment_is_too_short_to_say_more_than_a_name() {
    let mut short = Vec::new();
    for (path, text) in found(&SOURCE, "rs") {
        let is_doc = |line: &str| ["///", "//!"].iter().any(|start| line.trim_start().starts_with(start));
        let lines: Vec<&str> = text.lines().collect();
        let mut at = 0;
        for block in lines.chunk_by(|one, next| is_doc(one) == is_doc(next)) {
            let words: usize = block.iter().filter_map(|line| comment(line)).map(|line| line.split(' ').count()).sum();
            if is_doc(block[0]) && words <= 3 {
                short.push(format!("{}:{}: {}", path.display(), at + 1, block[0].trim()));
            }
            at += block.len();
        }
    }
    assert!(short.is_empty(), "{}:\n{}", short.len(), short.join("\n"));
}

#[test]
fn sentences_are_short() {
    assert_eq!(sentence_lengths("Two words. A `code span of words` (in brackets.) And"), [2, 4, 1]);
    let pages = ["docs", "README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "SECURITY.md", "CHANGELOG.md"];
    let pages =
        found(&pages, "md").into_iter().map(|(path, text)| (path, paragraphs(text.lines().map(|l| Some(l.trim())))));
    let comments = found(&SOURCE, "rs").into_iter().map(|(path, text)| (path, paragraphs(text.lines().map(comment))));
    let mut long = Vec::new();
    for (path, paragraphs) in pages.chain(comments) {
        for (number, paragraph) in paragraphs {
            for words in sentence_lengths(&paragraph).into_iter().filter(|words| *words > WORDS_MAX) {
                long.push(format!("{}:{number}: {words} words", path.display()));
            }
        }
    }
    assert!(long.is_empty(), "{}:\n{}", long.len(), long.join("\n"));
}
