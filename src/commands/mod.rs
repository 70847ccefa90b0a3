//! One verb a file. Each discovers, plans and prints through the modules of the flow and decides nothing itself.

mod completions;
mod generate;
pub mod list;
mod mps;
mod new_directory;
mod ps;
mod record;
mod release;
mod serve;
mod share;
mod sim;
mod users;

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cli::{Cli, Command, MachineArgs, PlanArgs};
use crate::config::UserRule;
use crate::config::stored::{DEFAULT_PATH, Stored};
use crate::discover::host::Host;
use crate::discover::recorded::Recorded;
use crate::discover::sim::SimHost;
use crate::discover::{self, Roots, Source, create};
use crate::failure::{Failure, Status, say};
use crate::mps::place::Place;
use crate::plan::earlier::Earlier;
use crate::plan::{self, Places, Plan};
use crate::publish;

const STDOUT: &str = "cannot write to standard output";

/// Runs the verb that was typed.
pub fn run(cli: Cli) -> Result<Status> {
    match cli.command {
        Command::Generate(args) => generate::run(&args, cli.quiet),
        Command::List(args) => list::run(&args, cli.quiet),
        Command::Ps(args) => ps::run(&args, cli.quiet),
        Command::Release(args) => release::run(&args),
        Command::Share(args) => share::run(&args, cli.quiet),
        Command::Serve(args) => serve::run(&args),
        Command::Mps(args) => mps::run(&args),
        Command::Sim(args) => sim::run(&args, cli.quiet),
        Command::Record(args) => record::run(&args, cli.quiet),
        Command::Completions { shell } => completions::run(shell),
    }
}

impl MachineArgs {
    fn roots(&self) -> Result<Roots> {
        let absolute = |path: &PathBuf| -> Result<PathBuf> {
            let path = std::path::absolute(path).map_err(|error| {
                anyhow::Error::new(error).context(format!("cannot resolve {}", path.display()))
            })?;
            if path.to_str().is_some() {
                return Ok(path);
            }
            Err(Failure::new(anyhow::anyhow!("the root {} is not UTF-8, and a spec is", path.display()))
                .hint("mount it once more under a name that is (mount --bind)")
                .status(Status::Usage)
                .into())
        };
        let driver = absolute(&self.driver_root)?;
        let dev = self.dev_root.as_ref().map(absolute).transpose()?.unwrap_or_else(|| driver.clone());
        Ok(Roots { driver, dev })
    }

    fn source(&self) -> Result<Source> {
        let Some(name) = &self.host else { return Ok(Source::Live(self.roots()?)) };
        match name.strip_prefix("sim:") {
            Some(sim) => SimHost::parse(sim).map(Source::Sim).ok_or_else(|| no_such_host(name)),
            None => Ok(Source::Recorded(Box::new(Recorded::open(Path::new(name))?))),
        }
    }
}

/// What every verb that shows or writes devices begins with.
struct Planned {
    host: Host,
    plan: Plan,
    /// `[users]`, with their places.
    users: Vec<UserRule>,
    /// What engines of this machine see is another plan, or none.
    is_stale: bool,
}

impl Planned {
    /// Discovers and plans. `output` is the spec file, `state` the state directory; `create_nodes` is told of each device node that was made, none
    /// makes no nodes.
    fn new(
        machine: &MachineArgs,
        args: &PlanArgs,
        source: Source,
        earlier: &Earlier,
        output: &Path,
        state: &Path,
        create_nodes: Option<&dyn Fn(&str)>,
    ) -> Result<Self> {
        let config = stored_config(args.config.as_deref(), false, &source)?.parse()?;
        let mut host = discover::discover(&source, output)?;
        if matches!(source, Source::Live(_)) {
            forget_own_compute_modes(&mut host, state);
        }
        if let Some(made) = create_nodes {
            create::missing_nodes(&mut host, &machine.roots()?.dev)?.iter().for_each(|node| made(node));
        }
        let roots = machine.roots()?;
        let places = Places { output, state, driver_root: &roots.driver };
        let plan = plan::plan(&host, &config, earlier, &places);
        Ok(Self { host, plan, users: config.users, is_stale: false })
    }

    /// As the last `generate` did it, so that a listing shows the names that work.
    fn as_generated(machine: &MachineArgs, args: &PlanArgs) -> Result<Self> {
        let source = machine.source()?;
        let is_this_machine = matches!(source, Source::Live(_));
        let (earlier, output) = last_generated(&source, args.state_dir.as_deref());
        let state = state_place(args.state_dir.as_deref());
        let planned = Self::new(machine, args, source, &earlier, &output, &state, None)?;
        let is_stale = is_this_machine && earlier.generation.as_deref() != Some(&planned.plan.generation);
        Ok(Self { is_stale, ..planned })
    }
}

/// The plan that the last `generate` left behind, and the spec that it was asked for.
fn last_generated(source: &Source, state_dir: Option<&Path>) -> (Earlier, PathBuf) {
    let live = matches!(source, Source::Live(_)).then_some(Path::new(publish::STATE_DIR));
    let earlier = state_dir.or(live).map(publish::earlier).unwrap_or_default();
    let output = earlier.output.clone().unwrap_or_else(|| publish::DEFAULT_OUTPUT.into());
    (earlier, output)
}

/// While MPS runs on a GPU, its compute mode is divvy's, and says nothing about what the administrator wants.
fn forget_own_compute_modes(host: &mut Host, state: &Path) {
    for gpu in &mut host.gpus {
        if Place::new(state, &gpu.uuid).compute_mode().exists() {
            gpu.compute_mode = None;
        }
    }
}

/// The state directory by the name that it has from everywhere.
fn state_place(state_dir: Option<&Path>) -> PathBuf {
    let plan = state_dir.and_then(publish::plan_path);
    plan.as_deref().and_then(Path::parent).unwrap_or(Path::new(publish::STATE_DIR)).to_path_buf()
}

/// The configuration that was named, else this machine's, else what a simulated or recorded host brings. `may_begin`:
/// a named one need not be there yet.
fn stored_config(named: Option<&Path>, may_begin: bool, source: &Source) -> Result<Stored> {
    match (named, source) {
        (Some(path), _) if may_begin => Stored::read_if_there(path),
        (Some(path), _) => Stored::read(path),
        (None, Source::Live(_)) => Stored::read_if_there(Path::new(DEFAULT_PATH)),
        (None, _) => Ok(Stored::brought(source.config())),
    }
}

fn no_such_host(name: &str) -> anyhow::Error {
    Failure::new(anyhow::anyhow!("there is no simulated host {name:?}"))
        .hint(format!("choose one of {}", discover::sim::names()))
        .status(Status::Usage)
        .into()
}

/// `7 GPUs, 4 MIG devices, 4 shares`, without what there is none of.
fn counts(of: &[(usize, &str)]) -> String {
    let count = |(n, what): &(usize, &str)| match (n, what.split_once(' ')) {
        (1, _) => format!("1 {what}"),
        (n, Some(("kind", rest))) => format!("{n} kinds {rest}"),
        (n, _) => format!("{n} {what}s"),
    };
    let counts: Vec<_> = of.iter().filter(|(n, _)| *n > 0).map(count).collect();
    if counts.is_empty() { "no devices".into() } else { counts.join(", ") }
}

/// Problems and notes of a plan, on standard error.
fn print_problems(plan: &Plan, quiet: bool) {
    // One mend often serves several problems.
    for alike in plan.problems.chunk_by(|one, next| one.hint == next.hint) {
        alike.iter().for_each(|problem| say("warning", problem));
        alike.iter().take(1).for_each(|problem| say("hint", &problem.hint));
    }
    for warning in &plan.warnings {
        say("warning", warning);
    }
    if !quiet {
        for note in &plan.notes {
            say("note", note);
        }
    }
}

/// A machine without a device is an error everywhere: an empty spec makes engines fail without a reason.
fn require_devices(plan: &Plan) -> Result<()> {
    // Where all names are left to others, there is nothing to write and nothing wrong.
    if !plan.devices.is_empty() || plan.whole_names_withheld {
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

/// What is said where nobody has generated yet.
fn no_plan(state_dir: &Path) -> String {
    format!("there is no plan in {}: `divvy generate` writes it", state_dir.display())
}
