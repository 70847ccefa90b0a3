//! What a pool brought and a container was not granted: its nodes are gone, and one that the container's root makes
//! itself does not open. Without a device cgroup (rootless) none can be made.

use crate::containers::{OPEN_ALL, assert_nodes};
use crate::engine::{Container, Engine, EngineTrial, Held};
use crate::ground::Ground;
use crate::layout::alone;

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 2] =
    [("pool_denies_gpus", pool_denies_gpus), ("pool_denies_mig", pool_denies_mig)];

/// GPUs by their number.
const GPUS: u32 = 195;
/// The driver's capabilities in the simulated host.
const CAPABILITIES: u32 = 242;

/// Makes a node and opens it: `EPERM` of which call, or that it opens.
#[track_caller]
fn make(held: &Held, (major, minor): (u32, u32)) -> String {
    let made = held.sh(&format!("rm -f /tmp/made; probe mknod /tmp/made {major} {minor}"));
    made.ok().strip_prefix("/tmp/made: ").unwrap_or_default().to_owned()
}

#[track_caller]
fn assert_held_to(engine: &Engine, held: &Held, granted: (u32, u32), denied: (u32, u32)) {
    let (opens, refused) = if engine.rootful { ("ENXIO", "EPERM") } else { ("mknod EPERM", "mknod EPERM") };
    assert_eq!(make(held, granted), opens, "{granted:?} was granted");
    assert_eq!(make(held, denied), refused, "{denied:?} was not");
}

fn with_mknod<'a>(ground: &'a Ground, engine: &'a Engine, device: &str) -> Container<'a> {
    engine.container(ground, &[device]).option("--cap-add=MKNOD")
}

fn pool_denies_gpus(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let container = with_mknod(ground, engine, engine.name);
    let mut held = Vec::new();
    for (minor, other) in [(2, 3), (3, 2)] {
        let one = container.hold(&format!("denied{minor}-{}", engine.name));
        assert_nodes(one.sh(OPEN_ALL).ok(), &[&format!("/dev/nvidia{minor}")]);
        assert_held_to(engine, &one, (GPUS, minor), (GPUS, other));
        held.push(one);
    }
}

/// Two compute instances of one GPU instance: what they have in common stays.
fn pool_denies_mig(ground: &Ground, engine: &Engine) {
    let _alone = alone("mig");
    let container = with_mknod(ground, engine, "mig-1c.2g.10gb");
    let mut held = Vec::new();
    for (minor, other) in [(31, 32), (32, 31)] {
        let one = container.hold(&format!("instance{minor}-{}", engine.name));
        let own = format!("/dev/nvidia-caps/nvidia-cap{minor}");
        assert_nodes(one.sh(OPEN_ALL).ok(), &["/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap30", &own]);
        assert_held_to(engine, &one, (CAPABILITIES, minor), (CAPABILITIES, other));
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
    let held = container.hold(&format!("mapped-{}", engine.name));
    assert_nodes(held.sh(OPEN_ALL).ok(), &["/dev/nvidia2"]);
    for minor in [2, 3] {
        assert_eq!(make(&held, (GPUS, minor)), "mknod EPERM");
    }
}
