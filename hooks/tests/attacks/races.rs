//! An image's programs at work while the hook is: containers may share a root, and one of them be running.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::common::{CUDA, DIR};
use crate::ground::{Ground, MOVED, Outcomes, WRITTEN, classified, names_below, run};
use crate::sentinel::Sentinel;

/// Hooks that run in each race, and changes that must have been made under them in all.
const ROUNDS: usize = 400;
const CHANGES: usize = 10_000;

/// A directory or file, and a link to the host's, change places all the time.
pub fn swapped_links() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in ["/etc", "/etc/ld.so.conf.d", "/etc/ld.so.cache", "/usr/lib", DIR] {
        let ground = Ground::new(format!("a swapped link at {path}"));
        let other = format!("{path}.other");
        // Hooks replace what they write.
        let prepare = || {
            if path == "/etc/ld.so.cache" {
                ground.link(&other, ground.host(path));
                fs::write(ground.clear(path), "").unwrap();
            }
        };
        ground.link(&other, ground.host(path));
        fs::create_dir_all(ground.bundle.path(path).parent().unwrap()).unwrap();
        if path != "/etc/ld.so.cache" {
            fs::create_dir_all(ground.bundle.path(path)).unwrap();
        }
        // By the link, too, there is a driver.
        ground.bundle.file(ground.host(&format!("{DIR}/{CUDA}")).to_str().unwrap(), b"\x7fELF");
        let (one, other) = (ground.bundle.path(path), ground.bundle.path(&other));
        let (happened, places) = race(&ground, &one, &other, prepare);
        outcomes.extend(happened);
        // Hooks have gone both ways.
        assert!(path != "/etc" || places > 1, "{places} places");
    }
    outcomes
}

/// A directory that the hook is in is moved out of the root, and another is there.
pub fn moved_directories() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in ["/etc", "/usr/lib", DIR] {
        let ground = Ground::new(format!("{path} is moved out of the root"));
        let outside = ground.beside(MOVED).join("1");
        fs::create_dir_all(ground.bundle.path(path)).unwrap();
        fs::create_dir(&outside).unwrap();
        outcomes.extend(race(&ground, &ground.bundle.path(path), &outside, || {}).0);
    }
    outcomes
}

/// The same, and the hook is on its way up by `..`: from the place outside, that leads into the host's tree.
pub fn moved_from_under_a_climb() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in ["/etc", "/etc/ld.so.conf.d", DIR] {
        let ground = Ground::new(format!("a climb to {path} is moved out of the root"));
        let (inside, outside) = (ground.bundle.path("/deep/1/2"), ground.beside(MOVED).join("2"));
        for place in [&inside, &outside] {
            fs::create_dir_all(place.join("3")).unwrap();
        }
        ground.bundle.file(&format!("/deep/host{DIR}/{CUDA}"), b"\x7fELF");
        ground.link(path, format!("/deep/1/2/3/../../../host{path}"));
        outcomes.extend(race(&ground, &inside, &outside, || {}).0);
    }
    outcomes
}

/// Runs hooks while two names are exchanged without end. What was written goes away between them, so that each has to.
/// Gives the number of places, too, where a cache was written.
fn race(ground: &Ground, one: &Path, other: &Path, prepare: impl Fn()) -> (Outcomes, usize) {
    let (sentinel, before) = (Sentinel::of(&ground.beside("")), ground.names());
    let mut outcomes = BTreeSet::new();
    let mut places = BTreeSet::new();
    let mut changes = 0;
    for _ in 0..ROUNDS {
        prepare();
        let over = AtomicBool::new(false);
        let (ended, made) = thread::scope(|scope| {
            let swapping = scope.spawn(|| {
                let mut made = 0;
                while !over.load(Ordering::Relaxed) {
                    renameat2(AT_FDCWD, one, AT_FDCWD, other, RenameFlags::RENAME_EXCHANGE).unwrap();
                    made += 1;
                }
                made
            });
            let ended = run(ground.hook(), ground.bundle.state().as_bytes(), &ground.attempt);
            over.store(true, Ordering::Relaxed);
            (ended, swapping.join().unwrap())
        });
        changes += made;
        let happened = classified(&ended, &ground.attempt).into_iter();
        outcomes.extend(happened.map(|outcome| (outcome, String::new())));
        places.extend(ground.caches());
        ground.assert_grown_from(&before);
        forget(ground, other);
    }
    sentinel.assert_same(&Sentinel::of(&ground.beside("")), &ground.attempt);
    assert!(!places.is_empty(), "{}: no hook came through", ground.attempt);
    assert!(changes >= CHANGES, "{}: only {changes} changes", ground.attempt);
    println!("{}: {ROUNDS} hooks, {changes} changes, {} places, {outcomes:?}", ground.attempt, places.len());
    (outcomes, places.len())
}

/// Removes what hooks wrote in the root, and in a directory that was moved.
fn forget(ground: &Ground, moved: &Path) {
    let is_written = |path: &Path| {
        let name = path.file_name();
        WRITTEN.iter().any(|written| Path::new(written).file_name() == name)
    };
    let mut names = ground.names();
    if moved.symlink_metadata().unwrap().is_dir() && moved.starts_with(ground.beside(MOVED)) {
        let inside = names_below(moved);
        for path in &inside {
            assert!(
                path.is_dir() || is_written(path) || path.ends_with(CUDA),
                "{}: {path:?}",
                ground.attempt
            );
        }
        names.extend(inside);
    }
    for path in names {
        let found = path.symlink_metadata().unwrap();
        if is_written(&path) && !found.is_dir() {
            fs::remove_file(&path).unwrap();
        }
    }
}
