//! Configurations as text, and what is said about each mistake.

use super::*;

fn parse(text: &str) -> Result<Config, Mistake> {
    Config::parse("c.toml", text)
}

#[track_caller]
fn config(text: &str) -> Config {
    parse(text).unwrap_or_else(|mistake| panic!("{mistake}"))
}

#[test]
fn nothing_is_the_default() {
    assert_eq!(config(""), Config::default());
    assert_eq!(config("# a comment\n"), Config::default());
}

#[test]
fn equal_replicas() {
    let config = config("[[gpu]]\nmatch = [\"0\", \"1:2\"]\nmode = \"time-slice\"\nreplicas = 4\n");
    let [rule] = &config.rules[..] else { panic!("{config:?}") };
    assert_eq!((rule.mode, rule.class.as_deref(), rule.overcommit), (Mode::TimeSlice, None, false));
    let matches: Vec<_> = rule.matches.iter().map(|entry| entry.matches.clone()).collect();
    assert_eq!(matches, [Match::Index(0), Match::Mig(1, 2)]);
    let share = ShareRule {
        name: "shared".into(),
        replicas: 4,
        memory_bytes: None,
        sm_percent: None,
        advisory: false,
        require: None,
        priority: Priority::Normal,
    };
    assert_eq!(rule.shares, [share]);
}

#[test]
fn unequal_shares_inherit_advisory() {
    let config = config(
        "[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\nadvisory = true\nrename = true\novercommit = true\n\
         [[gpu.share]]\nname = \"large\"\nmemory = \"40GiB\"\nsm_percent = 50\n\
         [[gpu.share]]\nname = \"small\"\nreplicas = 4\nmemory = \"8GiB\"\nadvisory = false\n",
    );
    let rule = &config.rules[0];
    assert_eq!((rule.class.as_deref(), rule.overcommit), (Some("gpu.shared"), true));
    let large = ShareRule {
        name: "large".into(),
        replicas: 1,
        memory_bytes: Some(40 << 30),
        sm_percent: Some(50),
        advisory: true,
        require: None,
        priority: Priority::Normal,
    };
    let small = ShareRule {
        name: "small".into(),
        replicas: 4,
        memory_bytes: Some(8 << 30),
        sm_percent: None,
        advisory: false,
        require: None,
        priority: Priority::Normal,
    };
    assert_eq!(rule.shares, [large, small]);
}

#[test]
fn top_level_keys() {
    for (text, names, strategy) in [
        ("whole_names = \"yes\"\n", WholeNames::Yes, None),
        ("whole_names = \"no\"\nmig_strategy = \"mixed\"\n", WholeNames::No, Some(MigStrategy::Mixed)),
        ("mig_strategy = \"none\"\n", WholeNames::Auto, Some(MigStrategy::None)),
    ] {
        let config = config(text);
        assert_eq!((config.whole_names, config.mig_strategy), (names, strategy));
    }
}

/// One rule for GPU 0, time-sliced, with these lines more.
fn rule(lines: &str) -> String {
    format!("[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\n{lines}\n")
}

#[test]
fn what_asks_for_nothing_is_accepted() {
    config(&rule("exclusive = false\nwhole = false\ngraphics = false"));
    config("[[gpu]]\nmatch = [\"0\"]\nmode = \"whole\"\n");
    config("[[gpu]]\nmatch = [\"0\"]\n");
}

#[test]
fn mistakes_name_line_column_and_what_is_allowed() {
    const SIZE: &str = "a size is a whole number with KiB, MiB or GiB, as in \"8GiB\"";
    for (text, said) in [
        (
            "gpus = 1\n".to_owned(),
            "c.toml:1:1: unknown key `gpus`, expected one of `gpu`, `pool`, `users`, `whole_names`, `mig_strategy`, `management`, `start_timeout`"
                .to_owned(),
        ),
        (
            "\n[[gpu]]\nmatch = [\"0\"]\nrepilcas = 4\n".into(),
            "c.toml:4:1: unknown key `repilcas`, expected one of `match`, `mode`, `name`, `replicas`, `memory`, `sm_percent`, \
             `advisory`, `require`, `priority`, `start`, `shm`, `time_slice`, `overcommit`, `rename`, `exclusive`, `whole`, `graphics`, `share`"
                .into(),
        ),
        ("[[gpu]]\nmode = \"whole\"\n".into(), "c.toml:1:1: missing key `match`".into()),
        (rule("mode = \"mps\""), "c.toml:4:1: duplicate key".into()),
        (
            "[[gpu]]\nmatch = [\"0\"]\nmode = \"shared\"\n".into(),
            "c.toml:3:8: unknown value `shared`, expected one of `whole`, `time-slice`, `mps`".into(),
        ),
        (
            "whole_names = \"maybe\"".into(),
            "c.toml:1:15: unknown value `maybe`, expected one of `auto`, `yes`, `no`".into(),
        ),
        (rule("replicas = 0"), "c.toml:4:12: replicas is 0: it is 1 to 1024".into()),
        (rule("replicas = -1"), "c.toml:4:12: replicas is -1: it is 1 to 1024".into()),
        (rule("replicas = 1_000_000_000"), "c.toml:4:12: replicas is 1000000000: it is 1 to 1024".into()),
        (rule("replicas = \"4\""), "c.toml:4:12: invalid type: string \"4\", expected a whole number".into()),
        (rule("sm_percent = 0"), "c.toml:4:14: sm_percent is 0: it is 1 to 100".into()),
        (rule("sm_percent = 101"), "c.toml:4:14: sm_percent is 101: it is 1 to 100".into()),
        (rule("memory = \"1T\""), format!("c.toml:4:10: memory: \"T\" in \"1T\" is no unit: {SIZE}")),
        (rule("memory = \"1.5G\""), format!("c.toml:4:10: memory: \"1.5G\" is not a whole number: {SIZE}")),
        (rule("memory = \"-1\""), format!("c.toml:4:10: memory: \"-1\" does not begin with a digit: {SIZE}")),
        (rule("memory = -1"), format!("c.toml:4:10: memory: \"-1\" does not begin with a digit: {SIZE}")),
        (rule("memory = \"10 GB\""), format!("c.toml:4:10: memory: \"GB\" in \"10 GB\" is no unit: {SIZE}")),
        (rule("memory = 10"), format!("c.toml:4:10: memory: \"10\" has no unit: {SIZE}")),
        (rule("memory = 1.5"), format!("c.toml:4:10: memory: \"1.5\" is not a whole number: {SIZE}")),
        (rule("memory = true"), "c.toml:4:10: invalid type: boolean `true`, expected a number with its unit, as in \"8GiB\" or \"30m\"".into()),
        (
            rule("name = \"team a\""),
            "c.toml:4:8: the device name in \"team a\" cannot hold ' ' (character 5)".into(),
        ),
        (
            rule("name = \"all\""),
            "c.toml:4:8: the name \"all\" is reserved: it has a meaning of its own".into(),
        ),
        (
            rule("[[gpu.share]]\nname = \"a\"\n[[gpu.share]]\nname = \"a\""),
            "c.toml:7:8: two shares of one GPU are named \"a\"".into(),
        ),
        (
            rule("[[gpu.share]]\nreplicas = 2\n[[gpu.share]]\nreplicas = 3"),
            "c.toml:6:1: two shares of one GPU are named \"shared\"".into(),
        ),
        (
            rule("[[gpu.share]]\nname = \"a\"\nreplicas = 1000\n[[gpu.share]]\nreplicas = 25"),
            "c.toml:7:1: with these the GPU has 1025 shares: 1024 are the most".into(),
        ),
        (
            rule("replicas = 2\n[[gpu.share]]\nname = \"a\""),
            "c.toml:4:12: replicas cannot stand beside [[gpu.share]]: each share has its own".into(),
        ),
        (
            "[[gpu]]\nmatch = [\"0\"]\nreplicas = 2\n".into(),
            "c.toml:3:12: replicas needs a mode: without one the GPU stays whole".into(),
        ),
        (
            "[[gpu]]\nmatch = [\"0\"]\nmode = \"whole\"\nmemory = \"1GiB\"\n".into(),
            "c.toml:4:10: memory cannot stand in a rule with mode = \"whole\"".into(),
        ),
        (
            "[[gpu]]\nmatch = []\n".into(),
            format!("c.toml:2:9: match is empty: {}", value::MATCH_FORMS),
        ),
        (
            "[[gpu]]\nmatch = [\"0\", \"\"]\n".into(),
            format!("c.toml:2:15: match: \"\" matches nothing: {}", value::MATCH_FORMS),
        ),
        (
            "[[gpu]]\nmatch = [0]\n".into(),
            "c.toml:2:10: invalid type: integer `0`, expected a string".into(),
        ),
        (
            "[[gpu]]\nmatch = [\"0\", \"0\"]\n".into(),
            "c.toml:2:15: \"0\" is matched already, at c.toml:2:10: the first match wins".into(),
        ),
        (
            "[[gpu]]\nmatch = [\"10:1c.0\"]\n[[gpu]]\nmatch = [\"0000:10:1C.0\"]\n".into(),
            "c.toml:4:10: \"0000:10:1C.0\" is matched already, at c.toml:2:10: the first match wins".into(),
        ),
        ("[[gpu]\n".into(), "c.toml:1:7: unclosed array table, expected `]`".into()),
        ("# größe\nx".into(), "c.toml:2:2: key with no value, expected `=`".into()),
    ] {
        assert_eq!(parse(&text).map_err(|mistake| mistake.to_string()), Err(said), "{text}");
    }
}

#[test]
fn turns() {
    assert_eq!(config(&rule("")).rules[0].time_slice, None);
    for (word, length) in [
        ("default", TimeSlice::Default),
        ("short", TimeSlice::Short),
        ("medium", TimeSlice::Medium),
        ("long", TimeSlice::Long),
    ] {
        assert_eq!(config(&rule(&format!("time_slice = \"{word}\""))).rules[0].time_slice, Some(length));
    }
    const ALONE: &str = "time_slice needs mode = \"time-slice\": it says how long the turns of shares are";
    for (text, said) in [
        (mps("time_slice = \"short\""), format!("c.toml:4:14: {ALONE}")),
        ("[[gpu]]\nmatch = [\"0\"]\ntime_slice = \"short\"\n".into(), format!("c.toml:3:14: {ALONE}")),
        (
            rule("time_slice = \"2ms\""),
            "c.toml:4:14: unknown value `2ms`, expected one of `default`, `short`, `medium`, `long`".into(),
        ),
    ] {
        assert_eq!(parse(&text).unwrap_err().to_string(), said, "{text}");
    }
}

/// One rule for GPU 0, shared through MPS, with these lines more.
fn mps(lines: &str) -> String {
    format!("[[gpu]]\nmatch = [\"0\"]\nmode = \"mps\"\n{lines}\n")
}

#[test]
fn what_is_about_mps() {
    let read = config(&mps("replicas = 4"));
    assert_eq!((read.rules[0].mode, read.rules[0].mps), (Mode::Mps, MpsRule::default()));
    assert_eq!(read.rules[0].shares[0].require, None);
    let read = config(&mps(
        "start = \"boot\"\nshm = \"2GiB\"\npriority = \"low\"\nrequire = \"mps\"\n[[gpu.share]]\nname = \"a\"\n\
         [[gpu.share]]\nname = \"b\"\npriority = \"normal\"\nrequire = \"kernel\"",
    ));
    let rule = &read.rules[0];
    assert_eq!(rule.mps, MpsRule { at_boot: true, shared_memory_bytes: Some(2 << 30) });
    // A share has its own, or what is said of all.
    let said: Vec<_> = rule.shares.iter().map(|share| (share.priority, share.require)).collect();
    assert_eq!(said, [(Priority::Low, Some(Require::Mps)), (Priority::Normal, Some(Require::Kernel))]);
    config(&mps("start = \"first-use\"\nwhole = false\nexclusive = false"));
    let in_turns = config(&self::rule("require = \"mps\""));
    assert_eq!(in_turns.rules[0].shares[0].require, Some(Require::Mps));
}

#[test]
fn mistakes_about_mps() {
    const ALONE: &str = "needs mode = \"mps\": it says something about MPS alone";
    for (text, said) in [
        (rule("start = \"boot\""), format!("c.toml:4:9: start {ALONE}")),
        (rule("shm = \"1GiB\""), format!("c.toml:4:7: shm {ALONE}")),
        (rule("priority = \"low\""), format!("c.toml:4:12: priority {ALONE}")),
        (rule("[[gpu.share]]\npriority = \"low\""), format!("c.toml:5:12: priority {ALONE}")),
        ("[[gpu]]\nmatch = [\"0\"]\nstart = \"boot\"\n".into(), format!("c.toml:3:9: start {ALONE}")),
        (
            "[[gpu]]\nmatch = [\"0\"]\nrequire = \"mps\"\n".into(),
            "c.toml:3:11: require needs a mode: without one the GPU stays whole".into(),
        ),
        (
            mps("[[gpu.share]]\nstart = \"boot\""),
            "c.toml:5:1: unknown key `start`, expected one of `name`, `replicas`, `memory`, `sm_percent`, `advisory`, \
             `require`, `priority`"
                .into(),
        ),
        (mps("start = \"now\""), "c.toml:4:9: unknown value `now`, expected `first-use` or `boot`".into()),
        (mps("priority = 1"), "c.toml:4:12: expected a text".into()),
        (mps("require = \"most\""), "c.toml:4:11: unknown value `most`, expected `kernel` or `mps`".into()),
        (mps("shm = \"1023KiB\""), "c.toml:4:7: shm is \"1023KiB\": it is 1MiB to 1024GiB".into()),
        (mps("shm = \"1025GiB\""), "c.toml:4:7: shm is \"1025GiB\": it is 1MiB to 1024GiB".into()),
        (
            mps("shm = \"1G\""),
            "c.toml:4:7: shm: \"G\" in \"1G\" is no unit: a size is a whole number with KiB, MiB or GiB, as in \"8GiB\""
                .into(),
        ),
        (
            mps("whole = true"),
            "c.toml:4:9: whole = true cannot stand beside mode = \"mps\": while MPS runs, the compute mode keeps out who \
             has the whole device"
                .into(),
        ),
        (
            mps("exclusive = true"),
            "c.toml:4:13: exclusive = true is about whole devices: a share belongs to one container at a time anyway"
                .into(),
        ),
        (mps("sm_percent = 101"), "c.toml:4:14: sm_percent is 101: it is 1 to 100".into()),
    ] {
        assert_eq!(parse(&text).map_err(|mistake| mistake.to_string()), Err(said), "{text}");
    }
}

#[test]
fn whole_devices_are_leased_where_it_is_said() {
    for (text, exclusive, whole) in [
        ("[[gpu]]\nmatch = [\"0\"]\n".to_owned(), false, false),
        ("[[gpu]]\nmatch = [\"0\"]\nexclusive = true\n".into(), true, false),
        ("[[gpu]]\nmatch = [\"0\"]\nmode = \"whole\"\nexclusive = true\nwhole = false\n".into(), true, false),
        (rule("whole = true"), false, true),
        (rule("whole = true\nexclusive = true"), true, true),
        (rule("exclusive = false\nwhole = false"), false, false),
    ] {
        let rule = &config(&text).rules[0];
        assert_eq!((rule.exclusive, rule.whole), (exclusive, whole), "{text}");
    }
}

#[test]
fn pools_users_and_the_wait_for_the_daemon() {
    let read = config(
        "start_timeout = \"2m\"\n[pool.shared]\nwait = \"30m\"\norder = \"pack\"\nper_container = 2\n[pool.whole]\n\
         [pool.\"mig-1g.24gb.gfx\"]\n[users.ana]\nshares = 0\npools = [\"shared\", \"whole\"]\n[users.\"*\"]\nshares = 4\n\
         [users.1000]\npools = []\n",
    );
    assert_eq!(read.start_timeout, Some(120));
    let pool = |pool: &PoolRule| (pool.name.clone(), pool.wait_seconds, pool.order, pool.per_container);
    assert_eq!(
        read.pools.iter().map(pool).collect::<Vec<_>>(),
        [
            ("mig-1g.24gb.gfx".into(), 0, Order::Spread, None),
            ("shared".into(), 1800, Order::Pack, Some(2)),
            ("whole".into(), 0, Order::Spread, None),
        ]
    );
    assert_eq!(read.pools[1].place.as_ref().map(ToString::to_string).as_deref(), Some("c.toml:2:7"));
    let user = |user: &UserRule| {
        let pools =
            user.pools.as_ref().map(|pools| pools.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        (user.user.clone(), user.shares, pools)
    };
    assert_eq!(
        read.users.iter().map(user).collect::<Vec<_>>(),
        [
            ("*".into(), Some(4), None),
            ("1000".into(), None, Some(vec![])),
            ("ana".into(), Some(0), Some(vec!["shared".to_owned(), "whole".to_owned()])),
        ]
    );
    assert_eq!(config("").start_timeout, None);
}

#[test]
fn mistakes_about_leases() {
    const DURATION: &str = "it is a whole number with s, m or h, as in \"30m\"";
    let place = "[pool.shared]\n";
    for (text, said) in [
        (
            rule("exclusive = true"),
            "c.toml:4:13: exclusive = true is about whole devices: a share belongs to one container at a time anyway"
                .to_owned(),
        ),
        (
            "[[gpu]]\nmatch = [\"0\"]\nwhole = true\n".into(),
            "c.toml:3:9: whole = true needs a mode that makes shares: without one the device is whole".into(),
        ),
        (
            "[[gpu]]\nmatch = [\"0\"]\nexclusive = \"yes\"\n".into(),
            "c.toml:3:13: invalid type: string \"yes\", expected a boolean".into(),
        ),
        ("start_timeout = \"soon\"\n".into(), format!("c.toml:1:17: start_timeout: \"soon\" is no duration: {DURATION}")),
        ("start_timeout = \"2h\"\n".into(), "c.toml:1:17: start_timeout is \"2h\": 1h is the longest".into()),
        ("start_timeout = 10\n".into(), format!("c.toml:1:17: start_timeout: \"10\" is no duration: {DURATION}")),
        (format!("{place}wait = 30\n"), format!("c.toml:2:8: wait: \"30\" is no duration: {DURATION}")),
        ("[pool]\nwait = \"30m\"\n".into(), "c.toml:2:8: invalid type: string \"30m\", expected a table of settings".into()),
        (format!("{place}wait = \"soon\"\n"), format!("c.toml:2:8: wait: \"soon\" is no duration: {DURATION}")),
        (format!("{place}wait = \"169h\"\n"), "c.toml:2:8: wait is \"169h\": 168h is the longest".into()),
        (
            format!("{place}order = \"random\"\n"),
            "c.toml:2:9: unknown value `random`, expected `spread` or `pack`".into(),
        ),
        (format!("{place}per_container = 0\n"), "c.toml:2:17: per_container is 0: it is 1 to 1024".into()),
        (
            format!("{place}waits = 0\n"),
            "c.toml:2:1: unknown key `waits`, expected one of `wait`, `order`, `per_container`".into(),
        ),
        ("[pool.all]\n".into(), "c.toml:1:7: pool: the name \"all\" is reserved: it has a meaning of its own".into()),
        (
            "\n[pool.shared-0]\n".into(),
            "c.toml:2:7: pool: the name \"shared-0\" is reserved: it ends like the number of a share".into(),
        ),
        (
            "[pool.mig-small]\n".into(),
            "c.toml:1:7: pool: \"mig-small\" is no pool: a MIG profile comes after mig-, as in \"mig-1g.10gb\"".into(),
        ),
        ("[users.root]\n".into(), "c.toml:1:8: users: \"root\" cannot be capped: who may start root's containers is root".into()),
        ("[users.ana]\nshares = -1\n".into(), "c.toml:2:10: shares is -1: it is a number from 0".into()),
        (
            "[users.ana]\nshare = 1\n".into(),
            "c.toml:2:1: unknown key `share`, expected `shares` or `pools`".into(),
        ),
        (
            "[users.ana]\npools = [\"shared\", \"any\"]\n".into(),
            "c.toml:2:20: pools: the name \"any\" is reserved: it has a meaning of its own".into(),
        ),
        ("[users.ana]\npools = \"shared\"\n".into(), "c.toml:2:9: invalid type: string \"shared\", expected a list".into()),
        ("users = 3\n".into(), "c.toml:1:9: invalid type: integer `3`, expected a table".into()),
    ] {
        assert_eq!(parse(&text).map_err(|mistake| mistake.to_string()), Err(said), "{text}");
    }
}

#[test]
fn what_was_meant_is_told() {
    for (text, hint) in [
        (
            "[pool.mig-1g.10gb]\nwait = \"1s\"\n",
            Some("a name with a dot in it stands in quotes: [pool.\"mig-1g.10gb\"]"),
        ),
        (
            "\n  [users.ana.b] # she\nshares = 1",
            Some("a name with a dot in it stands in quotes: [users.\"ana.b\"]"),
        ),
        ("[pool.\"mig-1g.10gb\"]\nwaits = \"1s\"\n", None),
        ("[pool.shared]\nwaits = \"1s\"\n", None),
        ("[pool]\nwait = \"30m\"\n", Some("settings of a pool stand under its name: [pool.shared]")),
        (
            "[users]\nshares = 3\n",
            Some("settings of a user stand under the name: [users.ana], or [users.\"*\"]"),
        ),
        ("[users.*]\nshares = 3\n", Some("the star stands in quotes: [users.\"*\"]")),
        ("[[gpu]]\nmatch = [\"0\"]\nmode = \"exclusive\"\n", Some("exclusive = true, without mode")),
        (
            "[[gpu]]\nmatch = [\"0\"]\nstart_timeout = \"30s\"\n",
            Some("it stands at the top of the file, before the first table"),
        ),
        ("[[gpu]]\nmatch = [\"0\"]\nmode = \"shared\"\n", None),
    ] {
        assert_eq!(parse(text).unwrap_err().hint.as_deref(), hint, "{text}");
    }
}
