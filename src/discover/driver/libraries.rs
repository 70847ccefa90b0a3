//! Shared libraries of the driver, in one look into each directory that may hold them, and the links beside them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::Files;
use crate::discover::host::{DriverFiles, DriverLibrary, DriverLink, Purpose};

/// Libraries of the driver packages that carry versions of their own.
const OTHER_LIBRARIES: [&str; 7] = [
    "libnvidia-api.so.",
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
const ALWAYS_LINKED: [&str; 3] = ["libcuda", "libnvidia-opticalflow", "libnvidia-vulkan-producer"];

/// Where other libraries look for the driver's as plug-ins of theirs, below a directory of libraries: Mesa's libgbm, and
/// libvdpau.
const PLUG_INS: [(&str, &str); 2] = [
    ("gbm/nvidia-drm_gbm.so", "libnvidia-allocator.so.1"),
    ("vdpau/libvdpau_nvidia.so.1", "libvdpau_nvidia.so.1"),
];

/// Adds all libraries of driver `version` in these directories, and their links.
pub fn find(files: &dyn Files, dirs: &[PathBuf], version: &str, found: &mut DriverFiles) {
    for dir in dirs {
        add(files, dir, version, found);
    }
    one_for_each_soname(files, version, &mut found.libraries);
    let links: Vec<DriverLink> = found.libraries.iter().filter_map(indirect_link).collect();
    found.links.extend(links);
    found.links.extend(PLUG_INS.iter().filter_map(|(place, soname)| {
        let library = found.libraries.iter().find(|library| library.soname == *soname)?;
        plug_in_link(files, dirs, Path::new(place), library)
    }));
}

fn add(files: &dyn Files, dir: &Path, version: &str, found: &mut DriverFiles) {
    let names = match files.driver_names(dir) {
        Ok(names) => names,
        // Most hosts have a few of these directories, and links to what there was.
        Err(error) if is_absence(&error) => return,
        Err(error) => return found.broken.push((dir.to_path_buf(), error.to_string())),
    };
    let of_driver = |name: &str| {
        name.starts_with("lib")
            && (is_of(name, version)
                || OTHER_LIBRARIES
                    .iter()
                    .any(|prefix| name.starts_with(prefix) && is_file_version(&name[prefix.len()..])))
    };
    let before = found.libraries.len();
    for name in names.iter().filter(|name| of_driver(name)) {
        let named = dir.join(name);
        // A link to a file elsewhere is found where that file lies; one to a file beside it is another name of that.
        let Ok(path) = files.driver_real_path(&named) else { continue };
        let is_link = path != named;
        if is_link && (path.parent() != Some(dir) || !is_of(name, version) || is_own(&path, version)) {
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
        if is_link {
            found.links.push(DriverLink { target: file_name(&path).to_owned(), path: named, purpose });
        }
        let stem = name.split_once(".so.").map_or(name.as_str(), |(stem, _)| stem);
        let plain = format!("{stem}.so");
        if ALWAYS_LINKED.contains(&stem) || names.binary_search(&plain).is_ok() {
            found.links.push(DriverLink { path: dir.join(plain), target: soname.clone(), purpose });
        }
        found.libraries.push(DriverLibrary { path, soname, purpose });
    }
    if found.libraries.len() > before && dir.file_name().is_some_and(|name| name != "vdpau") {
        add(files, &dir.join("vdpau"), version, found);
    }
}

fn is_absence(error: &std::io::Error) -> bool {
    let no_way = [nix::errno::Errno::ELOOP, nix::errno::Errno::ENOTDIR].map(|errno| errno as i32);
    error.kind() == ErrorKind::NotFound || error.raw_os_error().is_some_and(|errno| no_way.contains(&errno))
}

/// Whether a file's name ends in the driver's version: `libcuda.so.580.126.09`.
fn is_of(name: &str, version: &str) -> bool {
    name.strip_suffix(version).is_some_and(|stem| stem.ends_with(".so."))
}

fn is_own(path: &Path, version: &str) -> bool {
    is_of(file_name(path), version)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Of libraries with versions of their own, an upgrade may have left old ones, which answer to the same SONAME. The one
/// that the SONAME's link leads to stays, else the newest, and of several directories that of the driver itself.
fn one_for_each_soname(files: &dyn Files, version: &str, libraries: &mut Vec<DriverLibrary>) {
    let dirs: Vec<PathBuf> = libraries
        .iter()
        .filter(|library| is_own(&library.path, version))
        .filter_map(|library| library.path.parent().map(Path::to_path_buf))
        .collect();
    let rank = |library: &DriverLibrary| -> Rank {
        let link = library.path.with_file_name(&library.soname);
        let is_linked = files.driver_real_path(&link).is_ok_and(|real| real == library.path);
        let beside = library.path.parent().is_some_and(|dir| dirs.iter().any(|of| of == dir));
        let numbers: Vec<u64> =
            file_name(&library.path).split('.').filter_map(|part| part.parse().ok()).collect();
        (beside, is_linked, numbers)
    };
    let mut best: BTreeMap<String, (Rank, PathBuf)> = BTreeMap::new();
    for library in libraries.iter().filter(|library| !is_own(&library.path, version)) {
        let candidate = (rank(library), library.path.clone());
        match best.get_mut(&library.soname) {
            Some(known) if *known >= candidate => {}
            Some(known) => *known = candidate,
            None => {
                best.insert(library.soname.clone(), candidate);
            }
        }
    }
    libraries.retain(|library| {
        is_own(&library.path, version)
            || best.get(&library.soname).is_none_or(|(_, path)| *path == library.path)
    });
}

/// In a directory of the driver, led to by its SONAME's link, numbers of its version.
type Rank = (bool, bool, Vec<u64>);

/// Numbers and dots: `1.1.13`, `4`. The SONAME links beside such files are links, and left out as such.
fn is_file_version(version: &str) -> bool {
    !version.is_empty()
        && version.split('.').all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

/// What libglvnd's GLX asks for where the X server names no vendor.
fn indirect_link(library: &DriverLibrary) -> Option<DriverLink> {
    (library.soname == "libGLX_nvidia.so.0").then(|| DriverLink {
        path: library.path.with_file_name("libGLX_indirect.so.0"),
        target: file_name(&library.path).to_owned(),
        purpose: Purpose::Graphics,
    })
}

/// A plug-in lies where the host has it, which need not be where the driver's libraries are; else beside them.
fn plug_in_link(
    files: &dyn Files,
    dirs: &[PathBuf],
    place: &Path,
    library: &DriverLibrary,
) -> Option<DriverLink> {
    let soname = library.path.with_file_name(&library.soname);
    let on_host = dirs
        .iter()
        .map(|dir| dir.join(place))
        .find(|path| files.driver_real_path(path).is_ok_and(|real| real == library.path));
    let path = on_host.or_else(|| Some(library.path.parent()?.join(place)))?;
    // The SONAME's own link is made with the library.
    let is_it = path == soname || library.path.parent()?.ends_with(place.parent()?);
    let target = if path.parent()?.parent() == soname.parent() {
        format!("../{}", library.soname)
    } else {
        soname.display().to_string()
    };
    (!is_it).then_some(DriverLink { path, target, purpose: Purpose::Graphics })
}
