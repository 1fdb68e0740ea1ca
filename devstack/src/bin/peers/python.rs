//! A Python that has the packages of `contenders/consumer.py`, in a virtual environment in the cache folder.
//!
//! Must never install anything outside of that folder, nor fail the run: without Python that contender is left out.

use devstack::cache::Cache;
use devstack::{Error, progress};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the folder. It carries a version, to be raised with [`PACKAGES`].
const FOLDER: &str = "python-peers-1";
const PACKAGES: [&str; 2] = ["confluent-kafka==2.16.1", "clickhouse-connect==1.12.0"];

/// Returns the interpreter, or None after a line that says why.
pub fn interpreter() -> Option<PathBuf> {
    let ready = Cache::open().and_then(|cache| {
        cache.ensure(FOLDER, |folder| progress::during("installing the Python consumer's packages", || install(folder)))
    });
    match ready {
        Ok(folder) => Some(folder.join("bin/python")),
        Err(error) => {
            eprintln!("peers: contender e is left out, as Python 3 or its packages cannot be had: {error}");
            None
        }
    }
}

fn install(folder: &Path) -> Result<(), Error> {
    run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    // pip runs as a module: the scripts in bin name the folder, which is renamed once it is complete.
    run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))
}

fn run(command: &mut Command) -> Result<(), Error> {
    let line = format!("{command:?}");
    let output = command.output().map_err(|cause| Error::Io { action: format!("run {line}"), cause })?;
    if output.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::CommandFailed { command: line, status: output.status, output: printed })
}
