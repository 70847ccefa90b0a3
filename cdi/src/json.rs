//! How a spec's JSON is laid out: compact, with a line break only before what people compare in a diff.
//! Engines parse every spec again at each container start, so indentation would be paid for each time.

use std::io::{self, Write};

use serde_json::ser::Formatter;

/// Keys of the spec and of its own edits stand on lines of their own.
const OBJECT_LINES: usize = 2;
/// So do devices, and the spec's own hooks, mounts, nodes and variables.
const ARRAY_LINES: usize = 3;

/// One device, one spec-level hook, mount or node to a line; everything inside it is compact.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    depth: usize,
}

impl Lines {
    fn separate<W: ?Sized + Write>(&self, writer: &mut W, first: bool, deepest: usize) -> io::Result<()> {
        if !first {
            writer.write_all(b",")?;
        }
        if self.depth <= deepest { writer.write_all(b"\n") } else { Ok(()) }
    }
}

impl Formatter for Lines {
    fn begin_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        writer.write_all(b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first, ARRAY_LINES)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth += 1;
        writer.write_all(b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.depth -= 1;
        writer.write_all(b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.separate(writer, first, OBJECT_LINES)
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut plain = 0;
        for (at, c) in fragment.char_indices().filter(|&(_, c)| !is_yaml_text(c)) {
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            write!(writer, "\\u{:04x}", u32::from(c))?;
            plain = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}

/// False for what JSON carries as it is and YAML (1.2, chapter 5.1 and 5.4) refuses or folds: engines read `.json`
/// with a YAML parser. All of it lies in the basic plane, so one escape holds each.
fn is_yaml_text(c: char) -> bool {
    !matches!(c, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::{Serializer, Value, json};

    use super::Lines;

    fn laid_out(value: &Value) -> String {
        let mut text = Vec::new();
        value.serialize(&mut Serializer::with_formatter(&mut text, Lines::default())).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn breaks_lines_down_to_one_device_and_no_further() {
        let cases = [
            (json!({}), "{}"),
            (json!({"devices": []}), "{\n\"devices\":[]}"),
            (
                json!({"devices": [{"name": "a", "x": {"nodes": [{"p": 1}, {"p": 2}]}}, {"name": "b"}]}),
                "{\n\"devices\":[\n{\"name\":\"a\",\"x\":{\"nodes\":[{\"p\":1},{\"p\":2}]}},\n{\"name\":\"b\"}]}",
            ),
            (
                json!({"edits": {"mounts": [{"o": ["ro", "bind"]}, {"o": []}]}}),
                "{\n\"edits\":{\n\"mounts\":[\n{\"o\":[\"ro\",\"bind\"]},\n{\"o\":[]}]}}",
            ),
        ];
        for (value, text) in cases {
            assert_eq!(laid_out(&value), text);
            assert_eq!(serde_json::from_str::<Value>(text).unwrap(), value);
        }
    }

    #[test]
    fn escapes_what_yaml_does_not_take() {
        let cases = [
            ("/lib/ä €😀", "\"/lib/ä €😀\""),
            ("a\u{7f}b\u{85}", "\"a\\u007fb\\u0085\""),
            ("\u{2028}\u{2029}\u{feff}x", "\"\\u2028\\u2029\\ufeffx\""),
            ("tab\tquote\"\n", "\"tab\\tquote\\\"\\n\""),
        ];
        for (value, text) in cases {
            assert_eq!(laid_out(&json!(value)), text);
            assert_eq!(serde_json::from_str::<String>(text).unwrap(), value);
        }
    }
}
