//! Black box: recorded hosts that are broken, that lie, or that want to read what is not theirs. No root, no GPU: the
//! records are of simulated hosts.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::{Value, json};
use support::record::Record;
use support::{divvy, run};

#[test]
fn a_replay_tells_what_the_host_told() {
    for host in ["a100-lab", "h100x8", "hgx-h100", "l4", "mixed", "mps"] {
        let record = Record::of(host);
        let sim = format!("--host=sim:{host}");
        // Without --hook-path: neither host has to have a hook beside this program.
        for verb in [["list", "--format=json"], ["generate", "--format=json"]] {
            let replayed = run(divvy(&verb).arg("--host").arg(record.dir()));
            assert_eq!(replayed, run(divvy(&verb).arg(&sim)), "{host} {verb:?}");
        }
    }
    let config = fs::read_to_string(Record::of("mixed").file("config.toml")).unwrap();
    assert!(config.contains("mode = \"time-slice\""), "{config}");
}

#[test]
fn the_same_machine_makes_the_same_record() {
    let (one, two) = (Record::of("mixed"), Record::of("mixed"));
    assert_eq!(fs::read(one.file("host.json")).unwrap(), fs::read(two.file("host.json")).unwrap());
    // A record of a record is the record.
    let again = one.place().join("again");
    let (status, _, errors) = run(divvy(&["record", "--host"]).arg(one.dir()).arg(&again));
    assert_eq!(status, 0, "{errors}");
    for file in ["host.json", "config.toml", "text/proc/devices"] {
        assert_eq!(fs::read(again.join(file)).unwrap(), fs::read(one.file(file)).unwrap(), "{file}");
    }
}

/// Replaces a file of the record by something else.
fn replace(record: &Record, name: &str, by: impl FnOnce(&Path)) {
    let path = record.file(name);
    fs::remove_file(&path).unwrap();
    by(&path);
}

fn fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).unwrap();
}

fn huge(path: &Path, mib: u64) {
    File::create(path).unwrap().set_len((mib << 20) + 1).unwrap();
}

#[test]
fn broken_records_are_named_and_mended() {
    type Break = fn(&Record);
    let unchanged = "hint: a recorded host is what `divvy record` wrote and nothing else: ask for it again";
    let cases: [(Break, &str, &str); 26] = [
        (
            |record| fs::remove_dir_all(record.dir()).unwrap(),
            "error: there is no directory DIR\n",
            "hint: name a directory that `divvy record` wrote, or one of sim:a100-lab, sim:h100x8, sim:hgx-h100, sim:l4, sim:mixed, sim:mps\n",
        ),
        (
            |record| {
                fs::remove_dir_all(record.dir()).unwrap();
                fs::write(record.dir(), "an archive").unwrap();
            },
            "error: DIR is not a directory\n",
            "hint: a recorded host is a directory that `divvy record` wrote; unpack it first if it came packed",
        ),
        (
            |record| {
                fs::remove_dir_all(record.dir()).unwrap();
                fifo(&record.dir());
            },
            "error: DIR is not a directory\n",
            "unpack it",
        ),
        (
            |record| fs::remove_file(record.file("host.json")).unwrap(),
            "error: DIR is not a recorded host: it has no host.json\n",
            "hint: name the directory that `divvy record` wrote\n",
        ),
        (
            |record| {
                let text = fs::read_to_string(record.file("host.json")).unwrap();
                fs::write(record.file("host.json"), &text[..40]).unwrap();
            },
            "error: cannot read DIR/host.json: EOF while parsing a string at line 4 column 3\n",
            "hint: it may have been cut off on its way: ask for it again\n",
        ),
        (
            |record| fs::write(record.file("host.json"), "<html>").unwrap(),
            "error: cannot read DIR/host.json: expected value at line 1 column 1\n",
            "hint: it may have been cut off",
        ),
        (
            |record| fs::write(record.file("host.json"), "[".repeat(1 << 20)).unwrap(),
            "error: cannot read DIR/host.json: recursion limit exceeded at line 1 column 128\n",
            "hint: it may have been cut off",
        ),
        (
            |record| fs::write(record.file("host.json"), b"{\"format\xff\": 1}").unwrap(),
            "error: cannot read DIR/host.json: not UTF-8\n",
            unchanged,
        ),
        (
            |record| replace(record, "host.json", |path| huge(path, 16)),
            "error: cannot read DIR/host.json: larger than 16 MiB\n",
            unchanged,
        ),
        (
            |record| replace(record, "host.json", |path| fs::create_dir(path).unwrap()),
            "error: cannot read DIR/host.json: not a regular file\n",
            unchanged,
        ),
        (
            |record| replace(record, "host.json", fifo),
            "error: cannot read DIR/host.json: not a regular file\n",
            unchanged,
        ),
        (
            |record| replace(record, "host.json", |path| symlink("/etc/hostname", path).unwrap()),
            "error: cannot read DIR/host.json: a symbolic link is on the way, none is followed\n",
            unchanged,
        ),
        (
            |record| record.edit(|host| host["format"] = json!(2)),
            "error: DIR/host.json is of format 2, this divvy reads 1\n",
            "hint: upgrade divvy, or record the host anew with this version\n",
        ),
        (
            |record| fs::write(record.file("host.json"), "{}").unwrap(),
            "error: DIR/host.json does not say of which format it is\n",
            unchanged,
        ),
        (
            |record| record.edit(|host| host["nvml"]["gpus"][0]["serial"] = json!(1)),
            "error: cannot read DIR/host.json: unknown field `serial`, expected one of ",
            unchanged,
        ),
        (
            |record| record.edit(|host| host["nodes"]["/dev/nvidia0"] = json!({"major": 195})),
            "error: cannot read DIR/host.json: neither major, minor and mode, nor what is wrong\n",
            unchanged,
        ),
        // A terminal would obey it.
        (
            |record| record.edit(|host| host["nvml"]["gpus"][0]["name"] = json!("A100\x1b[2J")),
            "error: DIR/host.json has a control character in \"A100\\u{1b}[2J\"\n",
            unchanged,
        ),
        (
            |record| record.edit(|host| host["\x1b[2J"] = json!(1)),
            "error: DIR/host.json has a control character in \"\\u{1b}[2J\"\n",
            unchanged,
        ),
        // Here too, where the second value hides it.
        (
            |record| {
                let text = fs::read_to_string(record.file("host.json")).unwrap();
                let twice = "\"compute_mode\": \"\\u001b[2J\", \"compute_mode\": \"x\"";
                let text = text.replacen("\"compute_mode\": \"default\"", twice, 1);
                fs::write(record.file("host.json"), text).unwrap();
            },
            "error: cannot read DIR/host.json: unknown variant `x`, expected one of ",
            unchanged,
        ),
        // A spec mounts what such paths say.
        (
            |record| {
                record.edit(|host| {
                    host["real_paths"]["/usr/bin/nvidia-smi"] = json!("/usr/bin/../../etc/shadow")
                })
            },
            "error: DIR/host.json is of no real host: /usr/bin/../../etc/shadow is no absolute path without ..\n",
            unchanged,
        ),
        (
            |record| {
                record.edit(|host| {
                    host["driver_directories"]["/usr/lib"] = json!(["lib/../../x.so.580.126.09"])
                })
            },
            "error: DIR/host.json is of no real host: \"lib/../../x.so.580.126.09\" is no file name\n",
            unchanged,
        ),
        (
            |record| replace(record, "text/proc/devices", |path| symlink("/proc/devices", path).unwrap()),
            "error: cannot read DIR/text/proc/devices: a symbolic link is on the way, none is followed\n",
            unchanged,
        ),
        (
            |record| {
                fs::rename(record.file("text"), record.file("elsewhere")).unwrap();
                symlink("elsewhere", record.file("text")).unwrap();
            },
            "error: cannot read DIR/text/proc/devices: a symbolic link is on the way, none is followed\n",
            unchanged,
        ),
        (
            |record| replace(record, "text/proc/devices", |path| huge(path, 16)),
            "error: cannot read DIR/text/proc/devices: larger than 16 MiB\n",
            unchanged,
        ),
        (
            |record| symlink("/etc/hostname", record.file("config.toml")).unwrap(),
            "error: cannot read DIR/config.toml: a symbolic link is on the way, none is followed\n",
            unchanged,
        ),
        (
            |record| fs::write(record.file("config.toml"), "# \x1b[2J\n").unwrap(),
            "error: DIR/config.toml has a control character in \"# \\u{1b}[2J\"\n",
            unchanged,
        ),
    ];
    for (number, (break_it, error, hint)) in cases.into_iter().enumerate() {
        let record = Record::of("a100-lab");
        break_it(&record);
        let (status, out, errors) = record.list();
        assert_eq!((status, out.as_str()), (2, ""), "{number}: {errors}");
        assert!(errors.starts_with(error), "{number}: {error:?} is not\n{errors}");
        assert!(errors.contains(hint), "{number}: {hint:?} is not in\n{errors}");
        assert_eq!(errors.lines().count(), 2, "{number}: {errors}");
    }
}

/// A FIFO among the text files would wait for its writer; an address with `..` would lead out of them.
#[test]
fn nothing_else_is_read() {
    let record = Record::of("a100-lab");
    replace(&record, "text/proc/driver/nvidia/params", fifo);
    let (status, _, errors) = record.list();
    assert_eq!(status, 2);
    assert!(
        errors.starts_with("error: cannot read DIR/text/proc/driver/nvidia/params: not a regular file\n"),
        "{errors}"
    );

    let record = Record::of("a100-lab");
    let outside = record.place().join("information");
    fs::write(&outside, "Device Minor: 1\n").unwrap();
    // From text/proc/driver/nvidia/gpus up to the record's own parent.
    record.edit(|host| {
        host["nvml"]["gpus"][1]["minor"] = Value::Null;
        host["nvml"]["gpus"][1]["pci_address"] = json!("../../../../../..");
    });
    let (_, _, errors) = record.list();
    assert!(errors.starts_with("warning: GPU 1 is left out: its minor number is not known\n"), "{errors}");
    // And it would be written to, in a record of the record.
    let again = record.place().join("a/b");
    fs::create_dir(again.parent().unwrap()).unwrap();
    let (status, _, errors) = run(divvy(&["record", "--host"]).arg(record.dir()).arg(&again));
    assert_eq!(status, 0, "{errors}");
    assert_eq!(fs::read_dir(again.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn what_contradicts_itself_is_left_out() {
    type Lie = fn(&mut Value);
    let cases: [(Lie, &str, &[&str]); 7] = [
        (
            |host| drop(host["nodes"].as_object_mut().unwrap().remove("/dev/nvidia-caps/nvidia-cap31")),
            "warning: MIG device 0:1 is left out: /dev/nvidia-caps/nvidia-cap31 is missing\n",
            &["0:1"],
        ),
        (
            |host| host["nvml"]["gpus"][0]["mig"]["devices"][3]["gpu_instance"] = json!(15),
            "warning: MIG device 0:3 is left out: the driver lists no capability gpu0/mig/gi15/access\n",
            &["0:3"],
        ),
        (
            |host| host["nodes"]["/dev/nvidia2"]["minor"] = json!(7),
            "warning: GPU 2 is left out: /dev/nvidia2 cannot be used: it is device 195:7, the driver has 195:2\n",
            &["2"],
        ),
        (
            |host| host["nodes"]["/dev/nvidia2"] = json!({"wrong": "not a character device"}),
            "warning: GPU 2 is left out: /dev/nvidia2 cannot be used: not a character device\n",
            &["2"],
        ),
        (|host| host["nvml"]["gpus"][3]["minor"] = json!(1), "", &["1", "3"]),
        (|host| host["nvml"]["gpus"][3]["uuid"] = host["nvml"]["gpus"][1]["uuid"].clone(), "", &["1", "3"]),
        (
            |host| {
                let devices = &mut host["nvml"]["gpus"][0]["mig"]["devices"];
                devices[2]["compute_instance"] = devices[1]["compute_instance"].clone();
            },
            "",
            &["0:1", "0:2"],
        ),
    ];
    let whole = Record::of("a100-lab").names();
    for (number, (lie, warning, left_out)) in cases.into_iter().enumerate() {
        let record = Record::of("a100-lab");
        record.edit(lie);
        let (status, _, errors) = record.list();
        assert_eq!(status, 0, "{number}: {errors}");
        assert!(errors.contains(warning), "{number}: {errors}");
        let left: Vec<_> = whole.iter().filter(|name| !left_out.contains(&name.as_str())).cloned().collect();
        assert_eq!(record.names(), left, "{number}");
    }
}

/// A text file of the record says two capabilities are one.
#[test]
fn a_capability_of_two_instances_is_nobodys() {
    let record = Record::of("a100-lab");
    let minors = record.file("text/proc/driver/nvidia-caps/mig-minors");
    let text = fs::read_to_string(&minors).unwrap();
    let line = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let (ours, theirs) = (line("gpu0/gi3/ci0/access "), line("gpu0/gi3/ci1/access "));
    let stolen = format!("gpu0/gi3/ci0/access {}", theirs.rsplit_once(' ').unwrap().1);
    fs::write(&minors, text.replace(&ours, &stolen)).unwrap();
    assert_eq!(record.names(), ["0:0", "0:3", "1", "2", "3", "4", "5", "6", "7"]);
}
