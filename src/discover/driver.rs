//! The driver's version and files: libraries, programs and data that containers get. Files are found by the
//! driver version in their names (`libcuda.so.580.126.09`), in the directories that hold such libraries, so a
//! container never gets a mixture of two drivers.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Result;
use tracing::debug;

use super::files::Files;
use super::host::{DriverFile, DriverFiles, DriverLibrary};
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

/// Libraries of the driver packages that carry versions of their own.
const OTHER_LIBRARIES: [&str; 6] = [
    "libnvidia-egl-gbm.so.",
    "libnvidia-egl-wayland.so.",
    "libnvidia-egl-wayland2.so.",
    "libnvidia-egl-xcb.so.",
    "libnvidia-egl-xlib.so.",
    "libnvidia-nvvm70.so.",
];

const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];
const PROGRAM_DIRS: [&str; 5] =
    ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/nvidia/bin", "/run/current-system/sw/bin"];

/// Loader and vendor descriptions: OpenCL, Vulkan, EGL, OptiX.
const DATA: [&str; 14] = [
    "/etc/OpenCL/vendors/nvidia.icd",
    "/etc/vulkan/icd.d/nvidia_icd.json",
    "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.x86_64.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.aarch64.json",
    "/usr/share/vulkan/implicit_layer.d/nvidia_layers.json",
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "/usr/share/egl/egl_external_platform.d/09_nvidia_wayland2.json",
    "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
    "/usr/share/egl/egl_external_platform.d/15_nvidia_gbm.json",
    "/usr/share/egl/egl_external_platform.d/20_nvidia_xcb.json",
    "/usr/share/egl/egl_external_platform.d/20_nvidia_xlib.json",
    "/usr/share/nvidia/nvoptix.bin",
];

/// NVIDIA's management library, by the name that programs ask the loader for.
pub const NVML: &str = "libnvidia-ml.so.1";

/// The file of NVML in the driver root, as a path on this machine; none if there is none where libraries lie.
pub fn nvml_library(files: &dyn Files, driver_root: &Path) -> Option<PathBuf> {
    let found = library_dirs(files).iter().find_map(|dir| files.driver_real_path(&dir.join(NVML)).ok());
    found.map(|path| super::files::join_root(driver_root, &path))
}

/// The driver version, from NVML or from the kernel module.
pub fn version(files: &dyn Files, nvml: Option<&str>) -> Result<String> {
    let module = || files.text(Path::new("/sys/module/nvidia/version")).ok();
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
    for dir in library_dirs(files) {
        add_libraries(files, &dir, version, &mut found);
    }
    found.libraries.sort_by(|a, b| a.path.cmp(&b.path));
    for library in &found.libraries {
        debug!("library {} ({})", library.path.display(), library.soname);
    }
    let programs = PROGRAMS.iter().filter_map(|name| {
        PROGRAM_DIRS.iter().find_map(|dir| driver_file(files, &Path::new(dir).join(name)))
    });
    let data = DATA.iter().filter_map(|path| driver_file(files, Path::new(path)));
    found.files = programs.chain(data).chain(firmware(files, version)).collect();
    found.files.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Directories that may hold driver libraries: where the loader's cache finds libcuda.so.1, then the usual ones, then
/// those that links in the usual ones lead to. Links resolved, each once.
fn library_dirs(files: &dyn Files) -> Vec<PathBuf> {
    let cached = files.cached_library("libcuda.so.1");
    let cached = cached.iter().filter_map(|path| {
        let real = files.driver_real_path(path).ok()?;
        real.parent().map(Path::to_path_buf)
    });
    let usual = LIBRARY_DIRS.iter().filter_map(|dir| files.driver_real_path(Path::new(dir)).ok());
    // Debian's alternatives and NixOS have links there, to where the driver really is.
    let linked =
        LIBRARY_DIRS.iter().flat_map(|dir| ["libcuda.so.1", NVML].map(|name| Path::new(dir).join(name)));
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

fn add_libraries(files: &dyn Files, dir: &Path, version: &str, found: &mut DriverFiles) {
    let Ok(names) = files.driver_names(dir) else { return };
    let of_driver = |name: &str| {
        let versioned = name.strip_suffix(version).is_some_and(|stem| stem.ends_with(".so."));
        name.starts_with("lib")
            && (versioned
                || OTHER_LIBRARIES
                    .iter()
                    .any(|prefix| name.starts_with(prefix) && is_file_version(&name[prefix.len()..])))
    };
    let before = found.libraries.len();
    for name in names.iter().filter(|name| of_driver(name)) {
        let path = dir.join(name);
        // A link to a file elsewhere is found where that file lies.
        if files.driver_real_path(&path).ok().as_ref() != Some(&path) {
            continue;
        }
        let soname = match files.soname(&path) {
            Ok(soname) => soname.unwrap_or_else(|| name.clone()),
            // A 32-bit library beside the others, which containers do not get.
            Err(error) if error.kind() == ErrorKind::Unsupported => continue,
            Err(error) => {
                found.broken.push((path, error.to_string()));
                continue;
            }
        };
        // What the hook would refuse would make every container fail.
        if let Err(error) = hooks::args::Library::new(&path, &soname) {
            found.broken.push((path, error.to_string()));
            continue;
        }
        let stem = name.split_once(".so.").map_or(name.as_str(), |(stem, _)| stem);
        let plain = format!("{stem}.so");
        let development_link = (stem == "libcuda" || names.contains(&plain)).then_some(plain);
        found.libraries.push(DriverLibrary { path, soname, development_link });
    }
    if found.libraries.len() > before && dir.file_name().is_some_and(|name| name != "vdpau") {
        add_libraries(files, &dir.join("vdpau"), version, found);
    }
}

/// Numbers and dots: `1.1.13`, `4`. The SONAME links beside such files are links, and left out as such.
fn is_file_version(version: &str) -> bool {
    !version.is_empty()
        && version.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// GSP firmware, which some tools read from a container.
fn firmware(files: &dyn Files, version: &str) -> Vec<DriverFile> {
    let dir = PathBuf::from(format!("/lib/firmware/nvidia/{version}"));
    let names = files.driver_names(&dir).unwrap_or_default();
    let images = names.iter().filter(|name| name.starts_with("gsp") && name.ends_with(".bin"));
    images.filter_map(|name| driver_file(files, &dir.join(name))).collect()
}

fn driver_file(files: &dyn Files, path: &Path) -> Option<DriverFile> {
    let real_path = files.driver_real_path(path).ok()?;
    Some(DriverFile { path: path.to_path_buf(), real_path })
}
