//! What can be typed. Words and flags follow nvidia-ctk where it has them.

use std::path::PathBuf;

use clap::builder::{StringValueParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{MOST_REPLICAS, value};
use crate::discover::sim;
use crate::publish::STATE_DIR;

/// Share NVIDIA GPUs between containers, by name, on the engine you already run
#[derive(Debug, Parser)]
#[command(
    name = "divvy",
    version,
    propagate_version = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
#[command(after_help = "Exit status: 0 done, 1 failed, 2 usage, 7 written but incomplete.")]
pub struct Cli {
    /// Print errors and warnings only
    #[arg(long, global = true, conflicts_with = "debug")]
    pub quiet: bool,
    /// Print what is read and decided
    #[arg(long, global = true)]
    pub debug: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the CDI spec that names this machine's GPUs, MIG devices and shares
    Generate(GenerateArgs),
    /// Show the devices that containers can ask for, and who has those that are taken
    List(ListArgs),
    /// Show which container has which device, and what uses a GPU without a lease
    Ps(PsArgs),
    /// End the lease of a device, with the container that holds it
    Release(ReleaseArgs),
    /// Cut a GPU or MIG device into shares, in the configuration
    Share(ShareArgs),
    /// Give leased devices to containers that start, one container each (needs root; systemd runs it)
    Serve(ServeArgs),
    /// Show MPS on the devices that are shared by it, end it, or start it anew
    Mps(MpsArgs),
    /// Lay a simulated host out as real files and device nodes
    Sim(SimArgs),
    /// Write all that divvy reads on this machine into a directory, for a bug report or a test
    Record(RecordArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn host_help() -> String {
    format!("Another host than this machine: {}, or a directory that `divvy record` wrote", sim::names())
}

/// Which machine.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// Another host than this machine
    #[arg(long, value_name = "HOST", help = host_help())]
    pub host: Option<String>,
    /// Where the driver's libraries and programs lie, if not in /
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub driver_root: PathBuf,
    /// Where /dev lies, if not in / (default: the driver root)
    #[arg(long, value_name = "DIR")]
    pub dev_root: Option<PathBuf>,
}

/// What is wanted of the machine.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Configuration, or the YAML of NVIDIA's device plugin [default: /etc/divvy/config.toml]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where plan and leases are kept [default: /run/divvy, for a spec where engines look]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Options of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The plan
    #[command(flatten)]
    pub plan: PlanArgs,
    /// File to write, - for standard output [default: /var/run/cdi/divvy.json, - with --host]
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Format of the spec [default: by the file's ending, else json]
    #[arg(long, value_enum)]
    pub format: Option<SpecFormat>,
    /// Show what would be written and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Move names that running containers hold to other devices
    #[arg(long)]
    pub force: bool,
    /// Make the device nodes that are missing in /dev (needs root)
    #[arg(long, conflicts_with_all = ["host", "dry_run"])]
    pub create_device_nodes: bool,
    /// The hook that engines call [default: divvy-hook beside this program]
    #[arg(long, value_name = "FILE")]
    pub hook_path: Option<PathBuf>,
}

/// Formats of a spec. Engines read both with the same parser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpecFormat {
    // Doc comments on these would double the length of --help.
    Json,
    Yaml,
}

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The plan
    #[command(flatten)]
    pub plan: PlanArgs,
    /// Format of the listing
    #[arg(long, value_enum, default_value = "table")]
    pub format: ListFormat,
}

/// Formats of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    // For people.
    Table,
    // For programs.
    Json,
}

/// Options of `ps`.
#[derive(Debug, Args)]
#[command(after_help = "\
Marks in the last column: `no lease`, it uses the GPU and no lease is its own; `ending`, its first process is
gone and others of the container are not; `v1`, cgroup v1 holds it from other devices of the pool.
MEMORY is what all processes of the container use together on that GPU or MIG device, by the driver's count.
`-` is what is not known: without a driver nobody counts memory.")]
pub struct PsArgs {
    /// Format of the listing
    #[arg(long, value_enum, default_value = "table")]
    pub format: ListFormat,
    /// Show it again every so many seconds, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
    /// Show the starts that were refused a device, your own first; the last 64 are kept
    #[arg(long)]
    pub refused: bool,
    /// Where leases and the plan are kept [default: /run/divvy]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the driver's libraries lie, if not in /
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub driver_root: PathBuf,
}

/// Options of `release`.
#[derive(Debug, Args)]
#[command(after_help = "\
A lease ends with its container. While that runs, `release` says who it is and what ends it; with --kill all of
its processes are killed, by root or by the user that the container is of. What an engine starts again
by itself, as `docker run --restart always`, it starts again.")]
pub struct ReleaseArgs {
    /// The device: shared-0, or with its kind nvidia.com/gpu.shared=shared-0
    pub device: String,
    /// Kill the container that holds it
    #[arg(long)]
    pub kill: bool,
    /// Where leases and the plan are kept [default: /run/divvy]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Ways to share that this version has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ShareMode {
    // In turns.
    TimeSlice,
    // At once, through NVIDIA's MPS server.
    Mps,
}

/// A parser that takes the text as it is if the check has nothing against it.
fn checked(
    check: impl Fn(&str) -> Result<(), String> + Clone + Send + Sync + 'static,
) -> impl TypedValueParser<Value = String> {
    StringValueParser::new().try_map(move |text| check(&text).map(|()| text))
}

/// Options of `share`.
#[derive(Debug, Args)]
pub struct ShareArgs {
    /// What to share: an index (0), a UUID, a PCI address, a MIG device (0:1), a MIG profile, a model, or all
    pub gpu: String,
    /// How many shares, all alike
    #[arg(long, value_name = "N", required_unless_present = "none",
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_REPLICAS)))]
    pub replicas: Option<u32>,
    /// Make it whole again
    #[arg(long, conflicts_with_all = ["replicas", "mode", "name", "memory", "sm_percent", "advisory"])]
    pub none: bool,
    /// How they share it [default: as the configuration has it, else time-slice]
    #[arg(long, value_enum)]
    pub mode: Option<ShareMode>,
    /// Their name, without the number [default: shared]
    #[arg(long, value_name = "NAME", value_parser = checked(value::share_name))]
    pub name: Option<String>,
    /// Memory of each, as 8GiB [default with mps: an equal part]; in time slices nothing holds it, so it needs --advisory
    #[arg(long, value_name = "SIZE", value_parser = checked(|text| value::size(text).map(drop)))]
    pub memory: Option<String>,
    /// Percent of the SMs of each, likewise
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub sm_percent: Option<u32>,
    /// Accept limits that nothing holds
    #[arg(long)]
    pub advisory: bool,
    /// Show the change and write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
    /// The configuration to write, and the plan
    #[command(flatten)]
    pub plan: PlanArgs,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where the plan is, the socket, and the leases
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
}

/// Options of `mps`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
STATE: not started (nobody has asked for it yet), starting, ready (a server runs with the limits), down (nothing
runs, and CUDA programs of containers fail with 805), fault (a client's fault ended the work of all, and no new one is
taken until all have left), blocked (somebody connected and says nothing, and nobody else can connect), unknown (the
supervisor is gone).
CLIENTS are processes that use the server, by their process ids on this machine.
LIMITS are those of each process, not of a container's processes together."
)]
pub struct MpsArgs {
    /// What to do; without it, MPS is shown
    #[command(subcommand)]
    pub command: Option<MpsCommand>,
    /// Format of the listing
    #[arg(long, value_enum, default_value = "table")]
    pub format: ListFormat,
    /// Where its state is kept [default: /run/divvy]
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, hide_default_value = true)]
    pub state_dir: PathBuf,
}

const FORCED_STOP: &str =
    "Also while containers use it: their work is lost, and CUDA fails in them until MPS begins again";

/// What can be done to MPS.
#[derive(Debug, Subcommand)]
pub enum MpsCommand {
    /// End MPS on a device, and restore its compute mode
    #[command(mut_arg("force", |arg| arg.help(FORCED_STOP)))]
    Stop(MpsDeviceArgs),
    /// End MPS on a device, and start it anew
    Restart(MpsDeviceArgs),
    /// Keep MPS on a device (`divvy serve` starts this)
    #[command(hide = true)]
    Supervise(SuperviseArgs),
}

/// Options of `mps stop` and `mps restart`.
#[derive(Debug, Args)]
pub struct MpsDeviceArgs {
    /// The device: an index (0), a MIG device (0:1), a UUID, or the name of a share
    pub device: String,
    /// Also while containers use it, whose work is lost
    // Of `stop` it says FORCED_STOP.
    #[arg(long)]
    pub force: bool,
    /// Where its state is kept [default: /run/divvy]
    #[arg(long, value_name = "DIR", default_value = STATE_DIR, hide_default_value = true)]
    pub state_dir: PathBuf,
}

/// Options of `mps supervise`.
#[derive(Debug, Args)]
pub struct SuperviseArgs {
    /// UUID of the GPU or MIG device
    #[arg(value_parser = checked(mps_uuid))]
    pub uuid: String,
    /// Where its state is kept
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,
    /// Start it in a session of its own, and return
    #[arg(long)]
    pub background: bool,
}

/// It is a directory's name too.
fn mps_uuid(text: &str) -> Result<(), String> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    let is_uuid = text.starts_with("GPU-") || text.starts_with("MIG-");
    if is_plain && is_uuid { Ok(()) } else { Err("is not the UUID of a GPU or MIG device".to_owned()) }
}

/// Options of `sim`.
#[derive(Debug, Args)]
pub struct SimArgs {
    /// The host
    #[arg(help = format!("The host: {} (sim: in front may stand or not)", sim::names()))]
    pub name: String,
    /// A directory that is empty or not there yet
    pub dir: PathBuf,
}

/// Options of `record`.
#[derive(Debug, Args)]
#[command(after_help = "\
What is in the record: what NVML says (models, UUIDs, PCI addresses, sizes), numbers and permissions of the
driver's device nodes, names and paths of the driver's files, the kernel's release and its list of drivers,
the versions of Docker and Podman, and the configuration with all that is written in it. No secrets
otherwise: no host, user or network names, no processes, no serial numbers, and nothing of what containers
or the driver's files hold.

`divvy list --host DIR` replays it, on any machine. Nothing is sent anywhere.")]
pub struct RecordArgs {
    /// A directory that is empty or not there yet
    pub dir: PathBuf,
    /// Replace UUIDs by numbers, the same UUID by the same number everywhere
    #[arg(long)]
    pub mask: bool,
    /// The configuration to record [default: /etc/divvy/config.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The machine
    #[command(flatten)]
    pub machine: MachineArgs,
}
