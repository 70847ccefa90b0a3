//! Which engines read which spec. An engine refuses a whole file whose CDI version is newer than it knows, and then
//! says of each name in it that it is unresolvable, never why.

use cdi::Version;

use crate::discover::engines::{Engine, EngineName};
use crate::spec::Built;

impl EngineName {
    fn title(self) -> &'static str {
        match self {
            Self::Docker => "Docker",
            Self::Podman => "Podman",
        }
    }

    /// The newest CDI version that each release reads, from the first one that reads any: oldest first. After the CDI
    /// library that each was built with (moby/moby#47706, containers/podman#22280); Podman 4.3.1 was tried, as were those
    /// of docs/engines.md. Later ones read all that divvy writes.
    fn reads(self) -> &'static [((u32, u32), Version)] {
        match self {
            Self::Docker => &[((25, 0), Version::V0_6_0), ((26, 1), Version::V0_7_0)],
            Self::Podman => {
                &[((4, 1), Version::V0_5_0), ((4, 7), Version::V0_6_0), ((5, 1), Version::V0_7_0)]
            }
        }
    }
}

impl Engine {
    /// The newest version that it reads of those that divvy writes; none if it reads no CDI.
    fn reads(&self) -> Option<Version> {
        let mut numbers = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let known = self.name.reads().iter().rev().find(|(from, _)| version >= *from);
        known.map(|(_, reads)| *reads)
    }
}

/// Says which names which engine of this host cannot read, and what to do; nothing where all is well.
pub fn unreadable(engines: &[Engine], specs: &[Built]) -> Vec<(String, String)> {
    engines.iter().flat_map(|engine| unreadable_by(engine, specs)).collect()
}

fn unreadable_by(engine: &Engine, specs: &[Built]) -> Vec<(String, String)> {
    let (title, version) = (engine.name.title(), &engine.version);
    let Some(reads) = engine.reads() else {
        let first = engine.name.reads().first().map(|((major, minor), _)| format!("{major}.{minor}"));
        let first = first.unwrap_or_default();
        return vec![(
            format!("{title} {version} reads no CDI specs, so it knows none of these names"),
            format!("{title} reads them since {first}"),
        )];
    };
    let needs = |built: &Built| built.spec.cdi_version.parse::<Version>().ok().filter(|needs| *needs > reads);
    let unread = specs.iter().filter_map(|built| Some((built, needs(built)?)));
    let warning = |(built, needs): (&Built, Version)| {
        let names: Vec<&str> = built.spec.devices.iter().map(|device| device.name.as_str()).collect();
        let kind = &built.spec.kind;
        let names = match names[..] {
            [one] => format!("{kind}={one}"),
            [first, second] => format!("{kind}={first} and {second}"),
            [first, second, ..] => format!("{kind}={first}, {second} and {} more", names.len() - 2),
            [] => kind.to_string(),
        };
        let since = engine.name.reads().iter().find(|(_, reads)| *reads >= needs);
        let since = since.map(|((major, minor), _)| format!("{major}.{minor}")).unwrap_or_default();
        let hint = match needs {
            Version::V0_7_0 => format!(
                "use {title} {since} or newer; or do without /dev/dri, whose groups need CDI {needs}: [[gpu]] match = [\"all\"] graphics = false"
            ),
            _ => format!("use {title} {since} or newer; kinds with a dot come from rename and mig_strategy"),
        };
        (format!("{title} {version} cannot read {names}: CDI {needs}, and it knows up to {reads}"), hint)
    };
    unread.map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_release_reads() {
        use EngineName::{Docker, Podman};
        for (name, version, reads) in [
            (Podman, "3.0.1", None),
            (Podman, "4.3.1", Some(Version::V0_5_0)),
            (Podman, "4.9.3", Some(Version::V0_6_0)),
            (Podman, "5.4.2", Some(Version::V0_7_0)),
            (Podman, "5.10.0", Some(Version::V0_7_0)),
            (Podman, "6", Some(Version::V0_7_0)),
            (Docker, "20.10.24", None),
            (Docker, "25.0.3", Some(Version::V0_6_0)),
            (Docker, "26.1.5", Some(Version::V0_7_0)),
            (Docker, "100.0", Some(Version::V0_7_0)),
        ] {
            assert_eq!(Engine { name, version: version.into() }.reads(), reads, "{name:?} {version}");
        }
    }
}
