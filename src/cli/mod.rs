//! The command line: the commands of `tallyhouse`, and the texts that explain them.
//!
//! Must never print a secret, and never do work itself: each command calls the module that does it.

mod audit;
mod check;
mod decode;
mod erase;
mod explain;
mod pages;
mod rejects;
mod repair;
mod report;
mod resume;
mod status;

use crate::clickhouse::client::{ClickHouseOptions, Compression};
use crate::clickhouse::error::ClickHouseError;
use crate::clickhouse::retention::{self, Keep, Retention};
use crate::clickhouse::schema::{Form, Schema, SchemaProblem};
use crate::clickhouse::servers::Servers;
use crate::commands::audit::AuditError;
use crate::commands::erase::{Address, EraseError, NotAnAddress};
use crate::commands::explain::UnknownCode;
use crate::commands::rejects::RejectsError;
use crate::commands::repair::RepairError;
use crate::commands::report::depth::rules::RulesError;
use crate::commands::resume::ResumeError;
use crate::config::{self, Config, ConfigError, FlagValue, Resolved, Sources};
use crate::kafka::observer::ANSWER_TIMEOUT;
use crate::platform::cgroup;
use crate::platform::output::{self, Lost};
use crate::platform::signals;
use crate::platform::telemetry;
use crate::service::{self, LeftOpen, RunError};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Exit status for a command line or configuration that cannot be used (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Exit status of an audit that found violations, or of a repair that left violations.
pub const EXIT_VIOLATIONS: u8 = 2;

/// Exit status of a check that failed, or of a status with a problem.
pub const EXIT_WRONG: u8 = 1;

/// Exit status of a command that completed its changes but could not write its output (`EX_IOERR` of sysexits.h).
pub const EXIT_OUTPUT: u8 = 74;

const MIGRATE_LEFT: &str = "statements that were done stay done; run `tallyhouse migrate` again to complete the tables";
const CLEAN_LEFT: &str = "a constraint tallyhouse_repair_… may still stand on daily, and members cannot count its month while it does. Run \
                          `tallyhouse repair clean` again";
const ERASE_LEFT: &str = "rows may be blanked in one table and not in another, and what ClickHouse has begun it goes on with. Run the same \
                          command again to complete it";

/// Turns a Kafka stream of email-campaign events into exact, queryable counts in ClickHouse.
#[derive(Debug, Parser)]
#[command(
    version,
    arg_required_else_help = true,
    after_help = "Start with `tallyhouse check`, and with `tallyhouse config explain`."
)]
pub struct Cli {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Settings {
    /// TOML file with the configuration. The default is the file in TALLYHOUSE_CONFIG, else ./tallyhouse.toml if it exists.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, such as `clickhouse.database=campaigns`; may be repeated. It overrides the file and the environment. The command
    /// line refuses secrets, because the process list shows it.
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Consume, count and write until SIGTERM, SIGINT, SIGHUP or SIGQUIT. A second signal, a second later or more, ends it at once.
    Run,
    /// Create or complete the tables in ClickHouse. It is safe to run it again, and several times at once.
    Migrate {
        /// Print the SQL instead, and connect to nothing.
        #[arg(long)]
        dry_run: bool,
        /// Create the cluster form of the schema (replicated local tables, distributed reads) on this cluster.
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
        /// Create the form for a database of this kind. Without --dry-run, the server says which it is.
        #[arg(long, value_name = "FORM", conflicts_with = "cluster", value_enum)]
        form: Option<FormArgument>,
        /// Remove rows of email_events once their UTC day is this many days ago, or keep them with `off`. Counters stay.
        #[arg(long, value_name = "DAYS|off")]
        raw_ttl_days: Option<Keep>,
        /// Remove rows of rejected_events this many days after they were written, or keep them with `off`. New tables have 30.
        #[arg(long, value_name = "DAYS|off")]
        rejected_ttl_days: Option<Keep>,
    },
    /// Compare the tables with Kafka, and daily with the rows. It changes nothing and may run beside the service.
    #[command(after_help = audit::HELP)]
    Audit(audit::Arguments),
    /// Repair the findings of an audit.
    #[command(subcommand)]
    Repair(repair::Command),
    /// Let stopped partitions go on, as you decide, with a plan first.
    #[command(after_help = resume::HELP)]
    Resume(resume::Arguments),
    /// Blank a person's data in raw and rejected rows, after a plan. Counters stay.
    #[command(after_help = erase::HELP)]
    Erase(erase::Arguments),
    /// Print the figures of campaigns: delivered, opens, clicks, bounces, unsubscribes and their rates.
    #[command(after_help = report::HELP)]
    Report(report::Arguments),
    /// Inspect, export and replay rejected records.
    #[command(subcommand, after_help = rejects::HELP)]
    Rejects(rejects::Command),
    /// Show what each line of a file would become with this configuration: an event, or a reject with its reason.
    #[command(after_help = decode::HELP)]
    Decode(decode::Arguments),
    /// Check everything that `run` needs, and name the fix of each failure.
    #[command(after_help = check::HELP)]
    Check(check::Arguments),
    /// Show the members, the position of each partition, and problems.
    #[command(after_help = status::HELP)]
    Status(status::Arguments),
    /// Print the page of a code that a message, an alert or a table names.
    #[command(after_help = explain::HELP)]
    Explain(explain::Arguments),
    /// Show each setting with its value and origin.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print a script that completes the commands in a shell.
    #[command(after_help = pages::COMPLETIONS_HELP)]
    Completions(pages::Completions),
    /// Print the manual page.
    #[command(after_help = pages::MAN_HELP)]
    Man(pages::Man),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print each setting, its value and its origin. Secrets are masked.
    Explain,
}

/// The reason why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// A `--set` that is not `KEY=VALUE`.
    #[error("--set {0:?}: expected KEY=VALUE")]
    Set(String),
    /// The first day is after the last.
    #[error("--since {since} is after --until {until}; give the earlier day to --since")]
    #[expect(missing_docs, reason = "described above")]
    Days { since: String, until: String },
    /// An `--email` that is no address; it is not repeated.
    #[error("--email, number {0}: {1}")]
    Email(usize, NotAnAddress),
    /// The reference would put the address into the audit line.
    #[error("--reference has the address in it, and is stored; give a ticket's number or the like")]
    Reference,
    /// No address, or too many.
    #[error("--email: {0} addresses; give 1 to {max} in one go", max = Address::COUNT_MAX)]
    Emails(usize),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// ClickHouse cannot be used.
    #[error(transparent)]
    ClickHouse(#[from] ClickHouseError),
    /// The schema cannot be made.
    #[error(transparent)]
    Schema(#[from] SchemaProblem),
    /// The service cannot run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An audit could not be done.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// A repair was not done.
    #[error(transparent)]
    Repair(#[from] RepairError),
    /// A partition was not resumed.
    #[error(transparent)]
    Resume(#[from] ResumeError),
    /// An erasure was not done, or not to its end.
    #[error(transparent)]
    Erase(#[from] EraseError),
    /// Rejected records could not be looked at or replayed.
    #[error(transparent)]
    Rejects(#[from] RejectsError),
    /// No page has the code of `explain`.
    #[error(transparent)]
    Unknown(#[from] UnknownCode),
    /// The report cannot be written.
    #[error("the output: {0}")]
    Report(#[from] serde_json::Error),
    /// An option that needs `--in-depth`.
    #[error("{0} needs --campaign ID --in-depth")]
    NotInDepth(&'static str),
    /// ClickHouse does not know the time zone.
    #[error("--zone {0}: ClickHouse knows no time zone of this name. Give an IANA name, such as Europe/Paris")]
    Zone(String),
    /// `--zone` together with `--by campaign`.
    #[error("--zone counts by day: leave out --by campaign")]
    ZoneIsByDay,
    /// A file of rules cannot be used.
    #[error("{path}: {error}")]
    #[expect(missing_docs, reason = "described above")]
    Rules { path: String, error: RulesError },
    /// A file that an option names cannot be read.
    #[error("{path}: {error}")]
    #[expect(missing_docs, reason = "described above")]
    Read { path: String, error: std::io::Error },
    /// A manual page cannot be written.
    #[error("{path}: {error}. Give a folder that exists and can be written to")]
    #[expect(missing_docs, reason = "described above")]
    Page { path: String, error: std::io::Error },
    /// Signals cannot be listened to, or standard input cannot be read.
    #[error("signals or standard input: {0}")]
    Io(#[from] std::io::Error),
    /// Standard output cannot be written.
    #[error(transparent)]
    Output(#[from] Lost),
}

impl CliError {
    /// Returns the exit status of the process.
    pub fn exit_status(&self) -> u8 {
        match self {
            CliError::Set(_) | CliError::Days { .. } | CliError::Config(_) => EXIT_USAGE,
            CliError::NotInDepth(_) | CliError::Rules { .. } | CliError::Zone(_) | CliError::ZoneIsByDay => EXIT_USAGE,
            CliError::Email(..) | CliError::Emails(_) | CliError::Reference | CliError::Unknown(_) => EXIT_USAGE,
            CliError::ClickHouse(ClickHouseError::Config(_)) => EXIT_USAGE,
            CliError::Run(RunError::ClickHouse(ClickHouseError::Config(_)) | RunError::Consumer(_)) => EXIT_USAGE,
            CliError::Audit(AuditError::Consumer(_)) => EXIT_USAGE,
            _ => 1,
        }
    }
}

/// The result of a command.
#[derive(Debug)]
pub struct Done {
    /// The text to print.
    pub output: String,
    /// Exit status of the process.
    pub status: u8,
}

impl From<String> for Done {
    fn from(output: String) -> Done {
        Done { output, status: 0 }
    }
}

impl Done {
    /// Returns the exit status, and a message for standard error. `changes` is true if the command may have changed
    /// something. Its caller must then learn that its words were lost. For other commands a lost reader is no error:
    /// `| head` has seen enough.
    pub fn end(&self, changes: bool, lost: Option<Lost>) -> (u8, Option<String>) {
        match lost {
            Some(lost) if changes => {
                let status = if self.status == 0 { EXIT_OUTPUT } else { self.status };
                (status, Some(format!("{lost}. The work was done to its end all the same; only its words are lost")))
            }
            Some(lost) if !lost.reader_gone => (EXIT_WRONG, Some(lost.to_string())),
            _ => (self.status, None),
        }
    }
}

impl Cli {
    /// True if the command may change tables or topics. `run` does as well, but reports in its log.
    pub fn changes_something(&self) -> bool {
        match &self.command {
            Command::Migrate { dry_run, .. } => !dry_run,
            Command::Repair(command) => command.changes_something(),
            Command::Resume(arguments) => arguments.changes_something(),
            Command::Erase(arguments) => arguments.changes_something(),
            Command::Rejects(command) => command.changes_something(),
            _ => false,
        }
    }

    /// Carries the command out and returns the text to print.
    ///
    /// # Errors
    /// Any of [`CliError`].
    pub async fn run(self) -> Result<Done, CliError> {
        match &self.command {
            Command::Migrate { dry_run: false, .. } => signals::end_at_once(MIGRATE_LEFT)?,
            Command::Repair(repair::Command::Clean { .. }) => signals::end_at_once(CLEAN_LEFT)?,
            Command::Erase(arguments) if arguments.changes_something() => signals::end_at_once(ERASE_LEFT)?,
            // These listen to signals themselves, as they end in order.
            Command::Run
            | Command::Status(_)
            | Command::Repair(repair::Command::Daily { .. })
            | Command::Rejects(rejects::Command::Replay { .. }) => {}
            _ => signals::quit_without_a_core()?,
        }
        let settings = self.settings;
        match self.command {
            Command::Run => Ok(run(settings.sources()?).await?.into()),
            Command::Config(ConfigCommand::Explain) => Ok(settings.load()?.explain().into()),
            Command::Migrate { dry_run, cluster, form, raw_ttl_days, rejected_ttl_days } => {
                let form = cluster.map(Form::Cluster).or(form.map(Form::from));
                let keep = [(false, raw_ttl_days), (true, rejected_ttl_days)];
                Ok(migrate(&settings.load()?.config, dry_run, form, keep).await?.into())
            }
            Command::Audit(arguments) => audit::run(&settings.load()?.config, arguments).await,
            Command::Repair(command) => repair::run(&settings.load()?.config, command).await,
            Command::Resume(arguments) => resume::run(&settings.load()?.config, arguments).await,
            Command::Erase(arguments) => erase::run(&settings.load()?.config, arguments).await,
            Command::Report(arguments) => report::run(&settings.load()?.config, arguments).await,
            Command::Rejects(command) => rejects::run(&settings.load()?.config, command).await,
            Command::Decode(arguments) => decode::run(&settings.load()?.config, &arguments),
            Command::Check(arguments) => check::run(&settings.load()?.config, arguments).await,
            Command::Status(arguments) => status::run(&settings.load()?.config, arguments).await,
            // These need no configuration, so they do not read a broken one.
            Command::Explain(arguments) => explain::run(&arguments),
            Command::Completions(arguments) => Ok(pages::completions(&arguments)),
            Command::Man(arguments) => pages::man(&arguments),
        }
    }
}

/// A form of the schema that needs no name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormArgument {
    /// Tables on one server.
    Single,
    /// Replicated tables in a database with the engine Replicated.
    ReplicatedDatabase,
    /// Shared tables of ClickHouse Cloud.
    Shared,
}

impl From<FormArgument> for Form {
    fn from(argument: FormArgument) -> Form {
        match argument {
            FormArgument::Single => Form::Single,
            FormArgument::ReplicatedDatabase => Form::ReplicatedDatabase,
            FormArgument::Shared => Form::Shared,
        }
    }
}

impl Settings {
    /// Returns the configuration from these settings, the environment and the file.
    fn load(self) -> Result<Resolved, CliError> {
        Ok(config::load(&self.sources()?)?)
    }

    fn sources(self) -> Result<Sources, CliError> {
        let flags: Result<Vec<FlagValue>, CliError> = self
            .set
            .iter()
            // Only the key is repeated: the value may be a secret.
            .map(|set| set.parse().map_err(|_| CliError::Set(set.split('=').next().unwrap_or_default().to_owned())))
            .collect();
        let env =
            std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
        let memory_max_bytes = cgroup::memory_max_bytes();
        Ok(Sources { file: self.config, env, flags: flags?, memory_max_bytes })
    }
}

async fn run(sources: Sources) -> Result<String, CliError> {
    let config = &config::load(&sources)?.config;
    telemetry::start(&config.log);
    config.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
    let stop = CancellationToken::new();
    let left_open = Arc::new(LeftOpen::default());
    let leaving = Arc::clone(&left_open);
    signals::end_in_order(stop.clone(), async move |signal| {
        output::note(&format!(
            "tallyhouse: ended by a second {signal}. {}. Nothing is lost: the next owner reads again what is not committed. It gets \
             the partitions once this member's session has expired",
            leaving.message()
        ));
    })?;
    let reload = Arc::new(move || Some(config::load(&sources).ok()?.config));
    let summary = service::run(config, &clickhouse_options(config), stop, left_open, reload).await?;
    Ok(format!("{summary}\n"))
}

/// Asks on a terminal, and returns true after a yes. Elsewhere nobody can answer, so it returns false.
fn is_confirmed() -> Result<bool, CliError> {
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Ok(false);
    }
    output::note("Carry it out? Type yes:");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(answer.trim() == "yes")
}

/// Makes the tables. `form` says their form where the server is not to say it. `keep` says for how long raw or rejected rows are
/// kept, where that is to be changed.
async fn migrate(
    config: &Config,
    dry_run: bool,
    form: Option<Form>,
    keep: [(bool, Option<Keep>); 2],
) -> Result<String, CliError> {
    let database = &config.clickhouse.database;
    let changes = |schema: &Schema, now: Option<&Retention>| -> Vec<String> {
        let wanted = keep.iter().filter_map(|&(rejected, keep)| Some((rejected, keep?)));
        wanted.flat_map(|(rejected, keep)| retention::statements(schema, database, rejected, keep, now)).collect()
    };
    if dry_run {
        let schema = Schema::of(&form.unwrap_or(Form::Single))?;
        let mut plan = schema.plan(database)?;
        changes(&schema, None).iter().for_each(|sql| plan.push_str(&format!("\n{sql};\n")));
        return Ok(plan);
    }
    let client = Servers::answering(&clickhouse_options(config)).await?;
    let form = match form {
        Some(form) => form,
        None => Form::found(&client).await?,
    };
    let schema = Schema::of(&form)?;
    let mut report = format!("form           {form}\n{}", schema.migrate(&client).await?);
    let now = Retention::read(&client, &schema).await?;
    for sql in changes(&schema, Some(&now)) {
        client.execute(&sql).await?;
        report.push_str(&format!("done           {sql}\n"));
    }
    Ok(report)
}

fn clickhouse_options(config: &Config) -> ClickHouseOptions {
    let from = &config.clickhouse;
    ClickHouseOptions {
        url: from.url.clone(),
        user: from.user.clone(),
        password: from.password.expose().to_owned(),
        database: from.database.clone(),
        ca_file: from.ca_file.as_ref().map(PathBuf::from),
        identity: from.cert_file.as_ref().map(PathBuf::from).zip(from.key_file.as_ref().map(PathBuf::from)),
        compression: match from.compression {
            config::Compression::Lz4 => Compression::Lz4,
            config::Compression::None => Compression::None,
        },
        query_timeout_ms: from.query_timeout_ms,
        insert_timeout_ms: from.insert_timeout_ms,
    }
}

/// Returns the options of clients with a short time limit, because people wait for the answer.
fn short_timeout_options(config: &Config) -> ClickHouseOptions {
    let mut options = clickhouse_options(config);
    options.query_timeout_ms = options.query_timeout_ms.min(ANSWER_TIMEOUT.as_millis() as u64);
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_output_fails_what_changes_something_and_lets_head_see_enough() {
        let end = |status, changes, reader_gone: Option<bool>| {
            let lost = reader_gone.map(|reader_gone| Lost { reader_gone, reason: "gone".to_owned() });
            let (status, note) = Done { output: String::new(), status }.end(changes, lost);
            (status, note.is_some())
        };
        assert_eq!([end(0, true, None), end(2, false, None)], [(0, false), (2, false)]);
        assert_eq!([end(0, true, Some(true)), end(2, true, Some(true))], [(EXIT_OUTPUT, true), (2, true)]);
        assert_eq!([end(0, false, Some(true)), end(2, false, Some(true))], [(0, false), (2, false)]);
        assert_eq!(end(0, false, Some(false)), (EXIT_WRONG, true), "a full disk");
    }
}
