//! `make test-gpu`: asks a real GPU what ARCHITECTURE.md says of MPS, and what it leaves open. For root, on a machine with
//! an idle GPU; everywhere else one test that is ignored. One binary in three parts:
//!
//! - `guardian`: looks, asks nothing of the GPU itself, cleans up
//! - `checks`: the questions, on a `ground`, written into a `report`; with control daemons of NVIDIA's (`daemon`), and
//!   one of divvy's (`supervised`)
//! - `client`: CUDA programs that do as they are told by a `program` in a check
//!
//! `cuda` has all unsafe code, and `gpu` all that changes the GPU's settings: its compute mode.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod checks;
mod client;
mod cuda;
mod daemon;
mod gpu;
mod ground;
mod guardian;
#[path = "../../src/mps"]
#[allow(dead_code, unused_imports, reason = "a part of it is used here")]
mod mps {
    pub mod place;
    pub mod protocol;
    pub mod settings;
}
#[path = "../support/needs.rs"]
#[allow(dead_code, reason = "other tests have other needs")]
mod needs;
mod process;
mod program;
mod report;
mod supervised;
mod tombstone;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let word = |index: usize| arguments.get(index).and_then(|word| word.to_str());
    let outcome = match word(1) {
        Some(client::ARGUMENT) => return client::run(),
        Some(checks::ARGUMENT) => {
            let directory = Path::new(word(2).unwrap_or_default());
            // Without the two words that are ours.
            let rest = arguments.iter().take(1).chain(arguments.iter().skip(3));
            checks::run(directory, &Arguments::from_iter(rest))
        }
        _ => {
            let arguments = Arguments::from_args();
            let missing = guardian::missing();
            if missing.is_some() || arguments.list {
                return skipped(&arguments, missing.unwrap_or_default());
            }
            guardian::run()
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        println!("0 passed, 1 failed, 0 skipped");
        ExitCode::FAILURE
    })
}

/// One test, ignored with its reason as the other targets' are.
fn skipped(arguments: &Arguments, reason: String) -> ExitCode {
    let trial = Trial::ignorable_test("gpu", move || needs::skip("gpu", "gpu", &reason));
    let conclusion = libtest_mimic::run(arguments, vec![trial]);
    let (failed, skipped) = (conclusion.num_failed, conclusion.num_ignored);
    println!("0 passed, {failed} failed, {skipped} skipped");
    conclusion.exit_code()
}
