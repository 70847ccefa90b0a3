//! Names as CDI knows them: `vendor/class` for a kind of device, and the name of one device of that kind.
//! A value of these types is a valid name; a wrong one is refused here, where the character can be pointed out,
//! and not by an engine, which says only "unresolvable CDI devices".

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which name an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamePart {
    /// What stands before the slash of a kind.
    Vendor,
    /// What stands after it.
    Class,
    /// A device name.
    Device,
}

impl fmt::Display for NamePart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NamePart::Vendor => "vendor",
            NamePart::Class => "class",
            NamePart::Device => "device name",
        })
    }
}

/// Why a text is not a CDI name. Positions count characters from 1 in the whole text that was given.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NameError {
    /// A kind has no slash.
    #[error("kind {name:?} has no slash: it is written vendor/class")]
    NoSlash {
        /// What was given.
        name: String,
    },
    /// A name, or one side of the slash, is empty.
    #[error("the {part} in {name:?} is empty")]
    Empty {
        /// The empty part.
        part: NamePart,
        /// What was given.
        name: String,
    },
    /// A vendor or class of one character: released CDI libraries panic on it and take dockerd and containerd down.
    #[error(
        "the {part} in {name:?} is a single character, which crashes container engines: it needs two or more"
    )]
    TooShort {
        /// The short part.
        part: NamePart,
        /// What was given.
        name: String,
    },
    /// The first character is not allowed there.
    #[error("the {part} in {name:?} cannot start with {character:?} (character {position})")]
    Start {
        /// The wrong part.
        part: NamePart,
        /// What was given.
        name: String,
        /// Its first character.
        character: char,
        /// Where it stands.
        position: usize,
    },
    /// The last character is not a letter or digit.
    #[error("the {part} in {name:?} cannot end with {character:?} (character {position})")]
    End {
        /// The wrong part.
        part: NamePart,
        /// What was given.
        name: String,
        /// Its last character.
        character: char,
        /// Where it stands.
        position: usize,
    },
    /// A character that no such name may hold.
    #[error("the {part} in {name:?} cannot hold {character:?} (character {position})")]
    Character {
        /// The wrong part.
        part: NamePart,
        /// What was given.
        name: String,
        /// The first wrong character.
        character: char,
        /// Where it stands.
        position: usize,
    },
}

/// A kind of device, `vendor/class`, such as `example.com/gpu`.
///
/// Both sides hold ASCII letters, digits, `_`, `-` and `.`, start with a letter, end with a letter or digit (CDI
/// SPEC.md, "Kind"), and have at least two characters. A dot in the class needs CDI 0.6.0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Kind {
    text: String,
    slash: usize,
}

impl Kind {
    /// What stands before the slash.
    pub fn vendor(&self) -> &str {
        &self.text[..self.slash]
    }

    /// What stands after the slash.
    pub fn class(&self) -> &str {
        &self.text[self.slash + 1..]
    }

    /// The whole, as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for Kind {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        let Some(slash) = text.find('/') else { return Err(NameError::NoSlash { name: text }) };
        check(NamePart::Vendor, &text, 0, slash)?;
        check(NamePart::Class, &text, slash + 1, text.len())?;
        Ok(Kind { text, slash })
    }
}

/// The name of one device of a kind, such as `0`, `0:1` or `shared-3`.
///
/// ASCII letters, digits, `_`, `-`, `.` and `:`, the first and last a letter or digit (CDI SPEC.md, "CDI Devices").
/// A name that does not start with a letter needs CDI 0.5.0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DeviceName {
    text: String,
}

impl DeviceName {
    /// The name as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for DeviceName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        check(NamePart::Device, &text, 0, text.len())?;
        Ok(DeviceName { text })
    }
}

macro_rules! text_conversions {
    ($($name:ident),*) => {$(
        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                text.to_owned().try_into()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.text
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.text)
            }
        }
    )*};
}

text_conversions!(Kind, DeviceName);

/// Checks the bytes `from..to` of `name` as one part of it.
fn check(part: NamePart, name: &str, from: usize, to: usize) -> Result<(), NameError> {
    let text = &name[from..to];
    let before = name[..from].chars().count();
    let (Some(first), Some(last)) = (text.chars().next(), text.chars().next_back()) else {
        return Err(NameError::Empty { part, name: name.to_owned() });
    };

    let inside = |c: char| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.') || (c == ':' && part == NamePart::Device)
    };
    if let Some((at, character)) = text.chars().enumerate().find(|&(_, c)| !inside(c)) {
        return Err(NameError::Character {
            part,
            name: name.to_owned(),
            character,
            position: before + at + 1,
        });
    }

    let starts = match part {
        NamePart::Vendor | NamePart::Class => first.is_ascii_alphabetic(),
        NamePart::Device => first.is_ascii_alphanumeric(),
    };
    if !starts {
        return Err(NameError::Start { part, name: name.to_owned(), character: first, position: before + 1 });
    }
    if !last.is_ascii_alphanumeric() {
        let position = before + text.len();
        return Err(NameError::End { part, name: name.to_owned(), character: last, position });
    }
    if text.len() < 2 && part != NamePart::Device {
        return Err(NameError::TooShort { part, name: name.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{DeviceName, Kind};

    #[test]
    fn accepts_what_engines_accept() {
        for (text, vendor, class) in [
            ("nvidia.com/gpu", "nvidia.com", "gpu"),
            ("nvidia.com/gpu.shared", "nvidia.com", "gpu.shared"),
            ("aa/bb", "aa", "bb"),
            ("v_1-x.Y2/c-l_4", "v_1-x.Y2", "c-l_4"),
        ] {
            let kind: Kind = text.parse().unwrap();
            assert_eq!((kind.vendor(), kind.class(), kind.as_str()), (vendor, class, text));
            assert_eq!(kind.to_string(), text);
        }
        for text in ["0", "0:1", "a", "shared-0", "mig-1g.10gb", "GPU-36441532-9ef4", "A_b", &"x".repeat(200)]
        {
            assert_eq!(text.parse::<DeviceName>().unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_the_wrong_character_of_a_kind() {
        for (text, message) in [
            ("", "kind \"\" has no slash: it is written vendor/class"),
            ("nvidia.com", "kind \"nvidia.com\" has no slash: it is written vendor/class"),
            ("/gpu", "the vendor in \"/gpu\" is empty"),
            ("nvidia.com/", "the class in \"nvidia.com/\" is empty"),
            (
                "n/gpu",
                "the vendor in \"n/gpu\" is a single character, which crashes container engines: it needs two or more",
            ),
            (
                "nvidia.com/g",
                "the class in \"nvidia.com/g\" is a single character, which crashes container engines: it needs two or more",
            ),
            ("3com/gpu", "the vendor in \"3com/gpu\" cannot start with '3' (character 1)"),
            ("3/gpu", "the vendor in \"3/gpu\" cannot start with '3' (character 1)"),
            ("ab/_gpu", "the class in \"ab/_gpu\" cannot start with '_' (character 4)"),
            ("ab./gpu", "the vendor in \"ab./gpu\" cannot end with '.' (character 3)"),
            ("ab/gpu-", "the class in \"ab/gpu-\" cannot end with '-' (character 7)"),
            ("ab/gp/u", "the class in \"ab/gp/u\" cannot hold '/' (character 6)"),
            ("ab/g:u", "the class in \"ab/g:u\" cannot hold ':' (character 5)"),
            ("äb/gpu", "the vendor in \"äb/gpu\" cannot hold 'ä' (character 1)"),
            ("ab/gpü", "the class in \"ab/gpü\" cannot hold 'ü' (character 6)"),
            ("a b/gpu", "the vendor in \"a b/gpu\" cannot hold ' ' (character 2)"),
        ] {
            assert_eq!(text.parse::<Kind>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn names_the_wrong_character_of_a_device() {
        for (text, message) in [
            ("", "the device name in \"\" is empty"),
            ("-a", "the device name in \"-a\" cannot start with '-' (character 1)"),
            (":", "the device name in \":\" cannot start with ':' (character 1)"),
            ("a.", "the device name in \"a.\" cannot end with '.' (character 2)"),
            ("mig-1g.10gb+me", "the device name in \"mig-1g.10gb+me\" cannot hold '+' (character 12)"),
            ("a/b", "the device name in \"a/b\" cannot hold '/' (character 2)"),
            ("a\nb", "the device name in \"a\\nb\" cannot hold '\\n' (character 2)"),
        ] {
            assert_eq!(text.parse::<DeviceName>().unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn serde_checks_as_parsing_does() {
        assert_eq!(serde_json::to_string(&"aa/bb".parse::<Kind>().unwrap()).unwrap(), "\"aa/bb\"");
        assert_eq!(serde_json::from_str::<DeviceName>("\"0:1\"").unwrap().as_str(), "0:1");
        let error = serde_json::from_str::<Kind>("\"aa/b\"").unwrap_err().to_string();
        assert!(error.starts_with("the class in \"aa/b\" is a single character"), "{error}");
        assert!(serde_json::from_str::<DeviceName>("\"\"").is_err());
    }
}
