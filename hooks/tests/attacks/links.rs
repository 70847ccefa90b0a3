//! Links of the image, in the place of every directory and file that the hook comes by.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use crate::ground::{Ground, Outcomes, WRITTEN, components};

pub fn absolute() -> Outcomes {
    everywhere(|ground, path| ground.link(path, ground.host(path)))
}

/// As high as the kernel lets a path go, and exactly as high as the host's tree lies.
pub fn climbing() -> Outcomes {
    let mut outcomes = everywhere(|ground, path| {
        let target = format!("{}{}", "../".repeat(60), ground.host(path).display());
        ground.link(path, target);
    });
    outcomes.extend(everywhere(|ground, path| {
        let above = "../".repeat(path.matches('/').count());
        ground.link(path, format!("{above}host{path}"));
    }));
    outcomes
}

/// The climb hides behind a directory that the image has.
pub fn through_a_directory() -> Outcomes {
    everywhere(|ground, path| {
        std::fs::create_dir_all(ground.bundle.path("/a/b")).unwrap();
        ground.link("/a/b/up", "../../../host");
        ground.link(path, format!("/a/b/./up//{}", path.trim_start_matches('/')));
    })
}

pub fn dangling() -> Outcomes {
    let mut outcomes = everywhere(|ground, path| ground.link(path, format!("/nowhere{path}")));
    outcomes.extend(everywhere(|ground, path| ground.link(path, "nowhere")));
    outcomes
}

/// A directory for each name would have to be made, a thousand deep.
pub fn dangling_deep() -> Outcomes {
    everywhere(|ground, path| ground.link(path, format!("{}{path}", "/nowhere".repeat(500))))
}

/// To itself, to another that leads back, and through more links than the kernel follows.
pub fn endless() -> Outcomes {
    let mut outcomes = everywhere(|ground, path| ground.link(path, path));
    outcomes.extend(everywhere(|ground, path| {
        ground.link("/other", path);
        ground.link(path, "/other");
    }));
    outcomes.extend(everywhere(|ground, path| {
        for number in 0..41 {
            ground.link(&format!("/chain/{number}"), format!("/chain/{}", number + 1));
        }
        ground.link("/chain/41", ground.host(path));
        ground.link(path, "/chain/0");
    }));
    outcomes
}

/// The root that the engine names is a link itself, to the true one. That is the engine's affair and works.
pub fn to_the_root() -> Outcomes {
    let ground = Ground::new("the root by a link");
    symlink(ground.bundle.path("/"), ground.beside("by-link")).unwrap();
    let state = format!(
        r#"{{"bundle":"/nowhere","root":"{}","status":"created"}}"#,
        ground.beside("by-link").display()
    );
    ground.run(ground.hook(), state.as_bytes())
}

/// The names under which files are written before they are renamed can be foretold.
pub fn temporary_names() -> Outcomes {
    at_temporary_names(0)
}

/// Such names, old enough for a hook that was killed.
pub fn stale_temporary_names() -> Outcomes {
    at_temporary_names(1)
}

/// Links to what is written, on the host, last changed at `seconds` (since 1970), or just now.
fn at_temporary_names(seconds: i64) -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in WRITTEN {
        let ground = Ground::at(path, "links under temporary names");
        // Something is in the place, so that it must be renamed over.
        ground.link(path, ground.host("/dangling"));
        let (directory, name) = path.rsplit_once('/').unwrap();
        for number in 0..64 {
            let temporary = format!("{directory}/.{name}.divvy-{number}");
            ground.link(&temporary, ground.host(path));
            if seconds > 0 {
                let time = TimeSpec::new(seconds, 0);
                let place = ground.bundle.path(&temporary);
                utimensat(AT_FDCWD, &place, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
            }
        }
        outcomes.extend(ground.start());
    }
    outcomes
}

fn everywhere(make: impl Fn(&Ground, &str)) -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in components() {
        let ground = Ground::at(&path, "a link");
        make(&ground, &path);
        outcomes.extend(ground.start());
    }
    outcomes
}
