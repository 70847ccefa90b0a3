//! The plan as a file (plan.json), and what is read back from the one before: which names meant which device, and
//! which GPUs and MIG devices had which numbers. One generation stands in the file and in the specs made from it, so that a later
//! reader of both can tell whether they belong together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Mode;
use crate::discover::host::Host;
use crate::mps::settings::Settings;
use crate::time_slices::Wanted;

use super::pools::{Pool, UserCap};
use super::{Device, Plan};

/// More numbers than any plan gives, on any number of GPUs.
const MOST_NUMBERS: u64 = 1 << 20;

/// Version of the file's format. A reader refuses any other.
const VERSION: u32 = 1;

/// What an earlier plan says that a later one should keep to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Earlier {
    /// GPUs and MIG devices in the order of their numbers.
    pub units: Vec<KnownUnit>,
    /// UUID of the device that each name meant, by class and name.
    pub names: BTreeMap<(String, String), String>,
    /// The spec that was asked for; there may be side kinds beside it, or these alone.
    pub output: Option<PathBuf>,
    /// The spec files that were made from it.
    pub specs: Vec<PathBuf>,
    /// Its generation.
    pub generation: Option<String>,
}

/// A GPU or MIG device and the numbers of its shares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownUnit {
    /// None for one that NVML counts and cannot read.
    pub uuid: Option<String>,
    /// UUID of its GPU, likewise.
    pub gpu: Option<String>,
    /// NVML MIG index of a MIG device.
    pub mig: Option<u32>,
    /// How many numbers of each run are its own.
    pub numbers: Vec<NumberCount>,
}

/// A device's part of a run of numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberCount {
    /// The run.
    #[serde(flatten)]
    pub run: Numbers,
    /// The first of its numbers that is this device's.
    pub first: u32,
    /// How many of them are.
    pub count: u32,
}

/// A run of numbers: the shares of one name in one class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Numbers {
    /// CDI class.
    pub class: String,
    /// Share name.
    pub name: String,
}

/// The file.
#[derive(Serialize)]
struct PlanFile<'a> {
    version: u32,
    generation: &'a str,
    driver_version: &'a str,
    output: &'a Path,
    specs: &'a [PathBuf],
    units: &'a [KnownUnit],
    devices: Vec<Value>,
    pools: &'a [Pool],
    users: &'a [UserCap],
    mps: &'a [Settings],
    time_slices: &'a [Wanted],
}

/// The part of the file that is read back.
#[derive(Deserialize)]
struct EarlierFile {
    generation: Option<String>,
    output: PathBuf,
    specs: Vec<PathBuf>,
    units: Vec<KnownUnit>,
    devices: Vec<EarlierDevice>,
}

#[derive(Deserialize)]
struct EarlierDevice {
    name: String,
    classes: Vec<String>,
    uuid: String,
}

#[derive(Deserialize)]
struct AnyVersion {
    version: u32,
}

/// Why a plan file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is of a later or an earlier divvy.
    #[error("it is of version {found}, and this divvy reads version {VERSION}")]
    Version {
        /// What it says.
        found: u32,
    },
    /// It takes more numbers than there are.
    #[error("it gives more than {MOST_NUMBERS} numbers to shares")]
    Numbers,
    /// It is not what `to_json` wrote.
    #[error("it is not a plan")]
    Json {
        /// Where and why.
        source: serde_json::Error,
    },
}

/// The file's text. Fails for a spec whose path is not UTF-8, which JSON cannot hold.
pub fn to_json(
    plan: &Plan,
    driver_version: &str,
    output: &Path,
    specs: &[PathBuf],
) -> Result<String, serde_json::Error> {
    let file = PlanFile {
        version: VERSION,
        generation: &plan.generation,
        driver_version,
        output,
        specs,
        units: &plan.units,
        devices: plan.devices.iter().map(on_this_machine).collect::<Result<_, _>>()?,
        pools: &plan.pools,
        users: &plan.users,
        mps: &plan.mps,
        time_slices: &plan.time_slices,
    };
    Ok(serde_json::to_string_pretty(&file)? + "\n")
}

/// A device with its nodes' paths on this machine, where these are others. Specs and listings go without, so that they
/// are the same on a machine that replays this one.
fn on_this_machine(device: &Device) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(device)?;
    for (key, planned) in [("nodes", &device.nodes), ("dri_nodes", &device.dri_nodes)] {
        let written = value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten();
        for (written, node) in written.zip(planned).filter(|(_, node)| node.host_path != node.path) {
            written["host_path"] = serde_json::to_value(&node.host_path)?;
        }
    }
    Ok(value)
}

impl Earlier {
    /// Reads a plan file's text.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let json = |source| Error::Json { source };
        let AnyVersion { version } = serde_json::from_str(text).map_err(json)?;
        if version != VERSION {
            return Err(Error::Version { found: version });
        }
        let file: EarlierFile = serde_json::from_str(text).map_err(json)?;
        let counts = file.units.iter().flat_map(|unit| &unit.numbers).map(|part| u64::from(part.count));
        if counts.sum::<u64>() > MOST_NUMBERS {
            return Err(Error::Numbers);
        }
        let whole = file.devices.iter().map(|device| (&device.classes, &device.name, &device.uuid));
        let names = names(whole, &file.units);
        Ok(Self {
            units: file.units,
            names,
            output: Some(file.output),
            specs: file.specs,
            generation: file.generation,
        })
    }

    /// What a plan would leave behind after this one.
    pub fn then(&self, plan: &Plan) -> Self {
        let whole = plan.devices.iter().map(|device| (&device.classes, &device.name, &device.uuid));
        Self { units: plan.units.clone(), names: names(whole, &plan.units), ..self.clone() }
    }
}

/// What each name means: those of devices, and those that are kept for shares of what is not there.
fn names<'a>(
    devices: impl Iterator<Item = (&'a Vec<String>, &'a String, &'a String)>,
    units: &[KnownUnit],
) -> BTreeMap<(String, String), String> {
    let mut names = BTreeMap::new();
    for unit in units {
        let Some(uuid) = &unit.uuid else { continue };
        for NumberCount { run, first, count } in &unit.numbers {
            let numbers = *first..first.saturating_add(*count);
            names.extend(numbers.map(|n| ((run.class.clone(), format!("{}-{n}", run.name)), uuid.clone())));
        }
    }
    for (classes, name, uuid) in devices {
        names.extend(classes.iter().map(|class| ((class.clone(), name.clone()), uuid.clone())));
    }
    names
}

/// A plan's generation: the same for the same devices and driver, so that a plan that changes nothing leaves every
/// file as it is.
pub fn generation(host: &Host, plan: &Plan) -> String {
    let text = serde_json::to_string(&(
        &host.driver_version,
        plan.devices.iter().map(without_compute_mode).collect::<Vec<_>>(),
        &plan.units,
        &plan.control_nodes,
        &plan.side,
        (
            &plan.pools,
            &plan.users,
            plan.start_timeout,
            plan.mps.iter().map(without_paths).collect::<Vec<_>>(),
        ),
    ));
    format!("{:016x}", fnv1a(text.unwrap_or_default().as_bytes()))
}

/// MPS changes the compute mode of its GPU while it runs.
fn without_compute_mode(device: &Device) -> Device {
    match device.mode {
        Mode::Mps => Device { compute_mode: None, ..device.clone() },
        Mode::Whole | Mode::TimeSlice => device.clone(),
    }
}

/// Where things lie is no part of what containers get.
fn without_paths(settings: &Settings) -> Settings {
    let none = PathBuf::new;
    Settings { control: none(), server: none(), driver_root: none(), ..settings.clone() }
}

/// 64-bit FNV-1a (RFC 9923): no secret depends on it, and the standard library's hashes may change.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fnv_test_vectors() {
        // RFC 9923, appendix C.
        for (text, hash) in
            [("", 0xcbf2_9ce4_8422_2325), ("a", 0xaf63_dc4c_8601_ec8c), ("foobar", 0x8594_4171_f739_67e8)]
        {
            assert_eq!(fnv1a(text.as_bytes()), hash);
        }
    }

    #[test]
    fn a_plan_of_another_version_is_refused() {
        for (text, said) in [
            ("{\"version\":2,\"all\":\"else\"}", "it is of version 2, and this divvy reads version 1"),
            (
                "{\"version\":1,\"output\":\"/x\",\"specs\":[],\"devices\":[],\"units\":[{\"numbers\":[{\"class\":\"gpu\",\"name\":\"shared\",\"first\":0,\"count\":4294967295}]}]}",
                "it gives more than 1048576 numbers to shares",
            ),
            ("{\"version\":1}", "it is not a plan"),
            ("{\"version\":1,\"specs\":[", "it is not a plan"),
            ("", "it is not a plan"),
            ("[]", "it is not a plan"),
        ] {
            assert_eq!(Earlier::parse(text).unwrap_err().to_string(), said, "{text}");
        }
    }
}
