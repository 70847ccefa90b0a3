//! Black box, as root: a live machine is recorded, and the record replayed. A replay that tells another host than the
//! machine was makes a bug report worthless.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Trial};
use support::laid::Laid;
use support::needs::{self, Need};
use support::{divvy, leave_out_symbol, run};

const GENERATE: [&str; 3] = ["generate", "--hook-path=/bin/true", "--output=-"];

fn main() {
    let tests: [(&'static str, fn()); 5] = [
        ("a_record_replays_as_the_live_machine", a_record_replays_as_the_live_machine),
        ("a_masked_record_has_no_uuid", a_masked_record_has_no_uuid),
        ("what_is_broken_replays_as_broken", what_is_broken_replays_as_broken),
        ("the_configuration_comes_along", the_configuration_comes_along),
        ("a_record_is_whole_or_not_there", a_record_is_whole_or_not_there),
    ];
    let trials: Vec<Trial> =
        tests.into_iter().map(|(name, test)| needs::trial(name, &[Need::Root], test)).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// Records the live machine in a new directory; returns it with what was said on both outputs.
fn record(laid: &Laid, flags: &[&str]) -> (PathBuf, String, String) {
    let dir = laid.dir.path().join("record");
    let _ = fs::remove_dir_all(&dir);
    let (status, said, errors) = laid.live(&[&["record", dir.to_str().unwrap()], flags].concat(), &[]);
    assert_eq!(status, 0, "{errors}");
    (dir, said, errors)
}

/// Runs on a recorded host. Only a device root makes its paths on this machine others than in a container.
fn replay(args: &[&str], dir: &Path) -> (i32, String, String) {
    run(divvy(args).arg("--host").arg(dir))
}

/// Every file of a record, by path in it.
fn files(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.append(&mut files(&path)),
            false => found.push((path.clone(), fs::read_to_string(&path).unwrap())),
        }
    }
    found
}

fn uuids(laid: &Laid) -> Vec<String> {
    let facts = fs::read_to_string(&laid.facts).unwrap();
    let words = facts.split('"').filter(|word| word.starts_with("GPU-") || word.starts_with("MIG-"));
    words.map(|word| word[4..].to_owned()).collect()
}

fn a_record_replays_as_the_live_machine() {
    for (host, devices) in [
        ("a100-lab", "8 GPUs, 4 MIG devices"),
        ("l4", "1 GPU"),
        ("mixed", "4 GPUs, 3 MIG devices"),
        ("mps", "6 GPUs, 3 MIG devices"),
    ] {
        let laid = Laid::out(host);
        let (dir, said, errors) = record(&laid, &[]);
        let count = files(&dir).len();
        assert_eq!(said, format!("recorded {devices} in {} ({count} files)\n", dir.display()));
        assert!(errors.contains("UUIDs are in it") && errors.contains("`divvy list --host "), "{errors}");

        assert_eq!(
            replay(&["list", "--format=json"], &dir),
            laid.live(&["list", "--format=json"], &[]),
            "{host}"
        );
        let root = laid.root().display().to_string();
        let flags = [&GENERATE[..], &["--driver-root", &root]].concat();
        assert_eq!(replay(&flags, &dir), laid.live(&GENERATE, &[]), "{host}");

        for (path, text) in files(&dir) {
            assert!(!text.contains(&root), "{} names the driver root", path.display());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        }
        assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o7777, 0o755);
        let devices = fs::read(dir.join("text/proc/devices")).unwrap();
        assert_eq!(devices, fs::read(laid.root().join("proc/devices")).unwrap(), "not verbatim");
    }
}

fn a_masked_record_has_no_uuid() {
    let laid = Laid::out("a100-lab");
    // Then the minor comes from a text file, which has the GPU's UUID in it too.
    leave_out_symbol(&laid.library(), "nvmlDeviceGetMinorNumber");
    let config = laid.dir.path().join("config.toml");
    let uuids = uuids(&laid);
    fs::write(&config, format!("# GPU-{} and MIG-{}*\n", uuids[0], &uuids[2][..8])).unwrap();
    let (dir, _, errors) = record(&laid, &["--mask", "--config", config.to_str().unwrap()]);
    assert!(errors.contains("UUIDs are replaced by numbers"), "{errors}");

    let mask = |number: usize| format!("00000000-0000-0000-0000-{number:012}");
    for (path, text) in files(&dir) {
        for uuid in &uuids {
            assert!(!text.to_lowercase().contains(uuid), "{uuid} is in {}", path.display());
        }
    }
    let masked = fs::read_to_string(dir.join("config.toml")).unwrap();
    assert_eq!(masked, format!("# GPU-{} and MIG-{}*\n", mask(1), mask(3)));
    let information = "text/proc/driver/nvidia/gpus/0000:10:1d.0/information";
    let information = fs::read_to_string(dir.join(information)).unwrap();
    assert!(information.contains(&format!("GPU-{}\n", mask(6))), "{information}");

    let (_, mut live, _) = laid.live(&["list", "--format=json"], &[]);
    for (number, uuid) in uuids.iter().enumerate() {
        live = live.replace(uuid, &mask(number + 1));
    }
    let (status, replayed, errors) = replay(&["list", "--format=json"], &dir);
    assert_eq!((status, errors.as_str()), (0, ""));
    // The generation is of the names, and so of the UUIDs.
    let without_generation = |listing: &str| {
        let mut listing: serde_json::Value = serde_json::from_str(listing).unwrap();
        listing["generation"].take();
        listing
    };
    assert_eq!(without_generation(&replayed), without_generation(&live));
}

/// What is missing, wrong or unreadable is what a report is about.
fn what_is_broken_replays_as_broken() {
    let laid = Laid::out("a100-lab");
    let dev = |name: &str| laid.root().join("dev").join(name);
    for name in ["nvidia-caps/nvidia-cap31", "nvidia-uvm", "nvidia3", "nvidia-modeset", "nvidia4", "nvidia5"]
    {
        fs::remove_file(dev(name)).unwrap();
    }
    fs::write(dev("nvidia4"), "").unwrap();
    std::os::unix::fs::symlink("nvidia6", dev("nvidia5")).unwrap();
    fs::rename(dev("nvidia7"), dev("nvidia3")).unwrap();
    let libraries = laid.library().parent().unwrap().to_path_buf();
    let library = |stem: &str| libraries.join(format!("{stem}.so.580.126.09"));
    let whole = fs::read(library("libnvidia-rtcore")).unwrap();
    fs::write(library("libnvidia-rtcore"), &whole[..40]).unwrap();
    fs::write(library("libnvidia-tls"), [b"\x7fELF\x01", &whole[5..]].concat()).unwrap();
    fs::remove_file(laid.root().join("proc/driver/nvidia-caps/mig-minors")).unwrap();
    // Neither the name of a program of somebody's nor its content is anybody's business.
    fs::write(libraries.join("libsecret.so.1"), "secret").unwrap();

    let (dir, _, _) = record(&laid, &[]);
    let root = laid.root().display().to_string();
    let (status, spec, errors) = laid.live(&GENERATE, &[]);
    assert_eq!(status, 7);
    assert!(errors.matches("warning: ").count() >= 7, "{errors}");
    // Nodes are named as on this machine, where a device root is in front of them.
    let errors = errors.replace(&format!("{root}/dev"), "/dev");
    let flags = [&GENERATE[..], &["--driver-root", &root]].concat();
    assert_eq!(replay(&flags, &dir), (status, spec, errors));
    for (path, text) in files(&dir) {
        assert!(!text.contains("secret"), "{}", path.display());
    }
}

fn the_configuration_comes_along() {
    let laid = Laid::out("l4");
    let config = laid.dir.path().join("config.toml");
    fs::write(&config, "# mine\n").unwrap();
    let (dir, _, _) = record(&laid, &["--config", config.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(dir.join("config.toml")).unwrap(), "# mine\n");

    let other = laid.dir.path().join("other");
    let other = other.to_str().unwrap();
    let fifo = laid.dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::write(&config, vec![b'#'; (1 << 20) + 1]).unwrap();
    for (config, words) in [
        (Path::new("/no/such.toml"), "error: cannot read the configuration /no/such.toml: No such file"),
        (&fifo, "is no regular file"),
        (&config, "larger than 1 MiB"),
    ] {
        let (status, _, errors) = laid.live(&["record", other, "--config", config.to_str().unwrap()], &[]);
        assert_eq!(status, 2);
        assert!(errors.contains(words) && errors.contains("\nhint: "), "{errors}");
        assert!(!Path::new(other).exists());
    }
}

fn a_record_is_whole_or_not_there() {
    let laid = Laid::out("l4");
    let dir = laid.dir.path().join("record");
    let args = ["record", dir.to_str().unwrap()];
    let (status, out, errors) = laid.live(&args, &[("MOCK_NVML_FAIL", "nvmlInit_v2=9")]);
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(errors.starts_with("error: the NVIDIA driver is not loaded"), "{errors}");
    assert!(!dir.exists());

    fs::create_dir(&dir).unwrap();
    let (status, _, errors) = laid.live(&args, &[]);
    assert_eq!(status, 0, "an empty directory is as good as none: {errors}");
    let before = fs::metadata(dir.join("host.json")).unwrap().ino();
    let (status, _, errors) = laid.live(&args, &[]);
    assert_eq!(status, 2);
    assert!(errors.contains("is not empty\nhint: "), "{errors}");
    assert_eq!(fs::metadata(dir.join("host.json")).unwrap().ino(), before);

    let weak = laid.dir.path().join("weak");
    fs::create_dir(&weak).unwrap();
    fs::set_permissions(&weak, fs::Permissions::from_mode(0o777)).unwrap();
    let (status, _, errors) = laid.live(&["record", weak.join("record").to_str().unwrap()], &[]);
    assert_eq!(status, 1);
    assert!(errors.starts_with("error: cannot write a recorded host in "), "{errors}");

    let mut left: Vec<_> =
        fs::read_dir(laid.dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["host", "nvml.log", "record", "weak"], "something was left behind");
}
