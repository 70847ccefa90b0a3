//! Images in which the hook writes what it writes in no other: musl's, and those that have a GPU's node.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;

use crate::ground::{Ground, Outcomes, WRITTEN};

/// musl's loader has a file of directories in the place of a cache.
pub fn of_musl() -> Outcomes {
    let prepare = |ground: &Ground| ground.bundle.file("/lib/ld-musl-x86_64.so.1", b"\x7fELF");
    attacked(&["/etc", "/etc/ld-musl-x86_64.path"], prepare)
}

/// The profile for EGL is written where a GPU is in the container.
pub fn with_a_gpu() -> Outcomes {
    let prepare = |ground: &Ground| {
        let node = ground.clear("/dev/nvidia0");
        mknod(&node, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(195, 0)).unwrap();
    };
    let directory = "/etc/nvidia/nvidia-application-profiles-rc.d";
    let file = format!("{directory}/10-container.conf");
    let ground = Ground::new("a profile");
    prepare(&ground);
    ground.start();
    assert!(ground.bundle.path(&file).is_file(), "there is no profile to attack");
    attacked(&["/etc/nvidia", directory, &file], prepare)
}

/// Each kind of link and odd file in each place.
fn attacked(places: &[&str], prepare: impl Fn(&Ground)) -> Outcomes {
    type Make = fn(&Ground, &str, &Path);
    let kinds: [(&str, Make); 10] = [
        ("an absolute link", |ground, path, _| ground.link(path, ground.host(path))),
        ("a climbing link", |ground, path, _| {
            let above = "../".repeat(path.matches('/').count());
            ground.link(path, format!("{above}host{path}"));
        }),
        ("a dangling link", |ground, path, _| ground.link(path, format!("/nowhere{path}"))),
        ("an endless link", |ground, path, _| ground.link(path, path)),
        ("links at temporary names", |ground, path, _| {
            if !WRITTEN.contains(&path) {
                return;
            }
            let (directory, name) = path.rsplit_once('/').unwrap();
            ground.link(path, ground.host("/dangling"));
            for number in 0..64 {
                ground.link(&format!("{directory}/.{name}.divvy-{number}"), ground.host(path));
            }
        }),
        ("a FIFO", |_, _, place| mkfifo(place, Mode::S_IRWXU).unwrap()),
        ("a hard link", |ground, path, place| {
            if ground.host(path).is_file() {
                fs::hard_link(ground.host(path), place).unwrap();
            }
        }),
        ("a file of 1 TiB", |_, _, place| fs::File::create(place).unwrap().set_len(1 << 40).unwrap()),
        ("a malformed file", |_, _, place| fs::write(place, [0xff; 5000]).unwrap()),
        ("a directory", |_, _, place| fs::create_dir_all(place.join("full")).unwrap()),
    ];
    let mut outcomes = BTreeSet::new();
    for (kind, make) in kinds {
        for path in places {
            let ground = Ground::at(path, kind);
            prepare(&ground);
            make(&ground, path, &ground.clear(path));
            outcomes.extend(ground.start());
        }
    }
    outcomes
}
