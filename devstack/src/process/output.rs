//! The files for a child's standard output and error, so that nothing blocks and the end can go into an error.
//!
//! Must never keep a child waiting for a reader.

use crate::error::{Context, Result};
use std::{
    fs,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// Number of a log's last lines that an error shows.
const TAIL_LINES: usize = 30;

/// The destination of a child's standard output and error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Both are appended to this file.
    Log(PathBuf),
    /// Each goes to a temporary file of its own, to be read with `stdout()` and `stderr()`.
    Captured,
}

/// The files behind an [`Output`].
#[derive(Debug)]
pub(super) struct Streams {
    stdout: PathBuf,
    stderr: PathBuf,
    _captured: Option<TempDir>,
}

impl Streams {
    /// Sends the output of every child of `command` to files.
    pub(super) fn attach(output: Output, command: &mut Command) -> Result<Streams> {
        let streams = match output {
            Output::Log(path) => Streams { stdout: path.clone(), stderr: path, _captured: None },
            Output::Captured => {
                let folder = tempfile::tempdir().context("make a temporary folder in", &std::env::temp_dir())?;
                let file = |name| folder.path().join(name);
                Streams { stdout: file("stdout"), stderr: file("stderr"), _captured: Some(folder) }
            }
        };
        command.stdout(open(&streams.stdout)?).stderr(open(&streams.stderr)?);
        Ok(streams)
    }

    pub(super) fn stdout(&self) -> String {
        read(&self.stdout)
    }

    pub(super) fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// Returns the last lines printed.
    pub(super) fn tail(&self) -> String {
        let text = if self.stdout == self.stderr { self.stderr() } else { self.stdout() + &self.stderr() };
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

fn open(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).context("open the log", path)
}

/// Returns the file's text. It is empty when the file cannot be read: the output is an aid, not a result.
fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
