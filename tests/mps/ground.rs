//! What MPS stands on in these tests: a driver of a version, with NVIDIA's control daemon, a server and an NVML that stand
//! in for what needs a GPU; a GPU of its own for each test; and a state directory.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::mps::MpsFiles;
pub use crate::support::wait::{PATIENCE, wait_until};
use crate::support::{facts, mock_nvml, run};

/// nvmlComputeMode_t.
pub const DEFAULT: u32 = 0;
pub const PROHIBITED: u32 = 2;
pub const EXCLUSIVE_PROCESS: u32 = 3;

/// The GPU of the facts, whose UUID becomes another in each test.
const GPU: &str = "GPU-bdf38e33-4d59-5308-a8d7-a92dfc4a917b";

/// One GPU with its driver.
pub struct Ground {
    dir: TempDir,
    pub files: MpsFiles,
    pub uuid: String,
    children: Vec<Child>,
}

impl Drop for Ground {
    fn drop(&mut self) {
        for pid in [self.pid("control_pid"), self.pid("server_pid")].into_iter().flatten() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Ground {
    pub fn new(files: &MpsFiles) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let uuid = format!("GPU-bdf38e33-4d59-5308-a8d7-{number:012x}");
        // The pipe directory has to fit into 88 bytes.
        let dir = tempfile::Builder::new().prefix("divvy-mps-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let ground = Self { dir, files: files.clone(), uuid, children: Vec::new() };
        for directory in ["bin", "modes", "state", &library_dir()] {
            fs::create_dir_all(ground.path(directory)).unwrap();
        }
        crate::support::copy_program(&files.control(), &ground.path("bin/nvidia-cuda-mps-control"));
        let server = "nvidia-cuda-mps-server";
        crate::support::copy_program(&programs().join(server), &ground.path("bin").join(server));
        // A server runs as its client's user.
        for file in ["bin/received", "bin/behaviour"] {
            fs::write(ground.path(file), "").unwrap();
            fs::set_permissions(ground.path(file), Permissions::from_mode(0o666)).unwrap();
        }
        mock_nvml(&ground.path(&library_dir()));
        let of_gpu = fs::read_to_string(facts("l4")).unwrap().replace(GPU, &ground.uuid);
        fs::write(ground.path("facts.json"), of_gpu).unwrap();
        ground.processes(&json!({}));
        ground
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of the device's state directory.
    pub fn state(&self, name: &str) -> PathBuf {
        self.path("state/mps").join(&self.uuid).join(name)
    }

    /// What a planner would want of it.
    pub fn settings(&self) -> Value {
        json!({
            "uuid": self.uuid,
            "what": "GPU 0",
            "gpu_uuid": self.uuid,
            "is_mig": false,
            "active_thread_percentage": 25,
            "memory_mib": 5000,
            "client_limit": 48,
            "multi_user": self.files.is_multi_user(),
            "at_boot": false,
            "shared_memory_bytes": null,
            "control": self.path("bin/nvidia-cuda-mps-control"),
            "server": self.path("bin/nvidia-cuda-mps-server"),
            "driver_root": self.path("driver"),
            "driver_version": self.files.version,
        })
    }

    /// The built command, on this machine of ours.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(programs().join("divvy"));
        command.args(args).env_remove("LD_LIBRARY_PATH");
        command.arg("--state-dir").arg(self.path("state")).env("TZ", "UTC").env_remove("INVOCATION_ID");
        command.env("MOCK_NVML_FACTS", self.path("facts.json"));
        command.env("MOCK_NVML_PROCESSES", self.path("processes.json"));
        command.env("MOCK_NVML_COMPUTE_MODES", self.path("modes"));
        command
    }

    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        run(&mut self.command(args))
    }

    /// Starts a supervisor and returns when it listens.
    #[track_caller]
    pub fn supervise(&mut self) -> i32 {
        let _ = fs::remove_file(self.state("supervisor.sock"));
        let mut command = self.command(&["mps", "supervise", &self.uuid]);
        let log = File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        self.children.push(child);
        wait_until("the supervisor", || {
            assert_eq!(self.children.last_mut().unwrap().try_wait().unwrap(), None, "{}", self.log());
            UnixStream::connect(self.state("supervisor.sock")).is_ok()
        });
        pid
    }

    /// Ends the supervisor, and returns when it is gone.
    pub fn end_supervisor(&mut self, signal: Signal) {
        let mut child = self.children.pop().unwrap();
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
        child.wait().unwrap();
    }

    /// Waits until the supervisor has ended by itself.
    #[track_caller]
    pub fn wait_for_end(&mut self) {
        let status = self.children.pop().unwrap().wait().unwrap();
        assert!(status.success(), "{}", self.log());
    }

    /// What the supervisor said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    #[track_caller]
    pub fn ask(&self, request: Value) -> Value {
        let mut stream = UnixStream::connect(self.state("supervisor.sock")).unwrap();
        let mut request = request;
        request["version"] = json!(1);
        stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line:?}\n{}", self.log()))
    }

    #[track_caller]
    pub fn ensure_as(&self, settings: Value, uid: u32, is_idle: bool) -> Value {
        self.ask(json!({"request": "ensure", "settings": settings, "uid": uid, "is_idle": is_idle}))
    }

    /// For a second container of the same kind.
    #[track_caller]
    pub fn ensure(&self) -> Value {
        self.ensure_as(self.settings(), 0, false)
    }

    /// With MPS that runs.
    #[track_caller]
    pub fn ready(files: &MpsFiles) -> Self {
        let mut ground = Self::new(files);
        ground.supervise();
        ground.ensured();
        ground
    }

    #[track_caller]
    pub fn ensured(&self) {
        let answer = self.ensure();
        assert_eq!(answer["answer"], "ready", "{answer} {}", self.log());
        assert_eq!(answer["front"], json!(self.state("front")));
    }

    /// That it is refused, with status and words.
    #[track_caller]
    pub fn refused(&self, answer: &Value, status: u8, words: &str) {
        assert_eq!(answer["answer"], "refused", "{answer}");
        assert_eq!(answer["status"], status, "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(words), "{answer}");
        assert!(answer["hint"].is_string(), "{answer}");
    }

    #[track_caller]
    pub fn stop(&self, force: bool) -> Value {
        self.ask(json!({"request": "stop", "force": force}))
    }

    /// The status, as everybody reads it.
    pub fn status(&self) -> Value {
        let text = fs::read_to_string(self.state("status.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or_default()
    }

    pub fn pid(&self, field: &str) -> Option<i32> {
        self.status()[field].as_i64().and_then(|pid| i32::try_from(pid).ok())
    }

    #[track_caller]
    pub fn control_pid(&self) -> i32 {
        self.pid("control_pid").unwrap()
    }

    #[track_caller]
    pub fn server_pid(&self) -> i32 {
        self.pid("server_pid").unwrap()
    }

    #[track_caller]
    pub fn wait_for(&self, state: &str) {
        wait_until(&format!("{state}: {}", self.log()), || self.status()["state"] == state);
    }

    /// What the server was told, and what it saw.
    pub fn received(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("bin/received")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Has the servers behave, as the words in tests/mps-server say.
    pub fn behave(&self, words: &str) {
        fs::write(self.path("bin/behaviour"), words).unwrap();
    }

    /// What NVML says of processes, from now on.
    pub fn processes(&self, processes: &Value) {
        // At once: it is read while it is written.
        fs::write(self.path("processes.new"), processes.to_string()).unwrap();
        fs::rename(self.path("processes.new"), self.path("processes.json")).unwrap();
    }

    /// The GPU's compute mode.
    pub fn mode(&self) -> u32 {
        fs::read_to_string(self.path("modes").join(&self.uuid)).map_or(DEFAULT, |mode| mode.parse().unwrap())
    }

    pub fn set_mode(&self, mode: u32) {
        fs::write(self.path("modes").join(&self.uuid), mode.to_string()).unwrap();
    }

    /// NVIDIA's own program at a pipe directory.
    pub fn control(&self, pipe: &Path, commands: &str) -> String {
        let mut command = Command::new(self.path("bin/nvidia-cuda-mps-control"));
        control(command.env("CUDA_MPS_PIPE_DIRECTORY", pipe), commands)
    }

    /// Whether containers reach the control daemon that runs.
    pub fn is_open(&self) -> bool {
        let inode = |name: &str| fs::metadata(self.state(name)).map(|found| found.ino()).ok();
        let control = inode("pipe/control");
        control.is_some() && inode("front/control") == control
    }
}

/// Runs it with commands on its standard input.
pub fn control(command: &mut Command, commands: &str) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Who is hung up on at once has ended before it is told anything.
    let told = child.stdin.take().unwrap().write_all(commands.as_bytes());
    assert!(told.is_ok() || told.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe));
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
}

fn library_dir() -> String {
    format!("driver/usr/lib/{}-linux-gnu", std::env::consts::ARCH)
}

/// Where divvy lies with its guard, and the server that stands in, built on first use. A checkout may be anybody's, and
/// only what is root's alone is run as root.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "-p", "mps-server", "-p", "divvy-mps-guard"]);
        let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success(), "the server or the guard does not build");
        let directory = PathBuf::from("/tmp/divvy-mps-programs");
        fs::create_dir(&directory).unwrap();
        let built = Path::new(env!("CARGO_BIN_EXE_divvy"));
        for name in ["divvy", "nvidia-cuda-mps-server", "libdivvy_mps_guard.so"] {
            crate::support::copy_program(&built.with_file_name(name), &directory.join(name));
        }
        directory
    })
}

pub fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Whoever has ended waits for a first process that waits for nobody.
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

pub fn kill_hard(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}
