//! The static hook at createRuntime, as a process.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;
use std::thread;

use hooks::lease::SOCKET;
use tempfile::TempDir;

use crate::common::{Outcome, feed};
use crate::{MOST_RESIDENT, built, calls, peak};

const ANSWERS: &str = "{\"answer\":\"queued\",\"seconds\":60,\"ahead\":0}
{\"answer\":\"granted\",\"devices\":[]}
";

/// It talks to the daemon and to nobody else, runs no other program, and holds no capability while it waits.
pub fn it_talks_to_the_daemon_alone() {
    let bundle = bundle();
    let trace = bundle.path().join("trace");
    let run = start(&bundle, &["strace", "-f", "-o", trace.to_str().unwrap()], ANSWERS);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    let names = calls(&trace);
    for (name, count) in
        [("execve", 1), ("clone", 0), ("clone3", 0), ("fork", 0), ("vfork", 0), ("socket", 1)]
    {
        assert_eq!(names.iter().filter(|call| *call == name).count(), count, "{name} in {names:?}");
    }
    let trace = fs::read_to_string(&trace).unwrap();
    assert!(trace.contains("socket(AF_UNIX, SOCK_STREAM"), "{trace}");
    let (before, _) = trace.split_once("connect(").unwrap();
    let dropped = before.lines().rfind(|line| line.contains("capset(")).unwrap();
    assert!(dropped.contains("effective=0, permitted=0, inheritable=0"), "{dropped}");
}

/// The deadline has room for the daemon's time and for the queue's.
pub fn the_deadline_follows() {
    let bundle = bundle();
    let trace = bundle.path().join("trace");
    let under = ["strace", "-f", "-e", "trace=alarm,setitimer,timer_settime", "-o", trace.to_str().unwrap()];
    assert_eq!(start(&bundle, &under, ANSWERS).status, 0);
    let trace = fs::read_to_string(&trace).unwrap();
    // The C libraries set an alarm by different calls.
    let times = |seconds: u32| [format!("alarm({seconds})"), format!("it_value={{tv_sec={seconds}, ")];
    let mut rest = trace.as_str();
    for seconds in [30, 31, 150, 151, 210, 211] {
        let at = times(seconds).iter().find_map(|time| Some(rest.find(time.as_str())? + time.len()));
        rest = &rest[at.unwrap_or_else(|| panic!("{seconds} is not in {trace}"))..];
    }
}

pub fn it_takes_little() {
    let run = start(&bundle(), &peak::RESIDENT, ANSWERS);
    assert_eq!(run.status, 0, "{}", run.stderr);
    let kib = peak::kib(&run.stderr);
    println!("{kib} KiB resident at most");
    assert!((100..MOST_RESIDENT).contains(&kib), "{kib} KiB");
}

/// Under a /dev/log of its own, which nobody else's lines come to.
pub fn failures_are_in_the_systems_log() {
    let bundle = bundle();
    let socket = bundle.path().join("log");
    let log = UnixDatagram::bind(&socket).unwrap();
    log.set_nonblocking(true).unwrap();
    let user: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let script = format!("mount -t tmpfs none /dev; ln -s '{}' /dev/log; exec \"$@\"", socket.display());
    let under = [&["unshare"], user, &["--mount", "sh", "-ec", &script, "sh"]].concat();
    let refused = "{\"answer\":\"refused\",\"status\":3,\"message\":\"none\\nis free\",\"hint\":\"wait\"}\n";
    let run = start(&bundle, &under, refused);
    assert_eq!(run.status, 3, "{}", run.stderr);
    let mut line = [0; 4096];
    let length = log.recv(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line[..length]).into_owned();
    assert!(line.starts_with("<27>divvy-hook["), "{line}");
    assert!(line.ends_with("]: container c1: none\u{fffd}is free"), "{line}");
    assert!(log.recv(&mut [0; 1]).is_err(), "it is one line");
    // A log that is full, and none, are no reason to wait.
    let other = UnixDatagram::unbound().unwrap();
    other.set_nonblocking(true).unwrap();
    while other.send_to(b"x", &socket).is_ok() {}
    assert_eq!(start(&bundle, &under, refused).status, 3);
    drop(log);
    assert_eq!(start(&bundle, &under, refused).status, 3);
}

fn bundle() -> TempDir {
    let bundle = tempfile::tempdir().unwrap();
    fs::write(bundle.path().join("config.json"), "{}").unwrap();
    bundle
}

/// Runs the hook under another program, against a daemon that says this.
fn start(bundle: &TempDir, under: &[&str], answers: &'static str) -> Outcome {
    let socket = bundle.path().join(SOCKET);
    let _ = fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    let daemon = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        stream.write_all(answers.as_bytes()).unwrap();
    });
    let run = feed(&mut hook(bundle.path(), under), state(bundle.path()).as_bytes());
    daemon.join().unwrap();
    run
}

fn hook(bundle: &Path, under: &[&str]) -> Command {
    let mut command = Command::new(under[0]);
    command.args(&under[1..]).arg(built::shipped()).arg("create-runtime");
    command
        .arg(format!("--state-dir={}", bundle.display()))
        .arg("--start-timeout=120")
        .arg("--device=gpu=shared");
    command
}

fn state(bundle: &Path) -> String {
    format!(r#"{{"id":"c1","pid":{},"bundle":"{}"}}"#, std::process::id(), bundle.display())
}
