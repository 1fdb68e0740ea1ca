//! Checks that `deploy/`, `docker-compose.yml` and the `Dockerfile` fit the program: keys, ports, paths, times,
//! memory.
//!
//! Nothing is started here. `deploy/validate` asks the tools that read the files if these are valid.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use clap::Parser;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tallyhouse::cli::{Cli, EXIT_USAGE};
use tallyhouse::config::{self, Config, Sources};

const KUBERNETES: &str = "deploy/kubernetes";
/// Folder in which the pods find their secrets.
const SECRETS: &str = "/run/secrets/tallyhouse";
/// Time limit in ms for leaving the group after `shutdown.grace_ms`: `ANSWER_TIMEOUT` in `src/service/mod.rs`.
const LEAVE_MS: u64 = 5_000;

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn yaml(path: &str) -> Value {
    serde_saphyr::from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("no {pointer} in {value:#}"))
}

fn text(value: &Value, pointer: &str) -> String {
    at(value, pointer).as_str().unwrap_or_else(|| panic!("{pointer} is no text")).to_owned()
}

fn number(value: &Value, pointer: &str) -> u64 {
    at(value, pointer).as_u64().unwrap_or_else(|| panic!("{pointer} is no number"))
}

/// Returns the bytes of `768Mi`, `768m` or `768M`, as Kubernetes, compose and systemd write the binary ones.
fn mebibytes(text: &str) -> usize {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    assert!(["Mi", "m", "M"].contains(&&text[digits.len()..]), "{text}");
    digits.parse::<usize>().unwrap() << 20
}

/// A configuration file and an environment in a folder of their own, which also holds the secrets that they name.
struct Pod {
    folder: tempfile::TempDir,
    env: BTreeMap<String, String>,
}

impl Pod {
    /// Makes the folder. `secrets` are the files below `mounted`.
    fn new(toml: Option<&str>, env: BTreeMap<String, String>, mounted: &str, secrets: &[String]) -> Pod {
        let folder = tempfile::tempdir().unwrap();
        let here = folder.path().to_str().unwrap();
        for secret in secrets {
            std::fs::write(folder.path().join(secret), "secret\n").unwrap();
        }
        let mut env: BTreeMap<_, _> = env.into_iter().map(|(key, value)| (key, value.replace(mounted, here))).collect();
        if let Some(toml) = toml {
            let path = folder.path().join("tallyhouse.toml");
            std::fs::write(&path, toml.replace(mounted, here)).unwrap();
            env.insert("TALLYHOUSE_CONFIG".into(), path.to_str().unwrap().into());
        }
        Pod { folder, env }
    }

    /// Returns the program's configuration. Every key exists, every value is allowed, every secret is there.
    fn config(&self) -> Config {
        let sources = Sources { env: self.env.clone(), file: self.empty_unless_given(), ..Sources::default() };
        config::load(&sources).unwrap_or_else(|error| panic!("{error}")).config
    }

    /// Returns the path of an empty file if there is no file of its own. Otherwise the program could find a
    /// developer's file in the working directory.
    fn empty_unless_given(&self) -> Option<PathBuf> {
        (!self.env.contains_key("TALLYHOUSE_CONFIG")).then(|| {
            let path = self.folder.path().join("empty.toml");
            std::fs::write(&path, "").unwrap();
            path
        })
    }
}

fn container(workload: &Value) -> &Value {
    at(workload, "/spec/template/spec/containers/0")
}

/// Returns the environment of a container. `TALLYHOUSE_CONFIG` is the path of the mounted configuration.
fn environment(workload: &Value) -> BTreeMap<String, String> {
    let list = at(container(workload), "/env").as_array().unwrap();
    let mut env: BTreeMap<_, _> = list.iter().map(|entry| (text(entry, "/name"), text(entry, "/value"))).collect();
    let mounts = at(container(workload), "/volumeMounts").as_array().unwrap();
    let config = mounts.iter().find(|mount| mount["name"] == "config").unwrap();
    assert_eq!(env.remove("TALLYHOUSE_CONFIG").unwrap(), format!("{}/tallyhouse.toml", text(config, "/mountPath")));
    assert!(mounts.iter().any(|mount| mount["name"] == "secrets" && mount["mountPath"] == SECRETS));
    env
}

/// Returns the keys that the overlay's commands put into a secret.
fn keys_of_secret(name: &str) -> Vec<String> {
    let overlay = read(format!("{KUBERNETES}/overlays/example/kustomization.yaml"));
    let commands = overlay.replace("\\\n#", "");
    let start = format!("create secret generic {name} ");
    let command = commands.lines().find(|line| line.contains(&start)).unwrap_or_else(|| panic!("{name} is never made"));
    command.split_whitespace().filter_map(|word| word.strip_prefix("--from-file=")).map(str::to_owned).collect()
}

fn workloads() -> [Value; 2] {
    ["deployment", "migrate"].map(|name| yaml(&format!("{KUBERNETES}/base/{name}.yaml")))
}

/// Returns the configurations that pods start with: members and migrations, of the base and of the example.
fn pods() -> Vec<Config> {
    let mut configs = Vec::new();
    for folder in ["base", "overlays/example"] {
        let toml = read(format!("{KUBERNETES}/{folder}/tallyhouse.toml"));
        for workload in workloads() {
            let volumes = at(&workload, "/spec/template/spec/volumes").as_array().unwrap();
            let secrets = volumes.iter().find(|volume| volume["name"] == "secrets").unwrap();
            let keys = keys_of_secret(&text(secrets, "/secret/secretName"));
            configs.push(Pod::new(Some(&toml), environment(&workload), SECRETS, &keys).config());
        }
    }
    configs
}

fn compose() -> (Value, Config) {
    let compose = yaml("docker-compose.yml");
    let env = at(&compose, "/x-tallyhouse/environment").as_object().unwrap();
    let env = env.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect();
    (compose, Pod::new(None, env, SECRETS, &[]).config())
}

/// Returns the values of a key in the unit, in order.
fn unit(key: &str) -> Vec<String> {
    let unit = read("deploy/systemd/tallyhouse.service");
    let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=').map(str::to_owned));
    lines.collect()
}

fn service() -> Config {
    let assigned = unit("Environment");
    let pairs = assigned.iter().filter_map(|pair| pair.split_once('='));
    let env =
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).filter(|(key, _)| key != "TALLYHOUSE_CONFIG");
    let credentials: Vec<_> =
        unit("LoadCredential").iter().map(|pair| pair.split_once(':').unwrap().0.to_owned()).collect();
    Pod::new(Some(""), env.collect(), "%d", &credentials).config()
}

#[test]
fn every_environment_is_a_valid_configuration() {
    for config in pods() {
        assert!(!config.clickhouse.password.is_empty());
    }
    assert!(!service().clickhouse.password.is_empty());
    let secured = &pods()[2].kafka;
    assert!(secured.tls.enabled && !secured.sasl.password.is_empty());
    compose();
}

#[test]
fn every_command_is_one_of_the_program() {
    let parses = |arguments: &[&str]| {
        let words = ["tallyhouse"].iter().chain(arguments);
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
    };
    let words =
        |value: &Value| value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect();
    let (compose, _) = compose();
    let mut commands: Vec<Vec<String>> =
        workloads().iter().map(|workload| words(&container(workload)["args"])).collect();
    commands.extend(["migrate", "tallyhouse"].map(|name| words(at(&compose, &format!("/services/{name}/command")))));
    for start in unit("ExecStart") {
        commands.push(start.split_whitespace().skip(1).map(str::to_owned).collect());
    }
    assert_eq!(commands.len(), 5);
    for command in commands {
        parses(&command.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn the_endpoint_is_reached_where_it_listens() {
    let [member, _] = workloads();
    let routes = read("src/service/admin/mod.rs");
    let served = |path: &str| assert!(routes.contains(&format!(".route(\"{path}\"")), "{path} is not served");
    let listen = pods()[0].admin.listen;
    assert!(!listen.ip().is_loopback());
    assert_eq!(number(container(&member), "/ports/0/containerPort"), u64::from(listen.port()));
    for probe in ["livenessProbe", "readinessProbe"] {
        served(&text(container(&member), &format!("/{probe}/httpGet/path")));
        assert_eq!(text(container(&member), &format!("/{probe}/httpGet/port")), "admin");
    }
    let service = yaml(&format!("{KUBERNETES}/base/service.yaml"));
    assert_eq!(number(&service, "/spec/ports/0/port"), u64::from(listen.port()));
    let monitor = yaml(&format!("{KUBERNETES}/components/monitoring/servicemonitor.yaml"));
    served(&text(&monitor, "/spec/endpoints/0/path"));
    assert_eq!(text(&monitor, "/spec/endpoints/0/port"), text(&service, "/spec/ports/0/name"));

    let (_, composed) = compose();
    let prometheus = yaml("deploy/prometheus/prometheus.yml");
    let port = number(&prometheus, "/scrape_configs/0/dns_sd_configs/0/port");
    assert!(!composed.admin.listen.ip().is_loopback() && u64::from(composed.admin.listen.port()) == port);
    assert!(read("Dockerfile").contains(&format!("EXPOSE {}", listen.port())));
}

#[test]
fn a_graceful_end_has_the_time_it_needs() {
    let [member, _] = workloads();
    for config in pods() {
        let given_ms = number(&member, "/spec/template/spec/terminationGracePeriodSeconds") * 1_000;
        assert!(given_ms > config.shutdown.grace_ms + LEAVE_MS);
    }
    let (composed, config) = compose();
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u64>().unwrap();
    let given_ms = seconds(&text(&composed, "/services/tallyhouse/stop_grace_period")) * 1_000;
    assert!(given_ms > config.shutdown.grace_ms + LEAVE_MS);
    assert!(seconds(&unit("TimeoutStopSec")[0]) * 1_000 > service().shutdown.grace_ms + LEAVE_MS);
}

#[test]
fn the_memory_limit_leaves_room_above_the_programs_own() {
    let [member, _] = workloads();
    // memory.limit_bytes does not include allocators and the program itself.
    let roomy = |given: &str, config: &Config| {
        assert!(mebibytes(given) * 3 / 4 >= config.memory.limit_bytes, "{given} for {}", config.memory.limit_bytes);
    };
    pods().iter().for_each(|config| roomy(&text(container(&member), "/resources/limits/memory"), config));
    let (composed, config) = compose();
    roomy(&text(&composed, "/services/tallyhouse/mem_limit"), &config);
    roomy(&unit("MemoryMax")[0], &service());
}

#[test]
fn members_and_migrations_are_confined_alike() {
    let [member, migrate] = workloads();
    for pointer in ["/securityContext", "/automountServiceAccountToken", "/serviceAccountName", "/enableServiceLinks"] {
        let pointer = format!("/spec/template/spec{pointer}");
        assert_eq!(at(&member, &pointer), at(&migrate, &pointer));
    }
    assert_eq!(at(container(&member), "/securityContext"), at(container(&migrate), "/securityContext"));
    let user = number(&member, "/spec/template/spec/securityContext/runAsUser");
    assert!(read("Dockerfile").contains(&format!("USER {user}:{user}")));
}

#[test]
fn a_wrong_configuration_is_not_started_again() {
    assert_eq!(unit("RestartPreventExitStatus"), [EXIT_USAGE.to_string()]);
}

#[test]
fn the_operators_rules_are_the_alerts() {
    let indented = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("  {line}\n"));
        lines.collect::<String>()
    };
    let path = format!("{KUBERNETES}/components/monitoring/prometheusrule.yaml");
    let file = read(&path);
    let (_, rules) = file.split_once("\nspec:\n").unwrap();
    assert!(rules == indented(&read("deploy/prometheus/alerts.yml")), "the head of {path} says how to make it again");
}

#[test]
fn what_scales_looks_where_members_read() {
    let folder = format!("{KUBERNETES}/components/autoscaling");
    let scaled = yaml(&format!("{folder}/scaledobject.yaml"));
    let metadata = at(&scaled, "/spec/triggers/0/metadata");
    let all = pods();
    for kafka in [&all[0].kafka, &all[2].kafka] {
        assert_eq!(text(metadata, "/consumerGroup"), kafka.group_id);
        assert_eq!(text(metadata, "/topic"), kafka.topics.events);
    }
    assert_eq!(text(metadata, "/bootstrapServers"), all[0].kafka.brokers);
    let overlay = yaml(&format!("{KUBERNETES}/overlays/example/kustomization.yaml"));
    let patch: Value = serde_saphyr::from_str(&text(&overlay, "/patches/0/patch")).unwrap();
    assert_eq!(text(&patch, "/0/value"), all[2].kafka.brokers);
    // The threshold is C x (A + B), as the file says, with the age of a flush that members have.
    let threshold: u64 = text(metadata, "/lagThreshold").parse().unwrap();
    assert_eq!(threshold, 20_000 * (all[0].flush.age_ms / 1_000 + 10));
    assert!(number(&scaled, "/spec/pollingInterval") * 1_000 > all[0].flush.age_ms);
}

#[test]
fn versions_are_told_alike() {
    let dockerfile = read("Dockerfile");
    let version = env!("CARGO_PKG_VERSION");
    assert!(dockerfile.contains(&format!("org.opencontainers.image.version=\"{version}\"")));
    let overlay = yaml(&format!("{KUBERNETES}/overlays/example/kustomization.yaml"));
    assert_eq!(text(&overlay, "/images/0/newTag"), version);
    assert!(dockerfile.contains(&format!("/tallyhouse:{version} ")));
    let toolchain = read("rust-toolchain.toml");
    let rust = dockerfile.lines().find_map(|line| line.strip_prefix("FROM rust:")?.split('-').next()).unwrap();
    assert!(toolchain.contains(&format!("channel = \"{rust}.")), "the Dockerfile builds with Rust {rust}");
    let (compose, _) = compose();
    let image = |service: &str| text(&compose, &format!("/services/{service}/image"));
    assert_eq!(image("kafka"), format!("apache/kafka:{}", devstack::fetch::KAFKA_VERSION));
    assert_eq!(image("topic"), image("kafka"));
    let clickhouse = image("clickhouse");
    let (_, tag) = clickhouse.split_once(':').unwrap();
    assert!(devstack::fetch::CLICKHOUSE_VERSION.starts_with(&format!("{tag}.")), "{tag}");
}

#[test]
fn compose_builds_an_image_once_keeps_data_and_starts_again() {
    let (compose, _) = compose();
    let services = at(&compose, "/services").as_object().unwrap();
    let mut built = Vec::new();
    let mut volumes = Vec::new();
    for (name, service) in services {
        if !service["build"].is_null() {
            // A service without an image of its own gets one that is named for it.
            built.push(service["image"].as_str().unwrap_or(name));
        }
        let ends = name.ends_with("topic") || name == "migrate";
        let policy = if ends { "on-failure:5" } else { "unless-stopped" };
        assert_eq!(text(service, "/restart"), policy, "{name}");
        let mounted = service["volumes"].as_array().into_iter().flatten().map(|volume| volume.as_str().unwrap());
        volumes.extend(mounted.filter(|volume| !volume.starts_with('.')));
    }
    let (members, migrations) = (&services["tallyhouse"]["image"], &services["migrate"]["image"]);
    assert_eq!(members, migrations);
    built.sort_unstable();
    assert_eq!(built, ["producer", members.as_str().unwrap()], "an image is built by two services, or by none");
    let named = at(&compose, "/volumes").as_object().unwrap();
    for folder in ["/var/lib/kafka/data", "/var/lib/clickhouse", "/prometheus", "/var/lib/grafana"] {
        let (name, _) =
            volumes.iter().find_map(|volume| volume.split_once(':').filter(|(_, at)| *at == folder)).unwrap();
        assert!(named.contains_key(name), "{folder} is kept in no named volume");
    }
    assert_eq!(text(&compose, "/services/kafka/environment/KAFKA_LOG_DIRS"), "/var/lib/kafka/data");
    let plugin = text(&compose, "/services/grafana/environment/GF_PLUGINS_PREINSTALL_SYNC");
    assert!(plugin.starts_with("grafana-clickhouse-datasource@"), "{plugin} has no version");
    for (name, service) in services {
        let tag = service["image"].as_str().and_then(|image| image.rsplit_once(':'));
        assert!(service["image"].is_null() || tag.is_some_and(|(_, tag)| tag != "latest"), "{name} has no fixed tag");
    }
}

#[test]
fn the_image_runs_on_the_debian_that_built_it() {
    let dockerfile = read("Dockerfile");
    let bases: Vec<&str> = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")).collect();
    assert!(bases[0].contains("-trixie ") && bases[1].contains("-debian13:"), "{bases:?}");
}

#[test]
fn grafana_asks_the_database_that_is_written() {
    let (_, config) = compose();
    let sources = yaml("grafana/provisioning/datasources/tallyhouse.yml");
    assert_eq!(text(&sources, "/datasources/1/jsonData/defaultDatabase"), config.clickhouse.database);
    let user = read("sql/grafana_user.sql");
    let grants: Vec<_> = user.lines().filter_map(|line| line.strip_prefix("GRANT SELECT ON ")).collect();
    assert_eq!(grants.len(), 8);
    assert!(grants.iter().all(|grant| grant.starts_with(&format!("{}.", config.clickhouse.database))));
}
