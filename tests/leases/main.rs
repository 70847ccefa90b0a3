//! The daemon under attack and under load: the built `divvy serve`, containers that are processes with a mount namespace
//! and a cgroup of their own, and callers that speak the socket's protocol by themselves. All of it needs root, and runs
//! in pid and mount namespaces of its own, so that nothing of it is left on the machine and it meets nobody else's MPS.
//!
//! - `ground`: a state directory with a plan, and a /dev with nodes of GPUs
//! - `daemon`, `container`, `client`: who takes part
//! - `hook`: the real `divvy-hook create-runtime`
//! - `helper`: this program once more, as a container's first process or as a caller of another user
//! - `race`: 200 askers for 32 shares, while daemon, callers and containers are killed
//! - `hostile`, `users`: callers that lie, and callers that ask for what is not theirs
//! - `descriptors`: callers that send descriptors
//! - `away`: a daemon that is started again, under load, with a full disk, or twice
//! - `waiting`: who waits, as everybody sees it
//! - `clock`: the wall clock is set
//! - `mps`, `stand_in`: shares of MPS servers, and who stands in for their supervisors
//! - `refusing`: servers that do not run, and others that are tried then
//! - `supervised`: the same with NVIDIA's own control daemon
//! - `many`: a thousand leases
//! - `figures`: what tests/bench-leases.sh prints
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod away;
mod client;
mod clock;
mod container;
mod daemon;
mod descriptors;
mod figures;
mod ground;
mod helper;
mod hook;
mod hostile;
mod many;
mod mps;
mod race;
mod random;
mod refusing;
mod stand_in;
mod supervised;
#[path = "../support/mod.rs"]
mod support;
mod users;
mod waiting;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use support::inside;
use support::needs::{Need, trial};

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match words.next().as_deref() {
        Some("as-container") => return helper::container(words),
        Some("as-caller") => return helper::caller(words),
        _ => {}
    }
    if nix::unistd::geteuid().is_root() {
        if !inside::is_inside() {
            inside::leave_mounts();
            return inside::run();
        }
        ground::enter_mount_namespace();
    }
    if std::env::args().nth(1).as_deref() == Some("figures") {
        figures::print();
        return ExitCode::SUCCESS;
    }
    let of_all = [
        race::TRIALS.as_slice(),
        &hostile::TRIALS,
        &descriptors::TRIALS,
        &users::TRIALS,
        &away::TRIALS,
        &waiting::TRIALS,
        &mps::TRIALS,
        &refusing::TRIALS,
        &many::TRIALS,
    ];
    let of_all =
        of_all.concat().into_iter().map(|(name, test)| trial(name, &[Need::Root, Need::Cgroup], test));
    let mut trials: Vec<Trial> = of_all.collect();
    for (name, test) in [clock::TRIALS.as_slice(), &descriptors::ON_OLD_KERNELS].concat() {
        trials.push(trial(name, &[Need::Root, Need::Cgroup, Need::Compiler], test));
    }
    for (name, test) in users::WITH_SUBUID {
        trials.push(trial(name, &[Need::Root, Need::Cgroup, Need::Subuid], test));
    }
    for (name, test) in supervised::TRIALS {
        trials.push(trial(name, &[Need::Root, Need::Cgroup, Need::Mps], test));
    }
    for (name, test) in race::WITH_HOOKS.into_iter().chain(refusing::WITH_HOOKS) {
        trials.push(trial(name, &[Need::Root, Need::Cgroup, Need::Hook], test));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
