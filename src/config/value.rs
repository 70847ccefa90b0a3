//! The values of the configuration that have a form of their own, each read from its text. Errors say what is wrong
//! with the text and what is allowed, for a sentence that begins with the key.

use std::fmt;

/// Bytes from a whole number with KiB, MiB or GiB. Decimal units are refused: drivers and MPS read `G` as 2^30,
/// disk makers as 10^9, and MPS takes `1T` for one MiB.
pub fn size(text: &str) -> Result<u64, String> {
    const ALLOWED: &str = "a size is a whole number with KiB, MiB or GiB, as in \"8GiB\"";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let shift = match unit {
        _ if number.is_empty() => return Err(format!("{text:?} does not begin with a digit: {ALLOWED}")),
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "" => return Err(format!("{text:?} has no unit: {ALLOWED}")),
        _ if unit != unit.trim() && size(&format!("{number}{}", unit.trim())).is_ok() => {
            return Err(format!("there is a space in {text:?}: {ALLOWED}"));
        }
        _ if unit.starts_with('.') => return Err(format!("{text:?} is not a whole number: {ALLOWED}")),
        _ => return Err(format!("{:?} in {text:?} is no unit: {ALLOWED}", unit.trim())),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(0) => Err(format!("{text:?} is nothing: {ALLOWED}")),
        Some(bytes) => Ok(bytes),
        None => Err(format!("{text:?} is more than any GPU has: {ALLOWED}")),
    }
}

/// Seconds from a whole number with s, m or h.
pub fn duration(text: &str) -> Result<u64, String> {
    let error = || format!("{text:?} is no duration: it is a whole number with s, m or h, as in \"30m\"");
    let (number, seconds) = match text.split_at_checked(text.len().saturating_sub(1)) {
        Some((number, "s")) => (number, 1),
        Some((number, "m")) => (number, 60),
        Some((number, "h")) => (number, 3600),
        _ => return Err(error()),
    };
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(error());
    }
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds)).ok_or_else(error)
}

/// The pool of whole GPUs.
pub const WHOLE: &str = "whole";

/// Longest share name. Device names have no limit in CDI; host names and labels, which are made from them, have.
const NAME_LIMIT: usize = 63;

/// Checks a share's name, from which `NAME-0`, `NAME-1` are made, and which is the pool's name by itself.
pub fn share_name(name: &str) -> Result<(), String> {
    name.parse::<cdi::DeviceName>().map_err(|error| error.to_string())?;
    if name.len() > NAME_LIMIT {
        return Err(format!("the name {name:?} is longer than {NAME_LIMIT} characters"));
    }
    let small = name.to_ascii_lowercase();
    // The device names that will be made of it.
    let numbered = format!("{small}-");
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let reserved = match small.as_str() {
        "all" | WHOLE | "any" | "none" => Some("it has a meaning of its own"),
        _ if numbered.starts_with("mig-") => Some("names that begin with mig- belong to MIG devices"),
        _ if numbered.starts_with("gpu-") => Some("names that begin with GPU- are UUIDs"),
        _ if small.split(':').all(digits) => Some("digits are the index of a GPU"),
        _ if small.rsplit_once('-').is_some_and(|(_, end)| digits(end)) => {
            Some("it ends like the number of a share")
        }
        _ => None,
    };
    match reserved {
        Some(why) => Err(format!("the name {name:?} is reserved: {why}")),
        None => Ok(()),
    }
}

/// Checks the name of a pool: that of shares, `whole`, or `mig-` and a profile with a dot for each `+`.
pub fn pool_name(name: &str) -> Result<(), String> {
    match name.strip_prefix("mig-") {
        _ if name == WHOLE => Ok(()),
        Some(profile) if profile.contains('+') && is_profile(profile) => Err(format!(
            "{name:?} is no pool: a CDI name has a dot for each +, as in {:?}",
            name.replace('+', ".")
        )),
        Some(profile) if is_profile(profile) => Ok(()),
        Some(_) => Err(format!("{name:?} is no pool: a MIG profile comes after mig-, as in \"mig-1g.10gb\"")),
        None => share_name(name),
    }
}

/// Longest user name, which is Linux's (LOGIN_NAME_MAX).
const USER_LIMIT: usize = 256;

/// Checks a user of `[users]`: a name of whatever directory, a uid, or `*`. Root is none of them: who may start root's
/// containers is root.
pub fn user(text: &str) -> Result<(), String> {
    if text == "0" || text == "root" {
        return Err(format!("{text:?} cannot be capped: who may start root's containers is root"));
    }
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // The last one is no user, but an error of the system's (setuid(2)).
    let is_uid = text.parse::<u32>().is_ok_and(|uid| uid != u32::MAX && uid.to_string() == text);
    match text {
        _ if is_number && !is_uid => Err(format!("{text:?} is no uid")),
        "" => Err("a user's name is empty".into()),
        _ if text.len() > USER_LIMIT => Err(format!("a user's name is longer than {USER_LIMIT} characters")),
        _ if text.trim() != text || text.contains(|c: char| c.is_control() || c == ':') => {
            Err(format!("{text:?} is no user's name"))
        }
        _ => Ok(()),
    }
}

/// What an entry of a match list means.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    /// Every whole GPU and MIG device.
    All,
    /// A whole GPU by NVML index.
    Index(u32),
    /// A MIG device by GPU index and NVML MIG index.
    Mig(u32, u32),
    /// A GPU or MIG device by UUID, in small letters but for the prefix.
    Uuid(String),
    /// A whole GPU by PCI address, as sysfs writes it.
    Pci(String),
    /// MIG devices by profile, as `1g.10gb+me`.
    Profile(String),
    /// Whole GPUs by model name; `*` stands for any characters.
    Model(String),
}

impl Match {
    /// Reads an entry.
    pub fn parse(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        if text == "all" {
            return Ok(Self::All);
        }
        if let Some(index) = number(text) {
            return Ok(Self::Index(index));
        }
        if let Some((gpu, mig)) = text.split_once(':')
            && let (Some(gpu), Some(mig)) = (number(gpu), number(mig))
        {
            return Ok(Self::Mig(gpu, mig));
        }
        if let Some(prefix) = ["GPU-", "MIG-"].iter().find(|prefix| text.starts_with(**prefix)) {
            let rest = text[prefix.len()..].to_ascii_lowercase();
            if !is_uuid(&rest) {
                return Err(format!("{text:?} is not a whole UUID: `nvidia-smi -L` shows them"));
            }
            return Ok(Self::Uuid(format!("{prefix}{rest}")));
        }
        if let Some(address) = pci_address(text) {
            return Ok(Self::Pci(address));
        }
        if is_profile(text) {
            return Ok(Self::Profile(text.to_owned()));
        }
        if text.trim().is_empty() || text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
            return Err(format!("{text:?} matches nothing: {MATCH_FORMS}"));
        }
        Ok(Self::Model(text.to_owned()))
    }
}

/// What a match entry may be.
pub const MATCH_FORMS: &str = "it is an index (\"0\"), a UUID, a PCI address, a MIG device (\"0:1\"), a MIG profile \
                               (\"1g.10gb\"), a model name with * for any characters, or \"all\"";

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Index(index) => write!(f, "{index}"),
            Self::Mig(gpu, mig) => write!(f, "{gpu}:{mig}"),
            Self::Uuid(text) | Self::Pci(text) | Self::Profile(text) | Self::Model(text) => f.write_str(text),
        }
    }
}

/// 8-4-4-4-12 hexadecimal digits.
fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.len() == 5
        && groups
            .iter()
            .zip([8, 4, 4, 4, 12])
            .all(|(group, len)| group.len() == len && group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// `10:1c.0`, with a domain of four or eight digits in front or none, as sysfs writes it.
fn pci_address(text: &str) -> Option<String> {
    let hex = |text: &str, len: std::ops::RangeInclusive<usize>| {
        (len.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(())
    };
    let small = text.to_ascii_lowercase();
    let (rest, function) = small.split_once('.')?;
    hex(function, 1..=1)?;
    let parts: Vec<&str> = rest.split(':').collect();
    let (domain, bus, device) = match parts[..] {
        [bus, device] => ("0", bus, device),
        [domain, bus, device] => (domain, bus, device),
        _ => return None,
    };
    hex(domain, 1..=8)?;
    hex(bus, 2..=2)?;
    hex(device, 2..=2)?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    Some(format!("{domain:04x}:{bus}:{device}.{function}"))
}

/// `1g.10gb`, `1c.2g.10gb`, `1g.10gb+me`, `1g.24gb-me`, `1g.24gb+me.all`: whatever a driver may come to add.
pub fn is_profile(text: &str) -> bool {
    let plain = text.find("gb").map_or(text, |at| &text[..at + 2]);
    let attributes = &text[plain.len()..];
    if !attributes.is_empty() && !attributes.starts_with(['+', '-', '.']) {
        return false;
    }
    let counted = |part: &str, unit: &str| {
        part.strip_suffix(unit).is_some_and(|n| !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match plain.split('.').collect::<Vec<_>>()[..] {
        [slices, memory] => counted(slices, "g") && counted(memory, "gb"),
        [compute, slices, memory] => counted(compute, "c") && counted(slices, "g") && counted(memory, "gb"),
        _ => false,
    }
}

/// Whether `text` is what `pattern` says, `*` standing for any characters; letters' case does not count.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_ascii_lowercase(), text.to_ascii_lowercase());
    let parts: Vec<&str> = pattern.split('*').collect();
    let [first, middle @ .., last] = parts.as_slice() else { return pattern == text };
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.len() >= last.len() && rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("10GiB", 10 << 30),
            ("512MiB", 512 << 20),
            ("1024KiB", 1 << 20),
            ("17179869183GiB", 17179869183 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        const ALLOWED: &str = "a size is a whole number with KiB, MiB or GiB, as in \"8GiB\"";
        for (text, said) in [
            ("1T", "\"T\" in \"1T\" is no unit"),
            ("1.5G", "\"1.5G\" is not a whole number"),
            ("-1", "\"-1\" does not begin with a digit"),
            ("10 GB", "\"GB\" in \"10 GB\" is no unit"),
            ("10 GiB", "there is a space in \"10 GiB\""),
            ("10gib", "\"gib\" in \"10gib\" is no unit"),
            ("10", "\"10\" has no unit"),
            ("", "\"\" does not begin with a digit"),
            ("GiB", "\"GiB\" does not begin with a digit"),
            ("0MiB", "\"0MiB\" is nothing"),
            ("17179869184GiB", "\"17179869184GiB\" is more than any GPU has"),
            ("99999999999999999999GiB", "\"99999999999999999999GiB\" is more than any GPU has"),
            ("１GiB", "\"１GiB\" does not begin with a digit"),
        ] {
            assert_eq!(size(text), Err(format!("{said}: {ALLOWED}")), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("10s", 10), ("30m", 1800), ("2h", 7200), ("0s", 0)] {
            assert_eq!(duration(text), Ok(seconds));
        }
        for text in
            ["", "s", "10", "-1s", "1.5h", "10 s", "99999999999999999999s", "9999999999999999999h", "１s"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn share_names() {
        for name in ["shared", "large", "team-a", "a.b_c:d", "x1", "migs", "gpu0", &"n".repeat(63)] {
            assert_eq!(share_name(name), Ok(()), "{name}");
        }
        for (name, said) in [
            ("all", "the name \"all\" is reserved: it has a meaning of its own"),
            ("Whole", "the name \"Whole\" is reserved: it has a meaning of its own"),
            ("any", "the name \"any\" is reserved: it has a meaning of its own"),
            ("none", "the name \"none\" is reserved: it has a meaning of its own"),
            (
                "mig-1g.10gb",
                "the name \"mig-1g.10gb\" is reserved: names that begin with mig- belong to MIG devices",
            ),
            ("mig", "the name \"mig\" is reserved: names that begin with mig- belong to MIG devices"),
            ("Gpu", "the name \"Gpu\" is reserved: names that begin with GPU- are UUIDs"),
            ("GPU-x", "the name \"GPU-x\" is reserved: names that begin with GPU- are UUIDs"),
            ("7", "the name \"7\" is reserved: digits are the index of a GPU"),
            ("0:1", "the name \"0:1\" is reserved: digits are the index of a GPU"),
            ("shared-3", "the name \"shared-3\" is reserved: it ends like the number of a share"),
            ("", "the device name in \"\" is empty"),
            ("a b", "the device name in \"a b\" cannot hold ' ' (character 2)"),
            ("-a", "the device name in \"-a\" cannot start with '-' (character 1)"),
            ("a/b", "the device name in \"a/b\" cannot hold '/' (character 2)"),
            ("größe", "the device name in \"größe\" cannot hold 'ö' (character 3)"),
        ] {
            assert_eq!(share_name(name), Err(said.into()), "{name}");
        }
        assert!(share_name(&"n".repeat(64)).is_err());
    }

    #[test]
    fn pool_names() {
        for name in ["shared", "team-a", "whole", "mig-1g.10gb", "mig-1c.2g.10gb", "mig-1g.24gb.gfx"] {
            assert_eq!(pool_name(name), Ok(()), "{name}");
        }
        for (name, said) in [
            ("all", "the name \"all\" is reserved: it has a meaning of its own"),
            ("shared-0", "the name \"shared-0\" is reserved: it ends like the number of a share"),
            ("mig-", "\"mig-\" is no pool: a MIG profile comes after mig-, as in \"mig-1g.10gb\""),
            ("mig-all", "\"mig-all\" is no pool: a MIG profile comes after mig-, as in \"mig-1g.10gb\""),
            (
                "mig-1g.24gb+gfx",
                "\"mig-1g.24gb+gfx\" is no pool: a CDI name has a dot for each +, as in \"mig-1g.24gb.gfx\"",
            ),
            ("", "the device name in \"\" is empty"),
        ] {
            assert_eq!(pool_name(name), Err(said.into()), "{name}");
        }
    }

    #[test]
    fn users() {
        for text in ["*", "ana", "1000", "4294967294", "ana.b@example.org", "EXAMPLE\\ana", "größe", "0x1"]
        {
            assert_eq!(user(text), Ok(()), "{text}");
        }
        for (text, said) in [
            ("", "a user's name is empty"),
            ("0", "\"0\" cannot be capped: who may start root's containers is root"),
            ("root", "\"root\" cannot be capped: who may start root's containers is root"),
            ("01000", "\"01000\" is no uid"),
            ("4294967295", "\"4294967295\" is no uid"),
            ("99999999999", "\"99999999999\" is no uid"),
            ("a:b", "\"a:b\" is no user's name"),
            ("a\nb", "\"a\\nb\" is no user's name"),
            (" ana", "\" ana\" is no user's name"),
            ("ana ", "\"ana \" is no user's name"),
            (" ", "\" \" is no user's name"),
        ] {
            assert_eq!(user(text), Err(said.into()), "{text}");
        }
        assert!(user(&"n".repeat(257)).is_err());
    }

    #[test]
    fn match_entries() {
        let uuid = "GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf";
        for (text, matches) in [
            ("all", Match::All),
            ("0", Match::Index(0)),
            ("15", Match::Index(15)),
            ("0:1", Match::Mig(0, 1)),
            (uuid, Match::Uuid(uuid.into())),
            ("GPU-36441532-9EF4-0F3A-AFB1-F844C3AB04BF", Match::Uuid(uuid.into())),
            ("00000000:10:1C.0", Match::Pci("0000:10:1c.0".into())),
            ("0000:10:1c.0", Match::Pci("0000:10:1c.0".into())),
            ("10:1c.0", Match::Pci("0000:10:1c.0".into())),
            ("1g.10gb", Match::Profile("1g.10gb".into())),
            ("1c.2g.10gb", Match::Profile("1c.2g.10gb".into())),
            ("1g.24gb+gfx", Match::Profile("1g.24gb+gfx".into())),
            ("1g.24gb-me", Match::Profile("1g.24gb-me".into())),
            ("1g.24gb+me.all", Match::Profile("1g.24gb+me.all".into())),
            ("1g.24gbx", Match::Model("1g.24gbx".into())),
            ("NVIDIA A100*", Match::Model("NVIDIA A100*".into())),
            ("*", Match::Model("*".into())),
        ] {
            assert_eq!(Match::parse(text), Ok(matches), "{text}");
        }
        for text in [
            "",
            " ",
            "-1",
            "99999999999",
            "GPU-364",
            "MIG-1g.10gb",
            "GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bg",
        ] {
            assert!(Match::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn globs() {
        for (pattern, text, matches) in [
            ("NVIDIA A100*", "NVIDIA A100-SXM4-40GB", true),
            ("*a100*", "NVIDIA A100-SXM4-40GB", true),
            ("NVIDIA L4", "NVIDIA L4", true),
            ("NVIDIA L4", "NVIDIA L40", false),
            ("*", "", true),
            ("**", "x", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
        ] {
            assert_eq!(glob(pattern, text), matches, "{pattern} {text}");
        }
    }
}
