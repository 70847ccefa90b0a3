//! Waiting for what has to happen.

use std::time::{Duration, Instant};

/// As long as anything is waited for that has to happen at all. Nothing passes or fails by being faster.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for what has to happen.
#[track_caller]
pub fn wait_until(what: &str, mut has_happened: impl FnMut() -> bool) {
    let began = Instant::now();
    while !has_happened() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
