//! Processes with an end: commands with a time limit, and what is left of everything that was started.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How often is looked whether something has happened.
pub const TICK: Duration = Duration::from_millis(5);

/// Everything is being ended.
static IS_OVER: AtomicBool = AtomicBool::new(false);

/// Starts a process, unless everything is being ended.
pub fn spawn(command: &mut Command) -> Result<Child> {
    if IS_OVER.load(Ordering::SeqCst) {
        bail!("the checks are being ended");
    }
    command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Standard output and error of a command that gets `input`. One that takes longer is killed, which is an error.
pub fn run(command: &mut Command, input: &str, limit: Duration) -> Result<String> {
    let what = command.get_program().to_string_lossy().into_owned();
    let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended already says why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let ended = until(limit, || child.try_wait().is_ok_and(|status| status.is_some()));
    if !ended {
        let _ = child.kill();
        let _ = child.wait();
        bail!("{what} did not answer in {} s", limit.as_secs());
    }
    let mut said = String::new();
    let pipes: [Option<&mut dyn Read>; 2] =
        [child.stdout.as_mut().map(|pipe| pipe as _), child.stderr.as_mut().map(|pipe| pipe as _)];
    for pipe in pipes.into_iter().flatten() {
        pipe.read_to_string(&mut said).with_context(|| format!("cannot read what {what} says"))?;
    }
    Ok(said.trim().to_owned())
}

/// Waits for something, so long at most: whether it came.
pub fn until(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !is_so() {
        if start.elapsed() >= limit {
            return false;
        }
        sleep(TICK);
    }
    true
}

/// Whether a process is there that has not ended.
pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| state_and_parent(&stat).is_some_and(|s| s.0 != 'Z'))
}

/// Ends every process below this one, which has to be their subreaper (PR_SET_CHILD_SUBREAPER): asked first, then made
/// to. Those that are still there then.
pub fn end_all_below() -> Vec<i32> {
    IS_OVER.store(true, Ordering::SeqCst);
    for (signal, limit) in
        [(Signal::SIGTERM, Duration::from_secs(5)), (Signal::SIGKILL, Duration::from_secs(20))]
    {
        let is_empty = until(limit, || {
            reap();
            let below = below(std::process::id().cast_signed());
            // Again each time: what is asked may start something yet.
            for pid in &below {
                let _ = kill(Pid::from_raw(*pid), signal);
            }
            sleep(Duration::from_millis(50));
            below.is_empty()
        });
        if is_empty {
            break;
        }
    }
    reap();
    below(std::process::id().cast_signed())
}

/// Takes note of children that have ended.
pub fn reap() {
    while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        if status.pid().is_none() {
            break;
        }
    }
}

/// All processes below one, as the kernel knows parents.
fn below(ancestor: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if let Some((_, parent)) = state_and_parent(&stat) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = children.remove(&ancestor).unwrap_or_default();
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// From /proc/PID/stat (proc(5)). The name before them may have parentheses itself.
fn state_and_parent(stat: &str) -> Option<(char, i32)> {
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}
