//! Reads `event_time`: the output of Python's `datetime.isoformat()` and similar forms, without allocation.
//!
//! Accepts `YYYY-MM-DD`, then `T`, `t` or a space, then `HH:MM:SS`. An optional fraction of one to nine digits is dropped,
//! because the column holds whole seconds. An optional `Z`, `+HH:MM`, `+HHMM` or `+HH` may follow. Without an offset the time is
//! UTC. Numbers are epoch seconds. Numbers above the range of seconds are epoch milliseconds. It must never round a time into
//! another day.

use crate::days::SECONDS_PER_DAY;

/// Reasons why a time was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeError {
    /// It has no accepted form, or there is no such date.
    Malformed,
    /// It is before 1970-01-01 or after 2106-02-07 06:28:15 UTC.
    OutOfRange,
}

/// Returns the seconds since 1970-01-01 UTC of a time in text.
///
/// # Errors
/// See [`TimeError`].
pub fn parse(text: &str) -> Result<u32, TimeError> {
    let (date_time, rest) = text.as_bytes().split_at_checked(19).ok_or(TimeError::Malformed)?;
    let b: &[u8; 19] = date_time.try_into().map_err(|_| TimeError::Malformed)?;
    if b[4] != b'-' || b[7] != b'-' || !matches!(b[10], b'T' | b't' | b' ') || b[13] != b':' || b[16] != b':' {
        return Err(TimeError::Malformed);
    }
    let (year, month, day) = (digits(&b[0..4])?, digits(&b[5..7])?, digits(&b[8..10])?);
    let (hour, minute, second) = (digits(&b[11..13])?, digits(&b[14..16])?, digits(&b[17..19])?);
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in_month(year, month)
        || hour > 23
        || minute > 59
        || second > 59
    {
        return Err(TimeError::Malformed);
    }
    let offset = offset_seconds(fraction_skipped(rest)?)?;
    let days = days_from_civil(i64::from(year), i64::from(month), i64::from(day));
    let of_day = i64::from(hour * 3_600 + minute * 60 + second);
    in_range(days * i64::from(SECONDS_PER_DAY) + of_day - offset)
}

/// Returns the seconds since 1970-01-01 UTC of a number: seconds up to 2^32 − 1, milliseconds above.
///
/// # Errors
/// [`TimeError::OutOfRange`] for negative and too great numbers.
pub fn from_integer(number: i64) -> Result<u32, TimeError> {
    in_range(if number > i64::from(u32::MAX) { number / 1_000 } else { number })
}

/// Does the same as [`from_integer`] for a number with a fraction. It drops the fraction.
///
/// # Errors
/// [`TimeError::OutOfRange`] for negative and too great numbers.
pub fn from_float(number: f64) -> Result<u32, TimeError> {
    // The bounds make the cast exact: below them no i64 overflow, and truncation is the floor of a positive number.
    if !(0.0..9e15).contains(&number) {
        return Err(TimeError::OutOfRange);
    }
    from_integer(number as i64)
}

fn in_range(seconds: i64) -> Result<u32, TimeError> {
    u32::try_from(seconds).map_err(|_| TimeError::OutOfRange)
}

fn digits(bytes: &[u8]) -> Result<u32, TimeError> {
    bytes.iter().try_fold(0, |n, b| match b {
        b'0'..=b'9' => Ok(n * 10 + u32::from(b - b'0')),
        _ => Err(TimeError::Malformed),
    })
}

/// Returns the text after an optional fraction of a second.
fn fraction_skipped(rest: &[u8]) -> Result<&[u8], TimeError> {
    let Some((b'.' | b',', fraction)) = rest.split_first() else { return Ok(rest) };
    let length = fraction.iter().take_while(|b| b.is_ascii_digit()).count();
    if (1..=9).contains(&length) { Ok(&fraction[length..]) } else { Err(TimeError::Malformed) }
}

fn offset_seconds(text: &[u8]) -> Result<i64, TimeError> {
    let (sign, hours_minutes) = match text {
        [] | [b'Z' | b'z'] => return Ok(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return Err(TimeError::Malformed),
    };
    let (hours, minutes) = match hours_minutes {
        [_, _] => (digits(hours_minutes)?, 0),
        [_, _, b':', _, _] => (digits(&hours_minutes[..2])?, digits(&hours_minutes[3..])?),
        [_, _, _, _] => (digits(&hours_minutes[..2])?, digits(&hours_minutes[2..])?),
        _ => return Err(TimeError::Malformed),
    };
    if hours > 23 || minutes > 59 {
        return Err(TimeError::Malformed);
    }
    Ok(sign * i64::from(hours * 3_600 + minutes * 60))
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

/// Returns the days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::{DateTime, FixedOffset, SecondsFormat, TimeZone, Utc};
    use proptest::prelude::*;

    #[test]
    fn the_producers_forms_are_read() {
        let seconds = 1_795_501_800; // 2026-11-24T06:30:00Z
        for text in [
            "2026-11-24T06:30:00",
            "2026-11-24T06:30:00.123456",
            "2026-11-24 06:30:00.999999",
            "2026-11-24T06:30:00Z",
            "2026-11-24T06:30:00.5z",
            "2026-11-24T08:30:00+02:00",
            "2026-11-24T01:00:00.000001-0530",
            "2026-11-24T07:30:00+01",
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        assert_eq!(from_integer(i64::from(seconds)), Ok(seconds));
        assert_eq!(from_integer(i64::from(seconds) * 1_000 + 999), Ok(seconds));
        assert_eq!(from_float(f64::from(seconds) + 0.75), Ok(seconds));
    }

    #[test]
    fn what_is_no_time_is_malformed_and_what_does_not_fit_is_out_of_range() {
        for text in [
            "",
            "now",
            "2026-11-24",
            "2026-11-24T06:30",
            "2026-11-24T24:00:00",
            "2026-02-29T00:00:00",
            "2026-11-24T06:30:60",
            "2026-13-01T00:00:00",
            "2026-11-24T06:30:00.",
            "2026-11-24T06:30:00+2:00",
            "2026-11-24T06:30:00 UTC",
            "2026/11/24T06:30:00",
            "２026-11-24T06:30:00",
            "+026-11-24T06:30:00",
            "2026-11-24T06:30:00.1234567890",
        ] {
            assert_eq!(parse(text), Err(TimeError::Malformed), "{text}");
        }
        for text in ["1969-12-31T23:59:59", "2106-02-07T06:28:16", "1970-01-01T00:00:00+00:01", "9999-12-31T23:59:59"] {
            assert_eq!(parse(text), Err(TimeError::OutOfRange), "{text}");
        }
        assert_eq!(from_integer(-1), Err(TimeError::OutOfRange));
        assert_eq!(from_integer(i64::MAX), Err(TimeError::OutOfRange));
        assert_eq!(from_float(f64::NAN), Err(TimeError::OutOfRange));
        assert_eq!(from_float(-0.5), Err(TimeError::OutOfRange));
    }

    proptest! {
        #[test]
        fn any_time_in_any_zone_is_read_as_chrono_reads_it(seconds: u32, minutes in -1439i32..1439, micros in 0u32..1_000_000) {
            let utc = Utc.timestamp_opt(i64::from(seconds), micros * 1_000).unwrap();
            let zoned: DateTime<FixedOffset> = utc.with_timezone(&FixedOffset::east_opt(minutes * 60).unwrap());
            prop_assert_eq!(parse(&zoned.to_rfc3339_opts(SecondsFormat::Micros, false)), Ok(seconds));
            prop_assert_eq!(parse(&utc.naive_utc().format("%Y-%m-%dT%H:%M:%S%.6f").to_string()), Ok(seconds));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }
}
