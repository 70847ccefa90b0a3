//! What ends under a container that runs: `divvy serve`, the supervisor, the control daemon, all of them. The container's
//! programs meet the same MPS where it lives on, a tombstone while it is away, and MPS again without a restart of theirs.
//! How long that took is printed, and nothing depends on it.

use std::time::Instant;

use super::MET_MPS;
use super::hosts::{MULTI, Mps, alone, gpu_of};
use crate::engine::{ENGINES, Engine, EngineTrial, Held};
use crate::ground::Ground;

/// Name and function of each trial.
pub const TRIALS: [EngineTrial; 4] = [
    ("mps_when_serve_is_killed", mps_when_serve_is_killed),
    ("mps_when_its_supervisor_is_killed", mps_when_its_supervisor_is_killed),
    ("mps_when_its_daemon_is_killed", mps_when_its_daemon_is_killed),
    ("mps_when_all_are_killed", mps_when_all_are_killed),
];

/// A container with a share, and MPS on its device.
struct Running<'a> {
    ground: &'a Ground,
    engine: &'a Engine,
    held: Held<'a>,
    mps: Mps<'a>,
}

impl<'a> Running<'a> {
    #[track_caller]
    fn start(ground: &'a Ground, engine: &'a Engine, name: &str) -> Self {
        let held = MULTI.container(ground, engine, "0").hold(&format!("{name}-{}", engine.name));
        let running = Self { ground, engine, held, mps: MULTI.mps(ground, engine) };
        assert!(running.is_wired(), "{}\n{}", running.mps.status(), running.mps.last_words());
        running
    }

    /// CUDA in the container reaches the control daemon: it is a tombstone that answers the same where it does not.
    #[track_caller]
    fn is_wired(&self) -> bool {
        let before = self.mps.clients().len();
        let answer = self.held.sh("probe cuda");
        answer.ok() == MET_MPS && self.mps.clients().len() > before
    }

    #[track_caller]
    fn assert_wired_soon(&self, since: Instant, what: &str) {
        assert!(self.ground.wait(|| self.is_wired()), "{}\n{}", self.mps.status(), self.mps.last_words());
        println!("{}: {what}: MPS again after {} ms", self.engine.name, since.elapsed().as_millis());
    }

    /// Another container with a share of the same device can be started.
    #[track_caller]
    fn assert_starts(&self) {
        let other = MULTI.container(self.ground, self.engine, "1").sh("probe cuda");
        assert_eq!(other.ok(), MET_MPS);
    }

    #[track_caller]
    fn kill(&self, pids: &[i64]) -> Instant {
        assert!(pids.iter().all(|pid| *pid > 0), "{pids:?}");
        let pids: Vec<String> = pids.iter().map(i64::to_string).collect();
        let since = Instant::now();
        // A server ends with its control daemon, and may be faster.
        let each = "kill -9 $pid 2>/dev/null || [ ! -e /proc/$pid ] || exit 1";
        self.ground.sh(&format!("for pid in {}; do {each}; done", pids.join(" "))).ok();
        since
    }
}

/// The daemon that starts supervisors is killed, and one starts in its place.
fn mps_when_serve_is_killed(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let running = Running::start(ground, engine, "serve-killed");
    let (supervisor, control) = (running.mps.pid("supervisor_pid"), running.mps.pid("control_pid"));
    MULTI.restart(ground);
    assert!(running.is_wired(), "{}", running.mps.last_words());
    running.assert_starts();
    assert_eq!(running.mps.pid("supervisor_pid"), supervisor);
    assert_eq!(running.mps.pid("control_pid"), control);
    let ps = ground.sh("divvy ps --state-dir /run/multi --driver-root /drivers/multi");
    assert!(ps.stdout.contains(&MULTI.share(engine, "0")), "{ps:?}");
}

/// MPS lives on, and the next supervisor finds it.
fn mps_when_its_supervisor_is_killed(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let running = Running::start(ground, engine, "supervisor-killed");
    let (supervisor, control, server) =
        (running.mps.pid("supervisor_pid"), running.mps.pid("control_pid"), running.mps.pid("server_pid"));
    let since = running.kill(&[supervisor]);
    assert!(running.is_wired(), "without a supervisor: {}", running.mps.last_words());
    running.assert_starts();
    running.assert_wired_soon(since, "supervisor killed");
    assert_ne!(running.mps.pid("supervisor_pid"), supervisor);
    assert_eq!((running.mps.pid("control_pid"), running.mps.pid("server_pid")), (control, server));
}

/// While somebody else is on the GPU MPS does not come back: CUDA fails, and does not run without limits.
fn mps_when_its_daemon_is_killed(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let running = Running::start(ground, engine, "daemon-killed");
    let at = ENGINES.iter().position(|other| other.name == engine.name).unwrap_or_default();
    let since = running.kill(&[running.mps.pid("control_pid")]);
    running.assert_wired_soon(since, "control daemon killed");
    let since = running.kill(&[running.mps.pid("server_pid")]);
    running.assert_wired_soon(since, "server killed");
    // And once more, where it cannot come back at once.
    let control = running.mps.pid("control_pid");
    MULTI.set_foreign(ground, gpu_of(at), true);
    running.kill(&[control]);
    let is_down = ground.wait(|| {
        let status = running.mps.status();
        status["state"] == "down" && status["why"].as_str().is_some_and(|why| why.contains("(sleep) uses it"))
    });
    assert!(is_down, "{}", running.mps.status());
    let clients = running.mps.clients().len();
    assert_eq!(running.held.sh("probe cuda").ok(), MET_MPS, "at the tombstone");
    assert_eq!(running.mps.clients().len(), clients, "of a control daemon that was killed");
    let refused = MULTI.container(ground, engine, "1").sh("echo started");
    assert!(refused.status != 0 && refused.stdout.is_empty(), "{refused:?}");
    MULTI.set_foreign(ground, gpu_of(at), false);
    // It would come back by itself, after a pause that grew; whoever asks for it ends the pause.
    let since = Instant::now();
    running.assert_starts();
    running.assert_wired_soon(since, "the GPU is MPS's again");
    assert_ne!(running.mps.pid("control_pid"), control);
}

/// The next start of a container brings MPS back for those that run.
fn mps_when_all_are_killed(ground: &Ground, engine: &Engine) {
    let _alone = alone(engine);
    let running = Running::start(ground, engine, "all-killed");
    let pids = ["supervisor_pid", "control_pid", "server_pid"].map(|of| running.mps.pid(of));
    let since = running.kill(&pids);
    MULTI.restart(ground);
    running.assert_starts();
    running.assert_wired_soon(since, "supervisor, control daemon, server and divvy serve killed");
}
