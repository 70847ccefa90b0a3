//! Black box: what `generate`, `list` and `share` make of mode mps, and what they refuse before anything starts. On
//! simulated and recorded hosts; no root, no engine, no GPU.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};
use support::place::Place;
use support::record::Record;
use support::{divvy, golden, run};

const HOST: &str = "--host=sim:mps";
const LAB: &str = "--host=sim:a100-lab";
const HOOK: &str = "--hook-path=/bin/true";
const FOUR: &str = "[[gpu]]\nmatch = [\"0\"]\nmode = \"mps\"\nreplicas = 4\n";
const ON_MIG: &str = "note: MIG device 1:3 has no compute mode, as no MIG device has: a process in a share that avoids MPS \
                      has no limits there\n";

/// Every mode beside the others on one host: whole, MIG, in turns, and three MPS servers that differ.
#[test]
fn modes_side_by_side() {
    let (status, table, errors) = run(&mut divvy(&["list", HOST]));
    assert_eq!((status, errors.as_str()), (0, ON_MIG));
    golden("mps.list", &table);
    let (status, listing, _) = run(&mut divvy(&["list", HOST, "--format=json"]));
    assert_eq!(status, 0);
    golden("mps.list.json", &listing);
    let (status, said, errors) = run(&mut divvy(&["generate", HOST, HOOK, "--dry-run"]));
    assert_eq!((status, errors.as_str()), (0, ON_MIG));
    golden("mps.dry-run", &said);
    let (status, specs, errors) = run(&mut divvy(&["generate", HOST, HOOK]));
    assert_eq!((status, errors.as_str()), (0, ON_MIG));
    golden("mps.json", &specs);
}

#[test]
fn each_limit_says_by_what_over_what_and_against_whom() {
    let (_, listing, _) = run(&mut divvy(&["list", HOST, "--format=json"]));
    let listing: Value = serde_json::from_str(&listing).unwrap();
    let limits = |name: &str| {
        let device = listing["devices"].as_array().unwrap().iter().find(|device| device["name"] == name);
        device.unwrap()["limits"].clone()
    };
    let limit = |by: &str, over: &str, against: &str| json!({"by": by, "over": over, "against": against});
    let (mistakes, anything) = (limit("mps", "process", "mistakes"), limit("mps", "process", "anything"));
    let (mig, wish) = (limit("mig", "container", "anything"), limit("advisory", "process", "nothing"));
    for (name, memory, sms) in [
        ("1:0", &mig, &mig),
        ("part-0", &mistakes, &mistakes),
        ("shared-3", &mistakes, &anything),
        ("large-0", &mistakes, &anything),
        ("small-1", &wish, &wish),
        ("turns-0", &Value::Null, &Value::Null),
        ("0", &Value::Null, &Value::Null),
    ] {
        assert_eq!(limits(name), json!({"memory": memory, "sms": sms}), "{name}");
    }
}

/// What a container is told stands with each name that brings an MPS share, and with no other. It gets neither the programs
/// that rule over MPS nor their sockets from the spec.
#[test]
fn a_share_tells_its_container_where_mps_is() {
    let place = Place::in_sight(
        "[[gpu]]\nmatch = [\"0\", \"2\"]\nmode = \"mps\"\nreplicas = 4\n[[gpu]]\nmatch = [\"5\"]\nmode = \"mps\"\npriority = \"low\"\nreplicas = 2\n[[gpu]]\nmatch = [\"3\"]\nmode = \"time-slice\"\nname = \"turns\"\n",
    );
    let (status, said, errors) = place.generate(HOST);
    assert_eq!(status, 0, "{errors}");
    assert!(said.contains("11 shares"), "{said}");
    let mut env: BTreeMap<String, Value> = BTreeMap::new();
    for file in place.specs() {
        let spec = place.json(&format!("cdi/{file}"));
        assert!(!spec.to_string().contains("nvidia-cuda-mps"), "{file}");
        assert_eq!(spec["containerEdits"]["env"], json!(["NVIDIA_VISIBLE_DEVICES=void"]), "{file}");
        for device in spec["devices"].as_array().unwrap() {
            let edits = &device["containerEdits"];
            assert!(!edits["mounts"].to_string().contains("mps"), "{device}");
            env.insert(device["name"].as_str().unwrap().to_owned(), edits["env"].clone());
        }
    }
    let of_mps = |percent: u32, mib: u64, priority: u32| {
        json!([
            "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps",
            format!("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE={percent}"),
            format!("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT=0={mib}M"),
            format!("CUDA_MPS_CLIENT_PRIORITY={priority}"),
        ])
    };
    assert_eq!(env["shared-0"], of_mps(25, 20260, 0));
    assert_eq!(env["shared-9"], of_mps(50, 40520, 1));
    // Whichever it will be, none of them is told too little.
    assert_eq!(env["shared"], of_mps(50, 40520, 0));
    for name in ["turns-0", "turns", "1", "4", "1:0", "all"] {
        assert_eq!(env.get(name).cloned().unwrap_or_default(), Value::Null, "{name}");
    }
}

/// What the daemon and the supervisors go by.
#[test]
fn the_plan_has_a_server_for_each_device() {
    let place = Place::in_sight("");
    let sim = divvy(&["generate", HOST, HOOK]);
    let cdi = format!("--output={}", place.path("cdi/divvy.json").display());
    let state = format!("--state-dir={}", place.path("state").display());
    let (status, _, errors) = run({ sim }.args([&cdi, &state]));
    assert_eq!((status, errors.lines().next().unwrap()), (0, ON_MIG.trim_end()), "{errors}");
    let plan = place.json("state/plan.json");
    let servers = plan["mps"].as_array().unwrap();
    let about = |server: &Value| {
        let number = |key: &str| server[key].as_u64().unwrap();
        let flag = |key: &str| server[key].as_bool().unwrap();
        (
            server["what"].as_str().unwrap().to_owned(),
            (number("memory_mib"), number("active_thread_percentage"), number("client_limit")),
            (flag("is_mig"), flag("multi_user"), flag("at_boot")),
            server["shared_memory_bytes"].as_u64(),
        )
    };
    assert_eq!(
        servers.iter().map(about).collect::<Vec<_>>(),
        [
            ("MIG device 1:3".into(), (20192, 50, 48), (true, true, false), None),
            ("GPU 3".into(), (20260, 25, 48), (false, true, false), None),
            ("GPU 4".into(), (40960, 50, 48), (false, true, true), Some(2 << 30)),
        ]
    );
    for server in servers {
        assert_eq!(server["control"], "/usr/bin/nvidia-cuda-mps-control");
        assert_eq!(server["driver_version"], "580.95.05");
        let shares = plan["devices"].as_array().unwrap().iter().filter(|device| {
            device["uuid"] == server["uuid"] && device["mode"] == "mps" && device["type"] == "share"
        });
        assert!(shares.count() > 1, "{server}");
    }
}

#[test]
fn share_through_mps() {
    let place = Place::with("");
    let (status, out, errors) = place.run(&["share", "1", "--replicas=3", "--mode=mps", LAB]);
    assert_eq!(status, 0, "{errors}");
    assert!(out.contains("+mode = \"mps\"\n+replicas = 3\n1: shared-0 to shared-2\n"), "{out}");
    let (_, table, _) = place.run(&["list", LAB]);
    let row = "shared-0  mps, 1 of 3 on 1  13425MiB  34   memory: mps (process, mistakes), SMs: mps (process, anything)";
    assert!(table.contains(row), "{table}");
    let text = fs::read_to_string(place.path("config.toml")).unwrap();
    let text = text + "shm = \"2GiB\"\nstart = \"boot\"\nmemory = \"8GiB\"\nadvisory = true\n";
    fs::write(place.path("config.toml"), &text).unwrap();
    // The mode is as it was, and what belongs to it.
    let (status, _, errors) = place.run(&["share", "1", "--replicas=2", LAB]);
    assert_eq!(status, 0, "{errors}");
    assert!(!errors.contains("no longer shared"), "{errors}");
    assert_eq!(
        fs::read_to_string(place.path("config.toml")).unwrap(),
        text.replace("replicas = 3", "replicas = 2")
    );
    // In turns again: what MPS alone knows and holds goes, and is told.
    let (status, _, errors) = place.run(&["share", "1", "--replicas=3", "--mode=time-slice", LAB]);
    assert_eq!(status, 0, "{errors}");
    let warning = "warning: GPU 1 is no longer shared by MPS: nothing limits its shares; removed with it: memory, shm, start\n";
    assert!(errors.contains(warning), "{errors}");
    assert_eq!(
        fs::read_to_string(place.path("config.toml")).unwrap(),
        "[[gpu]]\nmatch = [\"1\"]\nmode = \"time-slice\"\nreplicas = 3\nadvisory = true\n"
    );
}

/// A rule for all decides on one of them too.
#[test]
fn share_one_of_all_that_are_shared_by_mps() {
    let place = Place::with("[[gpu]]\nmatch = [\"all\"]\nmode = \"mps\"\nreplicas = 4\n");
    let (status, out, errors) = place.run(&["share", "1", "--replicas=2", "--name=pair", LAB]);
    assert_eq!(status, 0, "{errors}");
    assert!(out.contains("+mode = \"mps\"\n+name = \"pair\"\n+replicas = 2\n"), "{out}");
    let (status, _, errors) = place.run(&["share", "1", "--replicas=2", "--mode=time-slice", LAB]);
    assert_eq!(status, 0, "{errors}");
    let warning = "warning: GPU 1 is no longer shared by MPS: nothing limits its shares\n";
    assert!(errors.contains(warning), "{errors}");
}

/// A machine without the programs, with a GPU from before Volta, or under an administrator's ban.
#[test]
fn machines_that_cannot() {
    type Change = fn(&mut Value);
    let cases: [(Change, i32, &str, &str); 5] = [
        (
            |host| {
                drop(host["real_paths"].as_object_mut().unwrap().remove("/usr/bin/nvidia-cuda-mps-control"))
            },
            7,
            "warning: GPU 0 is left out: nvidia-cuda-mps-control is not installed where drivers have their programs, and MPS needs it\n",
            "hint: install it in the driver's version: Debian has it in nvidia-cuda-mps, elsewhere it comes with the driver\n",
        ),
        (
            |host| {
                drop(host["real_paths"].as_object_mut().unwrap().remove("/usr/bin/nvidia-cuda-mps-server"))
            },
            7,
            "warning: GPU 0 is left out: nvidia-cuda-mps-server is not installed where",
            "hint: install it",
        ),
        (
            |host| host["nvml"]["gpus"][0]["compute_capability"] = json!([6, 1]),
            7,
            "warning: GPU 0 is left out: its compute capability is 6.1, and MPS limits nothing below 7.0\n",
            "hint: share it with mode = \"time-slice\"\n",
        ),
        (
            |host| host["nvml"]["gpus"][0]["memory_bytes"] = Value::Null,
            7,
            "warning: GPU 0 is left out: its memory is not known",
            "hint: `nvidia-smi` should show it",
        ),
        (
            |host| host["nvml"]["gpus"][0]["compute_mode"] = json!("prohibited"),
            0,
            "warning: GPU 0 is to be shared through MPS and in compute mode prohibited: whoever set that meant that nobody uses it, so starts will be refused; `nvidia-smi -i 0 -c DEFAULT` lets shares work\n",
            "",
        ),
    ];
    for (change, status, warning, hint) in cases {
        let place = Place::in_sight(FOUR);
        let record = Record::of("h100x8");
        record.edit(change);
        let (got, _, errors) = place.generate(&format!("--host={}", record.dir().display()));
        assert_eq!(got, status, "{errors}");
        assert!(errors.starts_with(warning) && errors.contains(hint), "{errors}");
        let plan = place.json("state/plan.json");
        assert_eq!(plan["mps"].as_array().unwrap().len(), usize::from(status == 0), "{errors}");
    }
}

/// Debian has the server among the system's programs.
#[test]
fn programs_are_found_where_distributions_have_them() {
    let place = Place::in_sight(FOUR);
    let record = Record::of("l4");
    record.edit(|host| {
        let paths = host["real_paths"].as_object_mut().unwrap();
        paths.remove("/usr/bin/nvidia-cuda-mps-server");
        paths.insert(
            "/usr/sbin/nvidia-cuda-mps-server".into(),
            json!("/usr/lib/nvidia/nvidia-cuda-mps-server"),
        );
    });
    let (status, _, errors) = place.generate(&format!("--host={}", record.dir().display()));
    assert_eq!(status, 0, "{errors}");
    assert_eq!(place.json("state/plan.json")["mps"][0]["server"], "/usr/lib/nvidia/nvidia-cuda-mps-server");
}

/// MPS cuts a path that is too long for its sockets, and another's daemon would answer there.
#[test]
fn a_state_directory_with_too_long_a_name() {
    let place = Place::in_sight(FOUR);
    for (length, status) in [(38, 0), (39, 7)] {
        let begin = format!("{}/", place.dir().display());
        let state = format!("{begin}{}", "s".repeat(length - begin.len()));
        fs::create_dir(&state).unwrap();
        let output = format!("--output={}", place.path("cdi/divvy.json").display());
        let arguments = ["generate", "--host=sim:h100x8", HOOK, &output, &format!("--state-dir={state}")];
        let (got, _, errors) = place.run(&arguments);
        assert_eq!(got, status, "{errors}");
        let refused = "/pipe is 89 bytes long, and MPS takes 88\nhint: choose a shorter state directory with --state-dir\n";
        assert_eq!(errors.contains(refused), status == 7, "{errors}");
    }
}

/// Drivers from before 555 serve one user at a time.
#[test]
fn a_driver_that_serves_one_user_at_a_time() {
    let place = Place::in_sight(FOUR);
    let record = Record::of("l4");
    let text = fs::read_to_string(record.file("host.json")).unwrap();
    fs::write(record.file("host.json"), text.replace("580.95.05", "550.163.01")).unwrap();
    let (status, _, errors) = place.generate(&format!("--host={}", record.dir().display()));
    assert_eq!(status, 0, "{errors}");
    assert!(errors.contains("note: MPS of driver 550.163.01 serves one user at a time: "), "{errors}");
    assert_eq!(place.json("state/plan.json")["mps"][0]["multi_user"], false);
}
