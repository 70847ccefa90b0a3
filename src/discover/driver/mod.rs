//! The driver's version and files: libraries, programs and data that containers get. Whatever carries the driver's
//! version in its name (`libcuda.so.580.126.09`) must carry the version that runs, so that a container never gets a
//! mixture of two drivers. Places are those of distributions and of the loader's cache, never what the caller's PATH or
//! XDG variables say: two users' specs of one machine are the same.
//!
//! - `libraries`: shared libraries, and the links that programs ask for
//! - `data`: programs, descriptions for loaders, firmware, sockets, modules of the X server

mod data;
mod libraries;

use std::path::{Path, PathBuf};

use anyhow::Result;
use tracing::debug;

use super::files::Files;
use super::host::{DriverFile, DriverFiles, MpsPrograms, Purpose};
use crate::failure::Failure;

/// Where distributions put the driver's libraries, besides what the loader's cache says.
const LIBRARY_DIRS: [&str; 9] = [
    #[cfg(target_arch = "x86_64")]
    "/usr/lib/x86_64-linux-gnu",
    #[cfg(target_arch = "x86_64")]
    "/usr/lib/x86_64-linux-gnu/nvidia/current",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu",
    #[cfg(target_arch = "aarch64")]
    "/usr/lib/aarch64-linux-gnu/nvidia/current",
    "/usr/lib64",
    "/usr/lib64/nvidia",
    "/usr/lib",
    "/usr/lib/nvidia",
    "/usr/local/lib",
    "/usr/local/nvidia/lib64",
    "/run/opengl-driver/lib",
];

/// The version of the kernel module.
const MODULE_VERSION: &str = "/sys/module/nvidia/version";

/// CUDA's driver library, by the name that programs ask the loader for.
const CUDA: &str = "libcuda.so.1";

/// NVIDIA's management library, by the name that programs ask the loader for.
pub const NVML: &str = "libnvidia-ml.so.1";

/// The file of NVML in the driver root, as a path on this machine; none if there is none where libraries lie.
pub fn nvml_library(files: &dyn Files, driver_root: &Path) -> Option<PathBuf> {
    let dirs = library_dirs(files);
    let found: Vec<PathBuf> =
        dirs.iter().filter_map(|dir| files.driver_real_path(&dir.join(NVML)).ok()).collect();
    // An old one that was left behind does not start with the module of another version.
    let module = files.text(Path::new(MODULE_VERSION)).unwrap_or_default();
    let of_module = |path: &&PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        !module.trim().is_empty() && name.ends_with(&format!(".so.{}", module.trim()))
    };
    let chosen = found.iter().find(of_module).or(found.first());
    chosen.map(|path| super::files::join_root(driver_root, path))
}

/// The driver version, from NVML or from the kernel module.
pub fn version(files: &dyn Files, nvml: Option<&str>) -> Result<String> {
    let module = || files.text(Path::new(MODULE_VERSION)).ok();
    let version = nvml.map(str::to_owned).or_else(module).map(|v| v.trim().to_owned()).unwrap_or_default();
    let well_formed = !version.is_empty() && version.chars().all(|c| c.is_ascii_digit() || c == '.');
    if !well_formed {
        return Err(Failure::new(anyhow::anyhow!(
            "the driver's version is not known: NVML says {version:?}"
        ))
        .hint("`cat /proc/driver/nvidia/version` should show it; if it does not, reload the driver")
        .into());
    }
    Ok(version)
}

/// A GPU's minor number from /proc/driver/nvidia/gpus/<address>/information, for a library that does not tell it.
pub fn minor_from_proc(files: &dyn Files, pci_address: &str) -> Option<u32> {
    let path = format!("/proc/driver/nvidia/gpus/{pci_address}/information");
    let text = files.text(Path::new(&path)).ok()?;
    text.lines().find_map(|line| line.strip_prefix("Device Minor:")?.trim().parse().ok())
}

/// Everything of driver `version` that containers get.
pub fn files(files: &dyn Files, version: &str) -> DriverFiles {
    let mut found = DriverFiles::default();
    let dirs = library_dirs(files);
    libraries::find(files, &dirs, version, &mut found);
    data::find(files, version, &mut found);
    // What the hook would refuse would make every container fail.
    let (links, odd): (Vec<_>, Vec<_>) =
        found.links.into_iter().partition(|link| hooks::args::Link::new(&link.target, &link.path).is_ok());
    found.links = links;
    found
        .broken
        .extend(odd.into_iter().map(|link| (link.path, "its name cannot stand in a spec".to_owned())));
    found.libraries.sort_by(|a, b| a.path.cmp(&b.path));
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    found.links.sort_by(|a, b| a.path.cmp(&b.path));
    found.links.dedup_by(|a, b| a.path == b.path);
    for library in &found.libraries {
        debug!("library {} ({})", library.path.display(), library.soname);
    }
    for file in &found.files {
        debug!("file {} ({})", file.path.display(), file.real_path.display());
    }
    found
}

/// The programs that run MPS: one package of Debian's, and a part of the driver elsewhere.
pub fn mps_programs(files: &dyn Files) -> MpsPrograms {
    let find = |name| program(files, name);
    MpsPrograms { control: find("nvidia-cuda-mps-control"), server: find("nvidia-cuda-mps-server") }
}

/// A program of the driver's for this machine itself, links resolved.
pub fn program(files: &dyn Files, name: &str) -> Option<PathBuf> {
    data::PROGRAM_DIRS.iter().find_map(|dir| files.driver_file(&Path::new(dir).join(name)).ok())
}

/// Directories that may hold driver libraries: where the loader's cache finds any, then the usual ones, then
/// those that links in the usual ones lead to. Links resolved, each once.
fn library_dirs(files: &dyn Files) -> Vec<PathBuf> {
    // Where CUDA is goes first: of two drivers' leftovers it is the one in use.
    let cached = files.cached_libraries();
    let behind = |name: &str| -> Vec<PathBuf> {
        let paths = cached.iter().filter(|(soname, _)| soname == name);
        paths.filter_map(|(_, path)| files.driver_real_path(path).ok()).collect()
    };
    let files_behind = [CUDA, NVML].map(behind).concat();
    let mut parents: Vec<&Path> = cached.iter().filter_map(|(_, path)| path.parent()).collect();
    parents.sort_unstable();
    parents.dedup();
    let parents = parents.into_iter().filter_map(|dir| files.driver_real_path(dir).ok());
    let cached = files_behind.iter().filter_map(|file| file.parent().map(Path::to_path_buf)).chain(parents);
    let usual = LIBRARY_DIRS.iter().filter_map(|dir| files.driver_real_path(Path::new(dir)).ok());
    // Debian's alternatives and NixOS have links there, to where the driver really is.
    let linked = LIBRARY_DIRS.iter().flat_map(|dir| [CUDA, NVML].map(|name| Path::new(dir).join(name)));
    let linked =
        linked.filter_map(|path| files.driver_real_path(&path).ok()?.parent().map(Path::to_path_buf));
    let mut dirs = Vec::new();
    for dir in cached.chain(usual).chain(linked) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// The regular file that a driver's path leads to. What is something else, or cannot be written down, is remembered as
/// broken: a container must not get a directory of the host's because a link leads there.
fn driver_file(
    files: &dyn Files,
    path: &Path,
    purpose: Purpose,
    broken: &mut Vec<(PathBuf, String)>,
) -> Option<DriverFile> {
    let why = match files.driver_file(path) {
        Ok(real_path) if real_path.to_str().is_none() => "it leads to a path that is not UTF-8".to_owned(),
        Ok(real_path) => return Some(DriverFile { path: path.to_path_buf(), real_path, purpose }),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => error.to_string(),
        Err(_) => return None,
    };
    broken.push((path.to_path_buf(), why));
    None
}
