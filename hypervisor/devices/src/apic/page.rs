//! The virtual-APIC page: what of an APIC a CPU with APIC virtualisation keeps by itself.
//!
//! The page holds IRR, ISR, TMR, TPR and PPR; the CPU delivers from it, ends interrupts in it and keeps the priorities, without
//! exits. It also has what never changes in x2APIC mode, for reading: ID, version and LDR. Everything else stays with [`LocalApic`]: interrupts that it accepts wait there until they are staged into the page.
//!
//! Source: Intel SDM volume 3, "Virtual-APIC Page", "Virtual-Interrupt Delivery", "Guest interrupt status".

use super::register::{
    ID, IN_SERVICE, LEVEL, LOGICAL_ID, REQUESTED, TASK_PRIORITY, VERSION, VERSION_VALUE,
};
use super::vectors::Vectors;
use super::{LocalApic, Trigger};

/// Memory of the page. Offsets are multiples of 16 below 4,096.
pub trait Page {
    /// Reads a register.
    fn load(&self, offset: u16) -> u32;
    /// Writes a register.
    fn store(&self, offset: u16, value: u32);
}

/// Words of a register with a bit for each vector.
const WORDS: u8 = 8;

const fn offset(register: u8) -> u16 {
    register as u16 * 16
}

fn read<P: Page>(page: &P, register: u8) -> Vectors {
    let mut vectors = Vectors::default();
    for index in 0..WORDS {
        vectors.set_word(index, page.load(offset(register + index)));
    }
    vectors
}

fn write<P: Page>(page: &P, register: u8, vectors: &Vectors) {
    for index in 0..WORDS {
        page.store(offset(register + index), vectors.word(index));
    }
}

/// The highest vector with a bit in a register.
fn highest<P: Page>(page: &P, register: u8) -> Option<u8> {
    (0..WORDS).rev().find_map(|index| {
        let word = page.load(offset(register + index));
        (word != 0).then(|| index * 32 + word.ilog2() as u8)
    })
}

fn set<P: Page>(page: &P, register: u8, vector: u8, to: bool) {
    let at = offset(register + vector / 32);
    let bit = 1 << (vector % 32);
    let word = page.load(at);
    page.store(at, if to { word | bit } else { word & !bit });
}

/// The guest interrupt status: the highest requested vector, and the highest in service above it.
pub fn status<P: Page>(page: &P) -> u16 {
    let [requested, served] = [REQUESTED, IN_SERVICE].map(|register| highest(page, register));
    u16::from_le_bytes([requested.unwrap_or(0), served.unwrap_or(0)])
}

/// The interrupt that the guest gets next, if its flags let it; `status` is as the CPU has it.
pub fn pending<P: Page>(page: &P, status: u16) -> Option<u8> {
    let [requested, served] = status.to_le_bytes();
    let task = page.load(offset(TASK_PRIORITY)) as u8;
    (requested >> 4 > (served >> 4).max(task >> 4)).then_some(requested)
}

/// The status with another vector requested.
#[must_use]
pub fn with_requested(status: u16, vector: u8) -> u16 {
    let [requested, served] = status.to_le_bytes();
    u16::from_le_bytes([requested.max(vector), served])
}

/// Takes back the interrupt that was delivered last: an exit cut its delivery short. `false` if it was another.
pub fn undo_delivery<P: Page>(page: &P, vector: u8) -> bool {
    if highest(page, IN_SERVICE) != Some(vector) {
        return false;
    }
    set(page, IN_SERVICE, vector, false);
    set(page, REQUESTED, vector, true);
    true
}

impl LocalApic {
    /// Gives interrupts and priorities to the page, in x2APIC mode: from now on the CPU keeps them.
    pub fn give_to<P: Page>(&mut self, page: &P) {
        for (register, value) in [
            (ID, self.id()),
            (VERSION, VERSION_VALUE),
            (LOGICAL_ID, self.logical_id()),
        ] {
            page.store(offset(register), value);
        }
        write(page, REQUESTED, &core::mem::take(&mut self.requested));
        write(page, IN_SERVICE, &core::mem::take(&mut self.in_service));
        write(page, LEVEL, &self.level);
        let task = core::mem::take(&mut self.task_priority);
        page.store(offset(TASK_PRIORITY), task.into());
    }

    /// Brings what has been accepted since into the page. The highest of it, which is requested now ([`with_requested`]).
    #[inline]
    pub fn stage<P: Page>(&mut self, page: &P) -> Option<u8> {
        let highest = self.requested.highest()?;
        let staged = core::mem::take(&mut self.requested);
        for index in 0..WORDS {
            let bits = staged.word(index);
            if bits != 0 {
                let at = offset(REQUESTED + index);
                page.store(at, page.load(at) | bits);
                page.store(offset(LEVEL + index), self.level.word(index));
            }
        }
        Some(highest)
    }

    /// Takes interrupts and priorities back from the page.
    pub fn take_from<P: Page>(&mut self, page: &P) {
        let _ = self.stage(page);
        self.requested = read(page, REQUESTED);
        self.in_service = read(page, IN_SERVICE);
        self.task_priority = page.load(offset(TASK_PRIORITY)) as u8;
    }

    /// Vectors whose end must exit: an I/O APIC waits for it. 64 in each word.
    #[must_use]
    pub fn ends_to_tell(&self) -> [u64; 4] {
        self.level.words()
    }

    /// How a vector was triggered last.
    #[must_use]
    pub fn trigger(&self, vector: u8) -> Trigger {
        if self.level.contains(vector) {
            Trigger::Level
        } else {
            Trigger::Edge
        }
    }
}
