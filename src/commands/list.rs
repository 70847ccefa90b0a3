//! `divvy list`: the devices that containers can ask for, as a table or as JSON.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{STDOUT, print_problems, require_devices};
use crate::cli::{ListArgs, ListFormat};
use crate::discover;
use crate::failure::Status;
use crate::plan::{self, Device, Plan};
use crate::spec::KIND;

/// The JSON listing. Sizes are bytes.
#[derive(Serialize)]
struct Listing<'a> {
    driver_version: &'a str,
    cuda_version: Option<&'a str>,
    kind: &'static str,
    #[serde(flatten)]
    plan: &'a Plan,
}

/// Runs the verb.
pub fn run(args: &ListArgs, quiet: bool) -> Result<Status> {
    let host = discover::discover(&args.machine.source()?)?;
    let plan = plan::plan(&host);
    match args.format {
        ListFormat::Json => {
            let listing = Listing {
                driver_version: &host.driver_version,
                cuda_version: host.cuda_version.as_deref(),
                kind: KIND,
                plan: &plan,
            };
            let mut out = std::io::stdout().lock();
            serde_json::to_writer_pretty(&mut out, &listing).map_err(std::io::Error::from).context(STDOUT)?;
            writeln!(out).context(STDOUT)?;
        }
        ListFormat::Table if plan.devices.is_empty() => {}
        ListFormat::Table => print_table(&plan)?,
    }
    print_problems(&plan, quiet);
    require_devices(&plan)?;
    Ok(Status::Done)
}

/// One line a device. `--device nvidia.com/gpu=` takes the first column or the last.
pub fn print_table(plan: &Plan) -> Result<()> {
    let mut rows = vec![["NAME", "TYPE", "MODEL", "PROFILE", "MEMORY", "SMS", "UUID"].map(str::to_owned)];
    rows.extend(plan.devices.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut out = std::io::stdout().lock();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end()).context(STDOUT)?;
    }
    Ok(())
}

fn row(device: &Device) -> [String; 7] {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let kind = match device.kind {
        plan::Kind::Gpu => "gpu",
        plan::Kind::Mig => "mig",
    };
    [
        device.name.clone(),
        kind.into(),
        or_dash(device.model.clone()),
        or_dash(device.mig.as_ref().and_then(|mig| mig.profile.clone())),
        or_dash(device.memory_bytes.map(|bytes| format!("{}MiB", bytes >> 20))),
        or_dash(device.sms.map(|sms| sms.to_string())),
        device.uuid.clone(),
    ]
}
