//! Black box: what a user types and reads, on simulated hosts. No root, no engine, no GPU.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed, with the line")]

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Stdio;

use support::{divvy, golden, run};

const LAB: &str = "--host=sim:a100-lab";
const HOOK: &str = "--hook-path=/bin/true";

#[test]
fn golden_specs() {
    for host in ["a100-lab", "h100x8", "l4", "mixed"] {
        let host_flag = format!("--host=sim:{host}");
        let (status, json, errors) = run(&mut divvy(&["generate", &host_flag, HOOK]));
        assert_eq!((status, errors.as_str()), (0, ""), "{host}");
        golden(&format!("{host}.json"), &json);
        let (_, again, _) = run(&mut divvy(&["generate", &host_flag, HOOK]));
        assert_eq!(json, again, "not deterministic");
    }
}

#[test]
fn yaml_says_the_same_as_json() {
    let (status, yaml, errors) = run(&mut divvy(&["generate", LAB, HOOK, "--format=yaml"]));
    assert_eq!((status, errors.as_str()), (0, ""));
    golden("a100-lab.yaml", &yaml);
}

#[test]
fn golden_tables() {
    for host in ["a100-lab", "h100x8", "hgx-h100", "l4", "mixed"] {
        let (status, table, errors) = run(&mut divvy(&["list", &format!("--host=sim:{host}")]));
        assert_eq!((status, errors.as_str()), (0, ""));
        golden(&format!("{host}.list"), &table);
    }
    let (_, json, _) = run(&mut divvy(&["list", LAB, "--format=json"]));
    golden("a100-lab.list.json", &json);
    let listing: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(listing["devices"].as_array().unwrap().len(), 11);
}

#[test]
fn the_driver_root_prefixes_host_paths_only() {
    let (_, json, _) = run(&mut divvy(&[
        "generate",
        "--host=sim:h100x8",
        HOOK,
        "--driver-root=/run/driver",
        "--dev-root=/other",
    ]));
    // The first spec; those of side kinds follow it.
    let spec = serde_json::Deserializer::from_str(&json).into_iter::<serde_json::Value>().next();
    let spec = spec.unwrap().unwrap();
    let mount = &spec["containerEdits"]["mounts"][0];
    assert_eq!(
        mount["hostPath"].as_str().unwrap(),
        format!("/run/driver{}", mount["containerPath"].as_str().unwrap())
    );
    let node = &spec["devices"][0]["containerEdits"]["deviceNodes"][0];
    assert_eq!(
        (node["path"].as_str(), node["hostPath"].as_str()),
        (Some("/dev/nvidia0"), Some("/other/dev/nvidia0"))
    );
    let dri = &spec["devices"][0]["containerEdits"]["deviceNodes"][2];
    assert_eq!(
        (dri["path"].as_str(), dri["hostPath"].as_str()),
        (Some("/dev/dri/renderD128"), Some("/other/dev/dri/renderD128"))
    );
    assert!(json.contains("\"/run/driver/lib/firmware/nvidia/580.95.05/gsp_ga10x.bin\""));
    assert!(json.contains("--device-link=../renderD128=/dev/dri/by-path/pci-0000:1b:00.0-render\""));
    assert!(!json.contains("=/run/driver/usr/lib"), "the hook works on paths in the container");
}

#[test]
fn a_spec_file_is_written_whole_and_readable() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cdi/divvy.json");
    let output = format!("--output={}", file.display());
    let (status, said, errors) = run(&mut divvy(&["generate", "--host=sim:l4", HOOK, &output]));
    assert_eq!((status, errors.as_str()), (0, ""));
    assert_eq!(said, format!("wrote {}: 1 GPU\n", file.display()));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
    assert_eq!(fs::metadata(file.parent().unwrap()).unwrap().permissions().mode() & 0o7777, 0o755);
    let (_, said, _) = run(&mut divvy(&["generate", "--host=sim:l4", HOOK, &output]));
    assert_eq!(said, format!("unchanged: {}: 1 GPU\n", file.display()));
    assert_eq!(fs::read_dir(file.parent().unwrap()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn dry_run_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("divvy.json");
    let (status, said, _) =
        run(&mut divvy(&["generate", LAB, HOOK, "--dry-run", &format!("--output={}", file.display())]));
    assert_eq!(status, 0);
    assert!(said.contains("0:1") && said.contains(&format!("to {}", file.display())), "{said}");
    assert!(!file.exists());
}

#[test]
fn mistakes_are_named_and_mended() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    fs::create_dir(at("directory.json")).unwrap();
    symlink("elsewhere.json", at("link.json")).unwrap();
    for (args, status, words) in [
        (
            vec!["generate", "--host=sim:nope"],
            2,
            vec![
                "error: there is no simulated host \"sim:nope\"",
                "hint: choose one of sim:a100-lab, sim:h100x8, sim:hgx-h100, sim:l4, sim:mixed, sim:mps\n",
            ],
        ),
        (
            vec!["list", "--host=a100-lab"],
            2,
            vec!["error: there is no directory a100-lab\n", "or one of sim:a100-lab, sim:h100x8"],
        ),
        (
            vec!["generate", LAB, "--output=/tmp/x.yml"],
            2,
            vec!["error: /tmp/x.yml ends in neither .json nor .yaml", "hint: choose a name like divvy.json"],
        ),
        (
            vec!["generate", LAB, "--format=yaml", "--output=/tmp/x.json"],
            2,
            vec!["error: /tmp/x.json would hold YAML"],
        ),
        (
            vec!["generate", LAB, "--hook-path=/no/such/hook"],
            1,
            vec!["error: there is no program at /no/such/hook", "hint: install divvy-hook"],
        ),
        (
            vec!["generate", LAB, HOOK, "--output", &at("a/b/divvy.json")],
            1,
            vec!["error: ", &at("a"), "hint: make the directory first"],
        ),
        (
            vec!["generate", LAB, HOOK, "--output", &at("directory.json")],
            1,
            vec!["error: ", &at("directory.json"), "directory"],
        ),
        (
            vec!["generate", LAB, HOOK, "--output", &at("link.json")],
            1,
            vec!["error: ", &at("link.json"), "symbolic link"],
        ),
        (vec!["generate", LAB, "--create-device-nodes"], 2, vec!["error: "]),
        (vec!["frobnicate"], 2, vec!["error: "]),
        (vec![], 2, vec!["Usage: divvy"]),
    ] {
        let (got, out, errors) = run(&mut divvy(&args));
        assert_eq!(got, status, "{args:?}: {errors}");
        assert_eq!(out, "", "{args:?}");
        for word in words {
            assert!(errors.contains(word), "{args:?}: {word:?} is not in\n{errors}");
        }
    }
    assert!(!std::path::Path::new(&at("a")).exists());
}

#[test]
fn without_a_driver_the_error_says_what_to_install() {
    let root = tempfile::tempdir().unwrap();
    let flag = format!("--driver-root={}", root.path().display());
    let (status, out, errors) = run(&mut divvy(&["list", &flag]));
    assert_eq!((status, out.as_str()), (1, ""));
    assert!(errors.starts_with("error: cannot load "), "{errors}");
    assert!(errors.contains("hint: --driver-root"), "{errors}");
    let (status, _, errors) = run(&mut divvy(&["list", "--driver-root=/no/such/root"]));
    assert_eq!(status, 1);
    assert!(errors.contains("/no/such/root"), "{errors}");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let output = format!("--output={}", dir.path().join("divvy.json").display());
    for args in [
        vec!["generate", LAB, HOOK, &output],
        vec!["list", LAB],
        vec!["generate", LAB, HOOK],
        vec!["completions", "bash"],
    ] {
        let mut child = divvy(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut errors = String::new();
        child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
        assert_eq!((child.wait().unwrap().code(), errors.as_str()), (Some(0), ""), "{args:?}");
    }
}

/// Warnings that nobody reads must not keep a spec from being written.
#[test]
fn a_closed_standard_error_is_no_error() {
    let mut child = divvy(&["list", "--host=sim:nope"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, script, _) = run(&mut divvy(&["completions", shell]));
        assert_eq!(status, 0);
        assert!(script.contains("generate") && script.contains("driver-root"), "{shell}");
    }
}

/// README shows commands; each must exist as shown.
#[test]
fn the_commands_in_the_readme_parse() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let shown: Vec<_> = readme
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter_map(|line| line.strip_prefix("sudo ").unwrap_or(line).strip_prefix("divvy "))
        .collect();
    assert!(shown.len() >= 6, "{shown:?}");
    let dir = tempfile::tempdir().unwrap();
    for line in shown {
        let mut args: Vec<_> = line.split_whitespace().collect();
        // Of the machine that they run on: that they are understood is all that can be asked of any.
        if ["ps", "mps", "release", "serve"].contains(&args[0]) {
            args.iter_mut().for_each(|arg| *arg = arg.trim_matches(['[', ']']));
            args.push("--help");
        } else if args[0] != "completions" && !args.contains(&"--host") {
            // A simulated host in place of this machine's; making nodes is for live machines alone.
            args.retain(|arg| *arg != "--create-device-nodes");
            // The README's GPU 0 is one that can be shared.
            args.push(if args[0] == "share" { "--host=sim:l4" } else { LAB });
            args.extend(match args[0] {
                "generate" => Some("--output=-"),
                "share" => Some("--config=config.toml"),
                _ => None,
            });
        }
        let (status, _, errors) = run(divvy(&args).current_dir(&dir));
        assert_eq!(status, 0, "divvy {line}: {errors}");
    }
}

#[test]
fn the_configuration_in_the_readme_is_one() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let blocks = readme.split("```toml\n").skip(1).map(|block| block.split_once("```").unwrap().0);
    let config: String = blocks.collect();
    assert!(config.contains("exclusive") && config.contains("[pool.shared]"), "{config}");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.toml"), config).unwrap();
    let config = format!("--config={}", dir.path().join("config.toml").display());
    let (_, out, errors) = run(&mut divvy(&["generate", "--host=sim:mixed", &config, "--dry-run"]));
    for decided in [
        "ci-0 to ci-1, notebook-0",
        "\nwhole: 2 devices\n",
        "leased, with graphics",
        "large-0     mps, 1 of 3 on 3",
    ] {
        assert!(out.contains(decided), "{decided}: {out}{errors}");
    }
}

#[test]
fn help_is_there_for_every_verb() {
    for verb in ["generate", "list", "share", "sim", "record", "ps", "mps", "release", "serve", "completions"]
    {
        let (status, help, _) = run(&mut divvy(&[verb, "--help"]));
        assert_eq!(status, 0);
        assert!(help.contains("Usage: divvy"), "{help}");
    }
}
