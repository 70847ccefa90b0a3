//! Texts before and after.

use super::*;

fn cut(replicas: u32) -> Cut {
    Cut { mode: Some(Mode::TimeSlice), replicas, name: None, memory: None, sm_percent: None, advisory: false }
}

/// On a machine with GPUs of any index, where "all" and a model cover every one of them.
fn edited(text: &str, device: &str, cut: Option<&Cut>) -> String {
    let matches = Match::parse(device).unwrap();
    let covers = |entry: &Match| *entry == matches || matches!(entry, Match::All | Match::Model(_));
    share("c.toml", text, device, &covers, cut).unwrap_or_else(|mistake| panic!("{mistake}"))
}

#[test]
fn an_empty_file_gets_a_rule() {
    let after = edited("", "0", Some(&cut(4)));
    assert_eq!(after, "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 4\n");
    assert_eq!(edited(&after, "0", None), "");
    let full = Cut {
        name: Some("ci".into()),
        memory: Some("8GiB".into()),
        sm_percent: Some(25),
        advisory: true,
        ..cut(2)
    };
    assert_eq!(
        edited("# mine\n", "0:1", Some(&full)),
        "# mine\n[[gpu]]\nmatch = [\"0:1\"]\nmode = \"time-slice\"\nname = \"ci\"\nreplicas = 2\nmemory = \"8GiB\"\nsm_percent = 25\nadvisory = true\n"
    );
}

const LONG: &str = "\
# The lab's GPUs, by Ada

whole_names = \"yes\" # no toolkit here

# for CI
[[gpu]]
match    = [\"0\"]   # the old one
mode     = \"time-slice\"
replicas = 2       # two runners
memory   = \"4GiB\"
overcommit = true
advisory = true

# everybody's
[[gpu]]
match = [ \"1\", \"2\" ]
mode = \"time-slice\"
[[gpu.share]]
name = \"large\" # one
[[gpu.share]]
name = \"small\"
replicas = 4

# the rest
[[gpu]]
match = [\"all\"]
# still to be decided
mode = \"time-slice\"
# end
";

#[test]
fn a_rule_is_changed_in_place() {
    assert_eq!(
        edited(LONG, "0", Some(&cut(3))),
        LONG.replace("replicas = 2       # two", "replicas = 3       # two")
    );
}

#[test]
fn one_of_several_gets_a_rule_of_its_own() {
    let new = "[[gpu]]\nmatch = [\"1\"]\nmode = \"time-slice\"\nreplicas = 3\n\n";
    assert_eq!(
        edited(LONG, "1", Some(&cut(3))),
        LONG.replace("[ \"1\", \"2\" ]", "[ \"2\" ]").replace("# the rest\n", &format!("{new}# the rest\n"))
    );
    assert_eq!(
        edited(LONG, "2", Some(&cut(3))),
        LONG.replace("[ \"1\", \"2\" ]", "[ \"1\"]")
            .replace("# the rest\n", &format!("{new}# the rest\n").replace("\"1\"", "\"2\""))
    );
}

#[test]
fn a_new_rule_goes_before_what_covers_it() {
    let new = "[[gpu]]\nmatch = [\"7\"]\nmode = \"time-slice\"\nreplicas = 3\n\n";
    assert_eq!(edited(LONG, "7", Some(&cut(3))), LONG.replace("# the rest\n", &format!("{new}# the rest\n")));
    let all = "# my GPUs\n\n# all alike\n[[gpu]]\nmatch = [\"all\"]\nmode = \"time-slice\"\n";
    assert_eq!(edited(all, "7", Some(&cut(3))), all.replace("# all alike", &format!("{new}# all alike")));
}

#[test]
fn whole_again() {
    // The table goes, its comments stay; the rule for the rest would share it, so it says that it shall not.
    assert_eq!(
        edited(LONG, "0", None),
        LONG.replace(
            "[[gpu]]\nmatch    = [\"0\"]   # the old one\nmode     = \"time-slice\"\nreplicas = 2       # two runners\nmemory   = \"4GiB\"\novercommit = true\nadvisory = true\n",
            "# the old one\n# two runners\n",
        )
        .replace("# the rest\n", "[[gpu]]\nmatch = [\"0\"]\nmode = \"whole\"\n\n# the rest\n")
    );
    assert_eq!(
        edited(LONG, "2", None),
        LONG.replace("[ \"1\", \"2\" ]", "[ \"1\"]")
            .replace("# the rest\n", "[[gpu]]\nmatch = [\"2\"]\nmode = \"whole\"\n\n# the rest\n")
    );
    let last = "# a\n[[gpu]]\nmatch = [\"0\"] # b\nmode = \"time-slice\"\n# end\n";
    assert_eq!(edited(last, "0", None), "# a\n# b\n# end\n");
    assert_eq!(edited("# a\n", "0", None), "# a\n");
}

#[test]
fn an_entry_in_vain_moves_to_where_it_counts() {
    let text = "[[gpu]]\nmatch = [\"all\"]\n\n[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\n";
    assert_eq!(
        edited(text, "0", Some(&cut(2))),
        "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 2\n\n[[gpu]]\nmatch = [\"all\"]\n"
    );
}

#[test]
fn line_ends_and_other_tables_stay() {
    let text = "# a\r\n[[gpu]]\r\nmatch = [\"0\"]\r\nmode = \"time-slice\"\r\n\r\n[[gpu]]\r\nmatch = [\"1\"]";
    let after = edited(text, "1", Some(&cut(2)));
    assert_eq!(after, format!("{text}\r\nmode = \"time-slice\"\r\nreplicas = 2\r\n"));
    let list = "match = [\n  \"0\", # the first\n  \"1\",\n  # the last\n  \"2\",\n]\n";
    let after = edited(&format!("[[gpu]]\n{list}"), "1", Some(&cut(2)));
    assert!(after.contains("# the first") && after.contains("# the last"), "{after}");
}

#[test]
fn what_cannot_be_edited_is_refused() {
    for (text, said) in [
        ("gpu = [{match = [\"0\"]}]\n", "c.toml: gpu is one list in here, which is not edited"),
        ("[[gpu]]\nmatch = 0\n", "c.toml:2:9: invalid type: integer `0`, expected a list"),
    ] {
        let mistake = share("c.toml", text, "0", &|_| false, Some(&cut(2))).unwrap_err();
        assert_eq!(mistake.to_string(), said);
    }
    let mistake = share("c.toml", "", "0", &|_| false, Some(&cut(0))).unwrap_err();
    assert_eq!(mistake.to_string(), "c.toml:4:12: replicas is 0: it is 1 to 1024");
}

/// What is about MPS goes with it, and comes with no other mode.
#[test]
fn from_mps_and_back() {
    let mps = Cut { mode: Some(Mode::Mps), ..cut(2) };
    let all = |_: &Match| true;
    let text = share("c.toml", "", "0", &all, Some(&mps)).unwrap();
    assert_eq!(text, "[[gpu]]\nmatch = [\"0\"]\nmode = \"mps\"\nreplicas = 2\n");
    let more =
        format!("{text}start = \"boot\" # early\nshm = \"1GiB\"\npriority = \"low\"\nrequire = \"mps\"\n");
    let again = share("c.toml", &more, "0", &all, Some(&mps)).unwrap();
    assert_eq!(again, more);
    let turns = "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 2\ntime_slice = \"long\"\n";
    assert_eq!(share("c.toml", turns, "0", &all, Some(&mps)).unwrap(), text);
    assert_eq!(share("c.toml", turns, "0", &all, Some(&cut(2))).unwrap(), turns);
    let in_turns = share("c.toml", &more, "0", &all, Some(&cut(2))).unwrap();
    assert_eq!(
        in_turns,
        "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 2\nrequire = \"mps\"\n"
    );
    assert_eq!(share("c.toml", &more, "0", &all, None).unwrap().trim(), "# early");
    let kept = "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nwhole = true\n";
    let mistake = share("c.toml", kept, "0", &all, Some(&mps)).unwrap_err();
    assert!(mistake.to_string().starts_with("c.toml:4:9: whole = true cannot stand beside"), "{mistake}");
}

/// Twice is as once, and there and back is as it was.
#[test]
fn twice_and_back() {
    let texts = [
        "",
        "# a\n",
        LONG,
        "[[gpu]]\nmatch = [\"3\"]\n",
        "[[gpu]]\nmatch = [\"3\", \"4\"]\nmode = \"time-slice\"\n[[gpu.share]]\nname = \"x\"\n",
        "mig_strategy = \"mixed\"\n[[gpu]]\nmatch = [\"all\"]\n",
        "[[gpu]]\nmatch = [\"NVIDIA *\"]\nmode = \"time-slice\"\n",
    ];
    let decided = |text: &str, index| {
        let config = Config::parse("c.toml", text).unwrap();
        let is =
            |entry: &Match| *entry == Match::Index(index) || matches!(entry, Match::All | Match::Model(_));
        let rule = config.rules.iter().find(|rule| rule.matches.iter().any(|entry| is(&entry.matches)));
        rule.map(|rule| (rule.mode, rule.shares.clone())).filter(|(mode, _)| *mode != Mode::Whole)
    };
    for text in texts {
        for index in [0, 1, 2, 3, 9] {
            let device = index.to_string();
            let shared = edited(text, &device, Some(&cut(5)));
            assert_eq!(edited(&shared, &device, Some(&cut(5))), shared, "{text}");
            assert_eq!(decided(&shared, index).unwrap().1[0].replicas, 5, "{text}");
            let whole = edited(&shared, &device, None);
            assert_eq!(edited(&whole, &device, None), whole, "{text}");
            assert_eq!(decided(&whole, index), None, "{text}");
            // Nothing else moved, and no comment is lost.
            for other in [0, 1, 2, 3, 9].into_iter().filter(|other| *other != index) {
                assert_eq!(decided(&whole, other), decided(text, other), "{text}\n{whole}");
            }
            let comments = |text: &str| text.matches('#').count();
            assert!(
                comments(&whole) >= comments(text) - usize::from(text == LONG && index < 3) * 3,
                "{text}\n{whole}"
            );
        }
    }
}

#[test]
fn a_difference_is_a_diff() {
    assert_eq!(difference("c.toml", "a\n", "a\n"), "");
    assert_eq!(
        difference("c.toml", "a\nb\n", "a\nc\n"),
        "--- c.toml\n+++ c.toml\n@@ -1,2 +1,2 @@\n a\n-b\n+c\n"
    );
}

/// What draws is not a matter of sharing: it stays, and goes along where a rule of the device's own is made.
#[test]
fn graphics_stays_with_the_device() {
    let own = "# keep\n[[gpu]]\nmatch = [\"0\"]\ngraphics = false\n";
    let shared = edited(own, "0", Some(&cut(2)));
    assert!(shared.contains("graphics = false") && shared.contains("replicas = 2"), "{shared}");
    assert_eq!(edited(&shared, "0", None), own);
    // Whole already.
    assert_eq!(edited(own, "0", None), own);
    let both = "[[gpu]]\nmatch = [\"0\", \"3\"]\ngraphics = false\n";
    assert_eq!(edited(both, "0", None), both);
    assert_eq!(edited(both, "0", Some(&cut(2))).matches("graphics = false").count(), 2);
}

/// What is leased as a whole stays so, and shares need not be told.
#[test]
fn exclusive_stays_with_what_is_whole() {
    let alone = "[[gpu]]\nmatch = [\"0\"]\nexclusive = true\n";
    let shared = edited(alone, "0", Some(&cut(2)));
    assert_eq!(shared, "[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\nreplicas = 2\n");
    let beside = format!("{alone}mode = \"time-slice\"\nwhole = true\n");
    assert_eq!(edited(&beside, "0", Some(&cut(2))), format!("{beside}replicas = 2\n"));
    assert_eq!(edited(&beside, "0", None), alone);
    let both = beside.replace("\"0\"", "\"0\", \"1\"");
    let after = edited(&both, "0", None);
    let rules = Config::parse("c.toml", &after).unwrap().rules;
    let told = rules.iter().map(|rule| (rule.mode, rule.exclusive, rule.matches.len())).collect::<Vec<_>>();
    assert!(told.contains(&(Mode::Whole, true, 1)) && told.contains(&(Mode::TimeSlice, true, 1)), "{after}");
    // The one behind says it already.
    let behind = alone.replace("\"0\"", "\"all\"");
    assert_eq!(edited(&format!("{beside}\n{behind}"), "0", None).matches("exclusive = true").count(), 2);
    let first = format!("{behind}\n[[gpu]]\nmatch = [\"0\"]\nmode = \"time-slice\"\n");
    assert_eq!(edited(&first, "0", None), behind);
    // A rule for some of what another one has exclusive.
    let all = alone.replace("\"0\"", "\"all\"");
    let after = edited(&all, "0", Some(&cut(2)));
    assert!(after.ends_with(&all) && after.matches("exclusive").count() == 1, "{after}");
}
