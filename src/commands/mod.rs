//! One verb a file. Each discovers, plans and prints through the modules of the flow and decides nothing itself.

mod completions;
mod generate;
mod list;
mod sim;

use std::path::PathBuf;

use anyhow::Result;

use crate::cli::{Cli, Command, MachineArgs};
use crate::discover::sim::SimHost;
use crate::discover::{self, Roots, Source};
use crate::failure::{Failure, Status, say};
use crate::plan::Plan;

const STDOUT: &str = "cannot write to standard output";

/// Runs the verb that was typed.
pub fn run(cli: Cli) -> Result<Status> {
    match cli.command {
        Command::Generate(args) => generate::run(&args, cli.quiet),
        Command::List(args) => list::run(&args, cli.quiet),
        Command::Sim(args) => sim::run(&args, cli.quiet),
        Command::Completions { shell } => completions::run(shell),
    }
}

impl MachineArgs {
    fn roots(&self) -> Result<Roots> {
        let absolute = |path: &PathBuf| {
            std::path::absolute(path).map_err(|error| {
                anyhow::Error::new(error).context(format!("cannot resolve {}", path.display()))
            })
        };
        let driver = absolute(&self.driver_root)?;
        let dev = self.dev_root.as_ref().map(absolute).transpose()?.unwrap_or_else(|| driver.clone());
        Ok(Roots { driver, dev })
    }

    fn source(&self) -> Result<Source> {
        let Some(name) = &self.host else { return Ok(Source::Live(self.roots()?)) };
        let simulated = name.strip_prefix("sim:").and_then(SimHost::parse);
        simulated.map(Source::Sim).ok_or_else(|| no_such_host(name))
    }
}

fn no_such_host(name: &str) -> anyhow::Error {
    Failure::new(anyhow::anyhow!("there is no simulated host {name:?}"))
        .hint(format!("choose one of {}", discover::sim::names()))
        .status(Status::Usage)
        .into()
}

/// Problems and notes of a plan, on standard error.
fn print_problems(plan: &Plan, quiet: bool) {
    for problem in &plan.problems {
        say("warning", format_args!("{} {}", problem.what, problem.why));
    }
    // One mend often serves several problems.
    let mut hints: Vec<&str> = Vec::new();
    for problem in &plan.problems {
        if !hints.contains(&problem.hint.as_str()) {
            hints.push(&problem.hint);
        }
    }
    for hint in hints {
        say("hint", hint);
    }
    if !quiet {
        for note in &plan.notes {
            say("note", note);
        }
    }
}

/// A machine without a device is an error everywhere: an empty spec makes engines fail without a reason.
fn require_devices(plan: &Plan) -> Result<()> {
    if !plan.devices.is_empty() {
        return Ok(());
    }
    let (what, hint) = if plan.problems.is_empty() && plan.notes.is_empty() {
        (
            "the driver is loaded and sees no GPU",
            "`lspci -d 10de:` lists NVIDIA's devices on the PCI bus; a GPU that is bound to vfio-pci is not the driver's",
        )
    } else {
        ("no GPU or MIG device can be given to a container", "the lines above say what is missing")
    };
    Err(Failure::new(anyhow::anyhow!(what)).hint(hint).into())
}
