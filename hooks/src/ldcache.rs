//! glibc's `/etc/ld.so.cache` as pure functions on bytes: read, add the driver's libraries, write.
//!
//! No `ldconfig` runs: the image's is hostile, the host's may not know the image's format, and either costs more than
//! this. The format is glibc's `sysdeps/generic/dl-cache.h`, what the loader makes of it `elf/dl-cache.c`, what
//! ldconfig writes `elf/cache.c`. All that glibc's loader reads is read: the format of 2.2 and later, alone or behind
//! the older one, and the older one alone. Written is the newer one, which every such loader reads.
//! A cache comes from the image: every offset is checked, and no cache makes this panic, hang or grow.

mod read;

use std::cmp::Ordering;
use std::ffi::{OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use thiserror::Error;

/// The largest cache that is read, and the most bytes its strings may come to. A full desktop has about 200 KiB.
pub const LIMIT: usize = 16 << 20;

/// What the loader of this machine's kind asks of an entry (`FLAG_ELF_LIBC6` with `FLAG_X8664_LIB64` or
/// `FLAG_AARCH64_LIB64`, glibc's `sysdeps/generic/ldconfig.h`).
#[cfg(target_arch = "x86_64")]
pub const FLAGS: u32 = 0x0303;
/// What the loader of this machine's kind asks of an entry.
#[cfg(target_arch = "aarch64")]
pub const FLAGS: u32 = 0x0a03;

const OLD_MAGIC: &[u8] = b"ld.so-1.7.0";
const OLD_HEADER: usize = 16;
const OLD_ENTRY: usize = 12;
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
const HEADER: usize = 48;
const ENTRY: usize = 24;
const LITTLE_ENDIAN: u8 = 2;
const EXTENSION_MAGIC: u32 = 0xeaa4_2174;
const EXTENSION_HEADER: usize = 8;
const SECTION: usize = 16;
const GENERATOR: u32 = 0;
const GLIBC_HWCAPS: u32 = 1;

/// Why bytes are no cache that this machine's loader could use.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Error {
    /// Neither of glibc's formats.
    #[error("it is not a library cache of glibc's")]
    Magic,
    /// Written for a machine of the other byte order, or marked invalid.
    #[error("its byte order is not this machine's")]
    ByteOrder,
    /// Something lies outside the file.
    #[error("{what} at byte {offset} runs past the end")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where, in bytes from the start of the file.
        offset: usize,
    },
    /// A string longer than any path, or with no end.
    #[error("the string at byte {offset} has no end")]
    Unterminated {
        /// Where, in bytes from the start of the file.
        offset: usize,
    },
    /// The extension directory has no magic number or is not aligned.
    #[error("its extension directory at byte {offset} is malformed")]
    Extension {
        /// Where, in bytes from the start of the file.
        offset: usize,
    },
    /// Entries out of order, so that the loader's binary search would miss some.
    #[error("entry {index} is out of order")]
    Unsorted {
        /// Counted from 0.
        index: usize,
    },
    /// More than [`LIMIT`] bytes of strings, or of file.
    #[error("it holds more than {limit} bytes")]
    TooLarge {
        /// In bytes.
        limit: usize,
    },
}

/// A library cache. It borrows its strings from the bytes it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache<'a> {
    entries: Vec<Entry<'a>>,
    /// Names of `glibc-hwcaps` subdirectories; entries with bit 62 of `hwcap` index into it.
    hwcaps: Vec<&'a [u8]>,
    /// What wrote the cache, as `ldconfig -p` shows it at the end.
    generator: &'a [u8],
}

/// One library of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    name: &'a [u8],
    path: &'a [u8],
    flags: u32,
    osversion: u32,
    hwcap: u64,
}

impl<'a> Entry<'a> {
    /// A library for this machine's kind, found at `path` by programs that ask for `name`.
    pub fn new(name: &'a str, path: &'a Path) -> Self {
        Self {
            name: name.as_bytes(),
            path: path.as_os_str().as_bytes(),
            flags: FLAGS,
            osversion: 0,
            hwcap: 0,
        }
    }
}

impl Default for Cache<'_> {
    fn default() -> Self {
        Self { entries: Vec::new(), hwcaps: Vec::new(), generator: b"divvy-hook" }
    }
}

impl<'a> Cache<'a> {
    /// Every library of this machine's kind: the name that programs ask for, and where it is found. Names that are not
    /// UTF-8 are left out.
    pub fn libraries(&self) -> impl Iterator<Item = (&'a str, &'a Path)> {
        let of_kind = self.entries.iter().filter(|entry| entry.flags == FLAGS);
        of_kind.filter_map(|entry| {
            Some((std::str::from_utf8(entry.name).ok()?, Path::new(OsStr::from_bytes(entry.path))))
        })
    }

    /// The paths of the libraries for this machine's kind that answer to `soname`, the loader's choice first.
    pub fn lookup(&self, soname: &str) -> impl Iterator<Item = &'a Path> {
        let matches = move |entry: &&Entry<'_>| entry.flags == FLAGS && entry.name == soname.as_bytes();
        self.entries.iter().filter(matches).map(|entry| Path::new(OsStr::from_bytes(entry.path)))
    }

    /// The paths of all libraries, of whatever kind of machine.
    pub fn paths(&self) -> impl Iterator<Item = &'a Path> {
        self.entries.iter().map(|entry| Path::new(OsStr::from_bytes(entry.path)))
    }

    /// Takes out every entry whose path `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&Path) -> bool) {
        self.entries.retain(|entry| keep(Path::new(OsStr::from_bytes(entry.path))));
    }

    /// Puts `ours` before all entries of the same name, in the order given, and drops the copies of them that an
    /// earlier merge left. Every other entry stays.
    ///
    /// The loader takes the first entry that fits, so ours win even over `glibc-hwcaps` variants of the same name
    /// (`search_cache` in `elf/dl-cache.c`).
    ///
    /// But the numbers in names wrap there at 32 bits, and three that do may stand in a circle in which the search loses
    /// its way. So of ours, which an image may have named, none with such a number is entered, and of the others those
    /// are dropped that could hide one of ours. No library is called so.
    pub fn merge(&mut self, ours: &[Entry<'a>]) {
        let ours: Vec<_> = ours.iter().filter(|entry| !has_long_number(entry.name)).copied().collect();
        self.entries.retain(|entry| !ours.contains(entry) && !hides(entry, &ours));
        // In a circle, what is gone may have been all that kept its neighbours in order.
        self.entries.dedup_by(|entry, last| compare(last.name, entry.name) == Ordering::Less);
        for entry in ours.iter().rev() {
            let before = |other: &Entry<'_>| compare(other.name, entry.name) == Ordering::Greater;
            let at = self.entries.partition_point(before);
            self.entries.insert(at, *entry);
        }
    }

    /// The cache as ldconfig would write it, in the format without the older one. The same cache gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut strings = Strings { base: HEADER + self.entries.len() * ENTRY, bytes: Vec::new() };
        let mut entries = Vec::with_capacity(self.entries.len() * ENTRY);
        for entry in &self.entries {
            let (name, path) = strings.pair(entry.name, entry.path);
            entries.extend(entry.flags.to_le_bytes());
            entries.extend(name.to_le_bytes());
            entries.extend(path.to_le_bytes());
            entries.extend(entry.osversion.to_le_bytes());
            entries.extend(entry.hwcap.to_le_bytes());
        }
        let hwcaps: Vec<u8> = self.hwcaps.iter().flat_map(|name| strings.add(name).to_le_bytes()).collect();
        let end = (strings.base + strings.bytes.len()).next_multiple_of(4);
        let extensions = self.extensions(end, &hwcaps);

        let mut bytes = Vec::with_capacity(end + extensions.len());
        bytes.extend(MAGIC);
        bytes.extend(offset(self.entries.len()).to_le_bytes());
        bytes.extend(offset(strings.bytes.len()).to_le_bytes());
        bytes.extend([LITTLE_ENDIAN, 0, 0, 0]);
        bytes.extend(if extensions.is_empty() { 0 } else { offset(end) }.to_le_bytes());
        bytes.resize(HEADER, 0);
        bytes.extend(entries);
        bytes.extend(strings.bytes);
        if !extensions.is_empty() {
            bytes.resize(end, 0);
            bytes.extend(extensions);
        }
        bytes
    }

    /// The extension directory and its sections, for the place `at` in the file.
    fn extensions(&self, at: usize, hwcaps: &[u8]) -> Vec<u8> {
        let sections = [(GLIBC_HWCAPS, hwcaps), (GENERATOR, self.generator)];
        let sections: Vec<_> = sections.into_iter().filter(|(_, data)| !data.is_empty()).collect();
        if sections.is_empty() {
            return Vec::new();
        }
        let mut bytes = Vec::new();
        bytes.extend(EXTENSION_MAGIC.to_le_bytes());
        bytes.extend(offset(sections.len()).to_le_bytes());
        // The hwcaps come first, being the section that must be aligned.
        let mut data_at = at + EXTENSION_HEADER + sections.len() * SECTION;
        for (tag, data) in &sections {
            bytes.extend([*tag, 0, offset(data_at), offset(data.len())].map(u32::to_le_bytes).as_flattened());
            data_at += data.len();
        }
        bytes.extend(sections.iter().flat_map(|(_, data)| *data));
        bytes
    }
}

/// The string table being written.
struct Strings {
    base: usize,
    bytes: Vec<u8>,
}

impl Strings {
    fn add(&mut self, string: &[u8]) -> u32 {
        let at = offset(self.base + self.bytes.len());
        self.bytes.extend(string);
        self.bytes.push(0);
        at
    }

    /// Offsets of a name and a path. A name that ends its path is the tail of the same string, as in ldconfig's.
    fn pair(&mut self, name: &[u8], path: &[u8]) -> (u32, u32) {
        let path_at = self.add(path);
        if path.ends_with(name) {
            (path_at + offset(path.len() - name.len()), path_at)
        } else {
            (self.add(name), path_at)
        }
    }
}

/// An offset in a file of at most [`LIMIT`] bytes of strings and of entries, far below 4 GiB.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The order of names in a cache, which the file holds descending.
fn compare(left: &[u8], right: &[u8]) -> Ordering {
    order(left, right).0
}

/// Whether the place of an entry among `ours` hangs on a number that may wrap.
fn hides(entry: &Entry<'_>, ours: &[Entry<'_>]) -> bool {
    has_long_number(entry.name) && ours.iter().any(|our| order(entry.name, our.name).1)
}

fn has_long_number(name: &[u8]) -> bool {
    name.split(|byte| !byte.is_ascii_digit()).any(may_wrap)
}

/// Compares two names and says whether a number that may wrap was met on the way. This is `_dl_cache_libcmp` of
/// `elf/dl-cache.c`, with its numbers that wrap at 32 bits and its signedness of char, since the loader's binary search
/// goes by just that.
fn order(left: &[u8], right: &[u8]) -> (Ordering, bool) {
    let (mut left, mut right, mut wraps) = (left, right, false);
    loop {
        let ordering = match (left.first(), right.first()) {
            (None, None) => return (Ordering::Equal, wraps),
            (Some(a), Some(b)) if a.is_ascii_digit() && b.is_ascii_digit() => {
                let (a, b) = (digits(&mut left), digits(&mut right));
                wraps |= may_wrap(a) || may_wrap(b);
                number(a).wrapping_sub(number(b)).cmp(&0)
            }
            (Some(a), _) if a.is_ascii_digit() => Ordering::Greater,
            (_, Some(b)) if b.is_ascii_digit() => Ordering::Less,
            (a, b) => {
                left = left.get(1..).unwrap_or_default();
                right = right.get(1..).unwrap_or_default();
                character(a).cmp(&character(b))
            }
        };
        if ordering != Ordering::Equal {
            return (ordering, wraps);
        }
    }
}

fn digits<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let (digits, rest) = text.split_at(text.iter().take_while(|byte| byte.is_ascii_digit()).count());
    *text = rest;
    digits
}

/// Nine digits always fit in 31 bits.
fn may_wrap(digits: &[u8]) -> bool {
    digits.len() > 9
}

fn number(digits: &[u8]) -> i32 {
    digits.iter().fold(0i32, |value, digit| value.wrapping_mul(10).wrapping_add(i32::from(digit - b'0')))
}

fn character(byte: Option<&u8>) -> c_char {
    byte.map_or(0, |&byte| c_char::from_ne_bytes([byte]))
}

#[cfg(test)]
mod tests;
