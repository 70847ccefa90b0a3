//! Who was silent not long ago. While the guard waits for one the daemon hears nobody, so a container that opens
//! hundreds of connections and says nothing on them would hold up everybody else: the guard waits long for it only once.
//! It never refuses anybody for a record: a message that is there is read without a look at this.

use std::ffi::OsStr;
use std::io::{Cursor, Result, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long a stranger may take for each of the two messages, in milliseconds, while nobody was silent. CUDA sends both at
/// once, but it may have to wait for a processor.
const PATIENCE_MS: i32 = 1500;
/// The same, for root on the machine itself: every start of MPS waits for the supervisor, who tries it out.
const MACHINE_PATIENCE_MS: i32 = 250;
/// The same, for those of a container that was waited for in vain.
const LITTLE_PATIENCE_MS: i32 = 10;
/// As long as that is known of it, in milliseconds.
const MEMORY_MS: u64 = 60_000;
/// As many containers as it is known of; the oldest record makes room.
const PLACES: usize = 64;

/// No namespace has this inode.
const UNKNOWN: u64 = 0;

/// Where a stranger comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Root on the machine itself, of whom nothing is recorded. The supervisor is, and tries the guard out with silence.
    Machine,
    /// The container with this mount namespace, by its inode.
    Container(u64),
    /// A process that cannot be looked at, as of a machine whose processes the daemon does not see. All share a record.
    Unknown,
    /// The process that connected has ended: whoever has its connection is not CUDA.
    Gone,
}

/// The containers that were silent.
#[derive(Debug)]
pub struct Silences {
    places: [Place; PLACES],
}

#[derive(Debug)]
struct Place {
    namespace: AtomicU64,
    /// When it is forgotten; 0 in a place that was never used.
    until: AtomicU64,
}

impl Silences {
    /// Nobody was.
    pub const fn new() -> Self {
        Self { places: [const { Place { namespace: AtomicU64::new(0), until: AtomicU64::new(0) } }; PLACES] }
    }

    /// How long a message of theirs is waited for, in milliseconds. `now` is on any clock that goes on, in milliseconds.
    pub fn patience(&self, origin: Origin, now: u64) -> i32 {
        match origin {
            Origin::Gone => LITTLE_PATIENCE_MS,
            Origin::Machine => MACHINE_PATIENCE_MS,
            Origin::Container(namespace) => self.patience_with(namespace, now),
            Origin::Unknown => self.patience_with(UNKNOWN, now),
        }
    }

    /// Takes down that they were waited for in vain. Who had little time has no longer record for it: a slow container
    /// would never be rid of one.
    pub fn note(&self, origin: Origin, now: u64) {
        let namespace = match origin {
            Origin::Container(namespace) => namespace,
            Origin::Unknown => UNKNOWN,
            Origin::Machine | Origin::Gone => return,
        };
        if self.knows(namespace, now) {
            return;
        }
        let oldest = self.places.iter().min_by_key(|place| place.until.load(Ordering::Relaxed));
        if let Some(place) = oldest {
            place.namespace.store(namespace, Ordering::Relaxed);
            place.until.store(now.saturating_add(MEMORY_MS), Ordering::Relaxed);
        }
    }

    fn patience_with(&self, namespace: u64, now: u64) -> i32 {
        if self.knows(namespace, now) {
            return LITTLE_PATIENCE_MS;
        }
        // Who may make mount namespaces can come from another each time, and costs others less and less.
        let known = self.places.iter().filter(|place| place.is_kept(now)).count();
        PATIENCE_MS / i32::try_from(known + 1).unwrap_or(i32::MAX)
    }

    fn knows(&self, namespace: u64, now: u64) -> bool {
        let is_it = |place: &Place| place.namespace.load(Ordering::Relaxed) == namespace;
        self.places.iter().any(|place| place.is_kept(now) && is_it(place))
    }
}

impl Place {
    fn is_kept(&self, now: u64) -> bool {
        self.until.load(Ordering::Relaxed) > now
    }
}

/// The inode of a process's mount namespace (namespaces(7)).
///
/// # Errors
/// Not found, if there is no such process, or it has ended.
pub fn mount_namespace(pid: u32) -> Result<u64> {
    let mut path = Cursor::new([0; 32]);
    write!(path, "/proc/{pid}/ns/mnt")?;
    let length = usize::try_from(path.position()).unwrap_or(0);
    let path = path.get_ref().get(..length).unwrap_or_default();
    Ok(Path::new(OsStr::from_bytes(path)).metadata()?.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Origin = Origin::Container(4_026_531_841);

    #[test]
    fn a_silent_container_is_waited_for_once() {
        static SILENCES: Silences = Silences::new();
        assert_eq!(SILENCES.patience(ONE, 0), PATIENCE_MS);
        SILENCES.note(ONE, 5);
        for (now, patience) in [
            (5, LITTLE_PATIENCE_MS),
            (MEMORY_MS + 4, LITTLE_PATIENCE_MS),
            (MEMORY_MS + 5, PATIENCE_MS),
            (u64::MAX, PATIENCE_MS),
        ] {
            assert_eq!(SILENCES.patience(ONE, now), patience, "{now}");
        }
        for other in [Origin::Container(1), Origin::Unknown] {
            assert_eq!(SILENCES.patience(other, 5), PATIENCE_MS / 2);
        }
        // It is said once more, while it is known.
        SILENCES.note(ONE, MEMORY_MS);
        assert_eq!(SILENCES.patience(ONE, MEMORY_MS + 5), PATIENCE_MS);
        SILENCES.note(ONE, MEMORY_MS + 5);
        assert_eq!(SILENCES.patience(ONE, MEMORY_MS + 5), LITTLE_PATIENCE_MS);
    }

    #[test]
    fn the_more_are_silent_the_less_another_is_waited_for() {
        static SILENCES: Silences = Silences::new();
        let (mut now, mut number) = (0, 0);
        let patience = loop {
            let next = Origin::Container(number);
            let patience = SILENCES.patience(next, now);
            if now >= 10_000 {
                break patience;
            }
            (now, number) = (now + u64::from(patience.unsigned_abs()), number + 1);
            SILENCES.note(next, now);
        };
        assert!((1..50).contains(&patience), "after ten seconds of {number} containers: {patience} ms");
        assert_eq!(SILENCES.patience(Origin::Machine, now), MACHINE_PATIENCE_MS);
    }

    #[test]
    fn neither_the_machine_nor_who_is_gone_has_a_record() {
        static SILENCES: Silences = Silences::new();
        for (origin, patience) in [(Origin::Machine, MACHINE_PATIENCE_MS), (Origin::Gone, LITTLE_PATIENCE_MS)]
        {
            SILENCES.note(origin, 5);
            assert_eq!(SILENCES.patience(origin, 6), patience);
        }
        assert!(SILENCES.places.iter().all(|place| place.until.load(Ordering::Relaxed) == 0));
    }

    #[test]
    fn the_oldest_makes_room() {
        static SILENCES: Silences = Silences::new();
        let container = |number: usize| Origin::Container(number as u64);
        for number in 0..=PLACES {
            SILENCES.note(container(number), number as u64);
        }
        let now = PLACES as u64;
        assert_eq!(SILENCES.patience(container(0), now), PATIENCE_MS / (PLACES as i32 + 1));
        assert!((1..=PLACES).all(|number| SILENCES.patience(container(number), now) == LITTLE_PATIENCE_MS));
    }

    #[test]
    fn a_namespace_is_of_who_lives() {
        let own = mount_namespace(std::process::id()).unwrap();
        assert_eq!(own, std::fs::metadata("/proc/self/ns/mnt").unwrap().ino());
        assert_eq!(mount_namespace(0).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        assert_eq!(mount_namespace(u32::MAX).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
