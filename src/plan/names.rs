//! Names beside others: whole devices' names are left to NVIDIA's generator where it writes them into the same
//! directory, names that two specs define are named, and so are names from outside that reach a GPU which is leased. And
//! the names of the files that ours stand in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::config::{Config, WholeNames};
use crate::discover::host::Host;
use crate::discover::others::{OtherSpec, SPEC_DIRS, is_spec_file};

use super::earlier::Earlier;
use super::{ALL, Device, GPU_CLASS, Kind, Plan, Problem, VENDOR, side};

/// Decides on names of whole devices, and says what others' names do to ours.
pub fn consider_others(host: &Host, config: &Config, earlier: &Earlier, output: &Path, plan: &mut Plan) {
    let others = &host.others;
    // What divvy wrote here it will replace or remove; elsewhere a spec of divvy's is as strange as any.
    let stays = |spec: &&OtherSpec| {
        let beside = spec.path.parent() == output.parent();
        let ours = is_spec_file_of(output, &spec.path, &spec.kind) || earlier.specs.contains(&spec.path);
        !(spec.by_divvy && beside && ours)
    };
    let specs: Vec<&OtherSpec> = others.specs.iter().filter(stays).collect();
    let beside = specs.iter().copied().filter(|spec| spec.path.parent() == output.parent());
    let beside: Vec<&OtherSpec> = beside.collect();
    let clash = beside.iter().find(|spec| !whole_names_in(plan, spec).is_empty());
    let withheld_by = match (config.whole_names, clash) {
        (WholeNames::No, _) => Some("whole_names is \"no\"".to_owned()),
        (WholeNames::Yes, _) => None,
        (WholeNames::Auto, Some(spec)) => Some(format!("{} has them", spec.path.display())),
        (WholeNames::Auto, None) => others.refresh_unit.then(|| "nvidia-cdi-refresh writes them".to_owned()),
    };
    if let Some(why) = withheld_by {
        withhold_whole_names(&why, config.whole_names, plan);
    }
    side::leave_to_others(&beside, plan);
    for spec in beside {
        defined_twice(spec, plan);
    }
    hidden(&specs, output, plan);
    reached_from_outside(&specs, output, plan);
    for (path, why) in &others.unreadable {
        plan.notes.push(format!("{} cannot be read, so its names are not compared: {why}", path.display()));
    }
}

/// Which of a kind's devices a spec file holds. What a spec brings to each of its devices stands in it once, so devices
/// that get more or less have a file of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The first of the kind's files, or its only one.
    Main,
    /// Devices beside those of the first.
    Beside {
        /// They get no files for graphics.
        compute: bool,
        /// They are leased.
        leased: bool,
    },
}

impl Part {
    const ALL: [Self; 4] = [
        Self::Main,
        Self::Beside { compute: true, leased: false },
        Self::Beside { compute: false, leased: true },
        Self::Beside { compute: true, leased: true },
    ];

    /// What it adds to a file's name. No kind has a `+`.
    fn suffix(self) -> &'static str {
        match self {
            Self::Beside { compute: true, leased: true } => "+compute+leased",
            Self::Beside { compute: true, leased: false } => "+compute",
            Self::Beside { compute: false, leased: true } => "+leased",
            Self::Main | Self::Beside { compute: false, leased: false } => "",
        }
    }
}

/// The file for a kind: the output itself for nvidia.com/gpu, else `divvy-<class>.json` beside it, or
/// `divvy-<vendor>.json` for another vendor's; with what tells the part before the ending.
pub fn spec_file(output: &Path, kind: &str, part: Part) -> PathBuf {
    let kind = match kind.split_once('/') {
        Some((VENDOR, GPU_CLASS)) => String::new(),
        Some((VENDOR, class)) => format!("-{class}"),
        Some((vendor, _)) => format!("-{vendor}"),
        None => format!("-{kind}"),
    };
    let beside = format!("{kind}{}", part.suffix());
    if beside.is_empty() {
        return output.to_path_buf();
    }
    let text = |part: Option<&std::ffi::OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
    output.with_file_name(format!("{}{beside}.{}", text(output.file_stem()), text(output.extension())))
}

/// Whether a file has a name that `spec_file` gives to specs of this kind, in JSON or YAML.
pub fn is_spec_file_of(output: &Path, path: &Path, kind: &str) -> bool {
    let named = |part| path.with_extension("") == spec_file(output, kind, part).with_extension("");
    is_spec_file(path) && Part::ALL.into_iter().any(named)
}

pub fn kind_of(class: &str) -> String {
    format!("{VENDOR}/{class}")
}

/// The names in nvidia.com/gpu that the plan would give whole devices and that a spec has too.
fn whole_names_in(plan: &Plan, spec: &OtherSpec) -> Vec<String> {
    if spec.kind != kind_of(GPU_CLASS) {
        return Vec::new();
    }
    let whole = plan.devices.iter().filter(|device| device.kind != Kind::Share);
    let mut names: BTreeSet<&str> = whole.flat_map(Device::names).collect();
    if !names.is_empty() {
        names.insert(ALL);
    }
    let theirs = spec.devices.iter().filter(|device| names.contains(device.name.as_str()));
    theirs.map(|device| device.name.clone()).collect()
}

fn withhold_whole_names(why: &str, asked: WholeNames, plan: &mut Plan) {
    not_leased(why, asked, plan);
    for device in plan.devices.iter_mut().filter(|device| device.kind != Kind::Share) {
        let before = device.classes.len();
        device.classes.retain(|class| class != GPU_CLASS);
        plan.whole_names_withheld |= device.classes.len() < before;
    }
    plan.devices.retain(|device| !device.classes.is_empty());
    if !plan.whole_names_withheld {
        return;
    }
    plan.decisions.push(format!("names in {} for what is whole: none, because {why}", kind_of(GPU_CLASS)));
    if asked == WholeNames::Auto || plan.devices.is_empty() {
        let key = if asked == WholeNames::Auto { " (whole_names = \"auto\")" } else { "" };
        plan.notes.push(format!("names of whole GPUs and MIG devices are left out, because {why}{key}"));
    }
}

/// Who asked for a device to be leased, and has others give it out, has not got it.
fn not_leased(why: &str, asked: WholeNames, plan: &mut Plan) {
    let lost = |device: &&Device| {
        device.kind != Kind::Share && device.leased && device.classes.iter().all(|class| class == GPU_CLASS)
    };
    let lost: Vec<&Device> = plan.devices.iter().filter(lost).collect();
    let Some(first) = lost.first() else { return };
    let more = match lost.len() - 1 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let hint = match asked {
        WholeNames::No => "leave out whole_names, or exclusive and whole",
        _ => "mask nvidia-cdi-refresh.service and remove the other spec, or leave out exclusive and whole",
    };
    plan.problems.push(Problem {
        place: None,
        what: format!("{}{more}", what(first)),
        why: format!("cannot be leased: names of whole GPUs and MIG devices are left out, because {why}"),
        hint: hint.into(),
    });
}

/// `GPU 0`, `MIG device 0:1`; of a share, what it is a part of.
fn what(device: &Device) -> String {
    let of = device.share.as_ref().map_or(&device.name, |share| &share.of);
    let what = if of.contains(':') { "MIG device" } else { "GPU" };
    format!("{what} {of}")
}

/// Two specs in one directory with one name: engines resolve neither.
fn defined_twice(spec: &OtherSpec, plan: &mut Plan) {
    let ours = names_in(plan, &spec.kind);
    let twice: Vec<&str> =
        spec.devices.iter().map(|device| device.name.as_str()).filter(|name| ours.contains(*name)).collect();
    if let Some(names) = listed(&spec.kind, &twice) {
        plan.problems.push(Problem {
            place: None,
            what: spec.path.display().to_string(),
            why: format!("defines {names} too: engines resolve no name that two specs of one directory have"),
            hint: "remove that file, write one of the two elsewhere with --output, or rename the shares"
                .into(),
        });
    }
}

/// /var/run/cdi goes before /etc/cdi, name by name.
fn hidden(specs: &[&OtherSpec], output: &Path, plan: &mut Plan) {
    let [low, high] = SPEC_DIRS.map(Path::new);
    if output.parent() != Some(low) {
        return;
    }
    for spec in specs.iter().filter(|spec| spec.path.parent() == Some(high)) {
        let ours = names_in(plan, &spec.kind);
        let hidden: Vec<&str> = spec
            .devices
            .iter()
            .map(|device| device.name.as_str())
            .filter(|name| ours.contains(*name))
            .collect();
        if let Some(names) = listed(&spec.kind, &hidden) {
            let path = spec.path.display();
            if spec.by_divvy {
                plan.warnings.push(format!(
                    "{path}, an earlier spec of divvy's, goes before this one with {names}: remove it"
                ));
            } else {
                plan.notes.push(format!("{path} goes before divvy's spec with {names}"));
            }
        }
    }
}

fn names_in(plan: &Plan, kind: &str) -> BTreeSet<String> {
    let devices =
        plan.devices.iter().filter(|device| device.classes.iter().any(|class| kind_of(class) == kind));
    let mut names: BTreeSet<String> = BTreeSet::new();
    for device in devices {
        if device.kind != Kind::Share {
            names.insert(ALL.to_owned());
        }
        names.extend(device.names().map(str::to_owned));
        names.extend(device.pool.clone());
    }
    names.extend(plan.side.iter().filter(|device| device.kind == kind).map(|device| device.name.clone()));
    names
}

/// Who takes the GPU by another name asks nobody for a lease.
fn reached_from_outside(specs: &[&OtherSpec], output: &Path, plan: &mut Plan) {
    let mut leased: Vec<&Device> = Vec::new();
    for device in plan.devices.iter().filter(|device| device.leased) {
        match leased.last_mut() {
            // The shares, where there are any.
            Some(last) if last.uuid == device.uuid => *last = device,
            _ => leased.push(device),
        }
    }
    let mut warnings = Vec::new();
    let [low, high] = SPEC_DIRS.map(Path::new);
    for spec in specs {
        // Of one name in both directories, ours is the one that counts.
        let hidden = spec.path.parent() == Some(low) && output.parent() == Some(high);
        let ours = if hidden { names_in(plan, &spec.kind) } else { BTreeSet::new() };
        for device in &leased {
            let reaches = |nodes: &BTreeSet<PathBuf>| {
                device.nodes.iter().all(|node| nodes.contains(&node.host_path) || nodes.contains(&node.path))
            };
            let names: Vec<&str> = spec
                .devices
                .iter()
                .filter(|device| reaches(&device.nodes) && !ours.contains(&device.name))
                .map(|device| device.name.as_str())
                .collect();
            let past = if device.kind == Kind::Share { "its shares" } else { "its lease" };
            if let Some(names) = listed(&spec.kind, &names) {
                let path = spec.path.display();
                warnings.push(format!("{} can be had past {past}, as {names} of {path}", what(device)));
            }
        }
    }
    plan.warnings.extend(warnings);
}

/// `nvidia.com/gpu=0`, or the first of several and how many there are; none for none.
pub fn listed(kind: &str, names: &[&str]) -> Option<String> {
    match names {
        [] => None,
        [one] => Some(format!("{kind}={one}")),
        [one, two] => Some(format!("{kind}={one}, {two}")),
        [first, second, rest @ ..] => Some(format!("{kind}={first}, {second} and {} more", rest.len())),
    }
}
