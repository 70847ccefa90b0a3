//! Another vendor's CDI spec: what reads and is valid is written so that it reads the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(spec) = cdi::Spec::parse(text) else { return };
    let _ = cdi::validate(&spec);
    let _ = cdi::minimum_version(&spec);
    assert_eq!(cdi::Spec::parse(&spec.to_json()).expect("what was written does not read"), spec);
});
