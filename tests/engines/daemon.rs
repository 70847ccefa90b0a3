//! A daemon that is away or comes back. One of its own is for these trials: others' containers must not notice.

use crate::containers::{OPEN_ALL, assert_nodes};
use crate::engine::{Engine, EngineTrial};
use crate::ground::{Ground, Output};
use crate::layout::{SERVE, alone};
use crate::leases::{AWAY, NOTHING_FREE, assert_refused};

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 2] =
    [("daemon_is_away", daemon_is_away), ("daemon_is_killed", daemon_is_killed)];

/// Ends it: `end -9`, or with the signal that asks for it.
const END: &str = "end() {
        pid=$(cat /run/away.pid)
        kill $1 $pid
        while kill -0 $pid 2>/dev/null; do sleep 0.02; done
    }";

#[track_caller]
fn serve(ground: &Ground) {
    ground.sh(&format!("{SERVE}\nserve away")).ok();
}

/// The shares wait for it as long as the configuration says, and nothing else does.
fn daemon_is_away(ground: &Ground, engine: &Engine) {
    let _alone = alone("away");
    ground.sh(&format!("{END}\nend")).ok();
    let start = |devices: &[&str]| -> Output { engine.container(ground, devices).sh("echo started") };
    let (refused, whole) = (start(&["away-0"]), start(&["1"]));
    serve(ground);
    assert_refused(ground, engine, &refused, (AWAY, "/run/away/divvy.sock"));
    assert_eq!(whole.ok(), "started");
    assert_eq!(start(&["away-0"]).ok(), "started");
}

fn daemon_is_killed(ground: &Ground, engine: &Engine) {
    let _alone = alone("away");
    let container = engine.container(ground, &["away-0"]);
    let held = container.hold(&format!("survivor-{}", engine.name));
    ground.sh(&format!("{END}\nend -9")).ok();
    let meanwhile = held.sh(OPEN_ALL);
    serve(ground);
    assert_nodes(meanwhile.ok(), &["/dev/nvidia5"]);
    assert_refused(ground, engine, &container.sh("echo started"), (NOTHING_FREE, "away-0 is held by"));
    assert_nodes(held.sh(OPEN_ALL).ok(), &["/dev/nvidia5"]);
    held.stop();
    assert_eq!(container.sh("echo started").ok(), "started");
}
