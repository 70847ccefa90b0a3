//! Black box: shares from a configuration, the names they get and keep, and every configuration that is refused. On
//! simulated and recorded hosts; no root, no engine, no GPU.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::record::Record;
use support::{divvy, golden, run};

const HOOK: &str = "--hook-path=/bin/true";
const LAB: &str = "--host=sim:a100-lab";
const FOUR: &str = "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 4\n";

/// A directory with a configuration, a place for specs and one for the plan.
struct Place(tempfile::TempDir);

impl Place {
    fn with(config: impl AsRef<[u8]>) -> Self {
        let place = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        fs::write(place.path("config.toml"), config).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs with this configuration, and calls the directory DIR in what is said.
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        let config = format!("--config={}", self.path("config.toml").display());
        let (status, out, errors) = run(divvy(args).arg(config));
        let dir = self.0.path().to_str().unwrap();
        (status, out.replace(dir, "DIR"), errors.replace(dir, "DIR"))
    }

    /// Generates into cdi/divvy.json, with the plan in state/.
    fn generate(&self, host: &str) -> (i32, String, String) {
        let output = format!("--output={}", self.path("cdi/divvy.json").display());
        let state = format!("--state-dir={}", self.path("state").display());
        self.run(&["generate", host, HOOK, &output, &state])
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).unwrap()).unwrap()
    }

    fn specs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("cdi")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

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

#[test]
fn a_share_is_the_gpus_node_and_the_whole_has_no_name() {
    let place = Place::with(FOUR);
    assert_eq!(
        place.generate("--host=sim:l4"),
        (0, "wrote DIR/cdi/divvy.json: 4 shares\n".into(), String::new())
    );
    let spec = place.json("cdi/divvy.json");
    assert_eq!(names(&spec), ["shared-0", "shared-1", "shared-2", "shared-3"]);
    let node = json!({"path": "/dev/nvidia0", "type": "c", "fileMode": 438, "permissions": "rw"});
    assert_eq!(spec["devices"][2]["containerEdits"], json!({"deviceNodes": [node]}));
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
    let kinds =
        ["divvy-mig-1c.2g.10gb.json", "divvy-mig-1g.5gb.json", "divvy-mig-4g.20gb.json", "divvy.json"];
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
         removed DIR/cdi/divvy-mig-4g.20gb.json, wrote DIR/cdi/divvy.json: 7 GPUs, 4 MIG devices\n"
    );
    assert_eq!(place.specs(), ["divvy-link.json", "divvy-mine.json", "divvy-notes.json", "divvy.json"]);
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
    assert!(first_line.starts_with("warning: nvidia.com/gpu=shared-3 means GPU-a33f483a-"), "{errors}");
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
    let size = fs::metadata(place.path("cdi/divvy.json")).unwrap().len();
    assert!(size < 400_000, "{size} bytes");
}

#[test]
fn configurations_that_are_no_text() {
    let place = Place::with("# größe\n[[gpu]]\nmatch = [\"\u{e9}".as_bytes().split_last().unwrap().1);
    let refused = |what: &str, hint: &str| (2, String::new(), format!("error: {what}\nhint: {hint}\n"));
    let list = ["list", LAB];
    assert_eq!(
        place.run(&list),
        refused("DIR/config.toml:3:11: the configuration is not UTF-8 from here on", "save it as UTF-8")
    );
    // 100 MB, sparse: it is not read to its end.
    fs::File::create(place.path("config.toml")).unwrap().set_len(100 << 20).unwrap();
    assert_eq!(
        place.run(&list),
        refused("the configuration DIR/config.toml is larger than 1 MiB", "this is some other file")
    );
    fs::remove_file(place.path("config.toml")).unwrap();
    assert_eq!(
        place.run(&list),
        refused(
            "cannot read the configuration DIR/config.toml: No such file or directory (os error 2)",
            "check the name that --config gives"
        )
    );
    fs::create_dir(place.path("config.toml")).unwrap();
    assert_eq!(place.run(&list), refused("the configuration DIR/config.toml is a directory", "name a file"));
    fs::remove_dir(place.path("config.toml")).unwrap();
    nix::unistd::mkfifo(&place.path("config.toml"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert_eq!(
        place.run(&list),
        refused("the configuration DIR/config.toml is no regular file", "name a file")
    );
}

#[test]
fn a_configuration_that_may_not_be_read() {
    // Not below the checkout, whose directories another user may not pass.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let config = dir.path().join("config.toml");
    fs::write(&config, "").unwrap();
    fs::set_permissions(&config, fs::Permissions::from_mode(0o000)).unwrap();
    let mut command = divvy(&["list", LAB, "--config"]);
    command.arg(&config);
    if nix::unistd::geteuid().is_root() {
        // Root may read everything, so another user does it, with a copy of the program that he may run.
        let program = dir.path().join("divvy");
        fs::copy(command.get_program(), &program).unwrap();
        let args: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        command = std::process::Command::new(program);
        command.args(args).uid(65534).gid(65534);
    }
    let (status, _, errors) = run(&mut command);
    assert_eq!(status, 2);
    let expected = format!(
        "error: cannot read the configuration {}: Permission denied (os error 13)\nhint: run as root, or let your user read it\n",
        config.display()
    );
    assert_eq!(errors, expected);
}

#[test]
fn a_mistake_ends_with_status_2_and_writes_nothing() {
    let place = Place::with("[[gpu]]\nmatch = [\"0\"]\nrepilcas = 4\n");
    let (status, out, errors) = place.generate("--host=sim:l4");
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(
        errors.starts_with("error: DIR/config.toml:3:1: unknown key `repilcas`, expected one of `match`, "),
        "{errors}"
    );
    assert!(!place.path("cdi").exists());
    assert!(!place.path("state/plan.json").exists());
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

#[test]
fn share_writes_what_it_shows() {
    let place = Place::with("# mine\n");
    let share = |args: &[&str]| place.run(&[&["share"], args].concat());
    let diff = "--- DIR/config.toml\n+++ DIR/config.toml\n@@ -1 +1,5 @@\n # mine\n+[[gpu]]\n+match = [\"2\"]\n\
                +mode = \"time-slice\"\n+replicas = 4\n2: shared-0 to shared-3\n";
    let (status, out, errors) = share(&["2", "--replicas=4", LAB, "--dry-run"]);
    let gone = "note: no longer a name of GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf: nvidia.com/gpu=2\n";
    assert_eq!((status, out.as_str(), errors.as_str()), (0, diff, gone));
    assert_eq!(fs::read_to_string(place.path("config.toml")).unwrap(), "# mine\n");
    fs::set_permissions(place.path("config.toml"), fs::Permissions::from_mode(0o640)).unwrap();
    let (status, out, errors) = share(&["2", "--replicas=4", LAB]);
    assert_eq!((status, out.as_str()), (0, diff));
    assert_eq!(errors, format!("{gone}note: wrote DIR/config.toml; `divvy generate` puts it in force\n"));
    let metadata = fs::metadata(place.path("config.toml")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o640);
    assert_eq!(
        share(&["2", "--replicas=4", LAB]),
        (0, "DIR/config.toml says so already\n".into(), String::new())
    );
    assert_eq!(place.generate(LAB).1, "wrote DIR/cdi/divvy.json: 6 GPUs, 4 MIG devices, 4 shares\n");
    // A GPU in front of it takes the first numbers, and that is told.
    let (_, out, errors) = share(&["1", "--replicas=2", LAB]);
    assert!(out.ends_with("1: shared-0 to shared-1\n"), "{out}");
    assert!(
        errors.starts_with("warning: nvidia.com/gpu=shared-0 to shared-1 mean GPU-934e3c41-"),
        "{errors}"
    );
    share(&["1", "--none", LAB]);
    let (_, out, _) = share(&["2", "--none", LAB]);
    assert!(out.ends_with("2: whole\n"), "{out}");
    assert_eq!(fs::read_to_string(place.path("config.toml")).unwrap(), "# mine\n");
    // Through a link to where the administrator keeps it, and nothing is left beside it.
    fs::rename(place.path("config.toml"), place.path("real.toml")).unwrap();
    std::os::unix::fs::symlink("real.toml", place.path("config.toml")).unwrap();
    assert_eq!(share(&["0:1", "--replicas=2", LAB]).0, 0);
    assert!(fs::symlink_metadata(place.path("config.toml")).unwrap().is_symlink());
    assert!(fs::read_to_string(place.path("real.toml")).unwrap().contains("match = [\"0:1\"]"));
    assert_eq!(fs::read_dir(place.path("")).unwrap().count(), 4, "cdi, config.toml, real.toml, state");
}

#[test]
fn share_refuses_what_cannot_be() {
    let place = Place::with("# mine\n");
    for (args, status, said) in [
        (
            &["8", "--replicas=2"][..],
            2,
            "error: there is no \"8\" on this machine\nhint: choose one of 0:0, 0:1, 0:2, 0:3, 1, 2, 3, 4, 5, 6, 7\n",
        ),
        (
            &["0", "--replicas=2"],
            2,
            "error: GPU 0 is in MIG mode, and only its MIG devices can be shared\nhint: choose one of 0:0, ",
        ),
        (
            &["1", "--replicas=2", "--memory=8GiB"],
            1,
            "error: nothing is changed: with this GPU 1 is left out: nothing on this machine holds the memory limit of its shares \"shared\"\nhint: leave memory",
        ),
        (
            &["1", "--replicas=6", "--memory=8GiB", "--advisory"],
            1,
            "error: nothing is changed: with this GPU 1 is left out: its shares have 49152MiB of memory together, and it has 40960MiB\nhint: lower memory at DIR/config.toml:2:1",
        ),
        (
            &["1", "--replicas=2", "--mode=mps"],
            2,
            "error: invalid value 'mps' for '--mode <MODE>'\n  [possible values: time-slice]",
        ),
        (&["1", "--replicas=0"], 2, "error: invalid value '0' for '--replicas <N>': 0 is not in 1..=1024"),
        (
            &["1", "--replicas=2", "--name=all"],
            2,
            "error: invalid value 'all' for '--name <NAME>': the name \"all\" is reserved",
        ),
        (
            &["1", "--replicas=2", "--memory=8G"],
            2,
            "error: invalid value '8G' for '--memory <SIZE>': \"G\" in \"8G\" is no unit",
        ),
        (
            &["1", "--replicas=2", "--none"],
            2,
            "error: the argument '--replicas <N>' cannot be used with '--none'",
        ),
        (&["1"], 2, "error: the following required arguments were not provided:\n  --replicas <N>"),
    ] {
        let (got, out, errors) = place.run(&[&["share", LAB], args].concat());
        assert_eq!((got, out.as_str()), (status, ""), "{args:?}\n{errors}");
        assert!(errors.starts_with(said), "{args:?}\n{errors}");
    }
    assert_eq!(fs::read_to_string(place.path("config.toml")).unwrap(), "# mine\n");
    // A simulated host's own configuration is nobody's to write.
    let (status, _, errors) = run(&mut divvy(&["share", "0", "--replicas=2", "--host=sim:l4"]));
    assert_eq!(status, 2);
    assert!(errors.contains("hint: add --dry-run, or name a file with --config"), "{errors}");
}

#[test]
fn nvidias_yaml() {
    let place = Place::with("");
    let yaml = "version: v1\nflags:\n  migStrategy: mixed\n  gdsEnabled: true\nsharing:\n  mps:\n    resources:\n\
                \x20   - name: nvidia.com/gpu\n      devices: [3]\n      replicas: 4\n\
                \x20   - name: nvidia.com/mig-1g.10gb\n      rename: gpu-small\n      replicas: 2\n";
    fs::write(place.path("plugin.yaml"), yaml).unwrap();
    let config = format!("--config={}", place.path("plugin.yaml").display());
    let (status, out, errors) =
        run(&mut divvy(&["generate", "--host=sim:mixed", HOOK, "--dry-run", &config]));
    let errors = errors.replace(place.0.path().to_str().unwrap(), "DIR");
    assert_eq!(status, 0, "{errors}");
    golden("plugin.dry-run", &format!("{}\n{errors}", out.replace(place.0.path().to_str().unwrap(), "DIR")));
    // It is recorded under a name that says what it is, and replayed as such.
    let record = place.path("record");
    let (status, _, errors) = run(divvy(&["record", "--quiet", "--host=sim:mixed", &config]).arg(&record));
    assert_eq!(status, 0, "{errors}");
    let host = format!("--host={}", record.display());
    let (_, replayed, _) = run(&mut divvy(&["list", &host]));
    let (_, named, _) = run(&mut divvy(&["list", "--host=sim:mixed", &config]));
    assert_eq!(replayed, named);
    assert!(replayed.contains("nvidia.com/gpu-small=shared-1"), "{replayed}");
    let (status, _, errors) = run(&mut divvy(&["share", "0", "--replicas=2", "--host=sim:mixed", &config]));
    assert_eq!(status, 2);
    assert!(errors.contains("is NVIDIA's form, which `divvy share` does not write"), "{errors}");
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

/// A record comes from a stranger, and TOML and YAML have escapes of their own.
#[test]
fn nothing_that_a_terminal_obeys_is_printed() {
    let record = Record::of("l4");
    let host = format!("--host={}", record.dir().display());
    for (file, text) in [
        ("config.toml", "\"\\u001b]0;x\\u0007\" = 1\n"),
        ("config.toml", "[pool.\"\\u001b[2J\"]\n"),
        ("config.toml", "[[gpu]]\nmatch = [\"\\u001b[2J\\u202e\"]\n"),
        (
            "config.yaml",
            "sharing: {timeSlicing: {resources: [{name: \"nvidia.com/mig-1g.10gb+\\e[2J\", replicas: 2}]}}\n",
        ),
        ("config.yaml", "\"\\e[2J\": 1\n"),
    ] {
        for old in ["config.toml", "config.yaml"] {
            let _ = fs::remove_file(record.file(old));
        }
        fs::write(record.file(file), text).unwrap();
        for args in [
            &["list", &host][..],
            &["generate", &host, "--dry-run"],
            &["share", "0", "--none", &host, "--dry-run"],
        ] {
            let (_, out, errors) = run(&mut divvy(args));
            for said in [out, errors] {
                assert!(!said.contains(['\u{1b}', '\u{7}', '\u{202e}']), "{args:?} {text} {said:?}");
            }
        }
    }
    record.edit(|host| host["nvml"]["gpus"][0]["name"] = json!("NVIDIA \u{202e}L4"));
    let _ = fs::remove_file(record.file("config.yaml"));
    assert!(run(&mut divvy(&["list", &host])).1.contains("NVIDIA \\u{202e}L4"));
}

#[test]
fn share_is_not_stopped_by_what_was_wrong_before() {
    let config =
        "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = 2\n[[gpu]]\nmatch = [\"9\"]\n";
    let place = Place::with(config);
    let (status, _, errors) = place.run(&["share", "2", "--replicas=4", LAB]);
    assert_eq!(status, 0, "{errors}");
    // Several at once, of which an earlier rule decides on one: whole again means all of them.
    let place = Place::with("[[gpu]]\nmatch = [\"1\"]\n[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\n");
    let (status, out, errors) = place.run(&["share", "NVIDIA A100*", "--none", LAB]);
    assert_eq!(status, 0, "{errors}");
    assert!(out.ends_with("NVIDIA A100*: whole\n"), "{out}");
    assert_eq!(place.generate(LAB).1, "wrote DIR/cdi/divvy.json: 7 GPUs, 4 shares\n");
}

/// A resource of NVIDIA's is of one sort of device, whatever its list says.
#[test]
fn a_resource_is_what_its_name_says() {
    let place = Place::with("");
    let yaml = |devices: &str| {
        format!(
            "flags: {{migStrategy: mixed}}\nsharing: {{timeSlicing: {{resources: [{{name: nvidia.com/mig-1g.5gb, devices: [{devices}], replicas: 2}}]}}}}\n"
        )
    };
    let config = format!("--config={}", place.path("plugin.yaml").display());
    for (devices, status) in [("'0:3'", 0), ("'1'", 7), ("'0:0'", 7)] {
        fs::write(place.path("plugin.yaml"), yaml(devices)).unwrap();
        let (got, out, errors) = run(&mut divvy(&["generate", LAB, HOOK, "--dry-run", &config]));
        assert_eq!(got, status, "{devices}: {errors}");
        assert_eq!(out.contains("time-slice"), status == 0, "{devices}: {out}");
    }
}

/// Whoever wrote the file by hand or by machine: it is read or refused before one grows impatient.
#[test]
fn configurations_that_are_too_much() {
    let entries: String = (0..100_000).map(|n| format!("\"{n}\",")).collect();
    let rules: String = (0..30_000).map(|n| format!("[[gpu]]\nmatch = [\"{n}\"]\n")).collect();
    let shares: String = (0..20_000).map(|n| format!("{{name = \"n{n}\", replicas = 1024}},")).collect();
    for (text, said) in [
        (format!("[[gpu]]\nmatch = [{entries}]\n"), "there are more than 4096 match entries"),
        (rules, "there are more than 4096 match entries"),
        (
            format!("[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nshare = [{shares}]\n"),
            "with these the GPU has 2048 shares: 1024 are the most",
        ),
    ] {
        let (status, _, errors) = Place::with(text).run(&["list", "--host=sim:l4"]);
        assert_eq!(status, 2);
        assert!(errors.contains(said), "{errors}");
    }
}

/// What is not asked for stays, and shares that are not all alike are not thrown away.
#[test]
fn share_keeps_what_is_not_asked_for() {
    let place = Place::with(
        "[[gpu]]\nmatch = [\"2\"]\nmode = \"time-slice\"\nname = \"ml\"\nreplicas = 2\nrename = true\n",
    );
    // As an engine takes it, too.
    let (status, out, errors) = place.run(&["share", "nvidia.com/gpu=2", "--replicas=4", LAB]);
    assert_eq!(status, 0, "{errors}");
    assert!(out.ends_with("2: nvidia.com/gpu.shared=ml-0 to ml-3\n"), "{out}");
    let text = fs::read_to_string(place.path("config.toml")).unwrap();
    assert!(text.contains("name = \"ml\"\nreplicas = 4\nrename = true\n"), "{text}");
    let unequal =
        "[[gpu]]\nmatch = [\"2\"]\nmode = \"time-slice\"\n# do not touch\n[[gpu.share]]\nname = \"ci\"\n";
    let place = Place::with(unequal);
    let (status, _, errors) = place.run(&["share", "2", "--replicas=4", LAB]);
    assert_eq!(
        (status, errors.as_str()),
        (
            2,
            "error: DIR/config.toml: the shares of \"2\" are not all alike, and would be gone\nhint: edit the file by hand, or make the device whole with --none first\n"
        )
    );
    assert_eq!(place.run(&["share", "2", "--none", LAB]).0, 0);
    assert_eq!(fs::read_to_string(place.path("config.toml")).unwrap(), "# do not touch\n");
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
        errors.starts_with("warning: nvidia.com/gpu=shared-2 means GPU-8b58ab31-0132-5a51-9292-903b4073d557 now, and meant GPU-a33f483a-0499-5e2f-9479-327f84b7c863 before\n"),
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
        "note: no longer a name of GPU-bdf38e33-4d59-5308-a8d7-a92dfc4a917b: nvidia.com/gpu=shared-1, shared-2 and 1 more\n"
    );
}
