//! Writing spec files, seen from outside: modes, concurrent writers, writers that are killed, places that refuse.
//! A test that needs another process (a umask, a kill) starts this binary again with its own name: it then finds a
//! role in its environment and plays it instead of testing.
#![allow(clippy::unwrap_used, reason = "clippy.toml frees test functions, but not the functions beside them")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cdi::{Device, DeviceNode, Spec, WriteError, Written, minimum_version, write};
use nix::sys::stat::{Mode, umask};
use tempfile::TempDir;

/// Where a child process writes; set in children only.
const CHILD: &str = "CDI_TEST_CHILD_WRITES";

/// A spec of this many devices, each of which repeats the number, so that a mix of two is no whole one.
fn spec_of(devices: usize) -> String {
    let mut spec = Spec::new("example.com/gpu".parse().unwrap());
    for i in 0..devices {
        let mut device = Device {
            name: i.to_string().parse().unwrap(),
            annotations: [("example.com/of".to_owned(), devices.to_string())].into(),
            container_edits: Default::default(),
        };
        device.container_edits.device_nodes =
            vec![DeviceNode { path: format!("/dev/example{i}"), ..DeviceNode::default() }];
        spec.devices.push(device);
    }
    spec.cdi_version = minimum_version(&spec).to_string();
    cdi::validate(&spec).unwrap();
    spec.to_json()
}

fn assert_whole(path: &Path) {
    let text = fs::read_to_string(path).unwrap();
    let spec = Spec::parse(&text).unwrap_or_else(|error| panic!("{error}: {} bytes", text.len()));
    assert_eq!(text, spec_of(spec.devices.len()));
}

fn names_in(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn in_temporary() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("example.json");
    (directory, path)
}

fn child_role() -> Option<PathBuf> {
    std::env::var_os(CHILD).map(PathBuf::from)
}

/// This test again, in a process of its own that writes to `path`.
fn start_child(test: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn assert_succeeds(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn creates_then_leaves_alone_then_replaces() {
    let (directory, path) = in_temporary();
    assert_eq!(write(&path, spec_of(1).as_bytes()).unwrap(), Written::Created);
    assert_whole(&path);

    let before = fs::metadata(&path).unwrap();
    assert_eq!(write(&path, spec_of(1).as_bytes()).unwrap(), Written::Unchanged);
    let after = fs::metadata(&path).unwrap();
    let identity = |m: &fs::Metadata| (m.ino(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec());
    assert_eq!(identity(&before), identity(&after));

    assert_eq!(write(&path, spec_of(2).as_bytes()).unwrap(), Written::Replaced);
    // The same length, other bytes.
    let other = spec_of(2).replace("/dev/example1", "/dev/example9");
    assert_eq!(write(&path, other.as_bytes()).unwrap(), Written::Replaced);
    assert_eq!(fs::read_to_string(&path).unwrap(), other);
    assert_eq!(names_in(directory.path()), ["example.json"]);
}

#[test]
fn a_file_that_engines_cannot_read_is_replaced_though_its_contents_are_the_same() {
    let (_directory, path) = in_temporary();
    write(&path, spec_of(1).as_bytes()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(write(&path, spec_of(1).as_bytes()).unwrap(), Written::Replaced);
    assert_eq!(mode(&path), 0o644);
}

#[test]
fn modes_do_not_depend_on_the_umask() {
    if let Some(path) = child_role() {
        umask(Mode::from_bits_truncate(0o077));
        assert_eq!(write(&path, spec_of(1).as_bytes()).unwrap(), Written::Created);
        return;
    }
    let (directory, _) = in_temporary();
    let path = directory.path().join("cdi/example.json");
    assert_succeeds(start_child("modes_do_not_depend_on_the_umask", &path));
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o755, 0o644));
}

#[test]
fn a_directory_that_is_there_keeps_its_mode() {
    let (directory, path) = in_temporary();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o711)).unwrap();
    write(&path, spec_of(1).as_bytes()).unwrap();
    assert_eq!(mode(directory.path()), 0o711);
}

#[test]
fn a_missing_parent_is_named_and_not_made() {
    let (directory, _) = in_temporary();
    let missing = directory.path().join("missing");
    let error = write(&missing.join("cdi/example.json"), b"{}").unwrap_err();
    assert!(matches!(&error, WriteError::ParentMissing { parent, .. } if *parent == missing), "{error}");
    let (parent, path) = (missing.display(), missing.join("cdi"));
    assert_eq!(
        error.to_string(),
        format!("{parent} does not exist, so {} cannot be made in it", path.display())
    );
    assert_eq!(names_in(directory.path()), [""; 0]);
}

#[test]
fn names_that_no_engine_reads_are_refused() {
    let (directory, _) = in_temporary();
    for name in ["example", "example.yml", "example.json~"] {
        let error = write(&directory.path().join(name), b"{}").unwrap_err();
        assert!(matches!(error, WriteError::FileName { .. }), "{error}");
    }
    assert_eq!(names_in(directory.path()), [""; 0]);
    assert_eq!(write(&directory.path().join("example.yaml"), b"{}").unwrap(), Written::Created);
}

#[test]
fn what_is_not_a_file_is_refused_and_stays() {
    let (directory, path) = in_temporary();
    let target = directory.path().join("target.json");
    fs::write(&target, "old").unwrap();
    let refused = |found: &str| {
        let error = write(&path, b"{}").unwrap_err();
        assert_eq!(error.to_string(), format!("{} is a {found} and will not be replaced", path.display()));
        assert!(matches!(error, WriteError::NotAFile { .. }));
    };

    symlink(&target, &path).unwrap();
    refused("symbolic link");
    assert_eq!(fs::read_to_string(&target).unwrap(), "old");
    assert_eq!(fs::read_link(&path).unwrap(), target);
    fs::remove_file(&path).unwrap();

    symlink("nowhere", &path).unwrap();
    refused("symbolic link");
    fs::remove_file(&path).unwrap();

    nix::unistd::mkfifo(&path, Mode::S_IRUSR).unwrap();
    refused("FIFO");
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refused("directory");
    assert_eq!(names_in(directory.path()), ["example.json", "target.json"]);
}

#[test]
fn a_file_in_the_directorys_place_is_refused() {
    let (directory, _) = in_temporary();
    let file = directory.path().join("cdi");
    fs::write(&file, "").unwrap();
    let error = write(&file.join("example.json"), b"{}").unwrap_err();
    assert_eq!(error.to_string(), format!("cannot open the directory {}", file.display()));
    assert_eq!(error.io_kind(), Some(ErrorKind::NotADirectory));
}

#[test]
fn stale_temporary_files_of_this_file_alone_are_removed() {
    let (directory, path) = in_temporary();
    let foreign =
        [".example.json.swp", ".other.json.abc.tmp", "example.json.abc.tmp", ".example.json.tmp.json"];
    for name in foreign.iter().chain(&[".example.json.Ab12cd.tmp", ".example.json..tmp"]) {
        fs::write(directory.path().join(name), "half").unwrap();
    }
    fs::create_dir(directory.path().join(".example.json.dir.tmp")).unwrap();
    let mut left: Vec<_> = foreign.into_iter().chain([".example.json.dir.tmp", "example.json"]).collect();
    left.sort();

    write(&path, spec_of(1).as_bytes()).unwrap();
    assert_eq!(names_in(directory.path()), left);

    fs::write(directory.path().join(".example.json.Zz.tmp"), "half").unwrap();
    assert_eq!(write(&path, spec_of(1).as_bytes()).unwrap(), Written::Unchanged);
    assert_eq!(names_in(directory.path()), left);
}

#[test]
fn a_write_cut_short_leaves_the_old_file_and_nothing_else() {
    if let Some(path) = child_role() {
        let error = write(&path, spec_of(1000).as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot write {}", path.display()));
        assert_eq!(error.io_kind(), Some(ErrorKind::FileTooLarge));
        return;
    }
    let (directory, path) = in_temporary();
    let old = spec_of(1);
    write(&path, old.as_bytes()).unwrap();
    // A file size limit of some blocks binds root too; with its signal ignored, write(2) fails as on a full disk.
    let child = Command::new("sh")
        .args(["-c", r#"trap '' XFSZ; ulimit -f 8; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["a_write_cut_short_leaves_the_old_file_and_nothing_else", "--exact", "--nocapture"])
        .env(CHILD, &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_succeeds(child);
    assert_eq!(fs::read_to_string(&path).unwrap(), old);
    assert_eq!(names_in(directory.path()), ["example.json"]);
}

#[test]
fn a_place_that_takes_no_files_is_told_by_its_kind() {
    // sysfs takes no new file from anybody, root included, mounted read-only or not.
    let error = write(Path::new("/sys/cdi-example.json"), b"{}").unwrap_err();
    assert_eq!(error.to_string(), "cannot write /sys/cdi-example.json");
    let kind = error.io_kind().unwrap();
    assert!(matches!(kind, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem), "{kind}");

    let error = write(Path::new("/sys/cdi-example/example.json"), b"{}").unwrap_err();
    assert_eq!(error.to_string(), "cannot make the directory /sys/cdi-example");
    let kind = error.io_kind().unwrap();
    assert!(matches!(kind, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem), "{kind}");
}

#[test]
fn of_many_threads_each_leaves_a_whole_file() {
    let (directory, _) = in_temporary();
    // The directory is missing at first, so that its making races too.
    let path = directory.path().join("cdi/example.json");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (1..=6)
            .map(|writer| {
                let path = &path;
                scope.spawn(move || {
                    for round in 0..10 {
                        write(path, spec_of(writer * 20 + round).as_bytes()).unwrap();
                        assert_whole(path);
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if path.exists() {
                    assert_whole(&path);
                }
            }
        });
        let results: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    assert_eq!(names_in(path.parent().unwrap()), ["example.json"]);
    assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o755, 0o644));
}

#[test]
fn of_many_processes_each_leaves_a_whole_file() {
    if let Some(path) = child_role() {
        for round in 1..=15 {
            write(&path, spec_of(round * 10 + std::process::id() as usize % 10).as_bytes()).unwrap();
            assert_whole(&path);
        }
        return;
    }
    let (directory, _) = in_temporary();
    let path = directory.path().join("cdi/example.json");
    let children: Vec<_> =
        (0..4).map(|_| start_child("of_many_processes_each_leaves_a_whole_file", &path)).collect();
    children.into_iter().for_each(assert_succeeds);
    assert_whole(&path);
    assert_eq!(names_in(path.parent().unwrap()), ["example.json"]);
}

#[test]
fn a_killed_writer_leaves_a_whole_file_and_locks_nobody_out() {
    if let Some(path) = child_role() {
        let texts = [spec_of(1000), spec_of(1001)];
        for text in texts.iter().cycle() {
            write(&path, text.as_bytes()).unwrap();
            // Ends this process, too, should the test that reads it be gone.
            println!("\nwriting");
        }
    }
    let (directory, path) = in_temporary();
    let mut interrupted = 0;
    for round in 0..50 {
        let mut child = start_child("a_killed_writer_leaves_a_whole_file_and_locks_nobody_out", &path);
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(output.any(|line| line.unwrap() == "writing"));
        // Spread over several writes: which step the kill meets is left to chance.
        thread::sleep(Duration::from_micros(round * 7919 % 20_000));
        child.kill().unwrap();
        child.wait().unwrap();

        assert_whole(&path);
        let left = names_in(directory.path());
        interrupted += usize::from(left.iter().any(|name| name.ends_with(".tmp")));
        // What engines would read is the one file; the next writer clears away the rest.
        let read_by_engines = left.iter().filter(|name| !name.ends_with(".tmp") && !name.ends_with(".lock"));
        assert_eq!(read_by_engines.collect::<Vec<_>>(), ["example.json"]);
        assert!(left.len() <= 3, "{left:?}");
    }
    println!("{interrupted} of 50 kills met a half-written temporary file");
    write(&path, spec_of(1).as_bytes()).unwrap();
    assert_eq!(names_in(directory.path()), ["example.json"]);
}
