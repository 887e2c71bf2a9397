//! What ELF files say of themselves.

use std::{fs::File, io::Read, path::Path};

use anyhow::Context;
use object::{Endianness, elf::DT_NEEDED, read::elf::ElfFile64};

/// The number that ELF gives to this machine's kind of processor (`e_machine`).
#[cfg(target_arch = "x86_64")]
pub(super) const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
pub(super) const MACHINE: u16 = 183;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
pub(super) const MACHINE: u16 = 0;

/// The libraries that a program names, in its order, as `readelf -d` shows them.
pub(crate) fn needed(program: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = fs_err::read(program)?;
    let read = || -> object::read::Result<Vec<String>> {
        let file = ElfFile64::<Endianness>::parse(&*bytes)?;
        let table = file.elf_dynamic_table()?;
        let needed = table.iter().filter(|entry| entry.tag == DT_NEEDED);
        needed
            .map(|entry| Ok(String::from_utf8_lossy(table.string(entry)?).into_owned()))
            .collect()
    };
    read().with_context(|| format!("reading what {} needs", program.display()))
}

/// Whether a file is a 64-bit ELF of this machine's kind: a directory may hold libraries of others
/// under the same names.
pub(super) fn is_of_this_machine(path: &Path) -> bool {
    let mut start = [0_u8; 20];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    let little = start[5] == 1;
    let machine = if little {
        u16::from_le_bytes([start[18], start[19]])
    } else {
        u16::from_be_bytes([start[18], start[19]])
    };
    read.is_ok() && start.starts_with(b"\x7fELF\x02") && machine == MACHINE
}
