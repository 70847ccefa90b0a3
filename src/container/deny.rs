//! Keeps a container from devices of a pool that it was not granted, whatever nodes it makes itself. On cgroup v2 by one
//! more device program: the kernel asks every program of a cgroup and of those above it, and all have to allow, so what
//! the runtime attached stays as it is. On v1 by the device controller's own list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hooks::lease::DeniedBy;
use nix::errno::Errno;
use thiserror::Error;

use crate::container::cgroup::{self, Version};
use crate::sys::{self, Instruction};

/// What the programs are called, for `bpftool cgroup show`.
const NAME: &[u8; 16] = b"divvy_deny\0\0\0\0\0\0";

/// Why devices are not denied.
#[derive(Debug, Error)]
pub enum Error {
    /// The cgroup cannot be opened, or is none.
    #[error("cannot open the container's cgroup {path:?}")]
    Open {
        /// Its directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel did not take the program, or did not attach it, or does not tell.
    #[error("cannot {what} on the container's cgroup {path:?}")]
    Program {
        /// In words.
        what: &'static str,
        /// The cgroup's directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not among those that the kernel says are attached.
    #[error("the kernel says nothing of the device program that was attached to {path:?}")]
    NotThere {
        /// The cgroup's directory.
        path: PathBuf,
    },
    /// The device controller does not take it.
    #[error("cannot deny the device {major}:{minor} in {path:?}")]
    Controller {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// devices.deny of the cgroup.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The device controller still allows it.
    #[error("the device controller still allows {major}:{minor} in {path:?}")]
    StillAllowed {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
        /// devices.list of the cgroup.
        path: PathBuf,
    },
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        if matches!(self, Self::StillAllowed { .. }) {
            return Some(
                "start the container without --privileged and without a device cgroup rule for its kind",
            );
        }
        let (Self::Open { source, .. } | Self::Program { source, .. } | Self::Controller { source, .. }) =
            self
        else {
            return None;
        };
        Some(match Errno::from_raw(source.raw_os_error()?) {
            Errno::EPERM | Errno::EACCES => {
                "divvy serve needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN, and before Linux 5.11 \
                 LimitMEMLOCK=infinity in its unit; a program there that suffers no other beside it keeps it out too"
            }
            Errno::ENOSYS | Errno::EINVAL => {
                "device programs need Linux 4.15 with CONFIG_CGROUP_BPF; without them ask for a device by its own \
                 name, not for any of a pool"
            }
            Errno::E2BIG => "there are 64 device programs already: see bpftool cgroup show",
            Errno::ENOENT | Errno::ENODEV => "the container ended while it started: see the engine's log",
            _ => return None,
        })
    }
}

/// Denies character devices, as major and minor, to all processes of a cgroup. Asked again for the same ones, it finds it done.
///
/// # Errors
/// When it is not certain afterwards that they are denied.
pub fn deny(path: &Path, devices: &[(u32, u32)]) -> Result<DeniedBy, Error> {
    let open = |source| Error::Open { path: path.to_owned(), source };
    let cgroup = File::open(path).map_err(open)?;
    let devices: BTreeSet<(u32, u32)> = devices.iter().copied().collect();
    match cgroup::version(cgroup.as_fd()).map_err(open)? {
        Version::V2 => {
            by_program(cgroup.as_fd(), path, &program(&devices))?;
            Ok(DeniedBy::CgroupV2)
        }
        Version::V1 => {
            by_controller(path, &devices)?;
            Ok(DeniedBy::CgroupV1)
        }
    }
}

fn by_program(cgroup: BorrowedFd<'_>, path: &Path, program: &[Instruction]) -> Result<(), Error> {
    let failed = |what| move |source| Error::Program { what, path: path.to_owned(), source };
    let ours = sys::load_device_program(program, NAME).map_err(failed("load a device program"))?;
    let about = sys::program_info(ours.as_fd()).map_err(failed("look at the device program"))?;
    let before = divvys(cgroup).map_err(failed(ASK))?;
    if before.iter().all(|(_, there)| there.tag != about.tag) {
        sys::attach_device_program(cgroup, ours.as_fd()).map_err(failed("attach a device program"))?;
        if divvys(cgroup).map_err(failed(ASK))?.iter().all(|(_, there)| there.id != about.id) {
            return Err(Error::NotThere { path: path.to_owned() });
        }
    }
    let others = before.iter().filter(|(_, there)| there.tag != about.tag);
    detach(cgroup, others).map_err(failed("take an earlier device program off"))
}

const ASK: &str = "see which device programs are attached";

/// Takes off what an earlier container was denied in a cgroup that outlived it. On v1 the runtime writes all devices anew.
///
/// # Errors
/// When it cannot be taken off, or looked for.
pub fn lift(path: &Path) -> io::Result<()> {
    let cgroup = File::open(path)?;
    match cgroup::version(cgroup.as_fd())? {
        Version::V2 => detach(cgroup.as_fd(), divvys(cgroup.as_fd())?.iter()),
        Version::V1 => Ok(()),
    }
}

/// Allows what [`deny`] denied to a container that is about to start, as its spec does. A device program of v2 is replaced
/// by the next one.
///
/// # Errors
/// When the device controller does not take it.
pub fn allow(path: &Path, devices: &[(u32, u32)]) -> io::Result<()> {
    let cgroup = File::open(path)?;
    match cgroup::version(cgroup.as_fd())? {
        Version::V2 => Ok(()),
        Version::V1 => devices.iter().try_for_each(|(major, minor)| {
            fs::write(path.join("devices.allow"), format!("c {major}:{minor} rw"))
        }),
    }
}

/// The programs of divvy's on a cgroup.
fn divvys(cgroup: BorrowedFd<'_>) -> io::Result<Vec<(OwnedFd, sys::Program)>> {
    let ids = sys::device_programs(cgroup)?;
    // One that is gone meanwhile is nobody's any more.
    let there = ids.into_iter().filter_map(|id| sys::program_by_id(id).ok());
    let there = there.map(|program| sys::program_info(program.as_fd()).map(|info| (program, info)));
    let there: Vec<_> = there.collect::<io::Result<_>>()?;
    Ok(there.into_iter().filter(|(_, info)| info.name == *NAME).collect())
}

/// A cgroup may outlive its container and be the next one's, which was granted what this one was not.
fn detach<'a>(
    cgroup: BorrowedFd<'_>,
    mut programs: impl Iterator<Item = &'a (OwnedFd, sys::Program)>,
) -> io::Result<()> {
    programs.try_for_each(|(program, _)| sys::detach_device_program(cgroup, program.as_fd()))
}

/// Operations of BPF (linux/bpf_common.h, linux/bpf.h): `r = *(u32 *)(r1 + offset)`, jumps on a constant, `r = constant`,
/// `r &= constant`, and the end.
const LOAD: u8 = 0x61;
const JUMP_IF_EQUAL: u8 = 0x15;
const JUMP_IF_NOT: u8 = 0x55;
const JUMP: u8 = 0x05;
const SET: u8 = 0xb7;
const AND: u8 = 0x57;
const EXIT: u8 = 0x95;

/// `struct bpf_cgroup_dev_ctx` (linux/bpf.h): the kind of device in the lower half of a word of its own, then numbers.
const KIND: i16 = 0;
const MAJOR: i16 = 4;
const MINOR: i16 = 8;
const CHARACTER: i32 = 2;

/// A program that says 0, no, for these character devices, and 1 for everything else. For each major, what is not of it
/// goes on to the next.
fn program(devices: &BTreeSet<(u32, u32)>) -> Vec<Instruction> {
    let of = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let mut minors_of = BTreeMap::<u32, Vec<u32>>::new();
    for &(major, minor) in devices {
        minors_of.entry(major).or_default().push(minor);
    }
    // r2 is the kind, r3 the major, r4 the minor.
    let mut program = vec![
        of(LOAD, 0x12, KIND, 0),
        of(AND, 0x02, 0, 0xffff),
        of(JUMP_IF_EQUAL, 0x02, 2, CHARACTER),
        of(SET, 0x00, 0, 1),
        of(EXIT, 0, 0, 0),
        of(LOAD, 0x13, MAJOR, 0),
        of(LOAD, 0x14, MINOR, 0),
    ];
    for (major, minors) in minors_of {
        // Jumps are 16 bits wide, so each reaches no farther than over a bounded block.
        for minors in minors.chunks(BLOCK) {
            let len = minors.len() as i16;
            program.push(of(JUMP_IF_NOT, 0x03, len + 3, major.cast_signed()));
            let tests = minors.iter().zip((1..=len).rev());
            program.extend(tests.map(|(minor, to)| of(JUMP_IF_EQUAL, 0x04, to, minor.cast_signed())));
            program.extend([of(JUMP, 0, 2, 0), of(SET, 0x00, 0, 0), of(EXIT, 0, 0, 0)]);
        }
    }
    program.extend([of(SET, 0x00, 0, 1), of(EXIT, 0, 0, 0)]);
    program
}

const BLOCK: usize = 1024;

fn by_controller(path: &Path, devices: &BTreeSet<(u32, u32)>) -> Result<(), Error> {
    let (to, from) = (path.join("devices.deny"), path.join("devices.list"));
    for &(major, minor) in devices {
        fs::write(&to, format!("c {major}:{minor} rwm")).map_err(|source| Error::Controller {
            major,
            minor,
            path: to.clone(),
            source,
        })?;
    }
    let list = fs::read_to_string(&from).map_err(|source| Error::Open { path: from.clone(), source })?;
    match devices.iter().find(|&&(major, minor)| allows(&list, major, minor)) {
        Some(&(major, minor)) => Err(Error::StillAllowed { major, minor, path: from }),
        None => Ok(()),
    }
}

/// Whether devices.list of cgroup v1 allows a character device to be opened, after that was denied: lines are
/// `c 195:* rwm` (Documentation/admin-guide/cgroup-v1/devices.rst). Engines let every node be made (`c *:* m`), and one
/// that may not be opened harms nobody. `a *:* rwm` stands alone where everything is allowed but what is denied, which is
/// not listed (security/device_cgroup.c). A line that cannot be read allows it.
fn allows(list: &str, major: u32, minor: u32) -> bool {
    list.lines().any(|line| {
        let mut words = line.split_ascii_whitespace();
        let (kind, numbers) = (words.next(), words.next().and_then(|numbers| numbers.split_once(':')));
        let Some((of_major, of_minor)) = numbers else { return true };
        let opens = words.next().is_none_or(|access| access.contains(['r', 'w']));
        let has_kind = !matches!(kind, Some("a" | "b"));
        let is = |word: &str, number: u32| word == "*" || word.parse() == Ok(number);
        opens && has_kind && is(of_major, major) && is(of_minor, minor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says of a device: the kernel's rules for these few operations.
    fn run(program: &[Instruction], kind: u32, major: u32, minor: u32) -> i64 {
        // What is asked, as open(2) for reading and writing, stands in the upper half.
        let context = [6 << 16 | kind, major, minor];
        let mut registers = [0i64; 11];
        let mut at = 0;
        for _ in 0..program.len() {
            let Instruction { code, registers: both, offset, immediate } = program[at];
            let (to, from) = (usize::from(both & 15), both >> 4);
            let jump = match code {
                LOAD => {
                    assert_eq!(from, 1, "only r1 has an address");
                    registers[to] = i64::from(context[usize::try_from(offset).unwrap() / 4]);
                    false
                }
                AND => {
                    registers[to] &= i64::from(immediate);
                    false
                }
                SET => {
                    registers[to] = i64::from(immediate);
                    false
                }
                JUMP => true,
                JUMP_IF_EQUAL => registers[to] == i64::from(immediate),
                JUMP_IF_NOT => registers[to] != i64::from(immediate),
                EXIT => return registers[0],
                _ => panic!("unknown operation {code:#x}"),
            };
            assert!(offset >= 0, "a loop");
            at += 1 + if jump { usize::try_from(offset).unwrap() } else { 0 };
        }
        panic!("no end")
    }

    #[test]
    fn exactly_the_listed_character_devices_are_denied() {
        let capabilities = (0..3000).step_by(2).map(|minor| (510, minor));
        let lists: [BTreeSet<(u32, u32)>; 5] = [
            BTreeSet::new(),
            [(195, 1)].into(),
            [(195, 0), (195, 7), (195, 255), (226, 128)].into(),
            [(0, 0), (4095, 1_048_575)].into(),
            [(195, 3)].into_iter().chain(capabilities).collect(),
        ];
        for denied in lists {
            let program = program(&denied);
            let around = denied.iter().flat_map(|&(major, minor)| {
                [(major, minor), (major, minor + 1), (major + 1, minor), (minor, major)]
            });
            for (major, minor) in around.chain([(195, 2), (0, 0), (1, 3)]) {
                let is_allowed = !denied.contains(&(major, minor));
                assert_eq!(run(&program, 2, major, minor), i64::from(is_allowed), "c {major}:{minor}");
                assert_eq!(run(&program, 1, major, minor), 1, "b {major}:{minor}");
            }
        }
    }

    #[test]
    fn what_a_device_list_of_cgroup_v1_allows() {
        for (list, allowed) in [
            ("", false),
            ("a *:* rwm\n", false),
            ("c 1:3 rwm\nc 195:1 rw\n", true),
            ("c 1:3 rwm\nc 195:* w\n", true),
            ("c *:1 r\n", true),
            ("c *:1\n", true),
            ("c *:* m\nb *:* m\n", false),
            ("b *:* rwm\nc 195:0 rwm\nc 195:10 rwm\nc 19:51 rwm\n", false),
            ("what is this\n", true),
        ] {
            assert_eq!(allows(list, 195, 1), allowed, "{list}");
        }
    }
}
