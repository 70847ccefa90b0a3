//! 200 containers with real bundles on runc, racing for 32 shares on four GPUs, while the daemon, hooks and containers
//! are killed. tests/leases does the same at the socket, many more times.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use hooks::lease::Lease;
use serde_json::Value;

use crate::bundle::RUNTIMES;
use crate::ground::Ground;
use crate::machine::MachineTrial;

/// Every trial.
pub const TRIALS: [MachineTrial; 2] =
    [("race_with_daemon_killed", &[], daemon_is_killed), ("race_with_all_killed", &[], all_are_killed)];

const SCRIPT: &str = include_str!("race.sh");
const CONTAINERS: usize = 200;
const SHARES: usize = 32;
/// Not in a directory that engines read: the names are for runc's bundles alone.
const LAY_OUT: &str = "mkdir -p /run/race && cat >/etc/divvy/race.toml <<'T'
whole_names = \"no\"
start_timeout = \"2m\"
[[gpu]]
match = [\"1\", \"2\", \"3\", \"7\"]
mode = \"time-slice\"
name = \"race\"
replicas = 8
T
divvy --quiet generate --host sim:a100-lab --config /etc/divvy/race.toml --state-dir /run/race \\
    --output /run/race/divvy.json && cat /run/race/divvy.json";

/// What came of a race.
#[derive(Debug, Default)]
struct Race {
    /// Of each start: 0, the status of the hook that refused, or what the runtime said.
    starts: Vec<String>,
    /// Of those that came one by one afterwards.
    again: Vec<String>,
    leases: Vec<Lease>,
    running: BTreeSet<String>,
    /// Daemons, hooks, containers.
    killed: String,
    left: usize,
}

/// What a daemon that dies changes: nothing.
fn daemon_is_killed(ground: &Ground) {
    let race = Race::run(ground, "daemon");
    let count = |outcome: &str| race.starts.iter().filter(|start| *start == outcome).count();
    let others: Vec<&String> =
        race.starts.iter().filter(|start| !["0", "3"].contains(&start.as_str())).collect();
    assert_eq!((count("0"), count("3")), (SHARES, CONTAINERS - SHARES), "{others:#?}");
    assert_eq!(race.leases.len(), SHARES);
    assert_eq!(race.again, ["3"]);
}

/// What was killed holds nothing, and what was not holds all that the leases say. All shares can be had afterwards.
fn all_are_killed(ground: &Ground) {
    let race = Race::run(ground, "daemon hooks containers");
    assert_eq!(race.starts.len(), CONTAINERS);
    let (last, again) = race.again.split_last().expect("one more");
    assert!(again.iter().all(|outcome| outcome == "0"), "{again:?}");
    assert_eq!((race.leases.len() + again.len(), last.as_str()), (SHARES, "3"));
}

impl Race {
    fn run(ground: &Ground, dies: &str) -> Self {
        // One after the other: there is one state directory.
        static ALONE: Mutex<()> = Mutex::new(());
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let spec: Value = serde_json::from_str(ground.sh(LAY_OUT).ok()).expect("a spec");
        let names =
            std::iter::once("race".to_owned()).chain((0..SHARES).map(|share| format!("race-{share}")));
        let runc = &RUNTIMES[0];
        let args = ["/bin/busybox", "sleep", "10000"];
        let configs = names.map(|name| runc.with_device_of(ground, &args, &spec, &name).to_string());
        let mut command: Vec<String> =
            ["bash", "-c", SCRIPT, "race.sh", "/run/race", dies, "6"].map(str::to_owned).into();
        command.extend(configs);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = ground.command_for(600, "in.sh", &command);
        let race = Self::parse(output.ok());
        let started = race.starts.iter().filter(|start| *start == "0").count();
        println!(
            "runc: {started} of {CONTAINERS} started, {} hold a share; daemons, hooks and containers killed: {}",
            race.leases.len(),
            race.killed
        );
        race.check();
        race
    }

    fn parse(said: &str) -> Self {
        let mut race = Self::default();
        for line in said.lines() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            let outcome = || rest.split_once(' ').map_or("", |(_, outcome)| outcome).trim().to_owned();
            match word {
                "start" => race.starts.push(outcome()),
                "again" => race.again.push(outcome()),
                "lease" => race.leases.push(Lease::parse(rest.as_bytes()).expect("a lease")),
                "running" => drop(race.running.insert(rest.to_owned())),
                "killed" => race.killed = rest.to_owned(),
                "left" => race.left = rest.parse().expect("a number"),
                _ => panic!("{line}"),
            }
        }
        race
    }

    /// Whatever was killed: each container that runs has one share of its own, and nobody else has any.
    fn check(&self) {
        let devices = self.leases.iter().flat_map(|lease| &lease.devices);
        let devices: Vec<String> = devices.map(|device| device.name.to_string()).collect();
        assert_eq!(devices.len(), self.leases.len());
        assert_eq!(
            devices.iter().collect::<BTreeSet<_>>().len(),
            devices.len(),
            "one has two holders: {devices:?}"
        );
        let holders: BTreeSet<String> = self.leases.iter().map(|lease| lease.container.id.clone()).collect();
        assert_eq!(holders, self.running);
        assert_eq!(self.left, 0);
    }
}
