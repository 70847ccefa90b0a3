//! A configuration, as TOML and as NVIDIA's YAML: whatever it is, it is read or refused, and what `divvy share` makes of
//! one that reads, reads again and decides on the shared device. The modules are the command's own, which is no library.
#![no_main]
#![allow(dead_code, unused_imports)]

#[path = "../../src/config/mod.rs"]
mod config;
#[path = "../../src/failure.rs"]
mod failure;
#[path = "../../src/discover/side_class.rs"]
mod side_class;

mod discover {
    pub mod host {
        pub use crate::side_class::SideClass;
    }
}

use config::edit::{self, Cut};
use config::value::Match;
use config::{Config, Mode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Config::parse("c.yaml", text);
    if Config::parse("c.toml", text).is_err() {
        return;
    }
    let cut =
        Cut { mode: Some(Mode::TimeSlice), replicas: 3, name: None, memory: None, sm_percent: None, advisory: false };
    let covers = |entry: &Match| matches!(entry, Match::All | Match::Index(0));
    for cut in [Some(&cut), None] {
        // One that is written as a list is refused; and sums of one table may not go with equal shares.
        let Ok(once) = edit::share("c.toml", text, "0", &covers, cut) else { continue };
        let twice = edit::share("c.toml", &once, "0", &covers, cut).expect("what was written is not read");
        assert_eq!(twice, once);
        let rules = Config::parse("c.toml", &once).expect("what was written is not read").rules;
        let first = rules.iter().find(|rule| rule.matches.iter().any(|entry| covers(&entry.matches)));
        let replicas = first.map(|rule| rule.shares.iter().map(|share| share.replicas).sum());
        assert_eq!(replicas.unwrap_or(0), if cut.is_some() { 3 } else { 0 });
    }
});
