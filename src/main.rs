//! The `tallyhouse` program: reads the command line, runs the command, and turns its end into an exit status.

use clap::Parser;
use std::process::ExitCode;
use tallyhouse::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(done) => {
            print!("{}", done.output);
            ExitCode::from(done.status)
        }
        Err(error) => {
            eprintln!("tallyhouse: {error}");
            ExitCode::from(error.exit_status())
        }
    }
}
