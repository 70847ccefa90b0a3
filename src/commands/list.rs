//! `divvy list`: the devices that containers can ask for, by GPU, as a table or as JSON.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Planned, STDOUT, print_problems, require_devices};
use crate::cli::{ListArgs, ListFormat};
use crate::config::Mode;
use crate::discover::host::{Gpu, Host};
use crate::engines;
use crate::failure::{Status, printable, say};
use crate::plan::{Device, GPU_CLASS, Kind, Level, Limit, Limits, Plan, PlannedNode, Problem, SideDevice, VENDOR};
use crate::publish;
use crate::spec;

/// The JSON listing. Sizes are bytes.
#[derive(Serialize)]
struct Listing<'a> {
    driver_version: &'a str,
    cuda_version: Option<&'a str>,
    generation: &'a str,
    devices: Vec<ListedDevice<'a>>,
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
}

/// Runs the verb.
pub fn run(args: &ListArgs, quiet: bool) -> Result<Status> {
    let Planned { host, mut plan, is_stale } = Planned::as_generated(&args.machine, &args.plan)?;
    plan.warnings.extend(unreadable_names(args, &host, &plan)?);
    match args.format {
        ListFormat::Json => {
            let mut out = std::io::stdout().lock();
            serde_json::to_writer_pretty(&mut out, &listing(&host, &plan))
                .map_err(std::io::Error::from)
                .context(STDOUT)?;
            writeln!(out).context(STDOUT)?;
        }
        ListFormat::Table if plan.devices.is_empty() => print_side(&plan, &mut std::io::stdout().lock())?,
        ListFormat::Table => print_table(&host, &plan)?,
    }
    print_problems(&plan, quiet);
    // For people: programs compare generations.
    if is_stale && args.format == ListFormat::Table && !quiet && !plan.devices.is_empty() {
        say("note", "`divvy generate` has not written this yet: engines know what its last run wrote");
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

fn listing<'a>(host: &'a Host, plan: &'a Plan) -> Listing<'a> {
    let listed = |device: &'a Device| ListedDevice { cdi_names: cdi_names(device), device };
    Listing {
        driver_version: &host.driver_version,
        cuda_version: host.cuda_version.as_deref(),
        generation: &plan.generation,
        devices: plan.devices.iter().map(listed).collect(),
        side_devices: &plan.side,
        control_nodes: &plan.control_nodes,
        problems: &plan.problems,
        warnings: &plan.warnings,
        notes: &plan.notes,
    }
}

fn cdi_names(device: &Device) -> Vec<String> {
    let names =
        |class: &String| device.names().map(|name| format!("{VENDOR}/{class}={name}")).collect::<Vec<_>>();
    device.classes.iter().flat_map(names).collect()
}

const COLUMNS: usize = 6;

/// One block a GPU, one line a device. `--device` takes the first column.
pub fn print_table(host: &Host, plan: &Plan) -> Result<()> {
    let rows: Vec<_> = plan.devices.iter().map(|device| (device.gpu, row(device))).collect();
    let mut head = ["NAME", "MODE", "MEMORY", "SMS", "LIMITED BY", "MIG DEVICE"].map(str::to_owned);
    if plan.devices.iter().all(|device| device.mig.is_none()) {
        head[COLUMNS - 1].clear();
    }
    let width = |column: usize| {
        let cells = rows.iter().map(|(_, row)| &row[column]).chain([&head[column]]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; COLUMNS] = std::array::from_fn(width);
    let line = |row: &[String; COLUMNS]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
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
    print_side(plan, &mut out)
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

fn row(device: &Device) -> [String; COLUMNS] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let mig = device.mig.as_ref().map(|mig| format!("{} {}", or_dash(mig.profile.clone()), device.uuid));
    [
        full_name(device),
        mode(device),
        or_dash(device.memory_bytes.map(mib)),
        or_dash(device.sms.map(|sms| sms.to_string())),
        limited_by(device.kind, &device.limits),
        mig.unwrap_or_default(),
    ]
}

/// As `--device` takes it, without the kind where that is nvidia.com/gpu.
pub fn full_name(device: &Device) -> String {
    match device.classes.first() {
        Some(class) if class != GPU_CLASS => format!("{VENDOR}/{class}={}", device.name),
        _ => device.name.clone(),
    }
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
    let mode = mode_word(device.kind, device.mode);
    match &device.share {
        Some(share) => format!("{mode}, 1 of {} on {}", share.count, share.of),
        None => mode.into(),
    }
}

/// What keeps the container to the memory and SMs of its line. A whole GPU needs nothing to.
pub fn limited_by(kind: Kind, limits: &Limits) -> String {
    let limits = [("memory", limits.memory), ("SMs", limits.sms)];
    let held: Vec<_> = limits.iter().filter_map(|(what, limit)| Some((*what, (*limit)?))).collect();
    match held[..] {
        [] if kind == Kind::Share => "nothing".into(),
        [] => "-".into(),
        [(_, one), (_, other)] if one == other => level(&one).into(),
        _ => held
            .iter()
            .map(|(what, limit)| format!("{what}: {}", level(limit)))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn level(limit: &Limit) -> &'static str {
    match limit.by {
        Level::Mig => "mig",
        Level::Advisory => "nothing (advisory)",
    }
}
