//! Callers that are not root, and what of it is theirs.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use hooks::lease::Answer;
use nix::mount::{MsFlags, mount};

use crate::client::{granted, line, refused};
use crate::container::{Container, Made, helper};
use crate::daemon::Daemon;
use crate::ground::{Ground, SHARES};

pub const TRIALS: [(&str, fn()); 3] = [
    ("whose_container_it_is", whose_container_it_is),
    ("what_a_user_may_hold", what_a_user_may_hold),
    ("a_crowd_of_one_user", a_crowd_of_one_user),
];

pub const WITH_SUBUID: [(&str, fn()); 1] = [("a_users_other_ids", a_users_other_ids)];

/// Nobody's on any machine.
const ANA: u32 = 64_901;
const BEN: u32 = 64_902;

fn of(user: u32) -> Made {
    Made { user: Some(user), no_cgroup: true, ..Made::default() }
}

/// What a user is answered who asks for a container, be it whoever's.
#[track_caller]
fn ask_as(user: u32, ground: &Ground, container: &Container, devices: &[&str]) -> Answer {
    let mut command = helper("as-caller");
    command.arg(ground.socket()).uid(user).gid(user);
    let mut caller = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    caller.stdin.take().unwrap().write_all(&line(&ground.request(container, devices))).unwrap();
    let output = caller.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(said.lines().last().unwrap_or_else(|| panic!("{:?}", output.status))).unwrap()
}

fn whose_container_it_is() {
    let ground = Ground::new(SHARES);
    let _daemon = Daemon::start(&ground);
    let (roots, anas, bens) =
        (Container::start(), Container::start_as(&of(ANA)), Container::start_as(&of(BEN)));
    // A process of Ana's among the host's mounts is no container, whoever asks.
    let process = Container::start_as(&Made { no_mount_namespace: true, no_cgroup: true, ..Made::default() });
    for (user, container) in [(ANA, &roots), (ANA, &bens), (BEN, &anas), (ANA, &process), (BEN, &roots)] {
        let (status, message) = refused(ask_as(user, &ground, container, &["gpu=shared-0"]));
        assert_eq!(status, 1, "{message}");
        refused(ask_as(user, &ground, container, &["gpu=shared"]));
    }
    assert!(ground.leases().is_empty(), "{:?}", ground.leases());
    assert_eq!(granted(ask_as(ANA, &ground, &anas, &["gpu=shared-0"])).len(), 1);
    // A pool too: her nodes are bind mounts, which her root cannot make again.
    assert_eq!(granted(ask_as(BEN, &ground, &bens, &["gpu=shared"])).len(), 1);
    let mut users: Vec<u32> = ground.leases().iter().map(|lease| lease.container.uid).collect();
    users.sort_unstable();
    assert_eq!(users, [ANA, BEN]);
    // Root may ask for anybody, and the lease stays the user's.
    granted(ground.ask(&anas, &["gpu=shared-0"]));
    let other = Container::start_as(&of(ANA));
    granted(ground.ask(&other, &["gpu=shared"]));
    assert!(ground.leases().iter().all(|lease| [ANA, BEN].contains(&lease.container.uid)));
    // None of hers denies root's a share by its name, once she has left.
    let (status, message) = refused(ground.ask(&roots, &["gpu=shared-0"]));
    assert_eq!(status, 3, "{message}");
    assert!(message.contains(&ANA.to_string()), "{message}");
    drop((anas, other, bens));
    ground.wait_for_leases(0);
    granted(ground.ask(&roots, &["gpu=shared-0"]));
}

fn what_a_user_may_hold() {
    let config = format!("{SHARES}\n[users.\"{ANA}\"]\nshares = 2\n\n[users.\"*\"]\nshares = 0\n");
    let ground = Ground::new(&config);
    let _daemon = Daemon::start(&ground);
    let anas: Vec<Container> = (0..3).map(|_| Container::start_as(&of(ANA))).collect();
    granted(ask_as(ANA, &ground, &anas[0], &["gpu=shared"]));
    granted(ask_as(ANA, &ground, &anas[1], &["gpu=shared"]));
    // Who asks again holds no more than before.
    granted(ask_as(ANA, &ground, &anas[1], &["gpu=shared"]));
    let (status, message) = refused(ask_as(ANA, &ground, &anas[2], &["gpu=shared"]));
    assert!(matches!(status, 1 | 3), "{status} {message}");
    // It is the container's user who is counted, not the caller.
    refused(ground.ask(&anas[2], &["gpu=shared-9"]));
    refused(ask_as(BEN, &ground, &Container::start_as(&of(BEN)), &["gpu=shared"]));
    assert_eq!(ground.leases().len(), 2);
    let root = Container::start();
    granted(ground.ask(&root, &["gpu=shared"]));
    let mut anas = anas.into_iter();
    drop(anas.next());
    ground.wait_for_leases(2);
    granted(ask_as(ANA, &ground, &anas.last().unwrap(), &["gpu=shared"]));
}

/// Who has subordinate ids can start containers under each of them.
fn a_users_other_ids() {
    const ANAS: [u32; 3] = [640_000, 640_001, 640_009];
    const BENS: u32 = 640_010;
    const ROOTS: u32 = 650_000;
    let config = format!(
        "{SHARES}\n[users.\"{ANA}\"]\nshares = 2\n\n[users.\"{BEN}\"]\nshares = 1\n\n[users.\"*\"]\nshares = 0\n"
    );
    let ground = Ground::new(&config);
    let file = ground.path("subuid");
    std::fs::write(&file, format!("{ANA}:{}:10\nroot:{ROOTS}:10\n", ANAS[0])).unwrap();
    let nothing: Option<&str> = None;
    // In the mount namespace of these tests.
    mount(Some(&file), "/etc/subuid", nothing, MsFlags::MS_BIND, nothing).unwrap();
    let _daemon = Daemon::start(&ground);
    let ask = |user: u32| {
        let container = Container::start_as(&of(user));
        (ask_as(user, &ground, &container, &["gpu=shared"]), container)
    };
    let refused_at = |user: u32| refused(ask(user).0).0;
    let held = [ask(ANAS[0]), ask(ANAS[2])];
    held.iter().for_each(|(answer, _)| drop(granted(answer.clone())));
    assert!(ground.leases().iter().all(|lease| lease.container.uid == ANA), "{:?}", ground.leases());
    for user in [ANA, ANAS[1], ANAS[0]] {
        assert_eq!(refused_at(user), 3, "{user}");
    }
    // Root's other ids are not root, and those past the range are nobody's.
    for user in [ROOTS, BENS] {
        assert_eq!(refused_at(user), 1, "{user}");
    }
    // One of hers may no more ask for another's container than she for its.
    let hers = Container::start_as(&of(ANA));
    for (user, container) in [(ANAS[1], &hers), (ANA, &held[0].1)] {
        assert_eq!(refused(ask_as(user, &ground, container, &["gpu=shared"])).0, 1, "{user}");
    }
    // The file is read anew.
    std::fs::write(&file, format!("{ANA}:{}:10\n{BEN}:{BENS}:1\n", ANAS[0])).unwrap();
    let bens = ask(BENS);
    granted(bens.0.clone());
    assert_eq!(refused_at(BEN), 3);
    drop(held);
    ground.wait_for_leases(1);
    granted(ask_as(ANA, &ground, &hers, &["gpu=shared"]));
    nix::mount::umount("/etc/subuid").unwrap();
}

fn a_crowd_of_one_user() {
    let ground = Ground::new(SHARES);
    let daemon = Daemon::start(&ground);
    let mut command = helper("as-caller");
    command.arg(ground.socket()).arg("100").uid(ANA).gid(ANA);
    let mut anas = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let others = (Container::start(), Container::start_as(&of(BEN)));
    // These come after some of the crowd, and are served.
    granted(ground.ask(&others.0, &["gpu=shared"]));
    granted(ask_as(BEN, &ground, &others.1, &["gpu=shared"]));
    let mut left = String::new();
    let mut said = BufReader::new(anas.stdout.take().unwrap());
    said.read_line(&mut left).unwrap();
    assert_eq!(left, "connected\n");
    granted(ground.ask(&others.0, &["gpu=shared"]));
    writeln!(anas.stdin.as_ref().unwrap(), "count").unwrap();
    left.clear();
    said.read_line(&mut left).unwrap();
    assert_eq!(left.trim(), "32");
    // She herself has to wait for her own.
    anas.kill().unwrap();
    anas.wait().unwrap();
    let hers = Container::start_as(&of(ANA));
    crate::ground::wait_until("the crowd to be forgotten", || daemon.descriptors() < 32);
    granted(ask_as(ANA, &ground, &hers, &["gpu=shared"]));
}
