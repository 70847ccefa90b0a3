//! The configuration file of NVIDIA's Kubernetes device plugin (YAML or JSON, `version: v1`) -> `Config`, so that who
//! has one need not write another. Its `rename` and `devices`, which the plugin itself ignores, are kept. Under MPS each
//! share gets an equal part, as with the plugin; each thing that the file asks for and does not get is a warning, and
//! nothing unknown is passed over.
//!
//! - `shape`: every key of the file

mod shape;
#[cfg(test)]
mod tests;

use serde_saphyr::{Location, Spanned};

use super::value::{Match, is_profile};
use super::{
    Config, MOST_REPLICAS, MatchEntry, MigStrategy, Mistake, Mode, MpsRule, Order, Place, PoolRule, Priority,
    Rule, ShareRule,
};
use super::{file, no_entry_twice};
use crate::discover::host::SideClass;
use shape::{Devices, RawConfig, RawFlags, Resource, Sharing};

/// NVIDIA's limit for a resource's name. A file is named by it.
const LONGEST_CLASS: usize = 63;

/// Parses the file; `name` is its name, for messages.
pub fn parse(name: &str, text: &str) -> Result<Config, Mistake> {
    let raw: RawConfig = match text.trim().is_empty() {
        true => RawConfig::default(),
        false => serde_saphyr::from_str(text).map_err(|error| syntax(name, &error))?,
    };
    Reader { name, warnings: Vec::new() }.config(&raw)
}

fn syntax(name: &str, error: &serde_saphyr::Error) -> Mistake {
    let message = error.without_snippet().to_string();
    // The place is said in front, and advice to programmers is none to users.
    let message = message.split(" at line ").next().unwrap_or_default();
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or_default();
    let what = message.replace("unknown field", "unknown key").replace("missing field", "missing key");
    let what = what.replace("unknown variant", "unknown value").replace(|c: char| c.is_control(), "?");
    let place = error.location().map_or_else(|| Place::file(name), |location| place(name, location));
    Mistake { place, what, hint: None }
}

fn place(name: &str, location: Location) -> Place {
    let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Place {
        file: name.to_owned(),
        line_and_column: Some((number(location.line()), number(location.column()))),
    }
}

/// Where requests for more than one do not fail, a container may have several shares. The plugin's default: they fail
/// under MPS, and do not in time slices.
fn several(how: Mode, sharing: &Sharing) -> Option<PoolRule> {
    let fails = sharing.fail_requests_greater_than_one.unwrap_or(how == Mode::Mps);
    (!fails).then(|| PoolRule {
        name: file::DEFAULT_NAME.to_owned(),
        place: None,
        wait_seconds: 0,
        order: Order::default(),
        per_container: Some(MOST_REPLICAS),
    })
}

struct Reader<'a> {
    name: &'a str,
    warnings: Vec<String>,
}

impl Reader<'_> {
    fn mistake<T>(&self, at: &Spanned<T>, what: impl Into<String>) -> Mistake {
        Mistake { place: place(self.name, at.referenced), what: what.into(), hint: None }
    }

    fn warn(&mut self, what: &str) {
        self.warnings.push(format!("{}: {what}", self.name));
    }

    fn config(mut self, raw: &RawConfig) -> Result<Config, Mistake> {
        if let Some(version) =
            raw.version.as_ref().filter(|version| !["", "v1"].contains(&version.value.as_str()))
        {
            return Err(self.mistake(version, format!("version is {:?}: divvy reads v1", version.value)));
        }
        let flags = raw.flags.clone().unwrap_or_default();
        let strategy = flags.mig_strategy;
        self.without_meaning(raw, &flags);
        let (mut rules, mut pools) = (Vec::new(), Vec::new());
        if let Some((how, sharing)) = self.sharing(raw) {
            for resource in &sharing.resources {
                rules.push(self.rule(how, &sharing, resource, strategy)?);
            }
            pools.extend(several(how, &sharing));
        }
        no_entry_twice(&rules)?;
        Ok(Config { rules, pools, mig_strategy: strategy, warnings: self.warnings, ..Config::default() })
    }

    /// Keys that are for Kubernetes, in one line.
    fn without_meaning(&mut self, raw: &RawConfig, flags: &RawFlags) {
        let mut keys: Vec<String> = flags.others.iter().map(|key| format!("flags.{key}")).collect();
        for (key, value) in [("resources", &raw.resources), ("imex", &raw.imex)] {
            if value.is_some() {
                keys.push(key.to_owned());
            }
        }
        if !keys.is_empty() {
            self.warn(&format!("without a meaning outside Kubernetes: {}", keys.join(", ")));
        }
    }

    /// The one form of sharing that counts: where both are given, NVIDIA's plugin takes MPS.
    fn sharing(&mut self, raw: &RawConfig) -> Option<(Mode, Sharing)> {
        let sharing = raw.sharing.clone()?;
        Some(match (sharing.mps, sharing.time_slicing) {
            (Some(mps), time_slicing) => {
                if time_slicing.is_some() {
                    self.warn("sharing.mps goes before sharing.timeSlicing, as in NVIDIA's plugin");
                }
                (Mode::Mps, mps)
            }
            (None, time_slicing) => (Mode::TimeSlice, time_slicing?),
        })
    }

    fn rule(
        &mut self,
        how: Mode,
        sharing: &Sharing,
        resource: &Spanned<Resource>,
        strategy: Option<MigStrategy>,
    ) -> Result<Rule, Mistake> {
        let Resource { name, rename, devices, replicas } = &resource.value;
        let replicas = match u32::try_from(replicas.value) {
            // NVIDIA's plugin wants two at least.
            Ok(count @ 2..=MOST_REPLICAS) => count,
            _ => {
                let what = format!("replicas is {}: it is 2 to {MOST_REPLICAS}", replicas.value);
                return Err(self.mistake(replicas, what));
            }
        };
        let short = name.value.strip_prefix("nvidia.com/").unwrap_or(&name.value).to_owned();
        let of = self.resource(name, &short, strategy)?;
        let class = match rename {
            Some(rename) => self.renamed(rename)?,
            None if sharing.rename_by_default.unwrap_or(false) => format!("{short}.shared"),
            None => short,
        };
        if let Err(error) = format!("nvidia.com/{class}").parse::<cdi::Kind>() {
            return Err(self.mistake(name, error.to_string()));
        }
        let share = ShareRule {
            name: file::DEFAULT_NAME.to_owned(),
            replicas,
            // Under MPS each has an equal part without a word.
            memory_bytes: None,
            sm_percent: None,
            advisory: false,
            require: None,
            priority: Priority::default(),
        };
        Ok(Rule {
            place: place(self.name, resource.referenced),
            matches: self.matches(name, of.clone(), devices.as_ref())?,
            only: Some(of),
            mode: how,
            shares: vec![share],
            overcommit: false,
            class: Some(class).filter(|class| class != "gpu"),
            graphics: None,
            exclusive: false,
            whole: false,
            mps: MpsRule::default(),
            time_slice: None,
        })
    }

    /// What a resource stands for. In NVIDIA's plugin the strategy decides what `nvidia.com/gpu` is.
    fn resource(
        &mut self,
        name: &Spanned<String>,
        short: &str,
        strategy: Option<MigStrategy>,
    ) -> Result<Match, Mistake> {
        if short == "gpu" {
            return Ok(match strategy {
                Some(MigStrategy::Single) => Match::All,
                // Whole GPUs of any model, and no MIG devices.
                _ => Match::Model("*".into()),
            });
        }
        let profile = short.strip_prefix("mig-").filter(|profile| !profile.contains('+'));
        match profile.filter(|profile| is_profile(profile)) {
            Some(profile) => {
                if strategy != Some(MigStrategy::Mixed) {
                    self.warn(&format!(
                        "{short} is a resource under migStrategy mixed only; it is shared all the same"
                    ));
                }
                Ok(Match::Profile(profile.to_owned()))
            }
            None => Err(self.mistake(
                name,
                format!(
                    "{:?} is no resource of NVIDIA's: it is nvidia.com/gpu or nvidia.com/mig-<profile>",
                    name.value
                ),
            )),
        }
    }

    fn renamed(&self, rename: &Spanned<String>) -> Result<String, Mistake> {
        let class = rename.value.strip_prefix("nvidia.com/").unwrap_or(&rename.value);
        if class.starts_with("mig-") {
            return Err(self.mistake(rename, format!("rename: {class:?} would be taken for a MIG device")));
        }
        if SideClass::ALL.iter().any(|side| side.kind().strip_prefix("nvidia.com/") == Some(class)) {
            return Err(
                self.mistake(rename, format!("rename: nvidia.com/{class} is the kind of other devices"))
            );
        }
        if class.len() > LONGEST_CLASS {
            return Err(
                self.mistake(rename, format!("rename: the name is longer than {LONGEST_CLASS} characters"))
            );
        }
        match format!("nvidia.com/{class}").parse::<cdi::Kind>() {
            Ok(_) => Ok(class.to_owned()),
            Err(error) => Err(self.mistake(rename, format!("rename: {error}"))),
        }
    }

    fn matches(
        &self,
        resource: &Spanned<String>,
        of: Match,
        devices: Option<&Spanned<Devices>>,
    ) -> Result<Vec<MatchEntry>, Mistake> {
        let all = || {
            vec![MatchEntry {
                text: resource.value.clone(),
                matches: of.clone(),
                place: place(self.name, resource.referenced),
            }]
        };
        let Some(devices) = devices else { return Ok(all()) };
        let list = match &devices.value {
            Devices::Word(word) if word == "all" => return Ok(all()),
            Devices::Word(word) => {
                return Err(self.mistake(devices, format!("devices is {word:?}: it is \"all\" or a list")));
            }
            // Which of them it would be is not said anywhere, and NVIDIA's plugin ignores the key.
            Devices::Count(count) => {
                let what = format!("devices is {count}, which says how many and not which");
                let hint = Some("list them by index, as [\"0\", \"1\"], or by UUID".to_owned());
                return Err(Mistake { hint, ..self.mistake(devices, what) });
            }
            Devices::List(list) => list,
        };
        let entry = |entry: &Spanned<shape::DeviceRef>| {
            let text = entry.value.0.clone();
            match Match::parse(&text) {
                Ok(matches @ (Match::Index(_) | Match::Mig(..) | Match::Uuid(_))) => {
                    Ok(MatchEntry { text, matches, place: place(self.name, entry.referenced) })
                }
                _ => {
                    let what = format!(
                        "{text:?} is no device: it is an index (\"0\"), a MIG device (\"0:1\") or a UUID"
                    );
                    Err(self.mistake(entry, what))
                }
            }
        };
        if list.is_empty() {
            return Err(self.mistake(devices, "devices is empty: leave it out for all"));
        }
        list.iter().map(entry).collect()
    }
}
