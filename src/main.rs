//! The `divvy` command. Modules in the order of the flow, from the driver to the spec that engines read:
//!
//! - `cli`, `commands`: what was typed; one verb a file
//! - `nvml`: the driver's management library; `sys`: system calls. All unsafe code is in these two
//! - `discover`: 1. the machine, or a simulated or recorded one -> `Host`
//! - `config`: /etc/divvy/config.toml -> `Config`
//! - `plan`: 2. `Host` + `Config` -> `Plan`: devices and shares, their names, nodes and limits; pure
//! - `spec`, `publish`: 3. `Plan` -> CDI specs, and to disk
//! - `container`: a container as the kernel shows it
//! - `serve`: 5. the daemon: leases, asked for when containers start, and ended with them
//! - `mps`: NVIDIA's MPS, kept on each GPU that is shared by it
//! - `held`: who has which device, read back
//! - `ps`: and who uses it, put together for people
//! - `time_slices`: how long turns are, as the driver is told
//! - `trust`: who may change what root will run
//! - `failure`: errors with hints, exit statuses
//!
//! What happens when a container starts is in the crate `hooks`; the CDI format is in the crate `cdi`.

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod commands;
mod config;
mod container;
mod discover;
mod engines;
mod failure;
mod held;
mod mps;
mod nvml;
mod plan;
mod ps;
mod publish;
mod serve;
mod spec;
mod sys;
mod time_slices;
mod trust;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    log(&cli);
    match commands::run(cli) {
        Ok(status) => status,
        Err(error) if is_closed_pipe(&error) => failure::Status::Done,
        Err(error) => failure::report(&error),
    }
    .into()
}

fn log(cli: &cli::Cli) {
    let level = match cli.command {
        _ if cli.debug => tracing::Level::DEBUG,
        // What it does is all that can be seen of a daemon.
        cli::Command::Serve(_) if !cli.quiet => tracing::Level::INFO,
        cli::Command::Mps(cli::MpsArgs { command: Some(cli::MpsCommand::Supervise(_)), .. })
            if !cli.quiet =>
        {
            tracing::Level::INFO
        }
        _ => tracing::Level::WARN,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).without_time().init();
}

/// `divvy list | head` ends well.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>());
    io_error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
