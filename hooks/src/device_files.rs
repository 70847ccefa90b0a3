//! `ModifyDeviceFiles` of NVIDIA's driver: where it is 1, the driver's libraries make nodes for all of the host's GPUs in
//! /dev and change their modes, in a container too, as far as its root may. They read the setting in
//! /proc/driver/nvidia/params, so a container gets that file with a 0. What opens is held by the device cgroup; this
//! keeps /dev tidy.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use nix::errno::Errno;

use crate::rootfs::{Change, Error, Root};

const PARAMS: &str = "/proc/driver/nvidia/params";
const BELOW_PROC: &str = "driver/nvidia/params";
const LIMIT: u64 = 64 << 10;

/// The host's settings with modification off; none where it is off already, or the driver is not loaded.
pub fn params_without_modification() -> Option<String> {
    let mut text = String::new();
    File::open(PARAMS).ok()?.take(LIMIT).read_to_string(&mut text).ok()?;
    switched_off(&text)
}

/// Puts these settings in the place of those that the container sees, if it sees any.
///
/// # Errors
/// When they cannot be mounted there.
pub fn switch_off(root: &Root, params: &str) -> Result<Change, Error> {
    match root.cover_in_proc(Path::new(BELOW_PROC), params.as_bytes()) {
        Err(Error::Call { source: Errno::ENOENT | Errno::ENOTDIR, .. }) => Ok(Change::Unchanged),
        result => result,
    }
}

fn switched_off(params: &str) -> Option<String> {
    const ON: &str = "ModifyDeviceFiles: 1";
    let is_on = params.lines().any(|line| line == ON);
    let line = |line| if line == ON { "ModifyDeviceFiles: 0" } else { line };
    is_on.then(|| params.lines().map(|text| format!("{}\n", line(text))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_that_setting_changes() {
        let on = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n";
        let off = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 0\nDeviceFileMode: 438\n";
        assert_eq!(switched_off(on).as_deref(), Some(off));
        for text in [off, "", "ModifyDeviceFiles: 11\n", "NoModifyDeviceFiles: 1\n"] {
            assert_eq!(switched_off(text), None, "{text}");
        }
    }
}
