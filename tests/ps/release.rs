//! What `release` says and ends.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::ground::{GPU, Ground, as_nobody, used};

pub fn refuses_while_the_container_lives() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    for (engine, uid, bundle, hint) in [
        ("podman", 0, "/b", "`podman stop web` ends it; "),
        ("docker", 4_000_000, "/b", "`docker stop web` ends it; "),
        ("kubernetes", 0, "/b", "`crictl stop 3f2a5d1c0b9e8f7a"),
        ("containerd", 0, "/run/tasks/k8s.io/web", "`ctr --namespace k8s.io task kill --signal SIGTERM 3f2a"),
        ("podman", 4_000_000, "/b", "`podman stop web` as user 4000000 ends it; "),
    ] {
        ground.lease(4_000_000_001, web, |lease| {
            lease["container"]["engine"] = engine.into();
            lease["container"]["uid"] = uid.into();
            lease["container"]["bundle"] = bundle.into();
        });
        for device in ["shared-0", "gpu=shared-0", "nvidia.com/gpu=shared-0"] {
            let (status, out, errors) = ground.run(ground.command(&["release", device]));
            assert_eq!((status, out.as_str()), (1, ""), "{errors}");
            let user = if uid == 0 { "root" } else { "4000000" };
            let error = format!(
                "error: {device} is held by {engine} container web (3f2a5d1c0b9e, since Nov 14 22:13, user {user}), which runs\nhint: {hint}"
            );
            // The tests may run as anybody.
            let error =
                if nix::unistd::getuid().is_root() { error } else { error.lines().next().unwrap().into() };
            assert!(errors.starts_with(&error), "{errors}");
            assert!(errors.ends_with(&format!("; `divvy release {device} --kill` kills it\n")), "{errors}");
        }
    }
    assert!(Path::new(&format!("/proc/{web}")).exists() && ground.lease_path(4_000_000_001).exists());
}

pub fn kills_and_waits() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    let _daemon = ground.daemon();
    let path = ground.lease_path(4_000_000_001);
    let mut killed = ground.started.pop().unwrap();
    // What the daemon does when the first process is gone.
    let daemon = std::thread::spawn(move || {
        let status = killed.wait().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(200));
        fs::remove_file(path).unwrap();
        status
    });
    let (status, out, errors) = ground.run(ground.command(&["release", "shared-0", "--kill"]));
    assert_eq!((status, errors.as_str()), (0, ""));
    assert_eq!(out, "shared-0 is free: podman container web is gone\n");
    assert!(!ground.lease_path(4_000_000_001).exists());
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&daemon.join().unwrap()), Some(9));
}

/// What left the pid namespace's reach goes with it: here, a container that shares the host's.
pub fn kills_all_in_its_mount_namespace() {
    let mut ground = Ground::new();
    let script = "exec 3<&0; cat <&3 >/dev/null & echo $!; wait";
    let mut first = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(first.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let namespace = fs::metadata(format!("/proc/{}/ns/mnt", first.id())).unwrap().ino();
    let (stranger, _) = ground.start();
    ground.lease(namespace, first.id(), |_| {});
    // Each way: its memory is that of the second process, and killed are both.
    ground.processes(&json!({GPU: {"compute": [used(line.trim().parse().unwrap(), 9)]}}));
    assert_eq!(ground.json(&[])["rows"][0]["used_bytes"], 9 << 20);
    let end = first.stdin.take().unwrap();
    let waits = std::thread::spawn(move || first.wait().unwrap());
    let (status, out, errors) = ground.run(ground.command(&["release", "shared-0", "--kill"]));
    assert_eq!((status, errors.as_str()), (0, ""), "{out}");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&waits.join().unwrap()), Some(9));
    // It was sent its signal, and may not have got it yet.
    let has_ended = || {
        let second = fs::read_to_string(format!("/proc/{}/stat", line.trim()));
        second.map_or(true, |stat| stat.contains(") Z ") || stat.contains(") X "))
    };
    for left in (0..500).rev() {
        if has_ended() {
            break;
        }
        assert!(left > 0, "it lives on");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert!(Path::new(&format!("/proc/{stranger}")).exists());
    drop(end);
}

pub fn of_what_is_gone() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    // Its number went to another process, which must live.
    ground.lease(4_000_000_001, web, |lease| lease["container"]["start_time"] = 1.into());
    for args in [&["release", "shared-0"][..], &["release", "shared-0", "--kill"]] {
        let (status, out, errors) = ground.run(ground.command(args));
        assert_eq!((status, errors.as_str()), (0, ""));
        assert_eq!(
            out,
            "podman container web is gone; the daemon is not there, and frees shared-0 when it starts\n"
        );
    }
    assert!(ground.started[0].try_wait().unwrap().is_none());
    assert!(ground.lease_path(4_000_000_001).exists(), "leases are the daemon's");
}

pub fn of_what_nobody_holds() {
    let ground = Ground::new();
    let mut plan = ground.place.json("state/plan.json");
    plan["devices"][1]["leased"] = true.into();
    plan["devices"][2]["leased"] = false.into();
    plan["pools"] = json!([{"class": "gpu", "name": "shared", "devices": ["shared-0", "shared-1"],
        "wait_seconds": 0, "order": "spread", "per_container": 1}]);
    fs::write(ground.place.path("state/plan.json"), plan.to_string()).unwrap();
    for (device, status, said) in [
        ("shared-1", 0, "shared-1 is free: no container holds it\n"),
        (
            "shared-2",
            2,
            "error: shared-2 is not leased: any number of containers may have it\nhint: end its containers with their engine; `divvy ps` shows what uses it\n",
        ),
        ("shared", 2, "error: shared is a pool\nhint: name one of its devices: shared-0, shared-1\n"),
        (
            "shared-9",
            2,
            "error: there is no device shared-9\nhint: `divvy ps` shows what is held, `divvy list` all\n",
        ),
        (
            "gpu.shared=shared-1",
            2,
            "error: there is no device gpu.shared=shared-1\nhint: `divvy ps` shows what is held, `divvy list` all\n",
        ),
    ] {
        let (told, out, errors) = ground.run(ground.command(&["release", device]));
        assert_eq!((told, out + &errors), (status, said.to_owned()));
    }
    fs::remove_file(ground.place.path("state/plan.json")).unwrap();
    let (status, _, errors) = ground.run(ground.command(&["release", "shared-1"]));
    assert_eq!(status, 2);
    assert!(errors.starts_with("error: shared-1 is not held, and there is no plan that tells "), "{errors}");
}

/// The engine's commands take its name, and this one what it holds.
pub fn of_a_container() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |lease| {
        let second =
            json!({"class": "gpu.shared", "name": "shared-1", "uuid": GPU, "is_share": true, "pool": null});
        lease["devices"].as_array_mut().unwrap().push(second);
    });
    for typed in ["web", "3f2a5d1c0b9e"] {
        let (status, out, errors) = ground.run(ground.command(&["release", typed]));
        assert_eq!((status, out.as_str()), (2, ""));
        assert_eq!(
            errors,
            format!(
                "error: there is no device {typed}\n\
                 hint: {typed} holds shared-0, gpu.shared=shared-1: divvy release shared-0\n"
            )
        );
    }
    // A device that is called like a container is the device.
    ground.lease(4_000_000_001, web, |lease| lease["container"]["name"] = "shared-2".into());
    let (status, out, _) = ground.run(ground.command(&["release", "shared-2"]));
    assert_eq!((status, out.as_str()), (0, "shared-2 is free: no container holds it\n"));
}

pub fn only_root_and_the_owner_kill() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    let kill = ground.command(&["release", "shared-0", "--kill"]);
    let (status, out, errors) = as_nobody(&ground, &kill);
    assert_eq!((status, out.as_str()), (1, ""));
    assert_eq!(
        errors,
        "error: cannot kill podman container web: Operation not permitted (os error 1)\nhint: run as root, or as the user that it is of\n"
    );
    assert!(ground.started[0].try_wait().unwrap().is_none());
}
