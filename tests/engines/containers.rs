//! What a container gets for its `--device`, and what it does not get. In the simulated host a100-lab GPU 0 is cut
//! into four MIG devices and GPUs 1 to 7 are whole. No driver stands behind the nodes, so that opening one tells
//! the device cgroup's answer: ENXIO is "admitted", EPERM is "denied". On a host with GPUs of its own a driver
//! may answer for some of the nodes, and says anything but EPERM.

use crate::engine::{Engine, EngineTrial};
use crate::ground::Ground;
use crate::layout::alone;

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 20] = [
    ("mig_device", mig_device),
    ("whole_gpu", whole_gpu),
    ("by_uuid", by_uuid),
    ("all", all),
    ("two_devices", two_devices),
    ("same_device_twice", same_device_twice),
    ("share_of_a_gpu", share_of_a_gpu),
    ("share_of_a_mig_device", share_of_a_mig_device),
    ("side_kinds", side_kinds),
    ("no_device", no_device),
    ("unknown_device", unknown_device),
    ("visible_devices_is_void", visible_devices_is_void),
    ("mounts_are_read_only", mounts_are_read_only),
    ("libraries_load", libraries_load),
    ("static_image", static_image),
    ("restart", restart),
    ("stale_spec", stale_spec),
    ("read_only_root", read_only_root),
    ("unprivileged_user", unprivileged_user),
    ("exec", exec),
];

/// What every container with a device has besides.
const CONTROL: [&str; 4] =
    ["/dev/nvidia-modeset", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"];

/// Opens every NVIDIA node that is there. A capability is only ever read, and its mode allows no more.
pub const OPEN_ALL: &str = "
    for node in /dev/nvidia*; do [ ! -c $node ] || probe open $node; done
    for node in /dev/nvidia-caps/*; do [ ! -c $node ] || probe read $node; done";

/// Asserts that the container has these nodes besides the control nodes, that it may open them, and no others.
#[track_caller]
pub fn assert_nodes(open_all: &str, expected: &[&str]) {
    let mut expected: Vec<&str> = CONTROL.iter().chain(expected).copied().collect();
    expected.sort_unstable();
    let opened: Vec<_> = open_all.lines().filter_map(|line| line.split_once(": ")).collect();
    let mut found: Vec<&str> = opened.iter().map(|(node, _)| *node).collect();
    found.sort_unstable();
    assert_eq!(found, expected);
    for (node, answer) in opened {
        assert!(!["EPERM", "EACCES", "ENOENT"].contains(&answer), "{node}: {answer}");
    }
}

/// Makes a node that the container was not given, as its root may try, and asserts that it is of no use.
#[track_caller]
fn assert_denied(ground: &Ground, engine: &Engine, device: &str, (major, minor): (u32, u32)) {
    let made = engine
        .container(ground, &[device])
        .option("--cap-add=MKNOD")
        .sh(&format!("probe mknod /tmp/other {major} {minor}"));
    // Without a device cgroup it is mknod that is refused.
    let expected = if engine.rootful { "/tmp/other: EPERM" } else { "/tmp/other: mknod EPERM" };
    assert_eq!(made.ok(), expected, "{major}:{minor} in a container with {device}");
}

fn mig_device(ground: &Ground, engine: &Engine) {
    let nodes = engine.container(ground, &["0:1"]).sh(OPEN_ALL);
    assert_nodes(
        nodes.ok(),
        &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"],
    );
    // GPU 1; the compute instance beside this one in the same GPU instance; the right to configure MIG.
    for other in [(195, 1), (242, 32), (242, 1)] {
        assert_denied(ground, engine, "0:1", other);
    }
}

fn whole_gpu(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1"]);
    assert_nodes(container.sh(OPEN_ALL).ok(), &["/dev/nvidia1"]);
    // Nothing else came along: /dev is what it is without a device, and these.
    let without = engine.container(ground, &[]).sh("ls /dev");
    let with = container.sh("ls /dev");
    let added: Vec<&str> =
        with.ok().lines().filter(|name| !without.ok().lines().any(|n| n == *name)).collect();
    assert_eq!(added, ["dri", "nvidia-modeset", "nvidia-uvm", "nvidia-uvm-tools", "nvidia1", "nvidiactl"]);
    for other in [(195, 0), (195, 2), (242, 30)] {
        assert_denied(ground, engine, "1", other);
    }
}

fn by_uuid(ground: &Ground, engine: &Engine) {
    let mig = engine.container(ground, &["MIG-8970491e-16e0-5140-9f8f-d561baa3c186"]).sh(OPEN_ALL);
    assert_nodes(
        mig.ok(),
        &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"],
    );
    let gpu = engine.container(ground, &["GPU-934e3c41-2e9a-efbf-5e75-a17cc8913c9e"]).sh(OPEN_ALL);
    assert_nodes(gpu.ok(), &["/dev/nvidia1"]);
}

/// Those that are leased as a whole are among them.
fn all(ground: &Ground, engine: &Engine) {
    let _alone = alone("divvy");
    let gpus = (0..8).map(|minor| format!("/dev/nvidia{minor}"));
    let capabilities =
        [21, 22, 30, 31, 32, 84, 85].map(|minor| format!("/dev/nvidia-caps/nvidia-cap{minor}"));
    let expected: Vec<String> = gpus.chain(capabilities).collect();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert_nodes(engine.container(ground, &["all"]).sh(OPEN_ALL).ok(), &expected);
}

fn two_devices(ground: &Ground, engine: &Engine) {
    let nodes = engine.container(ground, &["0:3", "2"]).sh(OPEN_ALL);
    let capabilities = ["/dev/nvidia-caps/nvidia-cap84", "/dev/nvidia-caps/nvidia-cap85"];
    assert_nodes(nodes.ok(), &["/dev/nvidia0", "/dev/nvidia2", capabilities[0], capabilities[1]]);
}

/// Engines apply the edits twice, and run the hooks twice.
fn same_device_twice(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1", "1"]);
    assert_nodes(container.sh(OPEN_ALL).ok(), &["/dev/nvidia1"]);
    assert_loads(container.sh(LOAD).ok());
}

/// A spec of the machine cuts GPU 6 in four. A share has its GPU's node, alone or with another share.
fn share_of_a_gpu(ground: &Ground, engine: &Engine) {
    let _alone = alone("shares");
    for devices in [vec!["shared-0"], vec!["shared-1", "shared-0"]] {
        let container = engine.container(ground, &devices);
        assert_nodes(container.sh(OPEN_ALL).ok(), &["/dev/nvidia6"]);
        assert_loads(container.sh(LOAD).ok());
    }
    for other in [(195, 5), (195, 7)] {
        assert_denied(ground, engine, "shared-0", other);
    }
}

/// And the MIG device 0:3, in a kind and so a file of its own. Two kinds in one container bring libraries and hook
/// twice.
fn share_of_a_mig_device(ground: &Ground, engine: &Engine) {
    let _alone = alone("shares");
    let capabilities = ["/dev/nvidia-caps/nvidia-cap84", "/dev/nvidia-caps/nvidia-cap85"];
    let share = engine.container(ground, &[]).option("--device=nvidia.com/gpu.shared=shared-1");
    assert_nodes(share.sh(OPEN_ALL).ok(), &["/dev/nvidia0", capabilities[0], capabilities[1]]);
    let both = engine.container(ground, &["shared-0"]).option("--device=nvidia.com/gpu.shared=shared-1");
    assert_nodes(both.sh(OPEN_ALL).ok(), &["/dev/nvidia0", "/dev/nvidia6", capabilities[0], capabilities[1]]);
    assert_loads(both.sh(LOAD).ok());
}

fn no_device(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &[]);
    assert_eq!(container.sh(OPEN_ALL).ok(), "");
    assert_eq!(container.sh("ls /usr/bin /usr/lib/x86_64-linux-gnu | sed -n /nvidia/p").ok(), "");
    assert_eq!(container.sh("echo ${NVIDIA_VISIBLE_DEVICES-unset}").ok(), "unset");
    let loaded = container.sh("probe load libcuda.so.1");
    assert!(loaded.ok().ends_with("No such file or directory"), "{loaded:?}");
}

fn unknown_device(ground: &Ground, engine: &Engine) {
    for device in ["0", "8", "0:4", "MIG-0"] {
        let refused = engine.container(ground, &[device]).sh("echo started");
        assert_ne!(refused.status, 0, "{device}");
        assert_eq!(refused.stdout, "", "{device}");
        assert!(refused.stderr.contains(&format!("nvidia.com/gpu={device}")), "{refused:?}");
    }
}

/// What stands beside the GPUs, asked for with one. Its nodes lie in another device root here, and a node by another
/// name than the host's is what rootless Podman cannot have.
fn side_kinds(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1"]);
    let container =
        container.option("--device=nvidia.com/imex-channel=1").option("--device=nvidia.com/gds=all");
    let opened =
        container.sh("cd /dev && probe open nvidia-caps-imex-channels/* nvidia-fs* && cat /etc/cufile.json");
    if !engine.rootful {
        assert!(opened.status != 0 && opened.stderr.contains("/dev/nvidia-caps-imex-channels"), "{opened:?}");
        return;
    }
    assert_eq!(
        opened.ok(),
        "nvidia-caps-imex-channels/channel1: ENXIO\nnvidia-fs0: ENXIO\nnvidia-fs1: ENXIO\n{}"
    );
    assert_loads(container.sh(LOAD).ok());
    assert_denied(ground, engine, "1", (234, 0));
}

/// It takes the name for a path, and no container starts without its GPU.
pub fn takes_no_cdi_name(ground: &Ground, engine: &Engine) {
    let refused = engine.container(ground, &["1"]).sh("echo started");
    assert!(refused.status != 0 && refused.stdout.is_empty(), "{refused:?}");
    assert!(refused.stderr.contains("stat nvidia.com/gpu=1: no such file"), "{refused:?}");
    assert_eq!(engine.container(ground, &[]).sh("echo started").ok(), "started");
}

/// It is CDI's value that counts, so that a default runtime of NVIDIA's adds nothing.
fn visible_devices_is_void(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1"]).option("--env=NVIDIA_VISIBLE_DEVICES=all");
    assert_eq!(container.sh("echo $NVIDIA_VISIBLE_DEVICES").ok(), "void");
}

fn mounts_are_read_only(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1"]);
    let files = "/usr/bin/nvidia-smi /usr/lib/x86_64-linux-gnu/libcuda.so.580.126.09";
    let opened = container.sh(&format!("probe open {files}"));
    // A user's root owns none of the host's files, and is refused before the mount is asked.
    let error = if engine.rootful { "EROFS" } else { "EACCES" };
    for line in opened.ok().lines() {
        assert!(line.ends_with(error), "{line}");
    }
    let mounts = container.sh("cat /proc/self/mountinfo");
    let options = mounts.ok().lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let options: Vec<_> =
        options.filter(|fields| is_driver_file(fields[4])).map(|fields| fields[5]).collect();
    assert!(options.len() > 10, "{options:?}");
    for option in &options {
        for wanted in ["ro", "nosuid", "nodev"] {
            assert!(option.split(',').any(|word| word == wanted), "{option} without {wanted}");
        }
    }
}

fn is_driver_file(mount_point: &str) -> bool {
    let elsewhere = ["/dev/", "/run/"].iter().any(|dir| mount_point.starts_with(dir));
    mount_point.contains("libcuda") || mount_point.contains("nvidia") && !elsewhere
}

/// The user's program finds the driver by its SONAMEs, and where it says it found them lie the host's files.
pub const LOAD: &str = "probe load libcuda.so.1 libnvidia-ml.so.1 | while read -r name path; do
    echo \"$name $(readlink -f \"$path\")\"
    done";

#[track_caller]
pub fn assert_loads(loaded: &str) {
    let lib = "/usr/lib/x86_64-linux-gnu";
    let expected = ["libcuda", "libnvidia-ml"].map(|name| format!("{name}.so.1: {lib}/{name}.so.580.126.09"));
    assert_eq!(loaded.lines().collect::<Vec<_>>(), expected);
}

fn libraries_load(ground: &Ground, engine: &Engine) {
    for image in ["glibc", "bare"] {
        let container = engine.container(ground, &["0:1"]).image(image);
        assert_loads(container.sh(LOAD).ok());
        // An image's start script or a package may run ldconfig at any time.
        assert_loads(container.sh(&format!("ldconfig; {LOAD}")).ok());
        // What the image had before is found as well.
        let libm = container.sh("probe load libm.so.6");
        assert!(libm.ok().ends_with("/libm.so.6"), "{libm:?}");
    }
}

/// No loader, no cache, no directory for libraries: the device works all the same.
fn static_image(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["1"]).image("bb");
    assert_nodes(container.sh(OPEN_ALL).ok(), &["/dev/nvidia1"]);
}

/// Hooks run again at every start, on the root file system that the last run left behind.
fn restart(ground: &Ground, engine: &Engine) {
    let name = &format!("restarted-{}", engine.name);
    if !engine.restarts() {
        engine.container(ground, &["0:1"]).create(name, LOAD).ok();
        let [first, again] =
            [&["start", "--attach", name][..], &["start", name]].map(|args| engine.call(ground, args));
        engine.call(ground, &["rm", name]).ok();
        assert_loads(first.ok());
        assert!(again.status != 0 && again.stderr.contains("CONTAINER_EXITED"), "{again:?}");
        return;
    }
    let script =
        format!("sha256sum /etc/ld.so.cache /etc/ld.so.conf.d/*; ls -l /usr/lib/x86_64-linux-gnu; {LOAD}");
    engine.container(ground, &["0:1"]).create(name, &script).ok();
    let starts = [(); 3].map(|()| engine.call(ground, &["start", "--attach", name]));
    engine.call(ground, &["rm", name]).ok();
    assert!(starts[0].ok().contains("/etc/ld.so.cache"), "{starts:?}");
    assert_loads(&tail(starts[0].ok(), 2));
    assert_eq!(starts[1].ok(), starts[0].ok());
    assert_eq!(starts[2].ok(), starts[0].ok());
}

/// A plan was made since, as the state directory of this spec says: a name could mean another device now. Of a leased
/// device the daemon says so, of another one the hook itself.
fn stale_spec(ground: &Ground, engine: &Engine) {
    let leased = ("nvidia.com/gpu=stale-0", "gpu=stale-0 is not in the plan: the spec is of another one");
    for (device, why) in [leased, ("management.nvidia.com/gpu=all", "the CDI spec is out of date: ")] {
        let container = engine.container(ground, &[]).option(&format!("--device={device}"));
        let output = container.sh("echo started");
        assert!(output.status != 0 && !output.stdout.contains("started"), "{output:?}");
        let message = format!("error: divvy-hook: {why}");
        if !engine.name.ends_with("-crun") {
            assert!(output.stderr.contains(&message), "{output:?}");
            continue;
        }
        // crun shows the status alone, and has the message where README says.
        assert!(output.stderr.contains("exit code: 6"), "{output:?}");
        let log = format!("/tmp/hook-{}.log", engine.name);
        container.option(&format!("--annotation=run.oci.hooks.stderr={log}")).sh("echo started");
        let logged = ground.sh(&format!("cat {log} && rm {log}"));
        assert!(logged.ok().contains(&message), "{logged:?}");
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn read_only_root(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["0:1"]).option("--read-only");
    let loaded = container.sh(LOAD);
    if engine.name.ends_with("crun") && is_old_crun(ground) {
        // No container is better than one whose programs do not find the driver.
        assert!(loaded.status != 0 && loaded.stderr.contains("divvy-hook"), "{loaded:?}");
        return;
    }
    assert_loads(loaded.ok());
    let written = container.sh("echo x >/etc/x");
    assert_ne!(written.status, 0, "the root was not read-only: {written:?}");
}

/// crun before 1.26 makes the root read-only before hooks run (containers/crun#1924), and cannot run any hook, be it
/// /bin/true, for a container of root's with a user namespace, or for a user's with `nomap`.
pub fn is_old_crun(ground: &Ground) -> bool {
    let version = ground.sh("crun --version");
    let minor =
        version.ok().lines().next().and_then(|line| line.strip_prefix("crun version 1.")?.parse().ok());
    minor.is_some_and(|minor: u32| minor < 26)
}

fn unprivileged_user(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["0:1"]).option("--user=1000");
    let nodes = container.sh(OPEN_ALL);
    assert_nodes(
        nodes.ok(),
        &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"],
    );
    assert_loads(container.sh(LOAD).ok());
}

/// The engine's directories are closed to such a container's root, and so is the bundle to the hook.
pub fn user_namespace(ground: &Ground, engine: &Engine) {
    let container = engine.container(ground, &["0:1"]);
    let container =
        engine.user_namespace.iter().fold(container, |container, option| container.option(option));
    let loaded = container.sh(LOAD);
    if engine.name == "podman-crun" && is_old_crun(ground) {
        assert!(loaded.status != 0 && loaded.stderr.contains("divvy-hook"), "{loaded:?}");
        return;
    }
    assert_loads(loaded.ok());
    assert_eq!(container.sh("stat -c %u:%g /etc/ld.so.cache").ok(), "0:0");
    if !engine.rootful {
        // The user who started it is nobody in there.
        let unmapped = engine.container(ground, &["0:1"]).option("--userns=nomap").sh(LOAD);
        if is_old_crun(ground) {
            assert!(unmapped.status != 0 && unmapped.stderr.contains("divvy-hook"), "{unmapped:?}");
        } else {
            assert_loads(unmapped.ok());
        }
    }
}

fn exec(ground: &Ground, engine: &Engine) {
    let name = format!("entered-{}", engine.name);
    let [nodes, loaded] = engine.container(ground, &["1"]).exec(&name, [OPEN_ALL, LOAD]);
    assert_nodes(nodes.ok(), &["/dev/nvidia1"]);
    assert_loads(loaded.ok());
}
