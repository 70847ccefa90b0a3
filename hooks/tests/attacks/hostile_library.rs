//! A library whose constructor leaves a mark, and proof that it does (CVE-2025-23266).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const LIBRARY: &str = r#"
#include <fcntl.h>
#include <unistd.h>
__attribute__((constructor)) static void leave_a_mark(void) { close(open(MARK, O_WRONLY | O_CREAT, 0644)); }
unsigned la_version(unsigned version) { return version; }
int gconv_init(void *step) { return 0; }
int gconv(void) { return 0; }
int of_the_library(void) { return 0; }
"#;
const PROGRAM: &str = "int of_the_library(void); int main(void) { return of_the_library(); }";

pub struct Hostile {
    directory: PathBuf,
    pub library: PathBuf,
    mark: PathBuf,
}

impl Hostile {
    /// Builds it in a directory, which is the mark's too.
    pub fn new(directory: &Path) -> Self {
        let directory = directory.join("hostile");
        fs::create_dir(&directory).unwrap();
        let (library, mark) = (directory.join("libpoc.so"), directory.join("mark"));
        fs::write(directory.join("poc.c"), LIBRARY).unwrap();
        fs::write(directory.join("program.c"), PROGRAM).unwrap();
        let definition = format!("-DMARK=\"{}\"", mark.display());
        let hostile = Self { directory, library, mark };
        hostile.cc(&["-shared", "-fPIC", &definition, "-o", "libpoc.so", "poc.c"]);
        hostile.cc(&["-o", "program", "program.c", "-L.", "-lpoc"]);
        // The names that a program of Rust's asks for; a dynamic one would not even start.
        fs::create_dir(hostile.directory.join("names")).unwrap();
        for name in ["libc.so.6", "libgcc_s.so.1", "libc.musl-x86_64.so.1"] {
            fs::copy(&hostile.library, hostile.directory.join("names").join(name)).unwrap();
        }
        fs::write(hostile.directory.join("gconv-modules"), "module POC// INTERNAL libpoc 1\n").unwrap();
        hostile
    }

    fn cc(&self, arguments: &[&str]) {
        let status = Command::new("cc").current_dir(&self.directory).args(arguments).status().unwrap();
        assert!(status.success(), "cc {arguments:?}");
    }

    /// Each variable that has a dynamic program load it, with its value.
    pub fn variables(&self) -> [(&'static str, String); 4] {
        let (library, directory) = (self.library.display().to_string(), self.directory.display().to_string());
        [
            ("LD_PRELOAD", library.clone()),
            ("LD_AUDIT", library),
            ("LD_LIBRARY_PATH", directory.clone()),
            ("GCONV_PATH", directory),
        ]
    }

    /// Whether it was loaded since this was asked last.
    pub fn was_loaded(&self) -> bool {
        fs::remove_file(&self.mark).is_ok()
    }

    /// Each variable works on a program that is not static: else nothing would be proved by one on which it does not.
    pub fn assert_dynamic_programs_load_it(&self) {
        for (name, value) in self.variables() {
            let program = self.directory.join("program").display().to_string();
            let words: &[&str] = match name {
                "LD_LIBRARY_PATH" => &[&program],
                "GCONV_PATH" => &["iconv", "-f", "POC", "-t", "UTF-8", "/dev/null"],
                _ => &["/bin/true"],
            };
            assert!(!self.was_loaded());
            // How they end is not asked: iconv is right to complain.
            let _ = Command::new(words[0]).args(&words[1..]).env(name, value).output().unwrap();
            assert!(self.was_loaded(), "{name} does not work on {words:?}");
        }
    }
}
