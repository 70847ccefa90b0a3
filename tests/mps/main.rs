//! MPS on a device: the built `divvy mps supervise` with NVIDIA's own control daemons, of every version that
//! tests/machine/mps.sh gives, and a server that stands in for NVIDIA's, which needs a GPU. It needs root, and runs in pid
//! and mount namespaces of its own, with a /tmp of its own, so that nothing of it outlives it and it meets nobody else's MPS.
//!
//! - `ground`: a driver, a state directory, a supervisor
//! - `peer`: who connects to MPS
//! - `start`, `recovery`, `requests`, `machine`, `containers`: what is tried
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod containers;
mod ground;
mod machine;
mod peer;
mod recovery;
mod requests;
mod start;
#[path = "../support/mod.rs"]
mod support;

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use support::mps::{self, MpsFiles};
use support::needs::{Need, trial};

/// Set in the process that is the first of its pid namespace.
const INSIDE: &str = "DIVVY_MPS_TESTS_INSIDE";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some("as-client") {
        return peer::client(words);
    }
    if nix::unistd::geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
        return inside();
    }
    let all = mps::all();
    let mut trials: Vec<Trial> = all.iter().flat_map(of_version).collect();
    if all.is_empty() {
        trials.push(trial("mps", &[Need::Root, Need::Mps], || ()));
    }
    let mut arguments = Arguments::from_args();
    // They wait more than they work.
    arguments.test_threads.get_or_insert(8);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Something that is tried with the programs of one driver, and its name.
type Test = (&'static str, fn(&MpsFiles));

fn of_version(files: &MpsFiles) -> Vec<Trial> {
    let of_all = [
        start::TRIALS.as_slice(),
        &recovery::TRIALS,
        &requests::TRIALS,
        &machine::TRIALS,
        &containers::TRIALS,
    ];
    let named = |name: &str| -> &'static str { format!("{}/{name}", files.version).leak() };
    let with = |test: fn(&MpsFiles)| {
        let files = files.clone();
        move || test(&files)
    };
    let told = recovery::WITH_STATUS.into_iter().filter(|_| !files.version.starts_with("535."));
    let of_all = of_all.concat().into_iter().chain(told);
    let mut trials: Vec<Trial> =
        of_all.map(|(name, test)| trial(named(name), &[Need::Root, Need::Mps], with(test))).collect();
    for (name, test) in containers::WITH_COMPILER {
        trials.push(trial(named(name), &[Need::Root, Need::Mps, Need::Compiler], with(test)));
    }
    trials
}

/// Runs this program once more, as the first process of a pid namespace: when it ends, so does all that it started.
fn inside() -> ExitCode {
    unshare(CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWNS).unwrap();
    let nothing: Option<&str> = None;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
    let tmpfs = (Some("tmpfs"), "/tmp", Some("tmpfs"), MsFlags::empty(), Some("mode=1777"));
    mount(tmpfs.0, tmpfs.1, tmpfs.2, tmpfs.3, tmpfs.4).unwrap();
    // It is mounted by a process of the namespace that it shall show.
    let mut command = Command::new("sh");
    command.args(["-c", "mount -t proc proc /proc && exec \"$@\"", "sh"]);
    command.arg(std::env::current_exe().unwrap()).args(std::env::args_os().skip(1)).env(INSIDE, "1");
    let status = command.status().unwrap();
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
