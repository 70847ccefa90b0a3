//! `divvy serve`: the daemon.

use anyhow::Result;

use crate::cli::ServeArgs;
use crate::failure::Status;
use crate::serve;

/// Runs the verb.
pub fn run(args: &ServeArgs) -> Result<Status> {
    serve::run(&args.state_dir)?;
    Ok(Status::Done)
}
