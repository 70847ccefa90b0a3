//! What this process's mount namespace holds (proc_pid_mountinfo(5)). When a hook runs, the host's mounts are still in
//! sight beside the container's.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::errno_of;

const MOUNTS: &str = "/proc/thread-self/mountinfo";
/// Hosts with thousands of containers have a few MiB, in bytes.
const MOUNTS_LIMIT: u64 = 64 << 20;

/// Whether the file system with this device number is mounted once, whole, and at `place`.
///
/// # Errors
/// Those of open(2) and read(2); EFBIG.
pub fn is_mounted_there_alone(number: &str, place: &Path) -> Result<bool, Errno> {
    Ok(is_alone(&read()?, number, place))
}

/// Whether what is mounted below the mount with this id shows in other mount namespaces too (mount_namespaces(7)).
///
/// # Errors
/// Those of open(2) and read(2); EFBIG; ENOENT if there is no such mount.
pub fn is_shared(id: u64) -> Result<bool, Errno> {
    shares(&read()?, id).ok_or(Errno::ENOENT)
}

fn read() -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    let file = File::open(MOUNTS).map_err(|error| errno_of(&error))?;
    file.take(MOUNTS_LIMIT).read_to_end(&mut text).map_err(|error| errno_of(&error))?;
    if text.len() as u64 == MOUNTS_LIMIT { Err(Errno::EFBIG) } else { Ok(text) }
}

/// A line's fields: id, parent, major:minor, root of the mount, mount point, options, optional fields, `-`, and so on.
fn fields(mounts: &[u8]) -> impl Iterator<Item = std::slice::Split<'_, u8, fn(&u8) -> bool>> {
    let is_blank: fn(&u8) -> bool = |byte| *byte == b' ';
    mounts.split(|byte| *byte == b'\n').map(move |line| line.split(is_blank))
}

fn is_alone(mounts: &[u8], number: &str, place: &Path) -> bool {
    let mut of_it = fields(mounts).filter_map(|mut fields| {
        let (of, top, at) = (fields.nth(2)?, fields.next()?, fields.next()?);
        (of == number.as_bytes()).then(|| (top == b"/", unescaped(at)))
    });
    let only = of_it.next().is_some_and(|(is_whole, at)| is_whole && at == place);
    only && of_it.next().is_none()
}

fn shares(mounts: &[u8], id: u64) -> Option<bool> {
    let id = id.to_string();
    let mut line = fields(mounts).find(|fields| fields.clone().next() == Some(id.as_bytes()))?;
    Some(line.by_ref().skip(6).take_while(|field| *field != b"-").any(|field| field.starts_with(b"shared:")))
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
            assert_eq!(is_alone(text.as_bytes(), number, place), expected, "{mounts}");
        }
    }

    #[test]
    fn propagation_is_told_by_mount() {
        let text = "22 1 8:1 / / rw shared:1 - ext4 /dev/sda rw
90 22 0:40 / /r rw,nosuid master:1 propagate_from:2 - proc proc rw
91 22 0:41 / /s rw master:1 shared:9 - proc shared:5 rw
92 22 0:42 / /t rw - proc shared:5 rw
";
        for (id, expected) in
            [(22, Some(true)), (90, Some(false)), (91, Some(true)), (92, Some(false)), (9, None)]
        {
            assert_eq!(shares(text.as_bytes(), id), expected, "{id}");
        }
    }

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        for (field, path) in [("/a\\040b\\012c\\134", "/a b\nc\\"), ("/a\\", "/a\\"), ("/\\9zz", "/\\9zz")] {
            assert_eq!(unescaped(field.as_bytes()), Path::new(path));
        }
    }
}
