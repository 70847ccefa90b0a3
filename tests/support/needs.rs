//! What a test needs of the machine. A test that cannot run here is reported as ignored with its reason, never as
//! passed; if DIVVY_REQUIRE names the need, it fails instead. Reasons also go to the file DIVVY_TEST_SUMMARY.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Completion, Failed, Trial};

/// Something that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The tests run as root.
    Root,
    /// An NVIDIA driver with a GPU.
    Gpu,
    /// strace, which counts system calls.
    Strace,
    /// A mount namespace of one's own, as root or by a user namespace.
    Mounts,
    /// Rust's musl target, for which the hook is built where it is installed.
    Musl,
    /// An x86_64 machine, with ldconfig: layouts are of such hosts.
    X86_64,
    /// cgroup v2 is mounted, be it beside v1.
    CgroupV2,
    /// The device controller of cgroup v1 is mounted.
    CgroupV1,
    /// One of the two.
    Cgroup,
    /// cc.
    Compiler,
    /// A divvy-hook that is built as it is shipped.
    Hook,
    /// There is an /etc/subuid, over which another can be mounted.
    Subuid,
    /// NVIDIA's MPS programs and libcuda, which tests/machine/mps.sh unpacks.
    Mps,
}

impl Need {
    /// The word in DIVVY_REQUIRE.
    fn word(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Gpu => "gpu",
            Self::Strace => "strace",
            Self::Mounts => "mounts",
            Self::Musl => "musl",
            Self::X86_64 => "x86_64",
            Self::CgroupV2 => "cgroup-v2",
            Self::CgroupV1 => "cgroup-v1",
            Self::Cgroup => "cgroup",
            Self::Compiler => "cc",
            Self::Hook => "hook",
            Self::Subuid => "subuid",
            Self::Mps => "mps",
        }
    }

    fn missing(self) -> Option<&'static str> {
        let there = match self {
            Self::Root => nix::unistd::geteuid().is_root(),
            Self::Gpu => Path::new("/proc/driver/nvidia/version").exists(),
            Self::Strace => Command::new("strace").arg("true").output().is_ok_and(|run| run.status.success()),
            Self::Mounts => unshare_works(),
            Self::Musl => has_musl(),
            Self::X86_64 => cfg!(target_arch = "x86_64") && Path::new("/sbin/ldconfig").exists(),
            Self::CgroupV2 => cgroup_mount("cgroup2").is_some(),
            Self::CgroupV1 => cgroup_mount("devices").is_some(),
            Self::Cgroup => ["cgroup2", "devices"].into_iter().any(|kind| cgroup_mount(kind).is_some()),
            Self::Compiler => {
                Command::new("cc").arg("--version").output().is_ok_and(|run| run.status.success())
            }
            Self::Hook => built_hook().is_some(),
            Self::Subuid => Path::new("/etc/subuid").exists(),
            Self::Mps => !mps_roots().is_empty(),
        };
        (!there).then_some(match self {
            Self::Root => "needs root",
            Self::Gpu => "needs a GPU and its driver",
            Self::Strace => "needs strace, and to be allowed to trace",
            Self::Mounts => "needs root or user namespaces, to mount in a namespace of its own",
            Self::Musl => "needs Rust's musl target",
            Self::X86_64 => "needs an x86_64 machine with ldconfig",
            Self::CgroupV2 => "needs a mount of cgroup v2",
            Self::CgroupV1 => "needs a mount of cgroup v1's device controller",
            Self::Cgroup => "needs a mount of cgroup v2 or of v1's device controller",
            Self::Compiler => "needs a C compiler",
            Self::Hook => "needs divvy-hook, which packaging/build.sh builds",
            Self::Subuid => "needs a file /etc/subuid",
            Self::Mps => "needs NVIDIA's MPS programs, which tests/machine/mps.sh unpacks",
        })
    }
}

/// Where `cgroup2`, or a controller of cgroup v1, is mounted.
pub fn cgroup_mount(hierarchy: &str) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mount =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|words| match words[..] {
            [_, _, "cgroup2", ..] => hierarchy == "cgroup2",
            [_, _, "cgroup", options, ..] => options.split(',').any(|option| option == hierarchy),
            _ => false,
        })?;
    Some(mount[1].into())
}

/// The divvy-hook of packaging/build.sh.
pub fn built_hook() -> Option<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(".build");
    let built = std::env::var_os("DIVVY_BUILD").map_or(built, PathBuf::from);
    Some(built.join("bin/divvy-hook")).filter(|program| program.is_file())
}

/// The directories of tests/machine/mps.sh, each named as the driver's version, that stand for `/`.
pub fn mps_roots() -> Vec<PathBuf> {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join(".build");
    let built = std::env::var_os("DIVVY_BUILD").map_or(built, PathBuf::from);
    let entries = std::fs::read_dir(built.join("mps")).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.path())
        .filter(|root| root.join("usr/bin/nvidia-cuda-mps-control").is_file())
        .collect()
}

fn unshare_works() -> bool {
    let user: &[&str] = if nix::unistd::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let tried =
        Command::new("unshare").args(user).args(["--mount", "mount", "-t", "tmpfs", "none", "/tmp"]).output();
    tried.is_ok_and(|output| output.status.success())
}

/// Whether Rust's musl target is installed.
pub fn has_musl() -> bool {
    let target = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let asked = Command::new("rustc").args(["--print", "target-libdir", "--target", &target]).output();
    asked.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// A test that runs only where its needs are met.
pub fn trial(name: &'static str, needs: &'static [Need], test: impl FnOnce() + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || {
        for need in needs {
            let Some(reason) = need.missing() else { continue };
            return skip(name, need.word(), reason);
        }
        test();
        Ok(Completion::Completed)
    })
}

/// What a test answers that cannot run here; `word` is what DIVVY_REQUIRE calls what is missing.
pub fn skip(name: &str, word: &str, reason: &str) -> Result<Completion, Failed> {
    if required(word) {
        return Err(Failed::from(format!("{reason}, and DIVVY_REQUIRE demands it")));
    }
    note(name, reason);
    Ok(Completion::ignored_with(reason))
}

fn required(word: &str) -> bool {
    std::env::var("DIVVY_REQUIRE").is_ok_and(|list| list.split(',').any(|item| item.trim() == word))
}

fn note(name: &str, reason: &str) {
    let Some(path) = std::env::var_os("DIVVY_TEST_SUMMARY") else { return };
    if let Ok(mut file) = OpenOptions::new().append(true).create(true).open(path) {
        let _ = writeln!(file, "{name}: {reason}");
    }
}
