//! The ground that trials stand on: one throw-away machine (tests/machine/) with Docker, Podman and containerd in it,
//! laid out as the simulated host a100-lab. It is set up when the first trial asks for it. What this host cannot offer is
//! kept as an unmet need with its reason; what divvy itself does wrong meanwhile breaks every trial.

use std::fmt;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::layout;
use crate::mps::hosts;

/// The newest engines that Debian has (Docker 28, Podman 5.8, containerd 2.1). `DIVVY_SUITE=trixie` takes those of its
/// stable release (Docker 26, Podman 5.4, containerd 1.7).
const DEFAULT_SUITE: &str = "sid";
/// `DIVVY_CGROUP=v1` gives the machine the older hierarchies, where the host has them.
const DEFAULT_CGROUP: &str = "v2";
/// The machine's name.
pub const NAME: &str = "engines";
/// That of the machine of `units`, whose first process is systemd.
pub const BOOTED: &str = "units";

/// What a trial may need. The words are those of `DIVVY_REQUIRE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Namespaces, mounts and cgroups: root, or sudo without a password.
    Root,
    /// A cgroup v2 hierarchy, which device filters are attached to.
    Cgroup2,
    /// Hierarchies of cgroup v1 and their device controller.
    Cgroup1,
    /// `divvy` and `divvy-hook` in the build directory.
    Build,
    /// A machine that started.
    Machine,
    /// Docker answers in it.
    Docker,
    /// Podman runs in it, as root.
    Podman,
    /// Podman runs in it as a user.
    Rootless,
    /// containerd answers in it.
    Containerd,
    /// The mock libnvidia-ml.so.1.
    Mock,
    /// The trees of tests/machine/bundles.sh.
    Bundles,
    /// NVIDIA's MPS programs and libcuda, which tests/machine/mps.sh unpacks.
    Mps,
}

impl Need {
    fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Cgroup2 => "cgroup2",
            Self::Cgroup1 => "cgroup1",
            Self::Build => "build",
            Self::Machine => "machine",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Rootless => "rootless",
            Self::Containerd => "containerd",
            Self::Mock => "mock",
            Self::Bundles => "bundles",
            Self::Mps => "mps",
        }
    }

    /// Without these there is no machine to try anything on.
    fn is_common(self) -> bool {
        matches!(self, Self::Root | Self::Cgroup2 | Self::Cgroup1 | Self::Build | Self::Machine)
    }
}

/// A need that is not met, and why.
#[derive(Debug)]
pub struct Unmet {
    need: Need,
    why: String,
}

impl Unmet {
    /// Whether `DIVVY_REQUIRE` demands it. A host may lack root, cgroup v2 or an engine; that the machine, the build
    /// or the mock is there is for these tests to bring about, so it is demanded along with any engine.
    pub fn is_required(&self) -> bool {
        let required = std::env::var("DIVVY_REQUIRE").unwrap_or_default();
        let demanded = |word: &str| required.split(',').any(|item| item.trim() == word);
        let of_ours =
            matches!(self.need, Need::Build | Need::Machine | Need::Mock | Need::Rootless | Need::Bundles);
        demanded(self.need.word()) || of_ours && (demanded("docker") || demanded("podman"))
    }
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.need.word(), self.why)
    }
}

/// The machine, and what it lacks.
#[derive(Debug, Default)]
pub struct Ground {
    unmet: Vec<Unmet>,
    /// Why the machine is of no use though nothing is missing: a bug of divvy's or of these scripts.
    pub broken: Option<String>,
}

static GROUND: OnceLock<Ground> = OnceLock::new();
static MINDER: Mutex<Option<Minder>> = Mutex::new(None);

/// The ground, set up by the first who asks.
pub fn ground() -> &'static Ground {
    GROUND.get_or_init(|| {
        let mut ground = Ground::default();
        if let Err(unmet) = start(&mut ground) {
            ground.unmet.push(unmet);
        }
        ground
    })
}

/// Ends the machine, if there is one.
pub fn take_down() {
    let minder = MINDER.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(minder) = minder {
        minder.finish();
    }
}

impl Ground {
    /// The first need that is not met.
    pub fn unmet(&self, needs: &[Need]) -> Option<&Unmet> {
        self.unmet.iter().find(|unmet| unmet.need.is_common() || needs.contains(&unmet.need))
    }

    /// Runs a shell script in the machine, as its root.
    pub fn sh(&self, script: &str) -> Output {
        self.command("in.sh", &["sh", "-c", script])
    }

    /// Asks again and again whether something has come about, for as long as any of it may take on a busy host: MPS that
    /// failed many times starts after a minute.
    pub fn wait(&self, has_come: impl Fn() -> bool) -> bool {
        let end = Instant::now() + Duration::from_secs(120);
        while !has_come() {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        true
    }

    /// Runs a command in the machine. `entry` is in.sh for root, as-user.sh for the unprivileged user.
    pub fn command(&self, entry: &str, command: &[&str]) -> Output {
        self.command_for(120, entry, command)
    }

    /// The same for a command that may take so many seconds.
    pub fn command_for(&self, seconds: u32, entry: &str, command: &[&str]) -> Output {
        command_in(NAME, seconds, entry, command)
    }
}

/// The same in a machine by its name.
pub fn command_in(machine: &str, seconds: u32, entry: &str, command: &[&str]) -> Output {
    // An engine that hangs is a failure and must not keep the machine up for ever.
    let mut timeout = Command::new("timeout");
    timeout.args(["--kill-after=5", &seconds.to_string()]).arg(script(entry)).arg(machine).args(command);
    Output::of(&mut timeout)
}

fn start(ground: &mut Ground) -> Result<(), Unmet> {
    require_root()?;
    require_cgroup()?;
    require_build()?;
    let machine = |why: String| Unmet { need: Need::Machine, why: last_line(&why) };
    let (suite, cgroup) = (suite(), cgroup());
    if !build_dir().join("trees").join(&suite).exists() {
        eprintln!("unpacking Debian {suite} with the engines, once: about half a minute");
    }
    run_script("tree.sh", &[&suite]).map_err(machine)?;
    run_script("images.sh", &[]).map_err(machine)?;
    if let Err(why) = run_script("bundles.sh", &[]) {
        ground.unmet.push(Unmet { need: Need::Bundles, why: last_line(&why) });
    }
    let minder = Minder::start().map_err(|error| machine(error.to_string()))?;
    *MINDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(minder);
    run_script("up.sh", &[&suite, NAME, &cgroup]).map_err(machine)?;

    if let Err(why) = layout::lay_out(ground) {
        ground.broken = Some(why);
        return Ok(());
    }
    for (need, made) in [
        (Need::Mock, install_mock()),
        (Need::Docker, start_docker(ground)),
        (Need::Podman, import_images(ground, "in.sh", "podman")),
        (Need::Rootless, import_images(ground, "as-user.sh", "podman")),
        (Need::Containerd, start_containerd()),
        (Need::Mps, hosts::lay_out(ground)),
    ] {
        if let Err(why) = made {
            ground.unmet.push(Unmet { need, why });
        }
    }
    Ok(())
}

/// The last line of a script's errors is its own; what comes before is from the tool that failed.
fn last_line(why: &str) -> String {
    why.lines().last().unwrap_or_default().to_owned()
}

fn require_root() -> Result<(), Unmet> {
    let is_root = Output::of(Command::new("id").arg("-u")).stdout.trim() == "0";
    if is_root || Output::of(Command::new("sudo").args(["-n", "true"])).status == 0 {
        return Ok(());
    }
    Err(Unmet { need: Need::Root, why: "machines need root, or sudo without a password".into() })
}

/// The Debian suite of the machine.
pub fn suite() -> String {
    std::env::var("DIVVY_SUITE").unwrap_or_else(|_| DEFAULT_SUITE.into())
}

fn cgroup() -> String {
    std::env::var("DIVVY_CGROUP").unwrap_or_else(|_| DEFAULT_CGROUP.into())
}

/// The machine has the older hierarchies: a few trials suffice there, since what differs is who admits a device.
pub fn is_cgroup_v1() -> bool {
    cgroup() == "v1"
}

/// What tells this run's trials from those of others: `trixie/`, `v1/`; nothing for the newest engines on cgroup v2.
pub fn label() -> String {
    let parts = [(suite(), DEFAULT_SUITE), (cgroup(), DEFAULT_CGROUP)];
    parts.iter().filter(|(is, default)| is != default).map(|(is, _)| format!("{is}/")).collect()
}

fn require_cgroup() -> Result<(), Unmet> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let has = |kind: &str, option: &str| {
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        fields.into_iter().any(|fields| {
            fields.get(2) == Some(&kind)
                && fields
                    .get(3)
                    .is_some_and(|all| all.split(',').any(|one| option.is_empty() || one == option))
        })
    };
    let (need, there, what) = if is_cgroup_v1() {
        (Need::Cgroup1, has("cgroup", "devices"), "cgroup v1 hierarchy of devices")
    } else {
        (Need::Cgroup2, has("cgroup2", ""), "cgroup v2 hierarchy")
    };
    if there { Ok(()) } else { Err(Unmet { need, why: format!("this host has no {what}") }) }
}

fn require_build() -> Result<(), Unmet> {
    let bin = build_dir().join("bin");
    match ["divvy", "divvy-hook"].iter().find(|program| !bin.join(program).is_file()) {
        None => Ok(()),
        Some(missing) => {
            let why = format!("there is no {}: run `make build`", bin.join(missing).display());
            Err(Unmet { need: Need::Build, why })
        }
    }
}

const BUILD_MOCK: [&str; 5] = ["build", "--quiet", "--locked", "--package", "mock-nvml"];

/// The mock takes the name that the loader looks for; the driver's own file stays beside it.
fn install_mock() -> Result<(), String> {
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let built = Output::of(Command::new(env!("CARGO")).args(BUILD_MOCK).current_dir(project_dir()));
    built.require().map_err(|_| "mock-nvml does not build")?;
    // target/debug/deps/engines-... -> target/debug
    let mock = exe.ancestors().nth(2).unwrap_or(Path::new("/")).join("libnvidia_ml.so");
    let facts = project_dir().join("src/discover/sim/a100-lab.json");
    install(&mock, "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1")?;
    install(&facts, "/facts.json")
}

fn start_docker(ground: &Ground) -> Result<(), String> {
    run_script("dockerd.sh", &[NAME])?;
    import_images(ground, "in.sh", "docker")
}

/// containerd with the images in it, and the program that stands in for a kubelet.
fn start_containerd() -> Result<(), String> {
    run_script("containerd.sh", &[NAME])?;
    let built = Output::of(
        Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--locked", "--package", "cri-run"])
            .current_dir(project_dir()),
    );
    built.require().map_err(|_| "cri-run does not build")?;
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = exe.ancestors().nth(2).unwrap_or(Path::new("/")).join("cri-run");
    install(&program, "/usr/bin/cri-run")
}

/// Puts a file of this host into the machine, as a program.
fn install(from: &Path, to: &str) -> Result<(), String> {
    let file = std::fs::File::open(from).map_err(|error| format!("{}: {error}", from.display()))?;
    let mut copy = Command::new(script("in.sh"));
    // Not through a link that is there, which leads to the driver's own file.
    copy.args([NAME, "install", "--mode=755", "/dev/stdin", to]).stdin(file);
    Output::of_with_stdin(&mut copy).require()
}

fn import_images(ground: &Ground, entry: &str, engine: &str) -> Result<(), String> {
    let script = format!(
        "for tar in /images/*.tar; do
             image=${{tar##*/}}
             set -- --change 'ENV PATH=/usr/sbin:/usr/bin:/sbin:/bin' --change 'CMD [\"/bin/sh\"]'
             if [ -e ${{tar%.tar}}.changes ]; then
                 while read -r change; do set -- \"$@\" --change \"$change\"; done <${{tar%.tar}}.changes
             fi
             {engine} import \"$@\" $tar ${{image%.tar}}:latest >/dev/null || exit 1
         done"
    );
    ground.command(entry, &["sh", "-c", &script]).require()
}

/// Takes the machines down when this process ends, in whatever way: it waits for the end of a pipe that only this
/// process holds open. It also holds a lock, so that of two runs in one checkout the second waits.
#[derive(Debug)]
struct Minder(Child);

impl Minder {
    fn start() -> std::io::Result<Self> {
        use std::os::unix::process::CommandExt;
        let lock = build_dir().join("engines.lock");
        if Output::of(Command::new("flock").arg("--nonblock").arg(&lock).arg("true")).status != 0 {
            eprintln!("another run has the machine of this checkout; waiting for its end");
        }
        let mut child = Command::new("flock")
            .arg(&lock)
            .args(["sh", "-c", "echo; cat >/dev/null; for name; do \"$0\" \"$name\" || s=1; done; exit $s"])
            .arg(script("down.sh"))
            .args([BOOTED, NAME])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // A group of its own: Ctrl-C ends the trials, and the minder still has work to do.
            .process_group(0)
            .spawn()?;
        if let Some(stdout) = &mut child.stdout {
            BufReader::new(stdout).read_line(&mut String::new())?;
        }
        Ok(Self(child))
    }

    fn finish(mut self) {
        drop(self.0.stdin.take());
        match self.0.wait() {
            Ok(status) if status.success() => {}
            other => eprintln!("warning: not all machines were taken down: {other:?}"),
        }
    }
}

/// What a command did.
#[derive(Debug)]
pub struct Output {
    /// Exit status; -1 if a signal ended it.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    fn of(command: &mut Command) -> Self {
        Self::of_with_stdin(command.stdin(Stdio::null()))
    }

    fn of_with_stdin(command: &mut Command) -> Self {
        match command.env("DIVVY_BUILD", build_dir()).output() {
            Ok(output) => Self {
                status: output.status.code().unwrap_or(-1),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            },
            Err(error) => {
                Self { status: 127, stdout: String::new(), stderr: format!("{command:?}: {error}") }
            }
        }
    }

    /// Standard output of a command that has to succeed.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.status, 0, "standard output: {}\nstandard error: {}", self.stdout, self.stderr);
        self.stdout.trim_end()
    }

    /// Its standard error, where it does not succeed.
    pub fn require(&self) -> Result<(), String> {
        if self.status == 0 { Ok(()) } else { Err(self.stderr.trim().to_owned()) }
    }
}

pub fn run_script(name: &str, args: &[&str]) -> Result<(), String> {
    Output::of(Command::new(script(name)).args(args)).require()
}

fn script(name: &str) -> PathBuf {
    project_dir().join("tests/machine").join(name)
}

pub fn build_dir() -> PathBuf {
    std::env::var_os("DIVVY_BUILD").map_or_else(|| project_dir().join(".build"), PathBuf::from)
}

/// Cargo sets it for tests that it runs; the path at build time serves for a test that is run by hand.
pub fn project_dir() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}
