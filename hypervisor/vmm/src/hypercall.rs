//! Decoding of hypercalls: from registers to typed calls. Nothing is carried out here.
//!
//! Convention: number in RAX, arguments in RDI, RSI, RDX, R10, R8 (`guest_abi::hypercall`). All calls are for CPL 0; from
//! CPL 3 every number, known or not, answers `EPERM`, so that user programs learn nothing.

use guest_abi::hypercall::{
    CONSOLE_EVENT, CONSOLE_TEXT, FORGET_DOORBELLS, FORGET_REGION, FORGET_VCPU, MAX_CONSOLE_BYTES,
    MAX_TIMEOUT_NS, YIELD_TO_ANY,
};
use guest_abi::process::{CHILD_ANY, KILL_NOW};
use guest_abi::{Errno, Number};
use nagaya_mem::Gva;

use crate::cpu::CodeSize;

/// The registers of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// RAX.
    pub number: u64,
    /// RDI, RSI, RDX, R10, R8.
    pub arguments: [u64; 5],
}

impl Registers {
    /// What of them code of that size passes: outside 64-bit code the lower halves, whatever a 64-bit kernel has left above them.
    /// Where the argument is signed, or its all ones mean something, it is extended by its sign.
    #[inline]
    #[must_use]
    pub fn taken_by(self, size: CodeSize) -> Registers {
        if size == CodeSize::Bits64 {
            return self;
        }
        let mut taken = Registers {
            number: size.operand(self.number),
            arguments: self.arguments.map(|argument| size.operand(argument)),
        };
        let is_signed = |number: Number| taken.number == number as u64;
        if is_signed(Number::Exit) || is_signed(Number::YieldTo) || is_signed(Number::WaitChild) {
            let [first, ..] = &mut taken.arguments;
            *first = i64::from(*first as i32) as u64;
        }
        taken
    }
}

/// Where console output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    /// Lines for people.
    Text,
    /// One event for programs.
    Event,
}

/// A well-formed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Map the group's region.
    MapShared {
        /// First page.
        va: Gva,
    },
    /// The ABI's version.
    Version,
    /// Copy the group's description out.
    GroupInfo {
        /// Where to.
        buffer: Gva,
    },
    /// Give the caller's own frames back.
    UnmapShared {
        /// Where the caller had mapped.
        va: Gva,
    },
    /// Ring a member.
    Doorbell {
        /// As [`guest_abi::group::life`] names it.
        member: u64,
    },
    /// Ring several members.
    DoorbellMaskMany {
        /// A bit for each.
        members: u64,
    },
    /// Have a HLT take the events that are pending when it ends, and tell them.
    HaltEvents {
        /// Or not any more.
        wanted: bool,
    },
    /// Block until a doorbell.
    Wait {
        /// At most that long; 0 polls.
        timeout_ns: u64,
    },
    /// Let another vCPU run.
    YieldTo {
        /// That of this member, named likewise, rather than others.
        member: Option<u64>,
    },
    /// End the VM.
    Exit {
        /// With that code.
        code: i64,
    },
    /// Write output.
    Console {
        /// Where it lies.
        buffer: Gva,
        /// How long it is: at most [`MAX_CONSOLE_BYTES`].
        bytes: usize,
        /// Where it goes.
        channel: Channel,
    },
    /// Start a further vCPU.
    StartVcpu {
        /// Its index, not 0.
        index: u32,
        /// Where it begins.
        entry: Gva,
        /// Its RSP.
        stack: Gva,
        /// Its RDI.
        argument: u64,
    },
    /// Refuse or take doorbells.
    DoorbellMask {
        /// Refuse.
        masked: bool,
    },
    /// Deliver doorbells as interrupts.
    DoorbellVector {
        /// With that vector; `None` stops it.
        vector: Option<u8>,
    },
    /// Wake a halted vCPU.
    SetDeadline {
        /// At that TSC value; `None` for never.
        tsc: Option<u64>,
    },
    /// Take back what earlier software has left.
    Forget(Forget),
    /// Make a VM that is as this one is.
    Fork,
    /// Block until a child has ended.
    WaitChild {
        /// That one; `None` for any.
        child: Option<u64>,
        /// At most that long; 0 polls.
        timeout_ns: u64,
        /// Where its status goes.
        buffer: Gva,
    },
    /// End a descendant.
    Kill {
        /// Its number.
        vm: u64,
    },
    /// The caller's number.
    VmSelf,
    /// Its parent's number.
    Parent,
    /// The numbers of its children.
    Children {
        /// Where they go.
        buffer: Gva,
        /// How many there is room for.
        most: usize,
    },
}

/// What `forget` takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forget {
    /// Where the region is mapped.
    pub region: bool,
    /// How doorbells come.
    pub doorbells: bool,
    /// What is the calling vCPU's alone.
    pub vcpu: bool,
}

/// Bytes of `guest_abi::GroupInfo`: what `group_info` needs room for.
const GROUP_INFO_BYTES: u64 = size_of::<guest_abi::GroupInfo>() as u64;

/// Most numbers that one `children` call copies.
const MAX_NUMBERS: u64 = crate::config::MAX_CHILDREN as u64;

fn canonical(raw: u64) -> Result<Gva, Errno> {
    let address = Gva::new(raw);
    if address.is_canonical() {
        Ok(address)
    } else {
        Err(Errno::Inval)
    }
}

/// Decodes a call from privilege level `cpl`.
///
/// # Errors
/// `EPERM` from CPL other than 0; `ENOSYS` for a number that is not there; `EINVAL` for an argument that no guest state
/// could make right.
#[inline]
pub fn decode(registers: Registers, cpl: u8) -> Result<Call, Errno> {
    if cpl != 0 {
        return Err(Errno::Perm);
    }
    // The cheapest call first: it is what a null hypercall measures.
    if registers.number == Number::Version as u64 {
        return Ok(Call::Version);
    }
    decode_rest(registers)
}

fn decode_rest(registers: Registers) -> Result<Call, Errno> {
    let [first, second, third, fourth, _] = registers.arguments;
    Ok(
        match Number::from_rax(registers.number).ok_or(Errno::NoSys)? {
            Number::MapShared => Call::MapShared {
                va: canonical(first)?,
            },
            Number::Version => Call::Version,
            Number::GroupInfo if second < GROUP_INFO_BYTES => return Err(Errno::Inval),
            Number::GroupInfo => Call::GroupInfo {
                buffer: canonical(first)?,
            },
            Number::UnmapShared => Call::UnmapShared {
                va: canonical(first)?,
            },
            Number::Doorbell => Call::Doorbell { member: first },
            Number::DoorbellMaskMany if first >> guest_abi::MAX_MEMBERS != 0 => {
                return Err(Errno::Inval);
            }
            Number::DoorbellMaskMany => Call::DoorbellMaskMany { members: first },
            Number::Wait => Call::Wait {
                timeout_ns: first.min(MAX_TIMEOUT_NS),
            },
            Number::YieldTo => Call::YieldTo {
                member: (first != YIELD_TO_ANY).then_some(first),
            },
            Number::Exit => Call::Exit { code: first as i64 },
            Number::Console => {
                if second > MAX_CONSOLE_BYTES {
                    return Err(Errno::Inval);
                }
                let channel = match third {
                    CONSOLE_TEXT => Channel::Text,
                    CONSOLE_EVENT => Channel::Event,
                    _ => return Err(Errno::Inval),
                };
                Call::Console {
                    buffer: canonical(first)?,
                    bytes: second as usize,
                    channel,
                }
            }
            Number::StartVcpu => Call::StartVcpu {
                index: u32::try_from(first)
                    .ok()
                    .filter(|index| *index != 0)
                    .ok_or(Errno::Inval)?,
                entry: canonical(second)?,
                stack: canonical(third)?,
                argument: fourth,
            },
            Number::DoorbellMask => match first {
                0 => Call::DoorbellMask { masked: false },
                1 => Call::DoorbellMask { masked: true },
                _ => return Err(Errno::Inval),
            },
            Number::DoorbellVector => match first {
                0 => Call::DoorbellVector { vector: None },
                32..=255 => Call::DoorbellVector {
                    vector: Some(first as u8),
                },
                _ => return Err(Errno::Inval),
            },
            Number::HaltEvents => match first {
                0 => Call::HaltEvents { wanted: false },
                1 => Call::HaltEvents { wanted: true },
                _ => return Err(Errno::Inval),
            },
            Number::SetDeadline => Call::SetDeadline {
                tsc: (first != 0).then_some(first),
            },
            Number::Forget if first & !(FORGET_REGION | FORGET_DOORBELLS | FORGET_VCPU) != 0 => {
                return Err(Errno::Inval);
            }
            Number::Fork if first != 1 || second != 0 => return Err(Errno::Inval),
            Number::Fork => Call::Fork,
            Number::WaitChild => Call::WaitChild {
                child: (first != CHILD_ANY).then_some(first),
                timeout_ns: second.min(MAX_TIMEOUT_NS),
                buffer: canonical(third)?,
            },
            Number::Kill if second != KILL_NOW => return Err(Errno::Inval),
            Number::Kill => Call::Kill { vm: first },
            Number::VmSelf => Call::VmSelf,
            Number::Parent => Call::Parent,
            Number::Children => Call::Children {
                buffer: canonical(first)?,
                most: (second / size_of::<u32>() as u64).min(MAX_NUMBERS) as usize,
            },
            Number::Forget => Call::Forget(Forget {
                region: first & FORGET_REGION != 0,
                doorbells: first & FORGET_DOORBELLS != 0,
                vcpu: first & FORGET_VCPU != 0,
            }),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: u64, arguments: [u64; 5]) -> Result<Call, Errno> {
        decode(Registers { number, arguments }, 0)
    }

    #[test]
    fn user_mode_gets_eperm_for_every_number() {
        for number in [0, 39, 0x100, 0x106, u64::MAX] {
            assert_eq!(
                decode(
                    Registers {
                        number,
                        arguments: [0; 5]
                    },
                    3
                ),
                Err(Errno::Perm)
            );
        }
    }

    #[test]
    fn unknown_numbers_are_enosys() {
        let beyond = Number::ALL
            .map(|number| number as u64)
            .into_iter()
            .max()
            .unwrap_or(0)
            + 1;
        for number in [0, 38, 40, beyond, u64::MAX] {
            assert_eq!(call(number, [0; 5]), Err(Errno::NoSys), "{number:#x}");
        }
    }

    #[test]
    fn addresses_outside_the_canonical_ranges_are_einval() {
        let odd = 0x0000_8000_0000_0000;
        assert_eq!(call(39, [odd, 0, 0, 0, 0]), Err(Errno::Inval));
        assert_eq!(call(0x107, [odd, 1, 0, 0, 0]), Err(Errno::Inval));
        assert_eq!(call(0x108, [1, odd, 0, 0, 0]), Err(Errno::Inval));
        assert_eq!(call(0x108, [1, 0, odd, 0, 0]), Err(Errno::Inval));
    }

    #[test]
    fn arguments_out_of_range_are_einval() {
        assert_eq!(
            call(0x101, [0x1000, GROUP_INFO_BYTES - 1, 0, 0, 0]),
            Err(Errno::Inval)
        );
        assert_eq!(
            call(0x107, [0x1000, MAX_CONSOLE_BYTES + 1, 0, 0, 0]),
            Err(Errno::Inval)
        );
        assert_eq!(call(0x107, [0x1000, 1, 2, 0, 0]), Err(Errno::Inval));
        assert_eq!(call(0x108, [0, 0x1000, 0x1000, 0, 0]), Err(Errno::Inval));
        assert_eq!(call(0x109, [2, 0, 0, 0, 0]), Err(Errno::Inval));
        assert_eq!(call(0x10A, [31, 0, 0, 0, 0]), Err(Errno::Inval));
        assert_eq!(call(0x10A, [256, 0, 0, 0, 0]), Err(Errno::Inval));
    }

    #[test]
    fn every_number_decodes_with_plain_arguments() {
        for number in Number::ALL {
            let arguments = match number {
                Number::GroupInfo => [0x1000, GROUP_INFO_BYTES, 0, 0, 0],
                Number::StartVcpu => [1, 0x1000, 0x2000, 9, 0],
                Number::DoorbellVector => [32, 0, 0, 0, 0],
                _ => [1, 0, 0, 0, 0],
            };
            assert!(call(number as u64, arguments).is_ok(), "{number:?}");
        }
    }

    #[test]
    fn only_members_are_rung_together() {
        let call = |members| {
            let registers = Registers {
                number: Number::DoorbellMaskMany as u64,
                arguments: [members, 0, 0, 0, 0],
            };
            decode(registers, 0)
        };
        let all = (1 << guest_abi::MAX_MEMBERS) - 1;
        assert_eq!(call(all), Ok(Call::DoorbellMaskMany { members: all }));
        assert_eq!(call(0), Ok(Call::DoorbellMaskMany { members: 0 }));
        assert_eq!(call(all + 1), Err(Errno::Inval));
        assert_eq!(call(u64::MAX), Err(Errno::Inval));
    }

    #[test]
    fn outside_64_bit_code_the_upper_halves_do_not_count() {
        const ABOVE: u64 = 0x1234_5678 << 32;
        let registers = |number: u64, first: u64| Registers {
            number: ABOVE | number,
            arguments: [ABOVE | first; 5],
        };
        let code = |number, first, size| decode(registers(number, first).taken_by(size), 0);
        for size in [CodeSize::Bits32, CodeSize::Bits16] {
            assert_eq!(code(0x100, 0, size), Ok(Call::Version));
            assert_eq!(
                code(0x109, 1, size),
                Ok(Call::DoorbellMask { masked: true })
            );
            let all = u64::from(u32::MAX);
            assert_eq!(code(0x105, all, size), Ok(Call::YieldTo { member: None }));
            assert_eq!(code(0x106, all, size), Ok(Call::Exit { code: -1 }));
        }
        assert_eq!(code(0x100, 0, CodeSize::Bits64), Err(Errno::NoSys));
    }

    #[test]
    fn what_an_argument_is_refused_with_stands_in_the_table() {
        let values = [
            0,
            1,
            2,
            31,
            256,
            4097,
            0x1000,
            0x0000_8000_0000_0000,
            u64::MAX,
        ];
        for number in Number::ALL {
            let errors = number.description().errors;
            for first in values {
                for second in values {
                    for third in values {
                        if let Err(errno) = call(number as u64, [first, second, third, 0, 0]) {
                            assert!(
                                errors.iter().any(|(known, _)| *known == errno),
                                "{number:?}: {errno}"
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn one_child_is_made_by_a_call_and_any_is_waited_for_by_all_ones() {
        assert_eq!(call(0x110, [1, 0, 0, 0, 0]), Ok(Call::Fork));
        for wrong in [[0, 0], [2, 0], [1, 1], [u64::MAX, 0]] {
            let arguments = [wrong[0], wrong[1], 0, 0, 0];
            assert_eq!(call(0x110, arguments), Err(Errno::Inval));
        }
        let wait = |child| Call::WaitChild {
            child,
            timeout_ns: 5,
            buffer: Gva::new(0x1000),
        };
        assert_eq!(call(0x111, [u64::MAX, 5, 0x1000, 0, 0]), Ok(wait(None)));
        assert_eq!(call(0x111, [7, 5, 0x1000, 0, 0]), Ok(wait(Some(7))));
        assert_eq!(call(0x112, [7, 0, 0, 0, 0]), Ok(Call::Kill { vm: 7 }));
        assert_eq!(call(0x112, [7, 1, 0, 0, 0]), Err(Errno::Inval));
    }

    #[test]
    fn a_timeout_beyond_the_limit_is_cut() {
        assert_eq!(
            call(0x104, [u64::MAX, 0, 0, 0, 0]),
            Ok(Call::Wait {
                timeout_ns: MAX_TIMEOUT_NS
            })
        );
    }
}
