//! `cargo demo`: runs the main job end to end, on real servers, with a proof at the end.
//!
//! Must never print a figure that it did not read from ClickHouse, nor exit with 0 unless every line of the proof
//! holds.

use clap::Parser;
use devstack::bench::{Metrics, figures::MIB};
use devstack::producer::{EVENT_TYPES, Events, Ledger, Producer, create_topic, uuid};
use devstack::{ClickHouse, Error, Output, Server, Stack, build, process};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::{IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

const TOPIC: &str = "campaign.event_tracking";
const LIFECYCLE_TOPICS: [&str; 2] = ["campaign.audience_ready", "campaign.template_ready"];
const DATABASE: &str = "campaigns";
const PARTITIONS: i32 = 4;
/// Time without anything new after which the demo gives up.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

type AnyError = Box<dyn std::error::Error>;

/// Shows Tallyhouse doing its job on this machine, and proves the outcome.
///
/// Starts a real Kafka and a real ClickHouse, and makes the tables. It produces events as the Django app does, a few percent
/// of them broken. It runs the real program until all is counted, and compares what was produced with what ClickHouse has.
#[derive(Parser)]
#[command(name = "cargo demo", after_help = "Exit status 0 means that every line of the proof holds.")]
struct Arguments {
    /// Number of records to produce.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,
    /// Leave everything running at the end and print the addresses, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    devstack::init();
    match demo(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn demo(arguments: &Arguments) -> Result<bool, AnyError> {
    let program = build::tallyhouse(&["--release", "--bin", "tallyhouse"])?;
    let stack = Stack::shared();
    let kafka = stack.kafka().map_err(Error::to_string)?;
    let clickhouse = stack.clickhouse().map_err(Error::to_string)?;
    let service = Service { program, brokers: kafka.bootstrap().to_owned(), url: clickhouse.url().to_owned() };
    service.migrate()?;
    create_topic(kafka.bootstrap(), TOPIC, PARTITIONS)?;
    for topic in LIFECYCLE_TOPICS {
        create_topic(kafka.bootstrap(), topic, 1)?;
    }

    let member = service.start()?;
    let started = Instant::now();
    let ledger = produce_and_watch(arguments.events, kafka.bootstrap(), &member, clickhouse)?;
    println!("\n{} records in {:.1} s, production included\n", ledger.produced, started.elapsed().as_secs_f64());
    if arguments.keep {
        report(clickhouse)?;
        let holds = prove(clickhouse, &ledger)?;
        keep(&service, &member)?;
        stop(&member)?;
        return Ok(holds);
    }
    stop(&member)?;
    report(clickhouse)?;
    prove(clickhouse, &ledger)
}

/// The program of the demo, and the addresses of its servers.
struct Service {
    program: PathBuf,
    brokers: String,
    url: String,
}

impl Service {
    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(subcommand)
            .env("TALLYHOUSE__KAFKA__BROKERS", &self.brokers)
            .env("TALLYHOUSE__CLICKHOUSE__URL", &self.url)
            .env("TALLYHOUSE__CLICKHOUSE__RECIPIENTS", "true");
        command
    }

    fn migrate(&self) -> Result<(), AnyError> {
        let output = self.command("migrate").output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        println!("tallyhouse migrate:\n{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    fn start(&self) -> Result<Member, AnyError> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let admin = listener.local_addr()?.to_string();
        drop(listener);
        let mut command = self.command("run");
        command.env("TALLYHOUSE__ADMIN__LISTEN", &admin);
        Ok(Member { server: process::spawn("tallyhouse", command, Output::Captured)?, admin })
    }
}

/// The running program, with the address of its HTTP endpoint.
struct Member {
    server: Server,
    admin: String,
}

/// Produces on a thread of its own and shows the member's progress, until all is in ClickHouse.
fn produce_and_watch(events: u64, brokers: &str, member: &Member, clickhouse: &ClickHouse) -> Result<Ledger, AnyError> {
    let brokers = brokers.to_owned();
    let producing = std::thread::spawn(move || {
        announce(&brokers)?;
        let mut producer = Producer::new(&brokers, TOPIC, PARTITIONS)?;
        producer.send_events(&Events::default(), 0..events)?;
        producer.finish()
    });
    let announced = 2 * Events::default().campaigns;
    let bar = ProgressBar::new(events + announced);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len} stored, {per_sec}, {msg}")?);
    let (mut stored, mut changed) = (0, Instant::now());
    while stored < events + announced {
        if !member.server.is_alive() {
            return Err(format!("tallyhouse ended: {}", member.server.stderr()).into());
        }
        // Counters are written last, so a counted event is stored as well.
        let sql = "(SELECT sum(total) FROM campaigns.daily) + (SELECT count() FROM campaigns.rejected_events) \
                   + (SELECT count() FROM campaigns.campaign_lifecycle)";
        let now = clickhouse.number(&format!("SELECT {sql}"))?;
        if now != stored {
            (stored, changed) = (now, Instant::now());
        } else if changed.elapsed() > STALL_TIMEOUT {
            return Err(format!("no progress for {STALL_TIMEOUT:?}: {}", member.server.stderr()).into());
        }
        bar.set_position(stored);
        bar.set_message(progress(member, events + announced));
        if !std::io::stderr().is_terminal() {
            eprintln!("{stored}/{} stored, {}", events + announced, progress(member, events + announced));
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    bar.finish();
    Ok(producing.join().map_err(|_| "the producer panicked")??)
}

/// Announces each campaign once on both lifecycle topics.
fn announce(brokers: &str) -> Result<(), rdkafka::error::KafkaError> {
    let events = Events::default();
    for (topic, minutes_before) in LIFECYCLE_TOPICS.into_iter().zip([90, 30]) {
        let mut producer = Producer::new(brokers, topic, 1)?;
        for campaign in 0..events.campaigns {
            let metadata = match minutes_before {
                90 => format!("{{\"size\": {}}}", 1_000 + campaign),
                _ => "{\"template\": \"autumn\"}".to_owned(),
            };
            producer.send(Some(events.announcement(campaign, minutes_before, &metadata).as_bytes()))?;
        }
        producer.finish()?;
    }
    Ok(())
}

/// Returns consumed records, lag and counters, as the member's own endpoint reports them.
fn progress(member: &Member, events: u64) -> String {
    let metrics = Metrics::ask(&member.admin);
    let consumed = metrics.sum("tallyhouse_consumed_records_total");
    let batches = metrics.sum("tallyhouse_flushed_batches_total");
    let held_mib = metrics.sum("tallyhouse_memory_used_bytes") / MIB;
    format!("consumed {consumed}, lag {}, batches {batches}, held {held_mib:.0} MiB", events as f64 - consumed)
}

fn stop(member: &Member) -> Result<(), AnyError> {
    let status = member.server.terminate(STOP_TIMEOUT)?;
    println!("tallyhouse ended with {status}: {}", member.server.stdout());
    if status.success() { Ok(()) } else { Err(member.server.stderr().into()) }
}

/// Prints the counts by event type, the two queries for which the tables are made, unique figures and a timeline, with their answers.
fn report(clickhouse: &ClickHouse) -> Result<(), AnyError> {
    let campaign = uuid(0);
    for sql in [
        "SELECT level, sum(total) AS total_count FROM daily GROUP BY level".to_owned(),
        format!(
            "SELECT email, event_time FROM email_events WHERE campaign_id = '{campaign}' AND event_type = 'open' \
             ORDER BY event_time DESC"
        ),
        format!(
            "SELECT delivered, opened, clicked, open_rate_of_delivered, click_rate_of_delivered FROM campaign_recipients \
             WHERE campaign_id = '{campaign}'"
        ),
        format!("SELECT * EXCEPT campaign_id FROM campaign_timeline WHERE campaign_id = '{campaign}'"),
    ] {
        println!("{sql}");
        let limited = if sql.contains("ORDER BY") { format!("{sql} LIMIT 5") } else { sql };
        // The statement stands as it is; the database comes beside it.
        println!("{}", query_in_database(clickhouse, &format!("{limited} FORMAT PrettyCompactMonoBlock"))?);
    }
    Ok(())
}

fn query_in_database(clickhouse: &ClickHouse, sql: &str) -> Result<String, AnyError> {
    let address = clickhouse.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&address)?;
    write!(
        stream,
        "POST /?database={DATABASE}&output_format_pretty_color=0 HTTP/1.0\r\nContent-Length: {}\r\n\r\n{sql}",
        sql.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("ClickHouse gave no answer")?;
    if head.contains(" 200 ") { Ok(body.to_owned()) } else { Err(body.to_owned().into()) }
}

/// Compares the produced events with ClickHouse's content. Returns true if all holds.
fn prove(clickhouse: &ClickHouse, ledger: &Ledger) -> Result<bool, AnyError> {
    let ask = |sql: &str| clickhouse.number(sql);
    let rows = ask("SELECT count() FROM campaigns.email_events")?;
    let rejected = ask("SELECT count() FROM campaigns.rejected_events")?;
    let total = ask("SELECT sum(total) FROM campaigns.daily")?;
    let distinct = ask("SELECT uniqExact(source, source_offset) FROM campaigns.email_events")?;
    let addresses = ask("SELECT uniqExact(campaign_id, email) FROM campaigns.email_events")?;
    let recipients = ask("SELECT sum(recipients) FROM campaigns.campaign_recipients")?;
    let mut lines = vec![
        ("produced = rows + rejected".to_owned(), ledger.produced, rows + rejected),
        ("rejected = produced broken".to_owned(), ledger.broken, rejected),
        ("sum(total) = rows".to_owned(), rows, total),
        ("distinct (source, source_offset) = rows".to_owned(), rows, distinct),
        ("recipients = distinct (campaign, address)".to_owned(), addresses, recipients),
    ];
    let announced = 2 * Events::default().campaigns;
    let distinct = ask("SELECT uniqExact(campaign_id, stage) FROM campaigns.campaign_lifecycle")?;
    lines.push(("campaigns announced = distinct lifecycle rows".to_owned(), announced, distinct));
    let rows = ask("SELECT count() FROM campaigns.campaign_lifecycle")?;
    lines.push(("campaigns announced = lifecycle rows".to_owned(), announced, rows));
    for (event_type, wanted) in EVENT_TYPES.iter().zip(ledger.by_type) {
        let found = ask(&format!("SELECT sum(total) FROM campaigns.daily WHERE level = '{event_type}'"))?;
        lines.push((format!("{event_type}: produced = sum(total)"), wanted, found));
    }
    println!("The proof");
    for (what, wanted, found) in &lines {
        println!("  {}  {what:<46} {wanted:>12} = {found}", if wanted == found { "holds" } else { "FAILS" });
    }
    Ok(lines.iter().all(|(_, wanted, found)| wanted == found))
}

fn keep(service: &Service, member: &Member) -> Result<(), AnyError> {
    let Service { program, brokers, url } = service;
    println!("\nEverything stays up until Ctrl-C:");
    println!("  Kafka        {brokers}   topic {TOPIC}");
    println!("  ClickHouse   {url}   database {DATABASE}");
    println!("  Tallyhouse   http://{}   pid {}   {}", member.admin, member.server.pid(), program.display());
    println!("\nLook at it, in another terminal:");
    println!("  export TALLYHOUSE__KAFKA__BROKERS={brokers} TALLYHOUSE__CLICKHOUSE__URL={url}");
    for subcommand in ["check", "status", "report --by day", "audit"] {
        println!("  {} {subcommand}", program.display());
    }
    Signals::new([SIGINT, SIGTERM])?.forever().next();
    Ok(())
}
