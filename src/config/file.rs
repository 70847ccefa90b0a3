//! TOML -> `Config`. The shape is serde's part, with unknown keys refused; what a value may be is checked here, each
//! with its line and column.
//!
//! - `mps`: keys that are about MPS alone
//! - `leases`: who may have how many for how long: pools, users, and the wait for the daemon

mod leases;
mod mps;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use toml::Spanned;

use super::value::{self, Match};
use leases::{RawPool, RawUser};
use mps::Start;

use super::{
    Config, MOST_ENTRIES, MOST_REPLICAS, MatchEntry, MigStrategy, Mistake, Mode, Place, Priority, Require,
    Rule, ShareRule, TimeSlice, WholeNames, line_starts, no_entry_twice,
};

/// Name of shares that have none of their own.
pub const DEFAULT_NAME: &str = "shared";

/// CDI class of shares with `rename = true`, as NVIDIA's plugin has it with renameByDefault.
const RENAMED: &str = "gpu.shared";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    #[serde(default)]
    gpu: Vec<Spanned<RawGpu>>,
    #[serde(default)]
    pool: BTreeMap<Spanned<String>, RawPool>,
    #[serde(default)]
    users: BTreeMap<Spanned<String>, RawUser>,
    #[serde(default)]
    whole_names: WholeNames,
    mig_strategy: Option<MigStrategy>,
    #[serde(default)]
    management: bool,
    start_timeout: Option<Spanned<RawQuantity>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawGpu {
    r#match: Spanned<Vec<Spanned<String>>>,
    mode: Option<Spanned<Mode>>,
    name: Option<Spanned<String>>,
    replicas: Option<Spanned<i64>>,
    memory: Option<Spanned<RawQuantity>>,
    sm_percent: Option<Spanned<i64>>,
    advisory: Option<bool>,
    require: Option<Spanned<Require>>,
    priority: Option<Spanned<Priority>>,
    start: Option<Spanned<Start>>,
    shm: Option<Spanned<RawQuantity>>,
    time_slice: Option<Spanned<TimeSlice>>,
    overcommit: Option<bool>,
    rename: Option<bool>,
    exclusive: Option<Spanned<bool>>,
    whole: Option<Spanned<bool>>,
    graphics: Option<bool>,
    share: Option<Vec<Spanned<RawShare>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShare {
    name: Option<Spanned<String>>,
    replicas: Option<Spanned<i64>>,
    memory: Option<Spanned<RawQuantity>>,
    sm_percent: Option<Spanned<i64>>,
    advisory: Option<bool>,
    require: Option<Spanned<Require>>,
    priority: Option<Spanned<Priority>>,
}

/// A size or duration as it was written, be it a number or a text, so that one error can say what is allowed.
pub struct RawQuantity(String);

impl<'de> Deserialize<'de> for RawQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyQuantity;
        impl Visitor<'_> for AnyQuantity {
            type Value = RawQuantity;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number with its unit, as in \"8GiB\" or \"30m\"")
            }
            fn visit_str<E>(self, text: &str) -> Result<RawQuantity, E> {
                Ok(RawQuantity(text.to_owned()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<RawQuantity, E> {
                Ok(RawQuantity(number.to_string()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<RawQuantity, E> {
                Ok(RawQuantity(number.to_string()))
            }
        }
        deserializer.deserialize_any(AnyQuantity)
    }
}

/// The keys that say what a share is, of a `[[gpu.share]]` or of a `[[gpu]]` whose shares are all alike.
struct ShareKeys<'a> {
    name: Option<&'a Spanned<String>>,
    replicas: Option<&'a Spanned<i64>>,
    memory: Option<&'a Spanned<RawQuantity>>,
    sm_percent: Option<&'a Spanned<i64>>,
    require: Option<&'a Spanned<Require>>,
    priority: Option<&'a Spanned<Priority>>,
}

impl RawGpu {
    fn share_keys(&self) -> ShareKeys<'_> {
        ShareKeys {
            name: self.name.as_ref(),
            replicas: self.replicas.as_ref(),
            memory: self.memory.as_ref(),
            sm_percent: self.sm_percent.as_ref(),
            require: self.require.as_ref(),
            priority: self.priority.as_ref(),
        }
    }
}

impl RawShare {
    fn keys(&self) -> ShareKeys<'_> {
        ShareKeys {
            name: self.name.as_ref(),
            replicas: self.replicas.as_ref(),
            memory: self.memory.as_ref(),
            sm_percent: self.sm_percent.as_ref(),
            require: self.require.as_ref(),
            priority: self.priority.as_ref(),
        }
    }
}

/// Parses TOML; `name` is the file's, for messages.
pub fn parse(name: &str, text: &str) -> Result<Config, Mistake> {
    let source = Source { name, text, line_starts: line_starts(text) };
    let raw: RawConfig = toml::from_str(text).map_err(|error| source.toml_error(&error))?;
    let rules = raw.gpu.iter().map(|gpu| source.rule(gpu)).collect::<Result<Vec<_>, _>>()?;
    no_entry_twice(&rules)?;
    Ok(Config {
        rules,
        whole_names: raw.whole_names,
        mig_strategy: raw.mig_strategy,
        management: raw.management,
        pools: raw.pool.iter().map(|(name, pool)| source.pool(name, pool)).collect::<Result<_, _>>()?,
        users: raw.users.iter().map(|(name, user)| source.user(name, user)).collect::<Result<_, _>>()?,
        start_timeout: raw.start_timeout.as_ref().map(|text| source.start_timeout(text)).transpose()?,
        warnings: Vec::new(),
    })
}

fn is_set(key: &Option<Spanned<bool>>) -> bool {
    key.as_ref().is_some_and(|key| *key.get_ref())
}

/// The text, and the way from its spans to places.
struct Source<'a> {
    name: &'a str,
    text: &'a str,
    line_starts: Vec<usize>,
}

impl Source<'_> {
    fn place<T>(&self, at: &Spanned<T>) -> Place {
        self.place_at(at.span().start)
    }

    fn place_at(&self, offset: usize) -> Place {
        Place::in_text(self.name, self.text, &self.line_starts, offset)
    }

    fn mistake<T>(&self, at: &Spanned<T>, what: impl Into<String>) -> Mistake {
        Mistake { place: self.place(at), what: what.into(), hint: None }
    }

    fn toml_error(&self, error: &toml::de::Error) -> Mistake {
        let place = match error.span() {
            Some(span) => self.place_at(span.start),
            None => Place::file(self.name),
        };
        // serde says field for what TOML calls a key, and variant for a value.
        let what = error.message().trim().replace("unknown field", "unknown key");
        let what = what.replace("unknown variant", "unknown value").replace("missing field", "missing key");
        let what = what.replace("expected i64", "expected a whole number").replace("a sequence", "a list");
        let what = what
            .replace("type: map", "type: table")
            .replace("a map", "a table")
            .replace("wanted string or table", "expected a text");
        let what = what.lines().collect::<Vec<_>>().join(": ");
        let hint = error.span().and_then(|span| self.hint(&what, span.start));
        // A name of this program's tells nobody what is expected.
        let what = what
            .replace("struct RawPool", "a table of settings")
            .replace("struct RawUser", "a table of settings");
        Mistake { place, what, hint }
    }

    /// What to do about a mistake that says where it is, and not what was meant.
    fn hint(&self, what: &str, offset: usize) -> Option<String> {
        let at = self.text.get(offset..).unwrap_or_default();
        let is_unknown_key = what.starts_with("unknown key");
        let top = ["start_timeout", "whole_names", "mig_strategy", "management"];
        if is_unknown_key && top.iter().any(|key| at.starts_with(key)) {
            return Some("it stands at the top of the file, before the first table".into());
        }
        if what.starts_with("unknown value `exclusive`") {
            return Some("exclusive = true, without mode".into());
        }
        self.table_name(what, offset)
    }

    fn rule(&self, spanned: &Spanned<RawGpu>) -> Result<Rule, Mistake> {
        let gpu = spanned.get_ref();
        if gpu.r#match.get_ref().is_empty() {
            return Err(self.mistake(&gpu.r#match, format!("match is empty: {}", value::MATCH_FORMS)));
        }
        if gpu.r#match.get_ref().len() > MOST_ENTRIES {
            return Err(
                self.mistake(&gpu.r#match, format!("there are more than {MOST_ENTRIES} match entries"))
            );
        }
        let mode = gpu.mode.as_ref().map_or(Mode::Whole, |mode| *mode.get_ref());
        self.leased_whole(mode, gpu)?;
        let mps = self.mps(mode, gpu)?;
        let shares = match (mode, &gpu.share) {
            (Mode::Whole, _) => self.no_shares(gpu).map(|()| Vec::new())?,
            (_, Some(shares)) if !shares.is_empty() => self.unequal_shares(gpu, shares)?,
            _ => vec![self.share(&gpu.share_keys(), gpu.advisory, gpu)?],
        };
        Ok(Rule {
            place: self.place(spanned),
            matches: gpu.r#match.get_ref().iter().map(|entry| self.entry(entry)).collect::<Result<_, _>>()?,
            only: None,
            mode,
            shares,
            overcommit: gpu.overcommit.unwrap_or(false),
            class: gpu.rename.unwrap_or(false).then(|| RENAMED.to_owned()),
            graphics: gpu.graphics,
            exclusive: is_set(&gpu.exclusive),
            whole: is_set(&gpu.whole),
            mps,
            time_slice: self.time_slice(mode, gpu)?,
        })
    }

    /// Turns are only taken where shares are in time slices.
    fn time_slice(&self, mode: Mode, gpu: &RawGpu) -> Result<Option<TimeSlice>, Mistake> {
        let Some(time_slice) = &gpu.time_slice else { return Ok(None) };
        if mode == Mode::TimeSlice {
            return Ok(Some(*time_slice.get_ref()));
        }
        Err(Mistake {
            hint: Some("leave it out, or share the GPU with mode = \"time-slice\"".into()),
            ..self.mistake(
                time_slice,
                "time_slice needs mode = \"time-slice\": it says how long the turns of shares are",
            )
        })
    }

    /// Shares are leased as they are, and what is not cut is whole as it is.
    fn leased_whole(&self, mode: Mode, gpu: &RawGpu) -> Result<(), Mistake> {
        let wrong = |key: &Option<Spanned<bool>>, what: &str, hint: &str| match key {
            Some(key) if *key.get_ref() => {
                Err(Mistake { hint: Some(hint.into()), ..self.mistake(key, what) })
            }
            _ => Ok(()),
        };
        match mode {
            Mode::Whole => wrong(
                &gpu.whole,
                "whole = true needs a mode that makes shares: without one the device is whole",
                "exclusive = true gives a whole device to one container at a time",
            ),
            Mode::Mps if is_set(&gpu.whole) => wrong(
                &gpu.whole,
                "whole = true cannot stand beside mode = \"mps\": while MPS runs, the compute mode keeps out who has the whole device",
                "leave it out, or share the device with mode = \"time-slice\"",
            ),
            Mode::Mps => wrong(
                &gpu.exclusive,
                "exclusive = true is about whole devices: a share belongs to one container at a time anyway",
                "leave it out",
            ),
            _ if is_set(&gpu.whole) => Ok(()),
            _ => wrong(
                &gpu.exclusive,
                "exclusive = true is about whole devices: a share belongs to one container at a time anyway",
                "leave it out, or keep the whole device's names beside its shares with whole = true",
            ),
        }
    }

    /// The first key of a share that is set, and where.
    fn first_of(&self, keys: &ShareKeys<'_>) -> Option<(&'static str, Place)> {
        let replicas = keys.replicas.map(|at| ("replicas", self.place(at)));
        let memory = keys.memory.map(|at| ("memory", self.place(at)));
        let sm_percent = keys.sm_percent.map(|at| ("sm_percent", self.place(at)));
        let name = keys.name.map(|at| ("name", self.place(at)));
        replicas.or(memory).or(sm_percent).or(name)
    }

    /// Keys of shares in a rule that makes none are a mode that was forgotten.
    fn no_shares(&self, gpu: &RawGpu) -> Result<(), Mistake> {
        let table = gpu.share.iter().flatten().next().map(|share| ("gpu.share", self.place(share)));
        let require = gpu.require.as_ref().map(|at| ("require", self.place(at)));
        let first = self.first_of(&gpu.share_keys()).or(require);
        let Some((key, place)) = first.or(table) else { return Ok(()) };
        let what = match gpu.mode {
            Some(_) => format!("{key} cannot stand in a rule with mode = \"whole\""),
            None => format!("{key} needs a mode: without one the GPU stays whole"),
        };
        Err(Mistake {
            place,
            what,
            hint: Some("add mode = \"time-slice\" or mode = \"mps\" to the rule to share the GPU".into()),
        })
    }

    fn unequal_shares(&self, gpu: &RawGpu, shares: &[Spanned<RawShare>]) -> Result<Vec<ShareRule>, Mistake> {
        if let Some((key, place)) = self.first_of(&gpu.share_keys()) {
            let what = format!("{key} cannot stand beside [[gpu.share]]: each share has its own");
            return Err(Mistake { place, what, hint: Some("move it into the [[gpu.share]] tables".into()) });
        }
        let mut rules: Vec<ShareRule> = Vec::new();
        for spanned in shares {
            let share = spanned.get_ref();
            let rule = self.share(&share.keys(), share.advisory.or(gpu.advisory), gpu)?;
            if rules.iter().any(|earlier| earlier.name == rule.name) {
                let place = share.name.as_ref().map_or_else(|| self.place(spanned), |name| self.place(name));
                let what = format!("two shares of one GPU are named {:?}", rule.name);
                let hint = Some("give each [[gpu.share]] a name, or one of them more replicas".into());
                return Err(Mistake { place, what, hint });
            }
            rules.push(rule);
            let together: u64 = rules.iter().map(|rule| u64::from(rule.replicas)).sum();
            if together > MOST_REPLICAS.into() {
                let what = format!("with these the GPU has {together} shares: {MOST_REPLICAS} are the most");
                return Err(self.mistake(spanned, what));
            }
        }
        Ok(rules)
    }

    fn share(
        &self,
        keys: &ShareKeys<'_>,
        advisory: Option<bool>,
        gpu: &RawGpu,
    ) -> Result<ShareRule, Mistake> {
        if let Some(name) = keys.name {
            value::share_name(name.get_ref()).map_err(|why| self.mistake(name, why))?;
        }
        let memory = keys.memory.map(|size| {
            let bytes = value::size(&size.get_ref().0);
            bytes.map_err(|why| self.mistake(size, format!("memory: {why}")))
        });
        let sm_percent = keys.sm_percent.map(|percent| match u32::try_from(*percent.get_ref()) {
            Ok(number @ 1..=100) => Ok(number),
            _ => Err(self.mistake(percent, format!("sm_percent is {}: it is 1 to 100", percent.get_ref()))),
        });
        Ok(ShareRule {
            name: keys.name.map_or_else(|| DEFAULT_NAME.to_owned(), |name| name.get_ref().clone()),
            replicas: keys.replicas.map_or(Ok(1), |replicas| self.count(replicas, "replicas"))?,
            memory_bytes: memory.transpose()?,
            sm_percent: sm_percent.transpose()?,
            advisory: advisory.unwrap_or(false),
            require: keys.require.or(gpu.require.as_ref()).map(|require| *require.get_ref()),
            priority: keys
                .priority
                .or(gpu.priority.as_ref())
                .map_or_else(Priority::default, |key| *key.get_ref()),
        })
    }

    fn count(&self, count: &Spanned<i64>, key: &str) -> Result<u32, Mistake> {
        match u32::try_from(*count.get_ref()) {
            Ok(number @ 1..=MOST_REPLICAS) => Ok(number),
            _ => {
                Err(self.mistake(count, format!("{key} is {}: it is 1 to {MOST_REPLICAS}", count.get_ref())))
            }
        }
    }

    fn entry(&self, entry: &Spanned<String>) -> Result<MatchEntry, Mistake> {
        let text = entry.get_ref().clone();
        let matches = Match::parse(&text).map_err(|why| self.mistake(entry, format!("match: {why}")))?;
        Ok(MatchEntry { text, matches, place: self.place(entry) })
    }
}
