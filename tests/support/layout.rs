//! Where distributions put the driver's files, as text in tests/layouts, laid out as a host. An entry is a line:
//!
//! ```text
//! version VERSION             the running driver's, {v} in all that follows
//! in DIR                      the directory that names without a leading slash are in
//! lib NAME SONAME [LINK...]   a 64-bit shared object, SONAME `=` if it is the file's name and `-` if it has none; a
//!                             link of the SONAME's name lies beside it, and one of each further name
//! lib32 NAME SONAME [LINK...] the same for i386
//! old NAME SONAME             a 64-bit shared object that no container should get, without links
//! file NAME, program NAME     a file of the driver
//! other NAME                  one that is not the driver's, which no container should get
//! link NAME -> TARGET         a symbolic link, TARGET as it is
//! alternative NAME -> TARGET  Debian's: a link to one in /etc/alternatives, which leads to TARGET
//! links DIR                   a link for every file and link below DIR, to it, as Nix makes of several packages one
//! cache [DIR...]              ldconfig is run, and its configuration lists these directories
//! ```
//!
//! The 64-bit library of the running version with NVML's SONAME is the mock.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::elf::{Width, shared_object};
use super::laid::Laid;
use super::mock_nvml;

const NVML: &str = "libnvidia-ml.so.1";

/// A layout, laid out as a live host with one GPU.
pub struct Layout {
    pub laid: Laid,
    /// Files of the driver, by path in the root, in the order of the text: all but links.
    pub files: Vec<PathBuf>,
    version: String,
    dir: String,
    cache: Option<Vec<String>>,
}

impl Layout {
    /// Lays out tests/layouts/NAME.txt.
    pub fn named(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/layouts/{name}.txt"));
        Self::of(&fs::read_to_string(path).unwrap())
    }

    /// Lays out a layout's text.
    pub fn of(text: &str) -> Self {
        let laid = Laid::out("l4");
        for dir in ["usr", "etc", "lib", "run"] {
            fs::remove_dir_all(laid.root().join(dir)).unwrap();
        }
        let mut layout =
            Self { laid, files: Vec::new(), version: String::new(), dir: "/".into(), cache: None };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            layout.entry(&line.replace("{v}", &layout.version));
        }
        layout.write_cache();
        let version = layout.version.clone();
        layout.laid.change_facts(|facts| facts["driver_version"] = version.into());
        layout
    }

    /// A path of the layout on this machine.
    pub fn on_host(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.laid.root().join(path.strip_prefix("/").unwrap_or(path))
    }

    fn entry(&mut self, line: &str) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["version", version] => self.version = version.into(),
            ["in", dir] => self.dir = dir.into(),
            ["cache", ref dirs @ ..] => {
                self.cache.get_or_insert_default().extend(dirs.iter().map(|dir| (*dir).to_owned()));
            }
            ["lib", name, soname, ref links @ ..] => self.library(Width::Bits64, name, soname, links),
            ["lib32", name, soname, ref links @ ..] => self.library(Width::Bits32, name, soname, links),
            ["old", name, soname] => {
                let library = shared_object(Width::Bits64, own_name(&self.path(name), soname).as_deref());
                self.write(&self.path(name), &library, 0o644);
            }
            ["file", name] => self.file(name, b"of the driver\n", 0o644),
            ["program", name] => self.file(name, b"#!/bin/sh\n", 0o755),
            ["other", name] => self.write(&self.path(name), b"of something else\n", 0o644),
            ["link", name, "->", target] => self.link(&self.path(name), target),
            ["links", dir] => self.links(Path::new(dir), &PathBuf::from(&self.dir)),
            ["alternative", name, "->", target] => {
                let (path, target) = (self.path(name), self.path(target));
                let name = path.to_str().unwrap()[1..].replace('/', "-");
                let alternative = Path::new("/etc/alternatives").join(name);
                self.link(&path, alternative.to_str().unwrap());
                self.link(&alternative, target.to_str().unwrap());
            }
            _ => panic!("not an entry of a layout: {line}"),
        }
    }

    /// The path that a name stands for.
    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.dir).join(name)
    }

    fn library(&mut self, width: Width, name: &str, soname: &str, links: &[&str]) {
        let path = self.path(name);
        let file_name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let soname = own_name(&path, soname);
        let soname = soname.as_deref();
        let running = file_name.ends_with(&self.version);
        if (width, soname, running) == (Width::Bits64, Some(NVML), true) {
            let built = mock_nvml(self.laid.dir.path());
            self.write(&path, &fs::read(built).unwrap(), 0o644);
        } else {
            self.write(&path, &shared_object(width, soname), 0o644);
        }
        self.files.push(path.clone());
        for link in soname.iter().chain(links).filter(|link| **link != file_name) {
            self.link(&path.with_file_name(link), &file_name);
        }
    }

    fn file(&mut self, name: &str, contents: &[u8], mode: u32) {
        let path = self.path(name);
        self.write(&path, contents, mode);
        self.files.push(path);
    }

    fn write(&self, path: &Path, contents: &[u8], mode: u32) {
        let on_host = self.on_host(path);
        fs::create_dir_all(on_host.parent().unwrap()).unwrap();
        assert!(!on_host.exists(), "{} is there twice", path.display());
        fs::write(&on_host, contents).unwrap();
        fs::set_permissions(&on_host, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn link(&self, path: &Path, target: &str) {
        let on_host = self.on_host(path);
        fs::create_dir_all(on_host.parent().unwrap()).unwrap();
        symlink(target, on_host).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }

    fn links(&self, from: &Path, to: &Path) {
        for entry in fs::read_dir(self.on_host(from)).unwrap() {
            let entry = entry.unwrap();
            let (from, to) = (from.join(entry.file_name()), to.join(entry.file_name()));
            match entry.file_type().unwrap().is_dir() {
                true => self.links(&from, &to),
                false => self.link(&to, from.to_str().unwrap()),
            }
        }
    }

    /// The real ldconfig writes the cache; -X keeps it from making links.
    fn write_cache(&self) {
        let Some(dirs) = &self.cache else { return };
        let etc = self.on_host("/etc");
        fs::create_dir_all(&etc).unwrap();
        fs::write(etc.join("ld.so.conf"), dirs.join("\n")).unwrap();
        let status = Command::new("/sbin/ldconfig").args(["-X", "-r"]).arg(self.laid.root()).status();
        assert!(status.unwrap().success(), "ldconfig failed");
    }
}

/// The SONAME that an entry says.
fn own_name(path: &Path, soname: &str) -> Option<String> {
    match soname {
        "=" => Some(path.file_name()?.to_str()?.to_owned()),
        "-" => None,
        soname => Some(soname.to_owned()),
    }
}
