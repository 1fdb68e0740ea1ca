//! Signals ask a command to end.
//!
//! SIGTERM, SIGINT, SIGHUP and SIGQUIT have the same meaning. A shell's process group and a supervisor may both send one. So
//! signals that come within a second of the first one count as one with it. A later one ends the process, with 128 plus its
//! number as the exit status. Must never end a command by a signal before the command has reported what it leaves open.

use crate::platform::output;
use std::fmt;
use std::future::pending;
use std::io;
use std::time::{Duration, Instant};
use tokio::signal::unix::{self, SignalKind};
use tokio_util::sync::CancellationToken;

/// Signals that come within this time of the first one count as one with it.
pub const DOUBLED_WITHIN: Duration = Duration::from_secs(1);

/// A signal that asks the process to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The terminal was closed.
    Hangup,
    /// The user pressed Ctrl-C.
    Interrupt,
    /// The user pressed Ctrl-\.
    Quit,
    /// A supervisor asks the process to end.
    Terminate,
}

impl Signal {
    fn kind(self) -> SignalKind {
        match self {
            Signal::Hangup => SignalKind::hangup(),
            Signal::Interrupt => SignalKind::interrupt(),
            Signal::Quit => SignalKind::quit(),
            Signal::Terminate => SignalKind::terminate(),
        }
    }

    /// Returns the exit status of a process that this signal has ended, as a shell shows it.
    pub fn exit_status(self) -> i32 {
        128 + self.kind().as_raw_value()
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Signal::Hangup => "SIGHUP",
            Signal::Interrupt => "SIGINT",
            Signal::Quit => "SIGQUIT",
            Signal::Terminate => "SIGTERM",
        })
    }
}

/// The answer to a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Begin an orderly end of the process.
    End,
    /// Do nothing: the signal counts as one with the first.
    Nothing,
    /// End the process now.
    EndNow,
}

/// The signals that have come so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    first_at: Option<Duration>,
}

impl Asked {
    /// Takes a signal that comes at this time, by any clock that does not go back.
    pub fn again(&mut self, at: Duration) -> Answer {
        match self.first_at {
            None => {
                self.first_at = Some(at);
                Answer::End
            }
            Some(first_at) if at.saturating_sub(first_at) < DOUBLED_WITHIN => Answer::Nothing,
            Some(_) => Answer::EndNow,
        }
    }
}

/// The first signal cancels `stop`. A later one runs `leave`, which reports what stays open, and ends the process.
///
/// # Errors
/// The system refuses a handler.
pub fn end_in_order<F, L>(stop: CancellationToken, leave: F) -> io::Result<()>
where
    F: FnOnce(Signal) -> L + Send + 'static,
    L: Future<Output = ()> + Send,
{
    let mut listener = Listener::new()?;
    tokio::spawn(async move {
        let began = Instant::now();
        let mut asked = Asked::default();
        loop {
            let signal = listener.next().await;
            match asked.again(began.elapsed()) {
                Answer::End => stop.cancel(),
                Answer::Nothing => {}
                Answer::EndNow => {
                    leave(signal).await;
                    std::process::exit(signal.exit_status());
                }
            }
        }
    });
    Ok(())
}

/// The first signal prints `left`, which names what may stay half done, and ends the process.
///
/// # Errors
/// The system refuses a handler.
pub fn end_at_once(left: &'static str) -> io::Result<()> {
    let mut listener = Listener::new()?;
    tokio::spawn(async move {
        let signal = listener.next().await;
        output::note(&format!("tallyhouse: ended by {signal}: {left}"));
        std::process::exit(signal.exit_status());
    });
    Ok(())
}

/// SIGQUIT ends the process as SIGTERM does. Otherwise the system would also write its memory to a file, with the secrets in it.
///
/// # Errors
/// The system refuses a handler.
pub fn quit_without_a_core() -> io::Result<()> {
    let Some(mut quit) = unless_ignored(Signal::Quit)? else { return Ok(()) };
    tokio::spawn(async move {
        quit.recv().await;
        std::process::exit(Signal::Quit.exit_status());
    });
    Ok(())
}

struct Listener {
    terminate: unix::Signal,
    interrupt: unix::Signal,
    hangup: Option<unix::Signal>,
    quit: Option<unix::Signal>,
}

impl Listener {
    fn new() -> io::Result<Listener> {
        Ok(Listener {
            terminate: unix::signal(Signal::Terminate.kind())?,
            interrupt: unix::signal(Signal::Interrupt.kind())?,
            hangup: unless_ignored(Signal::Hangup)?,
            quit: unless_ignored(Signal::Quit)?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Terminate,
            _ = self.interrupt.recv() => Signal::Interrupt,
            () = one(&mut self.hangup) => Signal::Hangup,
            () = one(&mut self.quit) => Signal::Quit,
        }
    }
}

async fn one(listener: &mut Option<unix::Signal>) {
    match listener {
        Some(listener) => _ = listener.recv().await,
        None => pending().await,
    }
}

/// Returns a listener, unless the parent process has made this one ignore the signal, as `nohup` does.
fn unless_ignored(signal: Signal) -> io::Result<Option<unix::Signal>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match ignores(&status, signal) {
        true => Ok(None),
        false => unix::signal(signal.kind()).map(Some),
    }
}

/// True if the process ignores the signal, by the text of `/proc/self/status`. `SigIgn` has one bit for each signal.
fn ignores(status: &str, signal: Signal) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (signal.kind().as_raw_value() - 1)) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_signal_counts_once_and_a_later_one_ends_the_process() {
        let ms = Duration::from_millis;
        let mut asked = Asked::default();
        let answers = [5_000, 5_000, 5_001, 5_999, 6_000, 60_000].map(|at| asked.again(ms(at)));
        let [first, at_once, after_a_moment, within, second, late] = answers;
        assert_eq!(first, Answer::End);
        assert_eq!([at_once, after_a_moment, within], [Answer::Nothing; 3]);
        assert_eq!([second, late], [Answer::EndNow; 2]);
    }

    #[test]
    fn the_exit_status_is_that_of_the_signal() {
        let all = [Signal::Hangup, Signal::Interrupt, Signal::Quit, Signal::Terminate];
        assert_eq!(all.map(Signal::exit_status), [129, 130, 131, 143]);
    }

    #[test]
    fn a_signal_that_nohup_has_ignored_stays_ignored() {
        let status = "Name:\ttallyhouse\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert!(ignores(status, Signal::Hangup));
        assert!(!ignores(status, Signal::Quit));
        assert!(!ignores("", Signal::Hangup));
    }
}
