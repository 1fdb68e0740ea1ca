//! Child processes that end with this process, however it ends.
//!
//! The kernel sends `PR_SET_PDEATHSIG` when the *thread* that forked ends, not the process, so every spawn must happen on one
//! thread that lives as long as the process; spawning elsewhere would kill servers when a test's thread ends.

use crate::{DevstackError, io};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};

type Job = (Command, Sender<std::io::Result<Child>>);

static SPAWNER: LazyLock<Mutex<Sender<Job>>> = LazyLock::new(|| {
    let (sender, jobs) = channel::<Job>();
    std::thread::spawn(move || {
        for (mut command, answer) in jobs {
            let _ = answer.send(command.spawn());
        }
    });
    Mutex::new(sender)
});

/// A child process; dropping it kills it (`SIGKILL`) and waits for its end.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts a command.
    ///
    /// # Errors
    /// The command cannot be started.
    pub fn spawn(mut command: Command) -> Result<Process, DevstackError> {
        let what = format!("starting {:?}", command.get_program());
        let parent = std::process::id();
        // SAFETY: between fork and exec only prctl, getppid and raise run, all of them async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                    return Err(std::io::Error::last_os_error());
                }
                // The parent may have ended before prctl: then the signal would never come.
                if libc::getppid() != parent as libc::pid_t {
                    libc::raise(libc::SIGKILL);
                }
                Ok(())
            });
        }
        let (answer, spawned) = channel();
        let gone = || std::io::Error::other("the spawning thread is gone");
        let spawner = SPAWNER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        spawner.send((command, answer)).map_err(|_| io(what.clone())(gone()))?;
        let child = spawned.recv().unwrap_or_else(|_| Err(gone())).map_err(io(what))?;
        Ok(Process { child })
    }

    /// Kills the process as `kill -9` does and waits for its end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill9(&mut self) -> Result<(), DevstackError> {
        self.child.kill().map_err(io("killing a server"))?;
        self.child.wait().map(|_| ()).map_err(io("waiting for a server's end"))
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already, which is what is wanted.
        let _ = self.kill9();
    }
}
