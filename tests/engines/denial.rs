//! What a pool brought and a container was not granted: its nodes are gone, and one that the container's root makes
//! itself does not open. Without a device cgroup (rootless) none can be made.

use crate::containers::{OPEN_ALL, assert_nodes, is_old_crun};
use crate::engine::{Container, Engine, EngineTrial, Held};
use crate::ground::{Ground, is_cgroup_v1};
use crate::layout::alone;

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 2] =
    [("pool_denies_gpus", pool_denies_gpus), ("pool_denies_mig", pool_denies_mig)];

/// GPUs by their number.
const GPUS: u32 = 195;
/// The driver's capabilities in the simulated host.
const CAPABILITIES: u32 = 242;

/// Nodes that somebody else made, in a directory that containers have as a volume.
const VOLUME: &str = "/nodes";

/// Makes nodes, and opens those of the volume, as root in the container may try. Of the two the second was not granted.
#[track_caller]
fn assert_held_to(engine: &Engine, held: &Held, major: u32, [granted, denied]: [u32; 2]) {
    let answers = held.sh(&format!(
        "rm -f /tmp/made*
         probe mknod /tmp/made {major} {granted} -- mknod /tmp/made-other {major} {denied} -- \\
             open {VOLUME}/{major}-{granted} {VOLUME}/{major}-{denied}"
    ));
    let answers: Vec<&str> = answers.ok().lines().filter_map(|line| Some(line.split_once(": ")?.1)).collect();
    if engine.rootful {
        // Engines allow mknod of every number, and on cgroup v1 that is not taken back.
        let made = if is_cgroup_v1() { "EPERM" } else { "mknod EPERM" };
        assert_eq!(answers, ["ENXIO", made, "ENXIO", "EPERM"], "{denied} was not granted");
    } else {
        // Nothing but the host's own file modes keeps a user from nodes that the user gives to the container.
        assert_eq!(answers, ["mknod EPERM", "mknod EPERM", "ENXIO", "ENXIO"]);
    }
}

fn with_mknod<'a>(ground: &'a Ground, engine: &'a Engine, device: &str) -> Container<'a> {
    let nodes = [(GPUS, 2), (GPUS, 3), (CAPABILITIES, 31), (CAPABILITIES, 32)];
    let make = nodes.map(|(major, minor)| {
        let node = format!("{VOLUME}/{major}-{minor}");
        format!("[ -e {node} ] || mknod --mode=666 {node} c {major} {minor}\n")
    });
    ground.sh(&format!("set -e; mkdir -p {VOLUME}; exec 9<{VOLUME}; flock 9\n{}", make.concat())).ok();
    engine
        .container(ground, &[device])
        .option("--cap-add=MKNOD")
        .option(&format!("--volume={VOLUME}:{VOLUME}"))
}

fn pool_denies_gpus(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let container = with_mknod(ground, engine, engine.name);
    let mut held = Vec::new();
    for number in ["first", "second"] {
        let one = container.hold(&format!("denied-{number}-{}", engine.name));
        let minors = if one.gpu() == "/dev/nvidia2" { [2, 3] } else { [3, 2] };
        assert_nodes(one.sh(OPEN_ALL).ok(), &[one.gpu()]);
        assert_held_to(engine, &one, GPUS, minors);
        held.push(one);
    }
}

/// Two compute instances of one GPU instance: what they have in common stays.
fn pool_denies_mig(ground: &Ground, engine: &Engine) {
    let _alone = alone("mig");
    let container = with_mknod(ground, engine, "mig-1c.2g.10gb");
    let mut held = Vec::new();
    for minors in [[31, 32], [32, 31]] {
        let one = container.hold(&format!("instance{}-{}", minors[0], engine.name));
        let own = format!("/dev/nvidia-caps/nvidia-cap{}", minors[0]);
        assert_nodes(one.sh(OPEN_ALL).ok(), &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", &own]);
        assert_held_to(engine, &one, CAPABILITIES, minors);
        held.push(one);
    }
}

/// The same in a user namespace, whose root may make no node of any kind.
pub fn pool_in_a_user_namespace(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let container = engine
        .user_namespace
        .iter()
        .fold(with_mknod(ground, engine, engine.name), |all, one| all.option(one));
    let mut nodes = "probe mknod /tmp/made 195 2 -- mknod /tmp/made-other 195 3\n".to_owned();
    nodes += OPEN_ALL;
    let output = container.sh(&nodes);
    if engine.name == "podman-crun" && is_old_crun(ground) {
        assert!(output.status != 0 && output.stderr.contains("divvy-hook"), "{output:?}");
        return;
    }
    let (made, opened): (Vec<&str>, Vec<&str>) =
        output.ok().lines().partition(|line| line.starts_with("/tmp/"));
    assert_eq!(made, ["/tmp/made: mknod EPERM", "/tmp/made-other: mknod EPERM"]);
    let has = |gpu: &str| opened.iter().any(|line| line.starts_with(gpu));
    let gpu = if has("/dev/nvidia2") { "/dev/nvidia2" } else { "/dev/nvidia3" };
    assert_nodes(&opened.join("\n"), &[gpu]);
}
