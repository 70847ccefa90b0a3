//! Takes UUIDs out of a record: each becomes a number, the same one wherever it occurs. Never looks at what a text
//! means, so that a UUID is found in whatever a later reader records.

use std::collections::BTreeMap;

/// Lengths of the groups of hexadecimal digits in a UUID (RFC 9562, section 4).
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
const LENGTH: usize = 36;

/// UUIDs seen so far, with what stands for each.
#[derive(Debug, Default)]
pub struct Mask(BTreeMap<String, String>);

impl Mask {
    /// The text with every UUID replaced: `GPU-` and `MIG-` in front of them stay. So is the beginning of a known one
    /// after such a word, which a configuration may hold in place of the whole.
    pub fn mask(&mut self, text: &str) -> String {
        let mut masked = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let after_digit = masked.ends_with(|last: char| last.is_ascii_alphanumeric());
            let (replaced, length) = if after_digit {
                (None, first.len_utf8())
            } else if is_uuid(rest) {
                (Some(self.number(&rest[..LENGTH])), LENGTH)
            } else if masked.ends_with("GPU-") || masked.ends_with("MIG-") {
                let length = rest.find(|c| !is_part(c)).unwrap_or(rest.len()).max(first.len_utf8());
                let whole = !rest[length..].starts_with(|next: char| next.is_ascii_alphanumeric());
                (self.beginning(&rest[..length]).filter(|_| whole), length)
            } else {
                (None, first.len_utf8())
            };
            masked += replaced.as_deref().unwrap_or(&rest[..length]);
            rest = &rest[length..];
        }
        masked
    }

    fn number(&mut self, uuid: &str) -> String {
        let next = self.0.len() + 1;
        let number = || format!("00000000-0000-0000-0000-{next:012}");
        self.0.entry(uuid.to_ascii_lowercase()).or_insert_with(number).clone()
    }

    /// What stands for the one known UUID that begins so. Of two or none there is nothing to tell apart.
    fn beginning(&self, start: &str) -> Option<String> {
        let start = start.to_ascii_lowercase();
        let mut known = self.0.iter().filter(|(uuid, _)| uuid.starts_with(&start));
        let (_, number) = known.next().filter(|_| start.len() >= GROUPS[1])?;
        known.next().is_none().then(|| number.clone())
    }
}

fn is_part(c: char) -> bool {
    c.is_ascii_hexdigit() || c == '-'
}

fn is_uuid(text: &str) -> bool {
    let Some(start) = text.get(..LENGTH) else { return false };
    let groups = start.split('-');
    groups.clone().map(str::len).eq(GROUPS)
        && groups.flat_map(str::bytes).all(|byte| byte.is_ascii_hexdigit())
        && !text[LENGTH..].starts_with(|next: char| next.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "00000000-0000-0000-0000-000000000001";
    const TWO: &str = "00000000-0000-0000-0000-000000000002";

    #[test]
    fn the_same_uuid_is_the_same_number_everywhere() {
        let mut mask = Mask::default();
        let gpu = "9e4aeb94-01c0-5173-4811-4ca60f77b3a9";
        let mig = "c42101f0-a1fa-5b68-8908-7c5c887f28bd";
        let capitals = gpu.to_ascii_uppercase();
        for (text, masked) in [
            (format!("\"GPU-{gpu}\", \"MIG-{mig}\""), format!("\"GPU-{ONE}\", \"MIG-{TWO}\"")),
            (format!("GPU UUID: \t GPU-{gpu}\n"), format!("GPU UUID: \t GPU-{ONE}\n")),
            (format!("MIG-GPU-{capitals}/1/0"), format!("MIG-GPU-{ONE}/1/0")),
            (format!("{mig} é {gpu}"), format!("{TWO} é {ONE}")),
            // What a configuration may say in place of a whole one.
            ("match = [\"GPU-9e4aeb94*\"]".into(), format!("match = [\"GPU-{ONE}*\"]")),
            (
                "MIG-1g.10gb GPU- GPU-9e4 GPU-é GPU-9e4aeb9x".into(),
                "MIG-1g.10gb GPU- GPU-9e4 GPU-é GPU-9e4aeb9x".into(),
            ),
            // Of another length it is no UUID.
            (format!("{gpu}0 0{gpu}"), format!("{gpu}0 0{gpu}")),
        ] {
            assert_eq!(mask.mask(&text), masked);
        }
    }
}
