//! The application profile of NVIDIA's driver (README of the driver, "Application Profiles") that tells EGL which of the
//! host's GPUs are in the container: without it EGL asks for all, and fails at those that it may not open. A hint to
//! well-behaved programs; what holds is the device cgroup.

use std::path::Path;

use super::Pass;
use crate::rootfs;

/// Where NVIDIA's own tools put it.
pub const PATH: &str = "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf";
const LIMIT: usize = 64 << 10;
/// The setting is a mask of 32 bits.
const MOST_MINORS: u64 = 32;

/// Writes it, for the GPUs whose nodes are in the container.
///
/// # Errors
/// Anything that keeps it from being written.
pub fn write(pass: &mut Pass<'_>) -> Result<(), rootfs::Error> {
    let mut mask = 0_u32;
    for minor in 0..MOST_MINORS {
        if pass.root.device_minor(Path::new(&format!("/dev/nvidia{minor}")))? == Some(minor) {
            mask |= 1 << minor;
        }
    }
    if mask == 0 {
        return Ok(());
    }
    let path = Path::new(PATH);
    let present = pass.present(path, LIMIT)?;
    pass.put(path, &present, text(mask).as_bytes())
}

fn text(mask: u32) -> String {
    format!(
        r#"{{"profiles": [{{"name": "_container_", "settings": ["EGLVisibleDGPUDevices", {mask:#x}]}}], "rules": [{{"pattern": [], "profile": "_container_"}}]}}
"#
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_mask_is_by_minor() {
        assert!(super::text(0b1001).contains(r#"["EGLVisibleDGPUDevices", 0x9]"#));
        assert_eq!(super::text(1 << 31).matches("0x80000000").count(), 1);
    }
}
