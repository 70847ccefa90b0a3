//! What tests/bench-leases.sh prints: how long a lease takes, and what a thousand of them cost the daemon. Times mean
//! something only beside the others of the same run.

use std::process::{Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use crate::client::granted;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::hook::Bundle;
use crate::support::needs::built_hook;

const ALONE: usize = 300;
const AT_ONCE: usize = 200;
const ROUNDS: usize = 5;
const HELD: usize = 1000;

/// Prints them.
pub fn print() {
    println!("from question to answer, medians and the slowest of a hundred:");
    let alone = times(Caller::Socket, 1, ALONE, 0);
    let crowd = times(Caller::Socket, AT_ONCE, ROUNDS, 0);
    line("at the socket, alone", &alone, None);
    line(&format!("at the socket, {AT_ONCE} at once"), &crowd, Some(("in turn", &in_turn(&alone))));
    if built_hook().is_some() {
        let nothing = times(Caller::Nothing, 1, ALONE, 0);
        let nothings = times(Caller::Nothing, AT_ONCE, ROUNDS, 0);
        let alone = times(Caller::Hook, 1, ALONE, 0);
        let crowd = times(Caller::Hook, AT_ONCE, ROUNDS, 0);
        line("divvy-hook, alone", &alone, Some(("`true`, alone", &nothing)));
        line(&format!("divvy-hook, {AT_ONCE} at once"), &crowd, Some(("in turn", &in_turn(&alone))));
        line(&format!("`true`, {AT_ONCE} at once"), &nothings, None);
    } else {
        println!("without the hook, which is not built: packaging/build.sh");
    }
    with_a_thousand(&alone);
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Caller {
    Socket,
    Hook,
    /// A process that asks nothing, for comparison.
    Nothing,
}

/// The times of `rounds` rounds, in each of which so many containers take one share each of a pool, while others hold
/// `held` of them.
fn times(caller: Caller, at_once: usize, rounds: usize, held: usize) -> Vec<Duration> {
    let replicas = (held + at_once).div_ceil(8);
    let config = format!("[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nreplicas = {replicas}\n");
    let ground = Ground::new(&config);
    let _daemon = Daemon::start(&ground);
    let holders = Container::start_many(held);
    holders.iter().for_each(|holder| drop(granted(ground.ask(holder, &["gpu=shared"]))));
    let mut times = Vec::new();
    for _ in 0..rounds {
        let containers = Container::start_many(at_once);
        times.extend(round(caller, &ground, &containers));
        drop(containers);
        ground.wait_for_leases(held);
    }
    times.sort_unstable();
    times
}

fn round(caller: Caller, ground: &Ground, containers: &[Container]) -> Vec<Duration> {
    let begin = Barrier::new(containers.len());
    std::thread::scope(|scope| {
        let asking = containers.iter().map(|container| {
            let begin = &begin;
            scope.spawn(move || {
                let bundle =
                    (caller == Caller::Hook).then(|| Bundle::new(ground, container, &["gpu=shared"]));
                begin.wait();
                let began = Instant::now();
                match (caller, bundle) {
                    (Caller::Hook, Some(bundle)) => assert!(bundle.call().wait().unwrap().success()),
                    (Caller::Nothing, _) => {
                        let mut command = Command::new("/bin/true");
                        assert!(command.env_clear().stdin(Stdio::null()).status().unwrap().success());
                    }
                    _ => drop(granted(ground.ask(container, &["gpu=shared"]))),
                }
                began.elapsed()
            })
        });
        let asking: Vec<_> = asking.collect();
        asking.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

/// The times that each of a crowd would take if they came one after the other, each as long as one alone.
fn in_turn(alone: &[Duration]) -> Vec<Duration> {
    let one = alone[alone.len() / 2];
    (1..=AT_ONCE as u32).map(|number| one * number).collect()
}

fn with_a_thousand(alone: &[Duration]) {
    let ground = Ground::new(crate::many::THOUSAND);
    let daemon = Daemon::start(&ground);
    let before = daemon.status("VmRSS");
    let containers = Container::start_many(HELD);
    containers.iter().for_each(|one| drop(granted(ground.ask(one, &["gpu=shared"]))));
    let after = daemon.status("VmRSS");
    std::thread::sleep(Duration::from_secs(1));
    let wakes = daemon.status("voluntary_ctxt_switches");
    std::thread::sleep(Duration::from_secs(10));
    let wakes = daemon.status("voluntary_ctxt_switches") - wakes;
    drop((containers, daemon));
    line(
        &format!("with {HELD} leases held"),
        &times(Caller::Socket, 1, ALONE / 3, HELD),
        Some(("with none", alone)),
    );
    println!(
        "daemon with {HELD} leases: {after} KiB resident, {before} KiB without; wake-ups in 10 s at rest: {wakes}"
    );
}

fn line(what: &str, times: &[Duration], beside: Option<(&str, &[Duration])>) {
    let at = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
    let (p50, p99) = (at(times, 50), at(times, 99));
    let ratio = beside.map(|(name, other)| {
        let (p50, other) = (p50 as f64, at(other, 50));
        format!("   {name} {other:>6} us   ratio {:.2}", p50 / other as f64)
    });
    println!("{what:<30} p50 {p50:>7} us   p99 {p99:>7} us{}", ratio.unwrap_or_default());
}
