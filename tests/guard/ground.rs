//! A control daemon, with the guard or without, and who speaks to it over either of its sockets.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::stranger::Stranger;
use crate::support::mps::MpsFiles;

/// As long as anything is waited for that has to happen at all. Nothing passes or fails by being faster.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// nobody and nogroup.
pub const NOBODY: u32 = 65534;

/// A test of one driver's programs, with its name.
pub type Named = (&'static str, fn(&MpsFiles));

/// Whose nvidia-cuda-mps-server the daemon finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// One that stands in for it.
    StandIn,
    /// NVIDIA's.
    Own,
}

/// A control daemon that listens, ended at the end of the test.
pub struct Daemon {
    dir: TempDir,
    files: MpsFiles,
    child: Child,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Daemon {
    pub fn guarded(files: &MpsFiles, server: Server) -> Self {
        Self::start(files, server, true, None)
    }

    /// For one user, who is told to the guard by this word.
    pub fn for_one(files: &MpsFiles, server: Server, user: &str) -> Self {
        Self::start(files, server, true, Some(user))
    }

    pub fn unguarded(files: &MpsFiles, server: Server) -> Self {
        Self::start(files, server, false, None)
    }

    fn start(files: &MpsFiles, server: Server, is_guarded: bool, user: Option<&str>) -> Self {
        let dir = tempfile::Builder::new().prefix("divvy-guard-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        for name in ["bin", "pipe", "log", "front"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::set_permissions(dir.path().join(name), Permissions::from_mode(0o755)).unwrap();
        }
        if server == Server::StandIn {
            crate::support::copy_program(stand_in().as_ref(), &dir.path().join("bin/nvidia-cuda-mps-server"));
            for name in ["bin/received", "bin/behaviour"] {
                fs::write(dir.path().join(name), "").unwrap();
            }
        }
        let mut path = OsString::from(dir.path().join("bin"));
        for directory in ["usr/bin", "usr/sbin"] {
            path.push(":");
            path.push(files.root.join(directory));
        }
        path.push(":/usr/bin:/bin");
        let output = File::create(dir.path().join("output")).unwrap();
        let mut command = Command::new(files.control());
        command
            .arg("-f")
            .args(files.is_multi_user().then_some("-multiuser-server"))
            .env_clear()
            .env("PATH", path)
            .env("LD_LIBRARY_PATH", files.library_dir())
            .env("CUDA_MPS_PIPE_DIRECTORY", dir.path().join("pipe"))
            .env("CUDA_MPS_LOG_DIRECTORY", dir.path().join("log"))
            .stdin(Stdio::null())
            .stderr(output.try_clone().unwrap())
            .stdout(output);
        if is_guarded {
            command.env("LD_PRELOAD", library());
        }
        command.envs(user.map(|user| ("DIVVY_MPS_USER", user)));
        let daemon = Self { dir, files: files.clone(), child: command.spawn().unwrap() };
        wait("the daemon listens", || Stranger::connected(&daemon.path("pipe/control")).is_some());
        fs::hard_link(daemon.path("pipe/control"), daemon.path("front/control")).unwrap();
        daemon
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The socket that containers have.
    pub fn front(&self) -> PathBuf {
        self.path("front/control")
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What a command prints that comes over `control_privileged`, to whoever may open it.
    pub fn answer(&self, command: &str) -> String {
        self.ask("pipe", 0, command)
    }

    /// What a command prints for a user who has the front alone, in an answer of the daemon's or a word of the program's.
    pub fn answer_in_front(&self, uid: u32, command: &str) -> String {
        self.ask("front", uid, command)
    }

    fn ask(&self, directory: &str, uid: u32, words: &str) -> String {
        let mut command = Command::new("timeout");
        command
            .arg(PATIENCE.as_secs().to_string())
            .arg(self.files.control())
            .env("CUDA_MPS_PIPE_DIRECTORY", self.path(directory))
            .uid(uid)
            .gid(uid)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // Who is hung up on at once has ended before it is told anything.
        let told = child.stdin.take().unwrap().write_all(format!("{words}\n").as_bytes());
        assert!(told.is_ok() || told.is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe));
        let output = child.wait_with_output().unwrap();
        assert_ne!(output.status.code(), Some(124), "{words}: no answer");
        let text = [output.stdout, output.stderr].concat();
        String::from_utf8(text).unwrap().trim().to_owned()
    }

    /// Starts a server, and waits until it is ready; its process id.
    pub fn start_server(&self) -> u32 {
        self.answer("start_server -uid 0");
        wait("the server is ready", || self.received().iter().any(|event| event["event"] == "ready"));
        self.server().unwrap()
    }

    pub fn server(&self) -> Option<u32> {
        self.answer("get_server_list").parse().ok()
    }

    /// What the stand-in was told.
    pub fn received(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("bin/received")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// What the stand-in does.
    pub fn behave(&self, words: &str) {
        fs::write(self.path("bin/behaviour"), words).unwrap();
    }

    /// How many descriptors the daemon has once it has heard all that came before.
    pub fn descriptors(&self) -> usize {
        assert_eq!(self.answer("get_default_active_thread_percentage"), "100.0");
        let directory = format!("/proc/{}/fd", self.pid());
        let count = || fs::read_dir(&directory).unwrap().count();
        let mut before = count();
        // The question's own connection goes a moment after the answer.
        loop {
            std::thread::sleep(Duration::from_millis(100));
            let now = count();
            if now >= before {
                return now;
            }
            before = now;
        }
    }

    /// The daemon's words.
    pub fn output(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap()
    }

    /// What cuInit answers a user who has the front alone.
    pub fn cuda(&self, uid: u32) -> String {
        let output = Command::new(probe())
            .arg("cuda")
            .env("CUDA_MPS_PIPE_DIRECTORY", self.path("front"))
            .env("LD_LIBRARY_PATH", self.files.library_dir())
            .uid(uid)
            .gid(uid)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

/// Waits until it is so.
pub fn wait(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "it is never so: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The guard, as cargo builds it beside divvy.
pub fn library() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("divvy-mps-guard", "libdivvy_mps_guard.so")).clone()
}

fn stand_in() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("mps-server", "nvidia-cuda-mps-server")).clone()
}

fn built(package: &str, file: &str) -> PathBuf {
    let build = ["build", "--quiet", "--locked", "-p", package];
    let status =
        Command::new(env!("CARGO")).args(build).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(status.success(), "{package} does not build");
    Path::new(env!("CARGO_BIN_EXE_divvy")).with_file_name(file)
}

fn probe() -> PathBuf {
    static BUILT: OnceLock<TempDir> = OnceLock::new();
    let dir = BUILT.get_or_init(|| {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/probe.c");
        let mut compiler = Command::new("cc");
        compiler.arg("-o").arg(dir.path().join("probe")).arg(source).arg("-ldl");
        assert!(compiler.status().unwrap().success());
        dir
    });
    dir.path().join("probe")
}
