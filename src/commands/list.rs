//! `divvy list`: the devices that containers can ask for, by GPU, as a table or as JSON.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use hooks::lease::{Lease, LeasedDevice};
use serde::Serialize;

use super::{Planned, STDOUT, print_problems, require_devices};
use crate::cli::{ListArgs, ListFormat};
use crate::config::Mode;
use crate::discover::host::{Gpu, Host};
use crate::engines;
use crate::failure::{Status, printable, say};
use crate::held::{self, Leases};
use crate::plan::moved::called;
use crate::plan::pools::Pool;
use crate::plan::{
    Against, Device, GPU_CLASS, Kind, Level, Limit, Limits, Over, Plan, PlannedNode, Problem, SideDevice,
    VENDOR,
};
use crate::publish;
use crate::spec;
use crate::time_slices::{self, kept::word};

/// The JSON listing. Sizes are bytes.
#[derive(Serialize)]
struct Listing<'a> {
    driver_version: &'a str,
    cuda_version: Option<&'a str>,
    generation: &'a str,
    devices: Vec<ListedDevice<'a>>,
    pools: Vec<ListedPool<'a>>,
    /// Kinds beside the GPUs'.
    side_devices: &'a [SideDevice],
    control_nodes: &'a [PlannedNode],
    problems: &'a [Problem],
    warnings: &'a [String],
    notes: &'a [String],
}

#[derive(Serialize)]
struct ListedDevice<'a> {
    /// As `--device` takes them: `nvidia.com/gpu=shared-0`.
    cdi_names: Vec<String>,
    #[serde(flatten)]
    device: &'a Device,
    /// Who has it.
    lease: Option<ListedLease<'a>>,
}

#[derive(Serialize)]
struct ListedLease<'a> {
    engine: Option<&'a str>,
    name: Option<&'a str>,
    id: &'a str,
    pid: i32,
    uid: u32,
    /// Seconds since the epoch.
    since: u64,
    /// What it holds: this device, or the whole that this is a part of, or a part.
    cdi_name: String,
    /// UUID of the GPU or MIG device that it holds, or holds a part of. Another than the device's where its name moved.
    uuid: &'a str,
    /// Nothing is left of the container, and the daemon has not freed the device yet.
    ended: bool,
}

#[derive(Serialize)]
struct ListedPool<'a> {
    /// As `--device` takes it: `nvidia.com/gpu=shared`.
    cdi_name: String,
    #[serde(flatten)]
    pool: &'a Pool,
    /// How many of its devices are; none where leases are not known.
    free: Option<usize>,
}

/// Runs the verb.
pub fn run(args: &ListArgs, quiet: bool) -> Result<Status> {
    let Planned { host, mut plan, is_stale, .. } = Planned::as_generated(&args.machine, &args.plan)?;
    plan.warnings.extend(unreadable_names(args, &host, &plan)?);
    // Who has what on another host is not known here.
    let here = args.machine.host.is_none().then_some(Path::new(publish::STATE_DIR));
    let state_dir = args.plan.state_dir.as_deref().or(here);
    let unset = state_dir.map(|state_dir| time_slices::kept::problems(state_dir, &plan.time_slices));
    plan.warnings.extend(unset.into_iter().flatten());
    let leases = state_dir.map(held::leases);
    let (leases, damaged) = leases.map_or((None, Vec::new()), |(leases, damaged)| (Some(leases), damaged));
    plan.warnings.extend(damaged);
    let leases = leases.as_ref();
    match args.format {
        ListFormat::Json => {
            let mut out = std::io::stdout().lock();
            serde_json::to_writer_pretty(&mut out, &listing(&host, &plan, leases))
                .map_err(std::io::Error::from)
                .context(STDOUT)?;
            writeln!(out).context(STDOUT)?;
        }
        ListFormat::Table if plan.devices.is_empty() => print_side(&plan, &mut std::io::stdout().lock())?,
        ListFormat::Table => print_table(&host, &plan, leases)?,
    }
    print_problems(&plan, quiet);
    // For people: programs compare generations.
    if is_stale && args.format == ListFormat::Table && !quiet && !plan.devices.is_empty() {
        say("note", "`divvy generate` has not written this yet: engines know what its last run wrote");
    }
    let has_ended = leases.is_some_and(|leases| !leases.ended.is_empty());
    if has_ended && args.format == ListFormat::Table && !quiet && !state_dir.is_some_and(held::daemon_answers)
    {
        say("note", held::ENDED);
    }
    require_devices(&plan)?;
    Ok(Status::Done)
}

/// What the specs of this plan, wherever the hook lies, are to the engines of the host.
fn unreadable_names(args: &ListArgs, host: &Host, plan: &Plan) -> Result<Vec<String>> {
    let roots = args.machine.roots()?;
    let hook = Path::new("/usr/bin/divvy-hook");
    let state = Path::new(publish::STATE_DIR);
    let paths = spec::Paths { driver_root: &roots.driver, dev_root: &roots.dev, hook, plan: None, state };
    let built = spec::build(plan, host, &paths)?;
    Ok(engines::unreadable(&host.engines, &built)
        .into_iter()
        .map(|(what, hint)| format!("{what}: {hint}"))
        .collect())
}

fn listing<'a>(host: &'a Host, plan: &'a Plan, leases: Option<&'a Leases>) -> Listing<'a> {
    let lease = |device: &Device| {
        let leases = leases?;
        let listed = |ended: bool| move |held| listed_lease(held, ended);
        let running = held::holder(&leases.running, device).map(listed(false));
        running.or_else(|| held::holder(&leases.ended, device).map(listed(true)))
    };
    let listed =
        |device: &'a Device| ListedDevice { cdi_names: cdi_names(device), device, lease: lease(device) };
    let pool = |pool: &'a Pool| ListedPool {
        cdi_name: format!("{VENDOR}/{}={}", pool.class, pool.name),
        pool,
        free: leases.map(|leases| free(pool, plan, leases)),
    };
    Listing {
        driver_version: &host.driver_version,
        cuda_version: host.cuda_version.as_deref(),
        generation: &plan.generation,
        devices: plan.devices.iter().map(listed).collect(),
        pools: plan.pools.iter().map(pool).collect(),
        side_devices: &plan.side,
        control_nodes: &plan.control_nodes,
        problems: &plan.problems,
        warnings: &plan.warnings,
        notes: &plan.notes,
    }
}

fn listed_lease<'a>((lease, leased): (&'a Lease, &'a LeasedDevice), ended: bool) -> ListedLease<'a> {
    let container = &lease.container;
    ListedLease {
        engine: container.engine.as_deref(),
        name: container.name.as_deref(),
        id: &container.id,
        pid: container.pid,
        uid: container.uid,
        since: lease.since,
        cdi_name: format!("{VENDOR}/{}", leased.name),
        uuid: &leased.uuid,
        ended,
    }
}

/// How many devices of a pool can be had now.
fn free(pool: &Pool, plan: &Plan, leases: &Leases) -> usize {
    let is_member =
        |device: &&Device| device.pool.as_ref() == Some(&pool.name) && device.classes.contains(&pool.class);
    let members = plan.devices.iter().filter(is_member);
    members.filter(|device| held::holder(&leases.running, device).is_none()).count()
}

fn cdi_names(device: &Device) -> Vec<String> {
    let names =
        |class: &String| device.names().map(|name| format!("{VENDOR}/{class}={name}")).collect::<Vec<_>>();
    device.classes.iter().flat_map(names).collect()
}

const HEAD: [&str; 7] =
    ["NAME", "MODE", "MEMORY", "SMS", "LIMITED BY (OVER, AGAINST)", "LEASE", "MIG DEVICE"];

/// One block a GPU, one line a device. `--device` takes the first column. `leases` are none where nobody knows them.
pub fn print_table(host: &Host, plan: &Plan, leases: Option<&Leases>) -> Result<()> {
    let rows: Vec<_> = plan.devices.iter().map(|device| (device.gpu, row(device, plan, leases))).collect();
    // A column that says nothing of any device is left out.
    let is_empty = |column: usize| rows.iter().all(|(_, row)| row[column].is_empty());
    let head: [String; HEAD.len()] =
        std::array::from_fn(|column| if is_empty(column) { String::new() } else { HEAD[column].to_owned() });
    let width = |column: usize| {
        let cells = rows.iter().map(|(_, row)| &row[column]).chain([&head[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; HEAD.len()] = std::array::from_fn(width);
    let line = |row: &[String; HEAD.len()]| {
        let cells = row.iter().zip(widths).filter(|(_, width)| *width > 0);
        let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
        printable(cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", line(&head)).context(STDOUT)?;
    for gpu in &host.gpus {
        let of_gpu: Vec<_> = rows.iter().filter(|(index, _)| *index == gpu.index).collect();
        if !of_gpu.is_empty() {
            writeln!(out, "{}", printable(&about(gpu))).context(STDOUT)?;
        }
        for (_, row) in of_gpu {
            writeln!(out, "{}", line(row)).context(STDOUT)?;
        }
    }
    print_pools(plan, leases, &mut out)?;
    print_side(plan, &mut out)
}

/// A line for each pool, with what can be had of it.
fn print_pools(plan: &Plan, leases: Option<&Leases>, out: &mut impl Write) -> Result<()> {
    if !plan.pools.is_empty() {
        writeln!(out, "Any free one of several:").context(STDOUT)?;
    }
    for pool in &plan.pools {
        let (name, all) = (name_in(&pool.class, &pool.name), pool.devices.len());
        let free = match leases {
            Some(leases) => format!("{} of {all} free", free(pool, plan, leases)),
            None if all == 1 => "1 device".into(),
            None => format!("{all} devices"),
        };
        writeln!(out, "{name}: {free}").context(STDOUT)?;
    }
    Ok(())
}

/// A line for each side kind, with the names in it.
fn print_side(plan: &Plan, out: &mut impl Write) -> Result<()> {
    let kinds = plan.side.chunk_by(|a, b| a.kind == b.kind);
    let mut head = Some("Beside the GPUs:");
    for devices in kinds {
        if let Some(head) = head.take() {
            writeln!(out, "{head}").context(STDOUT)?;
        }
        let names: Vec<&str> = devices.iter().map(|device| device.name.as_str()).collect();
        let names = match names[..] {
            [first, .., last, all] if names.len() > 4 => format!("{first} to {last}, {all}"),
            _ => names.join(", "),
        };
        let kind = devices.first().map(|device| device.kind).unwrap_or_default();
        writeln!(out, "{kind}={names}").context(STDOUT)?;
    }
    Ok(())
}

/// The line above a GPU's devices.
fn about(gpu: &Gpu) -> String {
    let memory = gpu.memory_bytes.map(mib);
    let facts = [gpu.model.clone(), memory, gpu.pci_address.clone(), Some(gpu.uuid.clone())];
    format!("GPU {}: {}", gpu.index, facts.into_iter().flatten().collect::<Vec<_>>().join(", "))
}

/// Bytes in MiB.
pub fn mib(bytes: u64) -> String {
    format!("{}MiB", bytes >> 20)
}

fn row(device: &Device, plan: &Plan, leases: Option<&Leases>) -> [String; HEAD.len()] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let mig = device.mig.as_ref().map(|mig| format!("{} {}", or_dash(mig.profile.clone()), device.uuid));
    [
        full_name(device),
        mode(device),
        or_dash(device.memory_bytes.map(mib)),
        or_dash(device.sms.map(|sms| sms.to_string())),
        limits_in_full(device.kind, &device.limits),
        leases.filter(|_| device.leased).map_or_else(String::new, |leases| taken(device, plan, leases)),
        mig.unwrap_or_default(),
    ]
}

fn taken(device: &Device, plan: &Plan, leases: &Leases) -> String {
    let Some((lease, leased)) = held::holder(&leases.running, device) else {
        let ended = held::holder(&leases.ended, device);
        return ended.map_or("free".into(), |(lease, _)| format!("ended: {}", held::who(&lease.container)));
    };
    let who = held::who(&lease.container);
    if leased.uuid != device.uuid {
        let other = called(plan, &leased.uuid).unwrap_or_else(|| leased.uuid.clone());
        return format!("taken by {who} (as a part of {other})");
    }
    match leased.is_share == (device.kind == Kind::Share) {
        true => format!("taken by {who}"),
        false => format!("taken as {} by {who}", leased.name.name),
    }
}

/// As `--device` takes it, without the kind where that is nvidia.com/gpu.
pub fn full_name(device: &Device) -> String {
    name_in(device.classes.first().map_or(GPU_CLASS, String::as_str), &device.name)
}

fn name_in(class: &str, name: &str) -> String {
    if class == GPU_CLASS { name.to_owned() } else { format!("{VENDOR}/{class}={name}") }
}

/// How a device is given out.
pub fn mode_word(kind: Kind, mode: Mode) -> &'static str {
    match mode {
        Mode::Whole if kind == Kind::Mig => "mig",
        Mode::Whole => "whole",
        Mode::TimeSlice => "time-slice",
        Mode::Mps => "mps",
    }
}

fn mode(device: &Device) -> String {
    let mode = match device.time_slice {
        Some(length) => format!("{} ({})", mode_word(device.kind, device.mode), word(length)),
        None => mode_word(device.kind, device.mode).into(),
    };
    match &device.share {
        Some(share) => format!("{mode}, 1 of {} on {}", share.count, share.of),
        None => mode,
    }
}

/// What keeps the container to the memory and SMs of its line. A whole GPU needs nothing to.
pub fn limited_by(kind: Kind, limits: &Limits) -> String {
    limits_by(kind, limits, |limit| level(limit).into())
}

/// The same with what each limit counts together, and whom it stops.
fn limits_in_full(kind: Kind, limits: &Limits) -> String {
    limits_by(kind, limits, |limit| match limit.by {
        Level::Advisory => level(limit).into(),
        Level::Mig | Level::Mps => format!("{} ({}, {})", level(limit), over(limit), against(limit)),
    })
}

fn limits_by(kind: Kind, limits: &Limits, say: impl Fn(&Limit) -> String) -> String {
    let limits = [("memory", limits.memory), ("SMs", limits.sms)];
    let held: Vec<_> = limits.iter().filter_map(|(what, limit)| Some((*what, (*limit)?))).collect();
    match held[..] {
        [] if kind == Kind::Share => "nothing".into(),
        [] => "-".into(),
        [(_, one), (_, other)] if say(&one) == say(&other) => say(&one),
        _ => {
            held.iter().map(|(what, limit)| format!("{what}: {}", say(limit))).collect::<Vec<_>>().join(", ")
        }
    }
}

fn level(limit: &Limit) -> &'static str {
    match limit.by {
        Level::Mig => "mig",
        Level::Mps => "mps",
        Level::Advisory => "nothing (advisory)",
    }
}

fn over(limit: &Limit) -> &'static str {
    match limit.over {
        Over::Container => "container",
        Over::Process => "process",
    }
}

fn against(limit: &Limit) -> &'static str {
    match limit.against {
        Against::Anything => "anything",
        Against::Mistakes => "mistakes",
        Against::Nothing => "nothing",
    }
}
