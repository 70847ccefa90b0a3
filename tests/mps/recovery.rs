//! What ends unasked comes back, and what is there is taken up: no client is lost to a supervisor.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::Test;
use crate::ground::{EXCLUSIVE_PROCESS, Ground, PROHIBITED, is_alive, kill_hard, wait_until};
use crate::peer::{Peer, is_turned_away};
use crate::support::mps::{self, MpsFiles};

pub const TRIALS: [Test; 13] = [
    ("the_control_daemon_is_killed", the_control_daemon_is_killed),
    ("somebody_takes_the_gpu_while_it_is_away", somebody_takes_the_gpu_while_it_is_away),
    ("the_server_is_killed", the_server_is_killed),
    ("a_supervisor_is_killed_and_no_client_is_lost", a_supervisor_is_killed_and_no_client_is_lost),
    ("both_are_killed", both_are_killed),
    ("it_ends_and_starts_300_times", it_ends_and_starts_300_times),
    ("who_blocks_the_daemon_is_named", who_blocks_the_daemon_is_named),
    ("who_says_nothing_is_named", who_says_nothing_is_named),
    ("a_server_that_does_not_answer_is_named", a_server_that_does_not_answer_is_named),
    ("limits_that_somebody_changed", limits_that_somebody_changed),
    ("who_holds_the_lock_is_named", who_holds_the_lock_is_named),
    ("a_daemon_in_the_place_of_another", a_daemon_in_the_place_of_another),
    ("who_changes_the_front_harms_no_client", who_changes_the_front_harms_no_client),
];

/// Of those that tell how a server is (get_server_status), which 535 does not.
pub const WITH_STATUS: [Test; 1] = [("a_fault_is_told_and_waited_for", a_fault_is_told_and_waited_for)];

fn the_control_daemon_is_killed(files: &MpsFiles) {
    let ground = Ground::ready(files);
    // As a container has it: the directory, whatever becomes of what is in it.
    let front = File::open(ground.state("front")).unwrap();
    let seen = PathBuf::from(format!("/proc/self/fd/{}/control", front.as_raw_fd()));
    let before = fs::metadata(&seen).unwrap().ino();
    let control = ground.control_pid();
    kill_hard(control);
    wait_until("a tombstone", || fs::metadata(&seen).is_ok_and(|found| found.ino() != before));
    assert!(is_turned_away(&ground.state("front/control")));
    wait_until("another control daemon", || ground.pid("control_pid").is_some_and(|pid| pid != control));
    ground.wait_for("ready");
    assert!(ground.is_open());
    assert_eq!(fs::metadata(&seen).unwrap().ino(), fs::metadata(ground.state("pipe/control")).unwrap().ino());
    assert_eq!(ground.mode(), EXCLUSIVE_PROCESS);
    assert_eq!(ground.status()["failures"], 1);
    assert_eq!(ground.received().iter().filter(|event| event["event"] == "ready").count(), 2);
}

/// It comes back by itself when they have left.
fn somebody_takes_the_gpu_while_it_is_away(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let own = std::process::id();
    ground.processes(&json!({&ground.uuid: {"compute": [{"pid": own, "memory": 1}]}}));
    kill_hard(ground.control_pid());
    wait_until("a refusal", || ground.status()["why"].to_string().contains(&format!("process {own} (")));
    assert_eq!((ground.status()["state"].as_str(), ground.mode()), (Some("down"), PROHIBITED));
    assert!(is_turned_away(&ground.state("front/control")));
    ground.processes(&json!({}));
    ground.wait_for("ready");
    assert!(ground.is_open());
}

fn the_server_is_killed(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let (control, server) = (ground.control_pid(), ground.server_pid());
    // It stays down until it is looked at.
    ground.behave("stuck");
    kill_hard(server);
    wait_until("a closed GPU", || ground.mode() == PROHIBITED);
    assert!(is_turned_away(&ground.state("front/control")));
    ground.behave("");
    ground.wait_for("ready");
    assert!(!is_alive(control), "it is started from the beginning");
    assert_ne!(ground.server_pid(), server);
    assert_eq!(ground.mode(), EXCLUSIVE_PROCESS);
    ground.ensured();
}

fn a_supervisor_is_killed_and_no_client_is_lost(files: &MpsFiles) {
    let mut ground = Ground::ready(files);
    let client = Peer::client(&ground.state("front"), 0);
    let (control, server) = (ground.control_pid(), ground.server_pid());
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        ground.end_supervisor(signal);
        let supervisor = ground.supervise();
        ground.ensured();
        wait_until("a status", || ground.pid("supervisor_pid") == Some(supervisor));
        assert_eq!((ground.control_pid(), ground.server_pid()), (control, server));
        assert_eq!(ground.status()["clients"], json!([client.pid()]));
        assert!(ground.is_open());
    }
    assert!(client.leave());
    let events = ground.received();
    assert!(events.iter().all(|event| event["event"] != "alone"), "{events:?}");
}

fn both_are_killed(files: &MpsFiles) {
    let mut ground = Ground::ready(files);
    let (control, server) = (ground.control_pid(), ground.server_pid());
    ground.end_supervisor(Signal::SIGKILL);
    kill_hard(control);
    ground.supervise();
    ground.ensured();
    assert_ne!(ground.control_pid(), control);
    wait_until("the end of the old server", || !is_alive(server));
    assert_eq!(ground.mode(), EXCLUSIVE_PROCESS);
    assert_eq!(ground.stop(false)["answer"], "stopped");
    assert_eq!(ground.mode(), 0, "the mode of before outlived all of them");
}

/// 300 times for all versions together, on five GPUs at once. Each time the daemon is told to quit, and the next one may
/// not meet what it leaves.
fn it_ends_and_starts_300_times(files: &MpsFiles) {
    let times = 300_usize.div_ceil(mps::all().len() * 5);
    std::thread::scope(|scope| {
        (0..5).for_each(|_| drop(scope.spawn(|| ends_and_starts(files, times))));
    });
}

fn ends_and_starts(files: &MpsFiles, times: usize) {
    let mut ground = Ground::new(files);
    ground.supervise();
    for time in 1..=times {
        let mut settings = ground.settings();
        settings["active_thread_percentage"] = json!(1 + time % 100);
        let answer = ground.ensure_as(settings, 0, true);
        assert_eq!(answer["answer"], "ready", "the {time}th time: {answer} {}", ground.log());
    }
    let events = ground.received();
    let of = |event: &str| events.iter().filter(|received| received["event"] == event).count();
    assert_eq!((of("ready"), of("end")), (times, times - 1), "{}", ground.log());
    assert_eq!(ground.status()["failures"], 0);
}

fn a_fault_is_told_and_waited_for(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let client = Peer::client(&ground.state("front"), 0);
    ground.behave("fault");
    ground.refused(&ground.ensure(), 3, &format!("process {}", client.pid()));
    assert_eq!(ground.status()["state"], "fault");
    let server = ground.server_pid();
    ground.behave("");
    assert!(client.leave());
    ground.wait_for("ready");
    assert_eq!(ground.server_pid(), server, "it recovered by itself");
    assert_eq!(ground.status()["why"], json!(null));
}

fn who_blocks_the_daemon_is_named(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let (control, server) = (ground.control_pid(), ground.server_pid());
    let peer = Peer::lingering(&ground.state("front"));
    let named = format!("process {} (", peer.pid());
    ground.refused(&ground.ensure(), 3, &named);
    assert_eq!(ground.status()["state"], "blocked");
    let (status, table, errors) = ground.run(&["mps"]);
    assert_eq!(status, 0);
    assert!(table.contains("blocked") && errors.contains(&named), "{table} {errors}");
    assert!(errors.contains(&format!("hint: end it: kill {}", peer.pid())), "{errors}");
    assert!(peer.leave());
    ground.wait_for("ready");
    assert_eq!((ground.control_pid(), ground.server_pid()), (control, server));
}

/// The guard hangs up on each, but they are many.
fn who_says_nothing_is_named(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let (control, server) = (ground.control_pid(), ground.server_pid());
    let crowd = Peer::crowd(&ground.state("front"));
    ground.refused(&ground.ensure(), 3, &format!("process {} (", crowd.pid()));
    assert_eq!(ground.status()["state"], "blocked");
    drop(crowd);
    ground.wait_for("ready");
    assert_eq!((ground.control_pid(), ground.server_pid()), (control, server));
}

fn a_server_that_does_not_answer_is_named(files: &MpsFiles) {
    let ground = Ground::ready(files);
    ground.behave("silent");
    ground.refused(&ground.ensure(), 3, &format!("the MPS server, process {}", ground.server_pid()));
    assert_eq!(ground.status()["state"], "blocked");
    let control = ground.control_pid();
    ground.behave("");
    ground.wait_for("ready");
    assert_eq!(ground.control_pid(), control);
}

fn limits_that_somebody_changed(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let client = Peer::client(&ground.state("front"), 0);
    let server = ground.server_pid();
    ground.control(&ground.state("pipe"), &format!("set_active_thread_percentage {server} 90\n"));
    ground.refused(&ground.ensure(), 5, "has other limits");
    assert_eq!(ground.server_pid(), server, "its client's work is not lost for it");
    assert!(client.leave());
    wait_until("another server", || ground.pid("server_pid").is_some_and(|pid| pid != server));
    ground.ensured();
    // Those of servers to come are set again, which harms nobody.
    let server = ground.server_pid();
    ground.control(&ground.state("pipe"), "set_default_active_thread_percentage 90\n");
    ground.ensured();
    let read_back = ground.control(&ground.state("pipe"), "get_default_active_thread_percentage\n");
    assert_eq!((read_back.trim(), ground.server_pid()), ("25.0", server));
}

fn who_holds_the_lock_is_named(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.supervise();
    fs::create_dir_all(ground.state("pipe")).unwrap();
    let path = ground.state("pipe/control_lock");
    let lock = || File::options().write(true).create(true).truncate(false).open(&path);
    let whole_file = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let own = std::process::id();
    // A lock of a process, and one of an open file, which tells no process.
    for take in [FcntlArg::F_SETLK(&whole_file), FcntlArg::F_OFD_SETLK(&whole_file)] {
        let held = lock().unwrap();
        fcntl(&held, take).unwrap();
        let answer = ground.ensure();
        ground.refused(&answer, 3, &format!("GPU 0: process {own} ("));
        assert!(answer["message"].as_str().unwrap().ends_with(", uid 0) holds the lock of MPS"), "{answer}");
        assert_eq!(answer["hint"], json!(format!("end it: `kill {own}`")));
        assert_eq!((ground.status()["state"].as_str(), ground.pid("control_pid")), (Some("down"), None));
    }
    ground.ensured();
    // It is no daemon that is waited for either.
    kill_hard(ground.control_pid());
    ground.wait_for("ready");
    assert_eq!(ground.stop(false)["answer"], "stopped");
    ground.wait_for_end();
    let held = lock().unwrap();
    fcntl(&held, FcntlArg::F_SETLK(&whole_file)).unwrap();
    ground.supervise();
    assert_eq!(ground.stop(true)["answer"], "stopped");
    ground.wait_for_end();
}

/// Between two looks; it has no guard.
fn a_daemon_in_the_place_of_another(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let control = ground.control_pid();
    let supervisor = Pid::from_raw(ground.pid("supervisor_pid").unwrap());
    kill(supervisor, Signal::SIGSTOP).unwrap();
    kill_hard(control);
    wait_until("its end", || !is_alive(control));
    let pipe = ground.state("pipe");
    for stale in ["log", "nvidia-cuda-mps-control.pid", "control", "control_privileged"] {
        let _ = fs::remove_file(pipe.join(stale));
    }
    let mut command = Command::new(ground.path("bin/nvidia-cuda-mps-control"));
    command.arg("-f").args(files.is_multi_user().then_some("-multiuser-server"));
    command.env("PATH", format!("{}:/usr/bin", ground.path("bin").display()));
    command.env("CUDA_MPS_PIPE_DIRECTORY", &pipe).env("CUDA_MPS_LOG_DIRECTORY", ground.state("log"));
    command.env("CUDA_VISIBLE_DEVICES", &ground.uuid).stdin(Stdio::null());
    let mut other = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_until("another control daemon", || pipe.join("control").exists());
    let orders = "set_default_active_thread_percentage 25\nset_default_device_pinned_mem_limit 0 5000M\nstart_server -uid 0\n";
    ground.control(&pipe, orders);
    wait_until("its server", || {
        ground.received().iter().filter(|event| event["event"] == "ready").count() == 2
    });
    kill(supervisor, Signal::SIGCONT).unwrap();
    // It is looked at as if it were the first, and is not good enough.
    other.wait().unwrap();
    wait_until("a third one", || ground.pid("control_pid").is_some_and(|pid| pid != control));
    ground.wait_for("ready");
    ground.ensured();
    assert!(ground.log().contains("would obey root of a container"), "{}", ground.log());
}

/// Root of a container with CAP_SYS_ADMIN can mount it writable.
fn who_changes_the_front_harms_no_client(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let control = ground.state("front/control");
    let client = Peer::client(&ground.state("front"), 0);
    fs::remove_file(&control).unwrap();
    fs::create_dir_all(control.join("full/of/directories")).unwrap();
    ground.ensured();
    assert!(ground.is_open());
    fs::remove_file(&control).unwrap();
    std::os::unix::fs::symlink("/nowhere", &control).unwrap();
    ground.ensured();
    assert!(ground.is_open());
    assert!(client.leave(), "{}", ground.log());
    assert_eq!(ground.status()["failures"], 0);
}
