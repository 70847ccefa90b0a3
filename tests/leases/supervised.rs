//! Shares of MPS servers with all that is real but the GPU: `divvy serve` starts `divvy mps supervise`, and that one
//! NVIDIA's own nvidia-cuda-mps-control, of each version that is there; a stand-in takes the server's place, and a mock
//! NVML's.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::{granted, refused};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::{Ground, wait_until};
use crate::mps::{MPS, settings};
use crate::support::mps::{MpsFiles, all};
use crate::support::{divvy, facts, mock_nvml, run};

pub const TRIALS: [(&str, fn()); 5] = [
    ("mps_goes_on_while_the_daemon_is_killed", daemon_killed),
    ("a_supervisor_that_was_killed_is_started_again", supervisor_killed),
    ("mps_that_does_not_start_is_not_granted", does_not_start),
    ("mps_that_does_not_start_on_one_gpu_does_on_another", starts_on_another),
    ("mps_ends_with_its_last_lease_where_the_plan_has_it_no_more", ends_with_the_plan),
];

/// A driver's files in a directory of the ground, and what supervisors are told of them.
struct Driver {
    ground: Ground,
    files: MpsFiles,
    facts: PathBuf,
    uuid: String,
}

impl Driver {
    fn new(files: MpsFiles) -> Self {
        let ground = Ground::new(MPS);
        let root = ground.path("driver");
        let library = root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        for directory in [&library, &root.join("usr/bin"), &root.join("usr/sbin"), &ground.path("modes")] {
            fs::create_dir_all(directory).unwrap();
        }
        mock_nvml(&library);
        let (control, server) =
            (root.join("usr/bin/nvidia-cuda-mps-control"), root.join("usr/sbin/nvidia-cuda-mps-server"));
        crate::support::copy_program(files.control().as_ref(), &control);
        crate::support::copy_program(stand_in_server().as_ref(), &server);
        // Servers run as their users.
        for path in [&control, &server] {
            fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        }
        let facts = facts_of_its_own(&ground);
        let planned = settings(&ground, |settings| {
            settings["control"] = control.to_str().into();
            settings["server"] = server.to_str().into();
            settings["driver_root"] = root.to_str().into();
            settings["driver_version"] = files.version.as_str().into();
            settings["multi_user"] = files.is_multi_user().into();
        });
        let uuid = planned[0]["uuid"].as_str().unwrap().to_owned();
        Self { ground, files, facts, uuid }
    }

    fn serve(&self) -> Daemon {
        let (facts, modes) = (&self.facts, self.ground.path("modes"));
        let environment = [
            ("MOCK_NVML_FACTS", facts.to_str().unwrap()),
            ("MOCK_NVML_COMPUTE_MODES", modes.to_str().unwrap()),
        ];
        let _ = fs::remove_file(self.ground.socket());
        Daemon::start_with(&self.ground, None, &environment)
    }

    fn status(&self, uuid: &str) -> Value {
        let path = self.ground.state().join("mps").join(uuid).join("status.json");
        fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn pid(&self, of: &str) -> i32 {
        i32::try_from(self.status(&self.uuid)[of].as_i64().unwrap_or_default()).unwrap()
    }

    /// Has the plan say that the driver is of this version.
    fn needs(&self, version: &str) {
        settings(&self.ground, |settings| settings["driver_version"] = version.into());
    }
}

/// What was started lives in sessions of its own.
impl Drop for Driver {
    fn drop(&mut self) {
        let entries = fs::read_dir(self.ground.state().join("mps")).into_iter().flatten().flatten();
        for uuid in entries.filter_map(|entry| entry.file_name().into_string().ok()) {
            let status = self.status(&uuid);
            for of in ["supervisor_pid", "control_pid", "server_pid"] {
                let pid = status[of].as_i64().and_then(|pid| i32::try_from(pid).ok());
                if let Some(pid) = pid.filter(|pid| *pid > 1 && is_ours(*pid, &self.ground)) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
}

/// Process ids come again: whatever was started here bears the ground's path, in its words or its environment.
fn is_ours(pid: i32, ground: &Ground) -> bool {
    let of = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let state = ground.state();
    let state = state.to_str().unwrap().as_bytes();
    [of("cmdline"), of("environ")].iter().any(|text| text.windows(state.len()).any(|part| part == state))
}

/// A supervisor looks at all control daemons of the machine, so each ground has GPUs with other UUIDs; in the plan too.
fn facts_of_its_own(ground: &Ground) -> PathBuf {
    static GROUNDS: AtomicU32 = AtomicU32::new(0);
    let number = GROUNDS.fetch_add(1, Ordering::Relaxed);
    let (plan, copy) = (ground.state().join("plan.json"), ground.path("facts.json"));
    let mut texts = [&plan, &facts("h100x8")].map(|path| fs::read_to_string(path).unwrap());
    for (index, settings) in settings(ground, |_| {}).iter().enumerate() {
        let uuid = settings["uuid"].as_str().unwrap();
        let own =
            format!("GPU-{:08x}", std::process::id() << 8 | number << 2 | u32::try_from(index).unwrap());
        texts = texts.map(|text| text.replace(uuid, &format!("{own}{}", &uuid[own.len()..])));
    }
    fs::write(&plan, &texts[0]).unwrap();
    fs::write(&copy, &texts[1]).unwrap();
    copy
}

fn stand_in_server() -> PathBuf {
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "-p", "mps-server"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(status.success(), "mps-server does not build");
    Path::new(env!("CARGO_BIN_EXE_divvy")).with_file_name("nvidia-cuda-mps-server")
}

fn ask(driver: &Driver, container: &Container, device: &str) -> (u8, String) {
    match driver.ground.ask(container, &[device]) {
        hooks::lease::Answer::Refused { status, message, .. } => (status, message),
        answer => (0, granted(answer)[0].to_string()),
    }
}

fn has(device: &str) -> (u8, String) {
    (0, device.to_owned())
}

fn daemon_killed() {
    for files in all() {
        let driver = Driver::new(files);
        let version = &driver.files.version;
        let mut daemon = driver.serve();
        let containers = Container::start_many(3);
        assert_eq!(ask(&driver, &containers[0], "gpu=mps-0"), has("gpu=mps-0"), "{version}");
        let before = ["supervisor_pid", "control_pid", "server_pid"].map(|of| driver.pid(of));
        assert!(before.iter().all(|pid| is_ours(*pid, &driver.ground)), "{version}: {before:?}");
        let leases = driver.ground.leases();
        let front = &leases[0].mps.as_ref().unwrap().front;
        let names: Vec<_> = fs::read_dir(front).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["control"], "{version}");
        for _ in 0..3 {
            daemon.kill();
            daemon.start_again();
            assert_eq!(driver.ground.leases(), leases);
            assert_eq!(ask(&driver, &containers[0], "gpu=mps-0"), has("gpu=mps-0"), "{version}");
        }
        assert!(daemon.stop().success());
        daemon.start_again();
        assert_eq!(ask(&driver, &containers[1], "gpu=mps"), has("gpu=mps-2"), "{version}");
        assert_eq!(ask(&driver, &containers[2], "gpu=mps-1"), has("gpu=mps-1"), "{version}");
        assert_eq!(
            ["supervisor_pid", "control_pid", "server_pid"].map(|of| driver.pid(of)),
            before,
            "{version}"
        );
    }
}

fn supervisor_killed() {
    for files in all() {
        let driver = Driver::new(files);
        let mut daemon = driver.serve();
        let container = Container::start();
        assert_eq!(ask(&driver, &container, "gpu=mps-0"), has("gpu=mps-0"));
        let before = (driver.pid("control_pid"), driver.pid("server_pid"));
        let supervisor = driver.pid("supervisor_pid");
        kill(Pid::from_raw(supervisor), Signal::SIGKILL).unwrap();
        // It looks seldom, and when it starts.
        daemon.kill();
        daemon.start_again();
        wait_until("another supervisor", || ![0, supervisor].contains(&driver.pid("supervisor_pid")));
        wait_until("it is ready", || driver.status(&driver.uuid)["state"] == "ready");
        assert_eq!((driver.pid("control_pid"), driver.pid("server_pid")), before, "{}", driver.files.version);
        assert_eq!(ask(&driver, &container, "gpu=mps-0"), has("gpu=mps-0"));
    }
}

fn does_not_start() {
    let Some(files) = all().pop() else { return };
    let driver = Driver::new(files);
    // It would need programs of another driver.
    driver.needs("999.99.99");
    let daemon = driver.serve();
    let mut containers = Container::start_many(2);
    let (status, message) = refused(driver.ground.ask(&containers[0], &["gpu=mps-0"]));
    assert_eq!(status, 1, "{message}");
    let said = format!("is of driver {}, and 999.99.99 is loaded", driver.files.version);
    assert!(message.contains(&said), "{message}");
    assert!(driver.ground.leases().is_empty());
    let refusals = fs::read_to_string(driver.ground.state().join("refused.json")).unwrap();
    assert!(refusals.contains(&said), "{refusals}");
    // Others are no matter of it.
    assert_eq!(ask(&driver, &containers[1], "gpu=slice"), has("gpu=slice-0"));
    driver.needs(&driver.files.version);
    assert_eq!(ask(&driver, &containers[0], "gpu=mps-0"), has("gpu=mps-0"));
    containers[0].kill();
    driver.ground.wait_for_leases(1);
    drop(daemon);
}

/// An administrator has prohibited the one that is chosen.
fn starts_on_another() {
    for files in all() {
        let driver = Driver::new(files);
        let version = &driver.files.version;
        let mode = driver.ground.path("modes").join(&driver.uuid);
        fs::write(&mode, "2").unwrap();
        let _daemon = driver.serve();
        let mut containers = Container::start_many(4);
        assert_eq!(ask(&driver, &containers[0], "gpu=mps"), has("gpu=mps-2"), "{version}");
        assert_eq!(ask(&driver, &containers[1], "gpu=mps"), has("gpu=mps-3"), "{version}");
        for device in ["gpu=mps", "gpu=mps-0"] {
            let (status, message) = ask(&driver, &containers[2], device);
            let said = "GPU 0: its compute mode is Prohibited, and nobody is to use it";
            assert!(status != 0 && message.starts_with(said), "{version}: {message}");
        }
        assert_eq!(driver.ground.leases().len(), 2);
        fs::write(&mode, "0").unwrap();
        assert_eq!(ask(&driver, &containers[3], "gpu=mps"), has("gpu=mps-0"), "{version}");
        containers.iter_mut().for_each(Container::kill);
        driver.ground.wait_for_leases(0);
    }
}

fn ends_with_the_plan() {
    let Some(files) = all().pop() else { return };
    let driver = Driver::new(files);
    let _daemon = driver.serve();
    let mut containers = Container::start_many(2);
    assert_eq!(ask(&driver, &containers[0], "gpu=mps-0"), has("gpu=mps-0"));
    let mode = driver.ground.path("modes").join(&driver.uuid);
    assert_eq!(fs::read_to_string(&mode).unwrap().trim(), "3", "exclusive process, by nvml.h");
    let control = driver.pid("control_pid");
    crate::mps::without_mps(&driver.ground);
    let (status, message) = ask(&driver, &containers[1], "gpu=mps-1");
    assert_eq!(status, 3, "{message}");
    assert!(is_ours(control, &driver.ground));
    containers[0].kill();
    driver.ground.wait_for_leases(0);
    wait_until("the end of MPS", || !is_ours(control, &driver.ground));
    wait_until("the compute mode of before", || fs::read_to_string(&mode).unwrap().trim() == "0");
    assert_eq!(ask(&driver, &containers[1], "gpu=mps-1"), has("gpu=mps-1"));
    let listed = || run(divvy(&["mps", "--state-dir"]).arg(driver.ground.state())).1;
    wait_until("nothing to show", || !listed().contains(&driver.uuid));
}
