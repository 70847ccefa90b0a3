//! Black box: what is leased, the pools it is in, and the leases of running containers as `list` and `generate` see them.
//! On simulated and recorded hosts; no root, no engine, no GPU. The container that runs is this test's own process.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};
use support::place::Place;
use support::record::Record;
use support::{divvy, golden, run};

const MIXED: &str = "--host=sim:mixed";
const HOOK: &str = "--hook-path=/bin/true";

/// An exclusive GPU and MIG devices, a GPU that is whole beside its shares, and one that is nobody's.
const CONFIG: &str = "\
start_timeout = \"30s\"

[[gpu]]
match = [\"0\", \"1g.10gb\", \"1g.10gb+me\"]
exclusive = true

[[gpu]]
match = [\"2\"]
mode = \"time-slice\"
replicas = 3
whole = true

[pool.shared]
wait = \"30m\"
order = \"pack\"
per_container = 2

[users.ana]
shares = 2
pools = [\"shared\", \"whole\"]
";

const GPU_0: &str = "GPU-ac9baf00-0ccb-5c48-85c6-e37a5803a471";
const GPU_2: &str = "GPU-f9de3498-4cce-5b0e-b295-b5d0dc8e5639";

/// A lease of this process, which is as alive as any container's.
fn lease(name: &str, devices: &[(&str, &str)]) -> Value {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1;
    let start_time: u64 = fields.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let device = |(device, uuid): &(&str, &str)| {
        let is_share = device.starts_with("shared");
        json!({"class": "gpu", "name": device, "uuid": uuid, "is_share": is_share, "pool": null})
    };
    json!({
        "version": 1,
        "container": {
            "mount_namespace": 4026532000u64, "pid": std::process::id(), "start_time": start_time,
            "boot_id": boot_id.trim(), "cgroup": null, "uid": 1000, "id": "3f2a5d1c0b9e8f7a", "bundle": "/run/web",
            "engine": "podman", "name": name,
        },
        "since": 1_700_000_000,
        "asked": [],
        "devices": devices.iter().map(device).collect::<Vec<_>>(),
        "remove": [],
        "denied_by": null,
    })
}

fn hold(place: &Place, file: &str, lease: &Value) {
    fs::create_dir_all(place.path("state/leases")).unwrap();
    fs::write(place.path("state/leases").join(file), lease.to_string()).unwrap();
}

fn list(place: &Place, format: &str) -> (i32, String, String) {
    let state = format!("--state-dir={}", place.path("state").display());
    place.run(&["list", MIXED, &state, format])
}

#[test]
fn specs_of_leased_devices() {
    let place = Place::with(CONFIG);
    let (status, out, errors) = place.run(&["generate", MIXED, HOOK]);
    assert_eq!((status, errors.as_str()), (0, ""));
    golden("leased.json", &out);
    let (status, out, errors) = place.run(&["generate", MIXED, HOOK, "--dry-run"]);
    assert_eq!((status, errors.as_str()), (0, ""));
    golden("leased.dry-run", &out);
}

/// Each leased name asks for itself, and nothing else does; no spec has leased devices beside others.
#[test]
fn every_leased_name_asks_for_itself() {
    let place =
        Place::with(CONFIG.to_owned() + "[[gpu]]\nmatch = [\"1:3\"]\nmode = \"time-slice\"\nrename = true\n");
    let (status, said, errors) = place.generate(MIXED);
    assert_eq!((status, errors.as_str()), (0, ""));
    assert_eq!(
        said,
        "wrote DIR/cdi/divvy.json, wrote DIR/cdi/divvy+leased.json, wrote DIR/cdi/divvy+compute+leased.json, \
         wrote DIR/cdi/divvy-gpu.shared.json: 3 GPUs, 2 MIG devices, 4 shares\n"
    );
    let state = place.path("state").display().to_string();
    let mut leased = BTreeSet::new();
    for file in place.specs() {
        let spec = place.json(&format!("cdi/{file}"));
        let class = spec["kind"].as_str().unwrap().strip_prefix("nvidia.com/").unwrap().to_owned();
        let devices = spec["devices"].as_array().unwrap();
        let asks: Vec<&Value> =
            devices.iter().filter(|device| device["containerEdits"].get("hooks").is_some()).collect();
        let args = spec["containerEdits"]["hooks"][0]["args"].to_string();
        assert_eq!(args.contains(&format!("--leases={state}/leases")), !asks.is_empty(), "{file}");
        assert!(asks.is_empty() || asks.len() == devices.len(), "{file}");
        for device in asks {
            let [hook] = &device["containerEdits"]["hooks"].as_array().unwrap()[..] else {
                panic!("{device}")
            };
            let name = device["name"].as_str().unwrap();
            assert_eq!(
                (&hook["hookName"], &hook["env"]),
                (&json!("createRuntime"), &json!(["PATH=/usr/sbin:/usr/bin"]))
            );
            assert_eq!(
                hook["args"],
                json!([
                    "true",
                    "create-runtime",
                    format!("--state-dir={state}"),
                    "--start-timeout=30",
                    format!("--device={class}={name}")
                ])
            );
            leased.insert(format!("{class}={name}"));
        }
    }
    let expected = [
        "gpu.shared=shared",
        "gpu.shared=shared-0",
        "gpu=0",
        "gpu=1:0",
        "gpu=1:1",
        "gpu=2",
        "gpu=GPU-ac9baf00-0ccb-5c48-85c6-e37a5803a471",
        "gpu=GPU-f9de3498-4cce-5b0e-b295-b5d0dc8e5639",
        "gpu=MIG-47a27ee0-3d5d-5a7d-80c8-24d615f39ebd",
        "gpu=MIG-f58db56f-e0ca-5100-b002-8d0fedb8d576",
        "gpu=all",
        "gpu=mig-1g.10gb",
        "gpu=mig-1g.10gb.me",
        "gpu=shared",
        "gpu=shared-0",
        "gpu=shared-1",
        "gpu=shared-2",
        "gpu=whole",
    ];
    assert_eq!(leased.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// The state is /run/divvy where no plan is kept, which is the hook's default and need not be said.
#[test]
fn defaults_are_left_out() {
    let place = Place::with("[[gpu]]\nmatch = [\"all\"]\nexclusive = true\n");
    let (status, out, _) = place.run(&["generate", "--host=sim:l4", HOOK]);
    assert_eq!(status, 0);
    let spec: Value = serde_json::from_str(&out).unwrap();
    let whole = spec["devices"].as_array().unwrap().iter().find(|device| device["name"] == "whole").unwrap();
    let hook = &whole["containerEdits"]["hooks"][0];
    assert_eq!(hook["args"], json!(["true", "create-runtime", "--device=gpu=whole"]));
    let args = spec["containerEdits"]["hooks"][0]["args"].as_array().unwrap();
    assert!(args.contains(&json!("--leases=/run/divvy/leases")), "{args:?}");
}

/// Engines of this machine read that spec, and its hook would find no plan.
#[test]
fn shares_without_a_plan_are_warned_of() {
    let place = Place::with("[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 2\n");
    let generate = |flags: &[&str]| {
        let dry = ["generate", "--host=sim:l4", HOOK, "--dry-run"];
        place.run(&[&dry, flags].concat()).2
    };
    let said = "warning: shares in this spec cannot start: with --host no plan is kept\n\
                hint: add --state-dir /run/divvy\n";
    assert_eq!(generate(&["--output=/var/run/cdi/divvy.json"]), said);
    let state = format!("--state-dir={}", place.path("state").display());
    assert_eq!(generate(&["--output=/var/run/cdi/divvy.json", &state]), "");
    assert_eq!(generate(&["--output=elsewhere.json"]), "");
    fs::write(place.path("config.toml"), "").unwrap();
    assert_eq!(generate(&["--output=/var/run/cdi/divvy.json"]), "");
}

#[test]
fn list_says_what_is_taken_and_by_whom() {
    let place = Place::with(CONFIG);
    assert_eq!(place.generate(MIXED).0, 0);
    hold(&place, "1.json", &lease("web", &[("shared-1", GPU_2)]));
    hold(&place, "2.json", &lease("train", &[("0", GPU_0)]));
    // Of a container of before the last boot, and of one whose process is gone.
    let mut old = lease("old", &[("shared-0", GPU_2)]);
    old["container"]["boot_id"] = json!("another");
    hold(&place, "3.json", &old);
    let mut gone = lease("gone", &[("shared-2", GPU_2)]);
    gone["container"]["start_time"] = json!(1);
    hold(&place, "4.json", &gone);
    let (status, out, errors) = list(&place, "--format=table");
    let ended =
        "note: ended: nothing of the container is left, and the daemon frees the device when it runs\n";
    assert_eq!((status, errors.as_str()), (0, ended));
    golden("leased.list", &out);
    let (status, out, errors) = list(&place, "--format=json");
    assert_eq!((status, errors.as_str()), (0, ""));
    let listing: Value = serde_json::from_str(&out).unwrap();
    let device = |name: &str| {
        listing["devices"].as_array().unwrap().iter().find(|device| device["name"] == name).unwrap().clone()
    };
    let web = json!({
        "engine": "podman", "name": "web", "id": "3f2a5d1c0b9e8f7a", "pid": std::process::id(), "uid": 1000,
        "since": 1_700_000_000, "cdi_name": "nvidia.com/gpu=shared-1", "uuid": GPU_2, "ended": false,
    });
    assert_eq!((&device("shared-1")["lease"], &device("2")["lease"]), (&web, &web));
    let old = device("shared-0");
    assert_eq!((&old["lease"]["name"], &old["lease"]["ended"]), (&json!("old"), &json!(true)));
    assert_eq!((&device("1:0")["lease"], &device("1:0")["leased"]), (&json!(null), &json!(true)));
    assert_eq!((&device("3")["lease"], &device("3")["leased"]), (&json!(null), &json!(false)));
    let pools: Vec<_> =
        listing["pools"].as_array().unwrap().iter().map(|pool| (&pool["cdi_name"], &pool["free"])).collect();
    let pool = |name: &str, free: u32| (json!(format!("nvidia.com/gpu={name}")), json!(free));
    let expected = [pool("whole", 0), pool("mig-1g.10gb.me", 1), pool("mig-1g.10gb", 1), pool("shared", 2)];
    assert_eq!(pools, expected.iter().map(|(name, free)| (name, free)).collect::<Vec<_>>());
    // The other way round: with the whole device go its shares.
    fs::remove_dir_all(place.path("state/leases")).unwrap();
    hold(&place, "1.json", &lease("train", &[("2", GPU_2)]));
    let (_, out, _) = list(&place, "--format=table");
    assert_eq!(out.matches("taken as 2 by podman container train").count(), 3, "{out}");
    assert!(out.contains("\nshared: 0 of 3 free\n"), "{out}");
    // What cannot be read is no reason to show nothing.
    fs::write(place.path("state/leases/5.json"), "{").unwrap();
    let (status, _, errors) = list(&place, "--format=table");
    assert_eq!(status, 0);
    assert!(errors.starts_with("warning: the lease DIR/state/leases/5.json is damaged: "), "{errors}");
    // Nobody knows the leases of another host.
    let (_, out, _) = place.run(&["list", MIXED]);
    assert!(!out.contains("LEASE") && out.contains("\nshared: 3 devices\n"), "{out}");
}

#[test]
fn a_name_that_is_held_does_not_move() {
    const CUT: &str = "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 2\n";
    let place = Place::with(CUT);
    let record = Record::of("h100x8");
    let host = format!("--host={}", record.dir().display());
    assert_eq!(place.generate(&host).0, 0);
    let plan = place.json("state/plan.json");
    let uuid = |name: &str| {
        let devices = plan["devices"].as_array().unwrap();
        devices.iter().find(|device| device["name"] == name).unwrap()["uuid"].as_str().unwrap().to_owned()
    };
    let (mine, other) = (uuid("shared-2"), uuid("shared-0"));
    hold(&place, "1.json", &lease("web", &[("shared-2", &mine), ("shared-4", &uuid("shared-4"))]));
    let (spec, written) = (place.path("cdi/divvy.json"), || fs::read(place.path("state/plan.json")).unwrap());
    let before = (fs::read(&spec).unwrap(), written());
    fs::write(place.path("config.toml"), CUT.replace('2', "3")).unwrap();
    let (status, out, errors) = place.generate(&host);
    assert_eq!((status, out.as_str()), (1, ""));
    let error = format!(
        "error: a name that a running container holds would move: nvidia.com/gpu=shared-2, held by podman container web, would mean GPU 0 ({other}) and means GPU 1 ({mine}); and 1 more\n\
         hint: stop the container first (`divvy ps` lists them), give new shares a name of their own \
         (`divvy share GPU --replicas N --name NAME`), or move names all the same with --force\n"
    );
    assert!(errors.ends_with(&error), "{errors}");
    assert!(before == (fs::read(&spec).unwrap(), written()), "nothing is written");
    // What would be written is shown, and why it would not.
    let with = |flag: &str| {
        let output = format!("--output={}", place.path("cdi/divvy.json").display());
        let state = format!("--state-dir={}", place.path("state").display());
        place.run(&["generate", &host, HOOK, &output, &state, flag])
    };
    let (status, out, errors) = with("--dry-run");
    assert_eq!(status, 1);
    assert!(out.contains("would give names to 24 shares") && errors.ends_with(&error), "{out}{errors}");
    // A container that is gone holds nothing.
    let held = fs::read_to_string(place.path("state/leases/1.json")).unwrap();
    let mut gone: Value = serde_json::from_str(&held).unwrap();
    gone["container"]["start_time"] = json!(1);
    hold(&place, "1.json", &gone);
    let (status, _, errors) = with("--dry-run");
    assert_eq!(status, 0, "{errors}");
    fs::write(place.path("state/leases/1.json"), held).unwrap();
    let (status, out, errors) = with("--force");
    assert_eq!((status, out.as_str()), (0, "wrote DIR/cdi/divvy.json: 24 shares\n"));
    assert!(
        errors.ends_with(&format!(
            "warning: podman container web goes on using GPU 2 ({}); nvidia.com/gpu=shared-4 is GPU 1 ({mine}) from now on\n",
            uuid("shared-4")
        )),
        "{errors}"
    );
    // Its name is taken, whatever it means by now, and the GPU's other shares are free.
    let state = format!("--state-dir={}", place.path("state").display());
    let (_, out, errors) = place.run(&["list", &host, &state]);
    let lease = |name: &str| {
        let line = out.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
        line.split_once("nothing").unwrap().1.trim().to_owned()
    };
    assert_eq!(lease("shared-2"), "taken by podman container web (as a part of GPU 1)", "{out}{errors}");
    assert_eq!(lease("shared-4"), "taken by podman container web (as a part of GPU 2)");
    assert_eq!((lease("shared-3"), lease("shared-6")), ("free".into(), "free".into()));
    assert!(out.contains("\nshared: 22 of 24 free\n"), "{out}");
}

/// Before it is `generate` that says so.
#[test]
fn share_tells_of_names_that_are_held() {
    let place = Place::with("[[gpu]]\nmatch = [\"2\"]\nmode = \"time-slice\"\nreplicas = 2\n");
    assert_eq!(place.generate(MIXED).0, 0);
    hold(&place, "1.json", &lease("web", &[("shared-0", GPU_2), ("shared-1", GPU_2)]));
    let share = |flags: &[&str]| {
        let state = format!("--state-dir={}", place.path("state").display());
        let (status, _, errors) =
            place.run(&[&["share", MIXED, "--dry-run", "--quiet", &state], flags].concat());
        (status, errors)
    };
    let error = |now: &str| {
        format!(
            "warning: `generate` will refuse while podman container web holds nvidia.com/gpu=shared-0: \
             nvidia.com/gpu=shared-0, held by podman container web, {now} GPU 2 ({GPU_2}); and 1 more\n"
        )
    };
    assert_eq!(
        share(&["0", "--replicas=2"]),
        (
            0,
            error(&format!("would mean GPU 0 ({GPU_0}) and means"))
                + "hint: stop the container first (`divvy ps` lists them), or give the new shares a name of their own: \
                   divvy share 0 --replicas 2 --name NAME\n"
        )
    );
    assert_eq!(share(&["0", "--replicas=2", "--name=large"]), (0, String::new()));
    assert_eq!(
        share(&["2", "--none"]),
        (0, error("would go; it means") + "hint: stop the container first (`divvy ps` lists them)\n")
    );
}

/// A spec that was made elsewhere is not in force here.
#[test]
fn leases_of_this_machine_are_nothing_to_another() {
    let place = Place::with(CONFIG);
    hold(&place, "1.json", &lease("web", &[("shared-9", GPU_2)]));
    let output = format!("--output={}", place.path("cdi/divvy.json").display());
    let config = format!("--config={}", place.path("config.toml").display());
    let (status, _, errors) = run(&mut divvy(&["generate", MIXED, HOOK, &output, &config]));
    assert_eq!((status, errors.as_str()), (0, ""));
}
