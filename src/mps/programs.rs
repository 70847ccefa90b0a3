//! NVIDIA's programs before they are run as root: whose they are, of which driver, and what they know.

use std::fs;
use std::path::Path;

use super::reason::Reason;
use super::settings::Settings;
use crate::trust;

/// Both are smaller than 100 KiB by far.
const SIZE_LIMIT: u64 = 16 << 20;

/// Refuses programs that others may change, and those of another driver. Returns the option by which the control daemon
/// serves all users at once, where that is wanted.
pub fn check(settings: &Settings) -> Result<Option<&'static str>, Reason> {
    let control = checked(&settings.control, settings)?;
    checked(&settings.server, settings)?;
    if !settings.multi_user {
        return Ok(None);
    }
    let option = multi_user_option(&control);
    option.map(Some).ok_or_else(|| {
        Reason::failed(
            format!("{} cannot serve several users at once", settings.control.display()),
            "`divvy generate` looks at the driver anew",
        )
    })
}

fn checked(program: &Path, settings: &Settings) -> Result<Vec<u8>, Reason> {
    if let Some(weakness) = trust::weakness(program) {
        return Err(Reason::failed(
            format!("{} is not run as root: {weakness}", program.display()),
            "keep the driver's files where only root can write",
        ));
    }
    let bytes = match fs::metadata(program) {
        Ok(found) if found.len() <= SIZE_LIMIT => fs::read(program),
        Ok(_) => Err(std::io::ErrorKind::FileTooLarge.into()),
        Err(error) => Err(error),
    };
    let bytes = bytes.map_err(|error| {
        Reason::failed(
            format!("{} cannot be read: {error}", program.display()),
            "install the driver's MPS programs (Debian: nvidia-cuda-mps), then `divvy generate`",
        )
    })?;
    match other_version(&bytes, &settings.driver_version) {
        None => Ok(bytes),
        Some(other) => Err(Reason::failed(
            format!("{} is of driver {other}, and {} is loaded", program.display(), settings.driver_version),
            "install both in the same version; after an upgrade of the driver, reboot",
        )),
    }
}

/// The version that a program bears, if it is another than the driver's. Not every program bears one.
fn other_version(bytes: &[u8], driver: &str) -> Option<String> {
    let texts = bytes.split(|byte| *byte == 0).filter_map(|text| str::from_utf8(text).ok());
    let versions: Vec<&str> = texts.filter(|text| is_version(text)).collect();
    let first = versions.first()?;
    (!versions.contains(&driver)).then(|| (*first).to_owned())
}

/// `550.163.01`, `615.71`.
fn is_version(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let are_numbers =
        parts.iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    are_numbers && (2..=3).contains(&parts.len()) && parts[0].len() == 3 && parts[1].len() >= 2
}

/// 555 compares with `-multiuser-server`; later ones give getopt_long(3) the name without dashes.
fn multi_user_option(control: &[u8]) -> Option<&'static str> {
    let has = |text: &[u8]| control.split(|byte| *byte == 0).any(|found| found == text);
    match () {
        () if has(b"-multiuser-server") => Some("-multiuser-server"),
        () if has(b"--multiuser-server") || has(b"multiuser-server") => Some("--multiuser-server"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_programs() {
        for (bytes, expected) in [
            (b"\x00GLIBC_2.34\x00550.163.01\x00".as_slice(), None),
            (b"\x00535.261.03\x00", Some("535.261.03")),
            (b"\x00535.261.03\x00550.163.01\x00", None),
            (b"\x00version 535.261.03\x00 535.261.03\x00", None),
            (b"\x002.34\x00127.0.0.1\x00100.0\x00", None),
            (b"", None),
        ] {
            assert_eq!(other_version(bytes, "550.163.01").as_deref(), expected);
        }
    }

    #[test]
    fn options_of_programs() {
        for (bytes, expected) in [
            (
                b"\x00-multiuser-server\x00Only root user may enable -multiuser-server!\x00".as_slice(),
                Some("-multiuser-server"),
            ),
            (b"\x00multiuser-server\x00", Some("--multiuser-server")),
            (b"\x00Only root user may enable -multiuser-server!\x00", None),
        ] {
            assert_eq!(multi_user_option(bytes), expected);
        }
    }
}
