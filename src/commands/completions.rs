//! `divvy completions SHELL`

use std::io::Write;

use anyhow::{Context, Result};
use clap::CommandFactory;

use super::STDOUT;
use crate::cli::Cli;
use crate::failure::Status;

/// Prints the completion script.
pub fn run(shell: clap_complete::Shell) -> Result<Status> {
    // clap_complete panics on a failing writer; a closed pipe must not.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "divvy", &mut script);
    std::io::stdout().write_all(&script).context(STDOUT)?;
    Ok(Status::Done)
}
