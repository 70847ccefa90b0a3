//! As root: the daemon has the driver told how long turns are, and set back what was there before. With a stand-in for
//! nvidia-smi, which says what the real one does; no GPU.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

#[path = "../support/mod.rs"]
mod support;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use libtest_mimic::Arguments;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::needs::{self, Need};
use support::{divvy, run};
use tempfile::TempDir;

/// UUID of GPU 0 of the simulated host.
const GPU_0: &str = "GPU-bdf38e33-4d59-5308-a8d7-a92dfc4a917b";
const NOT_SUPPORTED: &str = "Failed to get compute policies for GPU 0 : Not Supported\n\
                             Failed to retrieve compute policies for requested devices : Not Supported\n";

fn main() {
    const ROOT: &[Need] = &[Need::Root];
    let trials = vec![
        needs::trial("what_was_there_comes_back", ROOT, what_was_there_comes_back),
        needs::trial("what_somebody_else_set_stays", ROOT, what_somebody_else_set_stays),
        needs::trial("a_killed_daemon_forgets_nothing", ROOT, a_killed_daemon_forgets_nothing),
        needs::trial("what_is_right_is_not_touched", ROOT, what_is_right_is_not_touched),
        needs::trial("a_driver_that_takes_none", ROOT, a_driver_that_takes_none),
        needs::trial("a_program_that_others_may_change", ROOT, a_program_that_others_may_change),
        needs::trial("a_program_that_hangs", ROOT, a_program_that_hangs),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A state directory with a plan, and the stand-in.
struct Ground(TempDir);

impl Ground {
    fn new(length: Option<&str>) -> Self {
        let dir = tempfile::Builder::new().prefix("divvy-slices-").tempdir_in("/tmp").unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let ground = Self(dir);
        fs::copy("tests/time_slices/nvidia-smi.sh", ground.path("nvidia-smi")).unwrap();
        fs::create_dir(ground.path("state")).unwrap();
        ground.plan(length);
        ground
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A plan of four shares whose turns are so long, with the stand-in in the place of nvidia-smi.
    fn plan(&self, length: Option<&str>) {
        let line = length.map(|length| format!("time_slice = \"{length}\"\n")).unwrap_or_default();
        let config = format!("[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 4\n{line}");
        fs::write(self.path("config.toml"), config).unwrap();
        let mut generate = divvy(&["generate", "--quiet", "--host=sim:l4", "--hook-path=/bin/true"]);
        generate.arg("--config").arg(self.path("config.toml")).arg("--state-dir").arg(self.path("state"));
        let (status, _, errors) = run(generate.arg("--output").arg(self.path("divvy.json")));
        assert_eq!((status, errors.as_str()), (0, ""));
        let plan = fs::read_to_string(self.path("state/plan.json")).unwrap();
        assert_eq!(plan.contains("/usr/bin/nvidia-smi"), length.is_some());
        let stand_in = self.path("nvidia-smi").display().to_string();
        fs::write(self.path("state/plan.json"), plan.replace("/usr/bin/nvidia-smi", &stand_in)).unwrap();
    }

    fn serve(&self) -> Daemon {
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let mut serve = divvy(&["serve", "--state-dir"]);
        serve.arg(self.path("state")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Daemon(serve.spawn().unwrap())
    }

    /// What the driver has, as the stand-in plays it.
    fn length(&self) -> String {
        fs::read_to_string(self.path(GPU_0)).unwrap_or_else(|_| "Default\n".into()).trim().to_owned()
    }

    fn set(&self, length: &str) {
        fs::write(self.path(GPU_0), length).unwrap();
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path("calls")).unwrap_or_default()
    }

    fn has_note(&self) -> bool {
        self.path("state/time-slices.json").exists()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// The devices' table, and what else is said.
    fn list(&self) -> (i32, String, String) {
        let mut list = divvy(&["list", "--host=sim:l4", "--config"]);
        run(list.arg(self.path("config.toml")).arg("--state-dir").arg(self.path("state")))
    }
}

/// `divvy serve`, until it is dropped.
struct Daemon(Child);

impl Daemon {
    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn what_was_there_comes_back() {
    let ground = Ground::new(Some("short"));
    ground.set("Medium");
    let daemon = ground.serve();
    until("turns are short", || ground.length() == "Short");
    let (status, out, errors) = ground.list();
    assert_eq!(status, 0, "{errors}");
    assert!(out.contains("time-slice (short), 1 of 4 on 0"), "{out}");
    daemon.stop();
    // As long as a plan says so, they stay.
    assert_eq!((ground.length().as_str(), ground.has_note()), ("Short", true));
    ground.plan(Some("long"));
    let daemon = ground.serve();
    until("turns are long", || ground.length() == "Long");
    daemon.stop();
    ground.plan(None);
    let _daemon = ground.serve();
    until("nothing is noted", || !ground.has_note());
    assert_eq!(ground.length(), "Medium");
    assert!(ground.log().contains("time slices of GPU 0 are medium again"), "{}", ground.log());
}

fn what_somebody_else_set_stays() {
    let ground = Ground::new(Some("short"));
    let daemon = ground.serve();
    until("turns are short", || ground.length() == "Short");
    daemon.stop();
    ground.set("Long");
    ground.plan(None);
    let _daemon = ground.serve();
    until("nothing is noted", || !ground.has_note());
    assert_eq!(ground.length(), "Long");
}

fn a_killed_daemon_forgets_nothing() {
    let ground = Ground::new(Some("long"));
    let daemon = ground.serve();
    until("turns are long", || ground.length() == "Long");
    drop(daemon);
    ground.plan(None);
    let _daemon = ground.serve();
    until("turns are as before", || ground.length() == "Default");
    until("nothing is noted", || !ground.has_note());
}

fn what_is_right_is_not_touched() {
    let ground = Ground::new(Some("default"));
    let daemon = ground.serve();
    until("it is noted", || ground.has_note());
    daemon.stop();
    ground.plan(None);
    let _daemon = ground.serve();
    until("nothing is noted", || !ground.has_note());
    assert!(ground.calls().contains("compute-policy -i GPU-"), "{}", ground.calls());
    assert!(!ground.calls().contains("--set-timeslice"), "{}", ground.calls());
}

fn a_driver_that_takes_none() {
    let ground = Ground::new(Some("short"));
    fs::write(ground.path("fails"), NOT_SUPPORTED).unwrap();
    let _daemon = ground.serve();
    let said = "time slices of GPU 0 stay as they are: the driver does not take it (Failed to get compute policies for GPU \
                0 : Not Supported)";
    until("the log says so", || ground.log().contains(said));
    until("list says so", || ground.list().2.contains(&format!("warning: {said}")));
    // The shares are there all the same.
    assert_eq!(ground.list().0, 0);
}

fn a_program_that_others_may_change() {
    let ground = Ground::new(Some("short"));
    fs::set_permissions(ground.path("nvidia-smi"), Permissions::from_mode(0o777)).unwrap();
    let _daemon = ground.serve();
    until("the log says so", || ground.log().contains("nvidia-smi is not run as root: "));
    assert_eq!(ground.calls(), "");
}

fn a_program_that_hangs() {
    let ground = Ground::new(Some("short"));
    fs::write(ground.path("hangs"), "").unwrap();
    let daemon = ground.serve();
    let pid = || fs::read_to_string(ground.path("pid")).ok()?.trim().parse().ok();
    until("it is run", || pid().is_some());
    // The daemon is there for everybody else.
    let mut answer = String::new();
    let mut caller = UnixStream::connect(ground.path("state/divvy.sock")).unwrap();
    caller.write_all(b"{}\n").unwrap();
    caller.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("refused"), "{answer}");
    daemon.stop();
    kill(Pid::from_raw(pid().unwrap()), Signal::SIGKILL).unwrap();
}
