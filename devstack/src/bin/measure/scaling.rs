//! `cargo measure scaling`: measures the cost of an event with more members, with more campaigns, and with larger
//! payloads.
//!
//! Each point catches up with a full topic and then receives the signal to end. Its time runs from the first record
//! to the end of the last member. Must never compare points of different work without saying the events of each.

use crate::{Bench, Common, Findings};
use clap::{Args, ValueEnum};
use devstack::bench::figures::{MIB, median, thousands};
use devstack::bench::plot::{Axis, Chart, Scale, Series};
use devstack::bench::{AnyError, CatchUp, Deployment, Topic, Until, catch_up};
use devstack::producer::Events;
use serde_json::{Value, json};

/// Number of partitions for points with one member.
const PARTITIONS: i32 = 4;
/// Number of partitions that members share.
const SHARED_PARTITIONS: i32 = 12;

#[derive(Args)]
#[command(after_long_help = "\
Axes:
  members    1, 2 and 4 members share 12 partitions. All run on this machine: where its cores are busy with one member, more of
             them cannot be faster. The figure to look at is the CPU of an event.
  campaigns  One member, 4 partitions, the same number of events over more and more campaigns. It begins with nearly all events
             in few counters, and ends with nearly each event in a counter of its own.
  payload    One member, 4 partitions, events of more and more bytes; metadata is grown, with text that compresses to about half.
             The events are fewer where they are large, so that no topic has more than --bytes.

CPU is user and system time of all members from start to end, and of ClickHouse until its merges have settled. Memory is the
greatest resident size of a member; of ClickHouse, what came on top. Figures are medians of the rounds.")]
pub struct Arguments {
    /// Axes along which to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "members,campaigns,payload")]
    only: Vec<Along>,
    /// Events of a point.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10..))]
    events: u64,
    /// Bytes of events in one topic, at most.
    #[arg(long, default_value_t = 400_000_000, value_parser = clap::value_parser!(u64).range(1_000_000..))]
    bytes: u64,
    /// Measurements of each point.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Numbers of members; each must divide 12.
    #[arg(long, value_delimiter = ',', default_value = "1,2,4", value_parser = ["1", "2", "3", "4", "6", "12"])]
    members: Vec<String>,
    /// Numbers of campaigns, one for each point.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000,100000,1000000")]
    campaigns: Vec<u64>,
    /// Sizes of an event in bytes; 200 leaves metadata out.
    #[arg(long, value_delimiter = ',', default_value = "200,1000,10000,100000")]
    sizes: Vec<u64>,
    #[command(flatten)]
    pub common: Common,
}

/// The quantity that grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Along {
    Members,
    Campaigns,
    Payload,
}

/// One point of one axis.
struct Point {
    along: Along,
    at: u64,
    events: u64,
    rounds: Vec<CatchUp>,
}

const HEAD: [&str; 8] = [
    "",
    "events",
    "events/s",
    "CPU Tallyhouse, µs/event",
    "CPU ClickHouse, µs/event",
    "memory, MiB",
    "ClickHouse +MiB",
    "parts",
];

/// Measures all points of the chosen axes.
pub fn measure(arguments: &Arguments, bench: &Bench) -> Result<Findings, AnyError> {
    let mut points = Vec::new();
    for &along in &arguments.only {
        let at: Vec<u64> = match along {
            Along::Members => arguments.members.iter().map(|members| members.parse()).collect::<Result<_, _>>()?,
            Along::Campaigns => arguments.campaigns.clone(),
            Along::Payload => arguments.sizes.clone(),
        };
        // The points with several members share one topic. Each other point has its own.
        let mut shared: Option<Topic> = None;
        for at in at {
            let topic = match (along, &shared) {
                (Along::Members, Some(topic)) => topic.clone(),
                _ => fill(arguments, bench, along, at)?,
            };
            let members = if along == Along::Members { at as usize } else { 1 };
            let mut point = Point { along, at, events: topic.ledger.produced, rounds: Vec::new() };
            for _ in 0..arguments.rounds {
                let found =
                    run(arguments, bench, &topic, members).map_err(|error| format!("{}: {error}", point.name()))?;
                point.rounds.push(found);
                eprintln!("measure: {}", point.cells().join("  "));
            }
            points.push(point);
            shared = Some(topic);
        }
    }
    Ok(Findings {
        heading: format!("medians of {} rounds", arguments.rounds),
        head: &HEAD,
        rows: points.iter().map(Point::cells).collect(),
        json: points.iter().map(Point::json).collect(),
        charts: arguments.only.iter().map(|&along| chart(along, &points)).collect(),
    })
}

fn fill(arguments: &Arguments, bench: &Bench, along: Along, at: u64) -> Result<Topic, AnyError> {
    let mut shape = Events { broken_percent: 0, ..Events::default() };
    let (mut events, mut partitions) = (arguments.events, PARTITIONS);
    match along {
        Along::Members => partitions = SHARED_PARTITIONS,
        Along::Campaigns => shape.campaigns = at,
        Along::Payload => {
            shape.size_bytes = Some(usize::try_from(at)?);
            events = events.min(arguments.bytes / at.max(1));
        }
    }
    eprintln!("measure: producing {} events", thousands(events as f64));
    let name = bench.stack.fresh_topic_name("measure");
    Topic::fill(bench.kafka.bootstrap(), &name, partitions, (&shape, events), &bench.interrupt)
}

fn run(arguments: &Arguments, bench: &Bench, topic: &Topic, members: usize) -> Result<CatchUp, AnyError> {
    let deployment = Deployment {
        program: &bench.program,
        brokers: bench.kafka.bootstrap(),
        clickhouse: bench.clickhouse,
        topic: &topic.name,
        database: &bench.stack.fresh_database_name("measure"),
        set: &arguments.common.set,
    };
    catch_up(&deployment, members, topic, Until::Consumed, &bench.interrupt)
}

impl Point {
    fn name(&self) -> String {
        let at = thousands(self.at as f64);
        match self.along {
            Along::Members if self.at == 1 => "1 member".to_owned(),
            Along::Members => format!("{at} members"),
            Along::Campaigns => format!("{at} campaigns"),
            Along::Payload => format!("{at} bytes"),
        }
    }

    fn median(&self, figure: impl Fn(&CatchUp) -> Option<f64>) -> Option<f64> {
        median(self.rounds.iter().filter_map(figure))
    }

    fn rate(&self) -> Option<f64> {
        self.median(|run| Some(self.events as f64 / run.read_seconds?))
    }

    /// Returns the CPU time of an event, in µs: of Tallyhouse and of ClickHouse.
    fn cpu_us(&self) -> [Option<f64>; 2] {
        let per_event = |seconds: f64| seconds * 1e6 / self.events as f64;
        [
            self.median(|run| Some(per_event(run.program.cpu_seconds))),
            self.median(|run| Some(per_event(run.clickhouse.cpu_seconds))),
        ]
    }

    fn peaks_mib(&self) -> [Option<f64>; 2] {
        [
            self.median(|run| Some(run.program.peak_bytes as f64 / MIB)),
            self.median(|run| Some(run.clickhouse.peak_bytes as f64 / MIB)),
        ]
    }

    fn parts(&self) -> Option<f64> {
        self.median(|run| Some(run.parts as f64))
    }

    fn cells(&self) -> Vec<String> {
        let show = |figure: Option<f64>, write: fn(f64) -> String| figure.map_or("–".to_owned(), write);
        let ([own, clickhouse], [own_peak, clickhouse_peak]) = (self.cpu_us(), self.peaks_mib());
        let us = |us: f64| if us < 100.0 { format!("{us:.2}") } else { thousands(us) };
        vec![
            self.name(),
            thousands(self.events as f64),
            show(self.rate(), thousands),
            show(own, us),
            show(clickhouse, us),
            show(own_peak, thousands),
            show(clickhouse_peak, thousands),
            show(self.parts(), thousands),
        ]
    }

    fn json(&self) -> Value {
        let ([own, clickhouse], [own_peak, clickhouse_peak]) = (self.cpu_us(), self.peaks_mib());
        json!({
            "point": self.name(), "at": self.at, "events": self.events, "rounds": self.rounds.len(), "events_per_s": self.rate(),
            "cpu_us_per_event": {"tallyhouse": own, "clickhouse": clickhouse},
            "peak_mib": {"tallyhouse": own_peak, "clickhouse": clickhouse_peak}, "parts": self.parts(),
        })
    }
}

fn chart(along: Along, points: &[Point]) -> Chart {
    let (title, name, x, y) = match along {
        Along::Members => ("Members over 12 partitions", "members", Scale::Linear, Scale::Linear),
        Along::Campaigns => ("Campaigns", "campaigns", Scale::Log, Scale::Linear),
        Along::Payload => ("Payload", "bytes of an event", Scale::Log, Scale::Log),
    };
    let of = |name: &str, figure: &dyn Fn(&Point) -> Option<f64>| Series {
        name: name.to_owned(),
        points: points
            .iter()
            .filter(|point| point.along == along)
            .filter_map(|point| Some((point.at as f64, figure(point)?)))
            .collect(),
    };
    let both = |point: &Point| Some(point.cpu_us()[0]? + point.cpu_us()[1]?);
    Chart {
        title: title.to_owned(),
        x: Axis { name: name.to_owned(), scale: x },
        y: Axis { name: "CPU, µs an event".to_owned(), scale: y },
        series: vec![
            of("together", &both),
            of("Tallyhouse", &|point| point.cpu_us()[0]),
            of("ClickHouse", &|point| point.cpu_us()[1]),
        ],
    }
}
