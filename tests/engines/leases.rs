//! Leased devices: a container has one alone, another is told who has it, and it is free when the container is gone.
//! Each engine has the shares `ENGINE-0` on GPU 2 and `ENGINE-1` on GPU 3, which are the pool `ENGINE`.

use crate::containers::{OPEN_ALL, assert_nodes};
use crate::engine::{Engine, EngineTrial, Held};
use crate::ground::{Ground, Output};
use crate::layout::alone;

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 9] = [
    ("lease_of_a_name", lease_of_a_name),
    ("lease_of_any", lease_of_any),
    ("lease_of_two", lease_of_two),
    ("lease_of_whole_devices", lease_of_whole_devices),
    ("lease_and_restart", lease_and_restart),
    ("lease_and_restart_policy", lease_and_restart_policy),
    ("lease_after_waiting", lease_after_waiting),
    ("no_lease_when_privileged", no_lease_when_privileged),
    ("lease_in_ps", lease_in_ps),
];

/// What the hook exits with.
pub const NOTHING_FREE: u8 = 3;
/// The daemon is away.
pub const AWAY: u8 = 4;
/// A share would bind nothing.
pub const NOT_HELD: u8 = 5;

/// The engine in divvy's words, as far as a container can tell.
fn word(engine: &Engine) -> &'static str {
    match engine.name {
        name if name.starts_with("docker") => "docker",
        name if name.starts_with("ctr") => "containerd",
        name if name.starts_with("cri") => "kubernetes",
        _ => "podman",
    }
}

/// A refused start, and why: as the engine shows it, and as `divvy ps --refused` does, which is for who uses crun.
#[track_caller]
pub fn assert_refused(ground: &Ground, engine: &Engine, output: &Output, (status, why): (u8, &str)) {
    assert!(output.status != 0 && !output.stdout.contains("started"), "{output:?}");
    if engine.name.ends_with("-crun") {
        assert!(output.stderr.contains(&format!("exit code: {status}")), "{output:?}");
    } else {
        assert!(output.stderr.contains(why), "{why:?} in {output:?}");
    }
    if status != AWAY {
        let entry = if engine.rootful { "in.sh" } else { "as-user.sh" };
        let refused = ground.command(
            entry,
            &["sh", "-c", "for name in divvy shares engines away mig multi single; do divvy ps --refused --state-dir /run/$name; done"],
        );
        assert!(refused.ok().contains(why), "{why:?} in {refused:?}");
    }
}

fn held_by(engine: &Engine, device: &str, held: &Held) -> String {
    format!("{device} is held by {} container {} (", word(engine), shown_name(engine, held))
}

/// A pod's container has the names of all three, namespace, pod and container.
fn shown_name(engine: &Engine, held: &Held) -> String {
    match word(engine) {
        "kubernetes" => format!("default/{0}/{0}", held.name),
        _ => held.name.clone(),
    }
}

fn lease_of_a_name(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let [share, other] = [0, 1].map(|number| format!("{}-{number}", engine.name));
    let container = engine.container(ground, &[&share]);
    let held = container.hold(&format!("named-{}", engine.name));
    assert_nodes(held.sh(OPEN_ALL).ok(), &["/dev/nvidia2"]);
    let refused = container.sh("echo started");
    assert_refused(ground, engine, &refused, (NOTHING_FREE, &held_by(engine, &share, &held)));
    assert_eq!(engine.container(ground, &[&other]).sh("echo started").ok(), "started");
    held.stop();
    assert_eq!(container.sh("echo started").ok(), "started");
    // Edits and hooks twice, one lease.
    assert_eq!(engine.container(ground, &[&share, &share]).sh("echo started").ok(), "started");
}

fn lease_of_any(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let container = engine.container(ground, &[engine.name]);
    let [first, second] = ["first", "second"].map(|name| container.hold(&format!("{name}-{}", engine.name)));
    let mut gpus = [first.gpu(), second.gpu()];
    for (held, gpu) in [&first, &second].into_iter().zip(gpus) {
        assert_nodes(held.sh(OPEN_ALL).ok(), &[gpu]);
    }
    gpus.sort_unstable();
    assert_eq!(gpus, ["/dev/nvidia2", "/dev/nvidia3"]);
    let refused = container.sh("echo started");
    assert_refused(ground, engine, &refused, (NOTHING_FREE, &format!("pool {}", engine.name)));
    let freed = first.gpu();
    first.stop();
    let third = container.hold(&format!("third-{}", engine.name));
    assert_eq!(third.gpu(), freed);
}

/// All or nothing.
fn lease_of_two(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let [first, second] = [0, 1].map(|number| format!("{}-{number}", engine.name));
    let held = engine.container(ground, &[&second]).hold(&format!("both-{}", engine.name));
    let both = engine.container(ground, &["1", &first, &second]);
    assert!(both.sh("echo started").status != 0);
    assert_eq!(engine.container(ground, &[&first]).sh("echo started").ok(), "started");
    held.stop();
    // Two shares of a pool in one container are more than its `per_container`.
    let refused = both.sh("echo started");
    assert!(refused.status != 0 && !refused.stdout.contains("started"), "{refused:?}");
    let one_and_whole = engine.container(ground, &["1", &first]).sh(OPEN_ALL);
    assert_nodes(one_and_whole.ok(), &["/dev/nvidia1", "/dev/nvidia2"]);
}

/// GPUs 4 and 7 and the MIG device 0:0 are `exclusive`.
fn lease_of_whole_devices(ground: &Ground, engine: &Engine) {
    let _alone = alone("divvy");
    let name = |what: &str| format!("{what}-{}", engine.name);
    let gpu = engine.container(ground, &["4"]).hold(&name("gpu"));
    assert_nodes(gpu.sh(OPEN_ALL).ok(), &["/dev/nvidia4"]);
    let why = held_by(engine, "4", &gpu);
    for device in ["4", "GPU-ab948b61-2346-9a55-872f-9c025479276d", "all"] {
        let refused = engine.container(ground, &[device]).sh("echo started");
        assert_refused(ground, engine, &refused, (NOTHING_FREE, &why));
    }
    let other = engine.container(ground, &["whole"]).hold(&name("other"));
    assert_nodes(other.sh(OPEN_ALL).ok(), &["/dev/nvidia7"]);
    let refused = engine.container(ground, &["whole"]).sh("echo started");
    assert_refused(ground, engine, &refused, (NOTHING_FREE, "pool whole"));

    let capabilities = ["/dev/nvidia-caps/nvidia-cap21", "/dev/nvidia-caps/nvidia-cap22"];
    let mig = engine.container(ground, &["mig-4g.20gb"]).hold(&name("mig"));
    assert_nodes(mig.sh(OPEN_ALL).ok(), &["/dev/nvidia0", capabilities[0], capabilities[1]]);
    let refused = engine.container(ground, &["0:0"]).sh("echo started");
    assert_refused(ground, engine, &refused, (NOTHING_FREE, &held_by(engine, "0:0", &mig)));
    drop((gpu, other, mig));
    let all = engine.container(ground, &["4", "7", "0:0"]).sh(OPEN_ALL);
    let gpus = ["/dev/nvidia0", "/dev/nvidia4", "/dev/nvidia7"];
    assert_nodes(all.ok(), &[gpus[0], gpus[1], gpus[2], capabilities[0], capabilities[1]]);
}

/// The lease is given up and taken again; where it was, it stays.
fn lease_and_restart(ground: &Ground, engine: &Engine) {
    if !engine.restarts() {
        return;
    }
    let _alone = alone(engine.name);
    let container = engine.container(ground, &[engine.name]);
    let held = container.hold(&format!("again-{}", engine.name));
    let other = container.hold(&format!("beside-{}", engine.name));
    let before = held.gpu();
    held.restart();
    assert_eq!(held.gpu(), before, "the only one that was free");
    let refused = container.sh("echo started");
    assert_refused(ground, engine, &refused, (NOTHING_FREE, &format!("pool {}", engine.name)));
    assert_ne!(other.gpu(), before);
}

/// The container ends by itself, and the engine brings it back.
fn lease_and_restart_policy(ground: &Ground, engine: &Engine) {
    if !engine.restarts_by_itself() {
        return;
    }
    let _alone = alone(engine.name);
    let share = format!("{}-0", engine.name);
    let container = engine.container(ground, &[&share]).option("--restart=on-failure:2");
    let script = "[ -e /again ] && exec sleep 600; touch /again; exit 1";
    let held = container.hold_with(&format!("policy-{}", engine.name), script);
    let runs = ground.wait(|| held.sh("[ -e /again ] && echo runs").stdout == "runs\n");
    assert!(runs, "it does not come back");
    assert_nodes(held.sh(OPEN_ALL).ok(), &["/dev/nvidia2"]);
    let refused = engine.container(ground, &[&share]).sh("echo started");
    assert_refused(ground, engine, &refused, (NOTHING_FREE, &held_by(engine, &share, &held)));
}

/// A start that waits is a hook that waits.
fn lease_after_waiting(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let pool = format!("wait-{}", engine.name);
    let container = engine.container(ground, &[&pool]);
    let held = container.hold(&format!("ahead-{}", engine.name));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| container.sh(OPEN_ALL));
        let hook = format!("grep -lazxF -- --device=gpu={pool} /proc/[0-9]*/cmdline");
        let waits = ground.wait(|| ground.sh(&hook).status == 0);
        assert!(waits, "no hook waits: {:?}", waiting.join());
        assert!(!waiting.is_finished(), "{:?}", waiting.join());
        held.stop();
        let output = waiting.join().unwrap_or_else(|_| panic!("the container was not run"));
        assert_nodes(output.ok(), &["/dev/nvidia5"]);
    });
}

fn no_lease_when_privileged(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let share = format!("{}-0", engine.name);
    let container = engine.container(ground, &[&share]).option("--privileged");
    assert_refused(ground, engine, &container.sh("echo started"), (NOT_HELD, "--privileged"));
}

fn lease_in_ps(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine.name);
    let share = format!("{}-1", engine.name);
    let held = engine.container(ground, &[&share]).hold(&format!("seen-{}", engine.name));
    let table = ground.sh("divvy ps --state-dir /run/engines");
    let row = table.ok().lines().find(|line| line.starts_with(&format!("{share} ")));
    let row = row.unwrap_or_else(|| panic!("{table:?}"));
    for part in [word(engine), &shown_name(engine, &held), if engine.rootful { " root " } else { " dev " }] {
        assert!(row.contains(part), "{part:?} in {row:?}");
    }
    held.stop();
    let table = ground.sh("divvy ps --state-dir /run/engines");
    assert!(!table.ok().contains(&format!("{share} ")), "{table:?}");
}
