//! Every key that NVIDIA's plugin reads (api/config/v1 of k8s-device-plugin). Keys of Kubernetes are known by name, so
//! that a key which is not known is a mistake.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_saphyr::Spanned;

use crate::config::MigStrategy;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    pub version: Option<Spanned<String>>,
    pub flags: Option<RawFlags>,
    pub resources: Option<IgnoredAny>,
    pub sharing: Option<RawSharing>,
    pub imex: Option<IgnoredAny>,
}

/// The strategy, and the names of the other flags that are set.
#[derive(Clone, Debug, Default)]
pub struct RawFlags {
    pub mig_strategy: Option<MigStrategy>,
    pub others: Vec<String>,
}

/// Flags for Kubernetes, for where its pods see the driver, and for what divvy decides by itself.
const FLAGS: [&str; 13] = [
    "migStrategy",
    "failOnInitError",
    "mpsRoot",
    "nvidiaDriverRoot",
    "nvidiaDevRoot",
    "gdrcopyEnabled",
    "gdsEnabled",
    "mofedEnabled",
    "useNodeFeatureAPI",
    "deviceDiscoveryStrategy",
    "plugin",
    "gfd",
    "imex",
];

impl<'de> Deserialize<'de> for RawFlags {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Flags;
        impl<'de> Visitor<'de> for Flags {
            type Value = RawFlags;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of flags")
            }
            fn visit_unit<E>(self) -> Result<RawFlags, E> {
                Ok(RawFlags::default())
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<RawFlags, M::Error> {
                let mut flags = RawFlags::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "migStrategy" {
                        flags.mig_strategy = map.next_value()?;
                        continue;
                    }
                    if !FLAGS.contains(&key.as_str()) {
                        return Err(M::Error::unknown_field(&key, &FLAGS));
                    }
                    map.next_value::<IgnoredAny>()?;
                    flags.others.push(key);
                }
                Ok(flags)
            }
        }
        deserializer.deserialize_any(Flags)
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RawSharing {
    pub time_slicing: Option<Sharing>,
    pub mps: Option<Sharing>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Sharing {
    pub rename_by_default: Option<bool>,
    pub fail_requests_greater_than_one: Option<bool>,
    #[serde(default)]
    pub resources: Vec<Spanned<Resource>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resource {
    pub name: Spanned<String>,
    pub rename: Option<Spanned<String>>,
    pub devices: Option<Spanned<Devices>>,
    pub replicas: Spanned<i64>,
}

/// `all`, how many, or which.
#[derive(Clone, Debug)]
pub enum Devices {
    Word(String),
    Count(i64),
    List(Vec<Spanned<DeviceRef>>),
}

/// An index may be written as a number, and `0:1` without quotes.
#[derive(Clone, Debug)]
pub struct DeviceRef(pub String);

impl<'de> Deserialize<'de> for Devices {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyDevices;
        impl<'de> Visitor<'de> for AnyDevices {
            type Value = Devices;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"all\" or a list of devices")
            }
            fn visit_str<E>(self, word: &str) -> Result<Devices, E> {
                Ok(Devices::Word(word.to_owned()))
            }
            fn visit_i64<E>(self, count: i64) -> Result<Devices, E> {
                Ok(Devices::Count(count))
            }
            fn visit_u64<E>(self, count: u64) -> Result<Devices, E> {
                Ok(Devices::Count(count.try_into().unwrap_or(i64::MAX)))
            }
            fn visit_seq<S: serde::de::SeqAccess<'de>>(self, mut seq: S) -> Result<Devices, S::Error> {
                let mut list = Vec::new();
                while let Some(device) = seq.next_element()? {
                    list.push(device);
                }
                Ok(Devices::List(list))
            }
        }
        deserializer.deserialize_any(AnyDevices)
    }
}

impl<'de> Deserialize<'de> for DeviceRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyRef;
        impl Visitor<'_> for AnyRef {
            type Value = DeviceRef;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an index, a MIG device or a UUID")
            }
            fn visit_str<E>(self, text: &str) -> Result<DeviceRef, E> {
                Ok(DeviceRef(text.to_owned()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<DeviceRef, E> {
                Ok(DeviceRef(number.to_string()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<DeviceRef, E> {
                Ok(DeviceRef(number.to_string()))
            }
        }
        deserializer.deserialize_any(AnyRef)
    }
}
