//! Who waits, as everybody sees it: in `divvy ps`, and in the daemon's log.

use std::fs;
use std::process::{Command, Stdio};

use hooks::lease::Answer;
use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::away::fill;
use crate::client::{Call, granted};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::{Ground, SHARES, wait_until};
use crate::support::{divvy, run};

pub const TRIALS: [(&str, fn()); 3] = [
    ("who_waits_is_shown", who_waits_is_shown),
    ("no_room_to_say_who_waits", no_room_to_say_who_waits),
    ("who_waits_for_an_end_is_told", who_waits_for_an_end_is_told),
];

const ONE: &str =
    "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 1\n\n[pool.shared]\nwait = \"30m\"\n";

fn who_waits_is_shown() {
    let ground = Ground::new(ONE);
    let mut daemon = Daemon::start(&ground);
    let file = ground.state().join("waiting.json");
    let containers = Container::start_many(3);
    granted(ground.ask(&containers[0], &["gpu=shared"]));
    assert!(!file.exists(), "nobody waits");
    let mut first = queue(&ground, &containers[1], 0);
    let second = queue(&ground, &containers[2], 1);
    wait_for(&ground, &[(&containers[1], 0), (&containers[2], 1)]);
    let shown = &shown(&ground)[0];
    assert_eq!(shown["until"].as_u64().unwrap() - shown["since"].as_u64().unwrap(), 1800);
    assert_eq!((&shown["asked"], &shown["uid"]), (&serde_json::json!(["gpu=shared"]), &0.into()));
    let table = table(&ground);
    let below: Vec<_> = table.lines().filter(|line| line.starts_with("WAITING  container ")).collect();
    assert_eq!(below.len(), 2, "{table}");
    assert!(below[0].contains(", for shared, since ") && below[0].ends_with(", next in turn"), "{table}");
    assert!(below[1].ends_with(", 1 ahead"), "{table}");

    drop(second);
    wait_for(&ground, &[(&containers[1], 0)]);
    // A queue dies with its daemon, which may not have come to say so.
    daemon.kill();
    assert!(file.exists());
    wait_for(&ground, &[]);
    drop(first);
    daemon.start_again();
    wait_until("no file of the daemon before", || !file.exists());
    first = queue(&ground, &containers[1], 0);
    wait_for(&ground, &[(&containers[1], 0)]);
    containers[0].end();
    granted(first.last());
    wait_until("nobody to wait", || !file.exists());
    let _third = queue(&ground, &containers[2], 0);
    wait_for(&ground, &[(&containers[2], 0)]);
    assert!(daemon.stop().success());
    assert!(!file.exists(), "a daemon that leaves has no queue");

    let log = daemon.log();
    let of = |what: &str, container: &Container| {
        log.lines().filter(|line| line.contains(what) && line.contains(&container.id)).count()
    };
    assert_eq!((of(" queues ", &containers[1]), of(" queues ", &containers[2])), (2, 2), "{log}");
    assert_eq!((of("left the queue", &containers[1]), of("left the queue", &containers[2])), (0, 1), "{log}");
}

/// Nobody loses a place by it, and what is shown is so.
fn no_room_to_say_who_waits() {
    let ground = Ground::new(ONE);
    let state = ground.state();
    mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), Some("size=96k,mode=755")).unwrap();
    ground.plan(ONE);
    let _daemon = Daemon::start(&ground);
    let containers = Container::start_many(4);
    granted(ground.ask(&containers[0], &["gpu=shared"]));
    let mut first = queue(&ground, &containers[1], 0);
    wait_for(&ground, &[(&containers[1], 0)]);
    let filler = state.join("filler");
    fill(&filler);
    let _second = queue(&ground, &containers[2], 1);
    wait_for(&ground, &[]);
    fs::remove_file(filler).unwrap();
    let _third = queue(&ground, &containers[3], 2);
    wait_for(&ground, &[(&containers[1], 0), (&containers[2], 1), (&containers[3], 2)]);
    containers[0].end();
    granted(first.last());
    wait_for(&ground, &[(&containers[2], 0), (&containers[3], 1)]);
}

/// Else a hook whose patience is shorter than that wait would take the daemon for one that is away.
fn who_waits_for_an_end_is_told() {
    let ground = Ground::new(SHARES);
    let _daemon = Daemon::start(&ground);
    let mut ending = Container::start();
    granted(ground.ask(&ending, &["gpu=shared-0"]));
    let mut left_over = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    ending.take_in(left_over.id());
    ending.kill();
    let next = Container::start();
    let request = ground.request(&next, &["gpu=shared-0"]);
    let mut call = Call::new(&ground.socket(), &request).unwrap();
    let told = call.next().unwrap();
    drop(left_over.stdin.take());
    left_over.wait().unwrap();
    assert_eq!(told, Some(Answer::Queued { seconds: 5, ahead: 0 }));
    assert_eq!(shown(&ground).len(), 0, "it is in no queue");
    wait_until("the lease to end", || ground.leases().iter().all(|lease| lease.container.id != ending.id));
    granted(ground.ask(&next, &["gpu=shared-0"]));
}

/// A container that has been told that it waits behind so many.
#[track_caller]
fn queue(ground: &Ground, container: &Container, behind: u32) -> Call {
    let request = ground.request(container, &["gpu=shared"]);
    let mut call = Call::new(&ground.socket(), &request).unwrap();
    let answer = call.next().unwrap();
    assert!(matches!(answer, Some(Answer::Queued { seconds: 1800, ahead }) if ahead == behind), "{answer:?}");
    call
}

/// Waits until these are the ones that `divvy ps` has waiting, each behind so many.
#[track_caller]
fn wait_for(ground: &Ground, expected: &[(&Container, u64)]) {
    let expected: Vec<_> = expected.iter().map(|(container, ahead)| (container.id.clone(), *ahead)).collect();
    wait_until(&format!("{expected:?} to wait"), || {
        let shown = shown(ground);
        let shown =
            shown.iter().map(|one| (one["id"].as_str().unwrap().to_owned(), one["ahead"].as_u64().unwrap()));
        shown.collect::<Vec<_>>() == expected
    });
}

fn shown(ground: &Ground) -> Vec<Value> {
    let (status, out, errors) = run(divvy(&["ps", "--format=json", "--state-dir"]).arg(ground.state()));
    assert_eq!(status, 0, "{errors}");
    let shown: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(shown["warnings"], serde_json::json!([]));
    shown["waiting"].as_array().unwrap().clone()
}

fn table(ground: &Ground) -> String {
    let (status, out, errors) = run(divvy(&["ps", "--quiet", "--state-dir"]).arg(ground.state()));
    assert_eq!(status, 0, "{errors}");
    out
}
