//! What becomes of clients when MPS or one of them ends, and how long it takes until the next one works.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::process::{is_alive, until};
use crate::program::{Program, Setup, describe};
use crate::report::Rows;

/// How long MPS may take to recover.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long work in flight lasts, milliseconds; it ends by itself where nothing ends it.
const IN_FLIGHT_MS: u32 = 10_000;

/// 8: the control daemon is killed, or its server, under a client.
pub fn restart(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let limit = ground.limit_mib();
    let (daemon, server) = Daemon::with_limits(ground, "restart", Some(limit), 100)?;
    let pipe = daemon.pipe().to_path_buf();
    let setup = Setup { pipe: Some(&pipe), ..Setup::default() };
    let mut client = Program::expect_ready(ground, &setup)?;
    let asked = "SIGKILL to the control daemon";
    daemon.kill();
    until(Duration::from_secs(2), || !is_alive(server));
    let state = if is_alive(server) { "it runs on" } else { "it ends too" };
    rows.measured("what becomes of the server?", asked, state);
    rows.measured("what becomes of its client?", asked, describe(client.outcome(&["work"])));
    let answer = match ground.taken(&setup, limit * 3)? {
        Ok(taken) if taken > limit => format!("it runs without limits: {taken} MiB of {limit}"),
        Ok(taken) => format!("it has its limit: {taken} MiB of {limit}"),
        Err(why) => why,
    };
    rows.measured("what becomes of a client that starts then?", asked, answer);
    drop(client);
    end_server(server);

    let (daemon, server) = Daemon::with_limits(ground, "restart", Some(limit), 100)?;
    let mut client = Program::expect_ready(ground, &setup)?;
    let asked = "SIGKILL to the server";
    kill(Pid::from_raw(server), Signal::SIGKILL).context("cannot kill the server")?;
    let start = Instant::now();
    rows.measured("what becomes of its client?", asked, describe(client.outcome(&["work"])));
    drop(client);
    let seconds = works_again(ground, &setup, start)?;
    let question = "how long until a new client works, with no help?";
    rows.measured(question, asked, seconds.as_deref().unwrap_or("it does not, in 60 s"));
    if seconds.is_some() {
        match ground.taken(&setup, limit * 3)? {
            Ok(taken) => {
                let answer = format!("{taken} MiB of {limit}");
                rows.claim("has that server the limit of before?", asked, answer, taken <= limit);
            }
            Err(why) => rows.measured("has that server the limit of before?", asked, why),
        }
    }
    drop(daemon);
    Ok(())
}

/// 11: a client is killed at work, terminated first, or faults, beside another.
pub fn killed_client(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let (daemon, server) = Daemon::with_limits(ground, "killed", None, 100)?;
    let pipe = daemon.pipe().to_path_buf();
    let setup = Setup { pipe: Some(&pipe), ..Setup::default() };
    let spin = format!("spin {IN_FLIGHT_MS}");

    let asked = "terminate_client, then SIGKILL, with a kernel in flight";
    let mut neighbour = Program::expect_ready(ground, &setup)?;
    let mut client = Program::expect_ready(ground, &setup)?;
    client.ask(&spin)?;
    let said = daemon.ask(&format!("terminate_client {server} {}", client.pid()))?;
    let ended = describe(client.outcome(&["wait"]));
    rows.measured("what does the client see?", asked, format!("{ended}; MPS said {said:?}"));
    client.kill();
    let code = neighbour.outcome(&["work"]);
    rows.claim("does its neighbour work on?", asked, describe(code), code == 0);
    rows.measured("how is the server?", asked, daemon.status(server));
    drop(neighbour);

    for (asked, is_fault) in
        [("SIGKILL with a kernel in flight", false), ("a kernel that writes nowhere", true)]
    {
        let mut neighbour = Program::expect_ready(ground, &setup)?;
        let mut client = Program::expect_ready(ground, &setup)?;
        let start = Instant::now();
        if is_fault {
            let code = client.outcome(&["fault"]);
            rows.measured("what does the client see?", asked, describe(code));
        } else {
            client.ask(&spin)?;
            client.kill();
        }
        let code = neighbour.outcome(&["work"]);
        rows.measured("does its neighbour work on?", asked, describe(code));
        rows.measured("how is the server?", asked, daemon.status(server));
        let meanwhile = match Program::ready(ground, &setup)? {
            Ok(_) => "works".to_owned(),
            Err(code) => describe(code),
        };
        rows.measured("and a client that starts beside the neighbour?", asked, meanwhile);
        drop(neighbour);
        let seconds = works_again(ground, &setup, start)?;
        let question = "how long until a new client works, when all others have left?";
        rows.measured(question, asked, seconds.as_deref().unwrap_or("it does not, in 60 s"));
        let now = daemon.servers();
        let same = if now.first() == Some(&server) { "the same" } else { "another, or none" };
        rows.measured("is it the same server?", asked, same);
        if now.first() != Some(&server) {
            rows.measured("the daemon's last words", asked, daemon.last_words());
            break;
        }
    }
    Ok(())
}

/// Seconds from `start` until a new client works.
fn works_again(ground: &Ground, setup: &Setup<'_>, start: Instant) -> Result<Option<String>> {
    while start.elapsed() < RECOVERY {
        if Program::start(ground, setup)?.outcome(&["init", "context", "work"]) == 0 {
            return Ok(Some(format!("{:.1} s", start.elapsed().as_secs_f64())));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(None)
}

/// One whose daemon is gone, so that the next check has the device for itself.
fn end_server(server: i32) {
    if is_alive(server) {
        let _ = kill(Pid::from_raw(server), Signal::SIGKILL);
        until(Duration::from_secs(10), || !is_alive(server));
    }
}
