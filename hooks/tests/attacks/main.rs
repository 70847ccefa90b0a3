//! Attacks on the static hook, each with what it copies, and what comes of it. docs/attacks.md is this table.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod caller;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod ground;
mod links;
mod mounts;
#[allow(dead_code, reason = "other tests have other needs")]
#[path = "../../../tests/support/needs.rs"]
mod needs;
mod page;
mod races;
mod sentinel;

use ground::Outcome::{self, Done, Left, Refused, Replaced};
use ground::Outcomes;
use libtest_mimic::{Arguments, Trial};
use needs::Need;

/// A row of the page.
struct Attack {
    /// What it is, and its test's name.
    name: &'static str,
    /// The vulnerability, or the weakness of another hook, that it copies.
    copies: &'static str,
    /// All that may come of its attempts.
    happens: &'static [Outcome],
    /// Whether all of that must come of them. A race is won or lost.
    exactly: bool,
    needs: &'static [Need],
    run: fn() -> Outcomes,
}

const fn attack(
    name: &'static str,
    copies: &'static str,
    happens: &'static [Outcome],
    run: fn() -> Outcomes,
) -> Attack {
    Attack { name, copies, happens, exactly: true, needs: &[], run }
}

const fn race(
    name: &'static str,
    copies: &'static str,
    happens: &'static [Outcome],
    run: fn() -> Outcomes,
) -> Attack {
    Attack { exactly: false, ..attack(name, copies, happens, run) }
}

const fn mount(
    name: &'static str,
    copies: &'static str,
    happens: &'static [Outcome],
    run: fn() -> Outcomes,
) -> Attack {
    Attack { needs: &[Need::Mounts], ..attack(name, copies, happens, run) }
}

const fn device(
    name: &'static str,
    copies: &'static str,
    happens: &'static [Outcome],
    run: fn() -> Outcomes,
) -> Attack {
    Attack { needs: &[Need::Root], ..attack(name, copies, happens, run) }
}

const LINKS: &str = "CVE-2024-0134, CVE-2025-23267";
const RACES: &str = "CVE-2026-24260; like CVE-2024-0132, CVE-2025-23359";
const ENVIRONMENT: &str = "CVE-2025-23266";
const DESCRIPTORS: &str = "CVE-2024-21626";
const CHMOD: &str = "like nvidia-cdi-hook chmod, which followed an image's link";
const NOTHING: &str = "";

const ATTACKS: &[Attack] = &[
    attack("absolute links", LINKS, &[Done, Left], links::absolute),
    attack("links that climb", LINKS, &[Done, Left], links::climbing),
    attack("links that climb behind a directory", LINKS, &[Done, Left], links::through_a_directory),
    attack("dangling links", LINKS, &[Done, Left], links::dangling),
    attack("endless links", LINKS, &[Done, Left, Refused(1)], links::endless),
    attack("the engine names the root by a link", NOTHING, &[Done], links::to_the_root),
    race("links swapped in the run", RACES, &[Done, Replaced, Left, Refused(1)], races::swapped_links),
    race("directories moved out in the run", RACES, &[Done, Left, Refused(1)], races::moved_directories),
    race("moved out under `..`", RACES, &[Done, Left, Refused(1)], races::moved_from_under_a_climb),
    attack("FIFOs", NOTHING, &[Done, Replaced, Left, Refused(1)], files::fifos),
    attack("sockets", NOTHING, &[Done, Replaced, Left, Refused(1)], files::sockets),
    device("character devices", NOTHING, &[Done, Replaced, Left, Refused(1)], files::character_devices),
    device("block devices", NOTHING, &[Done, Replaced, Left, Refused(1)], files::block_devices),
    attack("directories in the place of files", NOTHING, &[Done, Refused(1)], files::directories),
    attack("hard links to the host's files", CHMOD, &[Done, Replaced, Left], files::hard_links),
    attack("files of 1 TiB", NOTHING, &[Done, Replaced, Left, Refused(1)], files::enormous),
    attack("empty files", NOTHING, &[Done, Left, Refused(1)], files::empty),
    attack("malformed files", NOTHING, &[Done, Replaced, Left, Refused(1)], files::malformed),
    attack("truncated caches", NOTHING, &[Replaced], files::truncated_cache),
    mount("volumes over directories", CHMOD, &[Done, Left], mounts::volumes),
    mount("volumes of the root itself", CHMOD, &[Done, Left], mounts::volumes_of_the_root_itself),
    mount("volumes over files", CHMOD, &[Done, Left], mounts::volumes_of_files),
    mount("file systems over directories", NOTHING, &[Done, Left], mounts::empty_file_systems),
    mount("links into a volume", LINKS, &[Done, Left], mounts::links_into_a_volume),
    mount("links into the host's root as a volume", LINKS, &[Done, Left], mounts::links_into_the_hosts_root),
    mount("links into /proc", DESCRIPTORS, &[Done, Left, Refused(1)], mounts::links_into_proc),
    mount("a false /proc", DESCRIPTORS, &[Done, Left], mounts::a_false_proc),
    mount("inherited descriptors", DESCRIPTORS, &[Done, Left], mounts::inherited_descriptors),
    device("links in the container's /dev", LINKS, &[Done], mounts::a_dev_full_of_links),
    device("the host's /dev", NOTHING, &[Left], mounts::the_hosts_dev),
    attack("variables of the image", ENVIRONMENT, &[Done], caller::environment),
    attack("paths with `..`, `.` or `//`", NOTHING, &[Refused(2)], caller::paths_that_are_not_plain),
    attack("control characters in words", NOTHING, &[Refused(2)], caller::control_characters),
    attack("overlong words", NOTHING, &[Done, Refused(1)], caller::overlong_words),
    attack("link targets that climb", LINKS, &[Done], caller::link_targets_that_climb),
    attack("the host's root as the container's", NOTHING, &[Refused(1)], caller::the_hosts_root),
    attack("odd states", NOTHING, &[Refused(1)], caller::odd_states),
    attack("odd configurations", NOTHING, &[Done, Refused(1)], caller::odd_configurations),
];

fn main() {
    let trials = ATTACKS.iter().map(|attack| {
        needs::trial(attack.name, attack.needs, || {
            let (happened, expected) = ((attack.run)(), Outcomes::from_iter(attack.happens.iter().copied()));
            let holds = if attack.exactly { happened == expected } else { happened.is_subset(&expected) };
            assert!(holds, "{}: {happened:?} happened, and the table says {expected:?}", attack.name);
        })
    });
    let mut trials: Vec<Trial> = trials.collect();
    trials.push(needs::trial("the page has this table", &[], page::compare));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
