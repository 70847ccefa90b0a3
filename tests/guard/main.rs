//! The guard in NVIDIA's own control daemons, of every version that tests/machine/mps.sh gives, against root and others who
//! have the socket of containers; with a server that stands in for NVIDIA's, and with NVIDIA's own, which finds no GPU. It
//! needs root, and runs in pid and mount namespaces of its own, so that nothing of it outlives it.
//!
//! - `ground`: a control daemon
//! - `stranger`: a connection that says what it likes
//! - `commands`: what nvidia-cuda-mps-control is heard with, and where
//! - `clients`: CUDA, and servers
//! - `attacks`: what a stranger can try, by what they say, send and leave open
//! - `tried_out`: what the supervisor finds out; the module is compiled in, since no verb shows it by itself
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod attacks;
mod clients;
mod commands;
mod ground;
#[path = "../../src/mps/guard.rs"]
#[allow(dead_code, unused_imports, reason = "a part of it is used here")]
mod guard;
mod stranger;
#[path = "../support/mod.rs"]
mod support;
mod tried_out;
#[path = "../../src/trust.rs"]
#[allow(dead_code, unused_imports, reason = "a part of it is used here")]
mod trust;

use std::process::ExitCode;

use ground::Named;
use libtest_mimic::{Arguments, Trial};
use support::inside;
use support::mps::{self, MpsFiles};
use support::needs::{Need, trial};

const NEEDS: [Need; 3] = [Need::Root, Need::Mps, Need::Compiler];

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("as-passer-by") {
        return stranger::pass_by();
    }
    if std::env::args().nth(1).as_deref() == Some("as-silent-container") {
        return stranger::say_nothing();
    }
    if !inside::is_inside() {
        inside::leave_mounts();
        return inside::run();
    }
    let all = mps::all();
    let mut trials: Vec<Trial> = all.iter().flat_map(of_version).collect();
    if all.is_empty() {
        trials.push(trial("guard", &NEEDS, || ()));
    }
    for (name, test) in tried_out::WITHOUT_NVIDIAS {
        trials.push(trial(name, &[], test));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn of_version(files: &MpsFiles) -> Vec<Trial> {
    let of_all =
        [commands::TRIALS.as_slice(), &clients::TRIALS, &attacks::TRIALS, &tried_out::TRIALS].concat();
    let with = |(name, test): Named| {
        let files = files.clone();
        let name: &'static str = format!("{}/{name}", files.version).leak();
        trial(name, &NEEDS, move || test(&files))
    };
    of_all.into_iter().map(with).collect()
}
