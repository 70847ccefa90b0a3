//! What the fuzz targets of the hook demand of any bytes. The target of a name calls the function of that name, and so
//! does `hooks/tests/corpus.rs` with every kept input, on stable.

// Each target uses its own part.
#![allow(dead_code)]

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hooks::args::{Command, CreateContainer, CreateRuntime, Phase, is_plain_path};
use hooks::elf_note;
use hooks::ldcache::{Cache, Entry};
use hooks::state::{Container, asked_in_config, root_in_config};

/// An image's /etc/ld.so.cache is refused or read. What is read is written so that it reads the same. What is merged
/// into it is found first; what was found before comes next and in its order, and merging again changes nothing.
pub fn library_cache(bytes: &[u8]) {
    let Ok(cache) = Cache::parse(bytes) else { return };
    let written = cache.to_bytes();
    assert_eq!(Cache::parse(&written).as_ref(), Ok(&cache), "what was written does not read the same");

    let libraries: Vec<_> = cache.libraries().collect();
    let mut ours = vec![("libcuda.so.1", Path::new("/driver/libcuda.so.1"))];
    // Names that the image has too, and one library that is the image's own to the last byte; but a driver's names have
    // no numbers that the loader would wrap.
    let plain = || libraries.iter().filter(|(name, _)| !may_wrap(name));
    ours.extend(plain().take(4).map(|(name, _)| (*name, Path::new("/driver/other"))));
    ours.extend(plain().next_back());
    let mut entries: Vec<_> = ours.iter().map(|(name, path)| Entry::new(name, path)).collect();
    entries
        .push(Entry::new("libcuda.so.2147483649", Path::new("/usr/local/cuda/compat/libcuda.so.2147483649")));
    let mut merged = cache.clone();
    merged.merge(&entries);

    for name in ours.iter().chain(libraries.iter().take(64)).map(|(name, _)| *name) {
        let new: Vec<_> = ours.iter().filter(|our| our.0 == name).map(|our| our.1).collect();
        let others = |cache: &Cache<'_>| -> Vec<_> {
            cache.lookup(name).filter(|path| !new.contains(path)).map(Path::to_owned).collect()
        };
        let found: Vec<_> = merged.lookup(name).collect();
        assert!(found.starts_with(&new), "{name}: {found:?} instead of {new:?}");
        // Where a number wraps, names may have to make way.
        if plain().count() == libraries.len() {
            assert_eq!(others(&merged), others(&cache), "{name}");
        }
    }
    let once = merged.to_bytes();
    let mut again = Cache::parse(&once).expect("what was written does not read");
    assert_eq!(again, merged);
    again.merge(&entries);
    assert_eq!(again.to_bytes(), once, "a restart would change the cache");
}

fn may_wrap(name: &str) -> bool {
    name.split(|character: char| !character.is_ascii_digit()).any(|number| number.len() > 9)
}

/// The state on the hook's standard input is refused or read.
pub fn state(bytes: &[u8]) {
    match Container::read(bytes) {
        Ok(container) => assert_eq!(Container::parse(bytes).ok(), Some(container)),
        Err(error) => drop(error.to_string()),
    }
}

/// A bundle's config.json names a root, which is an absolute path, or is refused. What it asks for is what its hooks say,
/// and the nodes are the driver's, each once.
pub fn bundle_config(bytes: &[u8]) {
    let own = CreateRuntime::new(vec!["gpu=shared".parse().expect("a device's name")]);
    for in_user_namespace in [false, true] {
        let Ok(asked) = asked_in_config(bytes, "divvy-hook", &own, in_user_namespace) else { continue };
        assert!(asked.devices.iter().any(|device| own.devices.contains(device)), "{:?}", asked.devices);
        let is_drivers = |node: &PathBuf| {
            let node = node.as_os_str().as_bytes();
            node.starts_with(b"/dev/") && (contains(node, b"nvidia") || contains(node, b"dri"))
        };
        assert!(asked.nodes.iter().all(is_drivers), "{:?}", asked.nodes);
        let once: BTreeSet<_> = asked.nodes.iter().collect();
        assert_eq!(once.len(), asked.nodes.len());
        assert!(asked.labels.annotations.len() <= 64);
    }
    match root_in_config(Path::new("/run/bundle"), bytes) {
        Ok(root) => assert!(root.is_absolute(), "{root:?}"),
        Err(error) => drop(error.to_string()),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// An image's libcuda is refused, has no note, or has one; and little is read of it.
pub fn elf_note(bytes: &[u8]) {
    let file = Counted { bytes, read: Cell::new(0) };
    if let Err(error) = elf_note::read(&file) {
        assert!(error.to_string().len() < 200, "an error repeats what the image says");
    }
    assert!(file.read.get() as u64 <= 64 + 3 * elf_note::LIMIT, "{} bytes were read", file.read.get());
}

/// A command line, its words parted by NULs, is refused, or written so that it reads the same.
pub fn args(bytes: &[u8]) {
    let parse = |words: &mut dyn Iterator<Item = &OsStr>| {
        Command::parse_words(std::iter::once(OsStr::new("divvy-hook")).chain(words))
    };
    let command = match parse(&mut bytes.split(|&byte| byte == 0).map(OsStr::from_bytes)) {
        Ok(command) => command,
        Err(error) => return drop(error.to_string()),
    };
    let words = match &command.phase {
        Phase::CreateContainer(request) => {
            check_places(request);
            request.to_args()
        }
        Phase::CreateRuntime(request) => {
            assert!(!request.devices.is_empty() && request.start_timeout <= 3600, "{request:?}");
            request.to_args()
        }
    };
    let again = parse(&mut words.iter().map(OsStr::new)).expect("what was written does not read");
    assert_eq!(again.phase, command.phase);
}

fn check_places(request: &CreateContainer) {
    for library in &request.libraries {
        assert!(is_plain_path(&library.path) || library.path.as_os_str().len() > 4096, "{library:?}");
        assert!(!library.soname.contains('/') && !library.soname.is_empty(), "{library:?}");
    }
    for link in &request.device_links {
        assert!(link.path.starts_with("/dev"), "{link:?}");
    }
}

/// A file that counts what is asked of it, in bytes.
struct Counted<'a> {
    bytes: &'a [u8],
    read: Cell<usize>,
}

impl FileExt for Counted<'_> {
    fn read_at(&self, into: &mut [u8], offset: u64) -> std::io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let size = rest.len().min(into.len());
        into[..size].copy_from_slice(&rest[..size]);
        self.read.set(self.read.get() + into.len());
        Ok(size)
    }

    fn write_at(&self, _: &[u8], _: u64) -> std::io::Result<usize> {
        unreachable!("nothing is written")
    }
}
