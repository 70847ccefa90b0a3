//! Callers that lie, say nothing, or never stop. After each the daemon serves the next as before, holds no descriptor
//! of theirs, and has written no lease.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use hooks::ancestry::start_time;
use hooks::lease::{Answer, LINE_LIMIT, Request, VERSION};
use serde_json::{Value, json};

use crate::client::{Call, granted, line, refused};
use crate::container::{Container, Made};
use crate::daemon::Daemon;
use crate::ground::{Ground, PATIENCE, SHARES, wait_until};

pub const TRIALS: [(&str, fn()); 7] = [
    ("silence_and_halves", silence_and_halves),
    ("a_gibibyte", a_gibibyte),
    ("wrong_processes", wrong_processes),
    ("in_and_out_of_the_queue", in_and_out_of_the_queue),
    ("wrong_requests", wrong_requests),
    ("a_shared_cgroup", a_shared_cgroup),
    ("devices_past_divvy", devices_past_divvy),
];

/// What the daemon may have had resident at any time, in KiB, whatever was said to it.
const MOST_EVER_RESIDENT: u64 = 32 << 10;

/// A daemon, and what it has open when nobody is there: the least of several looks, since one comes and goes while it
/// starts.
fn attacked(ground: &Ground) -> (Daemon, usize) {
    let daemon = Daemon::start(ground);
    let open = open_at_rest(ground, &daemon);
    (daemon, open)
}

/// What a daemon has open when nobody is there.
pub fn open_at_rest(ground: &Ground, daemon: &Daemon) -> usize {
    let mut container = Container::start();
    granted(ground.ask(&container, &["gpu=shared"]));
    container.kill();
    ground.wait_for_leases(0);
    let looks = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        daemon.descriptors()
    });
    looks.min().unwrap()
}

/// That it serves as before, and that nothing is left of whoever was there.
#[track_caller]
pub fn is_unharmed(ground: &Ground, daemon: &Daemon, open: usize) {
    assert!(ground.leases().is_empty(), "{:?}", ground.leases());
    let mut container = Container::start();
    granted(ground.ask(&container, &["gpu=shared"]));
    container.kill();
    ground.wait_for_leases(0);
    wait_until("the descriptors to be closed", || daemon.descriptors() == open);
    assert!(daemon.status("VmHWM") < MOST_EVER_RESIDENT, "{} KiB", daemon.status("VmHWM"));
}

/// Says something without a word of a request, and gives status and message of the answer.
#[track_caller]
fn said(ground: &Ground, bytes: &[u8]) -> (u8, String) {
    refused(Call::say(&ground.socket(), bytes).unwrap().last())
}

fn silence_and_halves() {
    let ground = Ground::new(SHARES);
    let (daemon, open) = attacked(&ground);
    let container = Container::start();
    let whole = line(&ground.request(&container, &["gpu=shared"]));
    let (half, _) = whole.split_at(whole.len() / 2);
    // All of these wait for the daemon's patience to end, at the same time.
    let mut silent: Vec<Call> = (0..8).map(|_| Call::say(&ground.socket(), b"").unwrap()).collect();
    silent.push(Call::say(&ground.socket(), half).unwrap());

    let mut other = Container::start();
    granted(ground.ask(&other, &["gpu=shared-0"]));
    other.kill();
    ground.wait_for_leases(0);

    // Closed for writing, open for the answer.
    for part in [&b""[..], half] {
        let stream = UnixStream::connect(ground.socket()).unwrap();
        (&stream).write_all(part).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut said = String::new();
        (&stream).read_to_string(&mut said).unwrap();
        let in_the_middle = said.contains("the caller left in the middle of its request");
        assert_eq!(in_the_middle, !part.is_empty(), "{said}");
    }
    // One byte at a time is a request too, and one in two parts.
    for size in [1, whole.len() / 2 + 1] {
        let stream = UnixStream::connect(ground.socket()).unwrap();
        whole.chunks(size).for_each(|part| (&stream).write_all(part).unwrap());
        let mut said = String::new();
        (&stream).read_to_string(&mut said).unwrap();
        assert!(said.starts_with("{\"answer\":\"granted\""), "{said}");
    }
    for call in &mut silent {
        let (status, message) = refused(call.last());
        assert_eq!((status, message.as_str()), (1, "no whole request came within 5 seconds"));
        assert_eq!(call.next().unwrap(), None);
    }
    drop((silent, container));
    ground.wait_for_leases(0);
    is_unharmed(&ground, &daemon, open);
}

fn a_gibibyte() {
    let ground = Ground::new(SHARES);
    let (daemon, open) = attacked(&ground);
    let mut container = Container::start();
    let request = line(&ground.request(&container, &["gpu=shared"]));
    let endless = vec![b'x'; 1 << 20];
    // In place of a request; after one whose answer is there; of nothing but ends of lines.
    for (first, more) in [(&b""[..], &endless), (&request, &endless), (b"", &vec![b'\n'; 1 << 20])] {
        let stream = UnixStream::connect(ground.socket()).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        (&stream).write_all(first).unwrap();
        let mut taken: usize = 0;
        for _ in 0..1 << 10 {
            match (&stream).write(more) {
                Ok(written) => taken += written,
                Err(_) => break,
            }
        }
        // What it reads, and what fits into the socket besides.
        assert!(taken < LINE_LIMIT + (2 << 20), "{taken} bytes were taken");
    }
    let (status, message) = {
        let mut longest = vec![b' '; LINE_LIMIT];
        *longest.last_mut().unwrap() = b'\n';
        said(&ground, &longest)
    };
    assert_eq!((status, message.as_str()), (1, "the request is malformed"));
    container.kill();
    ground.wait_for_leases(0);
    is_unharmed(&ground, &daemon, open);
}

fn wrong_processes() {
    let ground = Ground::new(SHARES);
    let (daemon, open) = attacked(&ground);
    let container = Container::start();
    let is_not = |what: &str, pid: i32, start_time: u64| {
        let request = Request { pid, start_time, ..ground.request(&container, &["gpu=shared"]) };
        let (status, message) = refused(Call::new(&ground.socket(), &request).unwrap().last());
        assert_eq!(status, 1, "{what}: {message}");
        assert!(!message.is_empty(), "{what}");
        assert!(ground.leases().is_empty(), "{what}: {:?}", ground.leases());
    };
    let runs = |what: &str, pid: i32| is_not(what, pid, start_time(pid).unwrap());
    runs("the caller itself", std::process::id().cast_signed());
    runs("the daemon", daemon.pid());
    let plain = Container::start_as(&Made { no_mount_namespace: true, ..Made::default() });
    runs("a process among the daemon's mounts", plain.pid());
    std::thread::scope(|scope| {
        scope.spawn(|| runs("a thread", nix::unistd::gettid().as_raw()));
    });
    let mut dead = Container::start();
    dead.kill();
    is_not("a dead process", dead.pid(), dead.start_time());
    for nobody in [0, -1, i32::MIN, i32::MAX] {
        is_not("nobody", nobody, 0);
        is_not("nobody", nobody, container.start_time());
    }
    let (pid, started) = (container.pid(), container.start_time());
    for other in [0, started - 1, started + 1, u64::MAX] {
        is_not("one that had the id before or will have it", pid, other);
    }
    // Where every process is: nobody's container, and its cgroup no container's.
    let request =
        Request { pid: 1, start_time: start_time(1).unwrap(), ..ground.request(&container, &["gpu=shared"]) };
    let (status, message) = refused(Call::new(&ground.socket(), &request).unwrap().last());
    assert!(matches!(status, 1 | 5), "process 1: {status} {message}");
    drop(container);
    is_unharmed(&ground, &daemon, open);
}

/// One container that lives queues, leaves and queues again.
fn in_and_out_of_the_queue() {
    const TIMES: usize = 2000;
    let config =
        "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 1\n\n[pool.shared]\nwait = \"1h\"\n";
    let ground = Ground::new(config);
    let (daemon, open) = attacked(&ground);
    let (holder, waiter) = (Container::start(), Container::start());
    granted(ground.ask(&holder, &["gpu=shared"]));
    let request = ground.request(&waiter, &["gpu=shared"]);
    for _ in 0..TIMES {
        let mut call = Call::new(&ground.socket(), &request).unwrap();
        let answer = call.next().unwrap();
        assert!(matches!(answer, Some(Answer::Queued { ahead: 0, .. })), "{answer:?}");
    }
    // The holder's is the one that stays.
    wait_until("the descriptors to be closed", || daemon.descriptors() == open + 1);
    drop(holder);
    ground.wait_for_leases(0);
    granted(ground.ask(&waiter, &["gpu=shared"]));
    drop(waiter);
    ground.wait_for_leases(0);
    is_unharmed(&ground, &daemon, open);
}

fn wrong_requests() {
    let ground = Ground::new(SHARES);
    let (daemon, open) = attacked(&ground);
    let container = Container::start();
    let right = serde_json::to_value(ground.request(&container, &["gpu=shared"])).unwrap();
    let with = |key: &str, value: Value| {
        let mut request = right.clone();
        request[key] = value;
        request.to_string()
    };
    let device = |class: &str, name: &str| json!([{"class": class, "name": name}]);
    let without = |key: &str| {
        let mut request = right.clone();
        request.as_object_mut().unwrap().remove(key);
        request.to_string()
    };
    let requests = [
        String::new(),
        "\0\0\0".into(),
        "[".repeat(200_000),
        "{\"version\":".repeat(20_000),
        format!("{{\"version\":{}}}", "9".repeat(100_000)),
        with("version", json!(VERSION + 1)),
        with("version", json!(-1)),
        without("id"),
        without("devices"),
        with("id", json!(7)),
        without("pid"),
        without("start_time"),
        with("pid", json!("1")),
        with("pid", json!(1.5)),
        with("pid", json!(1_u64 << 32)),
        with("start_time", json!(-1)),
        with("start_time", json!(null)),
        with("devices", json!([])),
        with("devices", json!(vec![json!({"class": "gpu", "name": "shared"}); 257])),
        with("nodes", json!(vec!["/dev/nvidia0"; 4097])),
        with("devices", device("gpu", "no-such-share")),
        with("devices", device("../../etc", "passwd")),
        with("devices", device("gpu", "shared-99")),
        with("devices", device("gpu", "\u{1b}[2J")),
        with("devices", device("gpu", &"x".repeat(100_000))),
        with("devices", device("gpu", "0")),
    ];
    for request in &requests {
        let (status, message) = said(&ground, format!("{request}\n").as_bytes());
        assert!(matches!(status, 1 | 3 | 6), "{status} {message}: {request:.200}");
        assert!(!message.contains('\u{1b}'), "{message:?}");
    }
    // Labels are written down with a lease, and shown: they are short.
    let labels = |key: &str, value: Value| with("labels", json!({ key: value }));
    for (request, what, most) in [
        (with("id", json!("x".repeat(250_000))), "id", 512),
        (with("bundle", json!(format!("/{}", "x".repeat(4096)))), "bundle", 4096),
        (labels("podman_name", json!("x".repeat(513))), "podman_name", 512),
        (labels("hostname_file", json!("x".repeat(4097))), "hostname_file", 4096),
        (labels("annotations", json!({"a": "x".repeat(16 << 10)})), "annotations", 16 << 10),
    ] {
        let message = format!("the request's {what} is longer than {most} bytes");
        assert_eq!(said(&ground, format!("{request}\n").as_bytes()), (1, message));
    }
    // Bytes that are no text.
    assert_eq!(said(&ground, b"\xff\xfe{}\n").0, 1);
    assert!(ground.leases().is_empty(), "{:?}", ground.leases());

    // What only names the container may be anything, and reaches neither a path nor a terminal.
    let mut named = ground.request(&container, &["gpu=shared-1"]);
    named.id = "../../../\u{1b}[2J\nname=\"x\" ".into();
    named.bundle = "/../..".into();
    named.labels.annotations.insert("io.podman.annotations.name\u{7}".into(), "\u{1b}]0;x\u{7}".into());
    named.labels.hostname_file = Some("/dev/zero".into());
    let answer = Call::new(&ground.socket(), &named).unwrap().last();
    granted(answer);
    let (status, message) = refused(ground.ask(&Container::start(), &["gpu=shared-1"]));
    assert_eq!(status, 3);
    assert!(!message.chars().any(char::is_control), "{message:?}");
    assert!(!daemon.log().chars().any(|c| c.is_control() && c != '\n'), "the log has control characters");
    assert_eq!(daemon.log().lines().filter(|line| line.starts_with("name=")).count(), 0);
    drop(container);
    ground.wait_for_leases(0);
    is_unharmed(&ground, &daemon, open);
}

fn a_shared_cgroup() {
    let ground = Ground::new(SHARES);
    let (daemon, open) = attacked(&ground);
    let both = Made { cgroup: Some(format!("divvy-shared-{}", std::process::id())), ..Made::default() };
    let pair = [Container::start_as(&both), Container::start_as(&both)];
    let callers = Container::start_as(&Made { no_cgroup: true, ..Made::default() });
    for container in [&pair[0], &pair[1], &callers] {
        let (status, message) = refused(ground.ask(container, &["gpu=shared"]));
        assert_eq!(status, 5, "{message}");
        assert!(ground.leases().is_empty());
    }
    // A share by name brings nothing that would have to be denied.
    for (number, container) in [&pair[0], &pair[1], &callers].into_iter().enumerate() {
        let name = format!("gpu=shared-{number}");
        assert_eq!(granted(ground.ask(container, &[&name]))[0].to_string(), name);
    }
    assert!(ground.leases().iter().all(|lease| lease.container.cgroup.is_none()));
    // The first of two ends: its lease does too, although the other one is still in their cgroup.
    let [first, second] = pair;
    drop(first);
    ground.wait_for_leases(2);
    drop((second, callers));
    ground.wait_for_leases(0);
    is_unharmed(&ground, &daemon, open);
}

fn devices_past_divvy() {
    let ground = Ground::new(SHARES);
    let (daemon, open) = attacked(&ground);
    let container = Container::start();
    for why in ["privileged", "host-dev", "nvidia-hook"] {
        let mut request = serde_json::to_value(ground.request(&container, &["gpu=shared-0"])).unwrap();
        request["unbound"] = json!(why);
        let mut call = Call::say(&ground.socket(), format!("{request}\n").as_bytes()).unwrap();
        match call.last() {
            Answer::Refused { status, message, .. } => assert!(matches!(status, 1 | 5), "{status} {message}"),
            answer => panic!("{why}: {answer:?}"),
        }
    }
    drop(container);
    is_unharmed(&ground, &daemon, open);
}
