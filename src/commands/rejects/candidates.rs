//! The source of a replay's candidates: the table, or lines of an export.

use super::plan::Candidate;
use super::{Filter, Origin, Pages, RejectsError, export, read};
use crate::clickhouse::client::Client;
use std::collections::HashMap;
use std::io::BufRead;
use std::path::PathBuf;

/// Maximum number of lines that are looked up at once.
const LINES: usize = 1_000;
const LINES_BYTES: usize = 8 << 20;

/// The source of the candidates.
pub(super) enum Rows<'c> {
    /// All rows of a filter, with their own bytes.
    Table(Pages<'c>),
    /// The rows that lines name, with the lines' bytes.
    Lines { lines: Box<dyn BufRead + Send>, path: String, number: u64 },
}

impl<'c> Rows<'c> {
    /// Opens the rows of a filter or, where a file is given, of its lines; `-` is standard input.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(client: &'c Client, filter: Filter, from: Option<PathBuf>) -> Result<Rows<'c>, RejectsError> {
        let Some(path) = from else { return Ok(Rows::Table(Pages::new(client, filter))) };
        let name = path.display().to_string();
        let lines: Box<dyn BufRead + Send> = match name.as_str() {
            "-" => Box::new(std::io::BufReader::new(std::io::stdin())),
            _ => match std::fs::File::open(&path) {
                Ok(file) => Box::new(std::io::BufReader::new(file)),
                Err(error) => return Err(RejectsError::File { path: name, error }),
            },
        };
        Ok(Rows::Lines { lines, path: name, number: 0 })
    }

    /// Returns the next candidates, and the origins of lines that have no row. Both are empty after the last.
    ///
    /// # Errors
    /// ClickHouse cannot be asked, or a line cannot be read.
    pub async fn next(&mut self, client: &Client) -> Result<(Vec<Candidate>, Vec<Origin>), RejectsError> {
        let given = match self {
            Rows::Table(pages) => {
                let rows = pages.next().await?.into_iter();
                return Ok((rows.map(|row| Candidate { payload: row.payload.clone(), row }).collect(), Vec::new()));
            }
            // Standard input may block this thread.
            Rows::Lines { lines, path, number } => tokio::task::block_in_place(|| read_lines(lines, path, number))?,
        };
        let origins: Vec<Origin> = given.iter().map(|line| line.origin.clone()).collect();
        let rows = read::of_origins(client, &origins).await?;
        let rows: HashMap<_, _> = rows.into_iter().map(|row| (row.origin.clone(), row)).collect();
        let (mut candidates, mut without_row) = (Vec::with_capacity(given.len()), Vec::new());
        for line in given {
            match rows.get(&line.origin) {
                Some(row) => candidates.push(Candidate { row: row.clone(), payload: line.payload }),
                None => without_row.push(line.origin),
            }
        }
        Ok((candidates, without_row))
    }
}

fn read_lines(
    lines: &mut dyn BufRead,
    path: &str,
    number: &mut u64,
) -> Result<Vec<export::ExportedRecord>, RejectsError> {
    let (mut given, mut bytes) = (Vec::new(), 0);
    while given.len() < LINES && bytes < LINES_BYTES {
        let mut line = String::new();
        let read = lines.read_line(&mut line);
        if read.map_err(|error| RejectsError::File { path: path.to_owned(), error })? == 0 {
            break;
        }
        *number += 1;
        if !line.trim().is_empty() {
            bytes += line.len();
            given.push(export::read(&line).map_err(|what| RejectsError::Line { line: *number, what })?);
        }
    }
    Ok(given)
}
