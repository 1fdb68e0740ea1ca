//! Looks for the programs that fetching and running the servers needs, before they are used.
//!
//! Must never install anything.

use crate::{
    error::{Error, Result},
    process,
};
use std::{env, process::Command};

/// Oldest major version of Java for Kafka 4.
const JAVA_NEEDED: u32 = 17;
const JAVA_PACKAGE: &str = "openjdk-17-jre-headless";

/// Fails unless `tool` is on the `PATH`; `package` is the Debian package that holds it.
pub(crate) fn need(tool: &'static str, purpose: &'static str, package: &'static str) -> Result<()> {
    let on_path = env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(tool).is_file()));
    if on_path { Ok(()) } else { Err(Error::ToolMissing { tool, purpose, package }) }
}

/// Fails unless a Java that runs Kafka is on the `PATH`.
pub(crate) fn need_java() -> Result<()> {
    need("java", "to run Kafka", JAVA_PACKAGE)?;
    let mut command = Command::new("java");
    command.arg("--version");
    let printed = match process::run(command) {
        Ok(printed) => printed,
        // Java 8 does not know `--version`, and says so.
        Err(Error::CommandFailed { output, .. }) => output,
        Err(error) => return Err(error),
    };
    let found = printed.lines().next().unwrap_or_default().to_owned();
    if java_major(&found).is_some_and(|major| major >= JAVA_NEEDED) {
        return Ok(());
    }
    Err(Error::JavaTooOld { found, needed: JAVA_NEEDED, package: JAVA_PACKAGE })
}

/// Returns the major version in a line such as `openjdk 17.0.15 2025-04-15`.
fn java_major(line: &str) -> Option<u32> {
    let version = line.split_whitespace().nth(1)?;
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_javas_version() {
        assert_eq!(java_major("openjdk 17.0.15 2025-04-15"), Some(17));
        assert_eq!(java_major("java 21 2023-09-19 LTS"), Some(21));
        assert_eq!(java_major("openjdk 25-ea 2025-09-16"), Some(25));
        assert_eq!(java_major("Unrecognized option: --version"), None);
        assert_eq!(java_major(""), None);
    }

    #[test]
    fn a_missing_tool_says_what_to_install_and_the_way_round() {
        let error = need("no-such-mvn", "to fetch Kafka", "maven").unwrap_err().to_string();
        assert!(error.contains("`no-such-mvn` is needed to fetch Kafka"), "{error}");
        assert!(error.contains("apt-get install maven"), "{error}");
        assert!(error.contains("docker-compose.yml"), "{error}");
        assert!(error.contains("TALLYHOUSE_TEST_KAFKA"), "{error}");
    }
}
