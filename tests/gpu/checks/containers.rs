//! What a container has of MPS, in namespaces like a container's: a front directory with the control socket alone, a
//! /dev/shm of its own, and no way to change anything.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::daemon::Daemon;
use crate::ground::Ground;
use crate::process::run;
use crate::program::{Program, Setup, describe};
use crate::report::Rows;
use crate::tombstone::Tombstone;

/// As the hook does it, with `$1` for the front directory; and nothing of the host's /run, where the daemon's own is.
pub const CONTAINER: &str = "mount -t tmpfs tmpfs /tmp; mkdir /tmp/nvidia-mps; mount --bind \"$1\" /tmp/nvidia-mps; \
     mount -o remount,bind,ro,nosuid,nodev,noexec /tmp/nvidia-mps; \
     mount -t tmpfs tmpfs /dev/shm; mount -t tmpfs tmpfs /run";

/// 6: /dev/shm is the container's own.
pub fn private_shm(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let (daemon, _) = Daemon::with_limits(ground, "private-shm", None, 100)?;
    let inside = Some(("mount -t tmpfs tmpfs /dev/shm", &[][..]));
    let setup = Setup { pipe: Some(daemon.pipe()), inside, ..Setup::default() };
    let asked = "a kernel over 4 MiB, in ipc, pid and mount namespaces of its own";
    let answer = Program::start(ground, &setup)?.outcome(&["init", "context", "work"]);
    rows.claim("does a client work with a /dev/shm of its own?", asked, describe(answer), answer == 0);
    Ok(())
}

/// 7: the front directory.
pub fn front(ground: &Ground, rows: &mut Rows<'_>) -> Result<()> {
    let limit = ground.limit_mib();
    let (daemon, server) = Daemon::with_limits(ground, "front", Some(limit), 100)?;
    let front = ground.directory.join("front-seen");
    fs::create_dir(&front)?;
    let socket = front.join("control");
    fs::hard_link(daemon.pipe().join("control"), &socket)?;
    let arguments = [front.as_path()];
    let setup = Setup { inside: Some((CONTAINER, &arguments)), ..Setup::default() };
    let asked = "control alone, a hard link, read-only at /tmp/nvidia-mps, no environment";

    let mut program = match Program::ready(ground, &setup)? {
        Ok(program) => program,
        Err(code) => {
            rows.claim("does a client work through it?", asked, describe(code), false);
            return Ok(());
        }
    };
    let worked = program.outcome(&["work"]);
    rows.claim("does a client work through it?", asked, describe(worked), worked == 0);
    let taken = program.takes(limit * 3)?;
    rows.claim(
        "does the server's limit hold there?",
        asked,
        format!("{taken} MiB of {limit}"),
        taken <= limit,
    );

    for (command, what) in [
        ("set_default_active_thread_percentage 90", "get_default_active_thread_percentage"),
        ("set_default_device_pinned_mem_limit 0 80G", "get_default_device_pinned_mem_limit 0"),
    ] {
        let before = daemon.ask(what)?;
        let said = as_root_inside(ground, &front, command)?;
        let after = daemon.ask(what)?;
        let answer = format!("{said:?}; {before} before, {after} after");
        rows.claim("can root in there change a limit?", command, answer, before == after);
    }
    // divvy's guard stands before the next ones, not NVIDIA's daemon.
    let asked = format!("set_device_pinned_mem_limit {server} 0 {}M", limit * 2);
    let said = as_root_inside(ground, &front, &asked)?;
    let after = daemon.ask(&format!("get_device_pinned_mem_limit {server} 0"))?;
    rows.measured("and that of a running server, without divvy?", &asked, format!("{said:?}; {after} after"));
    let said = as_root_inside(ground, &front, "quit")?;
    let answers = daemon.ask("get_server_list").is_ok_and(|list| !list.is_empty());
    let state = if answers { "MPS runs on" } else { "MPS is gone" };
    rows.claim("can root in there stop MPS?", "quit", format!("{said:?}; {state}"), answers);

    // The container stays; the programs in it come and go.
    let beside = ground.directory.join("front-next");
    let stone = Tombstone::listen(&beside)?;
    fs::rename(&beside, &socket)?;
    program.tell("end")?;
    let code = program.outcome(&["init"]);
    rows.claim(
        "does a tombstone in its place keep CUDA out?",
        "cuInit in the same container",
        describe(code),
        code == 805,
    );
    drop(stone);
    fs::hard_link(daemon.pipe().join("control"), &beside)?;
    fs::rename(&beside, &socket)?;
    program.tell("end")?;
    let code = program.outcome(&["init", "context", "work"]);
    rows.claim(
        "and does the link let it in again?",
        "a kernel in the same container",
        describe(code),
        code == 0,
    );
    Ok(())
}

/// What NVIDIA's own program says to root in such a container.
pub fn as_root_inside(ground: &Ground, front: &Path, command: &str) -> Result<String> {
    let mut inside = Command::new("unshare");
    inside.args(["--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]);
    inside.arg(format!("set -e; {CONTAINER}; exec \"$0\"")).arg(&ground.programs.control).arg(front);
    inside.env_remove("CUDA_MPS_PIPE_DIRECTORY");
    run(&mut inside, &format!("{command}\n"), Duration::from_secs(10))
}
