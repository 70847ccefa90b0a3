use std::fs;
use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;
use crate::args::Link;

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
        image.file(&format!("{DIR}/libcuda.so.580"), b"");
        image.file(&format!("{DIR}/libnvidia-x.so.580"), b"");
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
        let report = run(&self.root, &request()).unwrap();
        let again = run(&self.root, &request()).unwrap();
        assert_eq!(again.written, [] as [PathBuf; 0], "a restart changes nothing");
        report
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
        device_links: Vec::new(),
        generation: None,
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
    assert_eq!(fs::read(image.path("etc/ld.so.conf.d/00-divvy.conf")).unwrap(), b"/usr/lib/driver\n");
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
        (&b"garbage"[..], "it is not a library cache of glibc 2.2 or later"),
        (b"glibc-ld.so.cache1.1", "its byte order is not this machine's"),
    ] {
        let image = Image::new();
        image.file("etc/ld.so.cache", content);
        let report = image.run();
        assert_eq!(report.notes, [Note::CacheReplaced { why: why.to_owned() }]);
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
fn musl_gets_links_alone() {
    let image = Image::new();
    image.file(MUSL_LOADER.trim_start_matches('/'), b"");
    let report = image.run();
    assert_eq!(report.notes, [Note::Musl]);
    assert!(!image.path("etc").exists());
    assert!(image.path("usr/lib/driver/libcuda.so.1").exists());

    let both = Image::new();
    both.file(MUSL_LOADER.trim_start_matches('/'), b"");
    both.file(GLIBC_LOADER.trim_start_matches('/'), b"");
    assert_eq!(both.run().notes, []);
    assert_eq!(both.lookup("libcuda.so.1").len(), 1);
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
        (Note::CacheReplaced { why: "why".into() }, r#"replaced "/etc/ld.so.cache" of the image: why"#),
        (Note::Musl, "the image's loader is musl's, so there is no library cache to write"),
    ] {
        assert_eq!(note.to_string(), text);
    }
}
