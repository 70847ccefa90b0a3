//! The checks, one after the other, in a process below the guardian: each a question to the machine with MPS started for
//! it. They may end in the middle; the guardian cleans up.

mod containers;
mod life;
mod limits;
mod machine;
mod sharing;
mod supervisor;

use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use libtest_mimic::{Arguments, Trial};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;

use super::gpu::{ComputeMode, nvml};
use super::ground::Ground;
use super::guardian;
use super::report::{Report, Rows};

/// What this binary's first argument is here; the directory follows, and what the test was called with.
pub const ARGUMENT: &str = "gpu-checks";

type Check = fn(&Ground, &mut Rows<'_>) -> Result<()>;

/// Numbers are those of the plan that they come from, in the order of their cost.
const CHECKS: [(&str, Check); 16] = [
    ("01_driver", machine::driver),
    ("02_malformed_limits", limits::malformed),
    ("03_limits_in_the_environment", limits::environment),
    ("04_memory_limit_of_a_running_server", limits::memory_latched),
    ("05_percentage_of_a_running_server", limits::sms_latched),
    ("06_private_shm", containers::private_shm),
    ("07_front_directory", containers::front),
    ("08_restart_under_a_client", life::restart),
    ("09_limits_by_uuid", limits::by_uuid),
    ("10_users", sharing::users),
    ("11_killed_client", life::killed_client),
    ("12_compute_mode_and_two_daemons", sharing::compute_mode),
    ("13_mig", machine::mig),
    ("14_client_count", sharing::client_count),
    ("15_equal_shares", sharing::equal_shares),
    ("16_supervisor", supervisor::supervisor),
];

/// Runs them, prints the table and the line that counts.
pub fn run(directory: &Path, arguments: &Arguments) -> Result<ExitCode> {
    // The guardian's, which waits for signals, was inherited.
    SigSet::all().thread_unblock().context("cannot unblock signals")?;
    // A server has a descriptor and more for each of its clients' pieces of memory.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;

    set_child_subreaper(true)?;
    let ground = Arc::new(Ground::new(nvml().map_err(anyhow::Error::msg)?, directory)?);
    let watched = Arc::clone(&ground);
    std::thread::spawn(move || {
        // The guardian holds the other end, and says nothing.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        guardian::take_over(&watched.nvml, &watched.gpu);
        std::process::exit(1);
    });
    ground.set_mode(ComputeMode::ExclusiveProcess)?;
    let users = ground.gpu.users(&ground.nvml)?;
    if !users.is_empty() {
        bail!("somebody uses the GPU since: {}", users.join(", "));
    }
    let report = Arc::new(Report::default());
    let trials = CHECKS.map(|(name, check)| {
        let (ground, report) = (Arc::clone(&ground), Arc::clone(&report));
        Trial::ignorable_test(name, move || report.run(name, &ground, check))
    });
    let arguments = Arguments { test_threads: Some(1), ..arguments.clone() };
    let conclusion = libtest_mimic::run(&arguments, trials.into());
    report.print(&ground);
    let (passed, failed, skipped) = (conclusion.num_passed, conclusion.num_failed, conclusion.num_ignored);
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if conclusion.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
