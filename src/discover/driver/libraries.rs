//! Shared libraries of the driver, in one look into each directory that may hold them, and the links beside them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Files;
use crate::discover::host::{DriverFiles, DriverLibrary, DriverLink, Purpose};

/// Libraries of the driver packages that carry versions of their own.
const OTHER_LIBRARIES: [&str; 6] = [
    "libnvidia-egl-gbm.so.",
    "libnvidia-egl-wayland.so.",
    "libnvidia-egl-wayland2.so.",
    "libnvidia-egl-xcb.so.",
    "libnvidia-egl-xlib.so.",
    "libnvidia-nvvm70.so.",
];

/// How the names of libraries begin that serve drawing alone; after the lists of libnvidia-container (nvc_info.c).
/// Whatever else a driver brings, every container gets: what is new in the next one, CUDA may need.
const GRAPHICS: [&str; 23] = [
    "libEGL_nvidia.",
    "libGLESv1_CM_nvidia.",
    "libGLESv2_nvidia.",
    "libGLX_nvidia.",
    "libnvidia-api.",
    "libnvidia-cbl.",
    "libnvidia-egl-",
    "libnvidia-eglcore.",
    "libnvidia-fbc.",
    "libnvidia-glcore.",
    "libnvidia-glsi.",
    "libnvidia-glvkspirv.",
    "libnvidia-gtk",
    "libnvidia-ifr.",
    "libnvidia-ngx.",
    "libnvidia-present.",
    "libnvidia-rtcore.",
    "libnvidia-tls.",
    "libnvidia-vksc-core.",
    "libnvidia-vulkan-producer.",
    "libnvidia-wayland-client.",
    "libnvoptix.",
    "libvdpau_nvidia.",
];

/// Libraries whose link without a version programs ask for, whether or not the host has it: CUDA programs by
/// `dlopen("libcuda.so")`, and those of the Optical Flow SDK.
const ALWAYS_LINKED: [&str; 2] = ["libcuda", "libnvidia-opticalflow"];

/// Adds all libraries of driver `version` in these directories, and their links.
pub fn find(files: &dyn Files, dirs: &[PathBuf], version: &str, found: &mut DriverFiles) {
    for dir in dirs {
        add(files, dir, version, found);
    }
    let links: Vec<_> =
        found.libraries.iter().filter_map(|library| indirect_link(library, version)).collect();
    found.links.extend(links);
    let gbm = found.libraries.iter().find(|library| library.soname == "libnvidia-allocator.so.1");
    if let Some(link) = gbm.map(|library| gbm_link(files, dirs, library)) {
        found.links.push(link);
    }
}

fn add(files: &dyn Files, dir: &Path, version: &str, found: &mut DriverFiles) {
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
        let graphics = GRAPHICS.iter().any(|prefix| name.starts_with(prefix));
        let purpose = if graphics { Purpose::Graphics } else { Purpose::Compute };
        let stem = name.split_once(".so.").map_or(name.as_str(), |(stem, _)| stem);
        let plain = format!("{stem}.so");
        if ALWAYS_LINKED.contains(&stem) || names.contains(&plain) {
            found.links.push(DriverLink { path: dir.join(plain), target: soname.clone(), purpose });
        }
        found.libraries.push(DriverLibrary { path, soname, purpose });
    }
    if found.libraries.len() > before && dir.file_name().is_some_and(|name| name != "vdpau") {
        add(files, &dir.join("vdpau"), version, found);
    }
}

/// Numbers and dots: `1.1.13`, `4`. The SONAME links beside such files are links, and left out as such.
fn is_file_version(version: &str) -> bool {
    !version.is_empty()
        && version.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// What libglvnd's GLX asks for where the X server names no vendor.
fn indirect_link(library: &DriverLibrary, version: &str) -> Option<DriverLink> {
    let target = format!("libGLX_nvidia.so.{version}");
    let path = library.path.with_file_name("libGLX_indirect.so.0");
    (library.path.file_name()? == target.as_str()).then_some(DriverLink {
        path,
        target,
        purpose: Purpose::Graphics,
    })
}

/// Mesa's libgbm finds the driver's back end as a file in a directory of its own: where the host has it, else beside the
/// libraries.
fn gbm_link(files: &dyn Files, dirs: &[PathBuf], allocator: &DriverLibrary) -> DriverLink {
    const GBM: &str = "gbm/nvidia-drm_gbm.so";
    let beside = allocator.path.with_file_name(GBM);
    let on_host = dirs.iter().map(|dir| dir.join(GBM)).find(|path| files.driver_real_path(path).is_ok());
    let path = on_host.unwrap_or_else(|| beside.clone());
    let target = if path == beside {
        format!("../{}", allocator.soname)
    } else {
        allocator.path.with_file_name(&allocator.soname).display().to_string()
    };
    DriverLink { path, target, purpose: Purpose::Graphics }
}
