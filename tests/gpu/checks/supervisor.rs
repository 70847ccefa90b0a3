//! What divvy makes of MPS: one supervisor from its start to its end, with a container that stays.

use std::time::{Duration, Instant};

use anyhow::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::containers::{CONTAINER, as_root_inside};
use crate::gpu::ComputeMode;
use crate::ground::Ground;
use crate::mps::protocol::State;
use crate::process::until;
use crate::program::{Program, Setup, describe};
use crate::report::Rows;
use crate::supervised::Supervised;

/// How long MPS may take to come back.
const RECOVERY: Duration = Duration::from_secs(60);

/// Beyond the fourteen: start, limits, abuse, the end of each part, and stop.
pub fn supervisor(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    if let Some(why) = ground.mode_is_fixed().filter(|_| !ground.gpu.is_mig) {
        rows.skipped("does divvy's supervisor keep MPS?", &format!("it sets the compute mode, and {why}"));
        return Ok(());
    }
    let limit = ground.limit_mib();
    ground.set_mode(ComputeMode::Default)?;
    let mut supervised = Supervised::start(ground)?;
    let began = Instant::now();
    let front = match supervised.ensure(ground, limit, 50) {
        Ok(front) => front,
        Err(error) => {
            rows.claim("does divvy's supervisor start MPS?", "ensure", format!("{error:#}"), false);
            return Ok(());
        }
    };
    let seconds = format!("yes, in {:.1} s", began.elapsed().as_secs_f64());
    rows.claim("does divvy's supervisor start MPS?", "ensure", seconds, true);
    if !ground.gpu.is_mig {
        let mode = ground.gpu.mode_now(&ground.nvml)?;
        let is_so = mode == ComputeMode::ExclusiveProcess;
        rows.claim("does the GPU admit the server alone then?", "compute mode", format!("{mode:?}"), is_so);
    }

    let arguments = [front.as_path()];
    let setup = Setup { inside: Some((CONTAINER, &arguments)), ..Setup::default() };
    let mut program = match Program::ready(ground, &setup)? {
        Ok(program) => program,
        Err(code) => {
            rows.claim("does a container work?", "the front directory alone", describe(code), false);
            return Ok(());
        }
    };
    let code = program.outcome(&["work"]);
    rows.claim("does a container work?", "the front directory alone", describe(code), code == 0);
    let taken = program.takes(limit * 3)?;
    let asked = format!("ensure with {limit} MiB and 50 %");
    rows.claim(
        "does its memory limit hold?",
        &asked,
        format!("{taken} MiB of {limit}"),
        taken <= limit && taken > 0,
    );
    let (used, sms) = (program.ask("sms-used")?.number()?, ground.sms()?);
    rows.claim("does its SM limit hold?", &asked, format!("{used} of {sms}"), used <= sms / 2 && used > 0);

    let before = supervised.status()?;
    let server = before.server_pid.unwrap_or_default();
    for command in [
        "set_default_active_thread_percentage 90".to_owned(),
        format!("set_active_thread_percentage {server} 90"),
        format!("set_device_pinned_mem_limit {server} 0 {}M", limit * 2),
        format!("shutdown_server {server}"),
        "quit".to_owned(),
    ] {
        let said = as_root_inside(ground, &front, &command).unwrap_or_else(|error| format!("{error:#}"));
        let (later, holds) = match Program::ready(ground, &setup)? {
            Ok(mut later) => {
                let (used, taken) = (later.ask("sms-used")?.number()?, later.takes(limit * 3)?);
                (format!("a later client has {used} SMs and {taken} MiB"), used <= sms / 2 && taken <= limit)
            }
            Err(code) => (format!("a later client gets {}", describe(code)), false),
        };
        rows.claim("can root in a container change it?", &command, format!("{said:?}; {later}"), holds);
    }
    let code = program.outcome(&["work"]);
    rows.claim("does the first container work on after that?", "a kernel", describe(code), code == 0);

    supervised.start_again(ground)?;
    supervised.ensure(ground, limit, 50)?;
    let after = supervised.status()?;
    let code = program.outcome(&["work"]);
    let is_same = (before.control_pid, before.server_pid) == (after.control_pid, after.server_pid);
    let answer = format!("client {}; the same MPS: {is_same}", describe(code));
    rows.claim(
        "does a client outlive the supervisor?",
        "SIGKILL to it, and another",
        answer,
        code == 0 && is_same,
    );

    for (who, pid) in [("the control daemon", after.control_pid), ("the server", after.server_pid)] {
        let now = supervised.status()?;
        let pid = if who == "the server" { now.server_pid } else { now.control_pid.or(pid) };
        let Some(pid) = pid else { continue };
        program.tell("end")?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let began = Instant::now();
        let mut codes = Vec::new();
        let is_back = until(RECOVERY, || {
            let code = program.outcome(&["init", "context", "work"]);
            let _ = program.tell("end");
            if codes.last() != Some(&code) {
                codes.push(code);
            }
            code == 0 && supervised.status().is_ok_and(|status| status.state == State::Ready)
        });
        let seconds = began.elapsed().as_secs_f64();
        let words: Vec<String> = codes.into_iter().map(describe).collect();
        let answer = format!("{} after {seconds:.1} s", words.join(", then "));
        let question = "does the same container work again, without a start?";
        rows.claim(question, &format!("SIGKILL to {who}"), answer, is_back);
    }
    drop(program);

    supervised.stop()?;
    if !ground.gpu.is_mig {
        let mode = ground.gpu.mode_now(&ground.nvml)?;
        let is_so = mode == ComputeMode::Default;
        rows.claim(
            "is the compute mode as before in the end?",
            "stop",
            format!("{mode:?}, was Default"),
            is_so,
        );
    }
    ground.set_mode(ComputeMode::ExclusiveProcess)?;
    Ok(())
}
