//! What is mounted in the root: a user's volumes, which are others' files, and /proc, whose links lead anywhere. Each
//! attempt has a mount namespace of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::ground::{Ground, Outcomes, WRITTEN, components};

/// `-v /etc:/etc`, and the same of every other directory.
pub fn volumes() -> Outcomes {
    directories(|ground, path| {
        fs::create_dir_all(ground.bundle.path(path)).unwrap();
        format!("mount --bind \"$HOST{path}\" \"$ROOT{path}\"")
    })
}

/// A volume of the root's own file system: its device number tells nothing.
pub fn volumes_of_the_root_itself() -> Outcomes {
    directories(|ground, path| {
        fs::create_dir_all(ground.bundle.path(path)).unwrap();
        fs::create_dir_all(ground.bundle.path("/other")).unwrap();
        format!("mount --bind \"$ROOT/other\" \"$ROOT{path}\"")
    })
}

pub fn empty_file_systems() -> Outcomes {
    directories(|ground, path| {
        fs::create_dir_all(ground.bundle.path(path)).unwrap();
        format!("mount -t tmpfs none \"$ROOT{path}\"")
    })
}

pub fn volumes_of_files() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in WRITTEN {
        let ground = Ground::at(path, "a volume");
        fs::write(ground.clear(path), "").unwrap();
        outcomes.extend(start(&ground, &format!("mount --bind \"$HOST{path}\" \"$ROOT{path}\"")));
    }
    outcomes
}

/// `-v /tmp:/tmp`, and links of the image that lead into it.
pub fn links_into_a_volume() -> Outcomes {
    everywhere(|ground, path| {
        fs::create_dir_all(ground.bundle.path("/tmp")).unwrap();
        ground.link(path, format!("/tmp{path}"));
        "mount --bind \"$HOST\" \"$ROOT/tmp\"".to_owned()
    })
}

/// `-v /:/host`.
pub fn links_into_the_hosts_root() -> Outcomes {
    everywhere(|ground, path| {
        fs::create_dir_all(ground.bundle.path("/mnt")).unwrap();
        ground.link(path, format!("/mnt{}", ground.host(path).display()));
        "mount --rbind / \"$ROOT/mnt\"".to_owned()
    })
}

/// Links by which a process reaches its own root, its working directory and its descriptors. The hook's are the host's.
pub fn links_into_proc() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for way in ["/proc/self/root{HOST}", "/proc/self/cwd", "/proc/self/fd/7", "/proc/thread-self/fd/8{HOST}"]
    {
        outcomes.extend(through_proc(way));
    }
    outcomes
}

pub fn links_to_another_process() -> Outcomes {
    through_proc("/proc/1/root{HOST}")
}

fn through_proc(way: &str) -> Outcomes {
    everywhere(|ground, path| {
        fs::create_dir_all(ground.bundle.path("/proc")).unwrap();
        let way = way.replace("{HOST}", ground.host("").to_str().unwrap());
        ground.link(path, format!("{way}{path}"));
        "mount --rbind /proc \"$ROOT/proc\"; cd \"$HOST\"; exec 7<\"$HOST\" 8</".to_owned()
    })
}

/// A directory of the image's that looks like /proc, with links where the magic ones are.
pub fn a_false_proc() -> Outcomes {
    everywhere(|ground, path| {
        ground.link("/proc/self/root", "/");
        ground.link("/proc/self/cwd", ground.host("/"));
        ground.link("/proc/self/fd/3", ground.host("/"));
        ground.bundle.file("/proc/self/mountinfo", b"91 90 0:5 / /dev rw - tmpfs t rw\n");
        ground.link(path, format!("/proc/self/fd/3{path}"));
        ":".to_owned()
    })
}

/// Descriptors of the host that the engine forgot to close are gone before the root is looked at.
pub fn inherited_descriptors() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for (number, path) in components().into_iter().enumerate() {
        let ground = Ground::at(&path, "an inherited descriptor");
        // Low numbers are what the hook's own calls will get.
        let descriptor = 3 + number % 7;
        ground.link(&path, format!("/proc/self/fd/{descriptor}{path}"));
        fs::create_dir_all(ground.bundle.path("/proc")).unwrap();
        let descriptors: String = (3..10).map(|number| format!(" {number}<\"$HOST\"")).collect();
        outcomes.extend(start(&ground, &format!("mount --rbind /proc \"$ROOT/proc\"; exec{descriptors}")));
    }
    outcomes
}

/// The container's own /dev, where the one link outside the root's file system is made, full of links to the host.
pub fn a_dev_full_of_links() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    let by_path = "/dev/dri/by-path";
    for (path, target) in [
        ("dri/by-path", format!("HOST{by_path}")),
        ("dri/by-path", "../../../../../../../../../../HOST/dev/dri/by-path".to_owned()),
        ("dri/by-path", "/etc".to_owned()),
        ("dri/by-path/pci-0000:01:00.0-card", format!("HOST{by_path}/pci-0000:01:00.0-card")),
    ] {
        let ground = Ground::new(format!("/dev/{path} -> {target}"));
        mknod(&ground.beside("card1"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 7)).unwrap();
        fs::create_dir_all(ground.bundle.path("/dev")).unwrap();
        let target = target.replace("HOST", &ground.host("").display().to_string());
        let parent = Path::new(path).parent().unwrap().display();
        outcomes.extend(start(
            &ground,
            &format!(
                "mount -t tmpfs none \"$ROOT/dev\"; mkdir -p \"$ROOT/dev/dri\" \"$ROOT/dev/{parent}\"
                 cp -a \"$HOST/../card1\" \"$ROOT/dev/dri/card1\"; ln -s '{target}' \"$ROOT/dev/{path}\""
            ),
        ));
    }
    outcomes
}

/// `-v /dev:/dev`: links made there would be the host's.
pub fn the_hosts_dev() -> Outcomes {
    let ground = Ground::new("the host's /dev");
    fs::create_dir_all(ground.bundle.path("/dev")).unwrap();
    fs::remove_file(ground.host("/dev/dri/card1")).unwrap();
    mknod(&ground.host("/dev/dri/card1"), SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 7)).unwrap();
    let mut outcomes = start(&ground, "mount --bind \"$HOST/dev\" \"$ROOT/dev\"");
    // A tmpfs, as the container's own would be, and mounted elsewhere too.
    outcomes.extend(start(
        &ground,
        "mount -t tmpfs none \"$ROOT/../moved\"; mkdir -p \"$ROOT/../moved/dri\"
         cp -a \"$HOST/dev/dri/card1\" \"$ROOT/../moved/dri/\"; mount --bind \"$ROOT/../moved\" \"$ROOT/dev\"",
    ));
    outcomes
}

fn everywhere(script: impl Fn(&Ground, &str) -> String) -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in components() {
        let ground = Ground::at(&path, "a link by a mount");
        let script = script(&ground, &path);
        outcomes.extend(start(&ground, &script));
    }
    outcomes
}

fn directories(script: impl Fn(&Ground, &str) -> String) -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for path in components() {
        let ground = Ground::at(&path, "a mount");
        if !ground.host(&path).is_dir() {
            continue;
        }
        let script = script(&ground, &path);
        outcomes.extend(start(&ground, &script));
    }
    outcomes
}

/// Runs a script in a mount namespace of its own, and then in the same process the hook.
fn start(ground: &Ground, script: &str) -> Outcomes {
    ground.start_with(|| {
        let mut command = Command::new("unshare");
        let of_user: &[&str] =
            if nix::unistd::geteuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
        command.args(of_user).args(["--mount", "--propagation", "private", "sh", "-ec"]);
        command.arg(format!("{script}\nexec \"$@\"")).arg("sh");
        let hook = ground.hook();
        command.arg(hook.get_program()).args(hook.get_args());
        command.env("ROOT", ground.bundle.path("")).env("HOST", ground.host(""));
        command
    })
}
