//! The host as it must be after every attack: each file beside the root, with all that lstat(2) tells but the time of
//! reading.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::ground::{MOVED, WRITTEN};

#[derive(Debug, PartialEq, Eq)]
pub struct Sentinel(BTreeMap<PathBuf, Entry>);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// Inode, mode, owner, group, size, device number.
    numbers: [u64; 6],
    modified: (i64, i64),
    /// Any change at all.
    changed: (i64, i64),
    /// How many names it has.
    names: u64,
    /// What is in a file, or what a link says.
    content: Content,
}

#[derive(PartialEq, Eq)]
struct Content(Vec<u8>);

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

impl Sentinel {
    /// Everything in a bundle but the container's root and what an attack moves about, and this machine's own files of
    /// the names that hooks write.
    pub fn of(bundle: &Path) -> Self {
        let mut entries = BTreeMap::new();
        let mut left = vec![bundle.to_owned()];
        while let Some(path) = left.pop() {
            if path == bundle.join("rootfs") || path == bundle.join(MOVED) {
                continue;
            }
            if path.symlink_metadata().unwrap().is_dir() {
                left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            entries.insert(path.clone(), Entry::of(&path));
        }
        for path in WRITTEN.iter().map(PathBuf::from).filter(|path| path.symlink_metadata().is_ok()) {
            entries.insert(path.clone(), Entry::of(&path));
        }
        Self(entries)
    }

    /// Fails where something differs, and names it.
    pub fn assert_same(&self, after: &Self, attack: &str) {
        let all = self.0.keys().chain(after.0.keys());
        for path in all {
            let (before, after) = (self.0.get(path), after.0.get(path));
            let same = before.zip(after).is_some_and(|(before, after)| before.is_same(after));
            assert!(same, "{attack}: {} of the host was touched: {before:?}, then {after:?}", path.display());
        }
    }
}

impl Entry {
    /// A file with several names changes when one of them is replaced, which hooks may do.
    fn is_same(&self, after: &Self) -> bool {
        let of_names = self.names > 1 && after.names < self.names;
        (self.numbers, self.modified, &self.content) == (after.numbers, after.modified, &after.content)
            && (of_names || (self.names, self.changed) == (after.names, after.changed))
    }

    fn of(path: &Path) -> Self {
        let metadata = path.symlink_metadata().unwrap();
        let kind = metadata.file_type();
        let content = if kind.is_symlink() {
            fs::read_link(path).unwrap().into_os_string().into_encoded_bytes()
        } else if kind.is_file() {
            fs::read(path).unwrap()
        } else {
            Vec::new()
        };
        let is_node = kind.is_char_device() || kind.is_block_device();
        Self {
            numbers: [
                metadata.ino(),
                metadata.mode().into(),
                metadata.uid().into(),
                metadata.gid().into(),
                metadata.size(),
                if is_node { metadata.rdev() } else { 0 },
            ],
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            names: metadata.nlink(),
            content: Content(content),
        }
    }
}
