//! Standard output and standard error of the commands.
//!
//! A reader may go away at any time: a pager ends, a terminal is closed, a disk is full. This module must never panic because of
//! that, nor end a command that holds something open. It remembers the loss, and the command's exit status reports it at the end.

use super::lock::locked;
use std::io::{self, ErrorKind, Write};
use std::sync::Mutex;

/// The reason why standard output cannot be written any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("standard output: {reason}")]
pub struct Lost {
    /// True if nobody reads it any more: a pipe's other end, or the terminal, is closed.
    pub reader_gone: bool,
    /// Description of the failure by the system.
    pub reason: String,
}

impl Lost {
    fn new(error: &io::Error) -> Lost {
        // A terminal that was closed answers with EIO, for which the standard library has no kind.
        let hung_up = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
        Lost { reader_gone: hung_up || error.kind() == ErrorKind::BrokenPipe, reason: error.to_string() }
    }
}

/// The first failure to write standard output.
static LOST: Mutex<Option<Lost>> = Mutex::new(None);

/// Writes bytes to standard output. After a failure it writes nothing more.
///
/// # Errors
/// The first failure.
pub fn print(bytes: &[u8]) -> Result<(), Lost> {
    let mut lost = locked(&LOST);
    write(&mut io::stdout().lock(), &mut lost, bytes)
}

/// Writes one line to standard output, if it can still be written.
pub fn line(text: &str) {
    // `lost` reports it at the end of the command.
    let _ = print(format!("{text}\n").as_bytes());
}

/// Receives each step of a long command before it begins, in words for people.
pub type ProgressFn<'a> = &'a (dyn Fn(&str) + Sync);

/// Writes one line to standard error, if it can be written.
pub fn note(text: &str) {
    // There is no other place to report this.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Returns the first failure to write standard output, if there was one.
pub fn lost() -> Option<Lost> {
    locked(&LOST).clone()
}

fn write(to: &mut impl Write, lost: &mut Option<Lost>, bytes: &[u8]) -> Result<(), Lost> {
    if let Some(lost) = lost {
        return Err(lost.clone());
    }
    to.write_all(bytes).and_then(|()| to.flush()).map_err(|error| lost.insert(Lost::new(&error)).clone())
}

/// Returns a document for machines: indented JSON that ends with a line break.
///
/// # Errors
/// Never in practice: all keys are text.
pub fn json(document: &impl serde::Serialize) -> serde_json::Result<String> {
    Ok(serde_json::to_string_pretty(document)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A writer that fails with an error number of the system.
    struct Broken(rustix::io::Errno);

    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_first_failure_is_remembered_and_nothing_is_written_after_it() {
        let mut lost = None;
        let mut written = Vec::new();
        assert_eq!(write(&mut written, &mut lost, b"a"), Ok(()));
        let broken = write(&mut Broken(rustix::io::Errno::PIPE), &mut lost, b"b");
        assert!(broken.as_ref().is_err_and(|lost| lost.reader_gone));
        assert_eq!(write(&mut written, &mut lost, b"c"), broken);
        assert_eq!(written, b"a");
    }

    #[test]
    fn a_closed_terminal_is_a_reader_that_has_gone_and_a_full_disk_is_not() {
        let gone = |errno| write(&mut Broken(errno), &mut None, b"a").unwrap_err().reader_gone;
        assert!(gone(rustix::io::Errno::PIPE) && gone(rustix::io::Errno::IO));
        assert!(!gone(rustix::io::Errno::NOSPC));
    }
}
