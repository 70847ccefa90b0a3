//! Connections that are heard, by descriptor. A descriptor's number is used again, so each is known by more.

use std::sync::atomic::{AtomicU64, Ordering};

/// As many descriptors as the daemon can have come to: it is started with a limit of 16384, or what the machine sets.
const DESCRIPTORS: usize = 1 << 16;
/// No socket has this cookie: the kernel counts from 1.
const NOBODYS: u64 = 0;

/// What tells a connection from any other, whoever made it. Cookies are never used again, but before Linux 5.4 each network
/// namespace, and so each container, counted its own; inodes are the machine's, in 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// SO_COOKIE, socket(7).
    pub cookie: u64,
    /// As fstat(2) says.
    pub inode: u64,
}

/// Who is heard.
#[derive(Debug)]
pub struct Admitted {
    places: [Place; DESCRIPTORS],
}

#[derive(Debug)]
struct Place {
    cookie: AtomicU64,
    inode: AtomicU64,
}

impl Admitted {
    /// Nobody is.
    pub const fn new() -> Self {
        Self {
            places: [const { Place { cookie: AtomicU64::new(NOBODYS), inode: AtomicU64::new(0) } };
                DESCRIPTORS],
        }
    }

    /// Has this connection be heard from now on. One with a descriptor beyond all that there can be never is.
    pub fn admit(&self, descriptor: i32, connection: Connection) {
        if let Some(place) = self.place(descriptor) {
            place.cookie.store(connection.cookie, Ordering::Relaxed);
            place.inode.store(connection.inode, Ordering::Relaxed);
        }
    }

    /// Whether it is heard.
    pub fn holds(&self, descriptor: i32, connection: Connection) -> bool {
        connection.cookie != NOBODYS
            && self.place(descriptor).is_some_and(|place| {
                place.cookie.load(Ordering::Relaxed) == connection.cookie
                    && place.inode.load(Ordering::Relaxed) == connection.inode
            })
    }

    fn place(&self, descriptor: i32) -> Option<&Place> {
        self.places.get(usize::try_from(descriptor).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Connection = Connection { cookie: 41, inode: 7001 };

    #[test]
    fn a_descriptor_that_is_used_again_is_another_connection() {
        static ADMITTED: Admitted = Admitted::new();
        assert!(!ADMITTED.holds(7, ONE));
        ADMITTED.admit(7, ONE);
        assert!(ADMITTED.holds(7, ONE) && !ADMITTED.holds(8, ONE));
        // From another network namespace, which counts its own cookies.
        let others = [Connection { inode: 7002, ..ONE }, Connection { cookie: 42, ..ONE }];
        assert!(others.iter().all(|other| !ADMITTED.holds(7, *other)));
        ADMITTED.admit(7, others[0]);
        assert!(ADMITTED.holds(7, others[0]) && !ADMITTED.holds(7, ONE));
    }

    #[test]
    fn what_has_no_place_is_not_heard() {
        static ADMITTED: Admitted = Admitted::new();
        assert!(!ADMITTED.holds(7, Connection { cookie: NOBODYS, inode: 0 }));
        for descriptor in [-1, DESCRIPTORS as i32, i32::MAX] {
            ADMITTED.admit(descriptor, ONE);
            assert!(!ADMITTED.holds(descriptor, ONE));
        }
    }
}
