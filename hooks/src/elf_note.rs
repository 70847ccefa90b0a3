//! The note in which a CUDA forward-compatibility library (an image's `/usr/local/cuda/compat/libcuda.so.<version>`)
//! says for which drivers it is made. The pass over the root asks it before such a library goes before the host's.
//!
//! The library is the image's, hence hostile, and has up to 150 MB: whatever it says, no more than three blocks of
//! [`LIMIT`] bytes are read of it, and nothing is mapped or executed. Old libraries have no such note, and some of
//! NVIDIA's for Orin have one that is no JSON, so a caller needs an answer for both.

use std::io::ErrorKind;
use std::os::unix::fs::FileExt;

use serde::Deserialize;
use thiserror::Error;

/// The most that is read of the section headers, of their names and of the note, each, in bytes. A driver library has
/// about 40 sections and a note of 200 bytes.
pub const LIMIT: u64 = 64 << 10;

const SECTION: &[u8] = b".note.cuda.fwd_compatibility";
const OWNER: &[u8] = b"NVIDIA Corporation";
const FORMAT: u32 = 1;

// elf(5), elf.h: Elf64_Ehdr, Elf64_Shdr, Elf64_Nhdr.
const ELF_HEADER: usize = 64;
const SECTION_HEADER: usize = 64;
const NOTE_HEADER: usize = 12;
/// `ELFMAG`, `ELFCLASS64`, `ELFDATA2LSB`.
const IDENT: &[u8] = b"\x7fELF\x02\x01";
const SHT_NOTE: u32 = 7;

/// Why a library does not tell for which drivers it is.
#[derive(Debug, Error)]
pub enum Error {
    /// Reading failed.
    #[error("cannot read {what}")]
    Read {
        /// The part of the file.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A text, a library of 32 bits or of the other byte order, or nothing at all.
    #[error("it is not an ELF file of 64 bits, little-endian")]
    NotElf,
    /// Something lies outside the file or outside its section.
    #[error("{what} at byte {offset} is cut short")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where, in bytes from the start of the file.
        offset: u64,
    },
    /// More than [`LIMIT`] bytes.
    #[error("{what} comes to {size} bytes, more than {limit}")]
    TooLarge {
        /// What was to be read.
        what: &'static str,
        /// In bytes, as the file says.
        size: u64,
        /// In bytes.
        limit: u64,
    },
    /// A section header of another size than ELF's, or no section of names where it says that one is.
    #[error("its section headers are malformed")]
    Sections,
    /// The description is not the JSON object that it should be. The parser's words would quote the image.
    #[error("its note on CUDA compatibility is malformed at line {line}, column {column}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// In bytes, as serde_json counts them.
        column: usize,
    },
    /// A note of another format than 1, the only one known.
    #[error("its note on CUDA compatibility is of format {format}")]
    Format {
        /// What it says.
        format: u32,
    },
    /// A CUDA version that is not two numbers with a dot between.
    #[error("its note on CUDA compatibility has no CUDA version of the form MAJOR.MINOR")]
    Version,
}

/// What a library says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note {
    /// The branches of the host's driver that it runs with, by their major numbers (`580`). Empty if it does not say.
    pub drivers: Vec<u32>,
    /// The CUDA version that it brings, major and minor, if it says.
    pub cuda: Option<(u32, u32)>,
}

/// The description's text. Nothing but NVIDIA's own reader (`cudacompat` in nvidia-container-toolkit) documents it.
#[derive(Deserialize)]
struct Description {
    #[serde(rename = "Format")]
    format: Option<u32>,
    #[serde(rename = "CUDA Version")]
    cuda: Option<String>,
    #[serde(rename = "Driver", default)]
    drivers: Option<Vec<u32>>,
}

/// Reads the note of a library. `None` if it has none, as older ones, or one of another owner's.
///
/// # Errors
/// When it is no library of this kind of machine, cannot be read, or contradicts itself.
pub fn read(file: &impl FileExt) -> Result<Option<Note>, Error> {
    let Some((offset, size)) = find(file)? else { return Ok(None) };
    let section = block(file, "the note", offset, size)?;
    description(&section, offset)?.map(parse).transpose()
}

/// Where the section lies and how many bytes it has.
fn find(file: &impl FileExt) -> Result<Option<(u64, u64)>, Error> {
    let mut header = [0; ELF_HEADER];
    match read_exact(file, &mut header, "the ELF header", 0) {
        Err(Error::Truncated { .. }) => return Err(Error::NotElf),
        read => read?,
    }
    if !header.starts_with(IDENT) {
        return Err(Error::NotElf);
    }
    let header = Bytes(&header);
    let [at, size, count, names] = [header.u64(40), header.u16(58), header.u16(60), header.u16(62)];
    // With 0xff00 sections and more the count is 0 and stands elsewhere; no library comes near.
    if at == 0 || count == 0 {
        return Ok(None);
    }
    if size != SECTION_HEADER as u64 {
        return Err(Error::Sections);
    }
    let headers = block(file, "the list of sections", at, count * size)?;
    let mut sections = headers.chunks_exact(SECTION_HEADER).map(Bytes);
    let place = |section: Bytes<'_>| (section.u64(24), section.u64(32));
    let (names_at, names_size) = sections.clone().nth(names as usize).map(place).ok_or(Error::Sections)?;
    let names = block(file, "the names of the sections", names_at, names_size)?;
    let is_it = |section: &Bytes<'_>| {
        let name = names.get(section.u32(0) as usize..).and_then(|rest| rest.split(|&byte| byte == 0).next());
        section.u32(4) == SHT_NOTE && name == Some(SECTION)
    };
    Ok(sections.find(is_it).map(place))
}

/// The description of the section's first note without its padding, if the note is NVIDIA's.
///
/// Name and description are padded with NULs to the section's alignment, which linkers count from the note's start,
/// NVIDIA's reader from the name's, and the libraries for Orin past the section's end. The text holds no NUL, so it is
/// found without counting.
fn description(section: &[u8], offset: u64) -> Result<Option<&[u8]>, Error> {
    let truncated = || Error::Truncated { what: "the note", offset };
    let (header, rest) = section.split_at_checked(NOTE_HEADER).ok_or_else(truncated)?;
    let [name_size, size] = [0, 4].map(|at| Bytes(header).u32(at) as usize);
    let (name, rest) = rest.split_at_checked(name_size).ok_or_else(truncated)?;
    if without_padding(name) != OWNER || size == 0 {
        return Ok(None);
    }
    let start = rest.iter().take_while(|&&byte| byte == 0).count();
    let text = &rest[start..];
    Ok(Some(without_padding(&text[..text.len().min(size)])))
}

fn parse(text: &[u8]) -> Result<Note, Error> {
    let description: Description = serde_json::from_slice(text)
        .map_err(|error| Error::Json { line: error.line(), column: error.column() })?;
    if let Some(format) = description.format.filter(|&format| format != FORMAT) {
        return Err(Error::Format { format });
    }
    let version = |text: String| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let cuda = description.cuda.map(|text| version(text).ok_or(Error::Version)).transpose()?;
    Ok(Note { drivers: description.drivers.unwrap_or_default(), cuda })
}

fn without_padding(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

fn block(file: &impl FileExt, what: &'static str, offset: u64, size: u64) -> Result<Vec<u8>, Error> {
    if size > LIMIT {
        return Err(Error::TooLarge { what, size, limit: LIMIT });
    }
    let mut bytes = vec![0; size as usize];
    read_exact(file, &mut bytes, what, offset)?;
    Ok(bytes)
}

fn read_exact(file: &impl FileExt, bytes: &mut [u8], what: &'static str, offset: u64) -> Result<(), Error> {
    // pread(2) takes a signed offset and would say that its argument is invalid.
    if i64::try_from(offset).is_err() {
        return Err(Error::Truncated { what, offset });
    }
    file.read_exact_at(bytes, offset).map_err(|source| match source.kind() {
        ErrorKind::UnexpectedEof => Error::Truncated { what, offset },
        _ => Error::Read { what, source },
    })
}

/// A header: fixed in size, so that what lies beyond it would be a mistake in this file and reads as 0.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u16(self, at: usize) -> u64 {
        self.number(at, 2)
    }

    fn u32(self, at: usize) -> u32 {
        self.number(at, 4) as u32
    }

    fn u64(self, at: usize) -> u64 {
        self.number(at, 8)
    }

    fn number(self, at: usize, size: usize) -> u64 {
        let bytes = self.0.get(at..at + size).unwrap_or_default();
        bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    }
}

#[cfg(test)]
mod tests;
