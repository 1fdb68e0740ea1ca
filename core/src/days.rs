//! The calendar: UTC days, months, ranges of them, and times as text. No other module of the program uses chrono.
//!
//! The time of each event is read without it, in `decode/time.rs`: that runs for every record and allocates nothing.

use chrono::{DateTime, Datelike, Months, NaiveDate, SecondsFormat, Utc};
use std::fmt;
use std::str::FromStr;

/// Number of seconds in a UTC day.
pub const SECONDS_PER_DAY: u32 = 86_400;

/// A UTC day as the number of days since 1970-01-01, as ClickHouse's `Date` holds it. It is written `2026-11-24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(pub u16);

impl Day {
    /// Returns the day of a time in seconds since 1970-01-01 UTC.
    pub fn of(seconds: u32) -> Day {
        // u32::MAX / 86,400 = 49,710, which fits.
        Day((seconds / SECONDS_PER_DAY) as u16)
    }

    /// Returns `yyyymmdd`, as ClickHouse's `toYYYYMMDD` does.
    pub fn yyyymmdd(self) -> u32 {
        let date = self.date();
        date.year_ce().1 * 10_000 + date.month() * 100 + date.day()
    }

    /// Returns `yyyymm`, as ClickHouse's `toYYYYMM` does.
    pub fn yyyymm(self) -> u32 {
        self.yyyymmdd() / 100
    }

    fn date(self) -> NaiveDate {
        NaiveDate::from_epoch_days(i32::from(self.0)).unwrap_or_default()
    }

    fn first_second(self) -> u32 {
        u32::from(self.0).saturating_mul(SECONDS_PER_DAY)
    }
}

impl FromStr for Day {
    type Err = String;

    fn from_str(text: &str) -> Result<Day, String> {
        let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
        // chrono also reads spaces, signs and single digits.
        let date = date.filter(|date| date.to_string() == text);
        let day = date.and_then(first_second).map(Day::of);
        day.ok_or_else(|| format!("{text:?} is not a day; write it as 2026-11-24"))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.date().fmt(f)
    }
}

/// Returns the first second of a date, unless it is before 1970 or after 2106-02-07: those do not fit into `event_time`.
fn first_second(date: NaiveDate) -> Option<u32> {
    u32::try_from(i64::from(date.to_epoch_days()) * i64::from(SECONDS_PER_DAY)).ok()
}

/// Returns a time in milliseconds since 1970-01-01 UTC as text. An earlier time becomes 1970-01-01.
pub fn utc_text(ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(ms.max(0)).unwrap_or(DateTime::<Utc>::MAX_UTC);
    time.to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A calendar month of UTC, written `202611`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month(u32);

impl FromStr for Month {
    type Err = String;

    fn from_str(text: &str) -> Result<Month, String> {
        let number = text.parse().ok().filter(|_| text.len() == 6 && text.bytes().all(|byte| byte.is_ascii_digit()));
        let month = number.map(Month).filter(|month| month.first_day().and_then(first_second).is_some());
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
        let first = self.first_day();
        let next = first.and_then(|first| first.checked_add_months(Months::new(1)));
        let first_s = first.and_then(first_second).unwrap_or(0);
        // The last month that fits into the column ends before its last day.
        let last_s = next.and_then(first_second).map_or(u32::MAX, |second| second - 1);
        Span { first_s, last_s }
    }

    fn first_day(self) -> Option<NaiveDate> {
        NaiveDate::from_ymd_opt(i32::try_from(self.0 / 100).ok()?, self.0 % 100, 1)
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
    pub fn new(since: Option<Day>, until: Option<Day>) -> Span {
        Span {
            first_s: since.map_or(0, Day::first_second),
            last_s: until.map_or(u32::MAX, |day| day.first_second().saturating_add(SECONDS_PER_DAY - 1)),
        }
    }

    /// Returns the part of the span from a day on, and the part before it.
    pub fn split_at(&self, day: Day) -> (Span, Span) {
        let first_s = day.first_second();
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
        let (first, last) = (Day::of(self.first_s).0, Day::of(self.last_s).0);
        format!("(day >= toDate({first}) AND day <= toDate({last}))")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_months_are_whole_and_inclusive() {
        let (since, until) = ("2026-11-23".parse().unwrap(), "2026-11-24".parse().unwrap());
        let span = Span::new(Some(since), Some(until));
        assert_eq!(span.end_ms().unwrap() - span.first_ms().unwrap(), 2 * 86_400_000);
        let month: Month = "202612".parse().unwrap();
        assert_eq!(month.span().end_ms().unwrap() - month.span().first_ms().unwrap(), 31 * 86_400_000);
        let all = Span::new(None, None);
        assert_eq!((all.first_ms(), all.end_ms()), (None, None));
    }

    /// ClickHouse's `Date` ends on 2149-06-06. Three days and the two ends pin the numbers; the rest must follow each other.
    #[test]
    fn days_have_the_numbers_of_clickhouse() {
        for (day, number) in [(0, 19_700_101), (11_016, 20_000_229), (20_781, 20_261_124), (u16::MAX, 21_490_606)] {
            assert_eq!(Day(day).yyyymmdd(), number);
        }
        assert!((0..u16::MAX).all(|day| Day(day).yyyymmdd() < Day(day + 1).yyyymmdd()));
        for text in ["1970-01-01", "2000-02-29", "2026-11-24", "2106-02-07"] {
            assert_eq!(text.parse::<Day>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn times_are_utc_to_the_millisecond() {
        assert_eq!(utc_text(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(utc_text(1_795_576_200_123), "2026-11-25T03:10:00.123Z");
        assert_eq!(utc_text(-5), "1970-01-01T00:00:00.000Z");
        assert!(utc_text(i64::MAX).starts_with("+262142-12-31"));
    }

    #[test]
    fn a_span_is_split_at_a_day() {
        let day = |text: &str| text.parse::<Day>().unwrap();
        let span = Span::new(Some(day("2026-11-23")), Some(day("2026-11-25")));
        let (kept, before) = span.split_at(day("2026-11-24"));
        assert_eq!(kept, Span::new(Some(day("2026-11-24")), Some(day("2026-11-25"))));
        assert_eq!(before, Span::new(Some(day("2026-11-23")), Some(day("2026-11-23"))));
        assert_eq!(Span::new(None, None).split_at(Day(0)).0, Span::new(None, None));
    }

    #[test]
    fn what_is_no_day_or_month_is_refused() {
        for text in [
            "2026-11-31",
            "2026-11",
            "24.11.2026",
            "2026-11-24 ",
            "2026-1-024",
            "+026-11-24",
            "1969-12-31",
            "2106-02-08",
            "",
        ] {
            assert!(text.parse::<Day>().is_err(), "{text}");
        }
        for text in ["202613", "2026-1", "+20261", "190001", ""] {
            assert!(text.parse::<Month>().is_err(), "{text}");
        }
    }
}
