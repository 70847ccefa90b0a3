//! `divvy` on a live machine: NVML answers (from the mock), /proc and /dev are where a driver has them. Trials
//! that change the machine do so in a mount namespace of their own, which ends with the script.

use crate::ground::{Ground, Need, Output, is_cgroup_v1};

/// A trial: its name, what it needs besides the machine, and what it does.
pub type MachineTrial = (&'static str, &'static [Need], fn(&Ground));

/// Every trial.
pub const TRIALS: [MachineTrial; 6] = [
    ("cgroup_version", &[Need::Docker, Need::Podman], cgroup_version),
    ("live_discovery_equals_simulated", &[Need::Mock], live_discovery_equals_simulated),
    ("full_disk", &[], full_disk),
    ("read_only_directory", &[], read_only_directory),
    ("creates_missing_nodes", &[Need::Mock], creates_missing_nodes),
    ("missing_nodes_are_named", &[Need::Mock], missing_nodes_are_named),
];

/// Mounts the driver's part of /proc for the script that follows, asks NVML of the mock, and keeps no plan. It cannot be so for the
/// whole machine: the kernel mounts no new /proc for a rootless container where the old one is partly covered.
pub const LIVE: &str = "
    mount -t tmpfs -o mode=755 tmpfs /run/divvy
    mount --bind /sim/proc/driver /proc/driver
    mount --bind /sim/proc/devices /proc/devices
    mount --bind /sim/sys/bus /sys/bus
    export MOCK_NVML_FACTS=/facts.json";

/// Runs a script in a mount namespace of its own, with an empty directory $dir.
pub fn apart(ground: &Ground, script: &str) -> Output {
    let script = format!("dir=$(mktemp -d)\n{script}");
    ground.command("in.sh", &["unshare", "--mount", "sh", "-c", &script])
}

/// What the engines' own trials rely on: that it is this version's devices which they are admitted by.
fn cgroup_version(ground: &Ground) {
    let version = if is_cgroup_v1() { "1" } else { "2" };
    let docker = ground.sh("docker info --format '{{.CgroupVersion}}'");
    let podman = ground.sh("podman info --format '{{.Host.CgroupsVersion}}'");
    assert_eq!((docker.ok(), podman.ok()), (version, format!("v{version}").as_str()));
}

fn live_discovery_equals_simulated(ground: &Ground) {
    let live = apart(
        ground,
        &format!(
            "{LIVE}; divvy --quiet generate --state-dir /run/divvy --output $dir/live.json && cat $dir/live.json $dir/live+*.json"
        ),
    );
    let simulated = ground.sh("cat /var/run/cdi/divvy.json /var/run/cdi/divvy+*.json");
    // The machine's /lib is a link, the simulated host's is not.
    let live = live.ok().replace("\"/usr/lib/firmware", "\"/lib/firmware");
    assert_eq!(live, simulated.ok());
}

/// A spec that cannot be written whole is not written at all.
fn full_disk(ground: &Ground) {
    assert_old_spec_stays(ground, "head -c 1M /dev/zero >$dir/filler 2>/dev/null || true");
}

fn read_only_directory(ground: &Ground) {
    assert_old_spec_stays(ground, "mount -o remount,ro $dir");
}

/// Spoils a directory, generates into it, and asserts status 1, the old spec and nothing beside it.
#[track_caller]
fn assert_old_spec_stays(ground: &Ground, spoil: &str) {
    let output = apart(
        ground,
        &format!(
            "mount -t tmpfs -o size=64k tmpfs $dir
             echo old >$dir/divvy.json
             {spoil}
             before=$(ls -A $dir)
             divvy --quiet generate --host sim:a100-lab --output $dir/divvy.json
             echo status $?
             cat $dir/divvy.json
             [ \"$(ls -A $dir)\" = \"$before\" ] || ls -A $dir"
        ),
    );
    assert_eq!(output.stdout, "status 1\nold\n", "{}", output.stderr);
    assert!(output.stderr.starts_with("error: "), "{}", output.stderr);
    assert!(output.stderr.contains("\nhint: "), "{}", output.stderr);
}

/// As after a boot on which nothing has used the GPUs yet, and no udev rule makes their nodes.
fn creates_missing_nodes(ground: &Ground) {
    let list = "find $root/dev -name 'nvidia*' -type c -printf '%P %m ' -exec stat -c %Hr:%Lr {} ';' | sort";
    // Not the nodes for configuring and monitoring MIG, which no container gets.
    let wanted = ground.sh(&format!("root=/sim; {list}")).ok().to_owned();
    let wanted: Vec<&str> = wanted
        .lines()
        .filter(|line| !line.contains("nvidia-cap1 ") && !line.contains("nvidia-cap2 "))
        .collect();
    let output = apart(
        ground,
        &format!(
            "{LIVE}
             mount -t tmpfs -o mode=755 tmpfs $dir
             cp -a /dev/null $dir/
             mount --move $dir /dev
             divvy --quiet generate --create-device-nodes --state-dir /run/divvy --output $dir/divvy.json || exit
             cmp $dir/divvy.json /var/run/cdi/divvy.json
             root=; {list}"
        ),
    );
    assert_eq!(output.ok().lines().collect::<Vec<_>>(), wanted);
}

/// Status 7: what is there is written, what is left out is named with what to do.
fn missing_nodes_are_named(ground: &Ground) {
    let missing = ["/dev/nvidia2", "/dev/nvidia-caps/nvidia-cap31", "/dev/nvidia-uvm"];
    let output = apart(
        ground,
        &format!(
            "{LIVE}
             mount -t tmpfs -o mode=755 tmpfs $dir
             cp -a /dev/null /dev/nvidia* $dir/
             mount --move $dir /dev
             rm {}
             divvy --quiet generate --output $dir/divvy.json
             echo status $?
             cat $dir/divvy*.json",
            missing.join(" ")
        ),
    );
    let (status, spec) = output.stdout.split_once('\n').unwrap_or_default();
    assert_eq!(status, "status 7", "{}", output.stderr);
    for (device, there) in
        [("\"0:0\"", true), ("\"0:1\"", false), ("\"0:2\"", true), ("\"1\"", true), ("\"2\"", false)]
    {
        assert_eq!(spec.contains(device), there, "{device} in {spec}");
    }
    for what in missing.iter().chain(&["\nhint: "]) {
        assert!(output.stderr.contains(what), "{what} in {}", output.stderr);
    }
}
