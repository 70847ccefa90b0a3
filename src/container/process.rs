//! What /proc says of a process. It is true of the process that a pidfd is of, if that still runs afterwards: nobody gets
//! a process id that is taken.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;

/// The longest text about a process that is read, in bytes: a command line has no other bound.
const MOST: u64 = 64 << 10;

/// From /proc/PID/stat (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Process id of its parent; 0 where that is out of sight.
    pub parent: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

impl Stat {
    /// Reads that of a process.
    ///
    /// # Errors
    /// When the process is gone, or the kernel writes what is not known here.
    pub fn read(pid: i32) -> io::Result<Self> {
        Self::parse(&text(pid, "stat")?).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// The command's name stands in brackets, and may have brackets and blanks itself: the last one ends it.
    fn parse(stat: &str) -> Option<Self> {
        let (_, fields) = stat.rsplit_once(')')?;
        // The first of these is field 3.
        let mut fields = fields.split_ascii_whitespace().skip(1);
        let parent = fields.next()?.parse().ok()?;
        let start_time = fields.nth(17)?.parse().ok()?;
        Some(Self { parent, start_time })
    }
}

/// A file of a process below /proc, as text; bytes that are none are replaced.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn text(pid: i32, file: &str) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{file}"))?.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// What a user id of a process's user namespace is in this process's (user_namespaces(7), "uid_map"); none if it is
/// nothing there.
///
/// # Errors
/// When the process is gone, or may not be looked into.
pub fn user_id(pid: i32, inside: u32) -> io::Result<Option<u32>> {
    Ok(mapped(&text(pid, "uid_map")?, inside))
}

/// A line has the first id inside, the first id here, and how many follow each other.
fn mapped(map: &str, inside: u32) -> Option<u32> {
    map.lines().find_map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u32>().ok());
        let (first, here, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        let offset = inside.checked_sub(first).filter(|offset| *offset < count)?;
        // The last number stands for none.
        here.checked_add(offset).filter(|id| *id != u32::MAX)
    })
}

/// One namespace: device and inode of its file in /proc/PID/ns (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    device: u64,
    /// The number that it is known by.
    pub inode: u64,
}

impl Namespace {
    /// That of a process; kind as `mnt`, `pid`, `user`.
    ///
    /// # Errors
    /// When the process is gone, or may not be looked into.
    pub fn of(pid: i32, kind: &str) -> io::Result<Self> {
        Ok(Self::from(&fs::metadata(format!("/proc/{pid}/ns/{kind}"))?))
    }

    /// That of this process.
    ///
    /// # Errors
    /// Without /proc.
    pub fn own(kind: &str) -> io::Result<Self> {
        Ok(Self::from(&fs::metadata(format!("/proc/self/ns/{kind}"))?))
    }

    /// That of an open file.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::from(&file.metadata()?))
    }

    fn from(metadata: &fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// The boot id: one for each time that this machine was started.
///
/// # Errors
/// Without /proc.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_is_read_whatever_the_command_is_called() {
        let rest = "S 7 9 9 0 -1 4194304 1 0 0 0 5 6 0 0 20 0 1 0 4711 8192 100 18446744073709551615 1 1\n";
        for command in ["sh", "a b", ")", "x) S 1 (", "((", ""] {
            let read = Stat::parse(&format!("12 ({command}) {rest}"));
            assert_eq!(read, Some(Stat { parent: 7, start_time: 4711 }), "{command}");
        }
        for wrong in ["", "12 (sh", "12 (sh)", "12 (sh) S 7 9 9 0", "12 (sh) S x 9"] {
            assert_eq!(Stat::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn users_of_a_namespace_are_counted_as_here() {
        let nested = "         0       1000          1\n         1     100000      65536\n";
        for (map, inside, here) in [
            ("0 0 4294967295\n", 1000, Some(1000)),
            ("0 0 4294967295\n", u32::MAX, None),
            (nested, 0, Some(1000)),
            (nested, 1, Some(100_000)),
            (nested, 65536, Some(165_535)),
            (nested, 65537, None),
            // A namespace beside this one.
            ("0 4294967295 1\n", 0, None),
            ("0 4294967290 10\n", 8, None),
            ("", 0, None),
            ("0 x 1\n0 7\n", 0, None),
        ] {
            assert_eq!(mapped(map, inside), here, "{map} {inside}");
        }
        let own = nix::unistd::geteuid().as_raw();
        assert!(user_id(i32::try_from(std::process::id()).unwrap(), own).is_ok());
    }

    #[test]
    fn this_process_is_its_parents_child() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = Stat::read(pid).unwrap();
        assert_eq!(stat.parent, i32::try_from(std::os::unix::process::parent_id()).unwrap());
        assert!(Stat::read(stat.parent).is_ok_and(|parent| parent.start_time <= stat.start_time));
        assert_eq!(Namespace::of(pid, "mnt").unwrap(), Namespace::own("mnt").unwrap());
        assert_ne!(Namespace::own("pid").unwrap(), Namespace::own("mnt").unwrap());
    }
}
