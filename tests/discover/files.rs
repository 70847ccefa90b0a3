//! Files that discovery finds missing, broken, elsewhere, or where others can change them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::HOOK;
use crate::support::laid::Laid;
use crate::support::{divvy, run};

pub const TRIALS: [(&str, fn()); 6] = [
    ("missing_nodes_are_named_or_made", missing_nodes_are_named_or_made),
    ("nodes_that_are_not_the_drivers_are_refused", nodes_that_are_not_the_drivers_are_refused),
    ("a_driver_behind_links_is_found", a_driver_behind_links_is_found),
    ("a_broken_library_is_named", a_broken_library_is_named),
    ("missing_driver_libraries_are_named", missing_driver_libraries_are_named),
    ("places_that_others_can_change_are_named", places_that_others_can_change_are_named),
];

fn missing_nodes_are_named_or_made() {
    let laid = Laid::out("a100-lab");
    let dev = |name: &str| laid.root().join("dev").join(name);
    for name in ["nvidia-caps/nvidia-cap31", "nvidia-uvm", "nvidia3", "nvidia-modeset"] {
        fs::remove_file(dev(name)).unwrap();
    }
    let wrong = dev("nvidia4");
    fs::remove_file(&wrong).unwrap();
    fs::write(&wrong, "").unwrap();
    let (status, spec, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!(status, 7);
    // Paths are those on this machine: below a device root, the same name in /dev is another node.
    let errors = errors.replace(laid.root().to_str().unwrap(), "ROOT");
    for line in [
        "warning: MIG device 0:1 is left out: ROOT/dev/nvidia-caps/nvidia-cap31 is missing\n",
        "warning: GPU 3 is left out: ROOT/dev/nvidia3 is missing\n",
        "warning: GPU 4 is left out: ROOT/dev/nvidia4 cannot be used: not a character device\n",
        "warning: ROOT/dev/nvidia-uvm is missing: no container with a GPU will work until it is there\n",
        "note: ROOT/dev/nvidia-modeset is missing; containers go without it\n",
        "--create-device-nodes",
    ] {
        assert!(errors.contains(line), "{line:?} is not in\n{errors}");
    }
    assert!(
        spec.contains("/dev/nvidia-uvm\"")
            && !spec.contains("nvidia-modeset")
            && !spec.contains("/dev/nvidia3\"")
    );

    let (status, _, errors) = laid.live(&["generate", HOOK, "--output=-", "--create-device-nodes"], &[]);
    assert_eq!(status, 7, "nvidia4 is a file still: {errors}");
    assert_eq!(errors.matches("made ").count(), 4, "{errors}");
    assert!(!errors.contains("warning: GPU 3"), "{errors}");
    fs::remove_file(&wrong).unwrap();
    let (status, spec, errors) = laid.live(&["generate", HOOK, "--output=-", "--create-device-nodes"], &[]);
    assert_eq!((status, errors.matches("made ").count()), (0, 1), "{errors}");
    let root = laid.root().display().to_string();
    let (_, simulated, _) =
        run(&mut divvy(&["generate", HOOK, "--host=sim:a100-lab", "--driver-root", &root]));
    assert_eq!(spec, simulated, "made nodes have other modes or numbers");
}

/// Dynamic numbers go to other drivers: what an unloaded one left in /dev may be anything by now. Engines do not
/// follow links there.
fn nodes_that_are_not_the_drivers_are_refused() {
    let laid = Laid::out("a100-lab");
    let devices = laid.root().join("proc/devices");
    let text = fs::read_to_string(&devices).unwrap();
    let text: Vec<_> =
        text.lines().filter(|line| !line.contains("-caps") && !line.contains("-uvm")).collect();
    fs::write(&devices, text.join("\n")).unwrap();
    let gpu = laid.root().join("dev/nvidia4");
    fs::rename(&gpu, laid.root().join("dev/elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", &gpu).unwrap();
    let (status, spec, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!(status, 7);
    assert_eq!(errors.matches("/dev/nvidia-caps/").count(), 4, "{errors}");
    assert_eq!(errors.matches("cannot be used: its driver is not in /proc/devices").count(), 6, "{errors}");
    assert!(
        errors.contains("hint: `modprobe nvidia-uvm` (/proc/devices does not list it), then "),
        "{errors}"
    );
    assert!(errors.contains("nvidia4 cannot be used: a symbolic link"), "{errors}");
    for left_out in ["nvidia-uvm", "nvidia-cap", "/dev/nvidia4", "\"0:1\""] {
        assert!(!spec.contains(left_out), "{left_out} in {spec}");
    }
}

/// The driver's files lie in a directory of their own, and links in the usual one lead there (Debian, NixOS).
fn a_driver_behind_links_is_found() {
    let laid = Laid::out("h100x8");
    let (usual, own) =
        (laid.library().parent().unwrap().to_path_buf(), laid.root().join("nix/store/driver/lib"));
    fs::create_dir_all(own.parent().unwrap()).unwrap();
    fs::rename(&usual, &own).unwrap();
    fs::create_dir(&usual).unwrap();
    for entry in fs::read_dir(&own).unwrap() {
        let name = entry.unwrap().file_name();
        std::os::unix::fs::symlink(Path::new("/nix/store/driver/lib").join(&name), usual.join(&name))
            .unwrap();
    }
    let (status, spec, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!((status, errors.as_str()), (0, ""));
    assert!(spec.contains("--library=/nix/store/driver/lib/libcuda.so.580.95.05=libcuda.so.1"), "{spec}");
}

fn a_broken_library_is_named() {
    let laid = Laid::out("h100x8");
    let library = laid.library().with_file_name("libnvidia-ptxjitcompiler.so.580.95.05");
    let whole = fs::read(&library).unwrap();
    fs::write(&library, &whole[..40]).unwrap();
    let (status, _, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!(status, 7);
    assert!(
        errors.contains("libnvidia-ptxjitcompiler.so.580.95.05 is left out: it cannot be read"),
        "{errors}"
    );
    // A 32-bit library is no defect.
    fs::write(&library, [b"\x7fELF\x01", &whole[5..]].concat()).unwrap();
    let (status, _, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!((status, errors.as_str()), (0, ""));
}

fn missing_driver_libraries_are_named() {
    let laid = Laid::out("h100x8");
    for entry in fs::read_dir(laid.library().parent().unwrap()).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("libcuda.so.580") {
            fs::remove_file(path).unwrap();
        }
    }
    let (status, spec, errors) = laid.live(&["generate", HOOK, "--output=-"], &[]);
    assert_eq!(status, 7);
    assert!(errors.starts_with("warning: libcuda.so.580.95.05 was not found "), "{errors}");
    assert!(errors.contains("hint: install the driver's user space"), "{errors}");
    assert!(!spec.contains("libcuda.so."), "a link that leads nowhere");
}

/// Root runs the hook: whoever can change it, or the spec that names it, is told of.
fn places_that_others_can_change_are_named() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let weak = dir.path().join("weak");
    fs::create_dir(&weak).unwrap();
    fs::set_permissions(&weak, fs::Permissions::from_mode(0o777)).unwrap();
    let hook = weak.join("divvy-hook");
    fs::copy("/bin/true", &hook).unwrap();
    let spec = dir.path().join("divvy.json");
    for (hook, spec, warned) in [
        (Path::new("/bin/true"), spec.clone(), false),
        (&hook, spec, true),
        (Path::new("/bin/true"), weak.join("divvy.json"), true),
    ] {
        let mut generate = divvy(&["generate", "--host=sim:h100x8", "--hook-path"]);
        let (status, _, errors) = run(generate.arg(hook).arg("--output").arg(&spec));
        assert_eq!(status, 0, "{errors}");
        let warning = format!("warning: {} is writable by others (mode 777): ", weak.display());
        assert_eq!(errors.starts_with(&warning), warned, "{errors}");
    }
    // What somebody else owns is written anew, though it says the same.
    let spec = dir.path().join("divvy.json");
    nix::unistd::chown(&spec, Some(65534.into()), Some(65534.into())).unwrap();
    let (_, said, _) = run(divvy(&["generate", "--host=sim:h100x8", HOOK, "--output"]).arg(&spec));
    assert!(said.starts_with("wrote "), "{said}");
    assert_eq!(fs::metadata(&spec).unwrap().uid(), 0);

    let (status, _, errors) = run(divvy(&["sim", "h100x8"]).arg(weak.join("host")));
    assert_eq!(status, 1);
    assert!(errors.starts_with("error: cannot lay a host out in "), "{errors}");
    assert!(!weak.join("host").exists());
}
