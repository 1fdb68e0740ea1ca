//! `tallyhouse completions` and `tallyhouse man`: pages made from the command line's own description.
//!
//! Must never need a configuration: both run where the program is packaged.

use super::{Cli, CliError, Done};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const COMPLETIONS_HELP: &str = "\
Examples:
  tallyhouse completions bash > /etc/bash_completion.d/tallyhouse
  tallyhouse completions zsh > \"${fpath[1]}/_tallyhouse\"
  tallyhouse completions fish > ~/.config/fish/completions/tallyhouse.fish";

pub(super) const MAN_HELP: &str = "\
Examples:
  tallyhouse man | man -l -                      read it now
  tallyhouse man --folder /usr/local/share/man/man1    one page for each command";

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// Shell of the script.
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Write one page for the program and one for each command into this folder. The folder must exist.
    #[arg(long, value_name = "FOLDER")]
    folder: Option<PathBuf>,
}

pub(super) fn completions(arguments: &Completions) -> Done {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "tallyhouse", &mut script);
    String::from_utf8_lossy(&script).into_owned().into()
}

pub(super) fn man(arguments: &Man) -> Result<Done, CliError> {
    let mut program = Cli::command();
    program.build();
    match &arguments.folder {
        None => Ok(String::from_utf8_lossy(&page(program)?).into_owned().into()),
        Some(folder) => {
            let mut names = Vec::new();
            write_pages(folder, program, &mut names)?;
            Ok(names.into_iter().map(|name| name + "\n").collect::<String>().into())
        }
    }
}

fn page(command: clap::Command) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(text)
}

/// Writes the page of a command, then those of its subcommands: `tallyhouse-repair-daily.1`.
fn write_pages(folder: &Path, command: clap::Command, names: &mut Vec<String>) -> Result<(), CliError> {
    let subcommands: Vec<_> = command.get_subcommands().filter(|sub| sub.get_name() != "help").cloned().collect();
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let path = folder.join(format!("{name}.1"));
    fs::write(&path, page(command)?).map_err(|error| CliError::Page { path: path.display().to_string(), error })?;
    names.push(path.display().to_string());
    subcommands.into_iter().try_for_each(|subcommand| write_pages(folder, subcommand, names))
}
