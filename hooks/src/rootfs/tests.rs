use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::mknod;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::resolve::MOST_LINKS;
use super::*;

/// A root in a directory that also holds `outside`, which nothing may touch.
fn root() -> (TempDir, Root, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("rootfs");
    fs::create_dir(&path).unwrap();
    fs::create_dir(directory.path().join("outside")).unwrap();
    let root = Root::open(&path).unwrap();
    (directory, root, path)
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_hosts_root_is_refused() {
    for path in ["/", "/usr/..", "/proc/self/root"] {
        let error = Root::open(Path::new(path)).unwrap_err();
        assert_eq!(error.to_string(), format!("{path:?} is the host's root directory, not a container's"));
    }
    let error = Root::open(Path::new("/nonexistent")).unwrap_err();
    assert_eq!(error.to_string(), r#"cannot open the container's root "/nonexistent""#);
    assert!(Root::open(Path::new("/etc/passwd")).is_err());
}

#[test]
fn links_of_the_image_resolve_in_the_root() {
    for (link, target) in [
        ("etc", "/conf"),
        ("etc", "conf"),
        ("etc", "../../../../../conf"),
        ("etc", "/../conf"),
        ("etc", "/a/b/conf"),
    ] {
        let (directory, root, path) = root();
        symlink(target, path.join(link)).unwrap();
        root.replace(Path::new("/etc/ld.so.conf.d/x.conf"), b"x").unwrap();
        assert_eq!(root.read(Path::new("/etc/ld.so.conf.d/x.conf"), 10).unwrap().unwrap(), b"x", "{target}");
        let place = if target == "/a/b/conf" { "a/b/conf" } else { "conf" };
        assert_eq!(names(&path.join(place).join("ld.so.conf.d")), ["x.conf"], "{target}");
        assert_eq!(names(directory.path()), ["outside", "rootfs"]);
    }
}

#[test]
fn chains_and_loops_of_links_are_followed_as_far_as_the_kernel_would() {
    let (_directory, root, path) = root();
    symlink("/var/run", path.join("run")).unwrap();
    fs::create_dir(path.join("var")).unwrap();
    symlink("../private/./run", path.join("var/run")).unwrap();
    root.directory(Path::new("/run/nvidia/x"), MOST_LINKS).unwrap();
    assert_eq!(names(&path.join("private/run/nvidia")), ["x"]);
    let mode = fs::metadata(path.join("private/run/nvidia")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7022, 0, "{mode:o}");

    symlink("/loop", path.join("loop")).unwrap();
    let error = root.directory(Path::new("/loop/x"), MOST_LINKS).unwrap_err();
    assert!(matches!(error, Error::Call { call: "openat2", source: Errno::ELOOP, .. }), "{error:?}");
    symlink("/dangling/b", path.join("a")).unwrap();
    fs::create_dir(path.join("dangling")).unwrap();
    symlink("/a/x", path.join("dangling/b")).unwrap();
    assert!(root.directory(Path::new("/a"), MOST_LINKS).is_err());

    fs::write(path.join("file"), "").unwrap();
    let error = root.directory(Path::new("/file/x"), MOST_LINKS).unwrap_err();
    assert_eq!(error.to_string(), r#"openat2 failed for "/file/x" in the container"#);
}

#[test]
fn a_link_takes_the_place_of_files_and_links_only() {
    let (_directory, root, path) = root();
    let link = Path::new("/lib/libcuda.so.1");
    assert_eq!(root.symlink("libcuda.so.580", link).unwrap(), Change::Made);
    assert_eq!(root.symlink("libcuda.so.580", link).unwrap(), Change::Unchanged);
    assert_eq!(root.symlink("libcuda.so.590", link).unwrap(), Change::Made);
    let host = path.join("lib/libcuda.so.1");
    assert_eq!(fs::read_link(&host).unwrap(), Path::new("libcuda.so.590"));

    fs::remove_file(&host).unwrap();
    fs::write(&host, "the image's own").unwrap();
    assert_eq!(root.symlink("libcuda.so.590", link).unwrap(), Change::Made);
    fs::remove_file(&host).unwrap();
    mkfifo(&host, Mode::S_IRWXU).unwrap();
    assert_eq!(root.symlink("libcuda.so.590", link).unwrap(), Change::Made);
    assert_eq!(names(&path.join("lib")), ["libcuda.so.1"]);

    fs::remove_file(&host).unwrap();
    fs::create_dir(&host).unwrap();
    let error = root.symlink("libcuda.so.590", link).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"a directory stands in the place of "/lib/libcuda.so.1" in the container"#
    );
    assert_eq!(names(&path.join("lib")), ["libcuda.so.1"]);
}

#[test]
fn a_link_out_of_the_root_is_replaced_and_not_followed() {
    let (directory, root, path) = root();
    let outside = directory.path().join("outside/file");
    fs::write(&outside, "before").unwrap();
    symlink(&outside, path.join("a")).unwrap();
    symlink("../outside/file", path.join("b")).unwrap();
    for name in ["/a", "/b"] {
        assert_eq!(root.read(Path::new(name), 10).unwrap(), None);
        assert!(!root.is_full_file(Path::new(name)).unwrap());
        root.replace(Path::new(name), b"after").unwrap();
        assert_eq!(root.read(Path::new(name), 10).unwrap().unwrap(), b"after");
    }
    assert_eq!(fs::read_to_string(&outside).unwrap(), "before");
    assert_eq!(fs::metadata(path.join("a")).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(names(&path), ["a", "b"]);
}

#[test]
fn only_regular_files_of_bounded_size_are_read() {
    let (_directory, root, path) = root();
    fs::write(path.join("ten"), [0; 10]).unwrap();
    assert_eq!(root.read(Path::new("/ten"), 10).unwrap().unwrap().len(), 10);
    let error = root.read(Path::new("/ten"), 9).unwrap_err();
    assert_eq!(error.to_string(), r#""/ten" in the container is longer than 9 bytes"#);
    fs::File::create(path.join("sparse")).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(root.read(Path::new("/sparse"), 10), Err(Error::TooLarge { .. })));
    mkfifo(&path.join("fifo"), Mode::S_IRWXU).unwrap();
    symlink("fifo", path.join("link")).unwrap();
    for name in ["/fifo", "/link", "/"] {
        assert!(matches!(root.read(Path::new(name), 10), Err(Error::NotRegular { .. })), "{name}");
    }
    assert_eq!(root.read(Path::new("/none"), 10).unwrap(), None);
    assert_eq!(root.read(Path::new("/ten/none"), 10).unwrap(), None);
}

#[test]
fn other_mounts_are_seen_and_neither_read_nor_written() {
    // Not a container's root: the host's, reached by a handle that the check in `open` would have refused.
    let handle = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
    let root = Root { handle, owner: (0, 0), last: RefCell::default() };
    assert!(root.is_full_file(Path::new("/sys/kernel/uevent_seqnum")).unwrap());
    assert_eq!(root.sight(Path::new("/sys/kernel/uevent_seqnum")).unwrap(), Sight::Foreign);
    assert!(!root.is_full_file(Path::new("/proc/self/root/etc/passwd")).unwrap_or_default(), "a magic link");
    let read = root.read(Path::new("/proc/version"), 1 << 20);
    assert!(matches!(read, Err(Error::ForeignMount { .. })), "{read:?}");
    let error = root.symlink("x", Path::new("/proc/divvy")).unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"another file system is mounted at or above "/proc/divvy" in the container"#
    );
    assert!(matches!(root.replace(Path::new("/proc/divvy"), b""), Err(Error::ForeignMount { .. })));
    assert!(matches!(root.directory(Path::new("/proc/divvy"), MOST_LINKS), Err(Error::ForeignMount { .. })));
}

/// Runs `test` in a mount namespace of its own, as root; elsewhere it says that it did not.
fn with_mounts(test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return;
    }
    // A thread can have its own; the process has others at work.
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_at("/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn mount_at(path: impl AsRef<Path>, file_system: Option<&str>, flags: MsFlags) {
    mount(file_system, path.as_ref(), file_system, flags, None::<&str>).unwrap();
}

#[test]
fn a_file_of_proc_is_covered_and_nothing_left_behind() {
    with_mounts(|| {
        let (_directory, root, path) = root();
        fs::create_dir(path.join("proc")).unwrap();
        let cover = |file: &str, content: &[u8]| root.cover_in_proc(Path::new(file), content);
        let foreign = |result| assert!(matches!(result, Err(Error::ForeignMount { .. })), "{result:?}");
        foreign(cover("sys/kernel/ostype", b"x"));
        mount_at(path.join("proc"), Some("proc"), MsFlags::empty());

        let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count();
        let before = mounts();
        for file in ["sys/kernel/osrelease", "sys/kernel/ostype"] {
            assert_eq!(cover(file, b"covered\n").unwrap(), Change::Made);
            let file = path.join("proc").join(file);
            assert_eq!(fs::read_to_string(&file).unwrap(), "covered\n");
            assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o444);
            let written = fs::OpenOptions::new().write(true).open(&file).map(drop);
            assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        }
        assert_eq!(mounts(), before + 2);
        assert!(path.join("proc/sys/kernel/hostname").exists());
        assert_eq!(cover("sys/kernel/ostype", b"covered\n").unwrap(), Change::Unchanged);
        foreign(cover("sys/kernel/ostype", b"other\n"));
        let none = cover("driver/none/params", b"x");
        assert!(matches!(none, Err(Error::Call { source: Errno::ENOENT, .. })), "{none:?}");
        assert_eq!(mounts(), before + 2);

        // Whatever is mounted below would show on the host.
        mount_at(path.join("proc"), None, MsFlags::MS_SHARED);
        foreign(cover("sys/kernel/version", b"x"));
        assert_eq!(mounts(), before + 2);
    });
}

#[test]
fn only_the_containers_own_dev_is_changed() {
    with_mounts(|| {
        let (_directory, root, path) = root();
        fs::create_dir(path.join("dev")).unwrap();
        assert!(matches!(root.devices(), Err(Error::ForeignMount { .. })));
        mount_at(path.join("dev"), Some("tmpfs"), MsFlags::empty());
        let devices = root.devices().unwrap();
        let caps = path.join("dev/nvidia-caps");
        fs::create_dir(&caps).unwrap();
        fs::set_permissions(&caps, fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(devices.open_to_all(Path::new("/nvidia-caps")).unwrap(), Change::Made);
        assert_eq!(fs::metadata(&caps).unwrap().permissions().mode() & 0o7777, 0o755);
        assert_eq!(devices.open_to_all(Path::new("/nvidia-caps")).unwrap(), Change::Unchanged);
        assert_eq!(devices.open_to_all(Path::new("/none")).unwrap(), Change::Unchanged);
        symlink("/etc", path.join("dev/dri")).unwrap();
        assert_eq!(devices.open_to_all(Path::new("/dri")).unwrap(), Change::Unchanged);

        let node = path.join("dev/nvidia3");
        mknod(&node, SFlag::S_IFCHR, Mode::S_IRWXU, nix::sys::stat::makedev(195, 3)).unwrap();
        assert_eq!(root.device_minor(Path::new("/dev/nvidia3")).unwrap(), Some(3));
        for path in ["/dev/nvidia0", "/dev", "/dev/dri"] {
            assert_eq!(root.device_minor(Path::new(path)).unwrap(), None, "{path}");
        }
    });
}

#[test]
fn links_alone_are_removed() {
    let (directory, root, path) = root();
    fs::write(path.join("file"), "").unwrap();
    fs::create_dir(path.join("directory")).unwrap();
    symlink(directory.path().join("outside"), path.join("link")).unwrap();
    for (name, change) in [
        ("/file", Change::Unchanged),
        ("/directory", Change::Unchanged),
        ("/none/none", Change::Unchanged),
        ("/link", Change::Made),
        ("/link", Change::Unchanged),
    ] {
        assert_eq!(root.remove_link(Path::new(name)).unwrap(), change, "{name}");
    }
    assert_eq!(names(&path), ["directory", "file"]);
    assert_eq!(names(directory.path()), ["outside", "rootfs"]);
}
