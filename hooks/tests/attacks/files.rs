//! What is no plain file in the place of one.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::mkfifo;

use crate::ground::{Ground, Outcomes, WRITTEN, components};

pub fn fifos() -> Outcomes {
    everywhere(|path| mkfifo(path, Mode::S_IRWXU).unwrap())
}

pub fn sockets() -> Outcomes {
    // The socket stays when its listener is closed.
    everywhere(|path| {
        // Bound by a short name, as the address has room for 108 bytes.
        let short = std::env::temp_dir().join(format!("divvy-{}", std::process::id()));
        drop(UnixListener::bind(&short).unwrap());
        fs::rename(&short, path).unwrap();
    })
}

/// /dev/watchdog's number resets a machine when it is opened; this one's, /dev/full's, harms nobody.
pub fn character_devices() -> Outcomes {
    everywhere(|path| mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 7)).unwrap())
}

/// A loop device's number, which need not be there.
pub fn block_devices() -> Outcomes {
    everywhere(|path| mknod(path, SFlag::S_IFBLK, Mode::S_IRWXU, makedev(7, 250)).unwrap())
}

pub fn directories() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in WRITTEN {
        let ground = Ground::at(path, "a directory");
        fs::create_dir_all(ground.clear(path).join("full")).unwrap();
        outcomes.extend(ground.start());
    }
    outcomes
}

/// What the hook writes is a second name of a file of the host's; what it reads may be.
pub fn hard_links() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in components() {
        let ground = Ground::at(&path, "a hard link");
        let host = ground.host(&path);
        if host.is_dir() {
            continue;
        }
        let place = ground.clear(&path);
        fs::hard_link(&host, &place).unwrap();
        outcomes.extend(ground.start());
        assert_eq!(host.metadata().unwrap().nlink(), if place_is(&place, &host) { 2 } else { 1 });
    }
    outcomes
}

fn place_is(place: &Path, host: &Path) -> bool {
    place.symlink_metadata().is_ok_and(|found| found.ino() == host.metadata().unwrap().ino())
}

/// Files without end, at every place: nothing reads them to the end, nor asks for as much memory.
pub fn enormous() -> Outcomes {
    everywhere(|path| fs::File::create(path).unwrap().set_len(1 << 40).unwrap())
}

pub fn empty() -> Outcomes {
    everywhere(|path| fs::write(path, "").unwrap())
}

pub fn malformed() -> Outcomes {
    everywhere(|path| fs::write(path, [0xff; 5000]).unwrap())
}

/// A cache of this machine's, cut wherever a header, an entry or a string may end.
pub fn truncated_cache() -> Outcomes {
    let whole = fs::read("/etc/ld.so.cache").unwrap();
    let mut outcomes = BTreeSet::new();
    for length in [1, 11, 16, 20, 47, 48, 49, 72, 100, whole.len() / 2, whole.len() - 1] {
        let ground = Ground::new(format!("a cache cut after {length} bytes"));
        ground.bundle.file("/etc/ld.so.cache", &whole[..length]);
        outcomes.extend(ground.start());
    }
    outcomes
}

fn everywhere(make: impl Fn(&Path)) -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in components() {
        let ground = Ground::at(&path, "an odd file");
        make(&ground.clear(&path));
        outcomes.extend(ground.start());
    }
    outcomes
}
