//! Whose a user id is. Who has subordinate ids (subuid(5)) can run programs under each of them, on the host too, and is
//! one person all the same: limits for each id would be limits for nobody.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::unistd::User;

const FILE: &str = "/etc/subuid";

/// /etc/subuid, read anew when it changed.
#[derive(Debug, Default)]
pub struct People {
    stamp: Option<(u64, i64, i64)>,
    ranges: Vec<Range>,
}

/// Ids of one person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    owner: u32,
    first: u32,
    count: u32,
}

impl People {
    /// The user whose subordinate id this is, or the id itself. Root's subordinate ids are nobody's: they must not become
    /// root's.
    pub fn person(&mut self, uid: u32) -> u32 {
        self.read(Path::new(FILE));
        let is_in = |range: &&Range| uid.checked_sub(range.first).is_some_and(|nth| nth < range.count);
        self.ranges.iter().find(is_in).map_or(uid, |range| range.owner)
    }

    fn read(&mut self, path: &Path) {
        let stamp = fs::metadata(path).ok().map(|found| (found.ino(), found.mtime(), found.mtime_nsec()));
        if self.stamp == stamp {
            return;
        }
        self.stamp = stamp;
        let number = |name: &str| Some(User::from_name(name).ok()??.uid.as_raw());
        self.ranges = fs::read_to_string(path).map(|text| parse(&text, &number)).unwrap_or_default();
    }
}

/// `name:first:count` a line, or a number in the name's place.
fn parse(text: &str, number: &dyn Fn(&str) -> Option<u32>) -> Vec<Range> {
    let range = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let owner = owner.parse().ok().or_else(|| number(owner)).filter(|owner| *owner != 0)?;
        Some(Range { owner, first: fields.next()?.parse().ok()?, count: fields.next()?.parse().ok()? })
    };
    text.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subordinate_id_is_its_owners() {
        let number = |name: &str| (name == "ana").then_some(1001);
        let ranges = parse(
            "ana:100000:65536\n1002:200000:10\nroot:300000:65536\nnobody-here:1:9\n\nana:x:1\n",
            &number,
        );
        let mut people =
            People { ranges, stamp: fs::metadata(FILE).ok().map(|f| (f.ino(), f.mtime(), f.mtime_nsec())) };
        for (uid, person) in [
            (1001, 1001),
            (100_000, 1001),
            (165_535, 1001),
            (165_536, 165_536),
            (200_009, 1002),
            (200_010, 200_010),
            (300_000, 300_000),
            (0, 0),
        ] {
            assert_eq!(people.person(uid), person, "{uid}");
        }
    }
}
