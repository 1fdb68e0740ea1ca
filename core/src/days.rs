//! Whole UTC days, and ranges of them, for the commands that look at a period.

use crate::decode::{event, time};
use std::str::FromStr;

const DAY_S: u32 = 86_400;

/// A UTC day, written `2026-11-24`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Day {
    text: String,
    start_s: u32,
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Day, String> {
        let start_s = time::parse(&format!("{text}T00:00:00")).ok().filter(|_| text.len() == 10);
        let start_s = start_s.ok_or_else(|| format!("{text:?} is not a day; write it as 2026-11-24"))?;
        Ok(Day { text: text.to_owned(), start_s })
    }
}

impl Day {
    /// Returns the day as it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// A calendar month of UTC, written `202611`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month(u32);

impl FromStr for Month {
    type Err = String;

    fn from_str(text: &str) -> Result<Month, String> {
        let number = text.parse().ok().filter(|_| text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_digit()));
        let month = number.map(Month).filter(|month| month.first_second(month.0).is_some());
        month.ok_or_else(|| format!("{text:?} is not a month; write it as 202611"))
    }
}

impl Month {
    /// Returns the ClickHouse partition of `daily`: `yyyymm`.
    pub fn number(self) -> u32 {
        self.0
    }

    /// Returns the days of the month.
    pub fn span(self) -> Span {
        let after = if self.0 % 100 == 12 { self.0 + 89 } else { self.0 + 1 };
        let first_s = self.first_second(self.0).unwrap_or(0);
        // The last month that fits into the column ends before its last day.
        let last_s = self.first_second(after).map_or(u32::MAX, |second| second - 1);
        Span { first_s, last_s }
    }

    fn first_second(self, month: u32) -> Option<u32> {
        time::parse(&format!("{:04}-{:02}-01T00:00:00", month / 100, month % 100)).ok()
    }
}

/// A range from the first second of one day to the last second of another, in seconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    first_s: u32,
    last_s: u32,
}

impl Span {
    /// Returns the range from `since` to `until`, both inclusive. It is open on the side where a day is not given.
    pub fn new(since: Option<&Day>, until: Option<&Day>) -> Span {
        Span {
            first_s: since.map_or(0, |day| day.start_s),
            last_s: until.map_or(u32::MAX, |day| day.start_s.saturating_add(DAY_S - 1)),
        }
    }

    /// Returns the part of the span from a day on, and the part before it.
    pub fn split_at(&self, day: event::Day) -> (Span, Span) {
        let first_s = u32::from(day.0).saturating_mul(DAY_S);
        let from = Span { first_s: self.first_s.max(first_s), ..*self };
        (from, Span { last_s: self.last_s.min(first_s.saturating_sub(1)), ..*self })
    }

    /// Returns the first millisecond, unless the span has no beginning.
    pub fn first_ms(&self) -> Option<i64> {
        (self.first_s > 0).then(|| i64::from(self.first_s) * 1_000)
    }

    /// Returns the first millisecond after the span, unless the span has no end.
    pub fn end_ms(&self) -> Option<i64> {
        (self.last_s < u32::MAX).then(|| (i64::from(self.last_s) + 1) * 1_000)
    }

    /// Returns the SQL condition on `email_events`.
    pub fn of_rows(&self) -> String {
        let Span { first_s, last_s } = self;
        format!("(event_time >= toDateTime({first_s}, 'UTC') AND event_time <= toDateTime({last_s}, 'UTC'))")
    }

    /// Returns the SQL condition on `daily`.
    pub fn of_counters(&self) -> String {
        let (first, last) = (self.first_s / DAY_S, self.last_s / DAY_S);
        format!("(day >= toDate({first}) AND day <= toDate({last}))")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_months_are_whole_and_inclusive() {
        let (since, until) = ("2026-11-23".parse().unwrap(), "2026-11-24".parse().unwrap());
        let span = Span::new(Some(&since), Some(&until));
        assert_eq!(span.end_ms().unwrap() - span.first_ms().unwrap(), 2 * 86_400_000);
        let month: Month = "202612".parse().unwrap();
        assert_eq!(month.span().end_ms().unwrap() - month.span().first_ms().unwrap(), 31 * 86_400_000);
        let all = Span::new(None, None);
        assert_eq!((all.first_ms(), all.end_ms()), (None, None));
    }

    #[test]
    fn a_span_is_split_at_a_day() {
        let day = |text: &str| text.parse::<Day>().unwrap();
        let span = Span::new(Some(&day("2026-11-23")), Some(&day("2026-11-25")));
        let at = event::Day::of(day("2026-11-24").start_s);
        let (kept, before) = span.split_at(at);
        assert_eq!(kept, Span::new(Some(&day("2026-11-24")), Some(&day("2026-11-25"))));
        assert_eq!(before, Span::new(Some(&day("2026-11-23")), Some(&day("2026-11-23"))));
        assert_eq!(Span::new(None, None).split_at(event::Day(0)).0, Span::new(None, None));
    }

    #[test]
    fn what_is_no_day_or_month_is_refused() {
        for text in ["2026-11-31", "2026-11", "24.11.2026", "2026-11-24 ", ""] {
            assert!(text.parse::<Day>().is_err(), "{text}");
        }
        for text in ["202613", "2026-1", "+20261", "190001", ""] {
            assert!(text.parse::<Month>().is_err(), "{text}");
        }
    }
}
