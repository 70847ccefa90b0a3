//! A daemon that goes away and comes back: what it finds again, what callers notice, and where it refuses to start.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::atomic::{AtomicUsize, Ordering};

use hooks::lease::{LEASES, Lease};
use nix::mount::{MsFlags, mount};
use serde_json::json;

use crate::client::{ask_until_answered, granted, refused};
use crate::container::{Container, Made};
use crate::daemon::Daemon;
use crate::ground::{Ground, SHARES, wait_until};
use crate::random::Random;
use crate::support::{divvy, run};

pub const TRIALS: [(&str, fn()); 6] = [
    ("what_runs_is_taken_up", what_runs_is_taken_up),
    ("the_same_cgroup_again", the_same_cgroup_again),
    ("restarts_under_load", restarts_under_load),
    ("a_full_disk", a_full_disk),
    ("one_daemon_in_one_place", one_daemon_in_one_place),
    ("places_that_are_not_roots_alone", places_that_are_not_roots_alone),
];

fn what_runs_is_taken_up() {
    let ground = Ground::new(SHARES);
    let mut daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(4);
    for (number, container) in containers.iter().enumerate() {
        granted(ground.ask(container, &[&format!("gpu=shared-{number}")]));
    }
    let before = ground.leases();
    daemon.kill();
    // Nobody is told, and nothing is written: they run on.
    assert_eq!(ground.leases().len(), 4);
    // One ends meanwhile; one's process id is another's by now, and its cgroup nobody's; one is of before a reboot,
    // which a cgroup of the same name does not survive.
    containers[0].kill();
    for (number, changes) in [
        (1, [("start_time", json!(1)), ("cgroup", json!("/sys/fs/cgroup/divvy-nobody"))]),
        (2, [("start_time", json!(1)), ("boot_id", json!("00000000-0000-0000-0000-000000000000"))]),
    ] {
        let path = Lease::path(&ground.state().join(LEASES), containers[number].mount_namespace());
        let mut lease: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for (key, value) in changes {
            lease["container"][key] = value;
        }
        fs::write(path, lease.to_string()).unwrap();
    }
    // One that was never put in its place; and what may be the lease of a container that runs: then nobody is served.
    fs::write(ground.state().join(LEASES).join(".3.json.tmp"), "{\"version\":1").unwrap();
    for text in ["{", "", "{\"version\":2}"] {
        let path = ground.state().join(LEASES).join("1.json");
        fs::write(&path, text).unwrap();
        let (status, _, errors) = run(divvy(&["serve", "--state-dir"]).arg(ground.state()));
        assert_eq!(status, 1, "{errors}");
        assert!(errors.contains(&format!("error: cannot read the lease {}: ", path.display())), "{errors}");
        assert!(errors.contains("hint: serve with the release that wrote it"), "{errors}");
        assert!(!ground.socket().exists());
        fs::remove_file(path).unwrap();
    }
    daemon.start_again();
    ground.wait_for_leases(1);
    assert_eq!(
        ground.leases()[0],
        *before.iter().find(|lease| lease.container.pid == containers[3].pid()).unwrap()
    );
    assert_eq!(granted(ground.ask(&containers[3], &["gpu=shared-3"])).len(), 1);
    let other = Container::start();
    let (status, message) = refused(ground.ask(&other, &["gpu=shared-3"]));
    assert_eq!(status, 3);
    assert!(message.contains("shared-3 is held by"), "{message}");
    granted(ground.ask(&other, &["gpu=shared-0"]));
    containers.truncate(3);
    ground.wait_for_leases(1);
    assert!(daemon.stop().success());
    assert!(!ground.socket().exists(), "it leaves the socket that it made");
    assert_eq!(ground.leases().len(), 1);
}

/// An engine starts a container again in a cgroup of the same name. It finds free what the one before had, although
/// nobody has seen that cgroup empty.
fn the_same_cgroup_again() {
    let made = Made { cgroup: Some(format!("divvy-again-{}", std::process::id())), ..Made::default() };
    for is_away in [false, true] {
        let ground = Ground::new(SHARES);
        let mut daemon = Daemon::start(&ground);
        let mut container = Container::start_as(&made);
        for _ in 0..5 {
            granted(ground.ask(&container, &["gpu=shared-0"]));
            if is_away {
                daemon.kill();
            }
            container.kill();
            let next = Container::start_as(&made);
            if is_away {
                daemon.start_again();
            }
            granted(ground.ask(&next, &["gpu=shared-0"]));
            assert_eq!(ground.leases().len(), 1);
            container = next;
        }
        drop(container);
        ground.wait_for_leases(0);
    }
}

/// Forty containers queue for four shares, run for as long as it takes to look, and end, while the daemon is killed and
/// asked to leave. Each of them is granted one, and nobody is refused.
fn restarts_under_load() {
    const QUEUE: usize = 40;
    let config =
        "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 4\n\n[pool.shared]\nwait = \"1h\"\n";
    for is_held in [false, true] {
        let ground = Ground::new(config);
        let mut daemon = if is_held { Daemon::start_on_held_socket(&ground) } else { Daemon::start(&ground) };
        let mut random = Random::new(40);
        let served = AtomicUsize::new(0);
        let containers = Container::start_many(QUEUE);
        std::thread::scope(|scope| {
            for mut container in containers {
                let (ground, served) = (&ground, &served);
                scope.spawn(move || {
                    let request = ground.request(&container, &["gpu=shared"]);
                    let (answer, _) = ask_until_answered(&ground.socket(), &request);
                    let devices = granted(answer);
                    let leases = ground.leases();
                    assert!(leases.len() <= 4, "{} leases of 4 shares", leases.len());
                    let own = leases.iter().find(|lease| lease.container.pid == container.pid());
                    assert_eq!(own.unwrap().devices[0].name, devices[0]);
                    container.kill();
                    served.fetch_add(1, Ordering::SeqCst);
                });
            }
            let mut seen = 0;
            while seen < QUEUE {
                wait_until("the next to be served", || served.load(Ordering::SeqCst) > seen);
                seen = served.load(Ordering::SeqCst);
                if random.once_in(4) {
                    assert!(daemon.stop().success());
                    daemon.start_again();
                } else if random.once_in(3) {
                    daemon.kill();
                    daemon.start_again();
                }
            }
        });
        ground.wait_for_leases(0);
    }
}

fn a_full_disk() {
    let ground = Ground::new(SHARES);
    let state = ground.state();
    let size = Some("size=96k,mode=755");
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    ground.plan("[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 8\n");
    let mut daemon = Daemon::start(&ground);
    let mut containers = Container::start_many(4);
    granted(ground.ask(&containers[0], &["gpu=shared-0"]));
    granted(ground.ask(&containers[1], &["gpu=shared-1"]));
    let before = sorted(ground.leases());
    let filler = state.join("filler");
    fill(&filler);

    let (status, message) = refused(ground.ask(&containers[2], &["gpu=shared-2"]));
    assert_eq!(status, 1);
    assert!(message.contains("No space left on device"), "{message}");
    assert_eq!(sorted(ground.leases()), before);
    // Who has a lease has it still, and is told so.
    granted(ground.ask(&containers[0], &["gpu=shared-0"]));
    assert_eq!(sorted(ground.leases()), before);
    // Whoever comes next does not find the one taken that could not be written.
    let (status, _) = refused(ground.ask(&containers[3], &["gpu=shared-2"]));
    assert_eq!(status, 1);
    // An end needs no room.
    containers[1].kill();
    ground.wait_for_leases(1);
    fill(&filler);
    // A start needs none either.
    daemon.kill();
    daemon.start_again();
    assert_eq!(ground.leases().len(), 1);
    fill(&filler);
    assert_eq!(refused(ground.ask(&containers[2], &["gpu=shared-2"])).0, 1);

    fs::remove_file(filler).unwrap();
    granted(ground.ask(&containers[2], &["gpu=shared-2"]));
    assert_eq!(refused(ground.ask(&containers[3], &["gpu=shared-2"])).0, 3);
    assert_eq!(ground.leases().len(), 2);
    let names = fs::read_dir(state.join(LEASES)).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.map(|name| name.into_string().unwrap()).all(|name| !name.starts_with('.')));
}

fn sorted(mut leases: Vec<Lease>) -> Vec<Lease> {
    leases.sort_by_key(|lease| lease.container.pid);
    leases
}

/// Takes all room that is left, to the last byte.
pub fn fill(path: &std::path::Path) {
    let mut file = File::options().append(true).create(true).open(path).unwrap();
    for size in [1 << 10, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
}

fn one_daemon_in_one_place() {
    let ground = Ground::new(SHARES);
    let mut daemon = Daemon::start(&ground);
    let container = Container::start();
    granted(ground.ask(&container, &["gpu=shared"]));
    let second = || run(divvy(&["serve", "--state-dir"]).arg(ground.state()));
    for _ in 0..2 {
        let (status, _, errors) = second();
        assert_eq!(status, 1, "{errors}");
        assert!(errors.contains("another divvy serve"), "{errors}");
        // The first goes on, on its socket.
        granted(ground.ask(&container, &["gpu=shared"]));
        daemon.kill();
        daemon.start_again();
    }
    assert_eq!(ground.leases().len(), 1);
}

fn places_that_are_not_roots_alone() {
    let ground = Ground::new(SHARES);
    let state = ground.state();
    fs::create_dir(state.join(LEASES)).unwrap();
    let refuses = || {
        let (status, _, errors) = run(divvy(&["serve", "--state-dir"]).arg(&state));
        assert_eq!(status, 1, "{errors}");
        assert!(errors.contains("others than root may write to"), "{errors}");
        assert!(errors.contains("hint: "), "{errors}");
        assert!(!ground.socket().exists());
    };
    for place in [state.clone(), state.join(LEASES)] {
        for mode in [0o777, 0o775, 0o757] {
            fs::set_permissions(&place, Permissions::from_mode(mode)).unwrap();
            refuses();
        }
        fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
        chown(&place, Some(64_901), None).unwrap();
        refuses();
        chown(&place, Some(0), None).unwrap();
    }
    // What stands in the socket's place and is none, is not removed.
    fs::write(ground.socket(), "mine").unwrap();
    let (status, _, errors) = run(divvy(&["serve", "--state-dir"]).arg(&state));
    assert_eq!((status, fs::read_to_string(ground.socket()).unwrap().as_str()), (1, "mine"), "{errors}");
    fs::remove_file(ground.socket()).unwrap();
    let container = Container::start();
    let _daemon = Daemon::start(&ground);
    granted(ground.ask(&container, &["gpu=shared"]));
    // Open to all, although nobody else may write beside it.
    assert_eq!(fs::metadata(ground.socket()).unwrap().permissions().mode() & 0o777, 0o666);
    let lease = Lease::path(&state.join(LEASES), container.mount_namespace());
    assert_eq!(fs::metadata(lease).unwrap().permissions().mode() & 0o777, 0o644);
}
