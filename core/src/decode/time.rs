//! Reads `event_time`: the output of Python's `datetime.isoformat()` and the forms of other producers, without allocation.
//!
//! Accepts `YYYY-MM-DD`, then `T`, `t` or a space, then `HH:MM` or `HH:MM:SS`. An optional fraction of one to nine digits is
//! dropped, because the column holds whole seconds. `Z`, `+HH`, `+HHMM`, `+HH:MM` or `+HH:MM:SS` may follow. Without an offset the
//! time is UTC. After a space, `UTC` may stand for the offset. A zone's name in brackets may follow an offset.
//!
//! Numbers are epoch seconds, milliseconds, microseconds or nanoseconds, and their size decides. Text of 10, 13, 16 or 19 digits
//! is such a number. It must never round a time into another day. A producer's times must not be half read: a form that its clock
//! makes shorter at some times is read at all times.
//!
//! A parser of a library, such as `speedate`, reads only some of these forms. Each event passes here once, so it must stay cheap.

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
    match text.as_bytes().split_first_chunk::<19>() {
        Some((date_time, rest)) if date_time[16] == b':' => parse_parts(date_time, fraction_skipped(rest)?),
        _ => parse_short(text.as_bytes()),
    }
}

/// Reads the rarer forms: digits alone, and times without seconds.
#[cold]
fn parse_short(text: &[u8]) -> Result<u32, TimeError> {
    if text.get(4) != Some(&b'-') {
        return epoch_text(text);
    }
    let (minutes, offset) = text.split_first_chunk::<16>().ok_or(TimeError::Malformed)?;
    let mut date_time = *b"0000-00-00T00:00:00";
    date_time[..16].copy_from_slice(minutes);
    parse_parts(&date_time, offset)
}

/// Reads an epoch number that was written as text. Only lengths that mean one unit from 2001 to 2106 are read.
fn epoch_text(text: &[u8]) -> Result<u32, TimeError> {
    let length = text.iter().take_while(|b| b.is_ascii_digit()).count();
    let (number, fraction) = text.split_at(length);
    let has_fraction = !fraction.is_empty();
    if !matches!((length, has_fraction), (10, _) | (13 | 16 | 19, false)) || !fraction_skipped(fraction)?.is_empty() {
        return Err(TimeError::Malformed);
    }
    let number = number.iter().try_fold(0_i64, |n, b| n.checked_mul(10)?.checked_add(i64::from(b - b'0')));
    number.ok_or(TimeError::OutOfRange).and_then(from_integer)
}

/// Reads `YYYY-MM-DDTHH:MM:SS` with the text of its offset.
#[inline]
fn parse_parts(b: &[u8; 19], offset: &[u8]) -> Result<u32, TimeError> {
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
    let offset = offset_seconds(offset)?;
    let days = days_from_civil(i64::from(year), i64::from(month), i64::from(day));
    let of_day = i64::from(hour * 3_600 + minute * 60 + second);
    in_range(days * i64::from(SECONDS_PER_DAY) + of_day - offset)
}

/// Returns the seconds since 1970-01-01 UTC of a number: seconds up to 2^32 − 1, milliseconds above. From 10^15 on it is
/// microseconds, and from 10^18 on nanoseconds: both begin in 2001. A number of milliseconds would be there in the year 33658.
///
/// # Errors
/// [`TimeError::OutOfRange`] for negative and too great numbers.
pub fn from_integer(number: i64) -> Result<u32, TimeError> {
    let per_second = if number <= SECONDS_MAX {
        1
    } else if number < MICROSECONDS_MIN {
        1_000
    } else if number < NANOSECONDS_MIN {
        1_000_000
    } else {
        1_000_000_000
    };
    in_range(number / per_second)
}

/// Greatest number of seconds that the column holds.
const SECONDS_MAX: i64 = u32::MAX as i64;
const MICROSECONDS_MIN: i64 = 1_000_000_000_000_000;
const NANOSECONDS_MIN: i64 = 1_000_000_000_000_000_000;

/// Does the same as [`from_integer`] for a number with a fraction. It drops the fraction.
///
/// # Errors
/// [`TimeError::OutOfRange`] for negative and too great numbers.
pub fn from_float(number: f64) -> Result<u32, TimeError> {
    // The bounds make the cast exact: below them no i64 overflow, and truncation is the floor of a positive number.
    if !(0.0..9e18).contains(&number) {
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
    match text {
        [] | [b'Z' | b'z'] | b" UTC" => Ok(0),
        [offset @ .., b']'] => before_zone_name(offset),
        [b' ', offset @ ..] => numeric_offset_seconds(offset),
        _ => numeric_offset_seconds(text),
    }
}

/// Reads the offset before a zone's name in brackets, as Java's `ZonedDateTime` writes it. The offset alone decides.
#[cold]
fn before_zone_name(text: &[u8]) -> Result<i64, TimeError> {
    let open = text.iter().position(|b| *b == b'[').ok_or(TimeError::Malformed)?;
    let (offset, name) = (&text[..open], &text[open + 1..]);
    let is_name = |b: &u8| b.is_ascii_alphanumeric() || b"/_+-".contains(b);
    match offset {
        [b'Z' | b'z' | b'+' | b'-', ..] if !name.is_empty() && name.iter().all(is_name) => offset_seconds(offset),
        _ => Err(TimeError::Malformed),
    }
}

/// Reads an offset with a sign. ISO 8601 prefers the character U+2212 as minus, and some libraries write it.
fn numeric_offset_seconds(text: &[u8]) -> Result<i64, TimeError> {
    let (sign, parts) = match text {
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] | [0xe2, 0x88, 0x92, rest @ ..] => (-1, rest),
        _ => return Err(TimeError::Malformed),
    };
    let (hours, minutes, seconds) = match parts {
        [_, _] => (digits(parts)?, 0, 0),
        [_, _, b':', _, _] => (digits(&parts[..2])?, digits(&parts[3..])?, 0),
        [_, _, _, _] => (digits(&parts[..2])?, digits(&parts[2..])?, 0),
        [_, _, b':', _, _, b':', _, _] => (digits(&parts[..2])?, digits(&parts[3..5])?, digits(&parts[6..])?),
        _ => return Err(TimeError::Malformed),
    };
    if hours > 23 || minutes > 59 || seconds > 59 {
        return Err(TimeError::Malformed);
    }
    Ok(sign * i64::from(hours * 3_600 + minutes * 60 + seconds))
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

    /// The forms of `docs/rejects.md`, "Times of other producers", that are read.
    #[test]
    fn other_producers_forms_are_read() {
        let seconds = 1_795_501_800; // 2026-11-24T06:30:00Z
        for text in [
            "2026-11-24T06:30",
            "2026-11-24T06:30Z",
            "2026-11-24T07:30+01:00",
            "2026-11-24T07:30+01:00[Europe/Paris]",
            "2026-11-24T07:30:00.5+01:00[Europe/Paris]",
            "2026-11-24T06:30Z[UTC]",
            "2026-11-24 06:30:00 +0000",
            "2026-11-24 06:30:00 UTC",
            "2026-11-24 07:30:00 +0100",
            "2026-11-24T12:23:28+05:53:28",
            "2026-11-24T05:30:00\u{2212}01:00",
            "1795501800",
            "1795501800.25",
            "1795501800123",
            "1795501800123456",
            "1795501800123456789",
        ] {
            assert_eq!(parse(text), Ok(seconds), "{text}");
        }
        for factor in [1_000_000, 1_000_000_000] {
            assert_eq!(from_integer(i64::from(seconds) * factor + factor / 2), Ok(seconds));
        }
        assert_eq!(
            (from_integer(MICROSECONDS_MIN), from_integer(NANOSECONDS_MIN)),
            (Ok(1_000_000_000), Ok(1_000_000_000))
        );
        assert_eq!(from_float(f64::from(seconds) * 1e6 + 0.5), Ok(seconds));
    }

    #[test]
    fn what_is_no_time_is_malformed_and_what_does_not_fit_is_out_of_range() {
        for text in [
            "",
            "now",
            "2026-11-24",
            "2026-11-24T24:00:00",
            "2026-11-24T06",
            "2026-11-24T06:3",
            "2026-11-24T06:30.5",
            "2026-11-24T06:60",
            "2026-11-24T0６:30",
            "2026-02-29T00:00:00",
            "2026-11-24T06:30:60",
            "2026-13-01T00:00:00",
            "2026-11-24T06:30:00.",
            "2026-11-24T06:30:00+2:00",
            "2026-11-24T06:30:00 CET",
            "2026-11-24T06:30:00  UTC",
            "2026-11-24 06:30:00 +0000 UTC",
            "2026-11-24T06:30:00[Europe/Paris]",
            "2026-11-24T06:30:00+01:00[]",
            "2026-11-24T06:30:00+01:00[Europe/Paris",
            "2026-11-24T06:30:00+01:00[a[b]]",
            "2026-11-24T06:30:00+05:53:60",
            "2026-11-24T06:30:00+05:53:28.5",
            "20261124T063000Z",
            "20261124063000",
            "179550180",
            "1795501800.",
            "1795501800123.5",
            "17955018001",
            "-1795501800",
            "1e9",
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
        assert_eq!(parse("9999999999999999999"), Err(TimeError::OutOfRange));
        for number in [SECONDS_MAX * 1_000 + 1_000, MICROSECONDS_MIN - 1, NANOSECONDS_MIN - 1] {
            assert_eq!(from_integer(number), Err(TimeError::OutOfRange), "{number}");
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
