//! Images and callers that make no sense. Those that mean harm are in attacks/.

// Functions that tests share are tests too; clippy counts only those marked so.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, SystemTime};

use common::{Bundle, CUDA, DIR, hook, run};
use hooks::ldcache::{Cache, Entry};

/// NVIDIA's update-ldcache fails on such an image ("path escapes from parent").
#[test]
fn absolute_links_on_the_way_are_followed_in_the_root() {
    let bundle = Bundle::new();
    bundle.link("/run", "/var/run");
    bundle.file("/var/run/driver/libcuda.so.580", b"\x7fELF");
    let words = ["create-container", "--library=/run/driver/libcuda.so.580=libcuda.so.1"];
    let outcome = run(words, bundle.state().as_bytes());
    assert_eq!((outcome.status, outcome.stderr.as_str()), (0, ""));
    assert!(bundle.path("/var/run/driver/libcuda.so.1").exists());
    assert_eq!(bundle.lookup("libcuda.so.1"), ["/run/driver/libcuda.so.1"]);
}

#[test]
fn directories_in_the_way_fail_the_start() {
    for path in ["/etc/ld.so.cache".to_owned(), format!("{DIR}/libcuda.so.1"), format!("{DIR}/libcuda.so")] {
        let bundle = Bundle::new();
        fs::create_dir_all(bundle.path(&path)).unwrap();
        let outcome = bundle.start();
        assert_eq!(outcome.status, 1);
        let why = format!(
            "a directory stands in the place of {path:?} in the container\nhint: the image has a directory there: remove \
             it from the image\n"
        );
        assert!(outcome.stderr.starts_with("error: divvy-hook: cannot ") && outcome.stderr.ends_with(&why));
    }
}

/// Every truncation of a real cache, and changes all over it: the hook's parser never panics, and what it accepts and
/// writes glibc accepts too.
#[test]
fn real_caches_cut_and_changed_are_survived() {
    let whole = fs::read("/etc/ld.so.cache").unwrap();
    let ours = Entry::new("libcuda.so.1", Path::new("/usr/lib/driver/libcuda.so.1"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache");
    let mut accepted = 0;
    let mut attempt = |bytes: &[u8]| {
        let Ok(mut cache) = Cache::parse(bytes) else { return };
        cache.merge(&[ours]);
        let written = cache.to_bytes();
        assert_eq!(Cache::parse(&written).unwrap(), cache);
        accepted += 1;
        if accepted % 500 == 0 {
            fs::write(&path, written).unwrap();
            let output =
                std::process::Command::new("/sbin/ldconfig").args(["-p", "-C"]).arg(&path).output().unwrap();
            assert!(output.status.success());
        }
    };
    for length in 0..whole.len() {
        attempt(&whole[..length]);
    }
    // Without extensions, which stand at the end, the libraries are read however short the file.
    let mut plain = whole.clone();
    plain[32..36].fill(0);
    for length in (0..plain.len()).step_by(17) {
        attempt(&plain[..length]);
    }
    let mut state = 42_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..3000 {
        let mut bytes = whole.clone();
        // Mostly in the header and the first entries, where numbers are.
        let below = if round % 2 == 0 { 400 } else { bytes.len() };
        for _ in 0..=random(3) {
            bytes[random(below)] = random(256) as u8;
        }
        attempt(&bytes);
    }
    assert!(accepted > 500, "{accepted}");
}

#[test]
fn odd_input_is_refused_with_its_reason() {
    let huge = vec![b' '; 3 << 20];
    for (input, message) in [
        (&huge[..], "error: divvy-hook: the container's state is longer than 1048576 bytes\n"),
        (
            b"hello",
            "error: divvy-hook: the container's state is malformed: expected value at line 1 column 1\n",
        ),
        (
            b"",
            "error: divvy-hook: there is no container's state on standard input\nhint: a container engine runs this \
             program as an OCI hook and tells it of the container there\n",
        ),
        (b"{}", "error: divvy-hook: the container's state names no bundle\n"),
        (
            br#"{"bundle":"/nowhere"}"#,
            "error: divvy-hook: cannot read \"/nowhere/config.json\": No such file or directory (os error 2)\n",
        ),
    ] {
        let outcome = run(["create-container"], input);
        assert_eq!((outcome.status, outcome.stderr.as_str()), (1, message));
    }
}

#[test]
fn a_command_line_it_does_not_know_is_refused_whole() {
    let newer = "hint: the spec is newer than this hook: install both from one release, or run `sudo divvy generate` again";
    for (words, starts, hinted) in [
        (&["create-container", "--cuda-compat=x"][..], "unexpected argument '--cuda-compat' found", true),
        (&["create-container", "--library=libcuda.so.1"], "invalid value 'libcuda.so.1'", false),
        (&[], "a subcommand is missing", false),
    ] {
        let bundle = Bundle::new();
        let before = bundle.inventory();
        let outcome = run(words, bundle.state().as_bytes());
        assert_eq!(outcome.status, 2);
        assert!(outcome.stderr.starts_with(&format!("error: divvy-hook: {starts}")), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.contains(newer), hinted, "{}", outcome.stderr);
        assert_eq!(bundle.inventory(), before);
    }
}

/// A newer spec may bring hooks that this release has no part in.
#[test]
fn a_phase_that_it_does_not_know_is_let_pass() {
    let bundle = Bundle::new();
    let before = bundle.inventory();
    let outcome = run(["create-network", "--share=x"], bundle.state().as_bytes());
    assert_eq!(outcome.status, 0);
    let starts =
        "warning: divvy-hook: there is no subcommand \"create-network\" in this release: nothing is done\n";
    assert!(outcome.stderr.starts_with(starts), "{}", outcome.stderr);
    assert!(outcome.stderr.ends_with("install both from one release\n"), "{}", outcome.stderr);
    assert_eq!(bundle.inventory(), before);
}

#[test]
fn someone_at_a_terminal_is_told_what_it_is_for() {
    let terminal = nix::pty::openpty(None, None).unwrap();
    let output = hook().arg("create-container").stdin(terminal.slave).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: divvy-hook: standard input is a terminal\nhint: a container engine runs this program as an OCI hook \
         and tells it of the container there\n"
    );
}

/// crun gives hooks no standard error, and a pipe may be closed at the other end.
#[test]
fn a_closed_standard_error_is_no_reason_to_fail() {
    let bundle = Bundle::new();
    bundle.file("/etc/ld.so.cache", b"garbage");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let library = format!("--library={DIR}/{CUDA}=libcuda.so.1");
    let mut command = hook();
    let command = command.args(["create-container", &library]).stdin(Stdio::piped()).stderr(writer);
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(bundle.state().as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(bundle.lookup("libcuda.so.1").len(), 1);
}

/// A hook that was killed left its temporary file: the next one clears it away, and a hook at work keeps its own.
#[test]
fn what_a_killed_hook_left_is_removed() {
    let bundle = Bundle::new();
    fs::create_dir(bundle.path("/etc")).unwrap();
    let left = |number: u32| bundle.path(&format!("/etc/.ld.so.cache.divvy-{number}"));
    for number in 0..64 {
        let file = fs::File::create(left(number)).unwrap();
        let age = if number == 1 { 0 } else { 3600 };
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    let started = bundle.start();
    assert_eq!(started.status, 0, "{}", started.stderr);
    assert!(!left(0).exists());
    assert!(left(1).exists(), "it may be another hook's");
    assert_eq!(bundle.lookup("libcuda.so.1").len(), 1);
}

/// A cache of 16 MiB whose strings overlap would be three times as large when it is written again.
#[test]
fn a_cache_that_would_grow_is_replaced_once() {
    const ENTRIES: u32 = 600_000;
    let bundle = Bundle::new();
    fs::create_dir(bundle.path("/etc")).unwrap();
    let strings = 48 + ENTRIES * 24;
    let mut cache = b"glibc-ld.so.cache1.1".to_vec();
    for word in [ENTRIES, 64, 2, 0, 0, 0, 0] {
        cache.extend(word.to_le_bytes());
    }
    for _ in 0..ENTRIES {
        for word in [0x0303, strings + 16, strings, 0, 0, 0] {
            cache.extend(word.to_le_bytes());
        }
    }
    cache.extend(b"/usr/lib/image00liba.so\0");
    fs::write(bundle.path("/etc/ld.so.cache"), cache).unwrap();
    let told = bundle.start_twice();
    assert!(told.contains("replaced \"/etc/ld.so.cache\""), "{told}");
    assert!(fs::metadata(bundle.path("/etc/ld.so.cache")).unwrap().len() < 1 << 20);
}
