//! What a supervisor is asked for: other settings, other users, the end of clients, the end.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::Test;
use crate::ground::{DEFAULT, EXCLUSIVE_PROCESS, Ground, PROHIBITED, is_alive, wait_until};
use crate::peer::{Peer, greeted, is_turned_away};
use crate::support::mps::MpsFiles;
use crate::support::{copy_program, run};

pub const TRIALS: [Test; 9] = [
    ("other_limits_begin_when_nobody_has_a_share", other_limits_begin_when_nobody_has_a_share),
    ("what_needs_no_restart_gets_none", what_needs_no_restart_gets_none),
    ("one_user_at_a_time_where_there_is_no_other_way", one_user_at_a_time_where_there_is_no_other_way),
    ("clients_are_ended_before_they_are_killed", clients_are_ended_before_they_are_killed),
    ("it_is_not_ended_while_it_is_used", it_is_not_ended_while_it_is_used),
    ("by_hand_as_by_a_supervisor", by_hand_as_by_a_supervisor),
    ("everybody_sees_how_it_is", everybody_sees_how_it_is),
    ("what_it_does_not_understand", what_it_does_not_understand),
    ("only_root_is_heard", only_root_is_heard),
];

fn with_limit(ground: &Ground, percentage: u32) -> Value {
    let mut settings = ground.settings();
    settings["active_thread_percentage"] = json!(percentage);
    settings
}

fn other_limits_begin_when_nobody_has_a_share(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let control = ground.control_pid();
    let words = "MPS runs there with other limits (25 % of the SMs, 5000 MiB)";
    ground.refused(&ground.ensure_as(with_limit(&ground, 50), 0, false), 3, words);
    let client = Peer::client(&ground.state("front"), 0);
    let answer = ground.ensure_as(with_limit(&ground, 50), 0, true);
    ground.refused(&answer, 3, &format!("process {}", client.pid()));
    assert_eq!(ground.control_pid(), control);
    assert!(client.leave());
    assert_eq!(ground.ensure_as(with_limit(&ground, 50), 0, true)["answer"], "ready", "{}", ground.log());
    assert!(!is_alive(control));
    assert_eq!(ground.received().last().unwrap()["percentage"], 50.0);
    assert_eq!(ground.mode(), EXCLUSIVE_PROCESS);
    // Or when somebody says so, whoever has one.
    lease(&ground);
    let restart = |force: bool| {
        ground.ask(json!({"request": "restart", "force": force, "settings": with_limit(&ground, 75)}))
    };
    ground.refused(&restart(false), 3, "podman container web has a share");
    assert_eq!(restart(true)["answer"], "ready", "{}", ground.log());
    assert_eq!(ground.received().last().unwrap()["percentage"], 75.0);
}

fn what_needs_no_restart_gets_none(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let control = ground.control_pid();
    let mut settings = ground.settings();
    settings["what"] = json!("GPU 3");
    settings["at_boot"] = json!(true);
    settings["client_limit"] = json!(60);
    assert_eq!(ground.ensure_as(settings, 0, false)["answer"], "ready");
    assert_eq!(ground.control_pid(), control);
    assert!(ground.run(&["mps"]).1.contains("GPU 3"));
}

fn one_user_at_a_time_where_there_is_no_other_way(files: &MpsFiles) {
    let mut ground = Ground::new(files);
    ground.supervise();
    assert_eq!(ground.ensure_as(ground.settings(), 65534, true)["answer"], "ready", "{}", ground.log());
    let ready = ground.received().pop().unwrap();
    let of_user = Peer::client(&ground.state("front"), 65534);
    if files.is_multi_user() {
        assert_eq!(ready["uid"], 0);
        ground.ensured();
        let of_root = Peer::client(&ground.state("front"), 0);
        assert!(of_root.leave() && of_user.leave());
        return;
    }
    assert_eq!(ready["uid"], 65534);
    let words = "its MPS server serves user 65534 alone";
    ground.refused(&ground.ensure_as(ground.settings(), 0, false), 3, words);
    ground.refused(&ground.ensure_as(ground.settings(), 0, true), 3, words);
    assert!(of_user.leave());
    assert_eq!(ground.ensure_as(ground.settings(), 0, true)["answer"], "ready");
    assert_eq!(ground.received().pop().unwrap()["uid"], 0);
}

fn clients_are_ended_before_they_are_killed(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let (one, other) = (Peer::client(&ground.state("front"), 0), Peer::client(&ground.state("front"), 0));
    let answer = ground.ask(json!({"request": "terminate", "pids": [one.pid(), 1, -1, 4_000_000]}));
    assert_eq!(answer, json!({"answer": "terminated", "pids": [one.pid()]}));
    let terminated: Vec<Value> =
        ground.received().into_iter().filter(|event| event["event"] == "terminate").collect();
    assert_eq!(terminated, [json!({"event": "terminate", "pid": one.pid()})]);
    assert!(!one.leave());
    assert!(other.leave());
}

fn it_is_not_ended_while_it_is_used(files: &MpsFiles) {
    let mut ground = Ground::ready(files);
    let client = Peer::client(&ground.state("front"), 0);
    ground.refused(&ground.stop(false), 3, &format!("process {}", client.pid()));
    assert!(client.leave());
    lease(&ground);
    ground.refused(&ground.stop(false), 3, "podman container web has a share");
    assert!(ground.is_open());
    let (control, server) = (ground.control_pid(), ground.server_pid());
    let client = Peer::client(&ground.state("front"), 0);
    assert_eq!(ground.stop(true)["answer"], "stopped", "{}", ground.log());
    assert!(!client.leave());
    assert!(!is_alive(control) && !is_alive(server));
    ground.is_closed_to_web();
    // Another container begins it again, for all.
    ground.ensured();
    assert!(ground.is_open());
    assert_eq!(ground.stop(true)["answer"], "stopped", "{}", ground.log());
    ground.is_closed_to_web();
    assert_eq!(ground.stop(false)["answer"], "stopped", "it is already");
    // Nor does another supervisor open it.
    ground.end_supervisor(Signal::SIGKILL);
    ground.supervise();
    wait_until("another status", || ground.pid("supervisor_pid").is_some_and(is_alive));
    wait_until("a tombstone", || greeted(&ground.state("front/control")).is_ok());
    ground.is_closed_to_web();
    // Nor somebody who can change the front.
    fs::remove_file(ground.state("front/control")).unwrap();
    fs::create_dir_all(ground.state("front/control/full")).unwrap();
    wait_until("the tombstone again", || greeted(&ground.state("front/control")).is_ok());
    fs::remove_file(ground.path("state/leases/1.json")).unwrap();
    ground.wait_for_end();
    assert_eq!(ground.mode(), DEFAULT);
    for left in ["settings.json", "status.json", "supervisor.sock", "compute-mode.json"] {
        assert!(!ground.state(left).exists(), "{left}");
    }
    assert!(ground.state("front").is_dir(), "whoever has it keeps it");
}

impl Ground {
    /// MPS was ended under the container that has a share: it finds a tombstone, and nobody the GPU.
    #[track_caller]
    fn is_closed_to_web(&self) {
        assert!(is_turned_away(&self.state("front/control")));
        assert_eq!((self.status()["state"].as_str(), self.mode()), (Some("down"), PROHIBITED));
        let why = self.status()["why"].to_string();
        assert!(
            why.contains("MPS was ended, and CUDA fails in what has a share: podman container web"),
            "{why}"
        );
    }
}

/// A lease of this process.
fn lease(ground: &Ground) {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start_time: u64 =
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap();
    let lease = json!({
        "version": 1,
        "container": {
            "mount_namespace": 1,
            "pid": std::process::id(),
            "start_time": start_time,
            "boot_id": boot_id.trim(),
            "cgroup": null,
            "uid": 0,
            "id": "3f2a5d1c0b9e",
            "bundle": "/run/bundle",
            "engine": "podman",
            "name": "web",
        },
        "since": 1,
        "asked": [{"class": "gpu", "name": "shared-0"}],
        "devices": [{"class": "gpu", "name": "shared-0", "uuid": ground.uuid, "is_share": true, "pool": null}],
        "remove": [],
        "denied_by": null,
        "mps": {"front": ground.state("front")},
    });
    fs::create_dir_all(ground.path("state/leases")).unwrap();
    fs::write(ground.path("state/leases/1.json"), lease.to_string()).unwrap();
}

fn by_hand_as_by_a_supervisor(files: &MpsFiles) {
    let mut ground = Ground::ready(files);
    let control = ground.control_pid();
    let client = Peer::client(&ground.state("front"), 0);
    let (status, _, errors) = ground.run(&["mps", "restart", "0"]);
    assert_eq!(status, 1);
    assert!(errors.starts_with(&format!("error: GPU 0: process {} (", client.pid())), "{errors}");
    assert!(errors.contains("\nhint: end that first, or add --force"), "{errors}");
    let uuid = ground.uuid.clone();
    let (status, _, errors) = ground.run(&["mps", "restart", &uuid, "--force"]);
    assert_eq!(status, 0, "{errors} {}", ground.log());
    assert!(!client.leave());
    assert_ne!(ground.control_pid(), control);
    assert_eq!(ground.mode(), EXCLUSIVE_PROCESS);
    lease(&ground);
    let (status, _, errors) = ground.run(&["mps", "stop", "0", "--force"]);
    assert_eq!(status, 0, "{errors}");
    let warning = "warning: CUDA fails in podman container web from now on (error 805)\n\
        note: GPU 0: MPS has ended, and nobody gets the GPU until they have ended too\n\
        note: another container that asks for a share begins MPS again\n";
    assert!(errors.starts_with(warning), "{errors}");
    ground.is_closed_to_web();
    let (_, _, errors) = ground.run(&["mps"]);
    assert!(
        errors.contains(&format!("hint: end that, or begin MPS again: divvy mps restart {uuid}")),
        "{errors}"
    );
    let (status, _, errors) = ground.run(&["mps", "restart", "0"]);
    assert_eq!(status, 0, "it ends nobody's work: {errors}");
    assert!(ground.is_open());
    let (status, _, errors) = ground.run(&["mps", "stop", "0", "--force"]);
    assert_eq!(status, 0, "{errors}");
    fs::remove_file(ground.path("state/leases/1.json")).unwrap();
    // Who looks at once is the first who sees that it is over.
    ground.run(&["mps"]);
    ground.wait_for_end();
    assert_eq!(ground.mode(), DEFAULT);
    let (status, said, _) = ground.run(&["mps"]);
    assert_eq!((status, said.as_str()), (0, "no device is shared by MPS\n"));
    let (status, _, errors) = ground.run(&["mps", "stop", "0"]);
    assert_eq!(status, 1);
    assert!(errors.starts_with("error: there is no device \"0\"\nhint: there is no plan in "), "{errors}");
}

fn everybody_sees_how_it_is(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let client = Peer::client(&ground.state("front"), 0);
    let (status, table, errors) = ground.run(&["mps"]);
    assert_eq!((status, errors.as_str()), (0, ""));
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split("  ").map(str::trim).collect()).collect();
    let cell = |name: &str| {
        let header: Vec<_> = lines[0].iter().filter(|cell| !cell.is_empty()).collect();
        let row: Vec<_> = lines[1].iter().filter(|cell| !cell.is_empty()).collect();
        (*row[header.iter().position(|cell| **cell == name).unwrap()]).to_owned()
    };
    assert_eq!((cell("DEVICE"), cell("STATE")), ("GPU 0".into(), "ready".into()));
    assert_eq!(cell("CONTROL PID"), ground.control_pid().to_string());
    assert_eq!(cell("SERVER PID"), ground.server_pid().to_string());
    assert_eq!(cell("CLIENTS"), client.pid().to_string());
    assert_eq!(cell("LIMITS"), "25% SMs, 5000MiB");
    let (status, said, _) = as_nobody(&ground, &["mps", "--format=json"]);
    assert_eq!(status, 0);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said[0]["state"], "ready");
    assert_eq!(said[0]["supervised"], true);
    assert_eq!(said[0]["memory_mib"], 5000);
    let (status, _, errors) = as_nobody(&ground, &["mps", "stop", "0"]);
    assert_eq!(status, 1);
    assert!(errors.starts_with("error: MPS is root's"), "{errors}");
}

/// The same command as a user without rights.
fn as_nobody(ground: &Ground, args: &[&str]) -> (i32, String, String) {
    let program = ground.path("divvy");
    copy_program(Path::new(env!("CARGO_BIN_EXE_divvy")), &program);
    let mut command = Command::new(program);
    run(command.args(args).arg("--state-dir").arg(ground.path("state")).uid(65534).gid(65534))
}

fn what_it_does_not_understand(files: &MpsFiles) {
    let ground = Ground::ready(files);
    let connect = |line: &str| {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(ground.state("supervisor.sock")).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        serde_json::from_str::<Value>(&said).unwrap()
    };
    for line in [
        "",
        "\n",
        "{}\n",
        "[]\n",
        "{\"version\":2,\"request\":\"stop\",\"force\":true}\n",
        &"x".repeat(100_000),
    ] {
        let answer = connect(line);
        assert_eq!((&answer["answer"], &answer["status"]), (&json!("refused"), &json!(1)), "{answer}");
        assert!(answer["hint"].as_str().unwrap().contains("systemctl restart"), "{answer}");
    }
    ground.ensured();
}

fn only_root_is_heard(files: &MpsFiles) {
    let ground = Ground::ready(files);
    for (file, mode) in
        [("supervisor.sock", 0o600), ("supervisor.lock", 0o600), ("front", 0o755), ("pipe", 0o710)]
    {
        let found = fs::metadata(ground.state(file)).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode, "{file}");
    }
    // A server of a user's finds its pipe.
    wait_until("a status", || ground.state("status.json").exists());
    assert_eq!(fs::metadata(ground.state("status.json")).unwrap().permissions().mode() & 0o777, 0o644);
}
