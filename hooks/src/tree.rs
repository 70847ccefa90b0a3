//! JSON of other programs, as a tree of what is asked for by name: everything else is passed over, however it is nested,
//! so that what an engine's next release adds cannot fail a start. One reader for the state, the configuration, the
//! daemon's answers and the lease, and no code for each of their types: the hook is a small program.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Names in the state and the configuration (OCI runtime specification), and in [`crate::lease`], that are kept with
/// their values.
const WANTED: [&str; 41] = [
    "access",
    "ahead",
    "allow",
    "annotations",
    "answer",
    "args",
    "bundle",
    "class",
    "container",
    "createRuntime",
    "destination",
    "devices",
    "env",
    "front",
    "hint",
    "hooks",
    "id",
    "linux",
    "major",
    "message",
    "minor",
    "mount_namespace",
    "mounts",
    "mps",
    "name",
    "options",
    "path",
    "pid",
    "prestart",
    "process",
    "remove",
    "resources",
    "root",
    "seconds",
    "shared_memory",
    "source",
    "status",
    "type",
    "uid",
    "user",
    "version",
];
/// What begins the names of the annotations by which engines say what a container is called. Whoever starts a container
/// may give it any others, of any length.
const ANNOTATIONS: [&str; 4] = ["io.kubernetes.", "io.podman.", "io.container.", "nerdctl/"];
/// Of an annotation's name and text, in bytes.
const LONGEST: usize = 512;
const MOST: usize = 64;

/// A value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tree {
    /// Nothing that is ever asked for: null, numbers with a fraction.
    #[default]
    Other,
    /// true or false
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Tree>),
    /// An object's known names.
    Map(Vec<(String, Tree)>),
}

/// What is not there, or is of another kind.
const NOTHING: &Tree = &Tree::Other;

impl Tree {
    /// Reads an object.
    ///
    /// # Errors
    /// When it is not JSON, not an object, or has a known name twice: then readers differ in which one counts.
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        match serde_json::from_slice(bytes)? {
            map @ Self::Map(_) => Ok(map),
            _ => Err(de::Error::custom("it is no object")),
        }
    }

    /// The value of this name, which is nothing if there is none.
    pub fn get(&self, name: &str) -> &Self {
        let Self::Map(map) = self else { return NOTHING };
        map.iter().find(|(present, _)| present == name).map_or(NOTHING, |(_, value)| value)
    }

    /// The values, if it is an array.
    pub fn list(&self) -> Option<&[Self]> {
        if let Self::List(values) = self { Some(values) } else { None }
    }

    /// The values of an array, and none of anything else.
    pub fn items(&self) -> &[Self] {
        self.list().unwrap_or_default()
    }

    /// The string, if it is one.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(text) = self { Some(text) } else { None }
    }

    /// The whole number, if it is one.
    pub fn number(&self) -> Option<i64> {
        if let Self::Number(number) = self { Some(*number) } else { None }
    }

    /// The whole number, if it is one that is not negative.
    pub fn count(&self) -> Option<u64> {
        self.number().and_then(|number| number.try_into().ok())
    }

    /// Whether it is true.
    pub fn is_true(&self) -> bool {
        *self == Self::Flag(true)
    }

    /// The annotations that engines are known to write, of an object that has some.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        let mut annotations = BTreeMap::new();
        let Self::Map(map) = self.get("annotations") else { return annotations };
        for (name, value) in map.iter().filter(|(name, _)| is_annotation(name) && name.len() <= LONGEST) {
            if let Some(text) = value.text().filter(|text| text.len() <= LONGEST && annotations.len() < MOST)
            {
                annotations.insert(name.clone(), text.to_owned());
            }
        }
        annotations
    }
}

fn is_annotation(name: &str) -> bool {
    ANNOTATIONS.iter().any(|known| name.starts_with(known))
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
        Ok(Tree::Text(text.to_owned()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Tree, E> {
        Ok(Tree::Number(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Tree, E> {
        Ok(i64::try_from(number).map_or(Tree::Other, Tree::Number))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_bool<E>(self, flag: bool) -> Result<Tree, E> {
        Ok(Tree::Flag(flag))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(Tree::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut values: A) -> Result<Tree, A::Error> {
        let mut map: Vec<(String, Tree)> = Vec::new();
        while let Some(name) = values.next_key::<String>()? {
            let is_annotation = is_annotation(&name);
            if !is_annotation && WANTED.binary_search(&name.as_str()).is_err() {
                values.next_value::<IgnoredAny>()?;
            } else if !is_annotation && map.iter().any(|(present, _)| *present == name) {
                return Err(de::Error::custom("it has a name twice"));
            } else {
                map.push((name, values.next_value()?));
            }
        }
        Ok(Tree::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_by_their_order() {
        assert!(WANTED.is_sorted());
    }

    #[test]
    fn what_is_not_known_is_passed_over() {
        let deep = format!("{}0{}", "[".repeat(50_000), "]".repeat(50_000));
        let text = format!(r#"{{"x":{deep},"id":"a","y":{{"z":{deep}}},"pid":1.5,"x":2}}"#);
        let tree = Tree::parse(text.as_bytes()).unwrap();
        assert_eq!((tree.get("id").text(), tree.get("pid").number()), (Some("a"), None));
        assert_eq!(tree.get("x"), NOTHING);
        assert_eq!(tree.get("id").get("id"), NOTHING);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for text in
            [r#"{"id":"a","id":"b"}"#, r#"{"linux":{"devices":[],"devices":null}}"#, "[]", "1", "{}{}"]
        {
            assert!(Tree::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn annotations_are_texts_under_known_names_and_not_too_many() {
        let long = "x".repeat(LONGEST + 1);
        let text = format!(
            r#"{{"annotations":{{"a":"b","io.kubernetes.cri.container-name":"web","io.kubernetes.cri.x":{{"id":"z"}},
            "io.podman.n":[1,"{long}"],"io.container.manager":"{long}","nerdctl/name":"n","io.podman.m":1.5,"id":"c"}}}}"#
        );
        let annotations = Tree::parse(text.as_bytes()).unwrap().annotations();
        let kept: Vec<_> = annotations.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(kept, [("io.kubernetes.cri.container-name", "web"), ("nerdctl/name", "n")]);

        let many: BTreeMap<_, _> = (0..1000).map(|number| (format!("io.podman.{number}"), "x")).collect();
        let text = serde_json::json!({ "annotations": many }).to_string();
        assert_eq!(Tree::parse(text.as_bytes()).unwrap().annotations().len(), MOST);
        for odd in [r#"{"annotations":["a"]}"#, r#"{"annotations":null}"#, "{}"] {
            assert!(Tree::parse(odd.as_bytes()).unwrap().annotations().is_empty(), "{odd}");
        }
    }
}
