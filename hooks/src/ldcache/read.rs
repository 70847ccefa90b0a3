//! Reading a library cache, trusting none of it.

use std::cmp::Ordering;

use super::{
    Cache, ENTRY, EXTENSION_HEADER, EXTENSION_MAGIC, Entry, Error, GENERATOR, GLIBC_HWCAPS, HEADER, LIMIT,
    LITTLE_ENDIAN, MAGIC, OLD_ENTRY, OLD_HEADER, OLD_MAGIC, SECTION, compare,
};

/// `PATH_MAX`: no name or path of a library is longer.
const STRING_LIMIT: usize = 4096;

const COUNT: &str = "the number of libraries";
const LIST: &str = "the list of libraries";
const LIBRARY: &str = "a library";

impl<'a> Cache<'a> {
    /// Reads a cache. Sections of the extension directory that glibc does not know yet are left out: they might hold
    /// offsets that writing would have to move.
    ///
    /// # Errors
    /// Whatever the loader would reject, and what would mislead it: a string outside the file, entries out of order.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        if bytes.len() > LIMIT {
            return Err(Error::TooLarge { limit: LIMIT });
        }
        let file = File(bytes);
        let cache = match file.table()? {
            Table::New(at) => Self::parse_new(file, at)?,
            Table::Old(count) => Self::parse_old(file, count)?,
        };
        let climbs = |pair: &[Entry<'_>]| compare(pair[0].name, pair[1].name) == Ordering::Less;
        if let Some(index) = cache.entries.windows(2).position(climbs) {
            return Err(Error::Unsorted { index: index + 1 });
        }
        Ok(cache)
    }

    /// The format of glibc 2.2 and later, from the byte `base` on.
    fn parse_new(file: File<'a>, base: usize) -> Result<Self, Error> {
        let table = File(&file.0[base..]);
        if !matches!(table.0.get(28).map(|flags| flags & 3), Some(0 | LITTLE_ENDIAN)) {
            return Err(Error::ByteOrder);
        }
        let count = table.u32(COUNT, 20)?;
        // Offsets of libraries' strings count from the table, all those of the extensions from the file.
        let mut strings = Strings { table, spent: 0 };
        let mut cache = Self { entries: Vec::new(), hwcaps: Vec::new(), generator: b"" };
        match table.u32("the place of the extensions", 32)? {
            0 => {}
            at => cache.read_extensions(file, at, &mut strings)?,
        }
        // The whole list is there before anything is reserved for it.
        let entries = table.slice(LIST, HEADER, count.saturating_mul(ENTRY))?;
        strings.spend(HEADER + entries.len())?;
        let entries = entries.chunks_exact(ENTRY).map(|entry| strings.entry(File(entry)));
        cache.entries = entries.collect::<Result<_, _>>()?;
        Ok(cache)
    }

    /// The format before that, alone: `struct cache_file`. Its strings are counted from the end of the list, and a
    /// library has neither kernel version nor `hwcap`.
    fn parse_old(file: File<'a>, count: usize) -> Result<Self, Error> {
        let size = count.saturating_mul(OLD_ENTRY);
        let entries = file.slice(LIST, OLD_HEADER, size)?;
        let mut strings = Strings { table: File(&file.0[OLD_HEADER + size..]), spent: 0 };
        strings.spend(HEADER + count * ENTRY)?;
        let entries = entries.chunks_exact(OLD_ENTRY).map(|entry| strings.old_entry(File(entry)));
        Ok(Self { entries: entries.collect::<Result<_, _>>()?, hwcaps: Vec::new(), generator: b"" })
    }

    fn read_extensions(&mut self, file: File<'a>, at: usize, strings: &mut Strings<'a>) -> Result<(), Error> {
        let malformed = Error::Extension { offset: at };
        if !at.is_multiple_of(4) || file.u32("the extension directory", at)? != EXTENSION_MAGIC as usize {
            return Err(malformed);
        }
        let count = file.u32("the extension directory", at + 4)?;
        let sections =
            file.slice("the extension directory", at + EXTENSION_HEADER, count.saturating_mul(SECTION))?;
        for section in sections.chunks_exact(SECTION).map(File) {
            let [tag, offset, size] =
                [0, 8, 12].map(|at| section.u32("an extension", at).unwrap_or_default());
            let data = file.slice("an extension", offset, size)?;
            if tag == GENERATOR as usize {
                strings.spend(data.len())?;
                self.generator = data;
            } else if tag == GLIBC_HWCAPS as usize {
                // As the loader counts them. ldconfig counts from the table: behind the older format its names are
                // lost on the loader, which then takes no library of such a subdirectory, and so it stays.
                let names =
                    data.chunks_exact(4).map(|at| strings.string(file, File(at).u32("a subdirectory", 0)?));
                self.hwcaps = names.collect::<Result<_, _>>()?;
            }
        }
        Ok(())
    }
}

/// The list of libraries that the loader goes by.
enum Table {
    /// The newer format, from this byte on.
    New(usize),
    /// The older format alone, with so many libraries.
    Old(usize),
}

/// Bytes to read from at any offset.
#[derive(Clone, Copy)]
struct File<'a>(&'a [u8]);

impl<'a> File<'a> {
    /// Finds the newer format, at once or aligned to 8 bytes behind the older one, which the loader then does not look
    /// at. Where its header is cut short, the loader goes by the older one.
    fn table(self) -> Result<Table, Error> {
        if self.0.starts_with(MAGIC) {
            return Ok(Table::New(0));
        }
        if !self.0.starts_with(OLD_MAGIC) {
            return Err(Error::Magic);
        }
        let count = self.u32(COUNT, OLD_HEADER - 4)?;
        let at = OLD_HEADER.saturating_add(count.saturating_mul(OLD_ENTRY)).next_multiple_of(8);
        let is_there = |rest: &[u8]| rest.starts_with(MAGIC) && rest.len() >= HEADER;
        let is_there = self.0.get(at..).is_some_and(is_there);
        Ok(if is_there { Table::New(at) } else { Table::Old(count) })
    }

    fn slice(self, what: &'static str, offset: usize, size: usize) -> Result<&'a [u8], Error> {
        let end = offset.checked_add(size);
        end.and_then(|end| self.0.get(offset..end)).ok_or(Error::Truncated { what, offset })
    }

    /// A number, widened for use as an offset or a count.
    fn u32(self, what: &'static str, offset: usize) -> Result<usize, Error> {
        let bytes = self.slice(what, offset, 4)?;
        Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | usize::from(byte)))
    }
}

/// The strings of a cache, with what writing it again would come to, in bytes: entries may share a string, and without
/// a bound a small file could stand for a very large one.
struct Strings<'a> {
    table: File<'a>,
    spent: usize,
}

impl<'a> Strings<'a> {
    fn at(&mut self, offset: usize) -> Result<&'a [u8], Error> {
        self.string(self.table, offset)
    }

    fn string(&mut self, base: File<'a>, offset: usize) -> Result<&'a [u8], Error> {
        let rest = base.0.get(offset..).ok_or(Error::Truncated { what: "a string", offset })?;
        let rest = &rest[..rest.len().min(STRING_LIMIT)];
        let length = rest.iter().position(|&byte| byte == 0).ok_or(Error::Unterminated { offset })?;
        self.spend(length + 1)?;
        Ok(&rest[..length])
    }

    fn spend(&mut self, size: usize) -> Result<(), Error> {
        self.spent = self.spent.saturating_add(size);
        if self.spent > LIMIT { Err(Error::TooLarge { limit: LIMIT }) } else { Ok(()) }
    }

    fn entry(&mut self, entry: File<'_>) -> Result<Entry<'a>, Error> {
        let word = |at| entry.u32(LIBRARY, at);
        let older = self.old_entry(entry)?;
        let hwcap = word(16)? as u64 | (word(20)? as u64) << 32;
        Ok(Entry { osversion: word(12)? as u32, hwcap, ..older })
    }

    /// What a library has in both formats, at the same place.
    fn old_entry(&mut self, entry: File<'_>) -> Result<Entry<'a>, Error> {
        let word = |at| entry.u32(LIBRARY, at);
        let (flags, name, path) = (word(0)? as u32, self.at(word(4)?)?, self.at(word(8)?)?);
        Ok(Entry { flags, name, path, osversion: 0, hwcap: 0 })
    }
}
