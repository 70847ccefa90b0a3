//! Which user namespace this process is in, as far as /proc tells (user_namespaces(7)): what a user id that is seen
//! here stands for on the host.

use std::fs;

/// As the host's own namespace is mapped, from which all others are made.
const WHOLE: [u32; 3] = [0, 0, u32::MAX];

/// The user ids of this process's namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserIds {
    /// First id inside, first id in the namespace above, and how many.
    map: Vec<[u32; 3]>,
    overflow: u32,
}

impl UserIds {
    /// Of this process. A kernel without user namespaces has the host's alone.
    pub fn read() -> Self {
        let map = fs::read_to_string("/proc/self/uid_map").map_or_else(|_| vec![WHOLE], |text| parse(&text));
        Self { map, overflow: overflow_id("/proc/sys/kernel/overflowuid") }
    }

    /// Whether it is the host's own namespace.
    pub fn are_the_hosts(&self) -> bool {
        self.map == [WHOLE]
    }

    /// Whether a file that belongs to `id` here can be the host's root's. Where root has no number here, its files show
    /// the overflow id, as others' do that have none; and what is mapped to 0 of the namespace above may be root, or, in
    /// one within another, the user who made that one.
    pub fn may_be_root(&self, id: u32) -> bool {
        let is_mapped =
            self.map.iter().any(|[inside, above, count]| *above == 0 && *count > 0 && id == *inside);
        is_mapped || id == self.overflow && !self.are_the_hosts()
    }
}

/// What stands for ids that a user namespace does not map, by this file in /proc/sys: 65534 unless somebody changed it.
pub fn overflow_id(path: &str) -> u32 {
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(65534)
}

fn parse(map: &str) -> Vec<[u32; 3]> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some([numbers.next()??, numbers.next()??, numbers.next()??])
    };
    map.lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_told_from_others() {
        for (map, is_host, roots, others) in [
            ("         0          0 4294967295\n", true, &[0_u32][..], &[65534_u32, 1000][..]),
            // Rootless Podman: root inside is the user.
            ("0 1001 1\n1 100000 65536\n", false, &[65534], &[0, 1001]),
            // `podman --userns=keep-id` in that.
            ("0 1 1001\n1001 0 1\n1002 1002 64535\n", false, &[65534], &[0, 1, 1002]),
            // `unshare --map-root-user`, of a user and of root.
            ("0 1000 1\n", false, &[65534], &[0]),
            ("0 0 1\n", false, &[0], &[1]),
            // The host's root under another number.
            ("0 100000 1000\n5000 0 1\n", false, &[5000], &[0, 1]),
            // Nothing is mapped yet.
            ("", false, &[65534], &[0]),
        ] {
            let ids = UserIds { map: parse(map), overflow: 65534 };
            assert_eq!(ids.are_the_hosts(), is_host, "{map}");
            assert!(roots.iter().all(|id| ids.may_be_root(*id)), "{map}");
            assert!(!others.iter().any(|id| ids.may_be_root(*id)), "{map}");
        }
    }
}
