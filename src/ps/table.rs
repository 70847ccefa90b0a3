//! Rows for people. Names come from containers: whoever prints these makes them harmless first.

use super::Row;
use crate::commands::list;
use crate::mps::protocol::State;
use crate::plan::{GPU_CLASS, VENDOR};
use crate::sys;
use hooks::lease::DeniedBy;

/// As many characters of an id as engines print.
const SHORT_ID: usize = 12;

const HEAD: [&str; 11] =
    ["DEVICE", "GPU", "MODE", "LIMITED BY", "HOLDER", "ID", "PID", "USER", "SINCE", "MEMORY", ""];

/// The lines of the table; `now` in seconds since the epoch.
pub fn lines(rows: &[Row], now: u64) -> Vec<String> {
    let cells = std::iter::once(HEAD.map(str::to_owned)).chain(rows.iter().map(|row| cells(row, now)));
    aligned(&cells.collect::<Vec<_>>())
}

/// Columns as wide as their widest cell, with two spaces between.
pub fn aligned<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

fn cells(row: &Row, now: u64) -> [String; HEAD.len()] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let limited_by = row.kind.zip(row.limits.as_ref()).map(|(kind, limits)| list::limited_by(kind, limits));
    [
        or_dash(row.cdi_name.as_deref().map(short_name)),
        or_dash(gpu(row)),
        or_dash(row.kind.zip(row.mode).map(|(kind, mode)| list::mode_word(kind, mode).into())),
        or_dash(limited_by),
        or_dash(holder(row)),
        or_dash(row.id.as_deref().map(short_id)),
        or_dash(row.pid.map(|pid| pid.to_string())),
        or_dash(row.user.clone().or_else(|| Some(row.uid?.to_string()))),
        or_dash(row.since.map(|since| sys::local_time(since, now))),
        or_dash(row.used_bytes.map(list::mib)),
        marks(row).join(", "),
    ]
}

/// As `--device` takes it, without the kind where that is nvidia.com/gpu.
pub fn short_name(cdi_name: &str) -> String {
    let plain = cdi_name.strip_prefix(VENDOR).and_then(|rest| rest.strip_prefix('/'));
    let plain = plain.and_then(|rest| rest.strip_prefix(GPU_CLASS)?.strip_prefix('='));
    plain.unwrap_or(cdi_name).to_owned()
}

/// `0 L4`, `0:1 A100-SXM4-40GB`.
fn gpu(row: &Row) -> Option<String> {
    let gpu = row.gpu?;
    let index = row.mig.map_or_else(|| gpu.to_string(), |mig| format!("{gpu}:{mig}"));
    let model = row.model.as_deref().map(|model| model.strip_prefix("NVIDIA ").unwrap_or(model));
    Some(model.map_or_else(|| index.clone(), |model| format!("{index} {model}")))
}

fn holder(row: &Row) -> Option<String> {
    match (&row.engine, &row.name) {
        (Some(engine), Some(name)) => Some(format!("{engine} {name}")),
        (one, other) => one.clone().or(other.clone()).or(row.command.clone()),
    }
}

/// The first characters of an id.
pub fn short_id(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

fn marks(row: &Row) -> Vec<&'static str> {
    let is_mps = |state| row.mps.as_ref().is_some_and(|mps| mps.state == state);
    let marks = [
        ("no lease", !row.lease),
        ("ending", row.ending),
        ("ended", row.ended),
        ("moved", row.moved),
        ("mps down", is_mps(State::Down)),
        ("mps starting", is_mps(State::Starting)),
        ("mps fault", is_mps(State::Fault)),
        ("mps blocked", is_mps(State::Blocked)),
        ("v1", row.denied_by == Some(DeniedBy::CgroupV1)),
    ];
    marks.into_iter().filter_map(|(mark, is_so)| is_so.then_some(mark)).collect()
}
