//! System calls that neither std nor nix has, each behind a safe function: pidfds, what namespaces belong to, programs
//! on cgroups, processes that outlive this one, local time. With src/nvml/, all unsafe code of this crate.

#[path = "sys/descriptors.rs"]
mod descriptors;
#[path = "sys/processes.rs"]
mod processes;

use std::io;
use std::mem::{size_of, size_of_val};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

pub use descriptors::{passed, refuse_descriptors, watched};
pub use processes::{accepted, close_on_exec, detach, pidfd_getfd};

/// A descriptor that stands for a process, whatever comes to have its id (pidfd_open(2), Linux 5.3).
///
/// # Errors
/// ESRCH when there is no such process, EINVAL when the id is a thread's.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes two integers.
    #[expect(unsafe_code)]
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(fd)
}

/// Sends a signal to the process that a pidfd is of (pidfd_send_signal(2), Linux 5.1).
///
/// # Errors
/// ESRCH when it is gone.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: libc::c_int) -> io::Result<()> {
    let no_info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: without a siginfo the kernel makes one as kill(2) does; nothing of ours is written to.
    #[expect(unsafe_code)]
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, no_info, 0) };
    checked(done).map(drop)
}

/// Whether the process that a pidfd is of has ended, if only just: a zombie has.
///
/// # Errors
/// Those of poll(2).
pub fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(pidfd, PollFlags::POLLIN)], PollTimeout::ZERO)? > 0)
}

/// The namespace above a user or pid namespace (NS_GET_PARENT, ioctl_ns(2), Linux 4.9).
///
/// # Errors
/// EPERM when there is none, or when it is not this process's, nor below it.
pub fn namespace_above(namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument.
    #[expect(unsafe_code)]
    let fd = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_PARENT) };
    owned(fd.into())
}

/// The user whose process made a user namespace, as this process counts users (NS_GET_OWNER_UID, ioctl_ns(2), Linux
/// 4.11).
///
/// # Errors
/// EINVAL when it is no user namespace.
pub fn namespace_owner(user_namespace: BorrowedFd<'_>) -> io::Result<u32> {
    let mut uid: libc::uid_t = 0;
    // SAFETY: the request writes one uid_t, and `uid` is one.
    #[expect(unsafe_code)]
    let done = unsafe { libc::ioctl(user_namespace.as_raw_fd(), libc::NS_GET_OWNER_UID, &raw mut uid) };
    checked(done.into()).map(|_| uid)
}

/// One instruction of a BPF program (`struct bpf_insn`, linux/bpf.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination in the lower four bits and source in the upper, as little-endian compilers lay them out.
    pub registers: u8,
    /// Of a field, in bytes; of a jump, in instructions after the next.
    pub offset: i16,
    /// Operand.
    pub immediate: i32,
}

/// What tells one BPF program from another (`struct bpf_prog_info`, linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// The kernel's number for it, until it is gone.
    pub id: u32,
    /// Hash of its instructions.
    pub tag: [u8; 8],
    /// What it was called when it was loaded.
    pub name: [u8; 16],
}

/// From enum bpf_cmd, enum bpf_prog_type, enum bpf_attach_type and the flags of BPF_PROG_ATTACH (linux/bpf.h).
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 1 << 1;
/// The most that one cgroup can have (BPF_CGROUP_MAX_PROGS, kernel/bpf/cgroup.c).
const MOST_PROGRAMS: usize = 64;

/// `union bpf_attr` as each command reads it: the kernel takes what is not given for zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    query_flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

#[repr(C)]
struct GetInfo {
    fd: u32,
    length: u32,
    info: u64,
}

/// The first fields of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct Info {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    code_lengths: [u32; 2],
    code: [u64; 2],
    load_time: u64,
    uid: u32,
    map_count: u32,
    maps: u64,
    name: [u8; 16],
}

/// Loads a program that decides which device nodes may be opened and made (bpf(2), Linux 4.15).
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, or from Linux 5.8 on without CAP_BPF and CAP_NET_ADMIN, or before 5.11 when
/// RLIMIT_MEMLOCK is used up; EINVAL when the kernel does not know the kind, or takes the program for a wrong one.
pub fn load_device_program(instructions: &[Instruction], name: &[u8; 16]) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        name: *name,
        ..Load::default()
    };
    let mut attempt = || {
        // SAFETY: `load` is what this command takes. Its pointers are to the instructions, as many as it says, and to a
        // string with its zero, and both outlive the call; the kernel only reads them.
        #[expect(unsafe_code)]
        let fd = unsafe { bpf(BPF_PROG_LOAD, &mut load) };
        fd.and_then(owned)
    };
    // The kernel gives up where a signal is pending, which has been handled when this returns.
    for _ in 1..LOAD_ATTEMPTS {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            loaded => return loaded,
        }
    }
    attempt()
}

/// As many as libbpf makes.
const LOAD_ATTEMPTS: u32 = 5;

/// Attaches a device program to a cgroup of v2, beside others there: all of them have to allow (bpf(2)).
///
/// # Errors
/// EPERM also when a program is there already that suffers no other beside it; E2BIG after 64.
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attach = Attach {
        target: number(cgroup),
        program: number(program),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attach` is what this command takes, and has no pointer.
    #[expect(unsafe_code)]
    let done = unsafe { bpf(BPF_PROG_ATTACH, &mut attach) };
    done.map(drop)
}

/// Takes a device program off a cgroup of v2; the others there stay (bpf(2), Linux 4.15).
///
/// # Errors
/// ENOENT when it is not attached there.
pub fn detach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut detach =
        Attach { target: number(cgroup), program: number(program), kind: BPF_CGROUP_DEVICE, flags: 0 };
    // SAFETY: `detach` is what this command takes, and has no pointer.
    #[expect(unsafe_code)]
    let done = unsafe { bpf(BPF_PROG_DETACH, &mut detach) };
    done.map(drop)
}

/// Ids of the device programs that are attached to a cgroup of v2 itself (bpf(2), Linux 4.15).
///
/// # Errors
/// Those of [`attach_device_program`].
pub fn device_programs(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; MOST_PROGRAMS];
    let mut query = Query {
        target: number(cgroup),
        kind: BPF_CGROUP_DEVICE,
        query_flags: 0,
        attach_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: MOST_PROGRAMS as u32,
        padding: 0,
    };
    // SAFETY: `query` is what this command takes. Its pointer is to as many numbers as it says, which nobody else
    // reads or writes during the call.
    #[expect(unsafe_code)]
    unsafe { bpf(BPF_PROG_QUERY, &mut query) }?;
    Ok(ids.into_iter().take(query.count as usize).collect())
}

/// Opens a program by its id (bpf(2), Linux 4.13).
///
/// # Errors
/// ENOENT when it is gone; EPERM without CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut by_id = ById { id, next: 0, flags: 0 };
    // SAFETY: `by_id` is what this command takes, and has no pointer.
    #[expect(unsafe_code)]
    let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut by_id) }?;
    owned(fd)
}

/// What tells a program from others (bpf(2), Linux 4.15).
///
/// # Errors
/// EINVAL when the descriptor is no program's.
pub fn program_info(program: BorrowedFd<'_>) -> io::Result<Program> {
    let mut info = Info::default();
    let mut get =
        GetInfo { fd: number(program), length: size_of::<Info>() as u32, info: &raw mut info as u64 };
    // SAFETY: `get` is what this command takes. Its pointer is to as many bytes as it says, any values of which are an
    // `Info`; the pointers in there are null, so that the kernel follows none.
    #[expect(unsafe_code)]
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut get) }?;
    Ok(Program { id: info.id, tag: info.tag, name: info.name })
}

/// # Safety
/// `attributes` must be what the command takes, and its pointers must lead to what the command reads and writes there.
#[expect(unsafe_code)]
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes as many bytes of `attributes` as it has; the rest is the caller's promise.
    let done = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of_val(attributes))
    };
    checked(done)
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn checked(returned: libc::c_long) -> io::Result<libc::c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// Takes what a system call returned as a descriptor. All that are used here are close-on-exec.
fn owned(returned: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(checked(returned)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for this call, so nobody else has it.
    #[expect(unsafe_code)]
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(owned)
}

/// A time as people here read it: `14:02`, or `Nov 20 14:02` where that was not on the day of `now`. Both in seconds
/// since the epoch. The time zone is read once, when the first time is asked for.
pub fn local_time(seconds: u64, now: u64) -> String {
    let (Some(at), Some(now)) = (broken_down(seconds), broken_down(now)) else {
        return format!("@{seconds}");
    };
    let time = format!("{:02}:{:02}", at.tm_hour, at.tm_min);
    if (at.tm_year, at.tm_yday) == (now.tm_year, now.tm_yday) {
        return time;
    }
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = usize::try_from(at.tm_mon).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"?");
    format!("{month} {} {time}", at.tm_mday)
}

/// localtime_r(3).
fn broken_down(seconds: u64) -> Option<libc::tm> {
    let seconds = libc::time_t::try_from(seconds).ok()?;
    // SAFETY: all zeros are a `tm`: numbers, and a null pointer.
    #[expect(unsafe_code)]
    let mut broken_down: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to values of this function, of the types that are asked for. The environment, which
    // has the time zone's name, is not changed by any thread of this process.
    #[expect(unsafe_code)]
    let done = unsafe { libc::localtime_r(&raw const seconds, &raw mut broken_down) };
    (!done.is_null()).then_some(broken_down)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_pidfd_is_of_a_process_until_that_is_gone() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = pidfd_open(pid).unwrap();
        assert!(!has_ended(pidfd.as_fd()).unwrap());
        pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap();
        child.wait().unwrap();
        assert!(has_ended(pidfd.as_fd()).unwrap());
        let gone = pidfd_send_signal(pidfd.as_fd(), libc::SIGKILL).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn only_a_user_namespace_has_an_owner() {
        let own = fs::File::open("/proc/self/ns/user").unwrap();
        let mount = fs::File::open("/proc/self/ns/mnt").unwrap();
        assert!(namespace_owner(own.as_fd()).is_ok());
        assert_eq!(namespace_owner(mount.as_fd()).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        // Its own parent is out of sight for every process.
        assert_eq!(namespace_above(own.as_fd()).unwrap_err().raw_os_error(), Some(libc::EPERM));
    }

    #[test]
    fn times_of_today_and_of_other_days() {
        // Noon in UTC, and whatever that is here.
        let noon = 1_763_640_000;
        let time = local_time(noon, noon);
        assert_eq!(time.len(), 5, "{time}");
        assert_eq!(local_time(noon, noon + 200 * 86_400), format!("{} {time}", day_of(noon)));
        assert_eq!(local_time(u64::MAX, noon), format!("@{}", u64::MAX));
    }

    fn day_of(seconds: u64) -> String {
        let mut date = Command::new("date");
        date.args(["+%b %-d", &format!("--date=@{seconds}")]).env("LC_ALL", "C");
        String::from_utf8(date.output().unwrap().stdout).unwrap().trim().to_owned()
    }
}
