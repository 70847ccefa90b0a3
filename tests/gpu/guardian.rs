//! Keeps the machine as it was found: looks whether the GPU may be used, says what will be done to it, starts the checks,
//! and when they end, however they do, ends every process that is left and restores the compute mode. It does nothing
//! else, so that nothing else can go wrong in it.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nvml_wrapper::Nvml;

use super::checks;
use super::daemon::Programs;
use super::gpu::{ComputeMode, Gpu, control_daemons, nvml};
use super::ground::{KEEP_MODE, is_set, wanted_index};
use super::process::end_all_below;

/// Root's alone. Short, since sockets lie in it.
const DIRECTORY: &str = "/run/divvy-test-gpu";
/// The longest run.
const LIMIT: Duration = Duration::from_secs(8 * 60);

/// Why nothing can be tried here, as far as that is no mistake.
pub fn missing() -> Option<String> {
    if !is_set("DIVVY_TEST_GPU") {
        return Some("asked for by make test-gpu: it changes the GPU's compute mode for a while".into());
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    nvml().err().or_else(|| Programs::find().err())
}

/// All of a run.
pub fn run() -> Result<ExitCode> {
    let nvml = nvml().map_err(anyhow::Error::msg)?;
    let mut gpu = Gpu::choose(&nvml, wanted_index()?)?;
    fs::create_dir_all(DIRECTORY).with_context(|| format!("cannot make {DIRECTORY}"))?;
    let lock = File::create(Path::new(DIRECTORY).join("lock"))?;
    if lock.try_lock().is_err() {
        bail!("another run is at work: {DIRECTORY}/lock is held");
    }
    let note = Note::of(&gpu);
    if let Some(mode) = note.read() {
        println!("A run before this one was killed: the compute mode it found was {mode:?}.");
        gpu.mode = mode;
    }
    refuse_what_is_in_use(&nvml, &gpu)?;
    let keeps = gpu.is_mig || is_set(KEEP_MODE);
    announce(&gpu, keeps);

    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD];
    let signals: SigSet = signals.into_iter().collect();
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    // Whose parent ends comes to this process, and is found again.
    set_child_subreaper(true)?;
    if !keeps {
        note.write(&gpu.mode)?;
    }
    remove_leftovers()?;
    let directory = tempfile::Builder::new().prefix("run-").tempdir_in(DIRECTORY)?;
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;

    let ended = start(directory.path()).and_then(|mut checks| wait(&mut checks, &signals));
    let cleaned = clean_up(&nvml, &gpu, (!keeps).then_some(&note));
    let code = ended?;
    cleaned?;
    Ok(code)
}

fn refuse_what_is_in_use(nvml: &Nvml, gpu: &Gpu) -> Result<()> {
    let mut users = gpu.users(nvml)?;
    users.extend(control_daemons().into_iter().map(|pid| format!("process {pid}, which is MPS")));
    if !users.is_empty() {
        bail!("GPU {} is in use, and these checks would end that: {}", gpu.index, users.join(", "));
    }
    if gpu.mode == ComputeMode::Prohibited {
        bail!("GPU {} has compute mode prohibited: somebody wants nothing to run on it", gpu.index);
    }
    Ok(())
}

fn announce(gpu: &Gpu, keeps_mode: bool) {
    let Gpu { index, name, driver, gpu_uuid, mode, .. } = gpu;
    println!("This tries NVIDIA's MPS on GPU {index} ({name}, driver {driver}), which nobody uses now.");
    println!("For some minutes, it");
    println!(
        "- starts and kills control daemons and servers of MPS for this GPU, and some 150 small CUDA programs,"
    );
    println!(
        "- fills the GPU's memory once, and has a program of its own crash on it, which the driver logs (Xid),"
    );
    if keeps_mode {
        println!("- leaves the compute mode as it is ({mode:?}).");
    } else {
        println!(
            "- sets the compute mode to exclusive-process, prohibited and default, and back to {mode:?} in the end."
        );
        println!(
            "Whoever starts something on this GPU meanwhile is refused. Should all of this be killed (SIGKILL),"
        );
        println!(
            "the next run restores the mode, and so does: nvidia-smi -i {gpu_uuid} -c {}",
            nvidia_smi_word(mode)
        );
    }
    println!();
}

fn start(directory: &Path) -> Result<Child> {
    // With a /dev/shm of their own, so that what MPS forgets there goes with them; and so goes their directory, from which
    // programs can be run, as they cannot from every /run.
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs -o mode=1777 tmpfs /dev/shm && mount -t tmpfs -o mode=755 tmpfs \"$2\" && exec \"$0\" \"$@\""]);
    command
        .arg(std::env::current_exe()?)
        .arg(checks::ARGUMENT)
        .arg(directory)
        .args(std::env::args_os().skip(1));
    // Nothing is said on it; that it ends is a sign.
    command.stdin(Stdio::piped());
    // A terminal's ^C is for the guardian, which ends the checks.
    command.process_group(0).spawn().context("cannot start the checks")
}

/// Until the checks end, or somebody wants them to.
fn wait(checks: &mut Child, signals: &SignalFd) -> Result<ExitCode> {
    let start = Instant::now();
    loop {
        while let Some(signal) = signals.read_signal()? {
            let signal = Signal::try_from(signal.ssi_signo.cast_signed())?;
            if signal != Signal::SIGCHLD {
                bail!("{signal}: the checks are ended");
            }
        }
        if let Some(status) = checks.try_wait()? {
            let code = status.code().with_context(|| format!("the checks ended unexpectedly: {status}"))?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        if start.elapsed() > LIMIT {
            bail!("the checks took longer than {} minutes", LIMIT.as_secs() / 60);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// In the process of the checks, when the guardian was killed: what it would have done.
pub fn take_over(nvml: &Nvml, gpu: &Gpu) {
    let note = Note::of(gpu);
    let found = note.read();
    let gpu = Gpu { mode: found.unwrap_or(gpu.mode), ..gpu.clone() };
    if let Err(error) = clean_up(nvml, &gpu, found.is_some().then_some(&note)) {
        eprintln!("error: {error:#}");
    }
}

/// Directories of runs that were killed, of which nothing runs any more: their daemons would have been in the way.
fn remove_leftovers() -> Result<()> {
    for entry in fs::read_dir(DIRECTORY)? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn clean_up(nvml: &Nvml, gpu: &Gpu, note: Option<&Note>) -> Result<()> {
    let left = end_all_below();
    if let Some(note) = note {
        if gpu.mode_now(nvml)? != gpu.mode {
            let by_hand = format!("nvidia-smi -i {} -c {}", gpu.gpu_uuid, nvidia_smi_word(&gpu.mode));
            gpu.set_mode(nvml, gpu.mode).with_context(|| format!("to restore it by hand: {by_hand}"))?;
        }
        fs::remove_file(&note.0).with_context(|| format!("cannot remove {}", note.0.display()))?;
        println!("The compute mode is {:?}, as it was found.", gpu.mode);
    }
    if !left.is_empty() {
        bail!("these processes of the checks cannot be ended, the driver holds them: {left:?}");
    }
    Ok(())
}

/// The compute mode that was found, while it is another: for the next run, if this one is killed.
struct Note(PathBuf);

impl Note {
    fn of(gpu: &Gpu) -> Self {
        Self(Path::new(DIRECTORY).join(format!("{}.mode", gpu.gpu_uuid)))
    }

    fn read(&self) -> Option<ComputeMode> {
        match fs::read_to_string(&self.0).ok()?.trim() {
            "DEFAULT" => Some(ComputeMode::Default),
            "EXCLUSIVE_PROCESS" => Some(ComputeMode::ExclusiveProcess),
            _ => None,
        }
    }

    fn write(&self, mode: &ComputeMode) -> Result<()> {
        fs::write(&self.0, nvidia_smi_word(mode))
            .with_context(|| format!("cannot write {}", self.0.display()))
    }
}

/// As `nvidia-smi -c` takes it.
fn nvidia_smi_word(mode: &ComputeMode) -> &'static str {
    match mode {
        ComputeMode::ExclusiveProcess => "EXCLUSIVE_PROCESS",
        ComputeMode::Prohibited => "PROHIBITED",
        ComputeMode::Default | ComputeMode::ExclusiveThread => "DEFAULT",
    }
}
