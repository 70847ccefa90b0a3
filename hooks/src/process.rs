//! What this process gives up: what it inherited, before it reads anything, the capabilities it does not use, and in the
//! end itself. The one file of this crate with unsafe code.
//!
//! What NVIDIA's hooks taught: CVE-2025-23266, where a hook loaded a library that the image's environment named.

use std::mem::ManuallyDrop;
use std::time::Duration;

use caps::errors::CapsError;
use caps::{CapSet, Capability};
use hooks::user_namespace::overflow_id;
use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl::{set_dumpable, set_no_new_privs};
use nix::sys::signal::{
    SaFlags, SigAction, SigEvent, SigHandler, SigSet, SigevNotify, Signal, sigaction, signal,
};
use nix::sys::stat::{Mode, umask};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::time::ClockId;
use nix::unistd::{Gid, Uid, alarm, close, setfsgid, setfsuid};
use thiserror::Error;

/// An image may have its files belong to anyone and its directories closed to root.
pub const FOR_FILES: &[Capability] =
    &[Capability::CAP_DAC_OVERRIDE, Capability::CAP_DAC_READ_SEARCH, Capability::CAP_FOWNER];
/// What [`create_files_as`] needs besides.
pub const TO_BE_THE_OWNER: &[Capability] = &[Capability::CAP_SETGID, Capability::CAP_SETUID];
/// What a mount in the container needs besides.
pub const TO_MOUNT: &[Capability] = &[Capability::CAP_SYS_ADMIN];

/// What enters a bundle whose directories are closed to others than their owner.
pub const TO_READ: &[Capability] = &[Capability::CAP_DAC_READ_SEARCH];

/// A run takes a few milliseconds. What hangs, on a file system that does not answer or an engine that does not close
/// its pipe, must not keep a container's start hanging too.
const WORK: Duration = Duration::from_secs(30);
const LATE: &[u8] = b"error: divvy-hook: not done in time\n";

/// What could not be given up.
#[derive(Debug, Error)]
pub enum Error {
    /// The list of open descriptors.
    #[error("cannot list the open descriptors")]
    Descriptors {
        /// What the system said.
        source: std::io::Error,
    },
    /// The environment.
    #[error("cannot clear the environment")]
    Environment,
    /// A setting of the process.
    #[error("cannot change a setting of this process")]
    Process {
        /// What the system said.
        source: Errno,
    },
    /// A set of capabilities.
    #[error("cannot drop capabilities")]
    Capabilities {
        /// What the system said.
        source: CapsError,
    },
}

/// Closes what was inherited beside the standard streams, clears the environment and the signal mask, sets the umask to
/// 022 and a deadline of 30 seconds. A process that shares the pid namespace must not reach the host's files through this one, whose
/// root is still the host's: so it cannot be traced, nor looked into below /proc.
///
/// # Errors
/// When the environment stays, or it cannot be known what to close.
pub fn clean() -> Result<Deadline, Error> {
    close_inherited().map_err(|source| Error::Descriptors { source })?;
    // SAFETY: this is the first thing main does, so no other thread reads or writes the environment.
    #[expect(unsafe_code)]
    unsafe { nix::env::clearenv() }.map_err(|_| Error::Environment)?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    let process = |source| Error::Process { source };
    let mut deadline = Deadline::new().map_err(process)?;
    deadline.after(Duration::ZERO)?;
    set_no_new_privs().and_then(|()| set_dumpable(false)).map_err(process)?;
    Ok(deadline)
}

/// Ends this process with status 1 when the time is over; by SIGKILL a second later, should it wait for what holds up
/// signals.
pub struct Deadline {
    /// Lasts as long as the process.
    kill: ManuallyDrop<Timer>,
}

impl Deadline {
    fn new() -> nix::Result<Self> {
        catch_signals()?;
        // A file system whose server does not answer (FUSE, NFS) holds up all signals but this.
        let kill = SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 };
        let kill = Timer::new(ClockId::CLOCK_MONOTONIC, SigEvent::new(kill))?;
        Ok(Self { kill: ManuallyDrop::new(kill) })
    }

    /// Sets it anew: from now on there is `wait`, and then 30 seconds for what else is to do.
    ///
    /// # Errors
    /// Those of timer_settime(2).
    pub fn after(&mut self, wait: Duration) -> Result<(), Error> {
        let seconds = (wait + WORK).as_secs().try_into().unwrap_or(i32::MAX);
        alarm::set(seconds.unsigned_abs());
        let at = Expiration::OneShot(TimeSpec::new(i64::from(seconds) + 1, 0));
        self.kill.set(at, TimerSetTimeFlags::empty()).map_err(|source| Error::Process { source })
    }
}

fn catch_signals() -> nix::Result<()> {
    extern "C" fn late(_: libc::c_int) {
        // SAFETY: write(2) and _exit(2) are async-signal-safe (signal-safety(7)); the bytes are a constant's.
        #[expect(unsafe_code)]
        unsafe {
            libc::write(libc::STDERR_FILENO, LATE.as_ptr().cast(), LATE.len());
            libc::_exit(1)
        }
    }
    let action = SigAction::new(SigHandler::Handler(late), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does what is async-signal-safe, and never returns.
    #[expect(unsafe_code)]
    unsafe { sigaction(Signal::SIGALRM, &action) }?;
    SigSet::empty().thread_set_mask()?;
    // A limit on the size of files (RLIMIT_FSIZE) shall be an error of write(2), after which there is still a file to remove.
    // SAFETY: no handler is set.
    #[expect(unsafe_code)]
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }?;
    Ok(())
}

/// An engine's leaked descriptor of a directory is a way out of the container (CVE-2024-21626).
fn close_inherited() -> std::io::Result<()> {
    let names = std::fs::read_dir("/proc/self/fd")?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<std::io::Result<Vec<_>>>()?;
    let descriptors = names.iter().filter_map(|name| name.to_str()?.parse::<i32>().ok());
    for descriptor in descriptors.filter(|&descriptor| descriptor > 2) {
        // The directory's own is closed already.
        let _ = close(descriptor);
    }
    Ok(())
}

/// Drops all capabilities but those of these lists, of which a rootless caller may lack some or all. The bounding set
/// goes whole: nothing is ever executed.
///
/// # Errors
/// When one that is held does not go.
pub fn keep(wanted: &[&[Capability]]) -> Result<(), Error> {
    drop_others(&wanted.concat()).map_err(|source| Error::Capabilities { source })
}

fn drop_others(wanted: &[Capability]) -> Result<(), CapsError> {
    let mut held = caps::read(None, CapSet::Permitted)?;
    if held.is_empty() {
        return Ok(());
    }
    if held.contains(&Capability::CAP_SETPCAP) {
        caps::clear(None, CapSet::Bounding)?;
    }
    held.retain(|capability| wanted.contains(capability));
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &held)?;
    caps::set(None, CapSet::Permitted, &held)
}

/// Lets what is created from here on belong to the owner of the container's root, so that it is root's inside a user
/// namespace too; a root with shifted ids (mount_setattr(2), `MOUNT_ATTR_IDMAP`) even refuses what the host's root would
/// create. An owner without a number here shows as the overflow id, which is somebody else's: then nothing changes.
/// It takes effective capabilities away; [`keep`] follows.
pub fn create_files_as((user, group): (u32, u32)) {
    if user == overflow_id("/proc/sys/kernel/overflowuid")
        || group == overflow_id("/proc/sys/kernel/overflowgid")
    {
        return;
    }
    setfsgid(Gid::from_raw(group));
    setfsuid(Uid::from_raw(user));
    // The kernel takes such a change for a reason to forget it (PR_SET_DUMPABLE(2const)).
    let _ = set_dumpable(false);
}
