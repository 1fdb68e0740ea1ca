//! Processes that end with this one: the servers, and any other that a test or the demo runs and hurts.
//!
//! ```text
//! spawn ──> running ──wait_healthy──> healthy ──kill9/terminate/its own end──> ended ──restart──> running
//!              └─stop──> stopped ──cont──┘
//! ```
//!
//! Must never leave a child behind: dropping a [`Server`] kills and reaps it, and the kernel kills it if this process
//! dies any other way.

mod output;
mod spawner;

use crate::error::{Context, Error, Result};
pub use output::Output;
use output::Streams;
pub use rustix::process::Signal;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    param::{clock_ticks_per_second, page_size},
    process::{Pid, PidfdFlags, kill_process, pidfd_open},
};
use std::{
    fmt, fs,
    path::Path,
    process::{Child, Command, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The pause between two health checks; the end of the process cuts it short.
const HEALTH_INTERVAL: Duration = Duration::from_millis(20);

type HealthCheck = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// A child process: running, stopped or ended. All methods take `&self`, so that tests can share one.
pub struct Server {
    name: String,
    command: Arc<Mutex<Command>>,
    child: Mutex<Child>,
    streams: Streams,
    health: Option<HealthCheck>,
}

/// Starts `command` so that it cannot outlive this process. `name` is for messages.
///
/// Its input is empty, and its standard output and error go to `output`. Fails when the program cannot be started.
pub fn spawn(name: impl Into<String>, mut command: Command, output: Output) -> Result<Server> {
    let name = name.into();
    let streams = Streams::attach(output, &mut command)?;
    spawner::arm(&mut command);
    let program = command.get_program().to_owned();
    let command = Arc::new(Mutex::new(command));
    let child = spawner::spawn(&command).context("start", Path::new(&program))?;
    Ok(Server { name, command, child: Mutex::new(child), streams, health: None })
}

/// Runs `command` to its end, however long it takes, and returns its standard output.
///
/// Fails when it cannot be started or ends badly.
pub(crate) fn run(command: Command) -> Result<String> {
    let line = format!("{command:?}");
    let process = spawn(&line, command, Output::Captured)?;
    let status = process.wait(Duration::MAX)?;
    if status.success() {
        return Ok(process.stdout());
    }
    Err(Error::CommandFailed { command: line, status, output: process.stdout() + &process.stderr() })
}

/// Waits until process `pid`, which need not be a child of this one, has ended. Returns false if it has not ended
/// `within`.
pub fn wait_gone(pid: u32, within: Duration) -> Result<bool> {
    let failed = |errno: Errno| Error::Io { action: format!("watch process {pid}"), cause: errno.into() };
    let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| failed(Errno::INVAL))?;
    let watched = match pidfd_open(id, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(true),
        opened => opened.map_err(failed)?,
    };
    let deadline = Instant::now().checked_add(within);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut [PollFd::new(&watched, PollFlags::IN)], timeout.as_ref()) {
            Err(Errno::INTR) => {}
            polled => return polled.map(|ready| ready > 0).map_err(failed),
        }
    }
}

impl Server {
    /// Sets the server's health check: `Err` says in a few words what is not well yet.
    #[must_use]
    pub fn with_health(mut self, check: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Server {
        self.health = Some(Box::new(check));
        self
    }

    /// Returns the name given to [`spawn`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the process id, of the last run if the process has ended.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// True if the process has not ended. A stopped process is alive.
    pub fn is_alive(&self) -> bool {
        matches!(self.child().try_wait(), Ok(None))
    }

    /// Kills the process with SIGKILL and reaps it. Does nothing if it has ended already.
    pub fn kill9(&self) -> Result<()> {
        self.kill_and_reap(&mut self.child())
    }

    /// Freezes the process (SIGSTOP).
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets a frozen process go on (SIGCONT).
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// Asks the process to end (SIGTERM) and waits for it. Fails when it has ended before or does not end `within`.
    pub fn terminate(&self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    /// Sends any signal. Fails when the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // The lock keeps the process from being reaped, and its id from being reused, until the signal is sent.
        let mut child = self.child();
        if !matches!(child.try_wait(), Ok(None)) {
            return Err(self.not_running());
        }
        kill_process(Pid::from_child(&child), signal)
            .map_err(|errno| Error::Io { action: format!("signal {}", self.name), cause: errno.into() })
    }

    /// Waits for the process to end by itself and reaps it. Fails when it does not `within`.
    pub fn wait(&self, within: Duration) -> Result<ExitStatus> {
        self.ended(within)?.ok_or_else(|| Error::StillRunning {
            name: self.name.clone(),
            within,
            log_tail: self.log_tail(),
        })
    }

    /// Starts the same command again, after killing it with -9 if it is alive: same arguments, same data, same ports.
    ///
    /// Does not wait for health. Fails when the program cannot be started.
    pub fn restart(&self) -> Result<()> {
        let mut child = self.child();
        self.kill_and_reap(&mut child)?;
        *child = spawner::spawn(&self.command).context("start again", Path::new(&self.name))?;
        Ok(())
    }

    /// Waits until the health check passes; not at all if there is none. Fails when the process ends or time is up,
    /// which the servers' own checks may notice up to 2 s late.
    pub fn wait_healthy(&self, within: Duration) -> Result<()> {
        let Some(check) = &self.health else { return Ok(()) };
        let started = Instant::now();
        loop {
            let checked = check();
            // Only a living process counts: something else could have answered.
            let pause = if checked.is_ok() { Duration::ZERO } else { HEALTH_INTERVAL };
            if let Some(status) = self.ended(pause)? {
                return Err(Error::Died { name: self.name.clone(), status, log_tail: self.log_tail() });
            }
            let Err(last) = checked else { return Ok(()) };
            if started.elapsed() > within {
                return Err(Error::NotHealthy { name: self.name.clone(), within, last, log_tail: self.log_tail() });
            }
        }
    }

    /// Returns the processor time used by all threads of this run so far, user and system, in steps of a clock tick
    /// (10 ms).
    pub fn cpu_time(&self) -> Result<Duration> {
        Ok(cpu_in(&self.read_proc("stat")?, 14))
    }

    /// True if the process is stopped, as by SIGSTOP.
    pub fn is_stopped(&self) -> Result<bool> {
        let stat = self.read_proc("stat")?;
        Ok(stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with('T')))
    }

    /// Returns the resident memory in bytes.
    pub fn rss_bytes(&self) -> Result<u64> {
        let statm = self.read_proc("statm")?;
        let pages = statm.split_whitespace().nth(1).and_then(|field| field.parse::<u64>().ok());
        pages.map(|pages| pages * page_size() as u64).ok_or_else(|| self.not_running())
    }

    /// Returns the highest resident memory of this run, or since [`Server::reset_peak_memory`], in bytes.
    pub fn peak_memory_bytes(&self) -> Result<u64> {
        let status = self.read_proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        // A process that has ended but is not reaped has no memory any more.
        kib.map(|kib| kib * 1024).ok_or_else(|| self.not_running())
    }

    /// Lets [`Server::peak_memory_bytes`] start over from the memory of now. Fails where the kernel does not allow it.
    pub fn reset_peak_memory(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.pid());
        fs::write(&path, "5").context("write", Path::new(&path))
    }

    /// Returns the standard output of the process so far, over all its runs.
    pub fn stdout(&self) -> String {
        self.streams.stdout()
    }

    /// Returns the standard error of the process so far. It is the same as [`Server::stdout`] if one file takes both.
    pub fn stderr(&self) -> String {
        self.streams.stderr()
    }

    /// Returns the last lines of output of the process, for a failure's report.
    pub fn log_tail(&self) -> String {
        self.streams.tail()
    }

    fn read_proc(&self, file: &str) -> Result<String> {
        let mut child = self.child();
        if !matches!(child.try_wait(), Ok(None)) {
            return Err(self.not_running());
        }
        let path = format!("/proc/{}/{file}", child.id());
        fs::read_to_string(&path).context("read", Path::new(&path))
    }

    /// Waits for the end without holding the lock. Returns None when time is up.
    fn ended(&self, within: Duration) -> Result<Option<ExitStatus>> {
        if !within.is_zero() {
            wait_gone(self.pid(), within)?;
        }
        self.child().try_wait().context("wait for", Path::new(&self.name))
    }

    fn kill_and_reap(&self, child: &mut Child) -> Result<()> {
        // `Child` sends no signal to a process that it has reaped.
        child.kill().and_then(|()| child.wait()).map(drop).context("kill", Path::new(&self.name))
    }

    fn not_running(&self) -> Error {
        Error::NotRunning { name: self.name.clone() }
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the processor time of all children of this process that have ended so far, and of theirs, as
/// [`Server::cpu_time`].
pub fn ended_children_cpu() -> Result<Duration> {
    Ok(cpu_in(&own_stat()?, 16))
}

/// Returns the processor time of this process so far, as [`Server::cpu_time`].
pub fn own_cpu() -> Result<Duration> {
    Ok(cpu_in(&own_stat()?, 14))
}

fn own_stat() -> Result<String> {
    let path = "/proc/self/stat";
    fs::read_to_string(path).context("read", Path::new(path))
}

/// Returns the sum of two neighbouring fields of `/proc/PID/stat` that count clock ticks. The first of them has this
/// number (proc(5)).
fn cpu_in(stat: &str, field: usize) -> Duration {
    // The second field is the program's name in parentheses and may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: u64 =
        fields.split_whitespace().skip(field - 3).take(2).map_while(|field| field.parse::<u64>().ok()).sum();
    Duration::from_secs_f64(ticks as f64 / clock_ticks_per_second() as f64)
}

impl Drop for Server {
    fn drop(&mut self) {
        // If this fails the kernel still kills the child when this process ends.
        let _ = self.kill9();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("name", &self.name).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
