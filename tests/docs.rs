//! Checks the documents: the site lists every page, no link is dead, and each code that the program prints has a
//! page.
//!
//! Nothing is started here. The anchors of headings are those of GitHub and of mdBook.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod files;

use clap::{Command, CommandFactory as _};
use files::files;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use tallyhouse::cli::Cli;
use tallyhouse::commands::explain::{self, Kind, PAGES};
use tallyhouse_core::decode::reject::Reason;
use tallyhouse_core::protocol::stop::StopReason;

/// Documents beside `docs/`.
const OTHERS: [&str; 6] =
    ["README.md", "ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "examples/django/README.md"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the text outside of fenced code and of code spans, where a link is a link.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            prose.extend(line.split('`').step_by(2));
            prose.push('\n');
        }
    }
    prose
}

fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).filter(|target| !target.contains("://")).collect()
}

/// Returns the anchor of each heading: lower case, without punctuation, dashes for spaces.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let mut anchors = BTreeSet::new();
    for line in text.lines() {
        fenced ^= line.trim_start().starts_with("```");
        let heading = line.trim_start_matches('#');
        if !fenced && heading.len() < line.len() && heading.starts_with(' ') {
            let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            anchors.insert(kept.collect::<String>().to_lowercase().replace(' ', "-"));
        }
    }
    anchors
}

/// Returns why a link of a document leads nowhere.
fn dead(document: &Path, link: &str) -> Option<String> {
    let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
    let target = if path.is_empty() { document.to_owned() } else { document.parent().unwrap().join(path) };
    let Ok(target) = target.canonicalize() else {
        return Some("there is no such file".to_owned());
    };
    if document.starts_with(root().join("docs")) && !target.starts_with(root().join("docs")) {
        return Some("the site has only what is in docs/".to_owned());
    }
    (!anchor.is_empty() && !anchors(&read(&target)).contains(anchor)).then(|| "there is no such heading".to_owned())
}

#[test]
fn no_link_is_dead() {
    let mut documents: Vec<PathBuf> = OTHERS.map(|path| root().join(path)).to_vec();
    files(&root().join("docs"), "md", &mut documents);
    let mut count = 0;
    for document in documents {
        for link in links(&read(&document)) {
            count += 1;
            let reason = dead(&document, &link);
            assert!(reason.is_none(), "{}: {link}: {}", document.display(), reason.unwrap());
        }
    }
    assert!(count > 100, "{count} links were found");
    let readme = root().join("README.md");
    assert!(dead(&readme, "docs/limits.md#marks").is_none());
    assert!(dead(&readme, "docs/limits.md#nothing").is_some() && dead(&readme, "docs/nothing.md").is_some());
}

#[test]
fn the_site_and_the_program_have_every_page() {
    let folder = root().join("docs");
    let listed = links(&read(&folder.join("SUMMARY.md")));
    let mut found = Vec::new();
    files(&folder, "md", &mut found);
    let found: BTreeSet<String> =
        found.iter().map(|path| path.strip_prefix(&folder).unwrap().to_str().unwrap().to_owned()).collect();
    let mut wanted: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(wanted.len(), listed.len(), "docs/SUMMARY.md lists a page twice");
    wanted.insert("SUMMARY.md".to_owned());
    assert_eq!(found, wanted, "docs/SUMMARY.md lists other pages than docs/ has");
    let embedded: Vec<String> = PAGES.iter().map(|(path, _)| format!("{path}.md")).collect();
    assert_eq!(embedded, listed, "src/commands/explain.rs has other pages than docs/SUMMARY.md, or another order");
    let titles: Vec<&str> = PAGES.iter().filter(|(_, text)| !text.starts_with("# ")).map(|(path, _)| *path).collect();
    assert!(titles.is_empty(), "{titles:?} do not begin with a heading");
}

/// Returns the rules' names, from the file that Prometheus loads.
fn alerts() -> Vec<String> {
    let rules = read(&root().join("deploy/prometheus/alerts.yml"));
    rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect()
}

#[test]
fn each_code_has_a_page_that_explain_prints() {
    let entries = explain::entries();
    let of = |kind| entries.iter().filter(move |entry| entry.kind == kind).map(|entry| entry.code.clone());
    assert_eq!(of(Kind::Stop).collect::<Vec<_>>(), StopReason::CODES);
    assert_eq!(of(Kind::Reject).collect::<Vec<_>>(), Reason::ALL.map(Reason::code));
    assert_eq!(of(Kind::Alert).collect::<BTreeSet<_>>(), alerts().into_iter().collect());
    assert!(of(Kind::Finding).count() > 10 && of(Kind::Check).count() > 10);
    for entry in &entries {
        let text = explain::explain(&entry.code).unwrap();
        assert!(text.starts_with("# ") && !entry.summary.is_empty(), "{entry:?}");
        // An image has no docs/, so a page for the terminal must name commands.
        assert!(!prose(&text).contains(".md)"), "{}: {text}", entry.code);
    }
    let list = explain::list();
    for entry in &entries {
        assert!(list.contains(&format!("\n  {} ", entry.code)), "{} is not in the list", entry.code);
    }
}

/// The image has no `docs/`, so messages and help name a code of `tallyhouse explain`.
#[test]
fn no_message_names_a_path_of_the_repository() {
    let mut sources = Vec::new();
    for folder in ["src", "core"].map(|folder| root().join(folder)).iter().filter(|folder| folder.is_dir()) {
        files(folder, "rs", &mut sources);
    }
    assert!(sources.len() > 50);
    for source in sources.iter().filter(|path| !path.ends_with("explain.rs") && !path.ends_with("tests.rs")) {
        let text = read(source);
        let program = text.split("#[cfg(test)]").next().unwrap();
        let tests = source.components().any(|part| part.as_os_str() == "tests");
        let named = program.lines().find(|line| line.contains("docs/") && !line.trim_start().starts_with("//"));
        assert!(tests || named.is_none(), "{}: {}", source.display(), named.unwrap_or_default());
    }
    assert!(!read(&root().join("docs/commands.md")).contains("docs/"), "a help text names a path");
    assert!(!read(&root().join("docs/metrics.md")).contains("docs/"), "a help text of a metric names a path");
}

/// Appends the help of a command and of its subcommands, in the order of `tallyhouse help`.
fn help(command: &mut Command, page: &mut String) {
    let name = command.get_bin_name().unwrap().to_owned();
    let text = command.render_long_help().to_string();
    let text = text.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>();
    write!(page, "\n## {name}\n\n```text\n{}\n```\n", text.trim_end()).unwrap();
    for subcommand in command.get_subcommands_mut().filter(|subcommand| subcommand.get_name() != "help") {
        help(subcommand, page);
    }
}

#[test]
fn the_page_of_commands_is_their_help() {
    let mut program = Cli::command().bin_name("tallyhouse").term_width(100);
    program.build();
    let mut page =
        "# Commands\n\nEach command with its `--help`. `tallyhouse man` has the same as manual pages.\n".to_owned();
    help(&mut program, &mut page);
    let path = root().join("docs/commands.md");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(read(&path) == page, "docs/commands.md is old: run again with UPDATE=1");
}

/// Returns the columns of the view's last definition, each with its type.
fn columns_of(view: &str) -> BTreeSet<(String, String)> {
    let mut migrations = Vec::new();
    files(&root().join("sql/single"), "sql", &mut migrations);
    migrations.sort();
    let sql: String = migrations.iter().map(|path| read(path)).collect();
    let (_, definition) = sql.rsplit_once(&format!(" {{database}}.{view}\n(\n")).unwrap();
    let columns = definition.lines().take_while(|line| *line != ")");
    let column = |line: &str| {
        let (name, rest) = line.trim().split_once(' ').unwrap();
        (name.to_owned(), rest.split_once(" COMMENT").unwrap().0.to_owned())
    };
    columns.map(column).collect()
}

/// Returns the fields of a class in the Django models, as columns.
fn fields_of(models: &str, class: &str) -> BTreeSet<(String, String)> {
    let (_, body) = models.split_once(&format!("\nclass {class}(")).unwrap();
    let fields = body.lines().take_while(|line| !line.starts_with("class ")).filter_map(|line| {
        let (name, field) = line.trim().split_once(" = models.")?;
        let (kind, arguments) = field.split_once("Field(")?;
        let column = if arguments == "null=True)" { format!("Nullable({kind})") } else { kind.to_owned() };
        // A column of times has the zone in its type.
        Some((name.to_owned(), column.replace("DateTime", "DateTime('UTC')")))
    });
    fields.collect()
}

#[test]
fn the_django_models_have_the_columns_of_the_views() {
    let models = read(&root().join("examples/django/reports/models.py"));
    let counts = fields_of(&models, "Counts");
    assert_eq!(counts.len(), 8);
    for (view, class) in [
        ("campaign_daily", "CampaignDaily"),
        ("campaign_report", "CampaignReport"),
        ("workspace_daily", "WorkspaceDaily"),
    ] {
        let fields: BTreeSet<_> = counts.union(&fields_of(&models, class)).cloned().collect();
        assert_eq!(fields, columns_of(view), "{class} and {view}");
    }
    for (view, class) in [
        ("campaign_recipients", "CampaignRecipients"),
        ("campaign_recipients_daily", "CampaignRecipientsDaily"),
        ("campaign_timeline", "CampaignTimeline"),
    ] {
        assert_eq!(fields_of(&models, class), columns_of(view), "{class} and {view}");
    }
}
