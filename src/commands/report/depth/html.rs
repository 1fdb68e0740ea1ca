//! The report as one HTML page with charts in SVG, to send to a customer.
//!
//! Must refer to nothing outside of itself, must run no script, and must escape every text.

use super::print::{Section, hour_name};
use super::{Depth, Hour};
use std::fmt::Write as _;

/// Hours in the chart; the table has all of them.
const CHART_HOURS: i32 = 72;
const CHART_WIDTH: f64 = 960.0;
const CHART_HEIGHT: f64 = 220.0;
const BAR_HEIGHT: f64 = 22.0;
/// Width of the names beside horizontal bars.
const NAME_WIDTH: f64 = 320.0;
/// Bars in a horizontal chart; the table has all rows.
const BARS_MAX: usize = 20;
/// Rows of a table that is open from the beginning. A click opens a longer one, so that the sections behind it are found.
const OPEN_ROWS_MAX: usize = 24;

const HEAD: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<title>Campaign report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1c2330; background: #fff; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h1::first-letter { text-transform: uppercase; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.5rem; border-bottom: 1px solid #d8dde6; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; overflow-wrap: anywhere; }
summary { cursor: pointer; } .scroll { overflow-x: auto; } svg { width: 100%; height: auto; margin: 0.5rem 0; } svg text { font-size: 12px; fill: #1c2330; }
svg .name { font-family: ui-monospace, monospace; }
.opens { fill: #2f6fbf; } .machine { fill: #a9c6e8; } .clicks { fill: #c4552d; } .line { stroke: #8a94a6; }
</style>
</head>
<body>
"#;

impl Depth {
    /// Returns the report as one HTML page.
    pub fn html(&self) -> String {
        let mut text = HEAD.to_owned();
        let mut lines = self.heading().lines().map(escaped).collect::<Vec<_>>().into_iter();
        let _ = write!(
            text,
            "<h1>{}</h1>\n<p>{}</p>\n",
            lines.next().unwrap_or_default(),
            lines.collect::<Vec<_>>().join("<br>\n")
        );
        for section in self.sections() {
            let _ = write!(text, "<section id=\"{}\">\n<h2>{}</h2>\n", section.name, escaped(&section.title));
            match section.name {
                "hours" => text += &hours_chart(&self.hours),
                "links" => text += &bars(&section, 1, "clicks"),
                "recipients" => text += &bars(&section, 2, "opens"),
                "opens" => text += &bars(&section, 1, "opens"),
                _ => {}
            }
            let rows = section.rows.len();
            if rows > OPEN_ROWS_MAX {
                let _ = write!(text, "<details><summary>All {rows} rows</summary>\n{}</details>\n", table(&section));
            } else {
                text += &table(&section);
            }
            text += "</section>\n";
        }
        text + "</body>\n</html>\n"
    }
}

fn table(section: &Section) -> String {
    let mut text = "<div class=\"scroll\"><table>\n<thead><tr>".to_owned();
    for column in &section.columns {
        let _ = write!(text, "<th scope=\"col\">{}</th>", escaped(column));
    }
    text += "</tr></thead>\n<tbody>\n";
    for row in &section.rows {
        text += "<tr>";
        for cell in row {
            let _ = write!(text, "<td>{}</td>", escaped(cell));
        }
        text += "</tr>\n";
    }
    text + "</tbody>\n</table></div>\n"
}

/// Draws opens and clicks of the first hours side by side. The part of the opens that a rule names is lighter.
fn hours_chart(hours: &[Hour]) -> String {
    let shown: Vec<&Hour> = hours.iter().filter(|of| (0..CHART_HOURS).contains(&of.hour)).collect();
    let Some(most) = shown.iter().map(|of| of.opens.max(of.clicks)).max().filter(|most| *most > 0) else {
        return String::new();
    };
    let (left, bottom) = (50.0, CHART_HEIGHT - 24.0);
    let step = (CHART_WIDTH - left) / f64::from(CHART_HOURS);
    let height = |count: u64| count as f64 / most as f64 * (bottom - 12.0);
    let mut text = format!(
        "<svg viewBox=\"0 0 {CHART_WIDTH} {CHART_HEIGHT}\" role=\"img\" aria-label=\"Opens and clicks in the first {CHART_HOURS} hours\">\n\
         <text x=\"{}\" y=\"16\" text-anchor=\"end\">{most}</text><text x=\"{}\" y=\"{bottom}\" text-anchor=\"end\">0</text>\n\
         <line class=\"line\" x1=\"{left}\" y1=\"{bottom}\" x2=\"{CHART_WIDTH}\" y2=\"{bottom}\"/>\n",
        left - 6.0,
        left - 6.0
    );
    for of in shown {
        let at = left + f64::from(of.hour) * step;
        let bars = [
            ("opens", "opens", 0.1, of.opens),
            ("machine", "opens by a machine", 0.1, of.machine_opens),
            ("clicks", "clicks", 0.5, of.clicks),
        ];
        for (class, name, offset, count) in bars.into_iter().filter(|(.., count)| *count > 0) {
            let _ = writeln!(
                text,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>hour {}: {count} {name}</title></rect>",
                at + offset * step,
                bottom - height(count),
                0.4 * step,
                height(count),
                hour_name(of.hour)
            );
        }
    }
    for hour in (0..CHART_HOURS).step_by(12) {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{}\">{hour} h</text>",
            left + f64::from(hour) * step,
            CHART_HEIGHT - 6.0
        );
    }
    text + "</svg>\n<p>Blue: opens, light where a machine rule names them. Orange: clicks.</p>\n"
}

/// Draws a column of a section as horizontal bars.
fn bars(section: &Section, column: usize, class: &str) -> String {
    let value = |row: &Vec<String>| row.get(column).and_then(|cell| cell.parse::<u64>().ok()).unwrap_or(0);
    let rows: Vec<_> = section.rows.iter().filter(|row| row[0] != "all").take(BARS_MAX).collect();
    let Some(most) = rows.iter().map(|row| value(row)).max().filter(|most| *most > 0) else { return String::new() };
    let height = rows.len() as f64 * BAR_HEIGHT;
    let label = format!("{}: {}", section.title, section.columns[column]);
    let mut text =
        format!("<svg viewBox=\"0 0 {CHART_WIDTH} {height}\" role=\"img\" aria-label=\"{}\">\n", escaped(&label));
    for (number, row) in rows.into_iter().enumerate() {
        let (top, count) = (number as f64 * BAR_HEIGHT, value(row));
        let width = count as f64 / most as f64 * (CHART_WIDTH - NAME_WIDTH - 80.0);
        let _ = writeln!(
            text,
            "<text class=\"name\" x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text><rect class=\"{class}\" x=\"{NAME_WIDTH}\" y=\"{}\" width=\"{width:.1}\" \
             height=\"{}\"/><text x=\"{:.1}\" y=\"{}\">{count}</text>",
            NAME_WIDTH - 8.0,
            top + 15.0,
            escaped(shortened(&row[0])),
            top + 3.0,
            BAR_HEIGHT - 6.0,
            NAME_WIDTH + width + 6.0,
            top + 15.0
        );
    }
    let _ = write!(text, "</svg>\n<p>Bars: {}.</p>\n", escaped(section.columns[column]));
    text
}

/// Returns the end of a long name: links differ there.
fn shortened(name: &str) -> String {
    // In the fixed width of these names, they fit into NAME_WIDTH.
    const CHARS_MAX: usize = 42;
    let length = name.chars().count();
    if length <= CHARS_MAX {
        return name.to_owned();
    }
    format!("…{}", name.chars().skip(length - CHARS_MAX + 1).collect::<String>())
}

fn escaped(text: impl AsRef<str>) -> String {
    let mut escaped = String::new();
    for c in text.as_ref().chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c if crate::commands::table::is_odd(c) => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &str) -> Section {
        Section {
            name: "links",
            title: "Clicks".to_owned(),
            columns: vec!["link", "clicks"],
            rows: vec![vec![name.to_owned(), "4".to_owned()], vec!["b".to_owned(), "2".to_owned()]],
        }
    }

    #[test]
    fn a_link_cannot_leave_its_place() {
        let hostile = section("\"><script>alert(1)</script>'&\u{202e}");
        for text in [table(&hostile), bars(&hostile, 1, "clicks")] {
            assert!(!text.contains("<script") && text.contains("&quot;&gt;&lt;script&gt;"), "{text}");
            assert!(text.contains("&#39;&amp;\u{fffd}"), "{text}");
        }
    }

    #[test]
    fn bars_are_in_proportion_to_the_longest() {
        let text = bars(&section("a"), 1, "clicks");
        assert!(text.contains("width=\"560.0\"") && text.contains("width=\"280.0\""), "{text}");
        assert_eq!(
            bars(&Section { rows: vec![vec!["a".to_owned(), "0".to_owned()]], ..section("a") }, 1, "clicks"),
            ""
        );
    }

    #[test]
    fn the_hours_chart_has_a_bar_for_each_count() {
        let hours = [
            Hour { hour: -1, opens: 9, machine_opens: 0, clicks: 0 },
            Hour { hour: 0, opens: 4, machine_opens: 1, clicks: 2 },
            Hour { hour: 80, opens: 9, machine_opens: 0, clicks: 0 },
        ];
        let text = hours_chart(&hours);
        assert_eq!(text.matches("<rect").count(), 3, "{text}");
        assert!(text.contains("<title>hour 0: 4 opens</title>"), "{text}");
        assert_eq!(hours_chart(&hours[..1]), "");
    }

    #[test]
    fn a_long_link_keeps_its_end() {
        let name = shortened(&format!("https://example.com/{}/end", "x".repeat(60)));
        assert!(name.starts_with('…') && name.ends_with("/end") && name.chars().count() == 42);
    }
}
