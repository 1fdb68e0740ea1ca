//! The figures as a table for people, as Markdown for the README, and as JSON.
//!
//! Must never round away what the JSON holds: it has each run as it was measured.

use crate::contenders::Contender;
use crate::measure::{Cost, Run};
use crate::targets::Target;
use serde_json::{Value, json};

const MIB: f64 = (1 << 20) as f64;
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
    /// Who.
    pub contender: Contender,
    /// Its runs, in order.
    pub runs: Vec<Run>,
}

/// The runs by contender, in the order of the contenders.
pub fn summarize(runs: &[Run]) -> Vec<Summary> {
    let mut contenders: Vec<Contender> = runs.iter().map(|run| run.contender).collect();
    contenders.sort_unstable();
    contenders.dedup();
    let of = |contender| runs.iter().filter(|run| run.contender == contender).cloned().collect();
    contenders.into_iter().map(|contender| Summary { contender, runs: of(contender) }).collect()
}

/// The middle one; the mean of the two middle ones if there are two. None of nothing.
pub fn median(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    let (low, high) = (figures.get(figures.len().checked_sub(1)? / 2)?, figures.get(figures.len() / 2)?);
    Some((low + high) / 2.0)
}

/// One run in one line, for whoever waits for the table.
pub fn line(run: &Run) -> String {
    let own = run.program_cpu_us().map_or(String::new(), |own| format!(", {own:.2} of them its own"));
    let peak = run.program.map_or(String::new(), |cost| format!(", {:.0} MiB", cost.peak_bytes as f64 / MIB));
    let (name, wall) = (run.contender.name(), run.wall_seconds);
    format!("{name}: {wall:.2} s, {:.2} µs of CPU an event{own}{peak}", run.cpu_us())
}

/// The table for people, targets below it.
pub fn text(results: &[Summary], targets: &[Target]) -> String {
    let rows: Vec<[String; 9]> = std::iter::once(HEAD.map(str::to_owned)).chain(results.iter().map(cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 9] = std::array::from_fn(width);
    let line = |row: &[String; 9]| {
        let cell = |(column, cell): (usize, &String)| match column {
            0 => format!("{cell:<width$}", width = widths[column]),
            _ => format!("{cell:>width$}", width = widths[column]),
        };
        row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let table: Vec<String> = rows.iter().map(line).collect();
    let verdict = |target: &Target| {
        let verdict = if target.is_met() { "met" } else { "MISSED" };
        format!("  {verdict:<6}  {:>8.2}  {:<13}  {}", target.found, target.bound_text(), target.what)
    };
    let targets: Vec<String> = targets.iter().map(verdict).collect();
    format!("{}\n\n{}\n\nTargets\n{}", heading(results), table.join("\n"), targets.join("\n"))
}

/// The same for the README.
pub fn markdown(results: &[Summary], targets: &[Target]) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut lines = vec![heading(results), String::new(), line(&HEAD.map(str::to_owned))];
    lines.push(format!("|---|{}", "--:|".repeat(HEAD.len() - 1)));
    lines.extend(results.iter().map(|summary| line(&cells(summary))));
    lines.extend([String::new(), "| target | found | must be | |".to_owned(), "|---|--:|---|---|".to_owned()]);
    lines.extend(targets.iter().map(|target| {
        let verdict = if target.is_met() { "met" } else { "**missed**" };
        line(&[target.what.to_owned(), format!("{:.2}", target.found), target.bound_text(), verdict.to_owned()])
    }));
    lines.join("\n")
}

/// Everything.
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

/// The processors, for whoever reads the figures later.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("an unknown processor", |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores of {model}")
}

fn cells(summary: &Summary) -> [String; 9] {
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
    [
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

/// A whole number with a comma between each three digits.
fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let comma = |(index, digit): (usize, char)| {
        let separated = index > 0 && (digits.len() - index).is_multiple_of(3);
        separated.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(comma).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_thousands() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
        assert_eq!([thousands(7.0), thousands(1_000.4), thousands(1_234_567.0)], ["7", "1,000", "1,234,567"]);
    }
}
