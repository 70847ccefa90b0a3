//! An image's /etc/ld.so.cache: any bytes are refused, or read; what is read is written so that it reads the same,
//! and a second merge changes nothing.
#![no_main]

use std::path::Path;

use hooks::ldcache::{Cache, Entry};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut cache) = Cache::parse(bytes) else { return };
    let path = Path::new("/usr/lib/x86_64-linux-gnu/libcuda.so.1");
    let ours = [Entry::new("libcuda.so.1", path)];
    cache.merge(&ours);
    assert_eq!(cache.lookup("libcuda.so.1").next(), Some(path));
    let written = cache.to_bytes();
    let mut again = Cache::parse(&written).expect("what was written does not read");
    again.merge(&ours);
    assert_eq!(again.to_bytes(), written, "a restart would change the cache");
});
