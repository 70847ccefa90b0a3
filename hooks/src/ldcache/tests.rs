use super::*;

/// A cache as ldconfig of glibc 2.33 and later writes it: i386 beside the machine's own, and hwcaps variants.
fn sample() -> Cache<'static> {
    let entry = |name: &'static str, path: &'static str| Entry::new(name, Path::new(path));
    let mut entries = vec![
        Entry { flags: 0x0003, ..entry("libz.so.1", "/lib/i386-linux-gnu/libz.so.1") },
        Entry {
            hwcap: 1 << 62 | 2 << 32,
            ..entry("libfoo.so.10", "/lib/glibc-hwcaps/x86-64-v3/libfoo.so.10")
        },
        entry("libfoo.so.10", "/lib/libfoo.so.10"),
        entry("libfoo.so.9", "/lib/libfoo.so.9"),
        Entry { osversion: 0x0002_0620, ..entry("libc.so.6", "/lib/libc-2.31.so") },
    ];
    entries.sort_by(|a, b| compare(b.name, a.name));
    Cache { entries, hwcaps: vec![b"x86-64-v2", b"x86-64-v3"], generator: b"ldconfig (Debian GLIBC 2.36-9)" }
}

fn embedded(new: &[u8], old_entries: u32) -> Vec<u8> {
    let mut bytes = OLD_MAGIC.to_vec();
    bytes.push(0);
    bytes.extend(old_entries.to_le_bytes());
    bytes.resize(OLD_HEADER + old_entries as usize * OLD_ENTRY, 0xff);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes.extend(new);
    bytes
}

/// The older format alone, as `ldconfig -c old` writes it, of entries that fit in it.
fn old(cache: &Cache<'_>) -> Vec<u8> {
    let mut strings = Vec::new();
    let mut bytes = OLD_MAGIC.to_vec();
    bytes.push(0);
    bytes.extend((cache.entries.len() as u32).to_le_bytes());
    for entry in &cache.entries {
        let name = strings.len() as u32;
        strings.extend([entry.name, b"\0", entry.path, b"\0"].concat());
        let path = name + entry.name.len() as u32 + 1;
        bytes.extend([entry.flags, name, path].map(u32::to_le_bytes).as_flattened());
    }
    [bytes, strings].concat()
}

fn put(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn what_is_written_is_read() {
    for cache in [sample(), Cache::default(), Cache { generator: b"", ..Cache::default() }] {
        let bytes = cache.to_bytes();
        assert_eq!(Cache::parse(&bytes).unwrap(), cache);
        assert_eq!(Cache::parse(&bytes).unwrap().to_bytes(), bytes);
    }
}

#[test]
fn the_older_format_in_front_is_skipped() {
    let mut plain = sample();
    (plain.hwcaps, plain.generator) = (vec![], b"");
    for old_entries in [0, 1, 2, 523] {
        assert_eq!(Cache::parse(&embedded(&plain.to_bytes(), old_entries)).unwrap(), plain);
    }
}

#[test]
fn the_older_format_alone_is_read() {
    let entries = sample().entries.into_iter().map(|entry| Entry { osversion: 0, hwcap: 0, ..entry });
    let plain = Cache { entries: entries.collect(), hwcaps: vec![], generator: b"" };
    let bytes = old(&plain);
    let cache = Cache::parse(&bytes).unwrap();
    assert_eq!(cache, plain);
    assert!(cache.to_bytes().starts_with(MAGIC));
    // Behind it the header of a newer one of another byte order: the loader sees it once it is whole.
    let mut newer = Cache::default().to_bytes();
    newer[28] = 3;
    let both = embedded(&newer[..HEADER], 0);
    assert_eq!(Cache::parse(&both), Err(Error::ByteOrder));
    assert_eq!(Cache::parse(&both[..both.len() - 1]).unwrap().entries, []);
}

#[test]
fn names_compare_as_in_the_loader() {
    use Ordering::{Equal, Greater, Less};
    for (left, right, ordering) in [
        ("", "", Equal),
        ("liba.so", "liba.so", Equal),
        ("liba.so.1", "liba.so", Greater),
        ("liba.so", "libb.so", Less),
        ("libc.so.10", "libc.so.9", Greater),
        ("libc.so.010", "libc.so.10", Equal),
        ("lib1", "liba", Greater),
        ("liba", "lib1", Less),
        ("lib1", "lib", Greater),
        ("lib", "lib1", Less),
        ("libx264.so.164", "libx264.so.99", Greater),
        // 4294967297 wraps to 1.
        ("lib4294967297", "lib1", Equal),
        ("lib2147483648", "lib1", Greater),
    ] {
        assert_eq!(compare(left.as_bytes(), right.as_bytes()), ordering, "{left} {right}");
    }
    let signed = if cfg!(target_arch = "aarch64") { Greater } else { Less };
    assert_eq!(compare(b"lib\xc3", b"liba"), signed, "char is signed on x86-64 alone");
}

#[test]
fn ours_come_first_and_once() {
    let ours = [
        Entry::new("libfoo.so.10", Path::new("/driver/libfoo.so.10")),
        Entry::new("libcuda.so.1", Path::new("/driver/libcuda.so.1")),
        Entry::new("libfoo.so.10", Path::new("/other/libfoo.so.10")),
    ];
    let mut cache = sample();
    cache.merge(&ours);
    let names: Vec<_> = cache.lookup("libfoo.so.10").collect();
    let expected = [
        "/driver/libfoo.so.10",
        "/other/libfoo.so.10",
        "/lib/glibc-hwcaps/x86-64-v3/libfoo.so.10",
        "/lib/libfoo.so.10",
    ];
    assert_eq!(names, expected.map(Path::new));
    assert_eq!(cache.lookup("libcuda.so.1").next(), Some(Path::new("/driver/libcuda.so.1")));
    assert_eq!(cache.lookup("libcuda.so").next(), None);
    assert_eq!(cache.lookup("libz.so.1").next(), None, "i386 is another machine's kind");
    assert_eq!(cache.entries.len(), sample().entries.len() + ours.len());
    assert_eq!(cache.hwcaps, sample().hwcaps);

    let bytes = cache.to_bytes();
    let mut again = Cache::parse(&bytes).unwrap();
    again.merge(&ours);
    assert_eq!(again.to_bytes(), bytes);
}

/// In the loader's arithmetic 2147483649 is less than 1 and 1 less than 2147483649; and 5 is more than 2147483654, which
/// is more than 7.
#[test]
fn names_that_hide_ours_make_way() {
    for (theirs, merged) in [
        (
            ["libcudb.so.3000000000", "libcuda.so.2147483649", "libcud.so.2147483649"],
            &["libcudb.so.3000000000", "libcuda.so.1", "libcud.so.2147483649"][..],
        ),
        (["libcuda.so.5", "libcuda.so.2147483654", "libcuda.so.7"], &["libcuda.so.5", "libcuda.so.1"]),
    ] {
        let entries = theirs.map(|name| Entry::new(name, Path::new("/lib/image")));
        let mut cache = Cache { entries: entries.to_vec(), ..Cache::default() };
        assert_eq!(Cache::parse(&cache.to_bytes()).unwrap(), cache);
        let ours = [
            Entry::new("libcuda.so.1", Path::new("/driver/libcuda.so.1")),
            Entry::new("libcuda.so.2147483649", Path::new("/usr/local/cuda/compat/libcuda.so.2147483649")),
        ];
        cache.merge(&ours);
        let bytes = cache.to_bytes();
        let mut again = Cache::parse(&bytes).unwrap();
        let names: Vec<_> = again.libraries().map(|(name, _)| name).collect();
        assert_eq!(names, merged);
        again.merge(&ours);
        assert_eq!(again.to_bytes(), bytes);
    }
}

#[test]
fn malformed_caches_are_named() {
    let good = sample().to_bytes();
    let extensions = u32::from_le_bytes(good[32..36].try_into().unwrap()) as usize;
    let change = |at, value| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        bytes
    };
    let long = {
        let path = format!("/{}", "x".repeat(5000));
        let mut cache = Cache::default();
        cache.merge(&[Entry::new("libx.so", Path::new(&path))]);
        cache.to_bytes()
    };
    let libraries = "the list of libraries";
    for (bytes, error) in [
        (vec![], Error::Magic),
        (b"\x7fELF".to_vec(), Error::Magic),
        (OLD_MAGIC.to_vec(), Error::Truncated { what: "the number of libraries", offset: 12 }),
        (embedded(b"", 4), Error::Truncated { what: "a string", offset: u32::MAX as usize }),
        (embedded(b"", 4)[..60].to_vec(), Error::Truncated { what: libraries, offset: OLD_HEADER }),
        (good[..28].to_vec(), Error::ByteOrder),
        (change(28, 3), Error::ByteOrder),
        (change(28, 1), Error::ByteOrder),
        (change(20, u32::MAX), Error::Truncated { what: libraries, offset: HEADER }),
        (change(HEADER + 4, u32::MAX), Error::Truncated { what: "a string", offset: u32::MAX as usize }),
        (change(32, 2), Error::Extension { offset: 2 }),
        (
            change(32, u32::MAX - 3),
            Error::Truncated { what: "the extension directory", offset: u32::MAX as usize - 3 },
        ),
        (change(extensions, 0), Error::Extension { offset: extensions }),
        (
            change(extensions + 20, u32::MAX),
            Error::Truncated { what: "an extension", offset: extensions + 40 },
        ),
        (long, Error::Unterminated { offset: HEADER + ENTRY }),
        (vec![0; LIMIT + 1], Error::TooLarge { limit: LIMIT }),
    ] {
        assert_eq!(Cache::parse(&bytes).unwrap_err(), error);
    }
    let mut unsorted = sample();
    unsorted.entries.reverse();
    assert!(matches!(Cache::parse(&unsorted.to_bytes()), Err(Error::Unsorted { .. })));
}

#[test]
fn a_small_file_cannot_stand_for_a_large_one() {
    let path = "/".repeat(4000);
    let mut cache = Cache::default();
    cache.merge(&[Entry::new("libx.so", Path::new(&path))]);
    let one = cache.to_bytes();
    let count: u32 = 100_000;
    let shift = (count - 1) * ENTRY as u32;
    let mut bytes = one[..HEADER].to_vec();
    put(&mut bytes, 20, count);
    put(&mut bytes, 32, 0);
    let mut entry = one[HEADER..HEADER + ENTRY].to_vec();
    for at in [4, 8] {
        let offset = u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        put(&mut entry, at, offset + shift);
    }
    bytes.extend(entry.repeat(count as usize));
    bytes.extend(&one[HEADER + ENTRY..]);
    assert_eq!(Cache::parse(&bytes), Err(Error::TooLarge { limit: LIMIT }));
}

/// Whatever is accepted must be written and read again as the same cache.
fn try_hostile(bytes: &[u8]) {
    if let Ok(mut cache) = Cache::parse(bytes) {
        let written = cache.to_bytes();
        assert_eq!(Cache::parse(&written).unwrap(), cache);
        cache.merge(&[Entry::new("libcuda.so.1", Path::new("/driver/libcuda.so.1"))]);
        assert_eq!(cache.lookup("libcuda.so.1").next(), Some(Path::new("/driver/libcuda.so.1")));
        cache.to_bytes();
    }
}

#[test]
fn every_truncation_is_survived() {
    let sample = sample().to_bytes();
    let alone = old(&Cache::parse(&sample).unwrap());
    for bytes in [embedded(&sample, 3), alone, sample] {
        for length in 0..bytes.len() {
            try_hostile(&bytes[..length]);
        }
    }
}

#[test]
fn random_mutations_are_survived() {
    let sample = sample().to_bytes();
    let alone = old(&Cache::parse(&sample).unwrap());
    let seeds = [embedded(&sample, 3), alone, sample];
    // xorshift64, so that a failure comes again.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..20_000 {
        let mut bytes = seeds[random(3)].clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes[at] ^= 1 << random(8),
                2 if at + 4 <= bytes.len() => put(&mut bytes, at, [0, 1, 48, u32::MAX, 1 << 31][random(5)]),
                _ => bytes.truncate(at.max(1)),
            }
        }
        try_hostile(&bytes);
    }
}

#[test]
fn ours_are_found_in_this_hosts_cache() {
    let bytes = std::fs::read("/etc/ld.so.cache").unwrap();
    let cache = Cache::parse(&bytes).unwrap();
    let libc = cache.lookup("libc.so.6").next().unwrap();
    assert!(libc.is_file(), "{}", libc.display());
    assert_eq!(Cache::parse(&cache.to_bytes()).unwrap(), cache);
}
