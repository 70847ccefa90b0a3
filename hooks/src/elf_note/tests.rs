use std::cell::Cell;
use std::fs::File;
use std::io::{Result as IoResult, Write};
use std::process::{Command, Stdio};

use super::*;

const JSON: &str =
    r#"{"Format":1,"CUDA Version":"13.1","Driver":[535,550,570,575,580,590],"Device":[1,2,7,8]}"#;

/// A file that counts what is read of it, in bytes.
struct Image {
    bytes: Vec<u8>,
    read: Cell<usize>,
}

impl FileExt for Image {
    fn read_at(&self, into: &mut [u8], offset: u64) -> IoResult<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.bytes.get(at..)).unwrap_or_default();
        let size = rest.len().min(into.len());
        into[..size].copy_from_slice(&rest[..size]);
        self.read.set(self.read.get() + into.len());
        Ok(size)
    }

    fn write_at(&self, _: &[u8], _: u64) -> IoResult<usize> {
        unreachable!("nothing is written")
    }
}

fn read_bytes(bytes: Vec<u8>) -> Result<Option<Note>, Error> {
    let image = Image { bytes, read: Cell::new(0) };
    let result = read(&image);
    assert!(image.read.get() as u64 <= ELF_HEADER as u64 + 3 * LIMIT, "{} bytes were read", image.read.get());
    result
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A note as an assembler lays it out, padded to four bytes.
fn note(owner: &[u8], text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in [owner.len() as u32, text.len() as u32, 1] {
        bytes.extend(number.to_le_bytes());
    }
    for part in [owner, text] {
        bytes.extend(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

fn nvidia(text: &str) -> Vec<u8> {
    note(b"NVIDIA Corporation\0", text.as_bytes())
}

const NAMES_AT: usize = 64;
const NOTE_AT: usize = 128;

/// An ELF file of three sections: none, the names, and one of `kind` with `content`. The headers come last.
fn elf(name: &str, kind: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; NOTE_AT];
    put(&mut bytes, 0, IDENT);
    put(&mut bytes, NAMES_AT + 1, name.as_bytes());
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    let headers = bytes.len();
    put(&mut bytes, 40, &(headers as u64).to_le_bytes());
    put(&mut bytes, 58, &[64, 0, 3, 0, 1, 0]);
    bytes.resize(headers + 3 * SECTION_HEADER, 0);
    for (index, name, kind, at, size) in
        [(1, 0_u32, 3, NAMES_AT, NOTE_AT - NAMES_AT), (2, 1, kind, NOTE_AT, content.len())]
    {
        let header = headers + index * SECTION_HEADER;
        put(&mut bytes, header, &name.to_le_bytes());
        put(&mut bytes, header + 4, &u32::to_le_bytes(kind));
        put(&mut bytes, header + 24, &(at as u64).to_le_bytes());
        put(&mut bytes, header + 32, &(size as u64).to_le_bytes());
    }
    bytes
}

fn compat(content: &[u8]) -> Vec<u8> {
    elf(".note.cuda.fwd_compatibility", SHT_NOTE, content)
}

#[test]
fn notes_are_read() {
    let known = |drivers: &[u32], cuda| Some(Note { drivers: drivers.to_vec(), cuda });
    let all = known(&[535, 550, 570, 575, 580, 590], Some((13, 1)));
    let padded = note(b"NVIDIA Corporation\0\0", format!("{JSON}\0\0\0\0\0").as_bytes());
    let mut unpadded = nvidia(JSON);
    unpadded.truncate(NOTE_HEADER + 20 + JSON.len());
    // An alignment of 8, counted from the name's start.
    let mut wide = nvidia(JSON);
    wide.splice(NOTE_HEADER + 20..NOTE_HEADER + 20, [0; 4]);
    let mut past_the_end = padded.clone();
    put(&mut past_the_end, 4, &4096_u32.to_le_bytes());
    let followed = [nvidia(JSON), note(b"GNU\0", b"1234")].concat();
    for (content, expected) in [
        (nvidia(JSON), all.clone()),
        (note(b"NVIDIA Corporation", JSON.as_bytes()), all.clone()),
        (padded, all.clone()),
        (unpadded, all.clone()),
        (wide, all.clone()),
        (past_the_end, all.clone()),
        (followed, all),
        (nvidia(r#"{"Format":1,"CUDA Version":"13.2"}"#), known(&[], Some((13, 2)))),
        (nvidia(r#"{"Driver":[580]}"#), known(&[580], None)),
        (nvidia(r#"{"Driver":null,"CUDA Version":null,"New":{"a":[1]}}"#), known(&[], None)),
        (nvidia("{}"), known(&[], None)),
        (nvidia(""), None),
        (note(b"GNU\0", JSON.as_bytes()), None),
        (note(b"", JSON.as_bytes()), None),
        (note(b"NVIDIA Corporation 2\0", JSON.as_bytes()), None),
    ] {
        let shown = String::from_utf8_lossy(&content).into_owned();
        assert_eq!(read_bytes(compat(&content)).unwrap(), expected, "{shown:?}");
    }
}

#[test]
fn libraries_without_the_note_are_read() {
    let no_sections = elf("", 0, b"")[..ELF_HEADER].to_vec();
    for (bytes, why) in [
        (elf(".note.gnu.build-id", SHT_NOTE, &nvidia(JSON)), "another name"),
        (elf(".note.cuda.fwd_compatibility2", SHT_NOTE, &nvidia(JSON)), "a longer name"),
        (elf(".note.cuda.fwd_compatibility", 1, &nvidia(JSON)), "another type"),
        ([&no_sections[..40], &[0; 24]].concat(), "no sections"),
        ([&no_sections[..60], &[0; 4]].concat(), "no count"),
    ] {
        assert_eq!(read_bytes(bytes).unwrap(), None, "{why}");
    }
}

#[test]
fn malformed_libraries_are_named() {
    let good = compat(&nvidia(JSON));
    let headers = u64::from_le_bytes(good[40..48].try_into().unwrap()) as usize;
    let (names, section) = (headers + SECTION_HEADER, headers + 2 * SECTION_HEADER);
    let change = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        put(&mut bytes, at, value);
        bytes
    };
    let at_the_end = u64::MAX.to_le_bytes();
    let not_elf = "it is not an ELF file of 64 bits, little-endian";
    let cut = |what: &str, at: usize| format!("{what} at byte {at} is cut short");
    let large = |what: &str, size: u64| format!("{what} comes to {size} bytes, more than 65536");
    let malformed = |line: u32, column: u32| {
        format!("its note on CUDA compatibility is malformed at line {line}, column {column}")
    };
    let version = "its note on CUDA compatibility has no CUDA version of the form MAJOR.MINOR";
    for (bytes, error) in [
        (vec![], not_elf.to_owned()),
        (b"#!/bin/sh\n".repeat(20), not_elf.to_owned()),
        (good[..63].to_vec(), not_elf.to_owned()),
        (change(4, &[1]), not_elf.to_owned()),
        (change(5, &[2]), not_elf.to_owned()),
        (change(40, &at_the_end), format!("the list of sections at byte {} is cut short", u64::MAX)),
        (good[..good.len() - 1].to_vec(), cut("the list of sections", headers)),
        (change(60, &[0xff, 0xff]), large("the list of sections", 65535 * 64)),
        (change(58, &[40, 0]), "its section headers are malformed".to_owned()),
        (change(62, &[3, 0]), "its section headers are malformed".to_owned()),
        (change(62, &[0xff, 0xff]), "its section headers are malformed".to_owned()),
        (change(names + 32, &at_the_end), large("the names of the sections", u64::MAX)),
        (change(names + 25, &[0xff]), cut("the names of the sections", 0xff40)),
        (change(section + 32, &65537_u64.to_le_bytes()), large("the note", 65537)),
        (change(section + 33, &[0xff]), cut("the note", NOTE_AT)),
        (change(section + 24, &at_the_end), format!("the note at byte {} is cut short", u64::MAX)),
        (change(section + 32, &[11]), cut("the note", NOTE_AT)),
        (change(section + 32, &[30]), cut("the note", NOTE_AT)),
        (change(NOTE_AT, &[0xff; 4]), cut("the note", NOTE_AT)),
        (compat(b""), cut("the note", NOTE_AT)),
        (compat(&nvidia("\0\0\0\0")), malformed(1, 0)),
        (compat(&nvidia("[]x")), malformed(1, 2)),
        (compat(&nvidia(r#"{"Driver":["580"]}"#)), malformed(1, 16)),
        (compat(&nvidia("{\n\"Driver\":[-1]}")), malformed(2, 12)),
        (compat(&nvidia(&"[".repeat(60000))), malformed(1, 1)),
        (compat(&nvidia(r#"{"Format":2,"Driver":"any"}"#)), malformed(1, 26)),
        (compat(&nvidia(r#"{"Format":2}"#)), "its note on CUDA compatibility is of format 2".to_owned()),
        (compat(&nvidia(r#"{"CUDA Version":"13"}"#)), version.to_owned()),
        (compat(&nvidia(r#"{"CUDA Version":"13.x"}"#)), version.to_owned()),
        (compat(&nvidia(r#"{"CUDA Version":"13.4294967296"}"#)), version.to_owned()),
    ] {
        assert_eq!(read_bytes(bytes).unwrap_err().to_string(), error);
    }
}

#[test]
fn every_truncation_and_every_bit_is_survived() {
    let good = compat(&nvidia(JSON));
    for length in 0..good.len() {
        assert!(read_bytes(good[..length].to_vec()).is_err(), "{length}");
    }
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let _ = read_bytes(bytes);
    }
}

/// The judge of a layout is a real assembler and linker; Rust links by this compiler, so it is there.
#[test]
fn a_linked_librarys_note_is_read() {
    let directory = tempfile::tempdir().unwrap();
    for alignment in [4, 8] {
        let source = format!(
            r#"
            .section .note.cuda.fwd_compatibility, "a", %note
            .balign {alignment}
            .long 2f - 1f, 4f - 3f, 1
        1:  .asciz "NVIDIA Corporation"
        2:  .balign {alignment}
        3:  .asciz "{}"
        4:  .balign {alignment}
            .section .note.GNU-stack, "", %progbits
            "#,
            JSON.replace('"', "\\\"")
        );
        let path = directory.path().join(format!("libcuda.so.590.{alignment}"));
        let mut compiler = Command::new("cc")
            .args(["-shared", "-nostdlib", "-x", "assembler", "-", "-o"])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
        assert!(compiler.wait().unwrap().success());
        let library = File::options().read(true).write(true).open(&path).unwrap();
        let expected = Note { drivers: vec![535, 550, 570, 575, 580, 590], cuda: Some((13, 1)) };
        assert_eq!(read(&library).unwrap().unwrap(), expected, "{alignment}");
        // As large as a real one, with its section headers where they were.
        library.set_len(150 << 20).unwrap();
        assert_eq!(read(&library).unwrap().unwrap(), expected, "{alignment}");
    }
    assert_eq!(read(&File::open(std::env::current_exe().unwrap()).unwrap()).unwrap(), None);
}

#[test]
fn a_failed_read_keeps_its_cause() {
    use std::error::Error as _;
    let error = read(&File::open("/").unwrap()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the ELF header");
    assert!(error.source().unwrap().to_string().starts_with("Is a directory"));
}
