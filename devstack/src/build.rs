//! Builds the programs that a demo, chaos or a benchmark runs.

use crate::error::{Context, Error, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds targets of the `tallyhouse` package with the cargo at hand, such as `["--release", "--bin", "tallyhouse"]`.
/// Returns the path of the program `tallyhouse`: beside this one, if both are of the same profile.
///
/// Fails when cargo cannot be started, or the build fails. Cargo has then printed the reason.
pub fn tallyhouse(arguments: &[&str]) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--quiet", "--package", "tallyhouse"]).args(arguments);
    let status = command.current_dir(env!("CARGO_MANIFEST_DIR")).status().context("start", Path::new(&cargo))?;
    if !status.success() {
        return Err(Error::Build { arguments: arguments.join(" ") });
    }
    let program = std::env::current_exe().context("find", Path::new("this program"))?;
    Ok(program.with_file_name("tallyhouse"))
}
