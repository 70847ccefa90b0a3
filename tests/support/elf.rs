//! Shared objects without functions, of either width and with or without a SONAME: what a loader's cache lists and
//! discovery reads. All parts lie in one segment: header, program headers, dynamic section, symbol table with its null
//! entry, hash table, string table (ELF gABI, "Dynamic Linking").

/// Address width of a shared object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// i386, which containers do not get.
    Bits32,
    /// x86_64.
    Bits64,
}

/// A shared object for x86, little-endian; without a SONAME if there is none.
pub fn shared_object(width: Width, soname: Option<&str>) -> Vec<u8> {
    let wide = width == Width::Bits64;
    let pick = |narrow, broad| if wide { broad } else { narrow };
    let (header, segment, word, symbol) = (pick(52, 64), pick(32, 56), pick(4, 8), pick(16, 24));
    let dynamic = header + 3 * segment;
    let symbols = dynamic + 7 * 2 * word;
    let hash = symbols + symbol;
    let strings = hash + 16;
    let name = soname.unwrap_or_default();
    let strings_size = name.len() as u64 + 2;
    let size = strings + strings_size;

    let mut out = Bytes { bytes: Vec::new(), wide };
    out.bytes.extend_from_slice(b"\x7fELF");
    out.bytes.extend_from_slice(&[if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.half(3); // ET_DYN
    out.half(if wide { 62 } else { 3 });
    out.int(1);
    out.words(&[0, header, 0]); // no entry point; program headers; no section headers
    out.int(0);
    for half in [header, segment, 3, pick(40, 64), 0, 0] {
        out.half(half);
    }
    out.segment(1, 0, size, 0x1000); // PT_LOAD
    out.segment(2, dynamic, 7 * 2 * word, word); // PT_DYNAMIC
    out.segment(0x6474_e551, 0, 0, 16); // PT_GNU_STACK
    // DT_SONAME, or DT_DEBUG, which is nothing in a file; DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_NULL
    let first = if soname.is_some() { [14, 1] } else { [21, 0] };
    out.words(&first);
    out.words(&[4, hash, 5, strings, 6, symbols, 10, strings_size, 11, symbol, 0, 0]);
    out.bytes.resize(hash as usize, 0); // the null symbol
    for int in [1, 1, 0, 0] {
        out.int(int); // one bucket, one chain, both empty
    }
    out.bytes.push(0);
    out.bytes.extend_from_slice(name.as_bytes());
    out.bytes.push(0);
    out.bytes
}

struct Bytes {
    bytes: Vec<u8>,
    wide: bool,
}

impl Bytes {
    fn half(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes()[..2]);
    }
    fn int(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes()[..4]);
    }
    fn words(&mut self, values: &[u64]) {
        let length = if self.wide { 8 } else { 4 };
        for value in values {
            self.bytes.extend_from_slice(&value.to_le_bytes()[..length]);
        }
    }
    /// Readable and writable; the flags stand in another place in each width.
    fn segment(&mut self, kind: u64, offset: u64, size: u64, align: u64) {
        self.int(kind);
        if self.wide {
            self.int(6);
        }
        self.words(&[offset, offset, offset, size, size]);
        if !self.wide {
            self.int(6);
        }
        self.words(&[align]);
    }
}
