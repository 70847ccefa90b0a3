//! Versions of the driver and of CUDA, as they stand in a command line.

use std::fmt;
use std::str::FromStr;

use super::Error;

/// The version of an NVIDIA driver, as `580.126.09`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverVersion(String);

/// A version of CUDA, as `13.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CudaVersion {
    /// `13`
    pub major: u32,
    /// `0`
    pub minor: u32,
}

impl DriverVersion {
    /// Its numbers, which tell which of two is newer.
    pub fn numbers(&self) -> Vec<u32> {
        self.0.split('.').map(|number| number.parse().unwrap_or_default()).collect()
    }

    /// Its first number: drivers of one branch differ in mended faults.
    pub fn branch(&self) -> u32 {
        self.numbers()[0]
    }
}

impl FromStr for DriverVersion {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        if word.split('.').all(|part| number(part).is_some()) {
            Ok(Self(word.to_owned()))
        } else {
            Err(Error::Version { word: word.to_owned() })
        }
    }
}

impl fmt::Display for DriverVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CudaVersion {
    type Err = Error;

    fn from_str(word: &str) -> Result<Self, Error> {
        let parts = word.split_once('.').and_then(|(major, minor)| Some((number(major)?, number(minor)?)));
        let (major, minor) = parts.ok_or_else(|| Error::Version { word: word.to_owned() })?;
        Ok(Self { major, minor })
    }
}

impl fmt::Display for CudaVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// Digits alone: Rust's numbers may have a sign.
pub(super) fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_versions_are_refused() {
        for word in ["", ".", "580.", ".1", "580.x", "580.+1", "580 1", "99999999999.1", "580\n.1"] {
            assert!(word.parse::<DriverVersion>().is_err(), "{word:?}");
            assert!(word.parse::<CudaVersion>().is_err(), "{word:?}");
        }
        assert!("13".parse::<CudaVersion>().is_err() && "13.0.1".parse::<CudaVersion>().is_err());
        let version: DriverVersion = "580.126.09".parse().unwrap();
        assert_eq!((version.numbers(), version.branch()), (vec![580, 126, 9], 580));
        assert_eq!("580".parse::<DriverVersion>().unwrap().branch(), 580);
    }
}
