//! The `tallyhouse` program: reads the command line, runs the command, and turns its end into an exit status.

use clap::Parser;
use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;
use tallyhouse::cli::{Cli, EXIT_USAGE};

// For C as well (librdkafka): one of its threads allocates each record and another frees it, over which glibc's malloc makes them wait for
// each other. `docs/performance.md` has the figures.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            // Not clap's own 2, which is an audit's word for violations.
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.run().await {
        Ok(done) => {
            match std::io::stdout().write_all(done.output.as_bytes()) {
                // `| head` has seen enough.
                Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                    eprintln!("tallyhouse: standard output: {error}");
                    ExitCode::FAILURE
                }
                _ => ExitCode::from(done.status),
            }
        }
        Err(error) => {
            eprintln!("tallyhouse: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
