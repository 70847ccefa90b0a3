//! End to end: real engines start real containers on a simulated host, and a program in the container says what it
//! got. Nothing in here looks at a spec; what counts is what a user's program meets.
//!
//! - `ground`: the machine with the engines in it, set up once; what is needed and what is missing
//! - `layout`: what it has of divvy: specs, plans and daemons
//! - `engine`: the engines, and how a container is started with each
//! - `containers`: what a container gets and does not get; one function a trial, run on every engine
//! - `graphics`: what draws
//! - `leases`, `denial`, `daemon`: devices that belong to one container at a time
//! - `mps`: devices that several containers have at the same time, through NVIDIA's own control daemon
//! - `honours`, `table`: what each engine honours of a spec, as docs/engines.md has it
//! - `hostile`: images and options that aim at the host
//! - `environment`: an image whose environment aims at hooks
//! - `readme`, `compose`, `quadlet`: the examples in README.md, as they stand there
//! - `remap`: a Docker whose containers have user namespaces
//! - `beside`: divvy's spec beside that of NVIDIA's generator
//! - `bundle`, `bundles`: images of every kind on runc and crun themselves, as docs/images.md has it
//! - `units`: divvy's own units, on a machine that systemd runs
//! - `race`: 200 bundles on runc, racing for 32 shares
//! - `machine`: `divvy` itself on that machine, without a container
//!
//! A trial whose needs are not met is skipped with the reason, and never passed. `DIVVY_REQUIRE=docker,podman`
//! makes that a failure. Reasons are printed last, and added to the file `DIVVY_TEST_SUMMARY`.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

mod beside;
mod bundle;
mod bundles;
mod compose;
mod containers;
mod daemon;
mod denial;
mod engine;
mod environment;
mod graphics;
mod ground;
mod honours;
mod hostile;
mod layout;
mod leases;
mod machine;
mod mps;
mod quadlet;
mod race;
mod readme;
mod remap;
mod table;
mod units;

use engine::{ENGINES, Engine};
use ground::{Ground, Need, ground};

/// Trials for which it matters which cgroup admits a device.
const V1: [&str; 14] = [
    "cgroup_version",
    "lease_of_a_name",
    "lease_of_any",
    "pool_denies_gpus",
    "pool_denies_mig",
    "pool_in_a_user_namespace",
    "honours",
    "mps_share",
    "mig_device",
    "whole_gpu",
    "share_of_a_mig_device",
    "dri_nodes",
    "side_kinds",
    "exec",
];

/// Trials that ask nothing of an engine which its release decides: what divvy's daemon, NVIDIA's control daemon or `divvy`
/// alone make of it. They run with the newest engines.
const NEWEST: [&str; 13] = [
    "daemon_is_away",
    "daemon_is_killed",
    "lease_after_waiting",
    "mps_not_for_others",
    "mps_variables_of_users",
    "mps_sees_processes",
    "mps_of_two_users",
    "mps_that_cannot_be_had",
    "live_discovery_equals_simulated",
    "full_disk",
    "read_only_directory",
    "creates_missing_nodes",
    "missing_nodes_are_named",
];

/// How many trials were skipped, by reason.
static SKIPPED: Mutex<BTreeMap<String, u32>> = Mutex::new(BTreeMap::new());

fn main() -> ExitCode {
    let mut trials = Vec::new();
    // Rootless containers have no device cgroup of either version.
    for engine in ENGINES.iter().filter(|engine| engine.rootful || !ground::is_cgroup_v1()) {
        if !engine.takes_cdi_names() {
            trials.push(on_engine(engine, "takes_no_cdi_name", containers::takes_no_cdi_name));
            continue;
        }
        let of_leases = leases::TRIALS.iter().chain(&denial::TRIALS).chain(&daemon::TRIALS);
        for (name, trial) in
            containers::TRIALS.iter().chain(&graphics::TRIALS).chain(&hostile::TRIALS).chain(of_leases)
        {
            trials.push(on_engine(engine, name, *trial));
        }
        // What the control daemon makes of it does not depend on the engines' release.
        let is_newest = ground::label().is_empty();
        let recovered = mps::recovery::TRIALS.into_iter().filter(|_| is_newest);
        let abused = mps::abuse::TRIALS.into_iter().filter(|_| is_newest && mps::abuse::is_tried_on(engine));
        for (name, trial) in mps::wiring::TRIALS.into_iter().chain(recovered).chain(abused) {
            let name = format!("{}{}/{name}", ground::label(), engine.name);
            trials.push(Trial::ignorable_test(name, move || {
                run(&[engine.need, Need::Mps], |ground| trial(ground, engine))
            }));
        }
        trials.push(on_engine(engine, "image_environment", environment::image_environment));
        trials.push(on_engine(engine, "honours", honours::honours));
        if !engine.user_namespace.is_empty() {
            trials.push(on_engine(engine, "user_namespace", containers::user_namespace));
            trials.push(on_engine(engine, "pool_in_a_user_namespace", denial::pool_in_a_user_namespace));
        }
    }
    for runtime in &bundle::RUNTIMES {
        let name = format!("{}bundles-{}/environment", ground::label(), runtime.name);
        trials.push(Trial::ignorable_test(name, move || {
            run(&[], |ground| environment::bundle_environment(ground, runtime))
        }));
        for tree in &bundles::TREES {
            let name = format!("{}bundles-{}/{}", ground::label(), runtime.name, tree.name);
            trials.push(Trial::ignorable_test(name, move || {
                run(&[Need::Bundles], |ground| bundles::bundle(ground, runtime, tree))
            }));
        }
    }
    for provider in &compose::PROVIDERS {
        for (name, trial) in compose::TRIALS {
            let name = format!("{}{}/{name}", ground::label(), provider.name);
            trials.push(Trial::ignorable_test(name, move || {
                run(&[provider.need], |ground| trial(ground, provider))
            }));
        }
    }
    for (name, needs, trial) in
        machine::TRIALS.into_iter().chain(beside::TRIALS).chain(quadlet::TRIALS).chain(remap::TRIALS)
    {
        let name = format!("{}machine/{name}", ground::label());
        trials.push(Trial::ignorable_test(name, move || run(needs, trial)));
    }
    // What races, and what systemd runs, does not depend on the engines' release.
    for (name, needs, trial) in
        race::TRIALS.into_iter().chain(units::TRIALS).filter(|_| ground::label().is_empty())
    {
        trials.push(Trial::ignorable_test(format!("machine/{name}"), move || run(needs, trial)));
    }
    let is_one_of =
        |trial: &Trial, names: &[&str]| names.iter().any(|name| trial.name().ends_with(&format!("/{name}")));
    if ground::is_cgroup_v1() {
        trials.retain(|trial| is_one_of(trial, &V1));
    } else if !ground::label().is_empty() {
        trials.retain(|trial| !is_one_of(trial, &NEWEST));
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert_with(most_at_once);
    let conclusion = libtest_mimic::run(&arguments, in_turns(trials));
    ground::take_down();
    report_skipped();
    conclusion.exit_code()
}

/// Each engine's first trial, then each one's second: neighbours wait for other engines, and for other GPUs.
fn in_turns(trials: Vec<Trial>) -> Vec<Trial> {
    let mut turns: BTreeMap<String, usize> = BTreeMap::new();
    let mut in_turns: Vec<(usize, Trial)> = Vec::new();
    for trial in trials {
        let engine = trial.name().rsplit_once('/').map_or("", |(engine, _)| engine).to_owned();
        let turn = turns.entry(engine).or_default();
        *turn += 1;
        in_turns.push((*turn, trial));
    }
    in_turns.sort_by_key(|(turn, _)| *turn);
    in_turns.into_iter().map(|(_, trial)| trial).collect()
}

/// Engines wait half of the time: for each other, for daemons, for what lasts.
fn most_at_once() -> usize {
    2 * std::thread::available_parallelism().map_or(1, usize::from)
}

fn on_engine(engine: &'static Engine, name: &str, trial: fn(&Ground, &Engine)) -> Trial {
    Trial::ignorable_test(format!("{}{}/{name}", ground::label(), engine.name), move || {
        run(&[engine.need], |ground| trial(ground, engine))
    })
}

/// Runs a trial, or skips it where one of its needs is not met.
fn run(needs: &[Need], trial: impl FnOnce(&Ground)) -> Result<Completion, Failed> {
    let ground = ground();
    if let Some(unmet) = ground.unmet(needs) {
        if unmet.is_required() {
            return Err(format!("required and not there: {unmet}").into());
        }
        *SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).entry(unmet.to_string()).or_default() += 1;
        return Ok(Completion::ignored_with(unmet));
    }
    if let Some(why) = &ground.broken {
        return Err(format!("the machine could not be made ready: {why}").into());
    }
    trial(ground);
    Ok(Completion::Completed)
}

/// The last lines, and lines in the summary of all tests: what was skipped and why.
fn report_skipped() {
    let mut summary = String::new();
    for (reason, count) in SKIPPED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        summary += &format!("{}engines, {count} trials: {reason}\n", ground::label());
    }
    print!("{summary}");
    let Some(path) = std::env::var_os("DIVVY_TEST_SUMMARY") else { return };
    let file = OpenOptions::new().append(true).create(true).open(&path);
    if let Err(error) = file.and_then(|mut file| file.write_all(summary.as_bytes())) {
        eprintln!("warning: {} cannot be written: {error}", path.display());
    }
}
