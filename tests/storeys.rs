//! Tests the storeys of the source tree: a module imports only from storeys below its own.

mod files;

use files::files;
use std::fs;
use std::path::{Path, PathBuf};

/// The storeys of `src/` from the lowest to the highest. `tallyhouse-core` lies below all of them: Cargo refuses a circle of crates.
const STOREYS: [&str; 7] = ["config", "platform", "clickhouse", "kafka", "service", "commands", "cli"];
/// Pairs of neighbours that must not import each other, although one is listed first.
const STRANGERS: [(&str, &str); 2] = [("kafka", "clickhouse"), ("commands", "service")];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    files(folder, "rs", &mut found);
    found
}

/// Returns the storeys that a source file names in code. Comments may name any.
fn named(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a source file");
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let words = code.flat_map(|line| line.split("crate::").skip(1).map(str::to_owned));
    words.map(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned()).collect()
}

#[test]
fn no_storey_imports_a_higher_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut seen = 0;
    for (height, storey) in STOREYS.iter().enumerate() {
        for path in sources(&root.join("src").join(storey)) {
            for name in named(&path) {
                let at = STOREYS.iter().position(|known| *known == name);
                let at = at.unwrap_or_else(|| panic!("{} imports crate::{name}, which is no storey", path.display()));
                assert!(at <= height, "{} imports crate::{name}, a higher storey", path.display());
                assert!(!STRANGERS.contains(&(storey, &name)), "{} imports crate::{name}", path.display());
                seen += usize::from(at < height);
            }
        }
    }
    assert!(seen > 100, "only {seen} imports were found");
}

/// The dependencies of the core decide what it can do: none of them has I/O.
#[test]
fn the_core_depends_on_nothing_that_does_io() {
    let manifest = include_str!("../core/Cargo.toml");
    let (_, rest) = manifest.split_once("[dependencies]").expect("dependencies");
    let (dependencies, _) = rest.split_once("\n[").expect("dev-dependencies");
    let names: Vec<&str> =
        dependencies.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name).collect();
    assert_eq!(
        names,
        ["bytes", "chrono", "foldhash", "serde", "serde_json", "simdutf8", "siphasher", "thiserror", "uuid"]
    );
    assert!(!dependencies.contains("clock"), "chrono must not read the clock here");
}

/// A folder's door is its `mod.rs`.
#[test]
fn every_folder_has_its_door_inside() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in sources(&root.join("src")).into_iter().chain(sources(&root.join("core/src"))) {
        let beside = path.with_extension("");
        assert!(!beside.is_dir(), "{} stands beside a folder of its name: move it there as mod.rs", path.display());
    }
}

/// The numbered steps of ARCHITECTURE.md name a file, and a function in it.
#[test]
fn each_step_of_the_architecture_is_a_function() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = include_str!("../ARCHITECTURE.md");
    let mut steps = 0;
    for line in page.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())) {
        let mut quoted = line.split('`').skip(1).step_by(2);
        let (file, function) = (quoted.next().unwrap_or_default(), quoted.next().unwrap_or_default());
        let text = fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{line}: {error}"));
        let starts = ["(", "<"].map(|after| format!("fn {function}{after}"));
        assert!(starts.iter().any(|start| text.contains(start)), "{file} has no function {function}");
        steps += 1;
    }
    assert!(steps > 15, "{steps}");
}
