//! Attacks on the static hook, each with what it copies, and what comes of it. docs/attacks.md is this table.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

#[path = "../common/built.rs"]
mod built;
mod caller;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod ground;
mod hostile_library;
mod images;
mod leases;
mod links;
mod mounts;
mod mps;
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

/// Outcomes with their places, none for everywhere else.
type Expected = &'static [(Outcome, &'static [&'static str])];

/// A row of the page.
struct Attack {
    /// What it is, and its test's name.
    name: &'static str,
    /// The vulnerability, or the weakness of another hook, that it copies.
    copies: &'static str,
    /// What comes of its attempts, with the places where it does.
    happens: Expected,
    /// Whether all of that must come of them: a race goes this way or that, and so do kernels.
    exactly: bool,
    needs: &'static [Need],
    run: fn() -> Outcomes,
}

const fn attack(
    name: &'static str,
    copies: &'static str,
    happens: Expected,
    run: fn() -> Outcomes,
) -> Attack {
    Attack { name, copies, happens, exactly: true, needs: &[], run }
}

const fn either(
    name: &'static str,
    copies: &'static str,
    happens: Expected,
    run: fn() -> Outcomes,
) -> Attack {
    Attack { exactly: false, ..attack(name, copies, happens, run) }
}

const fn mount(name: &'static str, copies: &'static str, happens: Expected, run: fn() -> Outcomes) -> Attack {
    Attack { needs: &[Need::Mounts], ..attack(name, copies, happens, run) }
}

const fn device(
    name: &'static str,
    copies: &'static str,
    happens: Expected,
    run: fn() -> Outcomes,
) -> Attack {
    Attack { needs: &[Need::Root], ..attack(name, copies, happens, run) }
}

// What is copied.
const LINKS: &str = "CVE-2024-0134, CVE-2025-23267";
const LINKS_OF_IMAGES: &str = "CVE-2024-0134, CVE-2025-23267; nvidia-cdi-hook chmod";
const RACES: &str = "CVE-2026-24260; like CVE-2024-0132, CVE-2025-23359";
const ENVIRONMENT: &str = "CVE-2025-23266";
const DESCRIPTORS: &str = "CVE-2024-21626";
const LIKE_DESCRIPTORS: &str = "like CVE-2024-21626";
const NONE: &str = "–";

// Places, parted by blanks.
const EVERYWHERE: &[&str] = &[];
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libcuda.so.580.126.09";
const ABOVE_LIBRARY: &str = "/usr /usr/lib /usr/lib/x86_64-linux-gnu";
const BESIDE_LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libcuda.so.1 /usr/lib/x86_64-linux-gnu/libcuda.so";
const ETC: &str = "/etc /etc/ld.so.conf.d";
const CACHE: &str = "/etc/ld.so.cache";
const PART: &str = "/etc/ld.so.conf.d/00-divvy.conf";
const CONFIG: &str = "/etc/ld.so.conf";
const PROFILE: &str = "/etc/nvidia /etc/nvidia/nvidia-application-profiles-rc.d /etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf";
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";
const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";

const DONE: (Outcome, &[&str]) = (Done, EVERYWHERE);
const NO_LIBRARY: Expected = &[DONE, (Left, &[ABOVE_LIBRARY, LIBRARY])];
const NO_FILE: Expected =
    &[DONE, (Replaced, &[CACHE]), (Left, &[LIBRARY]), (Refused(1), &[ABOVE_LIBRARY, ETC])];
const BAD_FILE: Expected = &[DONE, (Replaced, &[CACHE]), (Refused(1), &[ABOVE_LIBRARY, ETC])];
const ONLY_DONE: Expected = &[DONE];
const REFUSED: Expected = &[(Refused(1), EVERYWHERE)];
const USAGE: Expected = &[(Refused(2), EVERYWHERE)];
const ANY: Expected = &[DONE, (Replaced, EVERYWHERE), (Left, EVERYWHERE), (Refused(1), EVERYWHERE)];

const ATTACKS: &[Attack] = &[
    attack("absolute links", LINKS_OF_IMAGES, NO_LIBRARY, links::absolute),
    attack("links that climb", LINKS, NO_LIBRARY, links::climbing),
    attack("links that climb behind a directory", LINKS, NO_LIBRARY, links::through_a_directory),
    attack("dangling links", LINKS, NO_LIBRARY, links::dangling),
    attack(
        "dangling links, hundreds of directories deep",
        LINKS,
        &[DONE, (Left, &[LIBRARY]), (Refused(1), &[ABOVE_LIBRARY, ETC])],
        links::dangling_deep,
    ),
    attack(
        "links at temporary names",
        LINKS,
        &[DONE, (Refused(1), &[CACHE, CONFIG, PART, BESIDE_LIBRARY])],
        links::temporary_names,
    ),
    attack("old links at temporary names", LINKS, ONLY_DONE, links::stale_temporary_names),
    attack(
        "endless links",
        LINKS,
        &[DONE, (Left, &[LIBRARY]), (Refused(1), &[ABOVE_LIBRARY, ETC])],
        links::endless,
    ),
    attack("a link to the root, named by the engine", NONE, ONLY_DONE, links::to_the_root),
    either("links swapped in the run", RACES, ANY, races::swapped_links),
    either("directories moved out of the root in the run", RACES, ANY, races::moved_directories),
    either("the same under a path with `..`", RACES, ANY, races::moved_from_under_a_climb),
    attack("FIFOs", NONE, NO_FILE, files::fifos),
    attack("sockets", NONE, NO_FILE, files::sockets),
    device(
        "character devices",
        NONE,
        &[
            DONE,
            (Replaced, &[CACHE]),
            (Left, &[LIBRARY, "/dev/dri/card1"]),
            (Refused(1), &[ABOVE_LIBRARY, ETC]),
        ],
        files::character_devices,
    ),
    device("block devices", NONE, NO_FILE, files::block_devices),
    attack(
        "directories in the place of files",
        NONE,
        &[DONE, (Refused(1), &[CACHE, PART, BESIDE_LIBRARY])],
        files::directories,
    ),
    attack("hard links to the host's files", NONE, &[DONE, (Replaced, &[CACHE])], files::hard_links),
    attack("files of 1 TiB", NONE, BAD_FILE, files::enormous),
    attack(
        "empty files",
        NONE,
        &[DONE, (Left, &[LIBRARY]), (Refused(1), &[ABOVE_LIBRARY, ETC])],
        files::empty,
    ),
    attack("malformed files", NONE, BAD_FILE, files::malformed),
    attack(
        "links and odd files in an image of musl's",
        LINKS,
        &[
            DONE,
            (Replaced, &["/etc/ld-musl-x86_64.path"]),
            (Refused(1), &["/etc", "/etc/ld-musl-x86_64.path"]),
        ],
        images::of_musl,
    ),
    device(
        "links and odd files at the profile for EGL",
        LINKS,
        &[DONE, (Left, &[PROFILE])],
        images::with_a_gpu,
    ),
    attack("truncated caches", NONE, &[(Replaced, EVERYWHERE)], files::truncated_cache),
    mount(
        "volumes over directories (`-v /etc:/etc`)",
        NONE,
        &[DONE, (Left, &[ETC, ABOVE_LIBRARY])],
        mounts::volumes,
    ),
    mount(
        "directories of the root over others",
        NONE,
        &[DONE, (Left, &[ETC, ABOVE_LIBRARY])],
        mounts::volumes_of_the_root_itself,
    ),
    mount(
        "volumes over files",
        NONE,
        &[DONE, (Left, &[CACHE, PART, BESIDE_LIBRARY])],
        mounts::volumes_of_files,
    ),
    mount(
        "empty file systems over directories",
        NONE,
        &[DONE, (Left, &[ETC, ABOVE_LIBRARY])],
        mounts::empty_file_systems,
    ),
    mount(
        "links into a volume (`-v /tmp:/tmp`)",
        LINKS,
        &[DONE, (Left, &[CACHE, ETC, ABOVE_LIBRARY])],
        mounts::links_into_a_volume,
    ),
    mount(
        "links into the host's root (`-v /:/mnt`)",
        LINKS,
        &[DONE, (Left, &[CACHE, ETC, ABOVE_LIBRARY])],
        mounts::links_into_the_hosts_root,
    ),
    mount(
        "links to `/proc/self/root`, `cwd` and `fd`",
        LIKE_DESCRIPTORS,
        &[DONE, (Left, &[CACHE, ETC, LIBRARY, ABOVE_LIBRARY])],
        mounts::links_into_proc,
    ),
    // The kernel asks whether the hook may see that process, and a walk without openat2(2) goes no such way.
    Attack {
        exactly: false,
        ..mount(
            "links to `/proc/1/root`, which is another's",
            LIKE_DESCRIPTORS,
            &[
                DONE,
                (Left, &[CACHE, ETC, LIBRARY, ABOVE_LIBRARY, "/dev"]),
                (Refused(1), &["/etc", CONFIG, "/lib", MUSL, "/lib64", GLIBC, LIBRARY, ABOVE_LIBRARY]),
            ],
            mounts::links_to_another_process,
        )
    },
    mount("a false `/proc`", LIKE_DESCRIPTORS, NO_LIBRARY, mounts::a_false_proc),
    mount(
        "descriptors of the host's, inherited",
        DESCRIPTORS,
        &[DONE, (Left, &[CACHE, ETC, LIBRARY, ABOVE_LIBRARY])],
        mounts::inherited_descriptors,
    ),
    device("links in the container's own `/dev`", LINKS, ONLY_DONE, mounts::a_dev_full_of_links),
    device("the host's `/dev`", NONE, &[(Left, EVERYWHERE)], mounts::the_hosts_dev),
    device("no lease, and leases of other containers", NONE, REFUSED, leases::of_others),
    device("links, FIFOs, directories, 1 TiB and nonsense for leases", NONE, REFUSED, leases::odd),
    device("leases that others than root may write", NONE, REFUSED, leases::of_anybody),
    device("leases that name what is not below `/dev`", NONE, REFUSED, leases::beyond_dev),
    device("nodes to take away", NONE, ONLY_DONE, leases::nodes),
    device("links in the place of nodes to take away", LINKS, ONLY_DONE, leases::links),
    device("directories, files and volumes in their place", NONE, REFUSED, leases::nothing_to_take),
    device("nodes to take away from the host's `/dev`", NONE, REFUSED, leases::the_hosts_dev),
    device("an MPS server's directory at `/tmp/nvidia-mps`", NONE, ONLY_DONE, mps::places),
    device("links, files and mounts in its place", LINKS, ONLY_DONE, mps::in_the_way),
    device(
        "volumes at `/tmp` without such a directory, and what else is others'",
        NONE,
        REFUSED,
        mps::volumes,
    ),
    device("mounts that would show on the host", NONE, REFUSED, mps::shared),
    device("MPS directories that others than root may write, and what is none", NONE, REFUSED, mps::odd),
    device("a tmpfs for `/dev/shm`", NONE, ONLY_DONE, mps::memory),
    device("what is no tmpfs of root's for `/dev/shm`", NONE, REFUSED, mps::no_memory),
    attack("LD_PRELOAD, LD_AUDIT, LD_LIBRARY_PATH, GCONV_PATH", ENVIRONMENT, ONLY_DONE, caller::environment),
    attack("closed standard streams", NONE, &[DONE, (Replaced, EVERYWHERE)], caller::closed_streams),
    attack("paths with `..`, `.` or `//` in arguments", NONE, USAGE, caller::paths_that_are_not_plain),
    attack("control characters in arguments", NONE, USAGE, caller::control_characters),
    // No path is too long for a walk, and the library is just not there.
    either(
        "overlong arguments",
        NONE,
        &[(Left, EVERYWHERE), (Refused(1), EVERYWHERE)],
        caller::overlong_words,
    ),
    attack("link targets that climb", LINKS, ONLY_DONE, caller::link_targets_that_climb),
    attack("the host's root as the container's", NONE, REFUSED, caller::the_hosts_root),
    attack("states and configurations that are nested", NONE, ONLY_DONE, caller::nested),
    attack("states that are long, or name no root", NONE, REFUSED, caller::odd_states),
    attack("configurations that are long, or name no root", NONE, REFUSED, caller::odd_configurations),
];

fn main() {
    let trials = ATTACKS.iter().map(|attack| needs::trial(attack.name, attack.needs, || attack.check()));
    let mut trials: Vec<Trial> = trials.collect();
    trials.push(needs::trial("the page has this table", &[], page::compare));
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

impl Attack {
    fn check(&self) {
        let (happened, expected) = ((self.run)(), self.expected());
        let holds = if self.exactly { happened == expected } else { happened.is_subset(&expected) };
        let more: Vec<_> = happened.difference(&expected).collect();
        let less: Vec<_> = expected.difference(&happened).collect();
        assert!(holds, "{}: {more:?} is not in the table, and {less:?} did not happen", self.name);
    }

    fn expected(&self) -> Outcomes {
        let mut expected = Outcomes::new();
        for (outcome, groups) in self.happens {
            let places = groups.iter().flat_map(|places| places.split(' '));
            expected.extend(places.map(|place| (*outcome, place.to_owned())));
            if groups.is_empty() {
                expected.insert((*outcome, String::new()));
            }
        }
        expected
    }
}
