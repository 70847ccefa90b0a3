use super::*;
use crate::lease::DeviceName;

const DIR: &str = "/usr/lib/x86_64-linux-gnu";

fn parse(words: &[String]) -> CreateContainer {
    let line = std::iter::once("divvy-hook".to_owned()).chain(words.iter().cloned());
    match Command::parse_words(line).unwrap().phase {
        Phase::CreateContainer(request) => request,
        Phase::CreateRuntime(request) => panic!("{request:?}"),
    }
}

#[test]
fn the_hook_reads_what_the_generator_writes() {
    let request = CreateContainer {
        libraries: vec![
            Library::new(format!("{DIR}/libcuda.so.580.126.09"), "libcuda.so.1").unwrap(),
            Library::new(format!("{DIR}/libnvidia-glcore.so.580.126.09"), "libnvidia-glcore.so.580.126.09")
                .unwrap(),
            Library::new("/opt/a=b c/libx.so", "libx.so").unwrap(),
            Library::new("/opt/a=b/liby.so.1.2", "liby.so.1").unwrap(),
        ],
        links: vec![
            Link::new("libcuda.so.1", format!("{DIR}/libcuda.so")).unwrap(),
            Link::new("-odd", "/a").unwrap(),
        ],
        device_links: vec![Link::new("../card0", "/dev/dri/by-path/pci-0=card").unwrap()],
        driver: Some("580.126.09".parse().unwrap()),
        cuda: Some("13.0".parse().unwrap()),
        generation: Some("00ff00ff00ff00ff".into()),
        plan: Some("/run/divvy/plan.json".into()),
        mps: true,
        application_profile: true,
        leases: Some("/run/divvy/leases".into()),
    };
    let words = request.to_args();
    assert_eq!(
        words,
        [
            "create-container",
            "--generation=00ff00ff00ff00ff",
            "--plan=/run/divvy/plan.json",
            "--leases=/run/divvy/leases",
            "--mps",
            "--driver=580.126.09",
            "--cuda=13.0",
            "--application-profile",
            "--library=/usr/lib/x86_64-linux-gnu/libcuda.so.580.126.09=libcuda.so.1",
            "--library=/usr/lib/x86_64-linux-gnu/libnvidia-glcore.so.580.126.09",
            "--library=/opt/a=b c/libx.so",
            "--library=/opt/a=b/liby.so.1.2=liby.so.1",
            "--link=libcuda.so.1=/usr/lib/x86_64-linux-gnu/libcuda.so",
            "--link=-odd=/a",
            "--device-link=../card0=/dev/dri/by-path/pci-0=card",
        ]
    );
    assert_eq!(parse(&words), request);
    assert_eq!(parse(&["create-container".to_owned()]), CreateContainer::default());
}

#[test]
fn odd_libraries_are_refused() {
    for (word, error) in [
        ("", r#""" is not an absolute path"#),
        ("libcuda.so.1", r#""libcuda.so.1" is not an absolute path"#),
        ("lib/libcuda.so.1=libcuda.so", r#""lib/libcuda.so.1" is not an absolute path"#),
        ("/", r#""/" does not name a file without .. on the way"#),
        ("/lib/", r#""/lib/" does not name a file without .. on the way"#),
        ("/lib//libx.so", r#""/lib//libx.so" does not name a file without .. on the way"#),
        ("/lib/./libx.so", r#""/lib/./libx.so" does not name a file without .. on the way"#),
        ("/lib/../libx.so", r#""/lib/../libx.so" does not name a file without .. on the way"#),
        ("/lib/..", r#""/lib/.." does not name a file without .. on the way"#),
        ("/lib/libx.so=", r#""" leaves out a name"#),
        ("/lib/libx.so=..", r#"".." leaves out a name"#),
        ("/lib/libx.so=a\0b", r#""a\0b" holds a control character or is not UTF-8"#),
        ("/lib/lib\nx.so", r#""/lib/lib\nx.so" holds a control character or is not UTF-8"#),
        ("/lib/libx.so=a=b", r#""libx.so=a" may not hold '='"#),
    ] {
        assert_eq!(word.parse::<Library>().unwrap_err().to_string(), error, "{word:?}");
    }
    let slash = Library::new("/lib/libx.so.2", "a/libx.so").unwrap_err();
    assert_eq!(slash.to_string(), r#""a/libx.so" may not hold '/'"#);
    let equals = Library::new("/lib/libx=.so", "libx.so").unwrap_err();
    assert_eq!(equals.to_string(), r#""libx=.so" may not hold '='"#);
}

#[test]
fn odd_links_are_refused() {
    for (word, error) in [
        ("", r#""" is not of the form TARGET=PATH"#),
        ("libcuda.so", r#""libcuda.so" is not of the form TARGET=PATH"#),
        ("=/lib/libcuda.so", r#""" leaves out a name"#),
        ("libcuda.so.1=", r#""" is not an absolute path"#),
        ("libcuda.so.1=libcuda.so", r#""libcuda.so" is not an absolute path"#),
        ("a=/lib/../libcuda.so", r#""/lib/../libcuda.so" does not name a file without .. on the way"#),
        ("a=/", r#""/" does not name a file without .. on the way"#),
    ] {
        assert_eq!(word.parse::<Link>().unwrap_err().to_string(), error, "{word:?}");
    }
}

#[test]
fn a_flag_of_a_newer_spec_is_refused() {
    use clap::error::ErrorKind::{InvalidSubcommand, UnknownArgument};
    for (words, kind) in [
        (&["divvy-hook", "create-container", "--cuda-compat=580"][..], UnknownArgument),
        (&["divvy-hook", "create-runtime", "--device=gpu=shared", "--limit=1"][..], UnknownArgument),
        (&["divvy-hook", "create-network"][..], InvalidSubcommand),
    ] {
        assert_eq!(Command::parse_words(words).unwrap_err().kind(), kind, "{words:?}");
    }
}

#[test]
fn what_the_hook_asks_for_is_read_as_it_is_written() {
    let devices: Vec<DeviceName> =
        vec!["gpu=shared-0".parse().unwrap(), "gpu.shared=shared".parse().unwrap()];
    let short = CreateRuntime::new(devices.clone());
    let long = CreateRuntime { state_dir: "/srv/divvy".into(), start_timeout: 0, devices };
    for (request, expected) in [
        (short, &["create-runtime", "--device=gpu=shared-0", "--device=gpu.shared=shared"][..]),
        (
            long,
            &[
                "create-runtime",
                "--state-dir=/srv/divvy",
                "--start-timeout=0",
                "--device=gpu=shared-0",
                "--device=gpu.shared=shared",
            ],
        ),
    ] {
        let words = request.to_args();
        assert_eq!(words, expected);
        let line = std::iter::once("divvy-hook".to_owned()).chain(words);
        assert_eq!(Command::parse_words(line).unwrap().phase, Phase::CreateRuntime(request));
    }
}

#[test]
fn odd_requests_are_refused() {
    use clap::error::ErrorKind::{MissingRequiredArgument, ValueValidation};
    for (words, kind) in [
        (&[][..], MissingRequiredArgument),
        (&["--start-timeout=10"], MissingRequiredArgument),
        (&["--device="], ValueValidation),
        (&["--device=shared-0"], ValueValidation),
        (&["--device==shared-0"], ValueValidation),
        (&["--device=gpu="], ValueValidation),
        (&["--device=gpu=a=b"], ValueValidation),
        (&["--device=gpu=../x"], ValueValidation),
        (&["--device=gpu=a\nb"], ValueValidation),
        (&["--device=gpu=0", "--start-timeout=3601"], ValueValidation),
        (&["--device=gpu=0", "--start-timeout=-1"], ValueValidation),
        (&["--device=gpu=0", "--start-timeout=1s"], ValueValidation),
        (&["--device=gpu=0", "--state-dir=run"], ValueValidation),
        (&["--device=gpu=0", "--state-dir=/run/../x"], ValueValidation),
    ] {
        let line = ["divvy-hook", "create-runtime"].iter().chain(words);
        assert_eq!(Command::parse_words(line).unwrap_err().kind(), kind, "{words:?}");
    }
}
