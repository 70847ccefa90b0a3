//! Limits of memory and SMs: what holds them, when they begin, and what a client can do about them.

use anyhow::Result;

use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::program::{Program, Setup};
use crate::report::Rows;

const MEMORY: &str = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT";
const PERCENTAGE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";

/// 2: a limit of the server's, and values in the client's environment that MPS cannot make sense of.
pub fn malformed(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let limit = ground.limit_mib();
    let most = limit * 3;
    let (daemon, _) = Daemon::with_limits(ground, "malformed", Some(limit), 100)?;
    let pipe = Some(daemon.pipe());
    let set = format!("set_default_device_pinned_mem_limit 0 {limit}M");

    let mut program = Program::expect_ready(ground, &Setup { pipe, ..Setup::default() })?;
    let told = program.ask("memory")?.numbers;
    rows.measured(
        "what is a client told of memory, free and total?",
        "cuMemGetInfo",
        format!("{told:?} MiB"),
    );
    let taken = program.takes(most)?;
    let asked = format!("{set}; cuMemAlloc until it fails");
    rows.claim("does the server's limit hold?", &asked, of(taken, limit), taken <= limit && taken > 0);
    drop(program);

    for value in ["1=4G", "7=1G", "junk", "0=", "0=junk", "0=0G"] {
        let environment = [(MEMORY, value)];
        let setup = Setup { pipe, environment: &environment, ..Setup::default() };
        let answer = match ground.taken(&setup, most)? {
            Ok(taken) if taken > limit => format!("yes: {}", of(taken, limit)),
            Ok(taken) => format!("no: {}", of(taken, limit)),
            Err(why) => format!("no: it gets no context ({why})"),
        };
        rows.measured(
            "does a client get past it with its own environment?",
            &format!("{MEMORY}={value}"),
            answer,
        );
    }
    Ok(())
}

/// 3: higher and lower values in the client's environment.
pub fn environment(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let limit = ground.limit_mib();
    let sms = ground.sms()?;
    let (daemon, _) = Daemon::with_limits(ground, "environment", Some(limit), 50)?;
    let pipe = Some(daemon.pipe());

    for (question, value, most) in [
        ("does a lower memory limit of the client's count?", limit / 2, limit / 2),
        ("does a higher one leave the server's in force?", limit * 2, limit),
    ] {
        let text = format!("0={value}M");
        let environment = [(MEMORY, text.as_str())];
        let setup = Setup { pipe, environment: &environment, ..Setup::default() };
        let asked = format!("{MEMORY}={text}, server {limit}M");
        match ground.taken(&setup, limit * 3)? {
            Ok(taken) => rows.claim(question, &asked, of(taken, most), taken <= most && taken > 0),
            Err(why) => rows.claim(question, &asked, why, false),
        }
    }

    for (question, percentage, counts) in [
        ("does the server's percentage hold?", None, 50),
        ("does a higher percentage of the client's leave it in force?", Some("100"), 50),
        ("does a lower one count?", Some("25"), 25),
    ] {
        let environment: Vec<(&str, &str)> =
            percentage.map(|value| (PERCENTAGE, value)).into_iter().collect();
        let setup = Setup { pipe, environment: &environment, ..Setup::default() };
        let mut program = Program::expect_ready(ground, &setup)?;
        let told = program.ask("sm-count")?.number()?;
        let used = program.ask("sms-used")?.number()?;
        let asked =
            format!("{PERCENTAGE}={}, server 50; %smid of each block", percentage.unwrap_or("(unset)"));
        let answer = format!("blocks on {used} of {sms} SMs, told {told}");
        rows.claim(question, &asked, &answer, used <= sms * counts / 100 && used > 0);
        let says = sms_of(sms, counts);
        rows.claim(
            &format!("is {says} SMs, as divvy says of {counts} %, right?"),
            &asked,
            &answer,
            used == says,
        );
    }
    Ok(())
}

/// 4: when a memory limit of a running server begins for a client.
pub fn memory_latched(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let limit = ground.limit_mib();
    let (daemon, server) = Daemon::with_limits(ground, "memory-latched", Some(limit * 2), 100)?;
    let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
    let set = |mib: u64| daemon.ask(&format!("set_device_pinned_mem_limit {server} 0 {mib}M"));
    let asked = format!("set_device_pinned_mem_limit, from {}M to {limit}M", limit * 2);
    let counted = |taken: u64| {
        let which = if taken <= limit { "the new" } else { "the old" };
        format!("{which} limit counts: {taken} MiB")
    };

    let mut connected = Program::start(ground, &setup)?;
    connected.ask("init")?;
    let mut working = Program::expect_ready(ground, &setup)?;
    set(limit)?;
    let says = daemon.ask(&format!("get_device_pinned_mem_limit {server} 0"))?;
    rows.measured("what does the server say then?", "get_device_pinned_mem_limit", says);
    connected.ask("context")?;
    rows.measured("set between cuInit and the context", &asked, counted(connected.takes(limit * 3)?));
    rows.measured("set after the context", &asked, counted(working.takes(limit * 3)?));
    let mut later = Program::expect_ready(ground, &setup)?;
    rows.measured("set before cuInit", &asked, counted(later.takes(limit * 3)?));
    Ok(())
}

/// 5: the same for percentages.
pub fn sms_latched(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let sms = ground.sms()?;
    let (daemon, server) = Daemon::with_limits(ground, "sms-latched", None, 100)?;
    let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
    let asked = "set_active_thread_percentage, from 100 to 25";
    let counted = |used: u64| {
        let which = if used <= sms * 25 / 100 { "the new" } else { "the old" };
        format!("{which} percentage counts: {used} of {sms} SMs")
    };

    let mut connected = Program::start(ground, &setup)?;
    connected.ask("init")?;
    let mut working = Program::expect_ready(ground, &setup)?;
    daemon.ask(&format!("set_active_thread_percentage {server} 25"))?;
    connected.ask("context")?;
    rows.measured("set between cuInit and the context", asked, counted(connected.ask("sms-used")?.number()?));
    rows.measured("set after the context", asked, counted(working.ask("sms-used")?.number()?));
    let mut later = Program::expect_ready(ground, &setup)?;
    rows.measured("set before cuInit", asked, counted(later.ask("sms-used")?.number()?));
    Ok(())
}

/// 9: limits by UUID, which drivers to 555 take for ordinal 0 and none.
pub fn by_uuid(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let limit = ground.limit_mib();
    let (daemon, _) = Daemon::with_limits(ground, "by-uuid", Some(limit), 100)?;
    let uuid = &ground.gpu.uuid;
    let half = limit / 2;
    let asked = format!("set_default_device_pinned_mem_limit 0 {limit}M, then {uuid} {half}M");
    daemon.ask(&format!("set_default_device_pinned_mem_limit {uuid} {half}M"))?;
    for device in ["0", uuid.as_str()] {
        let says = daemon.ask(&format!("get_default_device_pinned_mem_limit {device}"))?;
        let says = if says.is_empty() { "nothing".to_owned() } else { says };
        rows.measured(&format!("what is the limit of {device} then?"), &asked, says);
    }
    // The server that runs has the limits of its start.
    drop(daemon);
    let flags: Vec<&str> = ground.programs.multi_user.into_iter().collect();
    let daemon = Daemon::start(ground, "by-uuid", &flags)?;
    for (device, mib) in [("0", limit), (uuid.as_str(), half)] {
        daemon.ask(&format!("set_default_device_pinned_mem_limit {device} {mib}M"))?;
    }
    daemon.start_server(0)?;
    let setup = Setup { pipe: Some(daemon.pipe()), ..Setup::default() };
    let answer = match ground.taken(&setup, limit * 3)? {
        Ok(taken) if taken <= half => format!("that of the UUID: {taken} MiB"),
        Ok(taken) if taken <= limit => format!("that of ordinal 0: {taken} MiB"),
        Ok(taken) => format!("neither: {taken} MiB"),
        Err(why) => why,
    };
    rows.measured("which of the two counts?", &asked, answer);
    Ok(())
}

fn of(taken: u64, limit: u64) -> String {
    format!("{taken} MiB of {limit}")
}

/// What the planner says that a percentage is worth: an even number, rounded down, and two at least.
fn sms_of(sms: u64, percent: u64) -> u64 {
    (sms * percent / 100 / 2 * 2).max(2)
}
