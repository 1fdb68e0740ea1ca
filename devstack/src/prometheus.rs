//! A Prometheus server, for the tests of dashboards and alerts.
//!
//! Must never listen on anything but 127.0.0.1.

use crate::{
    cache::Cache,
    data::DataFolder,
    error::{Context, Error, Result},
    fetch, http,
    ports::PortBlock,
    process::{self, Output, Server},
};
use std::{fs, path::Path, process::Command, time::Duration};

/// Time limit for the start. Starting takes well under a second; a machine that also compiles takes longer.
const START_DEADLINE: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(10);

/// A running server. Dropping it kills the server.
#[derive(Debug)]
pub struct Prometheus {
    url: String,
    _server: Server,
    _data: DataFolder,
    _ports: PortBlock,
}

impl Prometheus {
    /// Starts a server that scrapes `target` (`host:port`) every second as the job `tallyhouse`, with the rules of the file `rules`.
    ///
    /// Fails when Prometheus cannot be fetched or is not ready within a minute.
    pub fn start(target: &str, rules: &Path) -> Result<Prometheus> {
        let bin = fetch::prometheus(&Cache::open()?)?;
        let (data, ports) = (DataFolder::make(None)?, PortBlock::reserve()?);
        let config = data.path().join("prometheus.yml");
        let text = format!(
            "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: ['{}']\n\
             scrape_configs: [{{ job_name: tallyhouse, static_configs: [{{ targets: ['{target}'] }}] }}]\n",
            rules.display()
        );
        fs::write(&config, text).context("write", &config)?;
        let address = format!("127.0.0.1:{}", ports.port(0));
        let mut command = Command::new(bin.join("prometheus"));
        command.arg(format!("--config.file={}", config.display())).arg(format!("--web.listen-address={address}"));
        command.arg(format!("--storage.tsdb.path={}", data.path().join("tsdb").display()));
        let url = format!("http://{address}");
        let ready = format!("{url}/-/ready");
        let server = process::spawn("Prometheus", command, Output::Log(data.path().join("server.log")))?
            .with_health(move || get(&ready, &[]).map(drop));
        server.wait_healthy(START_DEADLINE)?;
        Ok(Prometheus { url, _server: server, _data: data, _ports: ports })
    }

    /// Evaluates an expression now and returns the JSON answer. Fails, with Prometheus' own text, when it refuses the
    /// expression.
    pub fn query(&self, expression: &str) -> Result<String> {
        get(&format!("{}/api/v1/query", self.url), &[("query", expression)])
            .map_err(|message| Error::Expression { expression: expression.to_owned(), message })
    }
}

/// Runs `promtool` and returns what it printed. Fails when Prometheus cannot be fetched, or as `promtool` fails.
pub fn promtool(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(fetch::prometheus(&Cache::open()?)?.join("promtool"));
    command.args(arguments);
    process::run(command)
}

fn get(url: &str, query: &[(&str, &str)]) -> Result<String, String> {
    let request = http::agent(TIMEOUT).get(url).query_pairs(query.iter().copied());
    let mut answer = request.call().map_err(|error| error.to_string())?;
    let text = answer.body_mut().read_to_string().map_err(|error| error.to_string())?;
    if answer.status().is_success() { Ok(text) } else { Err(text) }
}
