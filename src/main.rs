//! The `tallyhouse` program: reads the command line, runs the command, and turns its end into an exit status.

#![deny(clippy::print_stdout, clippy::print_stderr)]

use clap::Parser;
use std::ffi::c_char;
use std::num::NonZero;
use std::process::ExitCode;
use std::time::Duration;
use tallyhouse::cli::{Cli, EXIT_USAGE};
use tallyhouse::platform::output;

// C code (librdkafka) uses this allocator as well. One of its threads allocates each record and another frees it.
// With glibc's malloc the two wait for each other. `docs/performance.md` has the figures.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Options of jemalloc, which reads them by this name before `main`. On a machine of 64 cores it would have 256
/// arenas, each with memory that it has not given back yet. Eight arenas are its number on two cores, where it was
/// measured. The variable `MALLOC_CONF` overrides these options.
#[unsafe(export_name = "malloc_conf")]
pub static MALLOC_CONF: Option<&'static c_char> = {
    // SAFETY: the literal ends with a null byte and lives as long as the program.
    unsafe { c"narenas:8".as_ptr().as_ref() }
};

/// Maximum number of threads for tasks. They freeze and encode batches that one thread reads, and wait for servers.
const WORKERS_MAX: usize = 4;
/// Maximum number of threads for calls of librdkafka that block. Further calls wait for one of them.
const BLOCKING_MAX: usize = 64;

/// Longest wait for the threads at the end.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let cores = std::thread::available_parallelism().map_or(WORKERS_MAX, NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(cores.min(WORKERS_MAX))
        .max_blocking_threads(BLOCKING_MAX)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let status = runtime.block_on(run());
            // A call of librdkafka that gets no answer must not keep the process.
            runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
            status
        }
        Err(error) => {
            output::note(&format!("tallyhouse: its threads cannot be started: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Clap's own status would be 2, which is an audit's status for violations.
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let changes = cli.changes_something();
    match cli.run().await {
        Ok(done) => {
            // `lost` has the first failure, which may be an earlier one.
            let _ = output::print(done.output.as_bytes());
            let (status, message) = done.end(changes, output::lost());
            if let Some(message) = message {
                output::note(&format!("tallyhouse: {message}"));
            }
            ExitCode::from(status)
        }
        Err(error) => {
            output::note(&format!("tallyhouse: {error}"));
            ExitCode::from(error.exit_status())
        }
    }
}
