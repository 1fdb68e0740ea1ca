//! Prints the figures as a table for people, as Markdown for docs/performance.md, and as JSON.
//!
//! Must never round away what the JSON holds: it has each run as it was measured.

use crate::contenders::Contender;
use crate::run::Run;
use crate::targets::Target;
use devstack::bench::figures::{MIB, machine, median, thousands};
use devstack::bench::{Cost, table};
use serde_json::{Value, json};

const HEAD: [&str; 9] = [
    "",
    "wall, s",
    "events/s",
    "CPU, program, s",
    "CPU, ClickHouse, s",
    "CPU, µs/event",
    "memory, MiB",
    "ClickHouse +MiB",
    "parts",
];

/// All runs of one contender.
pub struct Summary {
    /// The contender that these runs measured.
    pub contender: Contender,
    /// Its runs, in order.
    pub runs: Vec<Run>,
}

/// Returns the runs by contender, in the order of the contenders.
pub fn summarize(runs: &[Run]) -> Vec<Summary> {
    let mut contenders: Vec<Contender> = runs.iter().map(|run| run.contender).collect();
    contenders.sort_unstable();
    contenders.dedup();
    let of = |contender| runs.iter().filter(|run| run.contender == contender).cloned().collect();
    contenders.into_iter().map(|contender| Summary { contender, runs: of(contender) }).collect()
}

/// Returns one run in one line, for the person who waits for the table.
pub fn line(run: &Run) -> String {
    let own = run.program_cpu_us().map_or(String::new(), |own| format!(", {own:.2} of them its own"));
    let peak = run.program.map_or(String::new(), |cost| format!(", {:.0} MiB", cost.peak_bytes as f64 / MIB));
    let (name, wall) = (run.contender.name(), run.wall_seconds);
    format!("{name}: {wall:.2} s, {:.2} µs of CPU an event{own}{peak}", run.cpu_us())
}

/// Returns the table for people, with the targets below it.
pub fn text(results: &[Summary], targets: &[Target]) -> String {
    let table = table::text(&HEAD, &rows(results));
    let verdict = |target: &Target| {
        let verdict = if target.is_met() { "met" } else { "MISSED" };
        format!("  {verdict:<6}  {:>8.2}  {:<13}  {}", target.found, target.bound_text(), target.what)
    };
    let targets: Vec<String> = targets.iter().map(verdict).collect();
    format!("{}\n\n{table}\n\nTargets\n{}", heading(results), targets.join("\n"))
}

/// Returns the same for docs/performance.md.
pub fn markdown(results: &[Summary], targets: &[Target]) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut lines = vec![heading(results), String::new(), table::markdown(&HEAD, &rows(results))];
    lines.extend([String::new(), "| target | found | must be | |".to_owned(), "|---|--:|---|---|".to_owned()]);
    lines.extend(targets.iter().map(|target| {
        let verdict = if target.is_met() { "met" } else { "**missed**" };
        line(&[target.what.to_owned(), format!("{:.2}", target.found), target.bound_text(), verdict.to_owned()])
    }));
    lines.join("\n")
}

/// Returns everything as JSON.
pub fn json(runs: &[Run], results: &[Summary], targets: &[Target]) -> Value {
    let cost = |cost: Option<Cost>| cost.map(|c| json!({"cpu_seconds": c.cpu_seconds, "peak_bytes": c.peak_bytes}));
    let run = |run: &Run| {
        json!({
            "contender": run.contender.name(), "events": run.events, "wall_seconds": run.wall_seconds,
            "read_seconds": run.read_seconds, "program": cost(run.program), "clickhouse": cost(run.clickhouse),
            "cpu_us_per_event": run.cpu_us(), "parts": run.parts,
        })
    };
    let target = |target: &Target| json!({"what": target.what, "found": target.found, "bound": target.bound_text(), "met": target.is_met()});
    json!({
        "machine": machine(),
        "rounds": results.first().map(|summary| summary.runs.len()),
        "runs": runs.iter().map(run).collect::<Vec<_>>(),
        "targets": targets.iter().map(target).collect::<Vec<_>>(),
    })
}

fn heading(results: &[Summary]) -> String {
    let first = results.first();
    let events = first.and_then(|summary| summary.runs.first()).map_or(0, |run| run.events);
    let rounds = first.map_or(0, |summary| summary.runs.len());
    format!("{} events; medians of {rounds} rounds (lowest–highest); {}", thousands(events as f64), machine())
}

fn rows(results: &[Summary]) -> Vec<Vec<String>> {
    results.iter().map(cells).collect()
}

fn cells(summary: &Summary) -> Vec<String> {
    let of = |figure: &dyn Fn(&Run) -> Option<f64>, show: fn(f64) -> String| {
        let figures: Vec<f64> = summary.runs.iter().filter_map(figure).collect();
        let Some(middle) = median(figures.iter().copied()) else { return "–".to_owned() };
        let (low, high) = figures.iter().fold((middle, middle), |(low, high), &f| (low.min(f), high.max(f)));
        if show(low) == show(high) {
            show(middle)
        } else {
            format!("{} ({}–{})", show(middle), show(low), show(high))
        }
    };
    let two = |figure: f64| format!("{figure:.2}");
    let whole = |figure: f64| format!("{figure:.0}");
    vec![
        summary.contender.name().to_owned(),
        of(&|run| Some(run.wall_seconds), two),
        of(&|run| Some(run.rate()), thousands),
        of(&|run| Some(run.program?.cpu_seconds), two),
        of(&|run| Some(run.clickhouse?.cpu_seconds), two),
        of(&|run| Some(run.cpu_us()), two),
        of(&|run| Some(run.program?.peak_bytes as f64 / MIB), whole),
        of(&|run| Some(run.clickhouse?.peak_bytes as f64 / MIB), whole),
        of(&|run| run.parts.map(|parts| parts as f64), whole),
    ]
}
