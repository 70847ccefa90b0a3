//! What comes with the call: environment, command line, state. The spec and the engine are trusted, but an image's
//! variables have come this way before, and a spec is a file that people edit.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use crate::common::DIR;
use crate::ground::{Ground, Outcomes};
use crate::hostile_library::Hostile;

/// A library whose constructor leaves a mark, by every variable that has the loader load it.
pub fn environment() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    let ground = Ground::new("a hostile environment");
    let hostile = Hostile::new(&ground.beside(crate::ground::MOVED));
    hostile.assert_dynamic_programs_load_it();
    fs::copy(&hostile.library, ground.bundle.path("/poc.so")).unwrap();
    let tried = |name: &str, value: &str| {
        let outcomes = ground.start_with(|| {
            let mut command = ground.hook();
            command.current_dir(ground.bundle.path("/")).env(name, value);
            command
        });
        assert!(!hostile.was_loaded(), "{name}={value} had the hook load it");
        outcomes
    };
    for (name, value) in hostile.variables() {
        outcomes.extend(tried(name, &value));
    }
    outcomes.extend(tried("LD_PRELOAD", "/proc/self/cwd/poc.so"));
    outcomes.extend(tried("LD_LIBRARY_PATH", ground.beside("moved/hostile/names").to_str().unwrap()));
    outcomes.extend(tried("TMPDIR", ground.host("/etc").to_str().unwrap()));
    outcomes.extend(tried("PATH", ground.host("/etc").to_str().unwrap()));
    outcomes
}

/// A file that took the number of a closed stream would get the messages.
pub fn closed_streams() -> Outcomes {
    let mut outcomes = BTreeSet::new();
    for closed in ["2>&-", ">&-", ">&- 2>&-"] {
        let ground = Ground::new(format!("a stream is closed, {closed}"));
        // This is warned of.
        ground.bundle.file("/etc/ld.so.cache", b"malformed");
        outcomes.extend(ground.start_with(|| {
            let mut command = Command::new("sh");
            let hook = ground.hook();
            command
                .args(["-c", &format!("exec \"$@\" {closed}"), "sh"])
                .arg(hook.get_program())
                .args(hook.get_args());
            command
        }));
        assert_eq!(ground.caches().len(), 1, "{closed}: a message is in the cache");
    }
    outcomes
}

/// Paths that mean another place than they say.
pub fn paths_that_are_not_plain() -> Outcomes {
    refused_words(&[
        "--library=/usr/lib/../../../etc/libx.so.1",
        "--library=/usr/lib//libx.so.1",
        "--library=/usr/lib/./libx.so.1",
        "--library=usr/lib/libx.so.1",
        "--library=/usr/lib/libx.so.1/",
        "--library=/usr/lib/libx.so=..",
        "--library=/",
        "--library=",
        "--link=x=/usr/lib/../libx.so",
        "--link=x=//etc/ld.so.cache",
        "--link=x=etc/ld.so.cache",
        "--link==/etc/x",
        "--link=/etc/x",
        "--device-link=../card1=/etc/dri/by-path/x",
        "--device-link=../card1=/dev/../etc/x",
        "--device-link=../card1=/dev",
    ])
}

/// What would end a line of ld.so.conf, or a message's.
pub fn control_characters() -> Outcomes {
    refused_words(&[
        "--library=/usr/lib/a\n/etc/libx.so.1",
        "--library=/usr/lib/libx.so.1=lib\nx.so",
        "--library=/usr/lib/\u{1b}[2Jlibx.so.1",
        "--library=/usr/lib/\u{7f}libx.so.1",
        "--library=/usr/lib/\u{85}libx.so.1",
        "--link=a\tb=/usr/lib/libx.so",
        "--link=a=/usr/lib/libx\r.so",
        "--device-link=../card1=/dev/dri/\n",
    ])
}

/// Longer than a path or a name may be.
pub fn overlong_words() -> Outcomes {
    let (name, path) = ("n".repeat(256), "/d".repeat(3000));
    let words = [
        format!("--library={path}/libx.so.1"),
        format!("--library=/usr/lib/{name}"),
        format!("--library={DIR}/libcuda.so.580.126.09={name}"),
        format!("--link=x={path}"),
        format!("--link=x=/etc/{name}"),
        format!("--link={}=/usr/lib/libx.so", "t".repeat(5000)),
    ];
    let mut outcomes = BTreeSet::new();
    for word in words {
        let ground = Ground::new(&word[..40]);
        outcomes.extend(with_words(&ground, &[word.as_str()]));
    }
    outcomes
}

/// A link may say anything; where it is made is what counts.
pub fn link_targets_that_climb() -> Outcomes {
    let ground = Ground::new("a link's target climbs");
    let word = format!("--link=../../../../../../../../{}={DIR}/libcuda.so", ground.host("/etc").display());
    let mut outcomes = with_words(&ground, &[&word]);
    // The next start finds that link in the way, and then as a directory on the way.
    outcomes.extend(with_words(&ground, &[&word]));
    let ground = Ground::new("a device link's target climbs");
    outcomes.extend(with_words(&ground, &["--device-link=../../../../../../../dev/null=/dev/x"]));
    outcomes
}

/// The host's root, by every name.
pub fn the_hosts_root() -> Outcomes {
    let ground = Ground::new("the host's root");
    std::os::unix::fs::symlink("/", ground.beside("moved/by-link")).unwrap();
    let by_link = ground.beside("moved/by-link").display().to_string();
    let mut outcomes = BTreeSet::new();
    let long = "/.".repeat(1000);
    let climbs = "/usr/../".to_owned() + &"../".repeat(50);
    let roots =
        ["/", "//", "/.", "/usr/..", "/proc/self/root", "/proc/self/root/", "/proc/self/root/proc/1/root"];
    for root in roots.into_iter().chain([by_link.as_str(), &climbs, &long]) {
        let state = format!(r#"{{"bundle":"/nowhere","root":"{root}","status":"created"}}"#);
        outcomes.extend(ground.run(ground.hook(), state.as_bytes()));
        fs::write(ground.bundle.config(), format!(r#"{{"root":{{"path":"{root}"}}}}"#)).unwrap();
        outcomes.extend(ground.run(ground.hook(), ground.bundle.state().as_bytes()));
    }
    let climbs = "../".repeat(60);
    fs::write(ground.bundle.config(), format!(r#"{{"root":{{"path":"{climbs}"}}}}"#)).unwrap();
    outcomes.extend(ground.run(ground.hook(), ground.bundle.state().as_bytes()));
    outcomes
}

/// No root, no directory, or nothing that JSON is.
pub fn odd_states() -> Outcomes {
    let ground = Ground::new("an odd state");
    let root = ground.bundle.path("/").display().to_string();
    let long = format!(r#"{{"root":"{root}","x":"{}"}}"#, "x".repeat(1 << 20));
    let states = [
        String::new(),
        "\0".to_owned(),
        "[".repeat(100_000),
        long,
        format!(r#"{{"root":"{root}\u0000/x","bundle":"/b","status":"created"}}"#),
        r#"{"root":"rootfs","bundle":"b","status":"created"}"#.to_owned(),
        r#"{"bundle":"/etc","status":"created"}"#.to_owned(),
        r#"{"bundle":"/proc/self","status":"created"}"#.to_owned(),
        format!(r#"{{"root":"{root}/usr/lib/x86_64-linux-gnu/libcuda.so.580.126.09","status":"created"}}"#),
        r#"{"root":"/dev/null","status":"created"}"#.to_owned(),
    ];
    let mut outcomes = BTreeSet::new();
    for state in states {
        outcomes.extend(ground.run(ground.hook(), state.as_bytes()));
    }
    outcomes
}

/// Of either few fields are read, and what is nested in others is passed over.
pub fn nested() -> Outcomes {
    let nested =
        |opening: &str, closing: &str| format!("{}0{}", opening.repeat(50_000), closing.repeat(50_000));
    let nested = [nested("[", "]"), nested(r#"{"x":"#, "}"), nested(r#"[{"a":"#, "}]")];
    let ground = Ground::new("a nested state");
    let root = ground.bundle.path("/").display().to_string();
    let mut outcomes = BTreeSet::new();
    for nested in &nested {
        let state = format!(r#"{{"x":{nested},"root":"{root}","bundle":"/b","status":"created"}}"#);
        outcomes.extend(ground.run(ground.hook(), state.as_bytes()));
    }
    outcomes
        .extend(configured(&nested.map(|nested| format!(r#"{{"x":{nested},"root":{{"path":"rootfs"}}}}"#))));
    outcomes
}

pub fn odd_configurations() -> Outcomes {
    configured(&[
        format!(r#"{{"x":"{}","root":{{"path":"rootfs"}}}}"#, "x".repeat(16 << 20)),
        "[".repeat(100_000),
        r#"{"root":"#.repeat(100_000),
        "\0".to_owned(),
        r#"{"root":{"path":"rootfs\u0000"}}"#.to_owned(),
        r#"{"root":{"path":"nowhere"}}"#.to_owned(),
        r#"{"root":{"path":"config.json"}}"#.to_owned(),
    ])
}

fn configured(configs: &[String]) -> Outcomes {
    let ground = Ground::new("a configuration");
    let mut outcomes = BTreeSet::new();
    for config in configs {
        fs::write(ground.bundle.config(), config).unwrap();
        outcomes.extend(ground.run(ground.hook(), ground.bundle.state().as_bytes()));
    }
    outcomes
}

/// Each word is refused before anything is touched.
fn refused_words(words: &[&str]) -> Outcomes {
    let mut outcomes = BTreeSet::new();
    let ground = Ground::new("a word");
    let before = ground.bundle.inventory();
    for word in words {
        outcomes.extend(with_words(&ground, &[word]));
        assert_eq!(ground.bundle.inventory(), before, "{word:?}");
    }
    outcomes
}

fn with_words(ground: &Ground, words: &[&str]) -> Outcomes {
    let mut command: Command = ground.hook();
    command.args(words);
    ground.run(command, ground.bundle.state().as_bytes())
}
