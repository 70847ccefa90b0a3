//! CUDA forward compatibility (CUDA's "Compatibility" guide): an image may bring a libcuda that is newer than the host's
//! driver and was built to run on it. It then goes before the driver's own in the library cache. It is neither loaded
//! nor mounted here; all that is believed of it is a note in its ELF file.

use std::path::{Path, PathBuf};

use crate::args::{CudaVersion, DriverVersion, is_plain_path};
use crate::elf_note::{self, Note};
use crate::rootfs::{self, Root, Sight};

/// Where NVIDIA's packages cuda-compat-* put it; /usr/local/cuda is a link.
pub const DIRECTORY: &str = "/usr/local/cuda/compat";
/// A package has some fifteen.
const MOST_NAMES: usize = 64;

/// What an image brings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compat {
    /// Names that programs ask for, and where they are found. Empty where the host's own driver serves better.
    pub libraries: Vec<(String, PathBuf)>,
    /// Why it is not used though it is there, if that is odd.
    pub odd: Option<String>,
}

/// Looks for libraries that this host's driver shall give way to.
///
/// # Errors
/// When the directory or a library in it cannot be looked at.
pub fn find(root: &Root, host: &DriverVersion, cuda: Option<CudaVersion>) -> Result<Compat, rootfs::Error> {
    let directory = Path::new(DIRECTORY);
    let odd = |why: &str| Ok(Compat { libraries: Vec::new(), odd: Some(why.to_owned()) });
    let names = root.names(directory, MOST_NAMES + 1)?;
    if names.len() > MOST_NAMES {
        return odd("it has far more files than one of NVIDIA's");
    }
    let mut names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
    names.sort_unstable();
    let mut brought = Vec::new();
    for name in &names {
        // libcuda.so.1 is a link to it, and the name that programs ask for.
        if let Some(version) = name.strip_prefix("libcuda.so.").filter(|version| version.contains('.'))
            && let Ok(version) = version.parse::<DriverVersion>()
            && let Some((file, _)) = root.file(&directory.join(name))?
        {
            brought.push((version, file));
        }
    }
    let (version, file) = match brought.pop() {
        None => return Ok(Compat::default()),
        Some(_) if !brought.is_empty() => return odd("there is more than one libcuda"),
        Some(brought) => brought,
    };
    let note = match elf_note::read(&file) {
        Ok(note) => note,
        Err(error) => return odd(&format!("its libcuda is malformed: {error}")),
    };
    if !serves(&version, note.as_ref(), host, cuda) {
        return Ok(Compat::default());
    }
    let mut libraries = Vec::new();
    for name in names.into_iter().filter(|name| name.starts_with("lib") && name.contains(".so")) {
        let path = directory.join(name);
        if is_plain_path(&path) && root.sight(&path)? == Sight::File {
            libraries.push((name.to_owned(), path));
        }
    }
    Ok(Compat { libraries, odd: None })
}

/// Whether a libcuda of this version and note runs on the driver, and is the newer of the two. The note lists the
/// branches of the driver that were tried; where it lists none, the CUDA version counts, and without a note the branch.
fn serves(
    version: &DriverVersion,
    note: Option<&Note>,
    host: &DriverVersion,
    cuda: Option<CudaVersion>,
) -> bool {
    if version.numbers() <= host.numbers() {
        return false;
    }
    match note {
        Some(Note { drivers, .. }) if !drivers.is_empty() => drivers.contains(&host.branch()),
        Some(Note { cuda: Some((major, minor)), .. }) => {
            cuda.is_some_and(|of_host| (*major, *minor) > (of_host.major, of_host.minor))
        }
        _ => version.branch() > host.branch(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_libcuda_goes_first_where_it_was_made_for_the_driver() {
        let note = |drivers: &[u32], cuda| Some(Note { drivers: drivers.to_vec(), cuda });
        for (version, note, expected) in [
            ("590.44.01", note(&[535, 580, 590], Some((13, 1))), true),
            ("590.44.01", note(&[535, 570, 590], Some((13, 1))), false),
            ("590.44.01", note(&[], Some((13, 1))), true),
            ("590.44.01", note(&[], Some((13, 0))), false),
            ("590.44.01", note(&[], None), true),
            ("590.44.01", None, true),
            ("580.200.01", None, false),
            ("580.200.01", note(&[580], None), true),
            // As old as the driver, or older, though it would run.
            ("580.126.09", note(&[580], Some((13, 1))), false),
            ("580.126.9", note(&[580], Some((13, 1))), false),
            ("580.99.10", note(&[580], Some((13, 1))), false),
            ("550.54.14", None, false),
        ] {
            let (version, host): (DriverVersion, DriverVersion) =
                (version.parse().unwrap(), "580.126.09".parse().unwrap());
            let cuda = "13.0".parse().ok();
            assert_eq!(serves(&version, note.as_ref(), &host, cuda), expected, "{version} {note:?}");
        }
        let (version, host) = ("590.1".parse().unwrap(), "580.1".parse().unwrap());
        assert!(!serves(&version, note(&[], Some((13, 1))).as_ref(), &host, None), "nothing to compare with");
    }
}
