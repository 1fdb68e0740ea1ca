//! Shows a long wait: a spinner on a terminal, one plain line elsewhere.
//!
//! Must never print to standard output, which belongs to the caller.

use indicatif::{ProgressBar, ProgressStyle};
use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

/// Runs `work` under a message such as `fetching Kafka 4.1.1`, on standard error.
pub fn during<T>(message: &str, work: impl FnOnce() -> T) -> T {
    if !stderr().is_terminal() {
        eprintln!("devstack: {message}");
        return work();
    }
    let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    let result = work();
    spinner.finish_and_clear();
    result
}
