//! The files of the repository, for tests that read them.

use std::path::{Path, PathBuf};

/// Finds every file with this extension at or below a path.
pub fn files(path: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).expect("a folder") {
            files(&entry.expect("an entry").path(), ending, found);
        }
    } else if path.extension().is_some_and(|end| end == ending) {
        found.push(path.to_owned());
    }
}
