//! What a machine may have in MPS's way: others on the GPU, a compute mode that somebody set, programs that are not the
//! driver's, no GPU at all.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::Test;
use crate::ground::{DEFAULT, EXCLUSIVE_PROCESS, Ground, PROHIBITED, kill_hard, wait_until};
use crate::support::mps::{self, MpsFiles};

pub const TRIALS: [Test; 10] = [
    ("who_uses_the_gpu_is_named", who_uses_the_gpu_is_named),
    ("another_control_daemon_is_named", another_control_daemon_is_named),
    ("who_only_looks_like_mps_is_left_alone", who_only_looks_like_mps_is_left_alone),
    ("a_closed_gpu_stays_closed", a_closed_gpu_stays_closed),
    ("a_mode_that_somebody_sets_is_told", a_mode_that_somebody_sets_is_told),
    ("the_mode_of_before_outlives_a_crash", the_mode_of_before_outlives_a_crash),
    ("a_mig_device_has_no_mode", a_mig_device_has_no_mode),
    ("a_gpu_that_is_gone", a_gpu_that_is_gone),
    ("programs_that_are_not_run", programs_that_are_not_run),
    ("shared_memory_is_a_file_system_of_its_own", shared_memory_is_a_file_system_of_its_own),
];

fn who_uses_the_gpu_is_named(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    let own = std::process::id();
    ground.processes(&json!({&ground.uuid: {"compute": [{"pid": own, "memory": 1}], "graphics": [{"pid": 1, "memory": 1}]}}));
    ground.supervise();
    let answer = ground.ensure();
    ground.refused(&answer, 3, &format!("{own} ("));
    assert!(
        answer["message"].as_str().unwrap().starts_with("GPU 0: MPS needs it for itself, and process"),
        "{answer}"
    );
    assert_eq!((ground.mode(), ground.pid("control_pid")), (DEFAULT, None), "nothing starts");
    ground.processes(&json!({}));
    ground.ensured();
}

fn another_control_daemon_is_named(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.supervise();
    // One for another GPU is in nobody's way.
    let elsewhere = control_daemon(&ground, "elsewhere", "GPU-00000000");
    ground.ensured();
    assert_eq!(ground.stop(false)["answer"], "stopped");
    ground.wait_for_end();
    ground.supervise();
    let other = control_daemon(&ground, "other", &ground.uuid);
    ground.refused(
        &ground.ensure(),
        3,
        &format!("another MPS control daemon may serve it, process {}", other.0.id()),
    );
    assert_eq!(ground.mode(), DEFAULT);
    drop((other, elsewhere));
    ground.ensured();
    assert_eq!(ground.stop(false)["answer"], "stopped");
    ground.wait_for_end();
    ground.supervise();
    // Nobody is given a line of a stranger's for his shell.
    let other = control_daemon(&ground, "$(reboot)", &ground.uuid);
    let answer = ground.ensure();
    ground.refused(&answer, 3, "another MPS control daemon may serve it");
    assert_eq!(answer["hint"], json!(format!("end it: `kill {}`", other.0.id())));
}

fn who_only_looks_like_mps_is_left_alone(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    fs::create_dir(ground.path("fake")).unwrap();
    let fake = |program: &str, name: &str, words: &[&str], uid: u32, pipe: &Path| {
        let path = ground.path("fake").join(name);
        if !path.exists() {
            crate::support::copy_program(Path::new(program), &path);
        }
        let mut command = Command::new(path);
        command.args(words).uid(uid).env("CUDA_MPS_PIPE_DIRECTORY", pipe).stdin(Stdio::null());
        Daemon(command.stdout(Stdio::null()).spawn().unwrap())
    };
    let pipe = ground.state("pipe");
    let server = "nvidia-cuda-mps-server";
    let mut others: Vec<Daemon> =
        [0, 65534].map(|uid| fake("/bin/sleep", server, &["1000"], uid, &pipe)).into();
    // As root's it may be of another installation.
    let tail = "/usr/bin/tail";
    others.push(fake(tail, "nvidia-cuda-mps-control", &["-f", "/dev/null"], 65534, Path::new("/a")));
    // The program itself, as a container has it that the driver is in.
    let inner = ground.path("inner");
    fs::create_dir(&inner).unwrap();
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--kill-child"])
        .arg(ground.path("bin/nvidia-cuda-mps-control"))
        .arg("-f");
    command.env("CUDA_MPS_PIPE_DIRECTORY", &inner).env("CUDA_MPS_LOG_DIRECTORY", &inner);
    others.push(Daemon(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()));
    wait_until("a control daemon of a container", || inner.join("control").exists());
    ground.supervise();
    ground.ensured();
    let control = ground.control_pid();
    kill_hard(control);
    wait_until("another control daemon", || ground.pid("control_pid").is_some_and(|pid| pid != control));
    ground.wait_for("ready");
    assert_eq!(ground.stop(true)["answer"], "stopped");
    ground.wait_for_end();
    assert_eq!(ground.mode(), DEFAULT);
    for (number, other) in others.iter_mut().enumerate() {
        assert_eq!(other.0.try_wait().unwrap(), None, "{number}: {}", ground.log());
    }
}

/// A control daemon that somebody started.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn control_daemon(ground: &Ground, pipe: &str, visible: &str) -> Daemon {
    let pipe = ground.path(pipe);
    fs::create_dir(&pipe).unwrap();
    let mut command = Command::new(ground.path("bin/nvidia-cuda-mps-control"));
    command.arg("-f").env("CUDA_MPS_PIPE_DIRECTORY", &pipe).env("CUDA_MPS_LOG_DIRECTORY", &pipe);
    command.env("CUDA_VISIBLE_DEVICES", visible).stdin(Stdio::null()).stdout(Stdio::null());
    let daemon = Daemon(command.spawn().unwrap());
    wait_until("another control daemon", || pipe.join("control").exists());
    daemon
}

fn a_closed_gpu_stays_closed(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.set_mode(PROHIBITED);
    ground.supervise();
    ground.refused(&ground.ensure(), 5, "its compute mode is Prohibited");
    assert_eq!((ground.mode(), ground.pid("control_pid")), (PROHIBITED, None));
}

fn a_mode_that_somebody_sets_is_told(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let control = ground.control_pid();
    ground.set_mode(DEFAULT);
    let words = "somebody set its compute mode to Default";
    ground.refused(&ground.ensure(), 5, words);
    assert!(ground.run(&["mps"]).2.contains(words));
    assert_eq!(ground.mode(), DEFAULT, "it is theirs to set");
    ground.set_mode(EXCLUSIVE_PROCESS);
    ground.ensured();
    assert_eq!(ground.control_pid(), control);
    ground.set_mode(PROHIBITED);
    ground.refused(&ground.ensure(), 5, "to Prohibited");
    assert_eq!(ground.stop(false)["answer"], "stopped");
    assert_eq!(ground.mode(), PROHIBITED, "it stays");
}

fn the_mode_of_before_outlives_a_crash(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.set_mode(EXCLUSIVE_PROCESS);
    // Between what is noted and what is set.
    fs::create_dir_all(ground.state("")).unwrap();
    let record =
        json!({"gpu": ground.uuid, "before": "default", "set": "prohibited", "from": "exclusive-process"});
    fs::write(ground.state("compute-mode.json"), record.to_string()).unwrap();
    ground.supervise();
    ground.ensured();
    let control = ground.control_pid();
    ground.end_supervisor(Signal::SIGKILL);
    kill_hard(control);
    ground.supervise();
    assert_eq!(ground.stop(true)["answer"], "stopped");
    assert_eq!(ground.mode(), DEFAULT);
    assert!(!ground.state("compute-mode.json").exists());
}

fn a_mig_device_has_no_mode(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    let facts = fs::read_to_string(crate::support::facts("a100-lab")).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&facts).unwrap();
    let gpus = parsed["gpus"].as_array().unwrap();
    let gpu = gpus.iter().find(|gpu| gpu["mig"]["enabled"] == true).unwrap();
    let mig = gpu["mig"]["devices"][0]["uuid"].as_str().unwrap().to_owned();
    fs::write(ground.path("facts.json"), &facts).unwrap();
    ground.uuid.clone_from(&mig);
    ground.supervise();
    let mut settings = ground.settings();
    settings["gpu_uuid"] = gpu["uuid"].clone();
    settings["is_mig"] = json!(true);
    assert_eq!(ground.ensure_as(settings, 0, true)["answer"], "ready", "{}", ground.log());
    assert_eq!(ground.received().last().unwrap()["visible"], json!(mig));
    assert_eq!(fs::read_dir(ground.path("modes")).unwrap().count(), 0);
    assert!(!ground.state("compute-mode.json").exists());
    assert_eq!(ground.stop(false)["answer"], "stopped");
}

fn a_gpu_that_is_gone(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    fs::write(ground.path("facts.json"), fs::read_to_string(crate::support::facts("l4")).unwrap()).unwrap();
    ground.supervise();
    ground.refused(&ground.ensure(), 1, "is not there any more");
    for uuid in ["../../etc", "GPU-1/2", "shared-0", ""] {
        let (status, _, errors) = ground.run(&["mps", "supervise", uuid]);
        assert_eq!(status, 2, "{errors}");
    }
}

fn programs_that_are_not_run(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.supervise();
    let other = mps::all().into_iter().find(|other| other.version != files.version);
    if let Some(other) = other {
        let mut settings = ground.settings();
        settings["driver_version"] = json!(other.version);
        let words = format!("is of driver {}, and {} is loaded", files.version, other.version);
        ground.refused(&ground.ensure_as(settings, 0, true), 1, &words);
    }
    let mut settings = ground.settings();
    settings["server"] = json!(ground.path("bin/missing"));
    ground.refused(&ground.ensure_as(settings, 0, true), 1, "bin/missing cannot be read");
    let mut settings = ground.settings();
    settings["multi_user"] = json!(true);
    if !files.is_multi_user() {
        ground.refused(&ground.ensure_as(settings, 0, true), 1, "cannot serve several users at once");
    }
    let control = ground.path("bin/nvidia-cuda-mps-control");
    fs::set_permissions(&control, Permissions::from_mode(0o777)).unwrap();
    ground.refused(&ground.ensure_as(ground.settings(), 0, true), 1, "writable by others (mode 777)");
    assert_eq!((ground.mode(), ground.pid("control_pid")), (DEFAULT, None));
    fs::set_permissions(&control, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(ground.ensure_as(ground.settings(), 0, true)["answer"], "ready", "{}", ground.log());
}

fn shared_memory_is_a_file_system_of_its_own(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.supervise();
    let mut settings = ground.settings();
    settings["shared_memory_bytes"] = json!(16 << 20);
    let answer = ground.ensure_as(settings.clone(), 0, true);
    assert_eq!(answer["shared_memory"], json!(ground.state("shm")), "{answer} {}", ground.log());
    let device = |path: &str| fs::metadata(path).unwrap().dev();
    let shm = ground.state("shm").display().to_string();
    assert_ne!(device(&shm), device(ground.state("").to_str().unwrap()));
    assert_eq!(fs::metadata(&shm).unwrap().permissions().mode() & 0o7777, 0o1777);
    for pid in [ground.control_pid(), ground.server_pid()] {
        assert_eq!(device(&format!("/proc/{pid}/root/dev/shm")), device(&shm));
    }
    assert_ne!(device("/dev/shm"), device(&shm), "the machine keeps its own");
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&shm)).unwrap();
    for option in ["nosuid", "nodev", "noexec", "size=16384k"] {
        assert!(mount.contains(option), "{mount}");
    }
    // The next supervisor finds it there.
    ground.end_supervisor(Signal::SIGKILL);
    ground.supervise();
    assert_eq!(ground.ensure_as(settings, 0, false)["shared_memory"], json!(ground.state("shm")));
    assert_eq!(ground.stop(false)["answer"], "stopped");
    assert_eq!(device(&shm), device(ground.state("").to_str().unwrap()), "it is unmounted");
}
