use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::loader::{CONFIG_INCLUDE, GLIBC_LOADER, MUSL_LOADER, MUSL_PATHS};
use super::*;
use crate::args::Link;
use crate::ldcache::{Cache, Entry};

const DIR: &str = "usr/lib/driver";

struct Image {
    directory: TempDir,
    root: Root,
}

impl Image {
    /// A root with the driver's libraries already mounted, as a hook finds it.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = Self { root: Root::open(directory.path()).unwrap(), directory };
        image.file(&format!("{DIR}/libcuda.so.580"), b"580");
        image.file(&format!("{DIR}/libnvidia-x.so.580"), b"580");
        image
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn file(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn run(&self) -> Report {
        self.run_with(&request())
    }

    fn run_with(&self, request: &CreateContainer) -> Report {
        let report = run(&self.root, request).unwrap();
        let again = run(&self.root, request).unwrap();
        assert_eq!(again.written, [] as [PathBuf; 0], "a restart changes nothing");
        report
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn lookup(&self, soname: &str) -> Vec<PathBuf> {
        let bytes = fs::read(self.path("etc/ld.so.cache")).unwrap();
        Cache::parse(&bytes).unwrap().lookup(soname).map(Path::to_owned).collect()
    }
}

fn request() -> CreateContainer {
    CreateContainer {
        libraries: vec![
            Library::new(format!("/{DIR}/libcuda.so.580"), "libcuda.so.1").unwrap(),
            Library::new(format!("/{DIR}/libnvidia-x.so.580"), "libnvidia-x.so.580").unwrap(),
        ],
        links: vec![Link::new("libcuda.so.1", format!("/{DIR}/libcuda.so")).unwrap()],
        generation: Some("00ff".into()),
        ..CreateContainer::default()
    }
}

#[test]
fn an_empty_image_gets_everything() {
    let image = Image::new();
    let report = image.run();
    let written = [
        "/usr/lib/driver/libcuda.so.1",
        "/usr/lib/driver/libcuda.so",
        "/etc/ld.so.cache",
        "/etc/ld.so.conf.d/00-divvy.conf",
        "/etc/ld.so.conf",
    ];
    assert_eq!(report, Report { written: written.map(PathBuf::from).to_vec(), notes: vec![] });
    let link = |name: &str| fs::read_link(image.path(DIR).join(name)).unwrap();
    assert_eq!(link("libcuda.so.1"), Path::new("libcuda.so.580"));
    assert_eq!(link("libcuda.so"), Path::new("libcuda.so.1"));
    assert_eq!(image.lookup("libcuda.so.1"), [Path::new("/usr/lib/driver/libcuda.so.1")]);
    assert_eq!(image.lookup("libnvidia-x.so.580"), [Path::new("/usr/lib/driver/libnvidia-x.so.580")]);
    assert_eq!(image.text("etc/ld.so.conf.d/00-divvy.conf"), "# divvy-hook 00ff\n/usr/lib/driver\n");
    assert_eq!(fs::read(image.path("etc/ld.so.conf")).unwrap(), CONFIG_INCLUDE);
}

#[test]
fn the_images_configuration_stays() {
    let image = Image::new();
    image.file("etc/ld.so.conf", b"/opt/lib\n");
    image.run();
    assert_eq!(fs::read(image.path("etc/ld.so.conf")).unwrap(), b"/opt/lib\n");
}

#[test]
fn the_images_own_libraries_stay_in_the_cache_behind_ours() {
    let image = Image::new();
    let mut cache = Cache::default();
    let of_image = [
        Entry::new("libcuda.so.1", Path::new("/opt/stubs/libcuda.so.1")),
        Entry::new("libc.so.6", Path::new("/lib/libc.so.6")),
    ];
    cache.merge(&of_image);
    image.file("etc/ld.so.cache", &cache.to_bytes());
    let report = image.run();
    assert_eq!(report.notes, []);
    let paths = ["/usr/lib/driver/libcuda.so.1", "/opt/stubs/libcuda.so.1"];
    assert_eq!(image.lookup("libcuda.so.1"), paths.map(PathBuf::from));
    assert_eq!(image.lookup("libc.so.6"), [Path::new("/lib/libc.so.6")]);
}

#[test]
fn an_unusable_cache_is_replaced_and_told() {
    for (content, why) in [
        (&b"garbage"[..], "it is not a library cache of glibc's"),
        (b"glibc-ld.so.cache1.1", "its byte order is not this machine's"),
    ] {
        let image = Image::new();
        image.file("etc/ld.so.cache", content);
        let report = image.run();
        assert_eq!(report.notes, [Note::Replaced { path: loader::CACHE.into(), why: why.to_owned() }]);
        assert_eq!(image.lookup("libcuda.so.1").len(), 1);
    }
    let image = Image::new();
    image.file("etc/ld.so.cache", b"");
    assert_eq!(image.run().notes, [], "the loader has no use for an empty one either");
}

#[test]
fn a_hidden_library_is_left_out() {
    let image = Image::new();
    fs::remove_file(image.path("usr/lib/driver/libcuda.so.580")).unwrap();
    let report = image.run();
    let path = PathBuf::from("/usr/lib/driver/libcuda.so.580");
    assert_eq!(report.notes, [Note::Hidden { path }]);
    assert!(fs::symlink_metadata(image.path("usr/lib/driver/libcuda.so.1")).is_err());
    assert_eq!(image.lookup("libcuda.so.1"), [] as [PathBuf; 0]);
    assert_eq!(image.lookup("libnvidia-x.so.580").len(), 1);

    // What engines leave where something was mounted, in a volume that was filled from the image.
    let image = Image::new();
    image.file("usr/lib/driver/libnvidia-x.so.580", b"");
    assert!(matches!(image.run().notes[..], [Note::Hidden { .. }]));
    assert_eq!(image.lookup("libnvidia-x.so.580"), [] as [PathBuf; 0]);
}

#[test]
fn a_link_that_leads_out_of_the_image_is_no_library() {
    let image = Image::new();
    let path = image.path("usr/lib/driver/libcuda.so.580");
    fs::remove_file(&path).unwrap();
    symlink("/etc/passwd", &path).unwrap();
    assert!(matches!(image.run().notes[..], [Note::Hidden { .. }]));
}

#[test]
fn musl_gets_a_path_file() {
    let image = Image::new();
    let path_file = MUSL_PATHS.trim_start_matches('/');
    image.file(MUSL_LOADER.trim_start_matches('/'), b"musl");
    let report = image.run();
    assert_eq!(report.notes, []);
    assert_eq!(image.text(path_file), "/lib\n/usr/local/lib\n/usr/lib\n/usr/lib/driver\n");
    assert!(!image.path("etc/ld.so.cache").exists());
    assert!(image.path("usr/lib/driver/libcuda.so.1").exists());

    for (before, after) in [
        ("/opt:/lib", "/opt:/lib\n/usr/lib/driver\n"),
        ("/usr/lib/driver:/lib\n", "/usr/lib/driver:/lib\n"),
        ("\n", "\n/usr/lib/driver\n"),
    ] {
        image.file(path_file, before.as_bytes());
        image.run();
        assert_eq!(image.text(path_file), after);
    }

    image.file(path_file, &b"/x\n".repeat(350_000));
    assert!(matches!(image.run().notes[..], [Note::Replaced { .. }]));
    assert_eq!(image.text(path_file), "/lib\n/usr/local/lib\n/usr/lib\n/usr/lib/driver\n");
    let almost = "/x\n".repeat(349_524);
    image.file(path_file, almost.as_bytes());
    assert!(matches!(image.run().notes[..], [Note::Replaced { .. }]), "the next start would not read it");

    image.file(GLIBC_LOADER.trim_start_matches('/'), b"glibc");
    assert_eq!(image.run().notes, []);
    assert_eq!(image.lookup("libcuda.so.1").len(), 1, "both have theirs");
}

/// A container that is started again after the driver changed.
#[test]
fn what_an_earlier_driver_left_is_swept() {
    let image = Image::new();
    let old = CreateContainer {
        libraries: vec![
            Library::new(format!("/{DIR}/libcuda.so.570"), "libcuda.so.1").unwrap(),
            Library::new(format!("/{DIR}/libnvidia-x.so.570"), "libnvidia-x.so.570").unwrap(),
            Library::new(format!("/{DIR}/libnvidia-old.so.570"), "libnvidia-old.so.1").unwrap(),
            Library::new("/opt/old/libnvidia-y.so.570", "libnvidia-y.so.1").unwrap(),
        ],
        generation: Some("0570".into()),
        ..CreateContainer::default()
    };
    let files: Vec<String> = old.libraries.iter().map(|library| library.path.display().to_string()).collect();
    for file in &files {
        image.file(file.trim_start_matches('/'), b"driver 570");
    }
    image.file(&format!("{DIR}/libimage.so.1"), b"the image's own");
    let mut cache = Cache::default();
    let own = format!("/{DIR}/libimage.so.1");
    cache.merge(&[
        Entry::new("libimage.so.1", Path::new(&own)),
        Entry::new("libgone.so.1", Path::new("/usr/lib/libgone.so.1")),
    ]);
    image.file("etc/ld.so.cache", &cache.to_bytes());
    image.run_with(&old);
    assert_eq!(image.lookup("libnvidia-old.so.1").len(), 1);
    // Engines leave an empty file where they had mounted one.
    for file in &files {
        image.file(file.trim_start_matches('/'), b"");
    }
    let report = image.run();
    assert!(report.written.contains(&PathBuf::from(format!("/{DIR}/libnvidia-old.so.1"))));
    assert_eq!(image.lookup("libcuda.so.1"), [Path::new("/usr/lib/driver/libcuda.so.1")]);
    for soname in ["libnvidia-old.so.1", "libnvidia-x.so.570", "libnvidia-y.so.1"] {
        assert_eq!(image.lookup(soname), [] as [PathBuf; 0], "{soname}");
    }
    for link in [&format!("{DIR}/libnvidia-old.so.1"), "opt/old/libnvidia-y.so.1"] {
        assert!(fs::symlink_metadata(image.path(link)).is_err(), "{link}");
    }
    assert_eq!(fs::read_link(image.path(DIR).join("libcuda.so.1")).unwrap(), Path::new("libcuda.so.580"));
    assert_eq!(image.lookup("libimage.so.1").len(), 1);
    assert_eq!(image.lookup("libgone.so.1").len(), 1, "not in a directory of the driver's");
    assert_eq!(image.text("etc/ld.so.conf.d/00-divvy.conf"), "# divvy-hook 00ff\n/usr/lib/driver\n");
}

/// A container with devices of two specs, which are of one generation.
#[test]
fn runs_of_one_generation_leave_each_others_libraries() {
    let image = Image::new();
    image.file("opt/more/libmore.so.580", b"x");
    let more = CreateContainer {
        libraries: vec![Library::new("/opt/more/libmore.so.580", "libmore.so.1").unwrap()],
        ..request()
    };
    run(&image.root, &more).unwrap();
    run(&image.root, &request()).unwrap();
    assert_eq!(image.lookup("libmore.so.1").len(), 1);
    let both = "# divvy-hook 00ff\n/usr/lib/driver\n/opt/more\n";
    assert_eq!(image.text("etc/ld.so.conf.d/00-divvy.conf"), both);
}

#[test]
fn a_newer_libcuda_of_the_image_goes_first() {
    let driver = |version: &str| CreateContainer { driver: Some(version.parse().unwrap()), ..request() };
    let image = Image::new();
    // As CUDA's images have it: /usr/local/cuda is a link of update-alternatives.
    let compat = "usr/local/cuda-13.1/compat";
    image.file(&format!("{compat}/libcuda.so.590.44.01"), &elf_without_sections());
    image.file(&format!("{compat}/libnvidia-nvvm.so.4"), b"x");
    image.file(&format!("{compat}/README"), b"x");
    for (target, link) in [
        ("/etc/alternatives/cuda", "usr/local/cuda"),
        ("/usr/local/cuda-13.1", "etc/alternatives/cuda"),
        ("libcuda.so.590.44.01", "usr/local/cuda-13.1/compat/libcuda.so.1"),
    ] {
        fs::create_dir_all(image.path(link).parent().unwrap()).unwrap();
        symlink(target, image.path(link)).unwrap();
    }
    assert_eq!(image.run_with(&driver("580.126.09")).notes, []);
    let (newer, own) = ("/usr/local/cuda/compat/libcuda.so.1", "/usr/lib/driver/libcuda.so.1");
    assert_eq!(image.lookup("libcuda.so.1"), [newer, own].map(PathBuf::from));
    assert_eq!(image.lookup("libnvidia-nvvm.so.4").len(), 1);
    assert_eq!(image.lookup("README").len(), 0);
    let config = "# divvy-hook 00ff\n/usr/local/cuda/compat\n/usr/lib/driver\n";
    assert_eq!(image.text("etc/ld.so.conf.d/00-divvy.conf"), config);

    // The host's driver became the newer one.
    let newer_host = CreateContainer { generation: Some("0595".into()), ..driver("595.10") };
    assert_eq!(image.run_with(&newer_host).notes, []);
    assert_eq!(image.lookup("libcuda.so.1").first(), Some(&PathBuf::from(own)));
    assert_eq!(image.text("etc/ld.so.conf.d/00-divvy.conf"), "# divvy-hook 0595\n/usr/lib/driver\n");

    image.file(&format!("{compat}/libcuda.so.590.44.01"), b"no ELF");
    let why = "its libcuda is malformed: it is not an ELF file of 64 bits, little-endian".to_owned();
    assert_eq!(image.run_with(&driver("580.126.09")).notes, [Note::Compat { why }]);
    for number in 0..64 {
        image.file(&format!("{compat}/libx.so.{number}"), b"x");
    }
    let why = "it has far more files than one of NVIDIA's".to_owned();
    assert_eq!(image.run_with(&driver("580.126.09")).notes, [Note::Compat { why }]);
    for number in 0..64 {
        fs::remove_file(image.path(&format!("{compat}/libx.so.{number}"))).unwrap();
    }
    image.file(&format!("{compat}/libcuda.so.591.1"), &elf_without_sections());
    let why = "there is more than one libcuda".to_owned();
    assert_eq!(image.run_with(&driver("580.126.09")).notes, [Note::Compat { why }]);
}

/// The header of an ELF file of 64 bits, and nothing else (elf(5)).
fn elf_without_sections() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(64, 0);
    header
}

#[test]
fn a_directory_in_the_way_is_an_error() {
    for (path, what) in [
        ("usr/lib/driver/libcuda.so.1", r#"cannot link "/usr/lib/driver/libcuda.so.1""#),
        ("usr/lib/driver/libcuda.so", r#"cannot link "/usr/lib/driver/libcuda.so""#),
        ("etc/ld.so.cache", r#"cannot enter the driver's libraries in "/etc/ld.so.cache""#),
        (
            "etc/ld.so.conf.d/00-divvy.conf",
            r#"cannot enter the driver's libraries in "/etc/ld.so.conf.d/00-divvy.conf""#,
        ),
    ] {
        let image = Image::new();
        fs::create_dir_all(image.path(path)).unwrap();
        let error = run(&image.root, &request()).unwrap_err();
        assert_eq!(error.to_string(), what);
        let (Error::Link { source, .. } | Error::Loader { source, .. }) = error;
        let directory =
            format!("a directory stands in the place of {:?} in the container", format!("/{path}"));
        assert_eq!(source.to_string(), directory);
    }
}

#[test]
fn notes_read_as_sentences() {
    let path = PathBuf::from("/a");
    for (note, text) in [
        (Note::Hidden { path: path.clone() }, r#""/a" is not in the container; a volume may hide it"#),
        (Note::ForeignMount { path }, r#"left "/a" alone: a volume is mounted at or above it"#),
        (
            Note::Replaced { path: "/etc/ld.so.cache".into(), why: "why".into() },
            r#"replaced "/etc/ld.so.cache" of the image: why"#,
        ),
        (Note::Compat { why: "why".into() }, r#"the image's "/usr/local/cuda/compat" is not used: why"#),
        (Note::Profile { why: "why".into() }, "EGL is not told which GPUs there are: why"),
    ] {
        assert_eq!(note.to_string(), text);
    }
}
