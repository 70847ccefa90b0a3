//! An image whose environment would have a hook load its library: LD_PRELOAD=/proc/self/cwd/poc.so, where a runtime starts
//! a hook in the image and hands it that environment (CVE-2025-23266). The library leaves a trace wherever it is
//! loaded (tests/machine/poc.c): each trial shows that it was in the container's own program, and that no hook of divvy's
//! did. That a program without divvy-hook's precautions would have is shown too, beside the runtimes and under them.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::bundle::{RUNTIMES, Run, Runtime};
use crate::engine::{ENGINES, Engine};
use crate::ground::{Ground, suite};
use crate::table;

/// Copies of a dynamic program, one for each that runs it as a hook: a trace has the program's name.
const PREPARE: &str = "set -e
    mkdir -m 777 /poc.d
    tar -x -f /images/poc.tar -C /poc.d ./poc.so
    mkdir /poc.d/bin
    for name; do
        cp /usr/bin/true /poc.d/bin/$name
        cp /usr/bin/true /poc.d/bin/forced-$name
    done
    cp /usr/bin/true /poc.d/bin/nobody
    cd /poc.d
    LD_PRELOAD=/proc/self/cwd/poc.so /poc.d/bin/nobody
    cat pwned nobody
    rm pwned nobody";

/// The rows of docs/images.md.
const ROWS: [&str; 5] = [
    "divvy-hook, as in the spec",
    "divvy-hook, no `env` of its own",
    "divvy-hook, the variable in its `env`",
    "a dynamic program, no `env` of its own",
    "a dynamic program, the variable in its `env`",
];

/// Makes ready what traces are left with, and shows that they are: of a program outside all containers.
#[track_caller]
pub fn prepare(ground: &Ground) {
    static SAID: OnceLock<String> = OnceLock::new();
    let said = SAID.get_or_init(|| {
        let names =
            ENGINES.iter().map(|engine| engine.name).chain(RUNTIMES.iter().map(|runtime| runtime.name));
        let command: Vec<&str> = ["sh", "-c", PREPARE, "prepare"].into_iter().chain(names).collect();
        ground.command("in.sh", &command).ok().to_owned()
    });
    assert_eq!(said, "/poc.d/bin/nobody\n/poc.d/bin/nobody", "the library leaves no trace");
}

/// The path of a program that a hook of this name runs.
pub fn program(name: &str) -> String {
    format!("/poc.d/bin/{name}")
}

/// Whether the library was loaded into a program that ran before the root was a container's.
#[track_caller]
pub fn was_loaded(ground: &Ground, program: &str) -> bool {
    match ground.sh(&format!("[ -e /poc.d/{program} ] && echo yes || echo no")).ok() {
        "yes" => true,
        "no" => false,
        other => panic!("{other}"),
    }
}

/// On an engine, by the image's own environment and working directory.
pub fn image_environment(ground: &Ground, engine: &Engine) {
    prepare(ground);
    let container = engine.container(ground, &["0:1"]).image("poc");
    let said = container.sh("pwd; probe load libcuda.so.1; cat pwned; [ ! -e /pwned ] || echo in the root");
    assert_eq!(
        said.ok().lines().collect::<Vec<_>>(),
        ["/hostile", "libcuda.so.1: /usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/bin/probe"]
    );
    assert!(!was_loaded(ground, "divvy-hook"), "the hook loaded the image's library");
}

/// On a runtime, by the configuration's: with the hook as the spec has it, with its own environment taken away, and with
/// that of an image in its place, as a runtime would have it that mixes them up; and the latter two with another program.
pub fn bundle_environment(ground: &Ground, runtime: &Runtime) {
    prepare(ground);
    let mut config = runtime.with_device(ground, &["probe", "load", "libcuda.so.1"], "0:1");
    for variable in ["LD_PRELOAD=/proc/self/cwd/poc.so", "LD_LIBRARY_PATH=/proc/self/cwd"] {
        config["process"]["env"].as_array_mut().expect("a list").push(variable.into());
    }
    config["process"]["cwd"] = "/hostile".into();
    // crun starts a hook in the bundle, where no image has a file: so this library lies on the machine.
    let forced = json!(["LD_PRELOAD=/poc.d/poc.so"]);
    let hook = &config["hooks"]["createContainer"][0];
    assert_ne!(hook["env"].as_array().map_or(0, Vec::len), 0, "{hook}");
    let with = |env: Option<&Value>, program: Option<String>| {
        let mut config = config.clone();
        let hook = config["hooks"]["createContainer"][0].as_object_mut().expect("a hook");
        hook.remove("env");
        if let Some(program) = program {
            *hook = json!({"path": program}).as_object().cloned().unwrap_or_default();
        }
        hook.extend(env.map(|env| ("env".to_owned(), env.clone())));
        config
    };
    let names = [runtime.name.to_owned(), format!("forced-{}", runtime.name)];
    let configs = [
        config.clone(),
        with(None, None),
        with(Some(&forced), None),
        with(None, Some(program(&names[0]))),
        with(Some(&forced), Some(program(&names[1]))),
    ];
    let (runs, _) = runtime.run(ground, "poc", &configs, "");
    for run in &runs {
        assert_eq!(run.status, 0, "{}", run.stderr);
        assert_eq!(run.stdout, "libcuda.so.1: /usr/lib/x86_64-linux-gnu/libcuda.so.1");
        assert!(has_changed(run, "hostile/pwned"), "the container's own program did not load it: {run:?}");
    }
    for run in &runs[..3] {
        assert!(!has_changed(run, "pwned"), "the hook left a trace in the image: {run:?}");
    }
    assert!(!was_loaded(ground, "divvy-hook"), "the hook loaded the image's library");
    let [inherits, forced] = names.map(|name| was_loaded(ground, &name));
    assert!(forced, "nothing is shown: not even a dynamic program loaded it");
    let said = [false, false, false, inherits, forced].map(|is| if is { "**yes**" } else { "no" }.to_owned());
    documented(runtime, &ROWS.into_iter().zip(said).collect::<Vec<_>>());
}

fn has_changed(run: &Run, path: &str) -> bool {
    run.changed.iter().any(|(changed, ..)| changed == path)
}

/// Asserts that the column of a runtime is as docs/images.md has it.
#[track_caller]
fn documented(runtime: &Runtime, cells: &[(&str, String)]) {
    let place = table::Place {
        page: "images.md",
        heading: &format!("Who loads a library that the image's environment names, Debian {}", suite()),
        columns: &RUNTIMES.each_ref().map(|runtime| runtime.name),
        rows: &ROWS,
        trials: "bundles",
        is_only_compared: false,
    };
    place.compare(runtime.name, cells);
}
