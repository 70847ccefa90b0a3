//! The OCI state on the hook's standard input.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = hooks::state::Container::read(bytes);
});
