//! How MPS starts: what the control daemon and its server are given, and what is there before.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::Test;
use crate::ground::{DEFAULT, EXCLUSIVE_PROCESS, Ground, is_alive, kill_hard, wait_until};
use crate::support::mps::MpsFiles;
use crate::support::run;

pub const TRIALS: [Test; 8] = [
    ("what_the_server_is_given", what_the_server_is_given),
    ("what_the_control_daemon_is_given", what_the_control_daemon_is_given),
    ("there_is_one_supervisor_and_one_daemon", there_is_one_supervisor_and_one_daemon),
    ("what_was_left_behind_is_no_hindrance", what_was_left_behind_is_no_hindrance),
    ("a_server_that_takes_its_time", a_server_that_takes_its_time),
    ("a_server_that_ends_at_once", a_server_that_ends_at_once),
    ("a_server_that_never_gets_ready", a_server_that_never_gets_ready),
    ("one_is_started_by_whoever_needs_it", one_is_started_by_whoever_needs_it),
];

fn what_the_server_is_given(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.supervise();
    for (percentage, mib) in [(1_u32, 1_u64), (33, 1023), (100, 40_000)] {
        let mut settings = ground.settings();
        settings["active_thread_percentage"] = json!(percentage);
        settings["memory_mib"] = json!(mib);
        let answer = ground.ensure_as(settings, 0, true);
        assert_eq!(answer["answer"], "ready", "{answer} {}", ground.log());
        let received = ground.received();
        let ready = received.iter().rev().find(|event| event["event"] == "ready").unwrap();
        assert_eq!(ready["percentage"], json!(f64::from(percentage)));
        assert_eq!(ready["memory"], json!(mib * 1024 * 1024));
        assert_eq!(ready["other_memory"], 0, "limits of other devices");
        assert_eq!((&ready["priority"], &ready["uid"]), (&json!(0), &json!(0)));
        assert_eq!(ready["visible"], json!(ground.uuid));
        assert_eq!(ready["order"], "PCI_BUS_ID");
        assert_eq!(ready["pid"], json!(ground.server_pid()));
    }
    assert_eq!(ground.mode(), EXCLUSIVE_PROCESS);
    assert!(ground.is_open());
    let names = fs::read_dir(ground.state("front")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["control"]);
    assert_eq!(ground.stop(false)["answer"], "stopped");
    ground.wait_for_end();
    assert_eq!(ground.mode(), DEFAULT);
}

fn what_the_control_daemon_is_given(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let of = |file: &str| format!("/proc/{}/{file}", ground.control_pid());
    let environment = fs::read_to_string(of("environ")).unwrap();
    let mut names: Vec<_> =
        environment.split_terminator('\0').map(|line| line.split_once('=').unwrap().0).collect();
    names.sort_unstable();
    // Whom the guard hears, where the server serves one user.
    let user = (!files.is_multi_user()).then_some("DIVVY_MPS_USER");
    let mut expected = vec![
        "CUDA_DEVICE_ORDER",
        "CUDA_MPS_LOG_DIRECTORY",
        "CUDA_MPS_PIPE_DIRECTORY",
        "CUDA_VISIBLE_DEVICES",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "PATH",
    ];
    expected.extend(user);
    expected.sort_unstable();
    assert_eq!(names, expected);
    let of_server = fs::read_to_string(format!("/proc/{}/environ", ground.server_pid())).unwrap();
    assert!(!of_server.contains("LD_PRELOAD"), "{of_server}");
    assert_eq!(fs::read_link(of("cwd")).unwrap(), Path::new("/"));
    // proc_pid_stat(5), field 6: it leads a session of its own.
    let stat = fs::read_to_string(of("stat")).unwrap();
    let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap();
    assert_eq!(session, ground.control_pid().to_string());
    let limits = fs::read_to_string(of("limits")).unwrap();
    let descriptors = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(descriptors.split_whitespace().nth(3).unwrap().parse::<u64>().unwrap() >= 16384, "{descriptors}");
    let command_line = fs::read_to_string(of("cmdline")).unwrap();
    assert_eq!(command_line.contains("multiuser-server"), files.is_multi_user(), "{command_line}");
    for fd in fs::read_dir(of("fd")).unwrap() {
        let target = fs::read_link(fd.unwrap().path()).unwrap().display().to_string();
        let is_its_own = ["/dev/null", "socket:", "pipe:", "anon_inode:[eventfd]"]
            .iter()
            .any(|own| target.starts_with(own))
            || target.starts_with(ground.state("").to_str().unwrap());
        assert!(is_its_own && !target.contains("supervisor"), "{target}");
    }
}

fn there_is_one_supervisor_and_one_daemon(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let (control, server) = (ground.control_pid(), ground.server_pid());
    let (status, _, errors) = ground.run(&["mps", "supervise", &ground.uuid]);
    assert_eq!(status, 0, "{errors}");
    assert!(errors.contains("another supervisor keeps it"), "{errors}");
    let mut second = Command::new(ground.path("bin/nvidia-cuda-mps-control"));
    second.arg("-f").env("CUDA_MPS_PIPE_DIRECTORY", ground.state("pipe"));
    let (status, said, errors) = run(second.stdin(Stdio::null()));
    assert_eq!(status, 1);
    assert!((said + &errors).contains("already running"));
    ground.ensured();
    assert_eq!((ground.control_pid(), ground.server_pid()), (control, server));
}

fn what_was_left_behind_is_no_hindrance(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    let pipe = ground.state("pipe");
    fs::create_dir_all(&pipe).unwrap();
    fs::create_dir_all(ground.state("front")).unwrap();
    fs::write(pipe.join("nvidia-cuda-mps-control.pid"), "123456789").unwrap();
    fs::write(pipe.join("control"), "").unwrap();
    fs::write(ground.state("front/control"), "").unwrap();
    fs::write(ground.state(".control.new"), "").unwrap();
    fs::write(ground.state("status.json"), "{").unwrap();
    nix::unistd::mkfifo(&pipe.join("log"), nix::sys::stat::Mode::from_bits_truncate(0o666)).unwrap();
    ground.supervise();
    ground.ensured();
    // 535 writes no process id.
    if let Ok(written) = fs::read_to_string(pipe.join("nvidia-cuda-mps-control.pid")) {
        assert_eq!(written.trim(), ground.control_pid().to_string());
    }
    assert!(ground.is_open());
}

fn a_server_that_takes_its_time(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.behave("stuck");
    ground.supervise();
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..8).map(|_| scope.spawn(|| ground.ensure())).collect();
        ground.wait_for("starting");
        assert!(crate::peer::is_turned_away(&ground.state("front/control")));
        ground.behave("");
        for answer in asked {
            assert_eq!(answer.join().unwrap()["answer"], "ready", "{}", ground.log());
        }
    });
    let ready = ground.received().iter().filter(|event| event["event"] == "ready").count();
    assert_eq!(ready, 1, "one server for all who waited");
}

fn a_server_that_ends_at_once(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.behave("broken");
    ground.supervise();
    ground.refused(
        &ground.ensure_as(ground.settings(), 0, true),
        1,
        "the MPS server ended before it was ready",
    );
    wait_until("the end of the control daemon", || ground.pid("control_pid").is_none());
    wait_until("the compute mode of before", || ground.mode() == DEFAULT);
    // Who asks next does not hear of what was: it is tried again.
    ground.behave("");
    ground.ensured();
}

fn a_server_that_never_gets_ready(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.behave("stuck");
    ground.supervise();
    ground.refused(&ground.ensure(), 1, "the MPS server was not ready after 30 seconds");
    wait_until("the end of the control daemon", || ground.pid("control_pid").is_none());
    assert_eq!(ground.mode(), DEFAULT);
}

fn one_is_started_by_whoever_needs_it(files: &MpsFiles) {
    let mut ground = Ground::ready(files);
    let control = ground.control_pid();
    ground.end_supervisor(Signal::SIGKILL);
    assert!(is_alive(control));
    let listed = ground.run(&["mps"]);
    assert!(listed.1.contains("unknown") && listed.2.contains("its supervisor"), "{listed:?}");
    let (status, _, errors) = ground.run(&["mps", "restart", "0"]);
    assert_eq!(status, 0, "{errors} {}", ground.log());
    assert_ne!(ground.control_pid(), control);
    let supervisor = ground.pid("supervisor_pid").unwrap();
    let stat = fs::read_to_string(format!("/proc/{supervisor}/stat")).unwrap();
    // It was left by all who had to do with its start.
    assert_eq!(stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1), Some("1"), "{stat}");
    kill_hard(supervisor);
}
