//! `divvy mps`: MPS as it is on each device, its end, and the process that keeps it.

use anyhow::{Context, Result};

use crate::cli::{MpsArgs, MpsCommand, SuperviseArgs};
use crate::failure::Status;
use crate::mps::{start, supervisor};

/// Runs the verb.
pub fn run(args: &MpsArgs) -> Result<Status> {
    match &args.command {
        Some(MpsCommand::Supervise(args)) => supervise(args),
        _ => anyhow::bail!("not yet"),
    }
}

fn supervise(args: &SuperviseArgs) -> Result<Status> {
    let state_dir = std::path::absolute(&args.state_dir)
        .with_context(|| format!("cannot resolve {}", args.state_dir.display()))?;
    match args.background {
        true => start::in_background(&state_dir, &args.uuid).context("cannot start a supervisor")?,
        false => supervisor::run(&state_dir, &args.uuid)?,
    }
    Ok(Status::Done)
}
