//! NVIDIA's control daemon by itself, as a check needs it: in a directory of its own, for one device, ended with the
//! check. What divvy makes of it is the supervisor's.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ground::Ground;
use super::process::{is_alive, run, spawn, until};

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(10);
/// How long a server may take to start.
const SERVER_START: Duration = Duration::from_secs(60);

/// The programs, and what this version of them can do.
#[derive(Clone, Debug)]
pub struct Programs {
    /// nvidia-cuda-mps-control.
    pub control: PathBuf,
    /// nvidia-cuda-mps-server.
    pub server: PathBuf,
    /// The flag with which one server serves all users; drivers before 555 have none.
    pub multi_user: Option<&'static str>,
}

impl Programs {
    /// Those on the PATH and in the directories that administrators' programs lie in.
    pub fn find() -> Result<Self, String> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let directories: Vec<PathBuf> =
            std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]).collect();
        let find = |name: &str| {
            let found = directories.iter().map(|directory| directory.join(name)).find(|path| path.is_file());
            found.ok_or_else(|| {
                format!("needs {name} (Debian: nvidia-cuda-mps; else it comes with the driver)")
            })
        };
        let (control, server) = (find("nvidia-cuda-mps-control")?, find("nvidia-cuda-mps-server")?);
        let bytes =
            fs::read(&control).map_err(|error| format!("cannot read {}: {error}", control.display()))?;
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        // With dashes it is compared with an argument, without it is getopt_long's.
        let multi_user = match () {
            () if has("\0--multiuser-server\0") || has("\0multiuser-server\0") => Some("--multiuser-server"),
            () if has("\0-multiuser-server\0") => Some("-multiuser-server"),
            () => None,
        };
        Ok(Self { control, server, multi_user })
    }
}

/// A control daemon, until it is dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    control: PathBuf,
    pipe: PathBuf,
    library_path: Option<String>,
}

impl Daemon {
    /// Starts one in the directory `name` of the run's own. Files that another left there stay: it is a restart then.
    pub fn start(ground: &Ground, name: &str, flags: &[&str]) -> Result<Self> {
        let directory = ground.directory.join(name);
        let pipe = directory.join("pipe");
        fs::create_dir_all(&pipe).with_context(|| format!("cannot make {}", pipe.display()))?;
        let output = File::options().create(true).append(true).open(directory.join("control.log"))?;
        let mut command = Command::new(&ground.programs.control);
        command.arg("-f").args(flags).env_clear().current_dir("/").stdin(Stdio::null());
        command.stdout(output.try_clone()?).stderr(output);
        command.envs(ground.library_path.iter().map(|path| ("LD_LIBRARY_PATH", path)));
        // It starts the server by its name.
        command.env("PATH", ground.programs.server.parent().unwrap_or(Path::new("/")));
        command.env("CUDA_VISIBLE_DEVICES", &ground.gpu.uuid).env("CUDA_DEVICE_ORDER", "PCI_BUS_ID");
        command.env("CUDA_MPS_PIPE_DIRECTORY", &pipe).env("CUDA_MPS_LOG_DIRECTORY", &directory);
        let child = spawn(&mut command)?;
        let control = ground.programs.control.clone();
        let mut daemon = Self { child, control, pipe, library_path: ground.library_path.clone() };
        let mut answers = || {
            daemon.child.try_wait().is_ok_and(|status| status.is_some())
                || daemon.ask("get_server_list").is_ok_and(|said| !said.contains("Cannot find"))
        };
        until(QUESTION, &mut answers);
        if daemon.child.try_wait()?.is_some() {
            bail!("the control daemon ended at once: {}", daemon.last_words());
        }
        Ok(daemon)
    }

    /// One with these limits, and a server for root (for all users, where it can) that is ready.
    pub fn with_limits(
        ground: &Ground,
        name: &str,
        memory_mib: Option<u64>,
        percent: u32,
    ) -> Result<(Self, i32)> {
        let flags: Vec<&str> = ground.programs.multi_user.into_iter().collect();
        let daemon = Self::start(ground, name, &flags)?;
        if let Some(mib) = memory_mib {
            daemon.ask(&format!("set_default_device_pinned_mem_limit 0 {mib}M"))?;
        }
        daemon.ask(&format!("set_default_active_thread_percentage {percent}"))?;
        let server = daemon.start_server(0)?;
        Ok((daemon, server))
    }

    /// What the command of nvidia-cuda-mps-control(1) answers.
    pub fn ask(&self, command: &str) -> Result<String> {
        let mut control = Command::new(&self.control);
        control.env_clear().env("CUDA_MPS_PIPE_DIRECTORY", &self.pipe);
        control.envs(self.library_path.iter().map(|path| ("LD_LIBRARY_PATH", path)));
        run(&mut control, &format!("{command}\n"), QUESTION).with_context(|| format!("command {command}"))
    }

    /// Starts a server for a user, and waits until it takes clients: its process id.
    pub fn start_server(&self, uid: u32) -> Result<i32> {
        self.ask(&format!("start_server -uid {uid}"))?;
        let mut pid = None;
        until(SERVER_START, || {
            pid = self.servers().first().copied().filter(|pid| self.is_active(*pid));
            pid.is_some()
        });
        pid.with_context(|| format!("no server was ready: {}", self.last_words()))
    }

    /// Process ids of its servers.
    pub fn servers(&self) -> Vec<i32> {
        let said = self.ask("get_server_list").unwrap_or_default();
        said.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    /// `ACTIVE`, `FAULT`, or what else it says. Drivers before 545 do not know the question.
    pub fn status(&self, server: i32) -> String {
        self.ask(&format!("get_server_status {server}")).unwrap_or_else(|error| format!("{error:#}"))
    }

    fn is_active(&self, server: i32) -> bool {
        let status = self.status(server);
        status.contains("ACTIVE") || status.contains("Unknown command")
    }

    /// What belongs in CUDA_MPS_PIPE_DIRECTORY.
    pub fn pipe(&self) -> &Path {
        &self.pipe
    }

    /// Ends it as a crash does.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The end of its output.
    pub fn last_words(&self) -> String {
        let log = self.pipe.with_file_name("control.log");
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" / ")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_some()) {
            return;
        }
        let servers = self.servers();
        let _ = self.ask("quit");
        if !until(QUESTION, || self.child.try_wait().is_ok_and(|status| status.is_some())) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        // The next check needs the device without them.
        if !until(QUESTION, || !servers.iter().any(|pid| is_alive(*pid))) {
            for pid in &servers {
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
            until(QUESTION, || !servers.iter().any(|pid| is_alive(*pid)));
        }
        let _ = fs::remove_dir_all(self.pipe.with_file_name(""));
    }
}
