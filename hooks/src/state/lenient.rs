//! Values that are taken where they are what is expected, and passed over where they are anything else: an engine's
//! next release must not fail a start by a label.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What begins the names of the annotations by which engines say what a container is called. Whoever starts a container
/// may give it any others, of any length.
const KNOWN: [&str; 5] = ["io.kubernetes.", "io.podman.", "io.container.", "nerdctl/", "com.docker."];
/// In bytes; names of Kubernetes have 253 at most, and paths of logs are not wanted.
const LONGEST: usize = 512;
const MOST: usize = 64;

/// A string, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text(pub Option<String>);

/// A whole number, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Number(pub Option<i64>);

/// The annotations that are known, with their texts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations(pub BTreeMap<String, String>);

/// Any value, of which two kinds are kept.
enum Any {
    Text(String),
    Number(i64),
    Annotations(BTreeMap<String, String>),
    Other,
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match deserializer.deserialize_any(AnyVisitor)? {
            Any::Text(text) => Some(text),
            _ => None,
        }))
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match deserializer.deserialize_any(AnyVisitor)? {
            Any::Number(number) => Some(number),
            _ => None,
        }))
    }
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match deserializer.deserialize_any(AnyVisitor)? {
            Any::Annotations(annotations) => annotations,
            _ => BTreeMap::new(),
        }))
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Any;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Any, E> {
        Ok(Any::Text(text.to_owned()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Any, E> {
        Ok(Any::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Any, E> {
        Ok(i64::try_from(number).map_or(Any::Other, Any::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_unit<E>(self) -> Result<Any, E> {
        Ok(Any::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Any, A::Error> {
        while values.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Any::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Any, A::Error> {
        let mut annotations = BTreeMap::new();
        while let Some(name) = values.next_key::<String>()? {
            let is_wanted = annotations.len() < MOST && KNOWN.iter().any(|known| name.starts_with(known));
            if !is_wanted || name.len() > LONGEST {
                values.next_value::<IgnoredAny>()?;
            } else if let Text(Some(text)) = values.next_value()?
                && text.len() <= LONGEST
            {
                annotations.insert(name, text);
            }
        }
        Ok(Any::Annotations(annotations))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_texts_under_known_names_are_kept() {
        let long = "x".repeat(LONGEST + 1);
        let text = format!(
            r#"{{"a":"b","io.kubernetes.cri.container-name":"web","io.kubernetes.cri.x":{{"io.kubernetes.y":"z"}},
            "io.podman.n":[1,"{long}"],"io.container.manager":"{long}","nerdctl/name":"n","io.podman.m":1.5}}"#
        );
        let annotations: Annotations = serde_json::from_str(&text).unwrap();
        let kept: Vec<_> = annotations.0.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(kept, [("io.kubernetes.cri.container-name", "web"), ("nerdctl/name", "n")]);
    }

    #[test]
    fn there_is_an_end_to_them() {
        let many: BTreeMap<_, _> = (0..1000).map(|number| (format!("io.podman.{number}"), "x")).collect();
        let text = serde_json::to_string(&many).unwrap();
        assert_eq!(serde_json::from_str::<Annotations>(&text).unwrap().0.len(), MOST);
    }

    #[test]
    fn depth_is_no_reason_to_fail() {
        let deep = format!("{}0{}", "[".repeat(50_000), "]".repeat(50_000));
        assert_eq!(serde_json::from_str::<Text>(&deep).unwrap(), Text(None));
        let deep = format!(r#"{{"x":{deep}}}"#);
        assert_eq!(serde_json::from_str::<Annotations>(&deep).unwrap(), Annotations::default());
    }
}
