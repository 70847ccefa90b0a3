//! Library caches at random, judged by glibc's own ldconfig and loader: whatever a cache holds, in whatever format,
//! what was found in it is found as before, and the driver's libraries first.

// Functions that tests share are tests too; clippy counts only those marked so.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::ldconfig_print;
use hooks::ldcache::{Cache, Entry, FLAGS};
use tempfile::TempDir;

/// In a cache's order, which ldconfig confirms below.
const NAMES: [&str; 14] = [
    "libx264.so.164",
    "libx264.so.99",
    "libnvidia-ml.so.1",
    "libfoo1.so",
    "libfoo.so.10",
    "libfoo.so.9",
    "libfoo.so.2.10",
    "libfoo.so.2.9",
    "libfoo.so.2",
    "libfoo.so",
    "libcuda.so.1",
    "libcuda.so",
    "libc.so.6",
    "liba.so",
];
const FORMATS: [&str; 3] = ["new", "compat", "old"];

#[test]
fn made_up_caches_keep_what_they_list() {
    let directory = tempfile::tempdir().unwrap();
    for seed in 1..=200 {
        let mut random = Random(seed);
        let format = random.pick(&FORMATS);
        let made_up = MadeUp::new(&mut random);
        let bytes = made_up.to_bytes(format, &mut random);
        let mut ours = random_ours(&mut random);
        // What an earlier start left.
        let plain = made_up.libraries.iter().filter(|library| library.is_like_ours());
        ours.extend(plain.filter(|_| random.one_in(4)).map(|library| library.entry()));
        check_listing(&directory, &bytes, &ours, &format!("seed {seed}, {format}"));
    }
}

/// What ldconfig lists afterwards is what it listed before and what was added, ours first of their names.
fn check_listing(directory: &TempDir, before: &[u8], ours: &[(String, PathBuf)], case: &str) {
    let [old_path, new_path] = ["before", "after"].map(|name| directory.path().join(name));
    fs::write(&old_path, before).unwrap();
    let after = merge(before, ours, case);
    fs::write(&new_path, &after).unwrap();
    assert_eq!(merge(&after, ours, case), after, "{case}: a restart changes the cache");

    let [before, after] = [old_path, new_path].map(|path| ldconfig_print(&path));
    let line = |(name, path): &(String, PathBuf)| format!("\t{name} ({}) => {}", machine(), path.display());
    let added: Vec<String> = ours.iter().map(line).collect();
    let others = |listing: &str| -> Vec<String> {
        listing.lines().filter(|line| !added.iter().any(|ours| ours == line)).map(str::to_owned).collect()
    };
    assert_eq!(others(&after), others(&before), "{case}");
    for (name, _) in ours {
        let of_name = |line: &&str| line.starts_with(&format!("\t{name} ("));
        let listed: Vec<&str> = after.lines().filter(of_name).collect();
        let expected: Vec<&str> = added.iter().map(String::as_str).filter(of_name).collect();
        assert_eq!(listed[..expected.len()], expected, "{case}");
        assert!(!listed[expected.len()..].iter().any(|line| expected.contains(line)), "{case}: twice {name}");
    }
}

/// Trees of real libraries, listed by the real ldconfig, asked for by the real loader.
#[test]
fn real_caches_keep_what_the_loader_finds() {
    if !Command::new("unshare").args(["-r", "true"]).output().is_ok_and(|output| output.status.success()) {
        return skip("no user namespace can be made here");
    }
    let tree = Tree::new();
    let path = tree.path("/etc/ld.so.cache");
    for seed in 1..=20 {
        let mut random = Random(seed);
        tree.fill(&mut random);
        for format in FORMATS {
            let case = format!("seed {seed}, {format}");
            tree.ldconfig(format);
            let before = fs::read(&path).unwrap();
            // The order in which names are given is that of the real thing.
            let cache = Cache::parse(&before).unwrap();
            let place = |(name, _): (&str, _)| NAMES.iter().position(|other| *other == name);
            let places: Vec<_> = cache.libraries().filter_map(place).collect();
            assert!(places.is_sorted(), "{case}: {places:?}");

            let ours = random_ours(&mut random);
            check_listing(&tree.directory, &before, &ours, &case);
            let mut expected = tree.found_by_the_loader();
            fs::write(&path, merge(&before, &ours, &case)).unwrap();
            expected.extend(ours);
            assert_eq!(tree.found_by_the_loader(), expected, "{case}");
        }
    }
}

fn skip(reason: &str) {
    eprintln!("skipped: {reason}");
}

/// A root with a loader, a driver, and libraries in directories that the loader does not search by itself.
struct Tree {
    directory: TempDir,
}

const LOADER: &str =
    if cfg!(target_arch = "x86_64") { "/lib64/ld-linux-x86-64.so.2" } else { "/lib/ld-linux-aarch64.so.1" };
/// As long as the longest name.
const SONAME: &str = "libSONAMESONAME.so";

impl Tree {
    fn new() -> Self {
        let tree = Self { directory: tempfile::tempdir().unwrap() };
        fs::create_dir(tree.path("/")).unwrap();
        for directory in ["etc", "driver", "lib64", "lib"] {
            fs::create_dir(tree.path(directory)).unwrap();
        }
        fs::write(tree.path("/etc/ld.so.conf"), "/opt/b\n/opt/a\n/base\n").unwrap();
        fs::copy(LOADER, tree.path(LOADER)).unwrap();
        tree.link("/template", |compiler| compiler.arg(format!("-Wl,-soname,{SONAME}")));
        for name in NAMES {
            tree.library("/driver", name, name);
            // The loader gives up at the first name that is nowhere.
            tree.library("/base", name, name);
        }
        let needed = NAMES.map(|name| tree.path("/driver").join(name));
        tree.link("/program", |compiler| compiler.args(["-x", "none", "-Wl,--no-as-needed"]).args(needed));
        tree
    }

    /// Links something without code. Rust links by this compiler, so it is there.
    fn link(&self, path: &str, with: impl FnOnce(&mut Command) -> &mut Command) {
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-nostdlib", "-s", "-x", "c", "/dev/null", "-o"]).arg(self.path(path));
        assert!(with(&mut compiler).status().unwrap().success());
    }

    /// Puts other libraries in the place of those that are there.
    fn fill(&self, random: &mut Random) {
        let _ = fs::remove_dir_all(self.path("/opt"));
        for directory in ["/opt/a", "/opt/b"] {
            fs::create_dir_all(self.path(directory)).unwrap();
            for level in ["", "/glibc-hwcaps/x86-64-v2", "/glibc-hwcaps/x86-64-v3", "/glibc-hwcaps/x86-64-v4"]
            {
                if random.one_in(4) {
                    continue;
                }
                for name in NAMES {
                    let file = format!("{name}{}", random.pick(&["", ".0"]));
                    if random.one_in(3) {
                        self.library(&format!("{directory}{level}"), &file, name);
                    }
                }
            }
        }
    }

    fn library(&self, directory: &str, file: &str, soname: &str) {
        let mut bytes = fs::read(self.path("/template")).unwrap();
        let at = bytes.windows(SONAME.len()).position(|part| part == SONAME.as_bytes()).unwrap();
        bytes[at..at + SONAME.len()].fill(0);
        bytes[at..at + soname.len()].copy_from_slice(soname.as_bytes());
        fs::create_dir_all(self.path(directory)).unwrap();
        fs::write(self.path(directory).join(file), bytes).unwrap();
    }

    fn ldconfig(&self, format: &str) {
        let mut ldconfig = Command::new("unshare");
        // -i: two trees in one second could look alike to the auxiliary cache.
        ldconfig.args(["-r", "/sbin/ldconfig", "-i", "-c", format, "-r"]).arg(self.path("/"));
        let output = ldconfig.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Every name that the loader finds, and where.
    fn found_by_the_loader(&self) -> BTreeMap<String, PathBuf> {
        let mut loader = Command::new("unshare");
        loader.args(["-r", "chroot"]).arg(self.path("/")).args([LOADER, "--list", "/program"]);
        let output = loader.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let listing = String::from_utf8(output.stdout).unwrap();
        let found = listing.lines().filter_map(|line| {
            let (name, path) = line.trim().split_once(" => ")?;
            Some((name.to_owned(), PathBuf::from(path.split_once(" (")?.0)))
        });
        found.collect()
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path.trim_start_matches('/'))
    }
}

fn merge(bytes: &[u8], ours: &[(String, PathBuf)], case: &str) -> Vec<u8> {
    let mut cache = Cache::parse(bytes).unwrap_or_else(|error| panic!("{case}: {error}"));
    let entries: Vec<_> = ours.iter().map(|(name, path)| Entry::new(name, path)).collect();
    cache.merge(&entries);
    cache.to_bytes()
}

fn machine() -> &'static str {
    if cfg!(target_arch = "x86_64") { "libc6,x86-64" } else { "libc6,AArch64" }
}

/// Some libraries of a driver, no two alike.
fn random_ours(random: &mut Random) -> Vec<(String, PathBuf)> {
    let names = NAMES.into_iter().filter(|_| random.one_in(4));
    let mut ours: Vec<_> =
        names.map(|name| (name.to_owned(), PathBuf::from(format!("/driver/{name}")))).collect();
    if random.one_in(2) {
        ours.reverse();
    }
    ours
}

/// A cache that no ldconfig needs to have written.
struct MadeUp {
    libraries: Vec<MadeUpLibrary>,
    hwcaps: Vec<&'static str>,
    generator: Option<&'static str>,
}

struct MadeUpLibrary {
    name: &'static str,
    path: String,
    flags: u32,
    osversion: u32,
    hwcap: u64,
}

impl MadeUpLibrary {
    fn is_like_ours(&self) -> bool {
        (self.flags, self.osversion, self.hwcap) == (FLAGS, 0, 0)
    }

    fn entry(&self) -> (String, PathBuf) {
        (self.name.to_owned(), PathBuf::from(&self.path))
    }
}

impl MadeUp {
    fn new(random: &mut Random) -> Self {
        let hwcaps = ["x86-64-v2", "x86-64-v3", "x86-64-v4"][..random.below(4)].to_vec();
        let mut libraries = Vec::new();
        for name in NAMES {
            for place in 0..[0, 1, 1, 2, 5][random.below(5)] {
                // libc6 of this machine's kind, of i386, of x32, libc5, and one to come; Linux 2.6.32; a bit of old.
                let flags = random.pick(&[FLAGS, FLAGS, FLAGS, 0x0003, 0x0803, 0x0002, 0x7f03]);
                let hwcap = match (random.below(4), hwcaps.len()) {
                    (0, 1..) => 1 << 62 | random.below(hwcaps.len()) as u64,
                    (1, _) => 1 << random.below(40),
                    _ => 0,
                };
                let osversion = random.pick(&[0, 0, 0x0002_0620]);
                let path = format!("/lib{place}/{name}{}", random.pick(&["", ".0", "/x"]));
                libraries.push(MadeUpLibrary { name, path, flags, osversion, hwcap });
            }
        }
        let generator = random.pick(&[None, Some("somebody's ldconfig")]);
        Self { libraries, hwcaps, generator }
    }

    fn to_bytes(&self, format: &str, random: &mut Random) -> Vec<u8> {
        let old_list = 16 + self.libraries.len() * 12;
        let table = if format == "compat" { old_list.next_multiple_of(8) } else { 0 };
        let strings_at = if format == "old" { 0 } else { 48 + self.libraries.len() * 24 };
        let mut strings = Strings { at: strings_at, bytes: Vec::new() };
        let mut bytes = Vec::new();
        if format != "new" {
            bytes.extend(b"ld.so-1.7.0\0");
            bytes.extend((self.libraries.len() as u32).to_le_bytes());
            for library in &self.libraries {
                // Before the newer format these are as good as any: the loader does not look at them.
                let (name, path) = match format {
                    "old" => (strings.add(library.name), strings.add(&library.path)),
                    _ => (0, 0),
                };
                bytes.extend([library.flags, name, path].map(u32::to_le_bytes).as_flattened());
            }
        }
        if format == "old" {
            bytes.extend(strings.bytes);
            return bytes;
        }
        bytes.resize(table, 0);
        bytes.extend(b"glibc-ld.so.cache1.1");
        bytes.extend((self.libraries.len() as u32).to_le_bytes());
        bytes.resize(table + 48, 0);
        bytes[table + 28] = random.pick(&[0, 2]);
        for library in &self.libraries {
            let (name, path) = (strings.add(library.name), strings.add(&library.path));
            bytes.extend([library.flags, name, path, library.osversion].map(u32::to_le_bytes).as_flattened());
            bytes.extend(library.hwcap.to_le_bytes());
        }
        let hwcaps: Vec<u32> = self.hwcaps.iter().map(|name| strings.add(name)).collect();
        // The header's own field is the size of the strings, which the loader does not read.
        bytes.extend(strings.bytes);
        self.extend(&mut bytes, table, &hwcaps, random);
        bytes
    }

    /// Adds the extension directory if there is something to say, in any order, and with a section that nobody knows.
    fn extend(&self, bytes: &mut Vec<u8>, table: usize, hwcaps: &[u32], random: &mut Random) {
        let hwcaps: Vec<u8> = hwcaps.iter().flat_map(|at| at.to_le_bytes()).collect();
        let mut sections = vec![(1, &hwcaps[..])];
        sections.extend(self.generator.map(|generator| (0, generator.as_bytes())));
        sections.extend(random.one_in(3).then_some((77, &b"????"[..])));
        if hwcaps.is_empty() {
            sections.remove(0);
        }
        if sections.is_empty() {
            return;
        }
        if random.one_in(2) {
            sections.reverse();
        }
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let at = bytes.len();
        bytes[table + 32..table + 36].copy_from_slice(&(at as u32).to_le_bytes());
        bytes.extend([0xeaa4_2174, sections.len() as u32].map(u32::to_le_bytes).as_flattened());
        let mut data_at = at + 8 + sections.len() * 16;
        for (tag, data) in &sections {
            data_at = data_at.next_multiple_of(4);
            bytes.extend([*tag, 0, data_at as u32, data.len() as u32].map(u32::to_le_bytes).as_flattened());
            data_at += data.len();
        }
        for (_, data) in sections {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(data);
        }
    }
}

struct Strings {
    at: usize,
    bytes: Vec<u8>,
}

impl Strings {
    fn add(&mut self, string: &str) -> u32 {
        let at = self.at + self.bytes.len();
        self.bytes.extend(string.as_bytes());
        self.bytes.push(0);
        at as u32
    }
}

/// xorshift64, so that a failure comes again from its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % end
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}
