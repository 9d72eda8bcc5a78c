//! One channel of the timer: what it would show at a time.

use serde::{Deserialize, Serialize};

use crate::state::{StateError, check};

/// Status byte of the read-back command: the output, and that the count has not been loaded yet.
pub(super) const STATUS_OUTPUT: u8 = 1 << 7;
pub(super) const STATUS_NULL: u8 = 1 << 6;
/// Which bytes of a count are written and read ("Control Word Format", RW).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Access {
    Low,
    High,
    Both,
}

/// What a channel does ("Mode Definitions").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// 0: interrupt on terminal count.
    Terminal,
    /// 1: one-shot, started by the gate.
    OneShot,
    /// 2: rate generator.
    Rate,
    /// 3: square wave.
    Square,
    /// 4: strobe, started by software.
    SoftwareStrobe,
    /// 5: strobe, started by the gate.
    HardwareStrobe,
}

impl Mode {
    /// By three bits; the first does not count in modes 2 and 3.
    const fn from_bits(bits: u8) -> Mode {
        match bits & 7 {
            0 => Mode::Terminal,
            1 => Mode::OneShot,
            2 | 6 => Mode::Rate,
            3 | 7 => Mode::Square,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        }
    }

    const fn is_periodic(self) -> bool {
        matches!(self, Mode::Rate | Mode::Square)
    }

    /// A low gate stops the counting, and that is all.
    const fn is_held_by_gate(self) -> bool {
        matches!(self, Mode::Terminal | Mode::SoftwareStrobe)
    }

    const fn starts_by_gate(self) -> bool {
        matches!(self, Mode::OneShot | Mode::HardwareStrobe)
    }
}

/// How the counting element stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Counting {
    /// No count has been loaded since the control word.
    Not,
    /// The initial count was loaded at `start`, which is not in the future.
    From { start: u64, initial: u64 },
    /// The gate has stopped it, so many clocks after it was loaded.
    Held { elapsed: u64, initial: u64 },
}

/// A count that is loaded `at` a clock to come; until then the channel goes on as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Next {
    at: u64,
    start: u64,
    initial: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Channel {
    /// The last six bits of the control word, for the status.
    control: u8,
    mode: Mode,
    access: Access,
    is_decimal: bool,
    gate: bool,
    /// What was written, 1 to 65536; 0 before that.
    written: u64,
    /// The first byte of two.
    low: Option<u8>,
    counting: Counting,
    next: Option<Next>,
    latched: Option<u16>,
    latched_status: Option<u8>,
    /// The second byte of a count is read next.
    reads_high: bool,
}

/// Clocks from `start` to `at`; `None` before it.
pub(super) const fn since(start: u64, at: u64) -> Option<u64> {
    let distance = at.wrapping_sub(start);
    if distance >> 63 == 0 {
        Some(distance)
    } else {
        None
    }
}

impl Channel {
    pub(super) fn new(gate: bool) -> Channel {
        Channel {
            control: 0,
            mode: Mode::Terminal,
            access: Access::Both,
            is_decimal: false,
            gate,
            written: 0,
            low: None,
            counting: Counting::Not,
            next: None,
            latched: None,
            latched_status: None,
            reads_high: false,
        }
    }

    /// Where the counting element turns over.
    const fn modulus(&self) -> u64 {
        if self.is_decimal { 10_000 } else { 0x1_0000 }
    }

    /// Brings a new count into force whose time has come. Everything else looks only after this.
    pub(super) fn settle(&mut self, at: u64) {
        if let Some(next) = self.next.filter(|next| since(next.at, at).is_some()) {
            self.next = None;
            let Next { start, initial, .. } = next;
            let is_held = !self.gate && self.mode.is_held_by_gate();
            self.counting = if is_held {
                let elapsed = 0;
                Counting::Held { elapsed, initial }
            } else {
                Counting::From { start, initial }
            };
        }
    }

    /// Whether its output goes up and down for ever.
    pub(super) fn is_periodic(&self) -> bool {
        self.mode.is_periodic()
    }

    /// The control word for this channel.
    pub(super) fn configure(&mut self, control: u8) {
        *self = Channel {
            control: control & 0x3F,
            mode: Mode::from_bits(control >> 1),
            access: match control >> 4 & 3 {
                1 => Access::Low,
                2 => Access::High,
                _ => Access::Both,
            },
            is_decimal: control & 1 != 0,
            ..Channel::new(self.gate)
        };
    }

    pub(super) fn write(&mut self, value: u8, at: u64) {
        let raw = match (self.access, self.low) {
            (Access::Low, _) => u16::from(value),
            (Access::High, _) => u16::from(value) << 8,
            (Access::Both, None) => {
                self.low = Some(value);
                // The first byte stops the counting, in this mode only.
                if self.mode == Mode::Terminal {
                    self.counting = Counting::Not;
                }
                return;
            }
            (Access::Both, Some(low)) => u16::from_le_bytes([low, value]),
        };
        self.low = None;
        self.written = match self.value_of(raw) {
            0 => self.modulus(),
            count => count,
        };
        self.load(at);
    }

    fn value_of(&self, raw: u16) -> u64 {
        if !self.is_decimal {
            return raw.into();
        }
        // Digits beyond 9 are nobody's; they count as they would add up.
        [12, 8, 4, 0]
            .into_iter()
            .fold(0, |value, shift| value * 10 + u64::from(raw >> shift & 0xF))
            % self.modulus()
    }

    fn raw_of(&self, count: u64) -> u16 {
        let count = count % self.modulus();
        if !self.is_decimal {
            return count as u16;
        }
        let digit = |unit: u64| (count / unit % 10) as u16;
        digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
    }

    /// A count has been written.
    fn load(&mut self, at: u64) {
        match (self.mode, self.counting) {
            (mode, _) if mode.starts_by_gate() => {}
            (
                mode,
                Counting::From {
                    start,
                    initial: old,
                },
            ) if mode.is_periodic() => {
                self.next = Some(self.follow(start, old, at));
            }
            // The gate's rise loads it.
            (mode, _) if mode.is_periodic() && !self.gate => {}
            (mode, _) => {
                if mode == Mode::Terminal {
                    // The output falls at once.
                    self.counting = Counting::Not;
                }
                self.load_soon(at);
            }
        }
    }

    /// The next clock loads the count that was written.
    fn load_soon(&mut self, at: u64) {
        let start = at.wrapping_add(1);
        self.next = Some(Next {
            at: start,
            start,
            initial: self.written,
        });
    }

    /// When a periodic channel takes its new count: at the end of the period, in mode 3 of the half.
    fn follow(&self, start: u64, old: u64, at: u64) -> Next {
        let initial = self.written;
        let elapsed = at.wrapping_sub(start);
        let position = elapsed % old;
        let begun = at.wrapping_sub(position);
        let high = old.div_ceil(2);
        if self.mode == Mode::Square && position < high && high < old {
            // The low half comes next.
            let at = begun.wrapping_add(high);
            let start = at.wrapping_sub(initial.div_ceil(2));
            Next { at, start, initial }
        } else {
            let at = begun.wrapping_add(old);
            Next {
                at,
                start: at,
                initial,
            }
        }
    }

    pub(super) fn set_gate(&mut self, gate: bool, at: u64) {
        self.settle(at);
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match (self.mode, self.counting) {
            _ if self.written == 0 => {}
            // A trigger loads anew, whatever there was.
            (mode, _) if rises && (mode.starts_by_gate() || mode.is_periodic()) => {
                self.load_soon(at);
            }
            (mode, _) if falls && mode.is_periodic() => {
                self.next = None;
                self.counting = Counting::Not;
            }
            (mode, Counting::From { start, initial }) if falls && mode.is_held_by_gate() => {
                let elapsed = at.wrapping_sub(start);
                self.counting = Counting::Held { elapsed, initial };
            }
            (_, Counting::Held { elapsed, initial }) if rises => {
                let start = at.wrapping_sub(elapsed);
                self.counting = Counting::From { start, initial };
            }
            _ => {}
        }
    }

    /// Clocks since the count was loaded, and the count. `None`: it has not been.
    fn elapsed(&self, at: u64) -> Option<(u64, u64)> {
        match self.counting {
            Counting::Not => None,
            Counting::From { start, initial } => Some((at.wrapping_sub(start), initial)),
            Counting::Held { elapsed, initial } => Some((elapsed, initial)),
        }
    }

    pub(super) fn output(&self, at: u64) -> bool {
        let elapsed = self.elapsed(at);
        match self.mode {
            Mode::Terminal => elapsed.is_some_and(|(elapsed, initial)| elapsed >= initial),
            // High before it is triggered; low until the count is over.
            Mode::OneShot => elapsed.is_none_or(|(elapsed, initial)| elapsed >= initial),
            // Low for the last clock. A count of 1 is not allowed, and does nothing.
            Mode::Rate => elapsed
                .is_none_or(|(elapsed, initial)| initial < 2 || elapsed % initial != initial - 1),
            Mode::Square => {
                elapsed.is_none_or(|(elapsed, initial)| elapsed % initial < initial.div_ceil(2))
            }
            Mode::SoftwareStrobe | Mode::HardwareStrobe => {
                elapsed.is_none_or(|(elapsed, initial)| elapsed != initial)
            }
        }
    }

    /// When the output rises next, after `at`.
    pub(super) fn next_rise(&self, at: u64) -> Option<u64> {
        if let Some(next) = self.next
            && since(next.at, at).is_none()
        {
            // Until then it goes on as it did.
            let rise = self.rise_of(self.counting, at);
            let before = rise.filter(|rise| since(next.at, *rise).is_none());
            let ends_period = self.mode.is_periodic()
                && matches!(self.counting, Counting::From { .. })
                && next.at == next.start;
            let new = Counting::From {
                start: next.start,
                initial: next.initial,
            };
            return match before {
                None if ends_period => Some(next.at),
                None => self.rise_of(new, next.at),
                before => before,
            };
        }
        self.rise_of(self.counting, at)
    }

    fn rise_of(&self, counting: Counting, at: u64) -> Option<u64> {
        let Counting::From { start, initial } = counting else {
            return None;
        };
        let rise = match self.mode {
            Mode::Rate | Mode::Square if initial < 2 => return None,
            Mode::Rate | Mode::Square => {
                let periods = at.wrapping_sub(start) / initial + 1;
                start.wrapping_add(periods.wrapping_mul(initial))
            }
            Mode::Terminal | Mode::OneShot => start.wrapping_add(initial),
            Mode::SoftwareStrobe | Mode::HardwareStrobe => start.wrapping_add(initial + 1),
        };
        since(rise, at).is_none().then_some(rise)
    }

    /// The count as it could be read.
    fn count(&self, at: u64) -> u16 {
        let count = match (self.elapsed(at), self.mode) {
            (None, _) => self.written,
            (Some((elapsed, initial)), Mode::Rate) => initial - elapsed % initial,
            (Some((elapsed, initial)), Mode::Square) => {
                // By twos in each half, from an even number.
                let position = elapsed % initial;
                let high = initial.div_ceil(2);
                let in_half = if position < high {
                    position
                } else {
                    position - high
                };
                (initial & !1).wrapping_sub(in_half * 2)
            }
            (Some((elapsed, initial)), _) => {
                let modulus = self.modulus();
                (initial + modulus - elapsed % modulus) % modulus
            }
        };
        self.raw_of(count)
    }

    fn status(&self, at: u64) -> u8 {
        let output = if self.output(at) { STATUS_OUTPUT } else { 0 };
        let loaded = self.elapsed(at).map(|(_, initial)| initial);
        let is_loaded = loaded == Some(self.written) && self.next.is_none();
        let null = if is_loaded { 0 } else { STATUS_NULL };
        output | null | self.control
    }

    /// A latch keeps what it has until it is read.
    pub(super) fn latch_count(&mut self, at: u64) {
        self.settle(at);
        if self.latched.is_none() {
            self.latched = Some(self.count(at));
        }
    }

    pub(super) fn latch_status(&mut self, at: u64) {
        self.settle(at);
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(at));
        }
    }

    pub(super) fn read(&mut self, at: u64) -> u8 {
        self.settle(at);
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched.unwrap_or_else(|| self.count(at)).to_le_bytes();
        let (value, is_last) = match self.access {
            Access::Low => (low, true),
            Access::High => (high, true),
            Access::Both if self.reads_high => (high, true),
            Access::Both => (low, false),
        };
        self.reads_high = !is_last;
        if is_last {
            self.latched = None;
        }
        value
    }
}

impl Channel {
    /// Whether a channel gets there: it divides by these counts.
    pub(super) fn check(&self) -> Result<(), StateError> {
        const MOST: u64 = 0x1_0000;
        let is_count =
            |field, count: u64| check((1..=MOST).contains(&count), field, count, "1 to 65536");
        check(
            self.written <= MOST,
            "written",
            self.written,
            "at most 65536",
        )?;
        check(
            self.control & !0x3F == 0,
            "control",
            self.control,
            "of six bits",
        )?;
        if let Counting::From { initial, .. } | Counting::Held { initial, .. } = self.counting {
            is_count("counting.initial", initial)?;
        }
        if let Some(next) = self.next {
            is_count("next.initial", next.initial)?;
        }
        Ok(())
    }
}
