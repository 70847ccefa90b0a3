//! The plugin's files as its users have them, and what is said about each mistake.

use super::*;

#[track_caller]
fn config(text: &str) -> Config {
    parse("c.yaml", text).unwrap_or_else(|mistake| panic!("{mistake}"))
}

/// The example of the plugin's README.
#[test]
fn time_slicing() {
    let config = config(
        "version: v1\nsharing:\n  timeSlicing:\n    resources:\n    - name: nvidia.com/gpu\n      replicas: 10\n",
    );
    assert_eq!(config.warnings, Vec::<String>::new());
    let [rule] = &config.rules[..] else { panic!("{config:?}") };
    assert_eq!(rule.place.to_string(), "c.yaml:5:7");
    assert_eq!(
        (rule.mode, rule.class.as_deref(), rule.matches[0].matches.clone()),
        (Mode::TimeSlice, None, Match::Model("*".into()))
    );
    let share = ShareRule {
        name: "shared".into(),
        replicas: 10,
        memory_bytes: None,
        sm_percent: None,
        advisory: false,
        require: None,
        priority: Priority::Normal,
    };
    assert_eq!(rule.shares, [share]);
}

#[test]
fn mps_is_equal_parts() {
    let config = config("sharing:\n  mps:\n    resources:\n    - {name: gpu, replicas: 3}\n");
    assert_eq!(config.warnings, Vec::<String>::new());
    let share = &config.rules[0].shares[0];
    assert_eq!((config.rules[0].mode, config.rules[0].overcommit, share.replicas), (Mode::Mps, false, 3));
    assert_eq!((share.memory_bytes, share.sm_percent, share.advisory), (None, None, false));
}

#[test]
fn every_key() {
    let config = config(
        "version: v1
flags:
  migStrategy: mixed
  failOnInitError: false
  plugin: {passDeviceSpecs: true, deviceListStrategy: [envvar]}
  gfd: {oneshot: true}
resources:
  gpus: [{pattern: '*', name: nvidia.com/gpu}]
imex: {channelIDs: [0]}
sharing:
  timeSlicing:
    renameByDefault: true
    failRequestsGreaterThanOne: true
    resources:
    - name: nvidia.com/gpu
      devices: [0, \"3\", GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf]
      replicas: 2
    - name: nvidia.com/gpu
      rename: nvidia.com/gpu-small
      devices: [1]
      replicas: 8
    - name: nvidia.com/mig-1g.10gb.me
      devices: all
      replicas: 4
    - name: mig-1c.2g.10gb
      devices: ['0:1']
      replicas: 2
",
    );
    assert_eq!(config.mig_strategy, Some(MigStrategy::Mixed));
    assert_eq!(
        config.warnings,
        [
            "c.yaml: without a meaning outside Kubernetes: flags.failOnInitError, flags.plugin, flags.gfd, resources, imex",
        ]
    );
    let rules: Vec<_> = config
        .rules
        .iter()
        .map(|rule| {
            let matches: Vec<_> = rule.matches.iter().map(|entry| entry.matches.to_string()).collect();
            (matches.join(" "), rule.class.clone().unwrap_or_default(), rule.shares[0].replicas)
        })
        .collect();
    let rule = |matches: &str, class: &str, replicas| (matches.to_owned(), class.to_owned(), replicas);
    assert_eq!(
        rules,
        [
            rule("0 3 GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf", "gpu.shared", 2),
            rule("1", "gpu-small", 8),
            rule("1g.10gb.me", "mig-1g.10gb.me.shared", 4),
            rule("0:1", "mig-1c.2g.10gb.shared", 2),
        ]
    );
}

#[test]
fn the_strategy_says_what_a_gpu_is() {
    for (strategy, matches) in
        [("none", Match::Model("*".into())), ("single", Match::All), ("mixed", Match::Model("*".into()))]
    {
        let config = config(&format!(
            "flags: {{migStrategy: {strategy}}}\nsharing: {{timeSlicing: {{resources: [{{name: gpu, replicas: 2}}]}}}}"
        ));
        assert_eq!(config.rules[0].matches[0].matches, matches, "{strategy}");
    }
    let config = config("sharing: {timeSlicing: {resources: [{name: mig-1g.5gb, replicas: 2}]}}");
    assert_eq!(config.rules[0].class.as_deref(), Some("mig-1g.5gb"));
    assert_eq!(
        config.warnings,
        ["c.yaml: mig-1g.5gb is a resource under migStrategy mixed only; it is shared all the same"]
    );
}

#[test]
fn both_forms_are_mps() {
    let config = config(
        "sharing: {mps: {resources: [{name: gpu, replicas: 4}]}, timeSlicing: {resources: [{name: gpu, replicas: 2}]}}",
    );
    assert_eq!(config.rules[0].shares[0].replicas, 4);
    assert_eq!(
        config.warnings[0],
        "c.yaml: sharing.mps goes before sharing.timeSlicing, as in NVIDIA's plugin"
    );
}

#[test]
fn nothing_shared_is_nothing_shared() {
    for text in ["", "\n# nothing\n", "version: v1\n", "{}", "version: \"\"\nflags:\n"] {
        let config = config(text);
        assert_eq!((config.rules.len(), &config.warnings[..]), (0, &[][..]), "{text}");
    }
}

/// One resource in a file.
fn resource(keys: &str) -> String {
    format!("sharing:\n  timeSlicing:\n    resources:\n    - name: nvidia.com/gpu\n      {keys}\n")
}

#[test]
fn mistakes_are_named() {
    for (text, said) in [
        (resource("replicas: 1"), "c.yaml:5:17: replicas is 1: it is 2 to 1024"),
        (resource("replicas: 0"), "c.yaml:5:17: replicas is 0: it is 2 to 1024"),
        (resource("replicas: -1"), "c.yaml:5:17: replicas is -1: it is 2 to 1024"),
        (resource("replicas: 1000000000"), "c.yaml:5:17: replicas is 1000000000: it is 2 to 1024"),
        (resource("rename: x"), "c.yaml:5:7: missing key `replicas`"),
        (
            resource("replicas: 2\n      repilcas: 3"),
            "c.yaml:6:7: unknown key `repilcas`, expected one of name, rename, devices, replicas",
        ),
        (
            resource("replicas: 2\n      devices: 3"),
            "c.yaml:6:16: devices is 3, which says how many and not which",
        ),
        (
            resource("replicas: 2\n      devices: some"),
            "c.yaml:6:16: devices is \"some\": it is \"all\" or a list",
        ),
        (resource("replicas: 2\n      devices: []"), "c.yaml:6:16: devices is empty: leave it out for all"),
        (
            resource("replicas: 2\n      devices: [MIG-GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf/1/0]"),
            "c.yaml:6:17: \"MIG-GPU-36441532-9ef4-0f3a-afb1-f844c3ab04bf/1/0\" is no device: it is an index (\"0\"), a MIG device (\"0:1\") or a UUID",
        ),
        (
            resource("replicas: 2\n      devices: ['0', '0']"),
            "c.yaml:6:22: \"0\" is matched already, at c.yaml:6:17: the first match wins",
        ),
        (
            resource("replicas: 2\n      rename: a b"),
            "c.yaml:6:15: rename: the class in \"nvidia.com/a b\" cannot hold ' ' (character 13)",
        ),
        (
            resource("replicas: 2").replace("nvidia.com/gpu", "amd.com/gpu"),
            "c.yaml:4:13: \"amd.com/gpu\" is no resource of NVIDIA's: it is nvidia.com/gpu or nvidia.com/mig-<profile>",
        ),
        ("version: v2\n".into(), "c.yaml:1:10: version is \"v2\": divvy reads v1"),
        (
            "flags: {migStrategy: several}\n".into(),
            "c.yaml:1:22: unknown value `several`, expected one of none, single, mixed",
        ),
        ("flags: {nvidiaRoot: /}\n".into(), "unknown key"),
        ("sharing: {mig: {}}\n".into(), "unknown key"),
        ("version: v1\nversion: v1\n".into(), "c.yaml:2:1: duplicate mapping key: version"),
    ] {
        let mistake = parse("c.yaml", &text).expect_err(&text).to_string();
        assert!(
            mistake == said || !said.starts_with("c.yaml") && mistake.contains(said),
            "{text}\n{mistake}\n{said}"
        );
    }
}

#[test]
fn what_is_no_yaml_ends_soon() {
    let bomb: String = (1..40).map(|i| format!("b{i}: &b{i} [*b{0}, *b{0}, *b{0}]\n", i - 1)).collect();
    for text in [
        "\tx: y",
        "sharing: [",
        "version: v1\nversion: v1\n",
        "- a\n- b\n",
        "\u{0}",
        "a: &b0 [1]\n",
        &format!(
            "resources:\n  b0: &b0 [1]\n{}",
            bomb.replace("b", "  b").replace("*  b", "*b").replace("&  b", "&b")
        ),
    ] {
        let mistake = parse("c.yaml", text).expect_err(text).to_string();
        assert!(mistake.starts_with("c.yaml"), "{mistake}");
        assert!(mistake.len() < 400 && !mistake.contains('\n'), "{mistake}");
    }
}

/// What the plugin refuses by default under MPS alone.
#[test]
fn several_shares_in_one_container() {
    for (form, key, most) in [
        ("timeSlicing", "", Some(MOST_REPLICAS)),
        ("timeSlicing", "failRequestsGreaterThanOne: false, ", Some(MOST_REPLICAS)),
        ("timeSlicing", "failRequestsGreaterThanOne: true, ", None),
        ("mps", "", None),
        ("mps", "failRequestsGreaterThanOne: false, ", Some(MOST_REPLICAS)),
    ] {
        let config =
            config(&format!("sharing: {{{form}: {{{key}resources: [{{name: gpu, replicas: 2}}]}}}}"));
        let pools: Vec<_> =
            config.pools.iter().map(|pool| (pool.name.as_str(), pool.per_container)).collect();
        let expected: Vec<_> = most.iter().map(|most| ("shared", Some(*most))).collect();
        assert_eq!(pools, expected, "{form} {key}");
    }
}
