//! As root: what the kernel says of processes, namespaces and cgroups, and that a device that is denied cannot be opened.
//! The modules are compiled in, since the command has no verb that shows them by themselves.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

#[path = "../src/failure.rs"]
#[allow(dead_code, unused_imports, reason = "a part of it is used here")]
mod failure;
#[path = "../src/container"]
#[allow(dead_code, unused_imports, reason = "a part of it is used here")]
mod container {
    pub mod caller;
    pub mod cgroup;
    pub mod deny;
    pub mod names;
    pub mod process;
}
#[path = "support/needs.rs"]
#[allow(dead_code, reason = "other tests have other needs")]
mod needs;
#[path = "../src/sys.rs"]
#[allow(dead_code, unused_imports, reason = "a part of it is used here")]
mod sys;

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use container::caller::{Daemon, Error, Peer};
use container::cgroup::{self, First, Hierarchies, NotOwn};
use container::deny;
use hooks::ancestry::start_time;
use hooks::lease::{DeniedBy, Labels, Request, VERSION};
use libtest_mimic::{Arguments, Trial};
use needs::Need;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use sys::Instruction;

/// Belongs to NVIDIA's driver; where that is not loaded, opening gives ENXIO, and never EPERM.
const MAJOR: u32 = 195;
const USER: u32 = 54_321;

fn main() {
    const V2: &[Need] = &[Need::Root, Need::CgroupV2];
    const V1: &[Need] = &[Need::Root, Need::CgroupV1];
    let trials: Vec<Trial> = vec![
        needs::trial("a_program_denies_what_is_listed", V2, a_program_denies_what_is_listed),
        needs::trial("a_program_is_attached_once", V2, a_program_is_attached_once),
        needs::trial("the_v1_controller_denies_what_is_listed", V1, the_v1_controller_denies_what_is_listed),
        needs::trial("own_cgroup_v2", V2, || own_cgroup("cgroup2")),
        needs::trial("own_cgroup_v1", V1, || own_cgroup("devices")),
        needs::trial("a_pid_namespace_may_have_many", V2, a_pid_namespace_may_have_many),
        needs::trial("who_may_ask", &[Need::Root], who_may_ask),
        needs::trial("who_may_ask_for_a_users_container", &[Need::Root], who_may_ask_for_a_users_container),
        needs::trial("what_is_no_container", &[Need::Root], what_is_no_container),
        needs::trial("a_container_is_found_again", &[Need::Root], a_container_is_found_again),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A cgroup of a test's own. What is in it ends with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(hierarchy: &str, name: &str) -> Self {
        let mount = needs::cgroup_mount(hierarchy).unwrap();
        let path = mount.join(format!("divvy-test-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// A shell command, in here from its start.
    fn command(&self, script: &str) -> Command {
        let mut command = Command::new("sh");
        let procs = self.0.join("cgroup.procs");
        command.args(["-c", &format!("echo $$ >\"$1\" && {script}"), "sh"]).arg(procs).env("LC_ALL", "C");
        command
    }

    fn spawn(&self, script: &str) -> Process {
        Process::new(&mut self.command(script))
    }

    fn pids(&self) -> Vec<i32> {
        let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap();
        procs.lines().map(|line| line.parse().unwrap()).collect()
    }

    fn wait_for(&self, count: usize) {
        until("the processes are there", || self.pids().len() == count);
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        until("the cgroup is empty", || {
            let _ = cgroup::kill(&self.0);
            cgroup::is_empty(&self.0).unwrap_or(true)
        });
        until("the cgroup can be removed", || {
            let below = fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path());
            below.filter(|path| path.is_dir()).for_each(|path| drop(fs::remove_dir(path)));
            fs::remove_dir(&self.0).is_ok() || !self.0.exists()
        });
    }
}

/// A process that ends with the test.
struct Process(Child);

impl Process {
    fn new(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.0.id()).unwrap()
    }

    /// Once it is in another namespace of this kind than this process.
    fn wait_for_own(&self, kind: &str) -> i32 {
        let link = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap();
        until("it has a namespace of its own", || link(&self.pid().to_string()) != link("self"));
        self.pid()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "still waiting until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Nodes of character devices by their minors.
fn nodes(minors: &[u32]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for minor in minors {
        let device = makedev(MAJOR.into(), (*minor).into());
        mknod(&dir.path().join(minor.to_string()), SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), device)
            .unwrap();
    }
    dir
}

fn is_denied(cgroup: &Cgroup, node: &Path) -> bool {
    let run = cgroup.command("cat <\"$2\"").arg(node).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(said.contains("cannot open"), "{said}");
    said.contains("Operation not permitted")
}

fn a_program_denies_what_is_listed() {
    let cgroup = Cgroup::new("cgroup2", "deny");
    let dir = nodes(&[200, 201, 202]);
    let denied = |minor: &str| is_denied(&cgroup, &dir.path().join(minor));
    assert!(!denied("201"));
    assert_eq!(deny::deny(&cgroup.0, &[(MAJOR, 201), (MAJOR, 202)]).unwrap(), DeniedBy::CgroupV2);
    assert!(!denied("200") && denied("201") && denied("202"));
    // What root in there makes itself is no way around.
    let made = dir.path().join("made");
    let mknod = format!("exec mknod \"$2\" c {MAJOR} 201");
    assert!(!cgroup.command(&mknod).arg(&made).output().unwrap().status.success());
    assert!(!made.exists());
    // Nor is a cgroup below.
    fs::create_dir(cgroup.0.join("below")).unwrap();
    let below = Cgroup(cgroup.0.join("below"));
    assert!(!is_denied(&below, &dir.path().join("200")) && is_denied(&below, &dir.path().join("201")));
}

fn a_program_is_attached_once() {
    let cgroup = Cgroup::new("cgroup2", "once");
    let dir = nodes(&[200, 201, 202]);
    let denied = |minor: &str| is_denied(&cgroup, &dir.path().join(minor));
    let directory = File::open(&cgroup.0).unwrap();
    let programs = || sys::device_programs(directory.as_fd()).unwrap();
    // A runtime's, which denies 195:202: `r0 = minor != 202`.
    let of = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let theirs = [
        of(0x61, 0x12, 8, 0),
        of(0xb7, 0, 0, 1),
        of(0x55, 0x02, 1, 202),
        of(0xb7, 0, 0, 0),
        of(0x95, 0, 0, 0),
    ];
    let theirs = sys::load_device_program(&theirs, b"a_runtimes\0\0\0\0\0\0").unwrap();
    sys::attach_device_program(directory.as_fd(), theirs.as_fd()).unwrap();
    let theirs = programs();

    let many: Vec<(u32, u32)> = (0..700).map(|minor| (510, minor)).chain([(MAJOR, 200)]).collect();
    let mut ours = None;
    for (devices, is_same, denies_200, denies_201) in [
        (&[(MAJOR, 201), (MAJOR, 200)][..], false, true, true),
        (&[(MAJOR, 200), (MAJOR, 201), (MAJOR, 200)], true, true, true),
        // What the one before in this cgroup was denied, the next one may have been granted.
        (&[(MAJOR, 201)], false, false, true),
        (&many, false, true, false),
    ] {
        deny::deny(&cgroup.0, devices).unwrap();
        let now: Vec<u32> = programs().into_iter().filter(|id| !theirs.contains(id)).collect();
        assert_eq!(now.len(), 1, "{devices:?}");
        assert_eq!(ours.replace(now.clone()) == Some(now), is_same, "{devices:?}");
        assert_eq!(
            (denied("200"), denied("201"), denied("202")),
            (denies_200, denies_201, true),
            "{devices:?}"
        );
    }
    deny::lift(&cgroup.0).unwrap();
    assert_eq!(programs(), theirs);
    assert!(!denied("200") && denied("202"));

    let gone = cgroup.0.join("gone");
    let error = deny::deny(&gone, &[(MAJOR, 1)]).unwrap_err();
    assert!(matches!(error, deny::Error::Open { .. }) && error.hint().is_some(), "{error:?}");
    assert!(matches!(deny::deny(Path::new("/tmp"), &[(MAJOR, 1)]).unwrap_err(), deny::Error::Open { .. }));
}

fn the_v1_controller_denies_what_is_listed() {
    let dir = nodes(&[200, 201, 202]);
    let open_to_all = Cgroup::new("devices", "open");
    deny::deny(&open_to_all.0, &[(MAJOR, 201)]).unwrap();
    assert!(is_denied(&open_to_all, &dir.path().join("201")));
    assert!(!is_denied(&open_to_all, &dir.path().join("202")));

    let cgroup = Cgroup::new("devices", "deny");
    // As engines set it up: nothing, then what is given; every node may be made.
    fs::write(cgroup.0.join("devices.deny"), "a").unwrap();
    for rule in ["c *:* m", "c 1:3 rwm", "c 195:200 rw", "c 195:201 rw", "c 195:202 rwm"] {
        fs::write(cgroup.0.join("devices.allow"), rule).unwrap();
    }
    let denied = |minor: &str| is_denied(&cgroup, &dir.path().join(minor));
    assert!(!denied("201"));
    for _ in 0..2 {
        assert_eq!(deny::deny(&cgroup.0, &[(MAJOR, 201), (MAJOR, 202)]).unwrap(), DeniedBy::CgroupV1);
        assert!(!denied("200") && denied("201") && denied("202"));
    }
    // A rule for all of a major is not one that can be taken apart.
    fs::write(cgroup.0.join("devices.allow"), "c 195:* rwm").unwrap();
    let error = deny::deny(&cgroup.0, &[(MAJOR, 201)]).unwrap_err();
    assert!(matches!(error, deny::Error::StillAllowed { minor: 201, .. }), "{error:?}");
}

fn own_cgroup(hierarchy: &str) {
    let cgroup = Cgroup::new(hierarchy, "own");
    let first = cgroup.spawn("exec unshare --mount sleep 1000");
    let hierarchies = Hierarchies::read().unwrap();
    let first = First { pid: first.wait_for_own("mnt"), uid: 0, caller: None };
    let own = || hierarchies.own(first);
    assert_eq!(own().unwrap(), cgroup.0);
    assert!(!cgroup::is_empty(&cgroup.0).unwrap());

    let with_caller = hierarchies.own(First { caller: Some(first.pid), ..first });
    assert!(matches!(with_caller, Err(NotOwn::With { .. })), "{with_caller:?}");

    // A user who owns it, or one above, could take a process out of what is denied there.
    chown(&cgroup.0, Some(USER), None).unwrap();
    assert!(matches!(own(), Err(NotOwn::Owner { uid: USER, .. })));
    assert_eq!(hierarchies.own(First { uid: USER, ..first }).unwrap(), cgroup.0);
    fs::create_dir(cgroup.0.join("below")).unwrap();
    fs::write(cgroup.0.join("below/cgroup.procs"), first.pid.to_string()).unwrap();
    assert!(matches!(own(), Err(NotOwn::Owner { uid: USER, .. })));
    chown(&cgroup.0, Some(0), None).unwrap();
    assert_eq!(own().unwrap(), cgroup.0.join("below"));
    fs::write(cgroup.0.join("cgroup.procs"), first.pid.to_string()).unwrap();
    assert_eq!(own().unwrap(), cgroup.0);

    // Another process, in it and below.
    for place in [cgroup.0.clone(), cgroup.0.join("below")] {
        let other = Process::new(Command::new("sleep").arg("1000"));
        fs::write(place.join("cgroup.procs"), other.pid().to_string()).unwrap();
        let shared = own();
        assert!(matches!(shared, Err(NotOwn::Shared { pid, .. }) if pid == other.pid()), "{shared:?}");
    }
    assert_eq!(own().unwrap(), cgroup.0);

    // This process's own is not the container's, wherever that is.
    let mine = Process::new(Command::new("unshare").args(["--mount", "sleep", "1000"]));
    let mine = hierarchies.own(First { pid: mine.wait_for_own("mnt"), uid: 0, caller: None });
    assert!(matches!(mine, Err(NotOwn::With { .. } | NotOwn::Outside { .. })), "{mine:?}");

    let below = Cgroup(cgroup.0.join("below"));
    let last = below.spawn("exec sleep 1000");
    below.wait_for(1);
    cgroup::kill(&cgroup.0).unwrap();
    until("all are killed", || cgroup::is_empty(&cgroup.0).unwrap());
    drop(last);
    drop(below);
    let path = cgroup.0.clone();
    drop(cgroup);
    assert!(cgroup::is_empty(&path).unwrap());
}

fn a_pid_namespace_may_have_many() {
    let cgroup = Cgroup::new("cgroup2", "many");
    let script = "echo 0 >\"$1\"; sleep 1000 & wait";
    let mut unshare = Command::new("unshare");
    unshare.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"]);
    let _unshare = Process::new(unshare.arg(cgroup.0.join("cgroup.procs")));
    cgroup.wait_for(2);
    let first = cgroup.pids().into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        status.lines().any(|line| line.starts_with("NSpid:") && line.ends_with("\t1"))
    });
    let first = First { pid: first.unwrap(), uid: 0, caller: None };
    let hierarchies = Hierarchies::read().unwrap();
    assert_eq!(hierarchies.own(first).unwrap(), cgroup.0);
    let other = cgroup.spawn("exec sleep 1000");
    cgroup.wait_for(3);
    let shared = hierarchies.own(first);
    assert!(matches!(shared, Err(NotOwn::Shared { pid, .. }) if pid == other.pid()), "{shared:?}");
}

fn request(pid: i32, start_time: u64) -> Request {
    Request {
        version: VERSION,
        pid,
        start_time,
        id: "3f2a".to_owned(),
        bundle: "/run/containerd/io.containerd.runtime.v2.task/default/3f2a".into(),
        devices: Vec::new(),
        user: 0,
        nodes: Vec::new(),
        unbound: None,
        labels: Labels::default(),
    }
}

fn ask_at(uid: u32, pid: i32, start_time: u64) -> Result<container::caller::Facts, Error> {
    let own = i32::try_from(std::process::id()).unwrap();
    Daemon::read().unwrap().facts(Peer { uid, pid: own }, &request(pid, start_time))
}

fn ask(uid: u32, pid: i32) -> Result<container::caller::Facts, Error> {
    ask_at(uid, pid, start_time(pid).unwrap())
}

fn who_may_ask() {
    let container = Process::new(Command::new("unshare").args(["--mount", "sleep", "1000"]));
    let pid = container.wait_for_own("mnt");
    let facts = ask(0, pid).unwrap();
    let found = facts.container;
    let mounts = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    assert_eq!(mounts.to_str().unwrap(), format!("mnt:[{}]", found.mount_namespace));
    assert_eq!((found.pid, found.start_time, found.uid), (pid, start_time(pid).unwrap(), 0));
    assert_eq!((found.id.as_str(), found.cgroup), ("3f2a", None));
    assert_eq!((found.engine.as_deref(), found.name.as_deref()), (Some("containerd"), Some("3f2a")));

    let refused = ask(USER, pid).unwrap_err();
    assert!(matches!(refused, Error::RootsContainer { uid: USER, .. }), "{refused:?}");

    // The descriptor is that process's, and tells of its end.
    assert!(!sys::has_ended(facts.pidfd.as_fd()).unwrap());
    drop(container);
    assert!(sys::has_ended(facts.pidfd.as_fd()).unwrap());
}

/// In a user namespace that is inside as many others, all begun by a user.
fn users_container(depth: usize) -> Process {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={USER}"), "--clear-groups"]);
    for _ in 0..depth {
        command.args(["unshare", "--user", "--map-root-user"]);
    }
    Process::new(command.args(["unshare", "--user", "--map-root-user", "--mount", "sleep", "1000"]))
}

fn who_may_ask_for_a_users_container() {
    for depth in [0, 1, 5] {
        let container = users_container(depth);
        let pid = container.wait_for_own("mnt");
        let ask = |uid| ask(uid, pid);
        for uid in [USER, 0] {
            let facts = ask(uid).unwrap();
            assert_eq!((facts.container.pid, facts.container.uid), (pid, USER));
        }
        let refused = ask(USER + 1).unwrap_err();
        assert!(matches!(refused, Error::OthersContainer { owner: USER, .. }), "{refused:?}");
    }
    // Whose it is inside is no matter: root made this one, for the user.
    let mut command = Command::new("unshare");
    command.args(["--user", "--mount", "sleep", "1000"]);
    let container = Process::new(&mut command);
    let pid = container.wait_for_own("mnt");
    assert_eq!(ask(0, pid).unwrap().container.uid, 0);
    let refused = ask(USER, pid).unwrap_err();
    assert!(matches!(refused, Error::OthersContainer { owner: 0, .. }), "{refused:?}");
}

fn what_is_no_container() {
    let ended = |found: Result<container::caller::Facts, Error>, pid: i32| {
        assert!(matches!(found, Err(Error::Ended { pid: of }) if of == pid), "{pid}: {found:?}");
    };
    let process = Process::new(Command::new("sleep").arg("1000"));
    let pid = process.pid();
    let started = start_time(pid).unwrap();
    let own = i32::try_from(std::process::id()).unwrap();
    for here in [pid, own] {
        let same_mounts = ask(0, here).unwrap_err();
        assert!(matches!(same_mounts, Error::NoContainer { .. }), "{same_mounts:?}");
    }
    drop(process);
    ended(ask_at(0, pid, started), pid);

    // Another start is another process, whoever has the id now.
    let container = Process::new(Command::new("unshare").args(["--mount", "sleep", "1000"]));
    let pid = container.wait_for_own("mnt");
    let started = start_time(pid).unwrap();
    for other in [started - 1, started + 1, 0, u64::MAX] {
        ended(ask_at(0, pid, other), pid);
    }
    ask_at(0, pid, started).unwrap();

    // Ids of nobody, and of a thread that is not its process's first.
    for nobody in [0, -1, i32::MIN, i32::MAX] {
        ended(ask_at(0, nobody, 0), nobody);
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let thread = nix::unistd::gettid().as_raw();
            assert_ne!(thread, own);
            ended(ask_at(0, thread, start_time(thread).unwrap()), thread);
        });
    });

    // A zombie is still there to be read of.
    let mut zombie = Process::new(&mut Command::new("true"));
    let pid = zombie.pid();
    let pidfd = sys::pidfd_open(pid).unwrap();
    until("it has ended", || sys::has_ended(pidfd.as_fd()).unwrap());
    ended(ask(0, pid), pid);
    zombie.0.wait().unwrap();
}

fn a_container_is_found_again() {
    let process = Process::new(Command::new("unshare").args(["--mount", "sleep", "1000"]));
    let pid = process.wait_for_own("mnt");
    let daemon = Daemon::read().unwrap();
    let container = ask(0, pid).unwrap().container;
    let runs = |container: &hooks::lease::Container| daemon.still_runs(container).unwrap().is_some();
    assert!(runs(&container));
    let mut other = container.clone();
    other.start_time += 1;
    assert!(!runs(&other));
    other = container.clone();
    other.boot_id = "of another boot".to_owned();
    assert!(!runs(&other));
    drop(process);
    assert!(!runs(&container));
}
