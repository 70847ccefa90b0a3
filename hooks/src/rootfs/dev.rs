//! The container's own /dev. Runtimes mount a tmpfs there, which is another file system than the root's; a user may have
//! put the host's there instead (`-v /dev:/dev`), or a volume, and both can be tmpfs too. What tells them apart is where
//! else they are mounted: when a hook runs, the host's mounts are still in sight.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat, major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::resolve::{Mounts, place};
use super::{Error, Root, errno_of, failed, kind};

const DEV: &str = "/dev";
const MOUNTS: &str = "/proc/self/mountinfo";
/// Hosts with thousands of containers have a few MiB, in bytes.
const MOUNTS_LIMIT: u64 = 64 << 20;

impl Root {
    /// Whether `path` leads to a character device. Mounts count, being how rootless containers get theirs.
    ///
    /// # Errors
    /// Anything but its absence.
    pub fn is_device(&self, path: &Path) -> Result<bool, Error> {
        let found = self.look(path, Mounts::Cross)?;
        Ok(found.is_some_and(|(_, stat)| kind(&stat) == SFlag::S_IFCHR))
    }

    /// The directory /dev, as a root of its own: paths in it are without `/dev`.
    ///
    /// # Errors
    /// [`Error::ForeignMount`] if it is not a tmpfs that this container alone has; what the calls said.
    pub fn devices(&self) -> Result<Self, Error> {
        let dev = Path::new(DEV);
        let foreign = || Error::ForeignMount { path: dev.to_owned() };
        let handle = self.find(dev, OFlag::O_DIRECTORY, Mounts::Cross)?;
        let stat = fstat(&handle).map_err(|errno| failed("fstat", dev, errno))?;
        let file_system = fstatfs(&handle).map_err(|errno| failed("fstatfs", dev, errno))?;
        if file_system.filesystem_type() != TMPFS_MAGIC {
            return Err(foreign());
        }
        let mounts = read_mounts().map_err(|errno| failed("read", Path::new(MOUNTS), errno))?;
        let place = std::fs::read_link(place(&handle)).map_err(|error| failed("readlink", dev, errno_of(&error)))?;
        let number = format!("{}:{}", major(stat.st_dev), minor(stat.st_dev));
        if !is_mounted_there_alone(&mounts, &number, &place) {
            return Err(foreign());
        }
        Ok(Self { handle, owner: self.owner })
    }
}

fn read_mounts() -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    let file = File::open(MOUNTS).map_err(|error| errno_of(&error))?;
    file.take(MOUNTS_LIMIT).read_to_end(&mut text).map_err(|error| errno_of(&error))?;
    if text.len() as u64 == MOUNTS_LIMIT { Err(Errno::EFBIG) } else { Ok(text) }
}

/// Whether the file system with this device number is mounted once, whole, and at `place`
/// (proc_pid_mountinfo(5): id, parent, major:minor, root of the mount, mount point).
fn is_mounted_there_alone(mounts: &[u8], number: &str, place: &Path) -> bool {
    let fields = |line: &'_ [u8]| {
        let mut fields = line.split(|byte| *byte == b' ').skip(2);
        let (number, top, place) = (fields.next()?, fields.next()?, fields.next()?);
        Some((number.to_owned(), top == b"/", unescaped(place)))
    };
    let lines = mounts.split(|byte| *byte == b'\n').filter_map(fields);
    let mut of_it = lines.filter(|(of, _, _)| of == number.as_bytes());
    let only = of_it.next().is_some_and(|(_, is_whole, at)| is_whole && at == place);
    only && of_it.next().is_none()
}

/// A path as the kernel writes it there: blank, tab, newline and backslash as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *byte == b'\\').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match octal {
            Some(escaped) => {
                path.push(escaped);
                rest = &after[3..];
            }
            None => {
                path.push(*byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_file_system_of_the_containers_own_counts() {
        let place = Path::new("/var/lib/x y/merged/dev");
        let host = "22 1 8:1 / / rw - ext4 /dev/sda rw\n25 22 0:5 / /dev rw - devtmpfs udev rw\n";
        let own = "90 22 0:40 / /var/lib/x\\040y/merged rw - overlay o rw\n";
        for (mounts, number, expected) in [
            ("91 90 0:77 / /var/lib/x\\040y/merged/dev rw - tmpfs t rw\n", "0:77", true),
            // The host's own, bound into the container.
            ("91 90 0:5 / /var/lib/x\\040y/merged/dev rw - devtmpfs udev rw\n", "0:5", false),
            // A part of a tmpfs that is mounted nowhere else.
            ("91 90 0:77 /part /var/lib/x\\040y/merged/dev rw - tmpfs t rw\n", "0:77", false),
            // Another container's.
            (
                "91 90 0:77 / /var/lib/x\\040y/merged/dev rw - tmpfs t rw\n92 22 0:77 / /var/lib/z/merged/dev rw - tmpfs t rw\n",
                "0:77",
                false,
            ),
            // The same one elsewhere below the root, where the host may have it too.
            (
                "91 90 0:77 / /var/lib/x\\040y/merged/dev rw - tmpfs t rw\n92 90 0:77 / /var/lib/x\\040y/merged/dev2 rw - tmpfs t rw\n",
                "0:77",
                false,
            ),
            // What is mounted lies elsewhere.
            ("91 90 0:77 / /var/lib/x\\040y/merged2/dev rw - tmpfs t rw\n", "0:77", false),
            ("", "0:77", false),
        ] {
            let text = format!("{host}{own}{mounts}");
            assert_eq!(is_mounted_there_alone(text.as_bytes(), number, place), expected, "{mounts}");
        }
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        for (field, path) in [("/a\\040b\\012c\\134", "/a b\nc\\"), ("/a\\", "/a\\"), ("/\\9zz", "/\\9zz")] {
            assert_eq!(unescaped(field.as_bytes()), Path::new(path));
        }
    }
}
