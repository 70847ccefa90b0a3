//! The loader told where the driver's libraries are: glibc's by its cache, and by configuration for whoever runs
//! ldconfig in the container later; musl's by its path file, since it has no cache. An image that has both loaders gets
//! both.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{Note, Pass, compat};
use crate::args::is_plain_path;
use crate::ldcache::{self, Cache, Entry};
use crate::rootfs::{self, Change, Sight};

/// glibc's library cache.
pub const CACHE: &str = "/etc/ld.so.cache";
const CONFIG: &str = "/etc/ld.so.conf";
/// Sorts before an image's own, and keeps the driver in the cache when the user runs ldconfig in the container.
const CONFIG_PART: &str = "/etc/ld.so.conf.d/00-divvy.conf";
pub(super) const CONFIG_INCLUDE: &[u8] = b"include /etc/ld.so.conf.d/*.conf\n";
/// What the first line of ours begins with; the generation of the spec follows.
const CONFIG_TITLE: &str = "# divvy-hook ";
/// Far more than our own file can come to, in bytes; and than musl's needs.
const CONFIG_LIMIT: usize = 1 << 20;
/// More directories than two specs bring.
const CONFIG_LINES: usize = 64;
/// Far more libraries than a driver has.
const MOST_SWEPT: usize = 1024;

#[cfg(target_arch = "x86_64")]
pub(super) const GLIBC_LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
#[cfg(target_arch = "x86_64")]
pub(super) const MUSL_LOADER: &str = "/lib/ld-musl-x86_64.so.1";
#[cfg(target_arch = "x86_64")]
pub(super) const MUSL_PATHS: &str = "/etc/ld-musl-x86_64.path";
#[cfg(target_arch = "aarch64")]
pub(super) const GLIBC_LOADER: &str = "/lib/ld-linux-aarch64.so.1";
#[cfg(target_arch = "aarch64")]
pub(super) const MUSL_LOADER: &str = "/lib/ld-musl-aarch64.so.1";
#[cfg(target_arch = "aarch64")]
pub(super) const MUSL_PATHS: &str = "/etc/ld-musl-aarch64.path";
/// Where musl looks without that file (`dynlink.c`): the file takes their place.
pub(super) const MUSL_DEFAULT: &[u8] = b"/lib\n/usr/local/lib\n/usr/lib\n";

/// What the loader shall know.
#[derive(Debug, Default)]
pub struct Libraries {
    /// Names that programs ask for, and where they are found: of two places for a name, the first serves.
    pub places: Vec<(String, PathBuf)>,
    /// The directories of all libraries of this spec, those first that serve first.
    pub directories: Vec<PathBuf>,
}

/// Tells the image's loader, or loaders.
///
/// # Errors
/// With the file that could not be written.
pub fn tell(pass: &mut Pass<'_>, libraries: &Libraries) -> Result<(), (PathBuf, rootfs::Error)> {
    let of = |path: &str| {
        let path = PathBuf::from(path);
        move |error| (path, error)
    };
    let sight = |path: &str| pass.root.sight(Path::new(path)).map_err(of(path));
    // One that may be in a volume is taken for glibc's.
    let has_glibc = matches!(sight(GLIBC_LOADER)?, Sight::File | Sight::Foreign);
    let has_musl = sight(MUSL_LOADER)? == Sight::File;
    if has_musl {
        step(pass, MUSL_PATHS, |pass| musl_paths(pass, libraries))?;
    }
    // A loader may also come by a volume, when this is over.
    if has_glibc || !has_musl {
        let earlier = Earlier::read(pass).map_err(of(CONFIG_PART))?;
        step(pass, CACHE, |pass| cache(pass, libraries, &earlier))?;
        step(pass, CONFIG_PART, |pass| config_part(pass, libraries, &earlier))?;
        step(pass, CONFIG, config)?;
    }
    Ok(())
}

/// Runs one step, on one file; what a volume hides is left alone.
fn step(
    pass: &mut Pass<'_>,
    path: &str,
    step: impl FnOnce(&mut Pass<'_>) -> Result<(), rootfs::Error>,
) -> Result<(), (PathBuf, rootfs::Error)> {
    match step(pass) {
        Err(rootfs::Error::ForeignMount { path }) => {
            pass.report.notes.push(Note::ForeignMount { path });
            Ok(())
        }
        result => result.map_err(|error| (path.into(), error)),
    }
}

fn cache(pass: &mut Pass<'_>, libraries: &Libraries, earlier: &Earlier) -> Result<(), rootfs::Error> {
    let path = Path::new(CACHE);
    let (present, mut why) = pass.present_or_why(path, ldcache::LIMIT)?;
    let mut cache = Cache::default();
    if !present.is_empty() {
        match Cache::parse(&present) {
            Ok(parsed) => cache = parsed,
            Err(error) => why = Some(error.to_string()),
        }
    }
    if earlier.generation != pass.generation {
        sweep(pass, &mut cache, libraries, earlier)?;
    }
    let ours: Vec<_> = libraries.places.iter().map(|(soname, place)| Entry::new(soname, place)).collect();
    cache.merge(&ours);
    let mut wanted = cache.to_bytes();
    // What the next start would not read again, it would replace.
    if wanted.len() > ldcache::LIMIT {
        why = Some(format!("with the driver's libraries it is longer than {} bytes", ldcache::LIMIT));
        cache = Cache::default();
        cache.merge(&ours);
        wanted = cache.to_bytes();
    }
    pass.put(path, &present, &wanted)?;
    pass.report.notes.extend(why.map(|why| Note::Replaced { path: path.to_owned(), why }));
    Ok(())
}

/// Takes out what an earlier driver left in this container: entries in the driver's directories that lead to nothing,
/// and their links. Where an engine had mounted a library, its empty file remains.
fn sweep(
    pass: &mut Pass<'_>,
    cache: &mut Cache<'_>,
    libraries: &Libraries,
    earlier: &Earlier,
) -> Result<(), rootfs::Error> {
    let is_in = |path: &&Path| path.parent().is_some_and(|above| earlier.directories.contains(above));
    let ours: BTreeSet<&Path> = libraries.places.iter().map(|(_, place)| place.as_path()).collect();
    let of_driver = cache.paths().filter(is_in).filter(|path| is_plain_path(path) && !ours.contains(path));
    let of_driver = of_driver.take(MOST_SWEPT);
    let mut gone = BTreeSet::new();
    for path in of_driver {
        if matches!(pass.root.sight(path)?, Sight::Nothing | Sight::Empty) {
            gone.insert(path);
        }
    }
    cache.retain(|path| !gone.contains(path));
    for path in gone {
        if pass.root.remove_link(path)? == Change::Made {
            pass.report.written.push(path.to_owned());
        }
    }
    Ok(())
}

/// What an earlier run left in [`CONFIG_PART`].
#[derive(Debug, Default)]
struct Earlier {
    bytes: Vec<u8>,
    generation: Option<String>,
    directories: BTreeSet<PathBuf>,
}

impl Earlier {
    fn read(pass: &Pass<'_>) -> Result<Self, rootfs::Error> {
        match pass.present(Path::new(CONFIG_PART), CONFIG_LIMIT) {
            Err(rootfs::Error::ForeignMount { .. }) => Ok(Self::default()),
            present => present.map(Self::parse),
        }
    }

    /// More lines, or others, are nothing that this hook wrote.
    fn parse(bytes: Vec<u8>) -> Self {
        let text = String::from_utf8(bytes.clone()).unwrap_or_default();
        let (title, rest) = text.split_once('\n').unwrap_or_default();
        let directories: BTreeSet<PathBuf> = rest.lines().map(PathBuf::from).collect();
        match title.strip_prefix(CONFIG_TITLE) {
            Some(generation)
                if directories.len() <= CONFIG_LINES
                    && directories.iter().all(|path| is_plain_path(path)) =>
            {
                let generation = Some(generation.to_owned()).filter(|id| !id.is_empty());
                Self { bytes, generation, directories }
            }
            _ => Self { bytes, ..Self::default() },
        }
    }
}

/// Of the same generation, the directories of an earlier run stay: a container may have devices of two specs, and each
/// has a run.
fn config_part(pass: &mut Pass<'_>, libraries: &Libraries, earlier: &Earlier) -> Result<(), rootfs::Error> {
    let mut directories: Vec<&Path> = libraries.directories.iter().map(PathBuf::as_path).collect();
    if earlier.generation == pass.generation {
        let others = earlier.directories.iter().map(PathBuf::as_path);
        directories.extend(others.filter(|path| !libraries.directories.iter().any(|ours| ours == path)));
    }
    let mut text = format!("{CONFIG_TITLE}{}\n", pass.generation.as_deref().unwrap_or_default());
    text.extend(directories.iter().map(|directory| format!("{}\n", directory.display())));
    pass.put(Path::new(CONFIG_PART), &earlier.bytes, text.as_bytes())
}

/// Only where the image has none: one that does not include the directory is the image's decision.
fn config(pass: &mut Pass<'_>) -> Result<(), rootfs::Error> {
    let path = Path::new(CONFIG);
    if pass.root.sight(path)? == Sight::Nothing { pass.put(path, b"", CONFIG_INCLUDE) } else { Ok(()) }
}

/// Adds our directories behind those of the image, or behind those where musl looks without this file. Of CUDA's
/// forward compatibility nothing: those libraries need glibc.
fn musl_paths(pass: &mut Pass<'_>, libraries: &Libraries) -> Result<(), rootfs::Error> {
    let path = Path::new(MUSL_PATHS);
    let (present, mut why) = pass.present_or_why(path, CONFIG_LIMIT)?;
    let mut wanted = with_directories(&present, libraries);
    // What the next start would not read again, it would replace.
    if wanted.len() > CONFIG_LIMIT {
        why = Some(format!("with the driver's directories it is longer than {CONFIG_LIMIT} bytes"));
        wanted = with_directories(b"", libraries);
    }
    pass.put(path, &present, &wanted)?;
    pass.report.notes.extend(why.map(|why| Note::Replaced { path: path.to_owned(), why }));
    Ok(())
}

fn with_directories(present: &[u8], libraries: &Libraries) -> Vec<u8> {
    let mut wanted = if present.is_empty() { MUSL_DEFAULT } else { present }.to_vec();
    let ours = libraries.directories.iter().filter(|directory| *directory != Path::new(compat::DIRECTORY));
    for directory in ours.map(|directory| directory.as_os_str().as_encoded_bytes()) {
        if wanted.split(|byte| matches!(byte, b':' | b'\n')).all(|listed| listed != directory) {
            if !wanted.ends_with(b"\n") {
                wanted.push(b'\n');
            }
            wanted.extend(directory);
            wanted.push(b'\n');
        }
    }
    wanted
}
