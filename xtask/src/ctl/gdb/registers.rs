//! A vCPU's registers as GDB lays them out.
//!
//! What the control port does not tell (x87) is "unavailable" to GDB. Source: GDB's manual, "Standard Target Features", "i386
//! Features".

use gdbstub::arch::{Arch, Registers};
use nagaya_vmm::control::{self, CoreRegisters};

/// x86 in 64-bit mode, with control registers.
#[derive(Debug)]
pub(super) enum X86 {}

/// GDB's order of the general registers, by their number in instructions: RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
const GENERAL: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
/// GDB's order of the segment registers, by their number in instructions: CS, SS, DS, ES, FS, GS.
const SEGMENTS: [usize; 6] = [1, 2, 3, 0, 4, 5];
/// Eight of 10 bytes and eight of 4: ST0 to ST7, and the x87's control registers.
const X87_BYTES: usize = 8 * 10 + 8 * 4;

/// Generated once, since GDB wants it from a function without arguments.
const DESCRIPTION: &str = concat!(
    r#"<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">"#,
    r#"<architecture>i386:x86-64</architecture><feature name="org.gnu.gdb.i386.core">"#,
    r#"<reg name="rax" bitsize="64" type="int64" regnum="0"/><reg name="rbx" bitsize="64" type="int64"/>"#,
    r#"<reg name="rcx" bitsize="64" type="int64"/><reg name="rdx" bitsize="64" type="int64"/>"#,
    r#"<reg name="rsi" bitsize="64" type="int64"/><reg name="rdi" bitsize="64" type="int64"/>"#,
    r#"<reg name="rbp" bitsize="64" type="data_ptr"/><reg name="rsp" bitsize="64" type="data_ptr"/>"#,
    r#"<reg name="r8" bitsize="64" type="int64"/><reg name="r9" bitsize="64" type="int64"/>"#,
    r#"<reg name="r10" bitsize="64" type="int64"/><reg name="r11" bitsize="64" type="int64"/>"#,
    r#"<reg name="r12" bitsize="64" type="int64"/><reg name="r13" bitsize="64" type="int64"/>"#,
    r#"<reg name="r14" bitsize="64" type="int64"/><reg name="r15" bitsize="64" type="int64"/>"#,
    r#"<reg name="rip" bitsize="64" type="code_ptr"/><reg name="eflags" bitsize="32" type="int32"/>"#,
    r#"<reg name="cs" bitsize="32" type="int32"/><reg name="ss" bitsize="32" type="int32"/>"#,
    r#"<reg name="ds" bitsize="32" type="int32"/><reg name="es" bitsize="32" type="int32"/>"#,
    r#"<reg name="fs" bitsize="32" type="int32"/><reg name="gs" bitsize="32" type="int32"/>"#,
    r#"<reg name="st0" bitsize="80" type="i387_ext"/><reg name="st1" bitsize="80" type="i387_ext"/>"#,
    r#"<reg name="st2" bitsize="80" type="i387_ext"/><reg name="st3" bitsize="80" type="i387_ext"/>"#,
    r#"<reg name="st4" bitsize="80" type="i387_ext"/><reg name="st5" bitsize="80" type="i387_ext"/>"#,
    r#"<reg name="st6" bitsize="80" type="i387_ext"/><reg name="st7" bitsize="80" type="i387_ext"/>"#,
    r#"<reg name="fctrl" bitsize="32" type="int" group="float"/><reg name="fstat" bitsize="32" type="int" group="float"/>"#,
    r#"<reg name="ftag" bitsize="32" type="int" group="float"/><reg name="fiseg" bitsize="32" type="int" group="float"/>"#,
    r#"<reg name="fioff" bitsize="32" type="int" group="float"/><reg name="foseg" bitsize="32" type="int" group="float"/>"#,
    r#"<reg name="fooff" bitsize="32" type="int" group="float"/><reg name="fop" bitsize="32" type="int" group="float"/>"#,
    r#"</feature><feature name="org.gnu.gdb.i386.segments">"#,
    r#"<reg name="fs_base" bitsize="64" type="int"/><reg name="gs_base" bitsize="64" type="int"/>"#,
    r#"</feature><feature name="nagaya.control">"#,
    r#"<reg name="cr0" bitsize="64" type="int"/><reg name="cr2" bitsize="64" type="int"/>"#,
    r#"<reg name="cr3" bitsize="64" type="int"/><reg name="cr4" bitsize="64" type="int"/>"#,
    r#"<reg name="efer" bitsize="64" type="int"/></feature></target>"#,
);

impl Arch for X86 {
    type Usize = u64;
    type Registers = GdbRegisters;
    type BreakpointKind = usize;
    type RegId = ();

    fn target_description_xml() -> Option<&'static str> {
        Some(DESCRIPTION)
    }
}

/// A vCPU's registers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct GdbRegisters(pub(super) control::Registers);

/// Takes little-endian numbers from the front of bytes.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn number(&mut self, bytes: usize) -> Result<u64, ()> {
        let (front, rest) = self.0.split_at_checked(bytes).ok_or(())?;
        self.0 = rest;
        let mut all = [0; 8];
        all.get_mut(..bytes).ok_or(())?.copy_from_slice(front);
        Ok(u64::from_le_bytes(all))
    }
}

impl GdbRegisters {
    /// What of them can be set.
    pub(super) fn core(&self) -> CoreRegisters {
        CoreRegisters {
            general: self.0.general,
            rip: self.0.rip,
            rflags: self.0.rflags,
        }
    }
}

impl Registers for GdbRegisters {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        self.0.rip
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        let registers = &self.0;
        let mut write = |value: u64, bytes: usize| {
            let all = value.to_le_bytes();
            all.into_iter()
                .take(bytes)
                .for_each(|byte| write_byte(Some(byte)));
        };
        for number in GENERAL {
            write(registers.general[number], 8);
        }
        write(registers.rip, 8);
        write(registers.rflags, 4);
        for number in SEGMENTS {
            write(registers.segments[number].selector.into(), 4);
        }
        (0..X87_BYTES).for_each(|_| write_byte(None));
        let mut write = |value: u64| {
            value
                .to_le_bytes()
                .into_iter()
                .for_each(|byte| write_byte(Some(byte)));
        };
        write(registers.segments[4].base);
        write(registers.segments[5].base);
        write(registers.cr0);
        write(registers.cr2);
        write(registers.cr3);
        write(registers.cr4);
        write(registers.efer);
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let mut reader = Reader(bytes);
        let registers = &mut self.0;
        for number in GENERAL {
            registers.general[number] = reader.number(8)?;
        }
        registers.rip = reader.number(8)?;
        registers.rflags = reader.number(4)?;
        for number in SEGMENTS {
            registers.segments[number].selector = reader.number(4)? as u16;
        }
        reader.0 = reader.0.get(X87_BYTES..).ok_or(())?;
        registers.segments[4].base = reader.number(8)?;
        registers.segments[5].base = reader.number(8)?;
        for register in [
            &mut registers.cr0,
            &mut registers.cr2,
            &mut registers.cr3,
            &mut registers.cr4,
            &mut registers.efer,
        ] {
            *register = reader.number(8)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whole bytes of what the description names, in its order.
    fn described_bytes() -> usize {
        DESCRIPTION
            .split("bitsize=\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next()?.parse::<usize>().ok())
            .sum::<usize>()
            / 8
    }

    #[test]
    fn what_is_sent_is_as_long_as_what_is_described_and_reads_back() {
        let mut registers = control::Registers {
            general: std::array::from_fn(|number| 0x1111_1111_1111_1111 * number as u64),
            rip: 0xFFFF_8000_1234_5678,
            rflags: 0x246,
            cr3: 0x5000,
            ..control::Registers::default()
        };
        registers.segments[4].base = 0xABCD;
        registers.segments[1].selector = 8;
        let registers = GdbRegisters(registers);
        let mut bytes = vec![];
        registers.gdb_serialize(|byte| bytes.push(byte));
        assert_eq!(bytes.len(), described_bytes());
        // RBX is second, RSP eighth.
        assert_eq!(bytes[8], Some(0x33));
        assert_eq!(bytes[7 * 8], Some(0x44));
        assert_eq!(
            bytes.iter().filter(|byte| byte.is_none()).count(),
            X87_BYTES
        );
        let plain: Vec<u8> = bytes.into_iter().map(Option::unwrap_or_default).collect();
        let mut back = GdbRegisters::default();
        assert_eq!(back.gdb_deserialize(&plain), Ok(()));
        assert_eq!(back, registers);
        assert_eq!(back.gdb_deserialize(&plain[1..]), Err(()));
    }
}
