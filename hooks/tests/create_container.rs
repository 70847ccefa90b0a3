//! A container's start as the hook sees it, judged by glibc's own programs.

// Functions that tests share are tests too; clippy counts only those marked so.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Bundle, CUDA, DIR, feed, hook, ldconfig_print, run};
use hooks::ldcache::{Cache, Entry};

#[test]
fn a_container_finds_its_driver() {
    let bundle = Bundle::new();
    assert_eq!(bundle.start_twice(), "");
    assert_eq!(fs::read_link(bundle.path(&format!("{DIR}/libcuda.so.1"))).unwrap(), Path::new(CUDA));
    assert_eq!(fs::read_link(bundle.path(&format!("{DIR}/libcuda.so"))).unwrap(), Path::new("libcuda.so.1"));
    assert_eq!(bundle.lookup("libcuda.so.1"), [format!("{DIR}/libcuda.so.1")]);
    for path in ["/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d/00-divvy.conf"] {
        assert_eq!(fs::metadata(bundle.path(path)).unwrap().permissions().mode() & 0o7777, 0o644, "{path}");
    }
    for path in ["/etc", "/etc/ld.so.conf.d"] {
        assert_eq!(fs::metadata(bundle.path(path)).unwrap().permissions().mode() & 0o7777, 0o755, "{path}");
    }
}

/// This host's cache stands for an image's.
#[test]
fn the_cache_of_a_real_image_keeps_its_libraries() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.path("/etc")).unwrap();
    fs::copy("/etc/ld.so.cache", bundle.path("/etc/ld.so.cache")).unwrap();
    bundle.start_twice();
    let line = format!("\tlibcuda.so.1 (libc6,x86-64) => {DIR}/libcuda.so.1\n");
    let after = ldconfig_print(&bundle.path("/etc/ld.so.cache"));
    if cfg!(target_arch = "x86_64") {
        assert!(after.contains(&line), "{after}");
        assert_eq!(after.replacen(&line, "", 1), ldconfig_print(Path::new("/etc/ld.so.cache")));
    }
}

#[test]
fn what_is_written_of_a_real_cache_prints_the_same() {
    let before = fs::read("/etc/ld.so.cache").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache");
    fs::write(&path, Cache::parse(&before).unwrap().to_bytes()).unwrap();
    assert_eq!(ldconfig_print(&path), ldconfig_print(Path::new("/etc/ld.so.cache")));
}

/// `ldconfig -c compat` puts the older format in front, as glibc before 2.32 did by default; `-c old` writes it alone.
#[test]
fn caches_that_ldconfig_writes_are_read_whatever_the_format() {
    let libraries = library("libc.so.6").parent().unwrap().to_owned();
    for format in ["new", "compat", "old"] {
        let bundle = Bundle::new();
        fs::create_dir(bundle.path("/etc")).unwrap();
        let cache = bundle.path("/etc/ld.so.cache");
        // -X: no links are made; -f: of this one directory alone.
        let built = Command::new("/sbin/ldconfig")
            .args(["-X", "-c", format, "-f", "/dev/null", "-C"])
            .arg(&cache)
            .arg(&libraries)
            .output()
            .unwrap();
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        let before = ldconfig_print(&cache);
        assert_eq!(bundle.start_twice(), "");
        assert_eq!(bundle.lookup("libcuda.so.1"), [format!("{DIR}/libcuda.so.1")], "{format}");
        let after = ldconfig_print(&cache);
        for line in before.lines() {
            assert!(after.contains(line), "{format}: {line}");
        }
    }
}

/// The judge of a cache is the loader: it must find, by the cache alone, a library in a directory that it would not
/// search by itself.
#[test]
fn the_real_loader_takes_the_library_from_the_cache() {
    let program = Path::new(env!("CARGO_BIN_EXE_divvy-hook"));
    let loader = Path::new(if cfg!(target_arch = "x86_64") {
        "/lib64/ld-linux-x86-64.so.2"
    } else {
        "/lib/ld-linux-aarch64.so.1"
    });
    let needed = Command::new(loader).arg("--list").arg(program).output().unwrap();
    if !String::from_utf8_lossy(&needed.stdout).contains("libgcc_s.so.1") {
        return skip("the hook under test needs no library");
    }
    if !Command::new("unshare").args(["-r", "true"]).output().is_ok_and(|output| output.status.success()) {
        return skip("no user namespace can be made here");
    }

    let bundle = Bundle::new();
    let put = |from: &Path, to: &str| {
        fs::create_dir_all(bundle.path(to).parent().unwrap()).unwrap();
        fs::copy(from, bundle.path(to)).unwrap();
    };
    put(program, "/hook");
    put(loader, loader.to_str().unwrap());
    put(&library("libc.so.6"), "/opt/libc/libc.so.6");
    put(&library("libgcc_s.so.1"), "/opt/driver/libgcc_s.so.580.126.09");
    let list = || {
        let mut command = Command::new("unshare");
        command.args(["-r", "chroot"]).arg(bundle.path("/")).arg(loader).args(["--list", "/hook"]);
        let output = command.output().unwrap();
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    // The image's cache knows libc, and another libgcc_s.
    let mut cache = Cache::default();
    cache.merge(&[
        Entry::new("libc.so.6", Path::new("/opt/libc/libc.so.6")),
        Entry::new("libgcc_s.so.1", Path::new("/nowhere/libgcc_s.so.1")),
    ]);
    bundle.file("/etc/ld.so.cache", &cache.to_bytes());
    assert!(list().contains("libgcc_s.so.1: cannot open shared object file"), "{}", list());

    let words = ["create-container", "--library=/opt/driver/libgcc_s.so.580.126.09=libgcc_s.so.1"];
    let outcome = run(words, bundle.state().as_bytes());
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert!(list().contains("libgcc_s.so.1 => /opt/driver/libgcc_s.so.1"), "{}", list());
    assert!(list().contains("libc.so.6 => /opt/libc/libc.so.6"), "{}", list());
}

/// Where ldconfig of the image runs later, say for a package, the driver stays in the cache.
#[test]
fn a_later_ldconfig_in_the_container_keeps_the_driver() {
    let bundle = Bundle::new();
    fs::copy(library("libgcc_s.so.1"), bundle.path(&format!("{DIR}/{CUDA}"))).unwrap();
    let words = ["create-container", "--library=/opt/driver/libgcc_s.so.580=libgcc_s.so.1"];
    fs::create_dir_all(bundle.path("/opt/driver")).unwrap();
    fs::copy(library("libgcc_s.so.1"), bundle.path("/opt/driver/libgcc_s.so.580")).unwrap();
    assert_eq!(run(words, bundle.state().as_bytes()).status, 0);
    fs::remove_file(bundle.path("/etc/ld.so.cache")).unwrap();
    let unshare = Command::new("unshare").args(["-r", "/sbin/ldconfig", "-r"]).arg(bundle.path("/")).output();
    if !unshare.is_ok_and(|output| output.status.success()) {
        return skip("no user namespace can be made here");
    }
    assert_eq!(bundle.lookup("libgcc_s.so.1").first().map(String::as_str), Some("/opt/driver/libgcc_s.so.1"));
}

/// crun names the root beyond the specification; the bundle may then be out of reach.
#[test]
fn cruns_state_is_enough_without_a_config() {
    let bundle = Bundle::new();
    fs::remove_file(bundle.config()).unwrap();
    let root = bundle.path("/");
    let state = format!(
        r#"{{"ociVersion":"1.0","id":"c1","pid":0,"root":"{}","bundle":"/nowhere","status":"created"}}"#,
        root.display()
    );
    let library = format!("--library={DIR}/{CUDA}=libcuda.so.1");
    let outcome = run(["create-container", &library], state.as_bytes());
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert_eq!(bundle.lookup("libcuda.so.1").len(), 1);
}

/// Engines may have read a spec before the last `divvy generate`, or one that lies elsewhere.
#[test]
fn a_spec_of_another_plan_is_refused() {
    let bundle = Bundle::new();
    let plan = bundle.outside().join("plan.json");
    fs::write(&plan, r#"{"generation":"0100","devices":[]}"#).unwrap();
    let before = bundle.inventory();
    let library = format!("--library={DIR}/{CUDA}=libcuda.so.1");
    let start = |generation: &str| {
        let plan = format!("--plan={}", plan.display());
        run(["create-container", generation, &plan, &library], bundle.state().as_bytes())
    };
    let outcome = start("--generation=00ff");
    assert_eq!(outcome.status, 6);
    let said = format!(
        "error: divvy-hook: the CDI spec is out of date: it was made from plan 00ff, and {plan:?} is 0100\nhint: run `sudo \
         divvy generate`; where /etc/cdi or /var/run/cdi has another spec of divvy's than it names, remove that; and start \
         the container again\n"
    );
    assert_eq!(outcome.stderr, said);
    assert_eq!(bundle.inventory(), before);
    assert_eq!(start("--generation=0100").status, 0);
    fs::remove_file(&plan).unwrap();
    assert_eq!(start("--generation=00ff").status, 0, "after a reboot there is no plan");
}

/// The module was loaded anew, of another version, and nobody ran `divvy generate`.
#[test]
fn a_spec_of_another_driver_is_refused() {
    let bundle = Bundle::new();
    let start = |spec: &str| {
        let script = format!(
            "mount -t tmpfs tmpfs /sys/module && mkdir /sys/module/nvidia &&
             echo 580.126.09 >/sys/module/nvidia/version &&
             exec {} create-container --driver={spec} --library={DIR}/{CUDA}=libcuda.so.1",
            env!("CARGO_BIN_EXE_divvy-hook")
        );
        let mut command = Command::new("unshare");
        feed(command.args(["--map-root-user", "--mount", "sh", "-c", &script]), bundle.state().as_bytes())
    };
    let same = start("580.126.09");
    if same.stderr.starts_with("unshare: ") {
        return skip("no user namespace can be made here");
    }
    assert_eq!((same.status, same.stderr.as_str()), (0, ""));
    let other = start("580.95.05");
    assert_eq!(other.status, 6);
    let said = "error: divvy-hook: the CDI spec is out of date: it was made for driver 580.95.05, and 580.126.09 is \
                loaded\nhint: run `sudo divvy generate` and start the container again\n";
    assert_eq!(other.stderr, said);
}

/// As with a container that was committed to an image: what an earlier driver left in a directory that a volume hides now
/// cannot be removed, and must not keep the new driver out of the cache.
#[test]
fn a_volume_over_what_is_swept_keeps_no_library_out() {
    let bundle = Bundle::new();
    bundle.file("/opt/old/libcuda.so.570", b"570");
    let earlier = ["create-container", "--generation=0570", "--library=/opt/old/libcuda.so.570=libcuda.so.1"];
    assert_eq!(run(earlier, bundle.state().as_bytes()).status, 0);
    bundle.file("/opt/old/libcuda.so.570", b"");
    let script = format!(
        "mount --bind {volume} {old} && exec {hook} create-container --generation=0580 --library={DIR}/{CUDA}=libcuda.so.1",
        volume = bundle.outside().display(),
        old = bundle.path("/opt/old").display(),
        hook = env!("CARGO_BIN_EXE_divvy-hook")
    );
    let mut command = Command::new("unshare");
    let later =
        feed(command.args(["--map-root-user", "--mount", "sh", "-c", &script]), bundle.state().as_bytes());
    if later.stderr.starts_with("unshare: ") {
        return skip("no user namespace can be made here");
    }
    assert_eq!((later.status, later.stderr.as_str()), (0, ""));
    assert_eq!(bundle.lookup("libcuda.so.1").first(), Some(&format!("{DIR}/libcuda.so.1")));
    assert_eq!(fs::read_dir(bundle.outside()).unwrap().count(), 0);
}

#[test]
fn what_it_inherits_does_not_matter() {
    let bundle = Bundle::new();
    let mut command = Command::new("/bin/sh");
    let hook = env!("CARGO_BIN_EXE_divvy-hook");
    command
        .arg("-c")
        .arg(format!("umask 077; exec {hook} create-container --library={DIR}/{CUDA}=libcuda.so.1 7</"));
    command.env("LD_PRELOAD", "/proc/self/cwd/poc.so").env("LD_LIBRARY_PATH", "/poc").env("TMPDIR", "/poc");
    let outcome = feed(command.current_dir(bundle.path("/")), bundle.state().as_bytes());
    assert_eq!(outcome.status, 0, "{}", outcome.stderr);
    for path in ["/etc", "/etc/ld.so.cache"] {
        let mode = fs::metadata(bundle.path(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o055, if path == "/etc" { 0o055 } else { 0o044 }, "{path}");
    }
}

/// Before it reads its input the hook has cleaned itself, which /proc shows while it waits.
#[test]
fn it_keeps_neither_descriptors_nor_capabilities() {
    if !nix::unistd::geteuid().is_root() {
        return skip("needs root: /proc of a hook that cannot be traced is root's");
    }
    let mut command = Command::new("/bin/sh");
    let hook = env!("CARGO_BIN_EXE_divvy-hook");
    let script = format!("exec {hook} create-container 7</ 8</etc");
    let mut child =
        command.args(["-c", &script]).env("SECRET", "x").stdin(std::process::Stdio::piped()).spawn().unwrap();
    let process = format!("/proc/{}", child.id());
    let waits =
        || fs::read_to_string(format!("{process}/syscall")).is_ok_and(|call| call.starts_with("0 0x0 "));
    for _ in 0..200 {
        if waits() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let descriptors = fs::read_dir(format!("{process}/fd")).unwrap().count();
    let status = fs::read_to_string(format!("{process}/status")).unwrap();
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(descriptors, 3);
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    };
    // CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_SETGID, CAP_SETUID; an ordinary user has none of them.
    for name in ["CapPrm:", "CapEff:"] {
        assert_eq!(set(name) & !(1 << 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 7), 0, "{status}");
    }
    assert_eq!(set("CapInh:"), 0);
}

#[test]
fn help_and_version_are_no_errors() {
    let version = hook().arg("--version").output().unwrap();
    assert_eq!(
        String::from_utf8(version.stdout).unwrap(),
        format!("divvy-hook {}\n", env!("CARGO_PKG_VERSION"))
    );
    for words in [&["--help"][..], &["create-container", "--help"]] {
        let help = hook().args(words).output().unwrap();
        assert!(
            help.status.success() && String::from_utf8(help.stdout).unwrap().contains("Usage: divvy-hook")
        );
    }
}

/// Where this host has a library.
fn library(soname: &str) -> std::path::PathBuf {
    let cache = fs::read("/etc/ld.so.cache").unwrap();
    let path = Cache::parse(&cache).unwrap().lookup(soname).next().unwrap();
    fs::canonicalize(path).unwrap()
}

fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}
