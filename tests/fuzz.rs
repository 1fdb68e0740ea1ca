//! Runs the fuzz targets shortly, as part of `cargo test`: every seed, and random changes of them. `CONTRIBUTING.md`
//! has the long run.
//!
//! `TALLYHOUSE_FUZZ_SEED=7` repeats a run (a failing one prints its seed and the input),
//! `TALLYHOUSE_FUZZ_RUNS=1000000` makes it longer.

#![allow(
    clippy::unwrap_used,
    reason = "a test's panic is its report, and clippy takes only functions marked as tests for tests"
)]

#[path = "../fuzz/checks.rs"]
mod checks;

use devstack::producer::Events;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use tallyhouse_core::decode::{decode, decode_reference, fast};

const RUNS: u64 = 20_000;
const CHANGES_MAX: usize = 6;

/// Returns the seeds of a target, by name.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(target);
    let mut seeds: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    seeds.sort();
    assert!(seeds.len() > 5, "{target}");
    seeds
}

/// Returns the words of `fuzz/words.dict`, which libFuzzer reads as well: one in quotes a line, `\` before `"` and
/// `\`.
fn words() -> Vec<Vec<u8>> {
    let dictionary = include_str!("../fuzz/words.dict").lines().filter(|line| line.starts_with('"'));
    let words: Vec<Vec<u8>> = dictionary
        .map(|line| line[1..line.len() - 1].replace(r#"\""#, "\"").replace(r"\\", r"\").into_bytes())
        .collect();
    assert!(words.len() > 20);
    words
}

fn number_of(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

fn changed(input: &mut Vec<u8>, dice: &mut StdRng, words: &[Vec<u8>], seeds: &[(String, Vec<u8>)]) {
    let from = dice.random_range(0..=input.len());
    let to = dice.random_range(from..=input.len().min(from + 40));
    let insert: Vec<u8> = match dice.random_range(0..8) {
        0 => vec![dice.random()],
        1 | 2 => words.choose(dice).unwrap().clone(),
        3 => input[from..to].repeat(2),
        4 => Vec::new(),
        5 => {
            let other = &seeds.choose(dice).unwrap().1;
            let start = dice.random_range(0..=other.len());
            other[start..].to_vec()
        }
        6 => dice.random_range(-5i128 << 60..5 << 60).to_string().into_bytes(),
        _ => input[from..to].iter().map(|byte| byte ^ 1 << dice.random_range(0..8)).collect(),
    };
    // Half of the time it replaces the bytes there; half of the time it goes before them.
    let to = if dice.random() { to } else { from };
    input.splice(from..to, insert);
}

fn run(target: &str, folder: &str, check: fn(&[u8])) {
    let (seeds, words) = (seeds(folder), words());
    let seed = number_of("TALLYHOUSE_FUZZ_SEED").unwrap_or_else(rand::random);
    let mut dice = StdRng::seed_from_u64(seed);
    let checked = |input: &[u8]| {
        if catch_unwind(AssertUnwindSafe(|| check(input))).is_err() {
            panic!("{target} fails, TALLYHOUSE_FUZZ_SEED={seed}: {:?}", input.escape_ascii().to_string());
        }
    };
    seeds.iter().for_each(|(_, input)| checked(input));
    for _ in 0..number_of("TALLYHOUSE_FUZZ_RUNS").unwrap_or(RUNS) {
        let mut input = seeds.choose(&mut dice).unwrap().1.clone();
        for _ in 0..dice.random_range(1..=CHANGES_MAX) {
            changed(&mut input, &mut dice, &words, &seeds);
        }
        checked(&input);
    }
}

#[test]
fn any_value_is_an_event_or_a_reject() {
    run("decode", "decode", checks::decode);
}

#[test]
fn the_quick_reader_agrees_with_serde() {
    run("quick", "decode", checks::quick);
}

#[test]
fn the_decoder_agrees_with_the_reference() {
    run("differential", "decode", checks::differential);
}

#[test]
fn metadata_is_read_only_as_it_is_written() {
    run("intent", "intent", checks::intent);
}

/// A seed's name begins with its outcome: `event`, or a reason.
#[test]
fn every_seed_is_what_its_name_says() {
    for (name, value) in seeds("decode") {
        let decoded = decode(Some(&value), Some(checks::NOW_MS), &checks::BOUNDS);
        let outcome = decoded.as_ref().map_or_else(|rejection| rejection.reason.code(), |_| "event");
        assert_eq!(name.split('.').next(), Some(outcome), "{name}: {decoded:?}");
    }
}

/// Falling back to serde_json for each event would double the cost of decoding.
#[test]
fn every_event_of_the_made_up_producer_is_read_by_the_fast_reader() {
    for size_bytes in [None, Some(10), Some(2_000)] {
        let events = Events { broken_percent: 0, size_bytes, ..Events::default() };
        for n in 0..1_000 {
            let spaced = String::from_utf8(events.payload(n).bytes).unwrap();
            for text in [spaced.replace(", ", ",").replace(": ", ":"), spaced] {
                let event = fast::read(&text);
                assert!(event.is_some(), "not read by the fast reader: {text}");
                assert_eq!(event, decode_reference(Some(text.as_bytes()), None, &checks::BOUNDS).ok(), "{text}");
            }
        }
    }
}
