//! A shared object without functions: the smallest file that a dynamic loader maps and finds a SONAME in.
//! Layout (ELF gABI, "Dynamic Linking"): header, three program headers, dynamic section, symbol table with its
//! null entry, hash table, string table; all in one writable segment, because older glibc relocates the
//! dynamic section in place.

const EHDR: u64 = 64;
const PHDR: u64 = 56;
const PHDRS: u64 = 3;
const DYN: u64 = 16;
const DYNS: u64 = 7;
const SYM: u64 = 24;
const HASH: u64 = 16;
const PAGE: u64 = 0x1000;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const PT_GNU_STACK: u32 = 0x6474_e551;
const RW: u32 = 6;

/// An ELF64 little-endian shared object of this machine's architecture with the given SONAME.
pub fn shared_object(soname: &str) -> Vec<u8> {
    let dynamic = EHDR + PHDRS * PHDR;
    let symbols = dynamic + DYNS * DYN;
    let hash = symbols + SYM;
    let strings = hash + HASH;
    let strings_size = soname.len() as u64 + 2;
    let size = strings + strings_size;

    let mut out = Bytes::default();
    // e_ident: magic, 64-bit, little-endian, current version, System V ABI
    out.raw(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.u16(3); // ET_DYN
    out.u16(if cfg!(target_arch = "aarch64") { 183 } else { 62 });
    out.u32(1);
    out.u64s(&[0, EHDR, 0]); // no entry point; program headers; no section headers
    out.u32(0);
    out.u16(64);
    out.u16(56);
    out.u16(3);
    out.u16(64);
    out.u16(0);
    out.u16(0);

    out.program_header(PT_LOAD, 0, size, PAGE);
    out.program_header(PT_DYNAMIC, dynamic, DYNS * DYN, 8);
    // Without it loaders assume an executable stack, and glibc 2.41 refuses such a library.
    out.program_header(PT_GNU_STACK, 0, 0, 16);

    // DT_SONAME, DT_HASH, DT_STRTAB, DT_SYMTAB, DT_STRSZ, DT_SYMENT, DT_NULL
    out.u64s(&[14, 1, 4, hash, 5, strings, 6, symbols, 10, strings_size, 11, SYM, 0, 0]);
    out.u64s(&[0, 0, 0]); // the null symbol
    for word in [1, 1, 0, 0] {
        out.u32(word); // one bucket, one chain, both empty
    }
    out.raw(b"\0");
    out.raw(soname.as_bytes());
    out.raw(b"\0");
    out.0
}

#[derive(Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    fn u16(&mut self, value: u16) {
        self.raw(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.raw(&value.to_le_bytes());
    }
    fn u64s(&mut self, values: &[u64]) {
        for value in values {
            self.raw(&value.to_le_bytes());
        }
    }
    fn program_header(&mut self, kind: u32, offset: u64, size: u64, align: u64) {
        self.u32(kind);
        self.u32(RW);
        self.u64s(&[offset, offset, offset, size, size, align]);
    }
}
