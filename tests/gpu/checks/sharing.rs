//! Who gets to the GPU beside whom: users, compute modes, two control daemons, and how many clients there can be.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::daemon::Daemon;
use crate::gpu::ComputeMode;
use crate::ground::Ground;
use crate::process::until;
use crate::program::{Program, Setup, describe};
use crate::report::Rows;

/// nobody's, as most systems count: nothing here belongs to it.
const OTHER_USER: u32 = 65_534;
/// The first CUDA with 60 clients for each GPU, where there were 48.
const CUDA_OF_60: u32 = 13_010;

/// 10: clients of two users at once.
pub fn users(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    for multi_user in [None, Some(ground.programs.multi_user)] {
        let flags: Vec<&str> = match multi_user {
            None => Vec::new(),
            Some(Some(flag)) => vec![flag],
            Some(None) => {
                rows.skipped(
                    "do clients of two users run at once?",
                    "this control daemon serves one user at a time",
                );
                break;
            }
        };
        let daemon = Daemon::start(ground, "users", &flags)?;
        daemon.start_server(0)?;
        let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
        let first = Program::expect_ready(ground, &setup)?;
        let mut second = Program::start(ground, &Setup { uid: Some(OTHER_USER), ..setup.clone() })?;
        second.tell("init")?;
        let at_once = second.answer(Duration::from_secs(5))?;
        let asked = format!("{} uid 0, then uid {OTHER_USER}", flags.first().unwrap_or(&"without the flag:"));
        if flags.is_empty() {
            let Some(answer) = at_once else {
                drop(first);
                let start = Instant::now();
                let answer =
                    second.answer(Duration::from_secs(60))?.context("the second client waits for ever")?;
                let seconds = start.elapsed().as_secs_f64();
                let words = describe(answer.code);
                let answer = format!("it waits; {seconds:.1} s after the first has left it: {words}");
                rows.measured("what does a client of another user get?", &asked, answer);
                continue;
            };
            rows.measured("what does a client of another user get?", &asked, describe(answer.code));
            continue;
        }
        let Some(answer) = at_once else {
            rows.claim("do clients of two users run at once?", &asked, "the second waits", false);
            continue;
        };
        let code = if answer.is_done() { second.outcome(&["context", "work"]) } else { answer.code };
        rows.claim("do clients of two users run at once?", &asked, describe(code), code == 0);
        drop(first);
    }
    Ok(())
}

/// 12: compute modes, and two control daemons on one GPU.
pub fn compute_mode(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let limit = ground.limit_mib();
    let nowhere = ground.directory.join("nowhere");
    let plain = Setup { pipe: Some(&nowhere), ..Setup::default() };
    let without_mps =
        || Ok::<i32, anyhow::Error>(Program::start(ground, &plain)?.outcome(&["init", "context"]));
    let (daemon, _) = Daemon::with_limits(ground, "mode", Some(limit), 100)?;
    let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
    let mut client = Program::expect_ready(ground, &setup)?;
    for (mode, question) in [
        (ComputeMode::ExclusiveProcess, "is a program without MPS kept out in mode exclusive-process?"),
        (ComputeMode::Prohibited, "and in mode prohibited?"),
    ] {
        if !ground.set_mode(mode)? {
            rows.skipped(question, ground.mode_is_fixed().unwrap_or("the mode is another"));
            continue;
        }
        let code = without_mps()?;
        rows.claim(question, "a context, while MPS has a client", describe(code), code != 0);
    }
    let now = ground.gpu.mode_now(&ground.nvml).map_or_else(|_| "none".into(), |mode| format!("{mode:?}"));
    let worked = describe(client.outcome(&["work"]));
    rows.measured("does a client of before work on?", &format!("a kernel in mode {now}"), worked);
    drop(client);

    if ground.set_mode(ComputeMode::Default)? || ground.gpu.is_mig {
        let code = without_mps()?;
        let asked = "CUDA_MPS_PIPE_DIRECTORY of nobody, while MPS has the device";
        rows.measured("what becomes of a program that misses MPS in mode default?", asked, describe(code));
        let (other, _) = Daemon::with_limits(ground, "mode-other", Some(limit / 2), 100)?;
        let mut first = Program::expect_ready(ground, &setup)?;
        let asked = format!("two pipe directories, limits {limit}M and {}M, mode default", limit / 2);
        match Program::ready(ground, &Setup { pipe: Some(other.pipe()), ..Setup::default() })? {
            Ok(mut second) => {
                first.tell("work")?;
                let worked = second.outcome(&["work"]);
                let beside = first.answer(Duration::from_secs(60))?.map_or(-2, |answer| answer.code);
                let taken = [first.takes(limit * 3)?, second.takes(limit * 3)?];
                let answer = format!("{} and {}; {taken:?} MiB", describe(beside), describe(worked));
                rows.measured("do two control daemons share one device?", &asked, answer);
            }
            Err(code) => rows.measured("do two control daemons share one device?", &asked, describe(code)),
        }
    } else {
        rows.skipped("do two control daemons share one device?", "the mode is not default, and kept");
    }
    drop(daemon);
    ground.set_mode(ComputeMode::ExclusiveProcess)?;
    Ok(())
}

/// 14: as many clients as the server takes.
pub fn client_count(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let expected = if ground.gpu.cuda >= CUDA_OF_60 { 60 } else { 48 };
    let (daemon, _) = Daemon::with_limits(ground, "count", None, 100)?;
    let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
    let mut clients = Vec::new();
    let mut end = String::from("as many as were tried");
    while clients.len() < expected + 4 {
        match Program::ready(ground, &setup)? {
            Ok(client) => clients.push(client),
            Err(code) => {
                end = describe(code);
                break;
            }
        }
    }
    let answer = format!("{}; then: {end}", clients.len());
    let asked = format!("contexts, one after the other; divvy allows {expected}");
    rows.claim("how many clients can there be?", &asked, answer, clients.len() >= expected);
    // All at once: one after the other they would take their time to leave.
    drop(clients);
    until(Duration::from_secs(1), || false);
    Ok(())
}

/// Beyond the fourteen: four equal shares, each filled to its limit while the others are.
pub fn equal_shares(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    const SHARES: u64 = 4;
    /// What divvy keeps for the server's own context, MiB.
    const SERVER_MIB: u64 = 64;
    let gpu = &ground.gpu;
    let before = gpu.used_mib(&ground.nvml)?;
    let share = gpu.memory_mib.saturating_sub(gpu.reserved_mib + SERVER_MIB) / SHARES;
    let (daemon, _) = Daemon::with_limits(ground, "equal", Some(share), 25)?;
    let with_server = gpu.used_mib(&ground.nvml)?;
    let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
    let mut clients = Vec::new();
    let mut taken = Vec::new();
    let mut with_client = None;
    for _ in 0..SHARES {
        let mut client = Program::expect_ready(ground, &setup)?;
        if with_client.is_none() {
            with_client = Some(gpu.used_mib(&ground.nvml)?);
        }
        taken.push(client.ask(&format!("take {share}"))?.number()?);
        clients.push(client);
    }
    let asked =
        format!("{} - {} - {SERVER_MIB} MiB in {SHARES}: {share} each", gpu.memory_mib, gpu.reserved_mib);
    let figures = format!(
        "{before} MiB, {with_server} MiB with a server, {} MiB with a client",
        with_client.unwrap_or(0)
    );
    rows.measured("what is in use before anybody takes any?", "nvmlDeviceGetMemoryInfo_v2, used", figures);
    // The same for all, but for the piece in which memory is asked for.
    let least = taken.iter().min().copied().unwrap_or(0);
    let is_equal = taken.iter().all(|mib| mib - least <= 2) && least > 0;
    rows.claim("does each of four equal shares get its memory?", &asked, format!("{taken:?} MiB"), is_equal);
    Ok(())
}
