//! Black box: shares from a configuration, the names they get and keep, and the files that they are in. On
//! simulated and recorded hosts; no root, no engine, no GPU.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::place::Place;
use support::record::Record;
use support::{divvy, golden, run};

const HOOK: &str = "--hook-path=/bin/true";
const LAB: &str = "--host=sim:a100-lab";
const FOUR: &str = "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 4\n";

fn names(spec: &Value) -> Vec<&str> {
    spec["devices"].as_array().unwrap().iter().map(|device| device["name"].as_str().unwrap()).collect()
}

#[test]
fn dry_runs() {
    let place = Place::with(FOUR);
    let (status, out, errors) = place.run(&["generate", "--host=sim:l4", HOOK, "--dry-run"]);
    assert_eq!((status, errors.as_str()), (0, ""));
    golden("l4-shares.dry-run", &out);
    let (status, out, errors) = run(&mut divvy(&["generate", "--host=sim:mixed", HOOK, "--dry-run"]));
    assert_eq!((status, errors.as_str()), (0, ""));
    golden("mixed.dry-run", &out);
}

/// The driver has lengths for whole GPUs alone, which keeps no MIG device from being shared.
#[test]
fn turns_are_of_whole_gpus() {
    let place = Place::with(format!("{FOUR}time_slice = \"short\"\n"));
    let (status, _, errors) = place.generate(LAB);
    assert_eq!(status, 0, "{errors}");
    let said = "time_slice says nothing of MIG device 0:0: NVIDIA's driver has lengths for whole GPUs alone";
    assert!(errors.contains(&format!("warning: DIR/config.toml:1:1: {said}")), "{errors}");
    let plan = place.json("state/plan.json");
    let gpus = plan["time_slices"].as_array().unwrap().iter();
    let gpus: Vec<_> =
        gpus.map(|one| (one["what"].as_str().unwrap(), one["length"].as_str().unwrap())).collect();
    let whole = ["GPU 1", "GPU 2", "GPU 3", "GPU 4", "GPU 5", "GPU 6", "GPU 7"];
    assert_eq!(gpus, whole.map(|gpu| (gpu, "short")));
    let (status, list, errors) = place.run(&["list", LAB, "--format=json"]);
    assert_eq!(status, 0, "{errors}");
    let list: Value = serde_json::from_str(&list).unwrap();
    for device in list["devices"].as_array().unwrap() {
        let is_mig = device["uuid"].as_str().unwrap().starts_with("MIG-");
        assert_eq!(device["time_slice"].as_str(), (!is_mig).then_some("short"), "{device}");
    }
}

#[test]
fn a_share_is_the_gpus_node_and_the_whole_has_no_name() {
    let place = Place::with(FOUR);
    assert_eq!(
        place.generate("--host=sim:l4"),
        (0, "wrote DIR/cdi/divvy.json: 4 shares\n".into(), String::new())
    );
    let spec = place.json("cdi/divvy.json");
    assert_eq!(names(&spec), ["shared", "shared-0", "shared-1", "shared-2", "shared-3"]);
    let node = json!({"path": "/dev/nvidia0", "type": "c", "fileMode": 438, "permissions": "rw"});
    let state = place.path("state").display().to_string();
    let hook = |name: &str| {
        json!({
            "hookName": "createRuntime",
            "path": "/bin/true",
            "args": ["true", "create-runtime", format!("--state-dir={state}"), format!("--device=gpu={name}")],
            "env": ["PATH=/usr/sbin:/usr/bin"],
        })
    };
    for (device, name) in [(0, "shared"), (3, "shared-2")] {
        let edits = json!({"deviceNodes": [node], "hooks": [hook(name)]});
        assert_eq!(spec["devices"][device]["containerEdits"], edits);
    }
    let args = spec["containerEdits"]["hooks"][0]["args"].as_array().unwrap();
    assert!(args.contains(&json!(format!("--leases={state}/leases"))), "{args:?}");
    // No name that begins with a digit and no annotation: what the oldest engines read.
    assert_eq!(spec["cdiVersion"], "0.4.0");
}

#[test]
fn plan_and_specs_are_of_one_generation() {
    let place = Place::with(format!("{FOUR}rename = true\n"));
    let (status, said, errors) = place.generate("--host=sim:l4");
    assert_eq!((status, errors.as_str()), (0, ""));
    assert_eq!(said, "wrote DIR/cdi/divvy-gpu.shared.json: 4 shares\n");
    let (plan, spec) = (place.json("state/plan.json"), place.json("cdi/divvy-gpu.shared.json"));
    assert_eq!(
        (spec["kind"].as_str(), spec["cdiVersion"].as_str()),
        (Some("nvidia.com/gpu.shared"), Some("0.6.0"))
    );
    let args = spec["containerEdits"]["hooks"][0]["args"].as_array().unwrap();
    let generation = plan["generation"].as_str().unwrap();
    assert!(args.contains(&json!(format!("--generation={generation}"))), "{args:?}");
    assert_eq!((&plan["version"], plan["devices"].as_array().unwrap().len()), (&json!(1), 4));
    // Nothing changes, nothing is written, and the plan is the same.
    let before = fs::read_to_string(place.path("state/plan.json")).unwrap();
    assert_eq!(place.generate("--host=sim:l4").1, "unchanged: DIR/cdi/divvy-gpu.shared.json: 4 shares\n");
    assert_eq!(fs::read_to_string(place.path("state/plan.json")).unwrap(), before);
}

#[test]
fn a_side_kind_that_is_gone_is_removed_and_nothing_else() {
    let place = Place::with("mig_strategy = \"mixed\"\n");
    assert_eq!(place.generate(LAB).0, 0);
    let kinds = [
        "divvy+compute.json",
        "divvy-mig-1c.2g.10gb.json",
        "divvy-mig-1g.5gb.json",
        "divvy-mig-4g.20gb.json",
        "divvy.json",
    ];
    assert_eq!(place.specs(), kinds);
    assert_eq!(
        names(&place.json("cdi/divvy-mig-1c.2g.10gb.json")),
        [
            "0:1",
            "0:2",
            "MIG-239565ce-30e3-52d7-8197-5630d3ce21fa",
            "MIG-8970491e-16e0-5140-9f8f-d561baa3c186",
            "all"
        ]
    );
    // Names like ours that are not: a note, somebody's spec, a link to one of ours.
    fs::write(place.path("cdi/divvy-notes.json"), "{}").unwrap();
    let theirs = json!({"cdiVersion": "0.5.0", "kind": "nvidia.com/mine", "devices": []}).to_string();
    fs::write(place.path("cdi/divvy-mine.json"), theirs).unwrap();
    std::os::unix::fs::symlink("divvy-mig-1g.5gb.json", place.path("cdi/divvy-link.json")).unwrap();
    fs::write(place.path("config.toml"), "").unwrap();
    let (status, said, _) = place.generate(LAB);
    assert_eq!(status, 0);
    assert_eq!(
        said,
        "removed DIR/cdi/divvy-mig-1c.2g.10gb.json, removed DIR/cdi/divvy-mig-1g.5gb.json, \
         removed DIR/cdi/divvy-mig-4g.20gb.json, wrote DIR/cdi/divvy.json, wrote DIR/cdi/divvy+compute.json: 7 GPUs, 4 MIG devices\n"
    );
    assert_eq!(
        place.specs(),
        ["divvy+compute.json", "divvy-link.json", "divvy-mine.json", "divvy-notes.json", "divvy.json"]
    );
}

/// The plan before is what a later one keeps to.
#[test]
fn names_stay_and_moves_are_told() {
    let place = Place::with(FOUR);
    let record = Record::of("h100x8");
    let host = format!("--host={}", record.dir().display());
    assert_eq!(place.generate(&host).0, 0);
    let first = place.json("cdi/divvy.json");
    // A GPU is gone, and the ones behind it move up.
    record.edit(|host| {
        let gpus = host["nvml"]["gpus"].as_array_mut().unwrap();
        gpus.remove(2);
        for (index, gpu) in gpus.iter_mut().enumerate() {
            gpu["index"] = json!(index);
        }
    });
    assert_eq!(place.generate(&host), (0, "wrote DIR/cdi/divvy.json: 28 shares\n".into(), String::new()));
    let second = place.json("cdi/divvy.json");
    let of = |spec: &Value, name: &str| {
        let devices = spec["devices"].as_array().unwrap().clone();
        devices.into_iter().find(|device| device["name"] == name)
    };
    for name in ["shared-0", "shared-7", "shared-12", "shared-31"] {
        assert!(of(&first, name).is_some() && of(&first, name) == of(&second, name), "{name}");
    }
    assert_eq!(of(&second, "shared-8"), None);
    // Another configuration moves names, and says so.
    fs::write(place.path("config.toml"), FOUR.replace('4', "3")).unwrap();
    let (status, _, errors) = place.generate(&host);
    assert_eq!(status, 0);
    let first_line = errors.lines().next().unwrap();
    assert!(
        first_line.starts_with("warning: nvidia.com/gpu=shared-3 means GPU 1 (GPU-a33f483a-"),
        "{errors}"
    );
}

#[test]
fn an_earlier_plan_that_cannot_be_read_costs_its_memory_only() {
    let place = Place::with(FOUR);
    fs::create_dir(place.path("state")).unwrap();
    for (text, why) in [
        ("{\"version\": 7}", "it is of version 7, and this divvy reads version 1"),
        ("{\"version\": 1, \"specs\": [", "it is not a plan"),
        ("\u{0}", "it is not a plan"),
    ] {
        fs::write(place.path("state/plan.json"), text).unwrap();
        let (status, _, errors) = place.generate("--host=sim:l4");
        assert_eq!(status, 0);
        assert_eq!(
            errors,
            format!(
                "warning: the earlier plan DIR/state/plan.json is not used: {why}\n\
                 hint: names may mean other devices than before: compare with `divvy list`\n"
            )
        );
        assert_eq!(place.json("state/plan.json")["version"], 1);
    }
}

/// A recorded host brings the specs that lay beside, and the planner leaves them their names.
#[test]
fn whole_names_give_way_on_a_recorded_host_too() {
    let record = Record::of("h100x8");
    let host = format!("--host={}", record.dir().display());
    let nvidia = "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"1\"\n  containerEdits:\n    deviceNodes:\n    - path: /dev/nvidia1\n";
    fs::create_dir_all(record.file("text/var/run/cdi")).unwrap();
    fs::write(record.file("text/var/run/cdi/nvidia.yaml"), nvidia).unwrap();
    record.edit(|host| host["directories"]["/var/run/cdi"] = json!(["nvidia.yaml"]));
    let place = Place::with("");
    let (status, said, errors) = place.run(&["generate", &host, HOOK]);
    assert_eq!((status, said.as_str()), (0, ""));
    assert_eq!(
        errors,
        "note: names of whole GPUs and MIG devices are left out, because /var/run/cdi/nvidia.yaml has them (whole_names = \"auto\")\n"
    );
    let place = Place::with("whole_names = \"yes\"\n");
    let (status, _, errors) = place.run(&["generate", &host, HOOK]);
    assert_eq!(status, 7);
    assert!(
        errors.starts_with(
            "warning: /var/run/cdi/nvidia.yaml defines nvidia.com/gpu=1 too: engines resolve no name"
        ),
        "{errors}"
    );
    // Hostile YAML is a note and no more.
    let bomb = format!(
        "kind: nvidia.com/gpu\na: &a [x,x,x]\n{}",
        (0..64).map(|i| format!("b{i}: &b{i} [*a,*a,*a,*a]\n")).collect::<String>()
    );
    for text in [
        "kind: nvidia.com/gpu\n\tdevices: [",
        &bomb.replace("[*a", "[*b0"),
        "kind: nvidia.com/gpu\ndevices: [{name: \"\\e[2J\"}]\n",
    ] {
        fs::write(record.file("text/var/run/cdi/nvidia.yaml"), text).unwrap();
        let (status, _, errors) = place.run(&["generate", &host, HOOK, "--output=-"]);
        assert_eq!(status, 0, "{errors}");
        assert!(!errors.contains('\u{1b}'), "{errors}");
    }
}

const NO_NAMES: &str =
    "note: names of whole GPUs and MIG devices are left out, because whole_names is \"no\"\n";

/// Where all names are left to others, an older spec of ours would still clash with theirs.
#[test]
fn a_spec_without_devices_is_removed() {
    let place = Place::with("");
    assert_eq!(place.generate("--host=sim:l4").0, 0);
    fs::write(place.path("config.toml"), "whole_names = \"no\"\n").unwrap();
    assert_eq!(
        place.generate("--host=sim:l4"),
        (0, "removed DIR/cdi/divvy.json: no devices\n".into(), NO_NAMES.into())
    );
    assert_eq!(place.specs(), Vec::<String>::new());
    assert_eq!(place.generate("--host=sim:l4").1, "nothing to write to DIR/cdi/divvy.json: no devices\n");
}

/// Two runs at once leave the specs and the plan of one of them.
#[test]
fn runs_at_once_do_not_mix() {
    let places = [Place::with(FOUR), Place::with(FOUR.replace('4', "9"))];
    let command = |place: &Place| {
        let mut command = divvy(&["--quiet", "generate", "--host=sim:mixed", HOOK]);
        command.arg(format!("--output={}", places[0].path("cdi/divvy.json").display()));
        command.arg(format!("--state-dir={}", places[0].path("state").display()));
        command.arg(format!("--config={}", place.path("config.toml").display()));
        command
    };
    for _ in 0..5 {
        let mut children: Vec<_> = (0..8).map(|n| command(&places[n % 2]).spawn().unwrap()).collect();
        assert!(children.iter_mut().all(|child| child.wait().unwrap().success()));
        let (plan, spec) = (places[0].json("state/plan.json"), places[0].json("cdi/divvy.json"));
        let generation = format!("--generation={}", plan["generation"].as_str().unwrap());
        let args = &spec["containerEdits"]["hooks"][0]["args"];
        assert!(args.as_array().unwrap().contains(&json!(generation)), "{generation} {args}");
    }
}

#[test]
fn a_spec_of_960_shares_is_small() {
    let place = Place::with(FOUR.replace('4', "60"));
    let record = Record::of("h100x8");
    record.edit(|host| {
        let mut more = host["nvml"]["gpus"].as_array().unwrap().clone();
        for gpu in &mut more {
            let number = gpu["index"].as_u64().unwrap() + 8;
            gpu["index"] = json!(number);
            gpu["minor"] = json!(number);
            gpu["pci_address"] = json!(format!("00000001:{number:02X}:00.0"));
            gpu["uuid"] = json!(format!("GPU-{number:08x}-0000-0000-0000-000000000000"));
            host["nodes"][format!("/dev/nvidia{number}")] =
                json!({"major": 195, "minor": number, "mode": 438});
        }
        host["nvml"]["gpus"].as_array_mut().unwrap().extend(more);
    });
    let (status, said, errors) = place.generate(&format!("--host={}", record.dir().display()));
    assert_eq!((status, errors.as_str()), (0, ""));
    assert_eq!(said, "wrote DIR/cdi/divvy.json: 960 shares\n");
    let spec = fs::read_to_string(place.path("cdi/divvy.json")).unwrap();
    assert_eq!(spec.matches("create-runtime").count(), 961);
    // As installed, the hook has a longer name.
    let size =
        spec.replace("/bin/true", "/usr/local/bin/divvy-hook").replace("\"true\"", "\"divvy-hook\"").len();
    assert!(size < 400_000, "{size} bytes");
}

#[test]
fn the_state_directory_is_named_when_it_cannot_be_used() {
    let place = Place::with(FOUR);
    fs::write(place.path("state"), "").unwrap();
    let (status, _, errors) = place.generate("--host=sim:l4");
    assert_eq!(status, 1);
    assert!(errors.starts_with("error: cannot use the state directory DIR/state: "), "{errors}");
    assert!(!Path::new(&place.path("cdi")).exists());
}

/// Somebody's notes, a copy of a plan of yesterday, another output of divvy's: none is `generate`'s to remove.
#[test]
fn what_another_run_wrote_is_not_removed() {
    let place = Place::with("");
    assert_eq!(place.generate("--host=sim:l4").0, 0);
    for copy in ["divvy-2026.json", "divvy-gpu.json", "divvy2.json"] {
        fs::copy(place.path("cdi/divvy.json"), place.path("cdi").join(copy)).unwrap();
    }
    let theirs = json!({"cdiVersion": "0.5.0", "kind": "acme.com/npu", "devices": [], "containerEdits":
        {"hooks": [{"hookName": "createContainer", "path": "/a", "args": ["a", "create-container"]}]}});
    fs::write(place.path("cdi/divvy-npu.json"), theirs.to_string()).unwrap();
    fs::write(place.path("config.toml"), "whole_names = \"no\"\n").unwrap();
    let (status, said, _) = place.generate("--host=sim:l4");
    assert_eq!((status, said.as_str()), (0, "removed DIR/cdi/divvy.json: no devices\n"));
    assert_eq!(place.specs(), ["divvy-2026.json", "divvy-gpu.json", "divvy-npu.json", "divvy2.json"]);
}

/// At boot, beside NVIDIA's generator, with uvm not loaded yet: the old spec would clash all the same.
#[test]
fn a_problem_does_not_keep_a_clashing_spec() {
    let place = Place::with("");
    let record = Record::of("l4");
    let host = format!("--host={}", record.dir().display());
    assert_eq!(place.generate(&host).0, 0);
    record.edit(|host| drop(host["nodes"].as_object_mut().unwrap().remove("/dev/nvidia-uvm")));
    fs::write(place.path("config.toml"), "whole_names = \"no\"\n").unwrap();
    let (status, said, errors) = place.generate(&host);
    assert_eq!((status, said.as_str()), (7, "removed DIR/cdi/divvy.json: no devices\n"), "{errors}");
    // Where there is no GPU at all, that is what is said.
    record.edit(|host| host["nvml"]["gpus"] = json!([]));
    let (status, _, errors) = place.generate(&host);
    assert_eq!(status, 1);
    assert!(errors.contains("error: no GPU or MIG device can be given to a container"), "{errors}");
}

/// JSON may escape the slash of a kind; other vendors' plugins write kinds of their own; a driver root is in front of
/// the nodes.
#[test]
fn others_are_seen_however_they_write() {
    let record = Record::of("h100x8");
    let host = format!("--host={}", record.dir().display());
    fs::create_dir_all(record.file("text/var/run/cdi")).unwrap();
    record.edit(|host| host["directories"]["/var/run/cdi"] = json!(["a.json", "b.yaml", "c.json"]));
    let spec = |kind: &str, node: &str| {
        json!({"kind": kind, "devices": [{"name": "2", "containerEdits": {"deviceNodes": [{"path": node}]}}]})
            .to_string()
    };
    let nodes = [("a.json", spec("nvidia.com/gpu", "/dev/nvidia2").replace('/', "\\/"))];
    for (file, text) in nodes.into_iter().chain([
        ("b.yaml", spec("management.nvidia.com/gpu", "/dev/nvidia1")),
        ("c.json", "{\"kind\": \"acme.com/npu\", \"env\": \"SECRET\"}".to_owned()),
    ]) {
        fs::write(record.file("text/var/run/cdi").join(file), text).unwrap();
    }
    let place = Place::with("[[gpu]]\nmatch = [\"1\"]\nmode = \"time-slice\"\n");
    let (status, _, errors) = place.run(&["list", &host]);
    assert_eq!(status, 0);
    assert_eq!(
        errors,
        "warning: GPU 1 can be had past its shares, as management.nvidia.com/gpu=2 of /var/run/cdi/b.yaml\n\
         note: names of whole GPUs and MIG devices are left out, because /var/run/cdi/a.json has them (whole_names = \"auto\")\n"
    );
    // A record of it keeps of the specs what is read, and nothing of others'.
    let again = place.path("again");
    let (status, _, errors) = run(divvy(&["record", &host, "--quiet"]).arg(&again));
    assert_eq!((status, errors.as_str()), (0, ""));
    assert!(!again.join("text/var/run/cdi/c.json").exists());
    assert!(!fs::read_to_string(again.join("host.json")).unwrap().contains("c.json"));
    let replayed = place.run(&["list", &format!("--host={}", again.display())]);
    assert_eq!(replayed, place.run(&["list", &host]));
}

/// Numbers that are kept for a GPU which is missing are somebody's too.
#[test]
fn names_kept_for_what_is_missing_do_not_move_in_silence() {
    let place = Place::with(FOUR.replace('4', "2"));
    let record = Record::of("h100x8");
    let host = format!("--host={}", record.dir().display());
    assert_eq!(place.generate(&host).0, 0);
    record.edit(|host| drop(host["nvml"]["gpus"].as_array_mut().unwrap().remove(1)));
    assert_eq!(place.generate(&host), (0, "wrote DIR/cdi/divvy.json: 14 shares\n".into(), String::new()));
    let first = "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 3\n";
    fs::write(place.path("config.toml"), format!("{first}{}", FOUR.replace('4', "2"))).unwrap();
    let (status, _, errors) = place.generate(&host);
    assert_eq!(status, 0);
    assert!(
        errors.starts_with("warning: nvidia.com/gpu=shared-2 means GPU 0 (GPU-8b58ab31-0132-5a51-9292-903b4073d557) now, and meant GPU-a33f483a-0499-5e2f-9479-327f84b7c863 before\n"),
        "{errors}"
    );
}

#[test]
fn names_that_are_gone_are_told() {
    let place = Place::with(FOUR);
    assert_eq!(place.generate("--host=sim:l4").0, 0);
    fs::write(place.path("config.toml"), FOUR.replace('4', "1")).unwrap();
    let (_, _, errors) = place.generate("--host=sim:l4");
    assert_eq!(
        errors,
        "note: no longer a name of GPU 0 (GPU-bdf38e33-4d59-5308-a8d7-a92dfc4a917b): nvidia.com/gpu=shared-1, shared-2 and 1 more\n"
    );
}
