//! `divvy share GPU`: writes the configuration for people who would rather not. The change is shown, and it is planned
//! on this machine before it is written: what the planner would leave out is refused here.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};

use super::list::full_name;
use super::{STDOUT, last_generated};
use crate::cli::{ShareArgs, ShareMode};
use crate::config::edit::{self, Cut};
use crate::config::value::Match;
use crate::config::{self, Config, Mode};
use crate::discover::host::Host;
use crate::discover::{self, Source};
use crate::failure::{Failure, Status, printable, say};
use crate::held;
use crate::plan::moved::{self, Held};
use crate::plan::pools::NO_DEVICE;
use crate::plan::{self, Kind, Places, Plan, Problem, Unit};
use crate::publish;

/// Runs the verb.
pub fn run(args: &ShareArgs, quiet: bool) -> Result<Status> {
    let source = args.machine.source()?;
    let file = super::stored_config(args.plan.config.as_deref(), true, &source)?;
    if config::is_yaml(&file.name) {
        let what = anyhow::anyhow!("{} is NVIDIA's form, which `divvy share` does not write", file.name);
        return Err(usage(what, "edit it by hand, or begin a config.toml of divvy's own"));
    }
    if file.path.is_none() && !args.dry_run {
        let what = anyhow::anyhow!("{} cannot be written", file.name);
        return Err(usage(what, "add --dry-run, or name a file with --config"));
    }
    let before = file.parse()?;
    // As it is typed for an engine.
    let typed = args.gpu.strip_prefix("nvidia.com/gpu=").unwrap_or(&args.gpu);
    let device =
        Match::parse(typed).map_err(|why| usage(anyhow::anyhow!(why), "`divvy list` shows what there is"))?;
    let here = matches!(source, Source::Live(_)).then_some(Path::new(publish::STATE_DIR));
    let leases = args.plan.state_dir.as_deref().or(here).map(|dir| held::leases(dir).0).unwrap_or_default();
    let (earlier, output) = last_generated(&source, args.plan.state_dir.as_deref());
    let host = discover::discover(&source, &output)?;
    let covers = covers(&device, typed, &host, &before)?;

    let text =
        edit::share(&file.name, &file.text, typed, &covers, args.cut().as_ref()).map_err(Failure::from)?;
    let after = Config::parse(&file.name, &text).map_err(Failure::from)?;
    let (roots, state) = (args.machine.roots()?, super::state_place(args.plan.state_dir.as_deref()));
    let places = Places { output: &output, state: &state, driver_root: &roots.driver };
    let old = plan::plan(&host, &before, &earlier, &places);
    // Names that move by this change are told, whatever `generate` has made of the last one.
    let new = plan::plan(&host, &after, &earlier.then(&old), &places);
    let emptied = refuse_new_problems(&old, &new)?;

    let mut out = io::stdout().lock();
    for line in edit::difference(&file.name, &file.text, &text).lines() {
        writeln!(out, "{}", printable(line)).context(STDOUT)?;
    }
    if text == file.text {
        writeln!(out, "{} says so already", file.name).context(STDOUT)?;
        return Ok(Status::Done);
    }
    if !quiet {
        writeln!(out, "{}: {}", typed, names(&device, &host, &new)).context(STDOUT)?;
        for warning in new.warnings.iter().filter(|warning| !old.warnings.contains(warning)) {
            say("warning", warning);
        }
        for note in new.notes.iter().filter(|note| !old.notes.contains(note)) {
            say("note", note);
        }
    }
    warn_of_lost_limits(&old, &new, &edit::removed_with_mps(&file.text, &text, &device));
    emptied.iter().for_each(|problem| say("warning", problem));
    if !emptied.is_empty() {
        say("hint", "take it out of the file too, unless its devices come back");
    }
    warn_of_held(args, typed, &moved::from_under(&leases.running, &earlier, &host, &new));
    let Some(path) = file.path.as_ref().filter(|_| !args.dry_run) else { return Ok(Status::Done) };
    file.replace(&text)?;
    if !quiet {
        say("note", format_args!("wrote {}; `divvy generate` puts it in force", path.display()));
    }
    Ok(Status::Done)
}

impl ShareArgs {
    fn cut(&self) -> Option<Cut> {
        (!self.none).then(|| Cut {
            mode: self.mode.map(|mode| match mode {
                ShareMode::TimeSlice => Mode::TimeSlice,
                ShareMode::Mps => Mode::Mps,
            }),
            replicas: self.replicas.unwrap_or(1),
            name: self.name.clone(),
            memory: self.memory.clone(),
            sm_percent: self.sm_percent,
            advisory: self.advisory,
        })
    }
}

fn usage(error: anyhow::Error, hint: &str) -> anyhow::Error {
    Failure::new(error).hint(hint).status(Status::Usage).into()
}

/// Whether an entry of the configuration is about a device that the user means. Fails if the user means none.
fn covers(device: &Match, typed: &str, host: &Host, config: &Config) -> Result<impl Fn(&Match) -> bool> {
    let units = plan::units(host, config);
    let names: Vec<String> = units.iter().map(Unit::name).collect();
    let meant: Vec<Unit<'_>> = units.into_iter().filter(|unit| plan::covers(device, unit)).collect();
    if meant.is_empty() {
        let in_mig_mode = host.gpus.iter().any(|gpu| typed == gpu.index.to_string() || typed == gpu.uuid);
        let what = match in_mig_mode {
            true => format!("GPU {typed} is in MIG mode, and only its MIG devices can be shared"),
            false => format!("there is no {typed:?} on this machine"),
        };
        return Err(usage(anyhow::anyhow!(what), &format!("choose one of {}", names.join(", "))));
    }
    Ok(move |entry: &Match| meant.iter().any(|unit| plan::covers(entry, unit)))
}

/// What MPS held is not held in time slices.
fn warn_of_lost_limits(old: &Plan, new: &Plan, removed: &[&str]) {
    let removed = match removed {
        [] => String::new(),
        keys => format!("; removed with it: {}", keys.join(", ")),
    };
    let is_by_mps = |uuid: &str| new.mps.iter().any(|settings| settings.uuid == uuid);
    let is_shared =
        |uuid: &str| new.devices.iter().any(|device| device.kind == Kind::Share && device.uuid == uuid);
    for settings in old.mps.iter().filter(|old| !is_by_mps(&old.uuid) && is_shared(&old.uuid)) {
        let what = &settings.what;
        say("warning", format_args!("{what} is no longer shared by MPS: nothing limits its shares{removed}"));
    }
}

/// `generate` takes no name from under a container: who cuts a GPU hears it before the other is refused.
fn warn_of_held(args: &ShareArgs, typed: &str, moves: &[Held]) {
    let Some(first) = moves.first() else { return };
    let more = match moves.len() - 1 {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    say("warning", format_args!("`generate` will refuse while {}{more}", first.keeper()));
    let stop = "stop the container first (`divvy ps` lists them)";
    match &args.replicas {
        Some(replicas) => say(
            "hint",
            format_args!(
                "{stop}, or give the new shares a name of their own: divvy share {typed} --replicas {replicas} --name NAME"
            ),
        ),
        None => say("hint", stop),
    }
}

/// What is already wrong is not this change's fault; what would become wrong is refused. A pool that loses its last
/// device is what was asked for, and given back.
fn refuse_new_problems<'a>(old: &Plan, new: &'a Plan) -> Result<Vec<&'a Problem>> {
    // By what they are about: lines move by the change itself, and others' specs clash with one name more or less.
    let mut known: Vec<_> = old.problems.iter().map(|problem| &problem.what).collect();
    let is_new = |problem: &&Problem| match known.iter().position(|what| **what == problem.what) {
        Some(at) => {
            known.swap_remove(at);
            false
        }
        None => true,
    };
    let is_emptied = |problem: &&Problem| problem.why == NO_DEVICE;
    let (emptied, refused): (Vec<_>, Vec<_>) = new.problems.iter().filter(is_new).partition(is_emptied);
    let Some(problem) = refused.first() else { return Ok(emptied) };
    let what = anyhow::anyhow!("nothing is changed: with this {problem}");
    Err(Failure::new(what).hint(problem.hint.clone()).into())
}

/// What the device is called from now on.
fn names(device: &Match, host: &Host, plan: &Plan) -> String {
    let units = plan::units(host, &Config::default());
    let meant: Vec<&str> = units.iter().filter(|unit| plan::covers(device, unit)).map(Unit::uuid).collect();
    let of: Vec<_> = plan.devices.iter().filter(|planned| meant.contains(&planned.uuid.as_str())).collect();
    let shares: Vec<_> = of.iter().filter(|planned| planned.kind == Kind::Share).collect();
    match (&shares[..], &of[..]) {
        ([], []) => "no name of divvy's".into(),
        ([], _) => "whole".into(),
        ([one], _) => full_name(one),
        ([first, .., last], _) => format!("{} to {}", full_name(first), last.name),
    }
}
