//! createRuntime as a process, against daemons that answer, refuse, break and are not there.

// Functions that tests share are tests too; clippy counts only those marked so.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod daemon;

use std::fs;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use common::{Outcome, feed, run};
use daemon::{Daemon, says, says_and_stays};
use hooks::lease::{DeviceName, LINE_LIMIT, SOCKET, Unbound};
use tempfile::TempDir;

const GRANTED: &str = "{\"answer\":\"granted\",\"devices\":[{\"class\":\"gpu\",\"name\":\"shared-2\"}]}\n";
const QUEUED: &str = "{\"answer\":\"queued\",\"seconds\":60,\"ahead\":1}\n";
const HINT: &str = "hint: start the daemon: systemctl start divvy.socket (or divvy serve as root)\n";

/// A bundle, a state directory, and a process that stands for the container's first.
struct Start {
    directory: TempDir,
    process: Child,
    timeout: u32,
}

impl Start {
    fn new() -> Self {
        Self::with_config(&config(&[&["--device=gpu=shared"]]))
    }

    fn with_config(config: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("config.json"), config).unwrap();
        let process = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
        Self { directory, process, timeout: 10 }
    }

    /// That the hook gives up sooner.
    fn impatient(mut self) -> Self {
        self.timeout = 1;
        self
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn socket(&self) -> String {
        format!("{:?}", self.path().join(SOCKET))
    }

    fn state(&self) -> String {
        let (bundle, pid) = (self.path().display(), self.process.id());
        format!(
            r#"{{"ociVersion":"1.2.1","id":"web","status":"creating","pid":{pid},"bundle":"{bundle}",
            "annotations":{{"io.kubernetes.cri.container-name":"web-0","a":"b"}}}}"#
        )
    }

    fn run(&self) -> Outcome {
        self.run_with(&self.state())
    }

    fn run_with(&self, state: &str) -> Outcome {
        let words = self.words();
        run(words.iter().map(String::as_str), state.as_bytes())
    }

    /// Id and start time of the container's first process; the 22nd field of its stat, whose second is "(sleep)".
    fn process(&self) -> (i32, u64) {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.id())).unwrap();
        let field = |nth: usize| stat.split(' ').nth(nth - 1).unwrap();
        assert_eq!(field(2), "(sleep)");
        (field(1).parse().unwrap(), field(22).parse().unwrap())
    }

    fn words(&self) -> [String; 4] {
        [
            "create-runtime".to_owned(),
            format!("--state-dir={}", self.path().display()),
            format!("--start-timeout={}", self.timeout),
            "--device=gpu=shared".to_owned(),
        ]
    }

    /// The end of a start with this daemon, by status and standard error.
    fn against(self, turns: Vec<Box<dyn Fn(UnixStream) + Send>>) -> (i32, String) {
        let _daemon = Daemon::start(self.path(), turns);
        let outcome = self.run();
        (outcome.status, outcome.stderr)
    }
}

impl Drop for Start {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A configuration with divvy's hooks of these words. They ask the daemon at STATE.
fn config(hooks: &[&[&str]]) -> String {
    let hook = env!("CARGO_BIN_EXE_divvy-hook");
    let hooks: Vec<_> = hooks
        .iter()
        .map(|words| {
            let mut args = vec![hook.to_owned(), "create-runtime".to_owned()];
            args.extend(words.iter().map(|word| (*word).to_owned()));
            serde_json::json!({ "path": hook, "args": args })
        })
        .collect();
    serde_json::json!({ "root": { "path": "rootfs" }, "hooks": { "createRuntime": hooks } }).to_string()
}

fn refused(status: u8) -> String {
    format!(
        "{{\"answer\":\"refused\",\"status\":{status},\"message\":\"shared is taken\",\"hint\":\"wait a while\"}}\n"
    )
}

#[test]
fn the_daemon_hears_of_the_container_and_its_process() {
    let start = Start::new();
    let daemon = Daemon::start(start.path(), vec![says(&[GRANTED])]);
    let outcome = start.run();
    assert_eq!((outcome.status, outcome.stderr.as_str(), outcome.stdout.as_str()), (0, "", ""));
    let [asked] = &daemon.heard()[..] else { panic!("asked once") };
    // A daemon takes none: a descriptor can hang whoever closes it.
    assert_eq!(asked.descriptors, 0);
    let request = &asked.request;
    let (pid, started) = start.process();
    assert_eq!((request.pid, request.start_time), (pid, started));
    assert_eq!((request.version, request.id.as_str()), (1, "web"));
    assert_eq!(request.bundle, start.path());
    assert_eq!(request.devices, ["gpu=shared".parse::<DeviceName>().unwrap()]);
    assert!(request.nodes.is_empty() && request.unbound.is_none());
    let labels: Vec<_> = request.labels.annotations.iter().collect();
    assert_eq!(labels, [(&"io.kubernetes.cri.container-name".to_owned(), &"web-0".to_owned())]);
    assert_eq!(request.labels.podman_name, None);
}

/// As Podman starts a container: conmon calls the runtime, which calls the hook.
#[test]
fn the_daemon_hears_what_podman_calls_the_container() {
    for (id, name) in [("web", Some("front")), ("other", None)] {
        let start = Start::new();
        let conmon = start.path().join("runtime");
        // Two processes, neither of which becomes the next.
        let hook = format!("{} {}", env!("CARGO_BIN_EXE_divvy-hook"), start.words().join(" "));
        fs::write(&conmon, format!("sh -c '{hook}; exit $?'\nexit $?\n")).unwrap();
        let daemon = Daemon::start(start.path(), vec![says(&[GRANTED])]);
        let mut command = Command::new("sh");
        command.arg0("/usr/bin/conmon").arg(&conmon).args(["-c", id, "-n", "front"]);
        let outcome = feed(&mut command, start.state().as_bytes());
        assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
        let [asked] = &daemon.heard()[..] else { panic!("asked once") };
        assert_eq!(asked.request.labels.podman_name.as_deref(), name);
    }
}

#[test]
fn a_queue_is_waited_in() {
    let turn = |mut stream: UnixStream| {
        stream.write_all(QUEUED.as_bytes()).unwrap();
        // Longer than the daemon has for an answer.
        thread::sleep(Duration::from_millis(2500));
        stream.write_all(GRANTED.as_bytes()).unwrap();
    };
    assert_eq!(Start::new().impatient().against(vec![Box::new(turn)]), (0, String::new()));
}

#[test]
fn answers_come_in_any_pieces() {
    let turn = |mut stream: UnixStream| {
        for byte in format!("{QUEUED}{GRANTED}").bytes() {
            stream.write_all(&[byte]).unwrap();
        }
    };
    assert_eq!(Start::new().against(vec![Box::new(turn)]), (0, String::new()));
    assert_eq!(Start::new().against(vec![says(&[QUEUED, GRANTED])]), (0, String::new()));
}

#[test]
fn a_place_in_the_queue_that_is_lost_is_asked_for_again() {
    let start = Start::new();
    let daemon = Daemon::start(start.path(), vec![says(&[QUEUED]), says(&["{\"answer\""]), says(&[GRANTED])]);
    assert_eq!(start.run().status, 0);
    assert_eq!(daemon.heard().len(), 3);
    // And given up where the daemon does not come back.
    let start = Start::new().impatient();
    let listener = UnixListener::bind(start.path().join(SOCKET)).unwrap();
    let socket = start.path().join(SOCKET);
    let dies = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(QUEUED.as_bytes()).unwrap();
        fs::remove_file(socket).unwrap();
    });
    let outcome = start.run();
    dies.join().unwrap();
    assert_eq!(outcome.status, 4, "{}", outcome.stderr);
}

#[test]
fn refusals_are_said_with_their_status() {
    for (given, status) in [(1, 1), (3, 3), (5, 5), (6, 6), (0, 1), (2, 1), (4, 1), (7, 1), (255, 1)] {
        let line = refused(given);
        let turn = move |mut stream: UnixStream| stream.write_all(line.as_bytes()).unwrap();
        let said = "error: divvy-hook: shared is taken\nhint: wait a while\n".to_owned();
        assert_eq!(Start::new().against(vec![Box::new(turn)]), (status, said), "{given}");
    }
    const WITHOUT: &str =
        "{\"answer\":\"refused\",\"status\":3,\"message\":\"a\\u001b[2Jb\\nc\",\"hint\":null}\n";
    let said = "error: divvy-hook: a\u{fffd}[2Jb\u{fffd}c\n".to_owned();
    assert_eq!(Start::new().against(vec![says(&[WITHOUT])]), (3, said));
}

#[test]
fn what_is_no_answer_ends_the_start() {
    for lines in [
        &["\n"][..],
        &["hello\n"],
        &["{}\n"],
        &["{\"answer\":\"maybe\"}\n"],
        &["{\"answer\":\"granted\"}\n"],
        &["{\"answer\":\"refused\",\"status\":300,\"message\":\"x\",\"hint\":null}\n"],
        &["[]\n"],
        &["\0\u{fffd}\n"],
        &[QUEUED, "hello\n"],
    ] {
        let (status, said) = Start::new().against(vec![says(lines)]);
        assert_eq!(status, 1, "{lines:?} {said}");
        assert!(said.contains("gave an answer that this release does not understand\n"), "{said}");
        assert!(said.ends_with("\nhint: install hook and daemon from one release, and restart the daemon\n"));
    }
}

#[test]
fn an_answer_without_end_is_not_waited_for() {
    let turn = |mut stream: UnixStream| while stream.write_all(&[b'x'; 4096]).is_ok() {};
    let (status, said) = Start::new().against(vec![Box::new(turn)]);
    assert_eq!(status, 1);
    assert!(said.contains(&format!("gave an answer longer than {LINE_LIMIT} bytes\n")), "{said}");
}

#[test]
fn a_daemon_that_is_away_is_named_with_what_starts_it() {
    // No socket; one that nobody listens at; no directory.
    let start = Start::new().impatient();
    let socket = start.socket();
    let said =
        |why: &str| format!("error: divvy-hook: divvy's daemon does not answer at {socket}: {why}\n{HINT}");
    let outcome = start.run();
    assert_eq!((outcome.status, outcome.stderr), (4, said("No such file or directory (os error 2)")));
    drop(UnixListener::bind(start.path().join(SOCKET)).unwrap());
    let outcome = start.run();
    assert_eq!((outcome.status, outcome.stderr), (4, said("Connection refused (os error 111)")));
    // Not waited for at all, but given its second.
    let mut start = Start::new();
    start.timeout = 0;
    assert_eq!(start.run().status, 4);
}

#[test]
fn a_daemon_that_comes_late_is_waited_for() {
    let start = Start::new();
    let state = start.path().to_owned();
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(500));
        Daemon::start(&state, vec![says(&[]), says(&[GRANTED])])
    });
    assert_eq!(start.run().status, 0);
    assert_eq!(late.join().unwrap().heard().len(), 2);
}

#[test]
fn a_silent_daemon_is_given_up() {
    let socket = |start: &Start| start.socket();
    let start = Start::new().impatient();
    let said = format!(
        "error: divvy-hook: divvy's daemon does not answer at {}: it is silent\n{HINT}",
        socket(&start)
    );
    assert_eq!(start.against(vec![says_and_stays("")]), (4, said));
    // systemd holds the socket, and starts nothing: connections are taken by the kernel.
    let start = Start::new().impatient();
    let _listener = UnixListener::bind(start.path().join(SOCKET)).unwrap();
    assert_eq!(start.run().status, 4);
    let start = Start::new().impatient();
    let said = format!(
        "error: divvy-hook: divvy's daemon does not answer at {}: it ended the connection\n{HINT}",
        socket(&start)
    );
    assert_eq!(start.against(vec![says(&[])]), (4, said));
}

#[test]
fn long_requests_go_in_pieces_and_longer_ones_not_at_all() {
    let node = |number: usize| serde_json::json!({ "type": "c", "path": format!("/dev/nvidia{}{number}", "0".repeat(3000)) });
    let config = |count: usize| {
        let devices: Vec<_> = (0..count).map(node).collect();
        serde_json::json!({ "linux": { "devices": devices } }).to_string()
    };
    let start = Start::with_config(&config(80));
    // Read late, so that the request waits in pieces.
    let daemon = Daemon::start(start.path(), vec![says(&[GRANTED])]);
    assert_eq!(start.run().status, 0);
    let [asked] = &daemon.heard()[..] else { panic!("asked once") };
    assert_eq!(asked.request.nodes.len(), 80);
    assert_eq!((asked.request.pid, asked.request.start_time), start.process());

    let start = Start::with_config(&config(90));
    let daemon = Daemon::start(start.path(), vec![says(&[GRANTED])]);
    let outcome = start.run();
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.contains("of which the daemon takes 262144"), "{}", outcome.stderr);
    assert!(daemon.heard().is_empty());
}

#[test]
fn a_refusal_before_all_is_read_is_heard() {
    let start = Start::new();
    let listener = UnixListener::bind(start.path().join(SOCKET)).unwrap();
    let hasty = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(refused(3).as_bytes()).unwrap();
    });
    let outcome = start.run();
    hasty.join().unwrap();
    assert_eq!(
        (outcome.status, outcome.stderr.lines().next()),
        (3, Some("error: divvy-hook: shared is taken"))
    );
}

#[test]
fn states_that_name_no_container_are_refused() {
    let start = Start::new();
    let bundle = start.path().display();
    let daemon = Daemon::start(start.path(), vec![says(&[GRANTED])]);
    for (state, why) in [
        (String::new(), "there is no container's state on standard input\n"),
        (format!(r#"{{"pid":1,"bundle":"{bundle}"}}"#), "the container's state has no id\n"),
        (r#"{"id":"web","pid":1}"#.to_owned(), "the container's state names no bundle\n"),
        (r#"{"id":"web","pid":1,"bundle":"b"}"#.to_owned(), "the container's state names no bundle\n"),
        (format!(r#"{{"id":"web","bundle":"{bundle}"}}"#), "the container's state names no process\n"),
        (
            format!(r#"{{"id":"web","pid":0,"bundle":"{bundle}"}}"#),
            "the container's state names no process\n",
        ),
        (
            format!(r#"{{"id":"web","pid":2147483647,"bundle":"{bundle}"}}"#),
            "cannot see when the container's process 2147483647 started: ",
        ),
        (r#"{"id":"web","pid":1,"bundle":"/nowhere"}"#.to_owned(), "cannot read \"/nowhere/config.json\": "),
    ] {
        let outcome = start.run_with(&state);
        assert_eq!(outcome.status, 1, "{state}");
        assert!(outcome.stderr.starts_with(&format!("error: divvy-hook: {why}")), "{}", outcome.stderr);
    }
    fs::write(start.path().join("config.json"), "{").unwrap();
    let outcome = start.run();
    assert_eq!(outcome.status, 1);
    assert!(outcome.stderr.contains("the bundle's config.json is malformed: "), "{}", outcome.stderr);
    assert!(daemon.heard().is_empty());
}

#[test]
fn all_of_divvys_hooks_are_asked_for_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let state = format!("--state-dir={}", directory.path().display());
    let text = config(&[
        &[&state, "--device=gpu=shared", "--start-timeout=10"],
        &["--device=gpu=of-another-daemon"],
        &[&state, "--device=gpu=shared", "--start-timeout=10"],
        &[&state, "--device=mig-1g.10gb=0:1", "--start-timeout=3"],
        &[&state, "--device=gpu=of-a-newer-divvy", "--limit=1"],
    ]);
    let hook = env!("CARGO_BIN_EXE_divvy-hook");
    let mut configuration: serde_json::Value = serde_json::from_str(&text).unwrap();
    configuration["linux"]["resources"]["devices"] = serde_json::json!([{ "allow": true, "access": "rwm" }]);
    fs::write(directory.path().join("config.json"), configuration.to_string()).unwrap();
    let daemon = Daemon::start(directory.path(), vec![says(&[GRANTED])]);
    let bundle = directory.path().display();
    let pid = std::process::id();
    let outcome = run(
        ["create-runtime", &state, "--device=gpu=shared"],
        format!(r#"{{"id":"web","pid":{pid},"bundle":"{bundle}"}}"#).as_bytes(),
    );
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""), "{hook}");
    let [asked] = &daemon.heard()[..] else { panic!("asked once") };
    let devices: Vec<_> = asked.request.devices.iter().map(ToString::to_string).collect();
    assert_eq!(devices, ["gpu=shared", "gpu=shared", "mig-1g.10gb=0:1"]);
    assert_eq!(asked.request.unbound, Some(Unbound::Privileged));
}
