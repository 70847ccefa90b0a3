//! Black box: configurations that are refused, NVIDIA's YAML, and `divvy share`, which writes one. On simulated and
//! recorded hosts; no root, no engine, no GPU.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use serde_json::json;
use support::place::Place;
use support::record::Record;
use support::{divvy, golden, run};

const HOOK: &str = "--hook-path=/bin/true";
const LAB: &str = "--host=sim:a100-lab";

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
fn share_writes_what_it_shows() {
    let place = Place::with("# mine\n");
    let share = |args: &[&str]| place.run(&[&["share"], args].concat());
    let diff = "--- DIR/config.toml\n+++ DIR/config.toml\n@@ -1 +1,5 @@\n # mine\n+[[gpu]]\n+match = [\"2\"]\n\
                +mode = \"time-slice\"\n+replicas = 4\n2: shared-0 to shared-3\n";
    let (status, out, errors) = share(&["2", "--replicas=4", LAB, "--dry-run"]);
    let gone =
        "note: no longer a name of GPU 2 (GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf): nvidia.com/gpu=2\n";
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
    assert_eq!(
        place.generate(LAB).1,
        "wrote DIR/cdi/divvy.json, wrote DIR/cdi/divvy+compute.json, wrote DIR/cdi/divvy+compute+leased.json: 6 GPUs, 4 MIG devices, 4 shares\n"
    );
    // A GPU in front of it takes the first numbers, and that is told.
    let (_, out, errors) = share(&["1", "--replicas=2", LAB]);
    assert!(out.ends_with("1: shared-0 to shared-1\n"), "{out}");
    assert!(
        errors.starts_with("warning: nvidia.com/gpu=shared-0 to shared-1 mean GPU 1 (GPU-934e3c41-"),
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

/// A pool that loses its last device is what was asked for.
#[test]
fn share_gives_back_the_last_device_of_a_pool() {
    let pool = "[pool.shared]\nwait = \"30m\"\n\n[users.ana]\npools = [\"shared\"]\n";
    let place = Place::with(format!("[[gpu]]\nmatch = [\"2\"]\nmode = \"time-slice\"\n\n{pool}"));
    let (status, _, errors) = place.run(&["share", "2", "--none", LAB]);
    assert_eq!(status, 0, "{errors}");
    let warned = "warning: DIR/config.toml:2:7: pool \"shared\" has no device on this machine\n\
                  warning: DIR/config.toml:6:10: pool \"shared\" has no device on this machine\n\
                  hint: take it out of the file too, unless its devices come back\n";
    assert!(errors.contains(warned), "{errors}");
    assert_eq!(fs::read_to_string(place.path("config.toml")).unwrap().trim_start(), pool);
}

/// What to do stands beside what it is about.
#[test]
fn each_problem_has_its_hint() {
    let place = Place::with("[[gpu]]\nmatch = [\"17\"]\n\n[pool.large]\n\n[pool.little]\n\n[pool.whole]\n");
    let (status, _, errors) = place.generate("--host=sim:l4");
    assert_eq!(status, 7);
    let kinds: Vec<&str> = errors.lines().map(|line| line.split_once(": ").unwrap().0).collect();
    // Those of shares are mended alike.
    let expected = ["warning", "hint", "warning", "warning", "hint", "warning", "hint"];
    assert_eq!(kinds, expected, "{errors}");
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
            &["1", "--replicas=2", "--mode=turns"],
            2,
            "error: invalid value 'turns' for '--mode <MODE>'\n  [possible values: time-slice, mps]",
        ),
        (
            &["1", "--replicas=64", "--mode=mps"],
            1,
            "error: nothing is changed: with this GPU 1 is left out: it has 64 shares, and MPS of this driver serves 48 processes at once\nhint: lower replicas at DIR/config.toml:2:1, or use a driver with CUDA 13.1",
        ),
        (
            &["1", "--replicas=4", "--mode=mps", "--memory=10GiB"],
            1,
            "error: nothing is changed: with this GPU 1 is left out: its shares have 40960MiB of memory together, and it has 40276MiB for them (40960MiB without 620MiB of the driver's and 64MiB of the MPS server's)\nhint: lower memory at DIR/config.toml:2:1, or say overcommit = true",
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
    let errors = errors.replace(place.dir().to_str().unwrap(), "DIR");
    assert_eq!(status, 0, "{errors}");
    golden("plugin.dry-run", &format!("{}\n{errors}", out.replace(place.dir().to_str().unwrap(), "DIR")));
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
    assert_eq!(
        place.generate(LAB).1,
        "wrote DIR/cdi/divvy.json, wrote DIR/cdi/divvy+compute+leased.json: 7 GPUs, 4 shares\n"
    );
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
