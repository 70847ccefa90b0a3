//! Black box: who has what, who was refused, and what `release` ends: leases of real processes, a plan of a simulated
//! host, and a real libnvidia-ml interface that counts their memory.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod ground;
mod release;
#[path = "../support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use ground::{GPU, Ground, ID, SINCE, as_nobody, used, user};
use libtest_mimic::{Arguments, Trial};
use serde_json::{Value, json};
use support::facts;
use support::needs::{self, Need};

fn main() {
    let tests: [(&'static str, fn()); 18] = [
        ("a_row_for_each_leased_device", a_row_for_each_leased_device),
        ("what_uses_a_gpu_without_a_lease", what_uses_a_gpu_without_a_lease),
        ("json_has_all_of_it", json_has_all_of_it),
        ("mig_devices_have_processes_of_their_own", mig_devices_have_processes_of_their_own),
        ("without_a_driver_all_but_memory", without_a_driver_all_but_memory),
        ("lists_that_nvml_does_not_have", lists_that_nvml_does_not_have),
        ("nothing_is_held", nothing_is_held),
        ("a_lease_whose_container_is_gone_has_ended", a_lease_whose_container_is_gone_has_ended),
        ("a_name_that_moved_is_told", a_name_that_moved_is_told),
        ("names_are_not_obeyed", names_are_not_obeyed),
        ("watch_shows_changes_and_ends_with_its_reader", watch_shows_changes_and_ends_with_its_reader),
        ("refusals_the_callers_own_first", refusals_the_callers_own_first),
        ("release_refuses_while_the_container_lives", release::refuses_while_the_container_lives),
        ("release_kills_and_waits", release::kills_and_waits),
        ("release_of_what_is_gone", release::of_what_is_gone),
        ("release_of_what_nobody_holds", release::of_what_nobody_holds),
        ("release_of_a_container", release::of_a_container),
        ("a_damaged_lease_is_named", a_damaged_lease_is_named),
    ];
    let mut trials: Vec<Trial> =
        tests.into_iter().map(|(name, test)| needs::trial(name, &[], test)).collect();
    trials.push(needs::trial("everybody_sees_the_same", &[Need::Root], everybody_sees_the_same));
    let name = "release_kills_all_in_its_mount_namespace";
    trials.push(needs::trial(name, &[Need::Root, Need::Mounts], release::kills_all_in_its_mount_namespace));
    trials.push(needs::trial(
        "only_root_and_the_owner_kill",
        &[Need::Root],
        release::only_root_and_the_owner_kill,
    ));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn a_row_for_each_leased_device() {
    let mut ground = Ground::new();
    let (web, in_web) = ground.start();
    let (db, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    ground.lease(4_000_000_002, db, |lease| {
        lease["container"]["engine"] = "docker".into();
        lease["container"]["name"] = "database".into();
        lease["container"]["id"] = "77".into();
        lease["container"]["uid"] = 4_000_000.into();
        lease["devices"][0]["name"] = "shared-3".into();
        lease["devices"][0]["pool"] = "shared".into();
        lease["denied_by"] = "cgroup-v1".into();
    });
    // In two lists at once, and one that the driver does not count.
    ground.processes(&json!({GPU: {
        "compute": [used(web, 300), used(in_web, 212)],
        "graphics": [used(web, 300), {"pid": in_web, "memory": null}],
        "mps": null,
    }}));
    let _daemon = ground.daemon();
    let (status, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!(status, 0, "{errors}");
    let out = out.replace(&web.to_string(), "PID").replace(&db.to_string(), "PID");
    let out: Vec<String> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        out,
        [
            "DEVICE GPU MODE LIMITED BY HOLDER ID PID USER SINCE MEMORY",
            "shared-0 0 L4 time-slice nothing podman web 3f2a5d1c0b9e PID root Nov 14 22:13 512MiB",
            "shared-3 0 L4 time-slice nothing docker database 77 PID 4000000 Nov 14 22:13 0MiB v1",
        ]
    );
    assert_eq!(
        errors,
        "note: v1: other devices of the pool are denied by cgroup v1, which holds until something writes that container's devices anew\n"
    );
}

fn what_uses_a_gpu_without_a_lease() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    let (stranger, in_stranger) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    ground.processes(&json!({GPU: {"compute": [used(web, 1), used(stranger, 20), used(in_stranger, 30)]}}));
    let _daemon = ground.daemon();
    let (status, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!(status, 0, "{errors}");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    for (line, pid, command, memory) in
        [(lines[2], stranger, "sh", "20MiB"), (lines[3], in_stranger, "cat", "30MiB")]
    {
        let words: Vec<&str> = line.split_whitespace().collect();
        // No device of divvy's is the whole GPU, which is shared.
        let user = user();
        let expected = ["-", "0", "L4", "-", "-", command, "-", &pid.to_string(), &user];
        assert_eq!(words[..expected.len()], expected, "{line}");
        assert_eq!(words[words.len() - 3..], [memory, "no", "lease"], "{line}");
    }
    assert!(errors.starts_with("note: no lease: "), "{errors}");
    let rows = ground.json(&[]);
    let since = rows["rows"][1]["since"].as_u64().unwrap();
    let started = fs::metadata(format!("/proc/{stranger}")).unwrap().mtime().unsigned_abs();
    assert!(since.abs_diff(started) <= 2, "{since} and {started}");
}

fn json_has_all_of_it() {
    let mut ground = Ground::new();
    let (web, in_web) = ground.start();
    ground.lease(4_000_000_001, web, |lease| {
        let second =
            json!({"class": "gpu", "name": "shared-1", "uuid": GPU, "is_share": true, "pool": "shared"});
        lease["devices"].as_array_mut().unwrap().push(second);
    });
    ground.processes(&json!({GPU: {"compute": [used(in_web, 7)]}}));
    let shown = ground.json(&[]);
    assert_eq!((&shown["daemon"], &shown["warnings"]), (&json!(false), &json!([])));
    let row = json!({
        "lease": true,
        "cdi_name": "nvidia.com/gpu=shared-0",
        "uuid": GPU,
        "gpu": 0,
        "mig": null,
        "model": "NVIDIA L4",
        "type": "share",
        "mode": "time-slice",
        "memory_bytes": shown["rows"][0]["memory_bytes"],
        "sms": shown["rows"][0]["sms"],
        "limits": {"memory": null, "sms": null},
        "pool": null,
        "engine": "podman",
        "name": "web",
        "id": ID,
        "pid": web,
        "command": null,
        "uid": 0,
        "user": "root",
        "since": SINCE,
        "ending": false,
        "ended": false,
        "moved": false,
        "denied_by": null,
        "used_bytes": 7 << 20,
    });
    assert_eq!(shown["rows"][0], row);
    // Of one container on one GPU there is one count.
    let second = &shown["rows"][1];
    assert_eq!((&second["pool"], &second["used_bytes"]), (&json!("shared"), &json!(7 << 20)));
    assert_eq!(shown["rows"].as_array().unwrap().len(), 2);
}

fn mig_devices_have_processes_of_their_own() {
    let mut ground = Ground::of("a100-lab", "[[gpu]]\nmatch = [\"all\"]\nexclusive = true\n");
    let (web, _) = ground.start();
    let (stranger, _) = ground.start();
    let (leased, other) =
        ("MIG-8970491e-16e0-5140-9f8f-d561baa3c186", "MIG-c42101f0-a1fa-5b68-8908-7c5c887f28bd");
    ground.lease(4_000_000_001, web, |lease| {
        lease["devices"] =
            json!([{"class": "gpu", "name": "0:1", "uuid": leased, "is_share": false, "pool": null}]);
    });
    // The container with a lease on one uses another too.
    ground.processes(&json!({
        leased: {"compute": [used(web, 11)]},
        other: {"compute": [used(web, 5), used(stranger, 6)]},
    }));
    let _daemon = ground.daemon();
    let (_, out, errors) = ground.run(ground.ps(&[]));
    let lines: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    let [web, stranger] = [web, stranger].map(|pid| pid.to_string());
    assert_eq!(lines.len(), 4, "{out}{errors}");
    let leased =
        ["0:1", "0:1", "A100-SXM4-40GB", "mig", "mig", "podman", "web", "3f2a5d1c0b9e", &web, "root"];
    assert_eq!(lines[1][..10], leased);
    assert_eq!(lines[1].last(), Some(&"11MiB"), "{out}");
    assert_eq!(
        lines[2][..9],
        ["0:0", "0:0", "A100-SXM4-40GB", "mig", "mig", "podman", "web", "3f2a5d1c0b9e", &web]
    );
    assert_eq!(lines[2][lines[2].len() - 3..], ["5MiB", "no", "lease"], "{out}");
    assert_eq!(lines[3][..8], ["0:0", "0:0", "A100-SXM4-40GB", "mig", "mig", "sh", "-", &stranger]);
    assert_eq!(lines[3][lines[3].len() - 3..], ["6MiB", "no", "lease"], "{out}");
}

fn without_a_driver_all_but_memory() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    fs::remove_dir_all(ground.place.path("driver")).unwrap();
    fs::create_dir(ground.place.path("driver")).unwrap();
    let row = &ground.json(&[])["rows"][0];
    assert_eq!(row["used_bytes"], Value::Null);
    assert_eq!((&row["model"], &row["gpu"], &row["name"]), (&json!("NVIDIA L4"), &json!(0), &json!("web")));
    let (status, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!(status, 0, "{errors}");
    assert!(out.lines().nth(1).unwrap().ends_with("Nov 14 22:13  -"), "{out}");
    // Nor is there a plan after it was removed.
    fs::remove_file(ground.place.path("state/plan.json")).unwrap();
    let (status, out, _) = ground.run(ground.ps(&[]));
    assert_eq!(status, 0);
    assert!(out.lines().nth(1).unwrap().starts_with("shared-0  -    -     -           podman web"), "{out}");
}

fn lists_that_nvml_does_not_have() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    ground.processes(&json!({GPU: {"compute": null, "graphics": null, "mps": null}}));
    assert_eq!(ground.json(&[])["rows"][0]["used_bytes"], Value::Null);
    // More than there is room for at first.
    let many: Vec<Value> = (0..40).map(|n| used(4_100_000 + n, 1)).collect();
    ground.processes(&json!({GPU: {"compute": many, "graphics": null, "mps": [used(web, 3)]}}));
    let shown = ground.json(&[]);
    assert_eq!(
        (&shown["rows"][0]["used_bytes"], shown["rows"].as_array().unwrap().len()),
        (&json!(3 << 20), 41)
    );
    // A process that /proc does not have is a row by its number.
    assert_eq!(shown["rows"][1]["pid"], 4_100_000);
    assert_eq!(shown["rows"][1]["uid"], Value::Null);
}

fn nothing_is_held() {
    let ground = Ground::new();
    let (status, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!((status, out.as_str()), (0, "nothing is held\n"));
    assert!(
        errors.starts_with("note: the daemon does not answer at DIR/state/divvy.sock: ")
            && errors.contains("`divvy serve`"),
        "{errors}"
    );
    let (_, _, errors) = ground.run(ground.ps(&["--quiet"]));
    assert_eq!(errors, "");
    // A socket that nobody listens on is no daemon.
    drop(ground.daemon());
    assert_eq!(ground.json(&[])["daemon"], false);
    fs::remove_file(ground.place.path("state/divvy.sock")).unwrap();
    let daemon = ground.daemon();
    assert_eq!(ground.run(ground.ps(&[])), (0, "nothing is held\n".into(), String::new()));
    drop(daemon);
    fs::remove_dir_all(ground.place.path("state")).unwrap();
    let (status, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(
        errors.starts_with("error: DIR/state is no directory: there can be no leases in it\nhint: "),
        "{errors}"
    );
    fs::create_dir(ground.place.path("state")).unwrap();
    let (status, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!((status, out.as_str()), (0, "nothing is held\n"));
    assert_eq!(errors, "note: there is no plan in DIR/state: `divvy generate` writes it\n");
}

fn a_lease_whose_container_is_gone_has_ended() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    // Another process that came to have the number.
    ground.lease(4_000_000_002, web, |lease| {
        lease["container"]["start_time"] = 1.into();
        lease["devices"][0]["name"] = "shared-1".into();
    });
    // And one of before the machine was started anew.
    ground.lease(4_000_000_003, web, |lease| {
        lease["container"]["boot_id"] = "0".into();
        lease["devices"][0]["name"] = "shared-2".into();
    });
    // And one whose cgroup has a process yet.
    let cgroup = ground.place.path("cgroup");
    fs::create_dir(&cgroup).unwrap();
    fs::write(cgroup.join("cgroup.events"), "populated 1\n").unwrap();
    ground.lease(4_000_000_004, web, |lease| {
        lease["container"]["start_time"] = 1.into();
        lease["container"]["cgroup"] = cgroup.to_str().unwrap().into();
        lease["devices"][0]["name"] = "shared-3".into();
    });
    let states = || {
        let state = |row: &Value| json!([row["ending"], row["ended"], row["pid"]]);
        ground.json(&[])["rows"].as_array().unwrap().iter().map(state).collect::<Vec<_>>()
    };
    let (lives, ended, ending) =
        (json!([false, false, web]), json!([false, true, null]), json!([true, false, null]));
    assert_eq!(states(), [lives.clone(), ended.clone(), ended.clone(), ending]);
    let (_, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!((out.matches("  ended\n").count(), out.matches("  ending\n").count()), (2, 1), "{out}");
    assert!(errors.starts_with("note: ended: nothing of the container is left, "), "{errors}");
    fs::write(cgroup.join("cgroup.events"), "populated 0\n").unwrap();
    assert_eq!(states(), [lives, ended.clone(), ended.clone(), ended]);
    // A daemon that is there frees them at once.
    let _daemon = ground.daemon();
    let (_, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!((out.matches("  ended\n").count(), errors.as_str()), (3, ""), "{out}");
}

/// Whoever holds a name that means another device by now goes on using the one that it was given.
fn a_name_that_moved_is_told() {
    let mut ground = Ground::of(
        "mixed",
        "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 2\n[[gpu]]\nmatch = [\"2\"]\nexclusive = true\n",
    );
    let (web, _) = ground.start();
    let plan = ground.place.json("state/plan.json");
    let of = |name: &str| {
        plan["devices"].as_array().unwrap().iter().find(|device| device["name"] == name).unwrap()["uuid"]
            .clone()
    };
    ground.lease(4_000_000_001, web, |lease| {
        let device = |name: &str, uuid: Value, is_share: bool| {
            json!({"class": "gpu", "name": name, "uuid": uuid, "is_share": is_share, "pool": null})
        };
        lease["devices"] = json!([
            device("shared-0", of("2"), true),
            device("shared-1", of("shared-1"), true),
            device("shared-7", of("shared-1"), true),
        ]);
    });
    // By the plan, and by the driver where there is one.
    let _daemon = ground.daemon();
    for has_driver in [true, false] {
        if !has_driver {
            fs::remove_dir_all(ground.place.path("driver")).unwrap();
            fs::create_dir(ground.place.path("driver")).unwrap();
        }
        let (_, out, errors) = ground.run(ground.ps(&[]));
        let rows: Vec<Vec<&str>> =
            out.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows.len(), 3, "{out}");
        assert_eq!(rows[0][..8], ["shared-0", "2", "H100", "80GB", "HBM3", "-", "-", "podman"], "{out}");
        assert_eq!(rows[0].last(), Some(&"moved"), "{out}");
        for (row, limits) in [(1, "nothing"), (2, "-")] {
            assert_eq!(rows[row][1..7], ["0", "H100", "80GB", "HBM3", "time-slice", limits], "{out}");
            assert_ne!(rows[row].last(), Some(&"moved"), "{out}");
        }
        assert!(errors.starts_with("note: moved: "), "{errors}");
    }
}

fn names_are_not_obeyed() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |lease| {
        lease["container"]["name"] = "\u{1b}[2Jweb\nshared-9  0".into();
        lease["container"]["id"] = "\u{202e}id".into();
    });
    let (_, out, _) = ground.run(ground.ps(&[]));
    assert_eq!(out.lines().count(), 2);
    assert!(out.contains("podman \\u{1b}[2Jweb\\u{a}shared-9  0  \\u{202e}id"), "{out}");
    let (_, _, errors) = ground.run(ground.command(&["release", "shared-0"]));
    assert!(
        errors.contains("held by podman container \\u{1b}[2Jweb\\u{a}shared-9  0 (\\u{202e}id, since"),
        "{errors}"
    );
    assert!(errors.contains("hint: end it with its engine; "), "{errors}");
}

fn watch_shows_changes_and_ends_with_its_reader() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    let _daemon = ground.daemon();
    let mut watch =
        ground.ps(&["--watch", "1"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(watch.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line
    };
    assert!(line().starts_with("DEVICE "));
    assert!(line().ends_with(" 0MiB\n"));
    ground.processes(&json!({GPU: {"compute": [used(web, 5)]}}));
    // The one that was under way may not have it yet.
    let changed = (0..3).any(|_| {
        assert_eq!(line(), "\n");
        assert!(line().starts_with("DEVICE "), "not a terminal: nothing is cleared");
        line().ends_with(" 5MiB\n")
    });
    assert!(changed);
    drop(out);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
    let mut errors = String::new();
    watch.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "");
}

fn refused(at: u64, uid: u32, name: &str) -> Value {
    json!({
        "at": at, "asked": ["gpu=shared-0", "gpu=shared"], "id": ID, "engine": "podman", "name": name, "uid": uid,
        "status": 3, "message": format!("gpu=shared-0 is held, {name}"), "hint": "stop it",
    })
}

fn refusals_the_callers_own_first() {
    let ground = Ground::new();
    assert_eq!(ground.run(ground.ps(&["--refused"])), (0, "no start was refused\n".into(), String::new()));
    let me = nix::unistd::getuid().as_raw();
    let mut list = vec![refused(SINCE, me, "mine"), refused(SINCE + 60, 4_000_000, "theirs\u{1b}")];
    list.push(json!({
        "at": SINCE + 120, "asked": ["gpu=whole"], "id": ID, "engine": null, "name": null, "uid": me,
        "status": 5, "message": "no", "hint": null,
    }));
    let file = ground.place.path("state/refused.json");
    fs::write(&file, json!({"version": 1, "refused": list}).to_string()).unwrap();
    let (status, out, errors) = ground.run(ground.ps(&["--refused"]));
    assert_eq!((status, errors.as_str()), (0, ""));
    let user = user();
    let rows: Vec<String> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        rows,
        [
            "TIME CONTAINER USER ASKED WHY".to_owned(),
            format!("Nov 14 22:15 3f2a5d1c0b9e {user} gpu=whole no"),
            format!("Nov 14 22:13 podman mine {user} gpu=shared-0 gpu=shared gpu=shared-0 is held, mine; stop it"),
            "Nov 14 22:14 podman theirs\\u{1b} 4000000 gpu=shared-0 gpu=shared gpu=shared-0 is held, theirs\\u{1b}; \
             stop it"
                .to_owned(),
        ]
    );
    let shown = ground.json(&["--refused"]);
    assert_eq!(shown, json!([list[2], list[0], list[1]]));
    fs::write(&file, "{\"version\":2,\"refused\":[]}").unwrap();
    let (status, _, errors) = ground.run(ground.ps(&["--refused"]));
    assert_eq!(status, 1);
    assert_eq!(
        errors,
        "error: cannot read the refusals in DIR/state/refused.json: it is of version 2, and this divvy reads version 1\n"
    );
}

fn a_damaged_lease_is_named() {
    let mut ground = Ground::new();
    let (web, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    fs::write(ground.lease_path(4_000_000_002), "{").unwrap();
    let (status, out, errors) = ground.run(ground.ps(&[]));
    assert_eq!((status, out.lines().count()), (0, 2));
    assert!(
        errors.starts_with("warning: the lease DIR/state/leases/4000000002.json is damaged: "),
        "{errors}"
    );
    assert_eq!(ground.json(&[])["warnings"].as_array().unwrap().len(), 1);
}

fn everybody_sees_the_same() {
    let mut ground = Ground::new();
    let (web, in_web) = ground.start();
    let (stranger, _) = ground.start();
    ground.lease(4_000_000_001, web, |_| {});
    ground.processes(&json!({GPU: {"compute": [used(in_web, 64), used(stranger, 32)]}}));
    fs::copy(facts("l4"), ground.place.path("facts.json")).unwrap();
    let facts = ground.place.path("facts.json");
    let _daemon = ground.daemon();
    fs::set_permissions(ground.place.path("state/divvy.sock"), fs::Permissions::from_mode(0o666)).unwrap();
    for args in [&[][..], &["--format=json"], &["--refused"]] {
        let mut command = ground.ps(args);
        command.env("MOCK_NVML_FACTS", &facts);
        let theirs = as_nobody(&ground, &command);
        let ours = ground.run(command);
        assert_eq!(theirs, ours);
    }
}
