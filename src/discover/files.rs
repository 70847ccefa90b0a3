//! Where discovery reads files: this machine, a simulated host's tree, or a recorded host. All answer alike, so that
//! everything above this trait is the same code for them.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hooks::ldcache::Cache;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstatat};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use serde::{Deserialize, Serialize};

const RETRIES: u32 = 1000;
const TEXT_LIMIT: u64 = 16 << 20;
const CACHE_LIMIT: u64 = 16 << 20;
/// A driver library's dynamic section has some hundred entries of 16 bytes.
const DYNAMIC_LIMIT: u64 = 1 << 20;

/// A character device as it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Device number, major part.
    pub major: u32,
    /// Device number, minor part.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Group that owns it. Records of before it was noted have none.
    #[serde(default, skip_serializing_if = "is_root")]
    pub gid: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_root(gid: &u32) -> bool {
    *gid == 0
}

/// Reads of one host. Paths are absolute; those of driver files and device nodes are without the driver root
/// and device root, as a container sees them.
pub trait Files {
    /// A text file of the host itself, outside both roots: /proc, /sys, CDI specs (at most 16 MiB, which 16 GPUs of 1024
    /// shares need a fifth of).
    fn text(&self, path: &Path) -> io::Result<String>;
    /// File names in a directory of the host itself, sorted.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// File names in a directory of the driver root, sorted.
    fn driver_names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// File names in a directory of the device root, sorted.
    fn device_names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// The file a driver path leads to after all links, within the driver root.
    fn driver_real_path(&self, path: &Path) -> io::Result<PathBuf>;
    /// The same of a regular file; `InvalidData` for anything else.
    fn driver_file(&self, path: &Path) -> io::Result<PathBuf>;
    /// The same of a socket that is no link, in a directory that root alone may change. Whoever may change it could put
    /// a link to anything in the socket's place, and engines follow links: `PermissionDenied`. `InvalidData` for
    /// anything else.
    fn driver_socket(&self, path: &Path) -> io::Result<PathBuf>;
    /// Libraries that can be the driver's in the loader's cache of the driver root, by SONAME; none where it has no
    /// cache.
    fn cached_libraries(&self) -> Vec<(String, PathBuf)>;
    /// DT_SONAME of a shared library in the driver root; none if it has none. `Unsupported` for a 32-bit one.
    fn soname(&self, path: &Path) -> io::Result<Option<String>>;
    /// The character device at a path in the device root. `InvalidData` if something else stands there.
    fn node(&self, path: &Path) -> io::Result<Node>;
    /// The same path on this machine.
    fn node_path(&self, path: &Path) -> PathBuf;
}

/// This machine: driver files under `driver_root`, nodes under `dev_root`, /proc and /sys as they are.
#[derive(Debug)]
pub struct Live {
    driver_root: File,
    dev_root: PathBuf,
}

impl Live {
    /// Opens the driver root; its paths, absolute links included, are resolved inside it.
    pub fn open(driver_root: &Path, dev_root: &Path) -> io::Result<Self> {
        Ok(Self { driver_root: open_directory(driver_root)?, dev_root: dev_root.to_path_buf() })
    }

    fn open_driver_file(&self, path: &Path, flags: OFlag) -> io::Result<File> {
        let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        // The kernel gives up on `..` in a link while anything is renamed or mounted: again, for a while.
        for _ in 0..RETRIES {
            match openat2(self.driver_root.as_fd(), path, how) {
                Err(Errno::EAGAIN) => std::thread::sleep(Duration::from_millis(1)),
                opened => return Ok(opened?.into()),
            }
        }
        Err(Errno::EAGAIN.into())
    }

    /// Where a handle's file lies, without the driver root.
    fn path_of(&self, handle: &File) -> io::Result<PathBuf> {
        let real = handle_path(handle)?;
        let root = handle_path(&self.driver_root)?;
        let inside = real.strip_prefix(&root).map_err(|_| io::ErrorKind::NotFound)?;
        Ok(Path::new("/").join(inside))
    }

    /// Not a FIFO, which would wait for its writer.
    fn open_regular(&self, path: &Path) -> io::Result<File> {
        let file = self.open_driver_file(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }
}

impl Files for Live {
    fn text(&self, path: &Path) -> io::Result<String> {
        let mut text = String::new();
        // Opening a device can do something.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        file.take(TEXT_LIMIT + 1).read_to_string(&mut text)?;
        if text.len() as u64 > TEXT_LIMIT { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        names_in(open_directory(dir)?)
    }

    fn driver_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        names_in(self.open_driver_file(dir, OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)
    }

    fn device_names(&self, dir: &Path) -> io::Result<Vec<String>> {
        names_in(open_directory(&self.node_path(dir))?)
    }

    fn driver_real_path(&self, path: &Path) -> io::Result<PathBuf> {
        self.path_of(&self.open_driver_file(path, OFlag::O_PATH)?)
    }

    fn driver_file(&self, path: &Path) -> io::Result<PathBuf> {
        let file = self.open_driver_file(path, OFlag::O_PATH)?;
        if file.metadata()?.is_file() { self.path_of(&file) } else { Err(wrong("not a regular file")) }
    }

    fn driver_socket(&self, path: &Path) -> io::Result<PathBuf> {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(wrong("not a socket"));
        };
        let dir = self.open_driver_file(dir, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let found = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK {
            return Err(wrong("not a socket"));
        }
        let metadata = dir.metadata()?;
        if metadata.uid() != 0 || metadata.permissions().mode() & 0o022 != 0 {
            let who = format!("user {}, who is not root, may put anything in its place", metadata.uid());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, who));
        }
        Ok(self.path_of(&dir)?.join(name))
    }

    fn cached_libraries(&self) -> Vec<(String, PathBuf)> {
        let mut cache = Vec::new();
        if let Ok(file) = self.open_regular(Path::new("/etc/ld.so.cache")) {
            let _ = file.take(CACHE_LIMIT).read_to_end(&mut cache);
        }
        let cache = Cache::parse(&cache).unwrap_or_default();
        let of_driver = cache.libraries().filter(|(soname, _)| is_driver_library(soname));
        of_driver.map(|(soname, path)| (soname.to_owned(), path.to_path_buf())).collect()
    }

    fn soname(&self, path: &Path) -> io::Result<Option<String>> {
        let mut file = self.open_regular(path)?;
        let mut class = [0; 5];
        if file.read_exact(&mut class).is_ok() && class == *b"\x7fELF\x01" {
            return Err(io::ErrorKind::Unsupported.into());
        }
        elf_soname(&object::ReadCache::new(file))
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn node(&self, path: &Path) -> io::Result<Node> {
        node_at(&self.node_path(path))
    }

    fn node_path(&self, path: &Path) -> PathBuf {
        join_root(&self.dev_root, path)
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Not a FIFO, which would wait for its writer, nor a device.
pub fn open_directory(path: &Path) -> io::Result<File> {
    let flags = (OFlag::O_DIRECTORY | OFlag::O_NONBLOCK).bits();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

/// Whether a library of this name can be the driver's.
fn is_driver_library(soname: &str) -> bool {
    soname.contains("nvidia")
        || ["libcuda.", "libcudadebugger.", "libnvcuvid.", "libnvoptix."]
            .iter()
            .any(|stem| soname.starts_with(stem))
}

/// The names in an open directory, sorted. One that is not UTF-8 is nothing that discovery looks for.
fn names_in(dir: File) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in nix::dir::Dir::from_fd(dir.into())?.iter() {
        if let Ok(name) = entry?.file_name().to_str()
            && name != "."
            && name != ".."
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The character device at a path of this machine. `InvalidData` if something else stands there: a link too, which
/// engines do not follow.
pub fn node_at(path: &Path) -> io::Result<Node> {
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a symbolic link, which engines do not follow",
        ));
    }
    if !metadata.file_type().is_char_device() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a character device"));
    }
    let number = metadata.rdev();
    Ok(Node {
        major: device_part(nix::sys::stat::major(number)),
        minor: device_part(nix::sys::stat::minor(number)),
        mode: metadata.permissions().mode() & 0o7777,
        gid: metadata.gid(),
    })
}

/// Where an open handle's file lies, by the kernel's word.
fn handle_path(handle: &File) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", handle.as_raw_fd()))
}

/// Linux device numbers are 12 and 20 bits wide; nix hands them out in 64.
fn device_part(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// `path` (absolute) below `root`.
pub fn join_root(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// DT_SONAME of a 64-bit shared library (ELF gABI, "Dynamic Section"), reading only the headers, the dynamic
/// section and the string. None where the file is no shared library or carries no name.
fn elf_soname<'data, R: object::ReadRef<'data>>(data: R) -> Result<Option<String>, object::Error> {
    type Header = object::elf::FileHeader64<object::Endianness>;
    let header = Header::parse(data)?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, data)?;
    let is_too_long = |s: &&object::elf::ProgramHeader64<_>| {
        s.p_type(endian) == object::elf::PT_DYNAMIC && s.p_filesz(endian) > DYNAMIC_LIMIT
    };
    if segments.iter().any(|segment| is_too_long(&segment)) {
        return Ok(None);
    }
    let Some(dynamic) = segments.iter().find_map(|s| s.dynamic(endian, data).transpose()).transpose()? else {
        return Ok(None);
    };
    let value = |tag: object::elf::DynamicTag| {
        dynamic.iter().find(|d| d.d_tag(endian) == tag).map(|d| d.d_val(endian))
    };
    let (Some(strings), Some(name)) = (value(object::elf::DT_STRTAB), value(object::elf::DT_SONAME)) else {
        return Ok(None);
    };
    // DT_STRTAB is an address; the segment that holds it says where it lies in the file.
    let address = strings.saturating_add(name);
    let Some((offset, end)) = segments.iter().find_map(|segment| {
        let start = segment.p_vaddr(endian);
        let inside = address.checked_sub(start).filter(|at| *at < segment.p_filesz(endian))?;
        let offset = segment.p_offset(endian);
        (segment.p_type(endian) == object::elf::PT_LOAD)
            .then(|| Some((offset.checked_add(inside)?, offset.checked_add(segment.p_filesz(endian))?)))?
    }) else {
        return Ok(None);
    };
    let name = data.read_bytes_at_until(offset..end, 0).unwrap_or_default();
    Ok(Some(OsStr::from_bytes(name).to_string_lossy().into_owned()).filter(|name| !name.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discover::sim::shared_object;

    #[test]
    fn a_soname_is_read_and_no_number_is_believed() {
        let good = shared_object("libx.so.1");
        assert_eq!(elf_soname(&good[..]).unwrap().as_deref(), Some("libx.so.1"));
        // Offset, address and size of the first segment and the second, each as large as can be.
        for at in [0x40 + 8, 0x40 + 16, 0x40 + 32, 0x78 + 8, 0x78 + 16, 0x78 + 32] {
            for value in [u64::MAX, u64::MAX - 0x7f, 1 << 40] {
                let mut bad = good.clone();
                bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
                let _ = elf_soname(&bad[..]);
            }
        }
    }
}
