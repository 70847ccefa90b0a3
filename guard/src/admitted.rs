//! Connections that are heard, by descriptor. A descriptor's number is used again, a socket's cookie is not (SO_COOKIE,
//! socket(7)).

use std::sync::atomic::{AtomicU64, Ordering};

/// As many descriptors as the daemon can have come to: it is started with a limit of 16384, or what the machine sets.
const DESCRIPTORS: usize = 1 << 16;
/// No socket has this cookie: the kernel counts from 1.
const NOBODY: u64 = 0;

/// Who is heard.
#[derive(Debug)]
pub struct Admitted {
    cookies: [AtomicU64; DESCRIPTORS],
}

impl Admitted {
    /// Nobody is.
    pub const fn new() -> Self {
        Self { cookies: [const { AtomicU64::new(NOBODY) }; DESCRIPTORS] }
    }

    /// Has this connection be heard from now on. A descriptor beyond all that there can be never is.
    pub fn admit(&self, descriptor: i32, cookie: u64) {
        if let Some(place) = self.place(descriptor) {
            place.store(cookie, Ordering::Relaxed);
        }
    }

    /// Whether it is heard.
    pub fn holds(&self, descriptor: i32, cookie: u64) -> bool {
        cookie != NOBODY
            && self.place(descriptor).is_some_and(|place| place.load(Ordering::Relaxed) == cookie)
    }

    fn place(&self, descriptor: i32) -> Option<&AtomicU64> {
        self.cookies.get(usize::try_from(descriptor).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_that_is_used_again_is_another_connection() {
        static ADMITTED: Admitted = Admitted::new();
        assert!(!ADMITTED.holds(7, 41));
        ADMITTED.admit(7, 41);
        assert!(ADMITTED.holds(7, 41));
        assert!(!ADMITTED.holds(8, 41) && !ADMITTED.holds(7, 42));
        ADMITTED.admit(7, 42);
        assert!(!ADMITTED.holds(7, 41));
    }

    #[test]
    fn what_has_no_place_is_not_heard() {
        static ADMITTED: Admitted = Admitted::new();
        assert!(!ADMITTED.holds(7, NOBODY));
        for descriptor in [-1, DESCRIPTORS as i32, i32::MAX] {
            ADMITTED.admit(descriptor, 41);
            assert!(!ADMITTED.holds(descriptor, 41));
        }
    }
}
