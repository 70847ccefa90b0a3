//! What the static hook is and does as a process: no library, no other program, no network, little memory.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod asking;
#[path = "../common/built.rs"]
mod built;
#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code, reason = "other tests have other needs")]
#[path = "../../../tests/support/needs.rs"]
mod needs;
#[path = "../../../tests/support/peak.rs"]
mod peak;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use built::Libc;
use common::{Bundle, CUDA, DIR, Outcome, feed};
use libtest_mimic::Arguments;
use needs::{Need, trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// On a root like any, in KiB.
const MOST_RESIDENT: u64 = 4 << 10;
/// With the largest cache that is read, and as many entries as it can have, in KiB: the file, its entries in memory, and
/// the file that is written.
const MOST_RESIDENT_HOSTILE: u64 = 96 << 10;
/// Bytes.
const MOST_GNU: u64 = 2_000_000;
const MOST_MUSL: u64 = 1_000_000;

fn main() {
    let trials = vec![
        trial("it runs no other program and opens no socket", &[Need::Strace], no_program_and_no_socket),
        trial("a run takes less than 4 MiB", &[], a_run_takes_little),
        trial("a hostile cache takes less than 96 MiB", &[], a_hostile_cache_takes_bounded_memory),
        trial("the hook of glibc is static and small", &[], gnu_is_static_and_small),
        trial("the hook of musl is static and small", &[Need::Musl], musl_is_static_and_small),
        trial("a dynamic program is told from a static one", &[], dynamic_programs_are_told),
        trial("calls can be taken away", &[], calls_can_be_taken_away),
        trial("it asks the daemon and nobody else", &[Need::Strace], asking::it_talks_to_the_daemon_alone),
        trial("its deadline follows the daemon's", &[Need::Strace], asking::the_deadline_follows),
        trial("to ask takes less than 4 MiB", &[], asking::it_takes_little),
        trial("failures are in the system's log", &[Need::Mounts], asking::failures_are_in_the_systems_log),
        trial("it gives up, whatever it waits for", &[], it_gives_up),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// All that it starts is itself, by strace's one execve. Files are opened, read and written; the network is not.
fn no_program_and_no_socket() {
    let bundle = Bundle::new();
    let trace = bundle.outside().join("trace");
    let run = start(&bundle, &["strace", "-f", "-o", trace.to_str().unwrap()]);
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    let calls = calls(&trace);
    for (name, count) in [
        ("execve", 1),
        ("execveat", 0),
        ("clone", 0),
        ("clone3", 0),
        ("fork", 0),
        ("vfork", 0),
        ("socket", 0),
        ("connect", 0),
    ] {
        assert_eq!(calls.iter().filter(|call| *call == name).count(), count, "{name} in {calls:?}");
    }
    assert!(calls.iter().any(|call| call.starts_with("rename")), "it did nothing: {calls:?}");

    // The same eyes see what a shell does.
    let trace = bundle.outside().join("shell");
    let strace = ["-f", "-o", trace.to_str().unwrap(), "sh", "-c", "true | /bin/true"];
    assert!(Command::new("strace").args(strace).status().unwrap().success());
    let calls = self::calls(&trace);
    assert!(calls.iter().filter(|call| *call == "execve").count() > 1, "{calls:?}");
    assert!(
        calls.iter().any(|call| ["clone", "clone3", "fork", "vfork"].contains(&call.as_str())),
        "{calls:?}"
    );
}

/// The names of the calls in strace's file, which has a process number before each.
fn calls(trace: &Path) -> Vec<String> {
    let text = fs::read_to_string(trace).unwrap();
    let name = |line: &str| {
        let (name, _) = line.split_once(' ')?.1.trim_start().split_once('(')?;
        Some(name.to_owned())
    };
    text.lines().filter_map(name).collect()
}

fn a_run_takes_little() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.path("/etc")).unwrap();
    fs::copy("/etc/ld.so.cache", bundle.path("/etc/ld.so.cache")).unwrap();
    let kib = resident(&bundle, "");
    assert!((100..MOST_RESIDENT).contains(&kib), "{kib} KiB");
}

/// Sixteen MiB that hold as many entries as fit, and not a byte too many when the driver's are added.
fn a_hostile_cache_takes_bounded_memory() {
    const LIMIT: usize = 16 << 20;
    let bundle = Bundle::new();
    let strings = b"liba.so\0/a\0";
    let entries = u32::try_from((LIMIT - 4096 - 48 - strings.len()) / (24 + strings.len())).unwrap();
    let mut cache = b"glibc-ld.so.cache1.1".to_vec();
    let of_strings = u32::try_from(strings.len()).unwrap() * entries;
    for word in [entries, of_strings, 2, 0, 0, 0, 0] {
        cache.extend(word.to_le_bytes());
    }
    let mut at = 48 + entries * 24;
    for _ in 0..entries {
        for word in [0x0303, at, at + 8, 0, 0, 0] {
            cache.extend(word.to_le_bytes());
        }
        at += u32::try_from(strings.len()).unwrap();
    }
    cache.extend(strings.repeat(entries as usize));
    assert!(cache.len() <= LIMIT && cache.len() > LIMIT - (1 << 16));
    bundle.file("/etc/ld.so.cache", &cache);
    let kib = resident(&bundle, "");
    assert!(fs::metadata(bundle.path("/etc/ld.so.cache")).unwrap().len() > 8 << 20, "it was not read");
    assert!((16 << 10..MOST_RESIDENT_HOSTILE).contains(&kib), "{kib} KiB");
}

/// Runs the hook, which must say just this, and gives what it had resident at most, in KiB.
fn resident(bundle: &Bundle, says: &str) -> u64 {
    let run = start(bundle, &peak::RESIDENT);
    let said: String = run.stderr.lines().filter(|line| !line.starts_with("resident ")).collect();
    assert_eq!((run.status, said.as_str()), (0, says));
    assert!(!bundle.lookup("libcuda.so.1").is_empty());
    let kib = peak::kib(&run.stderr);
    println!("{kib} KiB resident at most");
    kib
}

fn gnu_is_static_and_small() {
    small_and_static(&built::build(Libc::Gnu), MOST_GNU);
}

fn musl_is_static_and_small() {
    small_and_static(&built::build(Libc::Musl), MOST_MUSL);
}

fn small_and_static(hook: &Path, most: u64) {
    let bytes = fs::metadata(hook).unwrap().len();
    println!("{}: {bytes} bytes", hook.display());
    assert!(bytes < most, "{bytes} bytes");
    assert!(!has_interpreter(hook), "{} asks for a loader", hook.display());
}

fn dynamic_programs_are_told() {
    assert!(has_interpreter(Path::new(env!("CARGO_BIN_EXE_divvy-hook"))));
    assert!(has_interpreter(Path::new("/bin/sh")));
}

/// Whether an ELF file of 64 bits has a program header PT_INTERP (elf(5)).
fn has_interpreter(path: &Path) -> bool {
    const PT_INTERP: u32 = 3;
    let file = fs::read(path).unwrap();
    let word = |at: usize| u16::from_le_bytes(file[at..at + 2].try_into().unwrap()).into();
    let long = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    assert!(file.starts_with(b"\x7fELF\x02\x01"), "{}", path.display());
    let (offset, size, count): (usize, usize, usize) = (long(32), word(54), word(56));
    assert!(count > 0);
    let kind = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    (0..count).any(|index| kind(offset + index * size) == PT_INTERP)
}

/// The filter under which tests/run.sh has these tests once more takes away what it is told to, and nothing else.
fn calls_can_be_taken_away() {
    let directory = tempfile::tempdir().unwrap();
    let filter = enosys(directory.path());
    let filter = filter.to_str().unwrap();
    // Numbers that x86_64 and aarch64 share. Called with nothing, each fails in a way of its own.
    let (openat2, fsopen) = ("437", "430");
    let (enosys, eperm) = (nix::errno::Errno::ENOSYS as i32, nix::errno::Errno::EPERM as i32);
    let perl = "$call = shift; $! = 0; syscall($call + 0, -1, 0, 0, 0); print $! + 0";
    let answer = |words: &[&str], call: &str| -> i32 {
        let run = Command::new(words[0]).args(&words[1..]).args(["perl", "-e", perl, call]).output().unwrap();
        String::from_utf8(run.stdout).unwrap().parse().unwrap()
    };
    for (words, call, expected) in [
        (&[filter, "openat2,statx"][..], openat2, Some(enosys)),
        (&[filter, "--eperm", "openat2,statx"], openat2, Some(eperm)),
        (&[filter, "--eperm", "openat2"], fsopen, None),
        (&[filter, "fsopen,fsmount"], openat2, None),
        (&[filter, "fsopen,fsmount"], fsopen, Some(enosys)),
    ] {
        let untouched = answer(&["env"], call);
        assert!(untouched != enosys || is_filtered(), "this kernel has no call {call}");
        assert_eq!(answer(words, call), expected.unwrap_or(untouched), "{words:?} {call}");
    }
    for words in [&["openat3", "true"][..], &["openat2"], &[]] {
        assert_eq!(Command::new(filter).args(words).output().unwrap().status.code(), Some(125), "{words:?}");
    }
}

/// An engine that does not close the pipe; and, in the place of a file system that holds up all signals but SIGKILL, a
/// process that was stopped. Both would wait for ever.
fn it_gives_up() {
    let wait = || {
        let mut command = Command::new(built::shipped());
        command.arg("create-container").stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut hook = command.spawn().unwrap();
        let pipe = hook.stdin.take().unwrap();
        // It has a handler, and a moment later its timers, before it reads.
        let status = format!("/proc/{}/status", hook.id());
        while !handles(&fs::read_to_string(&status).unwrap(), Signal::SIGALRM) {
            std::thread::sleep(Duration::from_millis(10));
        }
        std::thread::sleep(Duration::from_millis(500));
        (hook, pipe)
    };
    let ((waiting, pipe), (stopped, other_pipe)) = (wait(), wait());
    let id = Pid::from_raw(stopped.id().try_into().unwrap());
    kill(id, Signal::SIGSTOP).unwrap();
    let late = waiting.wait_with_output().unwrap();
    let said = "error: divvy-hook: not done in time\n";
    assert_eq!((late.status.code(), String::from_utf8(late.stderr).unwrap().as_str()), (Some(1), said));
    let killed = stopped.wait_with_output().unwrap();
    assert_eq!(killed.status.signal(), Some(Signal::SIGKILL as i32));
    drop((pipe, other_pipe));
}

/// Whether a process has a handler for a signal, by its status in /proc (proc_pid_status(5)).
fn handles(status: &str, signal: Signal) -> bool {
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (signal as i32 - 1) != 0
}

/// Whether these tests run under a filter already.
fn is_filtered() -> bool {
    fs::read_to_string("/proc/self/status").unwrap().lines().any(|line| line == "Seccomp:\t2")
}

fn enosys(directory: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/enosys.c");
    let program = directory.join("enosys");
    let built =
        Command::new("cc").args(["-Wall", "-Wextra", "-Werror", "-o"]).arg(&program).arg(source).status();
    assert!(built.unwrap().success());
    program
}

fn start(bundle: &Bundle, under: &[&str]) -> Outcome {
    let mut command = Command::new(under[0]);
    command.args(&under[1..]).arg(built::shipped()).arg("create-container");
    command
        .arg(format!("--library={DIR}/{CUDA}=libcuda.so.1"))
        .arg(format!("--link=libcuda.so.1={DIR}/libcuda.so"));
    feed(&mut command, bundle.state().as_bytes())
}
